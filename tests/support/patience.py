"""How long does what runs in a test's own process wait for a Redis that is there? As long as it takes.

In production a Redis that hangs holds nobody up for longer than a second or so: then a rate is decided by the process alone, a job is left
to the sweeper, a page shows a dash. On a busy machine a Redis that is well, or the test's own process, may be held up for as long, and the
test would see that instead of what it is about. Tests of a server that hangs or is away have one of their own (`private_redis`, `private_postgres`).
"""

import sys

import pytest

PATIENT_S = 20.0
TIMEOUTS = (
    ("app.api.dead_letters", "TEXTS_TIMEOUT_S"),
    ("app.api.health", "CHECK_TIMEOUT_S"),
    ("app.api.jobs", "PROGRESS_TIMEOUT_S"),
    ("app.api.jobs", "SPREAD_TIMEOUT_S"),
    ("app.api.openai.running", "SPREAD_TIMEOUT_S"),
    ("app.api.promising", "NOMINATE_TIMEOUT_S"),
    ("app.dashboard.history", "_TIMEOUT_S"),
    ("app.dashboard.job", "REDIS_TIMEOUT_S"),
    ("app.jobs.dead.resolve", "_TELL_TIMEOUT_S"),
    ("app.jobs.loads", "READ_TIMEOUT_S"),
    ("app.quotas.rates", "TIMEOUT_S"),
)


def be_patient(patch: pytest.MonkeyPatch) -> None:
    """Give Redis time, in those modules that the test has loaded; a name that is gone fails it."""
    for module, name in TIMEOUTS:
        if module in sys.modules:
            patch.setattr(sys.modules[module], name, PATIENT_S)
