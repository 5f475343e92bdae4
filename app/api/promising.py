"""How is a prepared job promised? Charged to its caller's rates, written by one transaction, then told to the workers. One job or many."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from app.api.runtime import Runtime
from app.jobs.breakers import Standing, take_probe
from app.jobs.idempotency import IdempotencyKey
from app.jobs.prepare import PreparedJob
from app.jobs.submit import Accepted, Caller, accept, nominate_all
from app.killpoints import kill_point
from app.quotas.rates import Charge

NOMINATE_TIMEOUT_S = 1.0  # a Redis that hangs holds up no answer for longer; the sweeper finds what this loses


class NoProbeLeft(Exception):
    """Others took the half-open model's last probe: this transaction is rolled back."""

    def __init__(self, standing: Standing) -> None:
        super().__init__(standing.model)
        self.standing = standing


@dataclass(frozen=True, slots=True)
class Promising:
    """A transaction that has written jobs and isn't committed yet. `charge` has the headers of the answer, once it is."""

    conn: AsyncConnection
    accepted: list[Accepted]
    charge: Charge


@asynccontextmanager
async def promising(
    runtime: Runtime,
    caller: Caller,
    prepared: Sequence[PreparedJob],
    key: IdempotencyKey | None,
    *,
    refuse: Callable[[Standing], Exception] = NoProbeLeft,
) -> AsyncIterator[Promising]:
    """Promise all of these jobs, or none; what the body writes is committed with them. The rates get back what nothing came of.

    Raises:
        NoProbeLeft: a model that is tried again has had as many jobs as it may; or what `refuse` makes of its breaker.
        PenstockError: as `app.jobs.submit.accept` and `RateLimiter.admit`.
    """
    async with runtime.rates.charged(
        caller.tenant_id, caller.api_key_id, caller.limits,
        tokens=sum(each.cost for each in prepared), requests=len(prepared), undone_by=(NoProbeLeft,),
    ) as charge:  # fmt: skip
        standings = await runtime.breakers.all()
        async with runtime.transaction() as conn:
            accepted = await accept(conn, caller, prepared, key=key)
            await _take_probes(conn, standings, prepared, accepted, refuse)
            yield Promising(conn, accepted, charge)
            kill_point("api.before_commit")
        kill_point("api.after_commit")
        await _tell_workers(runtime, accepted)
        if accepted[0].replayed:
            charge.void()


async def _take_probes(
    conn: AsyncConnection,
    standings: dict[str, Standing],
    prepared: Sequence[PreparedJob],
    accepted: Sequence[Accepted],
    refuse: Callable[[Standing], Exception],
) -> None:
    """Who asks no engine, or not now, takes no probe: it would tell nothing."""
    asking = [
        job.model.name
        for job, each in zip(prepared, accepted, strict=True)
        if job.model.name in standings and each.nomination is not None
    ]
    for name in sorted(asking):  # all lock the breakers' rows in this order, or two would wait for each other
        refused = await take_probe(conn, name)
        if refused is not None:
            raise refuse(refused)


async def _tell_workers(runtime: Runtime, accepted: Sequence[Accepted]) -> None:
    """After the commit, as far as Redis answers."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(NOMINATE_TIMEOUT_S):
            await nominate_all(runtime.queue, accepted)
