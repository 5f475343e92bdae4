"""Is this worker still the owner of what it runs? Renew the lease; what Postgres says wins over what we believe."""

import asyncio
import logging
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from app.errors import LeaseLost
from app.jobs import leases, store
from app.jobs.leases import HeldJob, Renewal
from app.racing import at_most
from app.telemetry import emit
from workers.generation.claimer import hand_over, take_in
from workers.generation.context import WorkerContext
from workers.generation.finisher import Finisher
from workers.generation.hand import request_id_of
from workers.generation.outputs import stop_job

log = logging.getLogger(__name__)


async def renew_forever(worker: WorkerContext, finisher: Finisher) -> None:
    """Keep the lease, and reconcile the hand with Postgres at each renewal.

    Raises:
        LeaseLost: others have buried this incarnation, or it couldn't renew in time: everything in the hand is void.
    """
    settings, clock = worker.settings, worker.clock
    renewed_at = clock.monotonic()
    # A hanging connection holds up the other loops' end, too: what is lost is let go here, not when they have ended.
    strangers: set[tuple[UUID, int]] = set()
    while True:
        await asyncio.sleep(settings.lease_renew_s)
        sent_at = clock.monotonic()
        left_s = settings.lease_fence_s - (sent_at - renewed_at)
        try:
            renewal = await at_most(max(left_s, 0.0), _renew(worker))
        except (SQLAlchemyError, OSError) as error:  # TimeoutError is an OSError
            emit(log, logging.WARNING, "lease_not_renewed", error=error)
            if clock.monotonic() - renewed_at >= settings.lease_fence_s:
                lost = LeaseLost(
                    f"worker {worker.incarnation}: no renewal for {settings.lease_fence_s:g} s; it fences itself"
                )
                await let_go(worker, lost)
                raise lost from error
            continue
        if renewal is None:
            lost = LeaseLost(f"worker {worker.incarnation}: its lease was taken away")
            await let_go(worker, lost)
            raise lost
        renewed_at = sent_at
        _heed(worker, renewal)
        try:
            strangers = await _reconcile(worker, finisher, renewal.held, strangers)
        except (SQLAlchemyError, OSError) as error:
            emit(log, logging.WARNING, "jobs_not_adopted", error=error)  # at the next renewal


async def _renew(worker: WorkerContext) -> Renewal | None:
    async with worker.db.begin() as conn:
        return await leases.renew(
            conn, worker.incarnation, ttl_s=worker.settings.lease_ttl_s, state=_state(worker), stats=_stats(worker)
        )


def _heed(worker: WorkerContext, renewal: Renewal) -> None:
    """Claim nothing more, or again, as an operator wants it."""
    if renewal.is_drain_requested != worker.is_paused:
        worker.is_paused = renewal.is_drain_requested
        worker.changed.set()
        emit(log, logging.INFO, "drained_by_operator" if worker.is_paused else "undrained", jobs=len(worker.hand))


async def let_go(worker: WorkerContext, lost: LeaseLost) -> None:
    """Stop and drop what isn't ours any more, at once. Ends that are on their way are still tried: the fence decides."""
    if worker.lost_incarnation != worker.incarnation:
        worker.lost_incarnation = worker.incarnation
        emit(log, logging.ERROR, "lease_lost", reason=lost.detail, jobs=len(worker.hand))
    for job in list(worker.hand.values()):
        if not job.is_ending:
            await worker.engine.abort(job.request_id)
            worker.drop(job.request_id)


async def _reconcile(
    worker: WorkerContext, finisher: Finisher, held: list[HeldJob], strangers: set[tuple[UUID, int]]
) -> set[tuple[UUID, int]]:
    """Stop what is cancelled; adopt what runs under our name and isn't in the hand, when it is seen a second time.

    A start whose COMMIT's reply got lost leaves such a job. Once isn't enough: a claim may be between its commit and
    its return just now.
    """
    known = {(job.started.job_id, job.started.attempt): job for job in worker.hand.values()}
    unknown = {(each.job_id, each.attempt) for each in held} - known.keys()
    for each in held:
        job = known.get((each.job_id, each.attempt))
        if job is not None and each.cancel_requested:
            await stop_job(worker, finisher, job, "cancelled")
    adopted = [job_id for job_id, attempt in unknown & strangers]
    if adopted:
        emit(log, logging.INFO, "jobs_adopted", jobs=len(adopted))
        async with worker.db.connect() as conn:
            started = await store.load(conn, worker.incarnation, adopted)
        requests = take_in(worker, finisher, started)
        # A suspect can't run in company, and nobody beside a suspect: another claim brings them again.
        names = [request_id_of(each) for each in started if each.lane != "normal" or worker.alone]
        apart = [worker.hand[name] for name in names if name in worker.hand]
        await finisher.give_back([job for job in apart if not job.is_ending], "drained")
        await hand_over(worker, finisher, [request for request in requests if request.id in worker.hand])
    return unknown - strangers


def _state(worker: WorkerContext) -> str:
    return "draining" if worker.is_draining else "ready"


@lru_cache(maxsize=1)
def _version() -> str | None:
    try:
        return version("penstock")
    except PackageNotFoundError:  # run from a folder that isn't installed
        return None


def _stats(worker: WorkerContext) -> dict[str, object]:
    stats = worker.stats
    return {
        "jobs": len(worker.hand),
        "running": stats.running,
        "waiting": stats.waiting,
        "kv_blocks_used": stats.kv_blocks_used,
        "kv_blocks_total": stats.kv_blocks_total,
        "generated_tokens": stats.generated_tokens,
        "preemptions": stats.preemptions,
        "guessed_tokens": stats.guessed_tokens,
        "accepted_tokens": stats.accepted_tokens,
        "load_s": round(worker.load_s, 3),
        "version": _version(),
        **worker.throughput.stats(worker.clock.monotonic()),
    }
