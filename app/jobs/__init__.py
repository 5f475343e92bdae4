"""The life of a job: states, tables, submit, store, finish, rescue."""
