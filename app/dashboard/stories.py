"""Which pages tell what became of things? Jobs, dead letters, webhooks, batches, workers, models, operators' acts."""

from app.dashboard import acts, batches, hooks, job, jobs, letter, letter_runs, letters, models, workers

# In this order: a path that is a word comes before one that may be any id.
ROUTERS = (
    jobs.router, job.router, letters.router, letter_runs.router, letter.router, hooks.router, batches.router, workers.router,
    models.router, acts.router,
)  # fmt: skip
