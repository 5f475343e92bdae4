"""What did callers hand in, and what do batches hand out? Files, their bytes in Postgres."""
