"""Claims jobs, runs them on an engine in a child process, publishes tokens, finishes."""
