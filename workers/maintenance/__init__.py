"""The repairer and the timekeeper: leases, lost enqueues, deadlines, retries that are due."""
