"""What a process tells of itself: metrics for Prometheus, traces for OpenTelemetry. It knows none of the rooms that it watches."""
