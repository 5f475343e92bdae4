"""Redis Streams: nominations of jobs to workers, and token events. Holds nothing that can't be rebuilt from Postgres."""
