"""An independent auditor: its own queries over what Postgres and Redis hold, and none of the code that wrote it."""
