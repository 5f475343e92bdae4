"""How does each contender play a case? One module each, run in a process of its own by `benchmarks.contest`."""
