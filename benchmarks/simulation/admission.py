"""May this job come in? The API's own admission (`app/jobs/admission.py`), with figures of the simulated pools for those of Redis and Postgres."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from app.jobs.admission import Admission, Applicant
from app.jobs.lengths import Lengths
from app.jobs.loads import BUSY_S
from app.jobs.models import Model
from app.jobs.pool_figures import PoolFigures
from app.jobs.request import JobRequest
from app.jobs.states import TIERS
from app.settings import Settings
from benchmarks.simulation.measures import Fairness
from benchmarks.simulation.pool import Pool
from benchmarks.simulation.traffic import Job, weight_of


@dataclass(frozen=True, slots=True)
class Answer:
    """No, for this reason; worth asking again after so long."""

    reason: str
    status: int
    retry_after_s: float


class Gate:
    """All API processes as one. Its figures are of this moment; a real one's are up to half a second old."""

    def __init__(self, pools: Mapping[str, Pool], fairness: Fairness, now: Callable[[], float], seed: int) -> None:
        settings = Settings()
        self.ceilings_s = {
            "interactive": settings.max_wait_interactive_s,
            "standard": settings.max_wait_standard_s,
            "batch": settings.max_wait_batch_s,
        }
        self._models = {name: Model(name, name, "", "", 0, 0) for name in pools}
        self._admission = Admission(
            settings,
            cast("Any", _Loads(pools, fairness, now)),
            cast("Any", _Lengths()),
            clock=cast("Any", SimpleNamespace(monotonic=now, now=now)),
            draw=Random(f"retries {seed}").random,
        )

    def ask(self, job: Job) -> Answer | None:
        """None where it may come in."""
        verdict = self._admission.look(Applicant(job.tenant, _request_of(job), job.id.bytes), self._models[job.pool])
        if verdict is None:
            return None
        error = self._admission.refuse(verdict)
        return Answer(error.extra["reason"], error.status, float(error.extra["retry_after_s"]))


class _Loads:
    """What `LoadBoard` tells admission."""

    def __init__(self, pools: Mapping[str, Pool], fairness: Fairness, now: Callable[[], float]) -> None:
        self._pools, self._fairness, self._now = pools, fairness, now

    def figures(self, pool: str) -> PoolFigures:
        tenants = {tier: self._fairness.tenants_of((pool, tier)) for tier in TIERS}
        now = self._now()
        return PoolFigures(self._pools[pool].load(tenants, now, BUSY_S), "redis", now)

    def age_s(self, _pool: str) -> float:
        return 0.0

    def own_tokens(self, pool: str, tier: str, tenant: str) -> int:
        known = self._pools[pool]
        mean = known.tokens[tier] / known.jobs[tier] if known.jobs[tier] else 0.0
        return int(self._fairness.num_waiting((pool, tier), tenant) * mean)

    def owed_tokens(self, _pool: str, _tier: str, _tenant: str) -> float:
        return 0.0  # the queue's counters aren't looked at here

    def weight_of(self, _pool: str, _tier: str, tenant: str) -> float:
        return float(weight_of(tenant))


def _part(q: float) -> float:
    """So much of what it asks for or less is written by this part of the jobs."""
    return 1 / (1 - math.log(q))


class _Lengths:
    """What `LengthBook` tells admission: all tenants' jobs are drawn alike, 1 / (1 + an exponential of mean 1) of what they ask for."""

    _KNOWN = Lengths(_part(0.05), _part(0.5), _part(0.95), num_jobs=200)

    def of(self, _tenant: str, _model: str) -> Lengths:
        return self._KNOWN


def _request_of(job: Job) -> JobRequest:
    """All of a body that admission looks at; to make a whole one takes longer than the decision."""
    request = SimpleNamespace(
        messages=None, prompt=range(job.prompt), n=1, max_tokens=job.max_tokens, tier=job.tier, deadline_s=None
    )
    return cast("JobRequest", request)
