"""The parts of `python -m benchmarks streams` that run in processes of their own: who writes, and who reads."""
