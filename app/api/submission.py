"""How does a request become a promise? Prepare in a thread, accept in one transaction, then tell the workers."""

import asyncio
import contextlib
from dataclasses import dataclass

from app.api.runtime import Runtime
from app.jobs.read import JobView, get_job
from app.jobs.request import JobRequest
from app.jobs.submit import Accepted, Caller, accept, find_replay, nominate, prepare
from app.killpoints import kill_point
from app.webhooks.address import check_url

NOMINATE_TIMEOUT_S = 1.0  # a Redis that hangs holds up no answer for longer; the sweeper finds what this loses


@dataclass(frozen=True, slots=True)
class Submission:
    """What a caller asks for. `num_bytes` is the size of its body, which says how long it will take."""

    caller: Caller
    request: JobRequest
    num_bytes: int
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """The job that was promised. `replayed`: by an earlier request with the same Idempotency-Key."""

    job: JobView
    replayed: bool


async def submit(runtime: Runtime, submission: Submission) -> Submitted:
    """Promise the job: when this returns, it is in Postgres, and Redis knows it if Redis can be reached.

    Raises:
        InvalidRequest: a rule is broken (or PromptTooLong, UnknownModel).
        IdempotencyMismatch: the key came with another body before.
        BudgetExhausted: a budget can't hold it.
        Unavailable: Postgres doesn't answer, or too much is being prepared.
    """
    request = submission.request
    if request.webhook is not None:
        check_url(request.webhook.url, allow_local=runtime.settings.webhook_allow_local)
    replay = await _replay(runtime, submission)
    if replay is not None:
        return replay
    model = await runtime.catalog.find(request.model, default=runtime.settings.default_model)
    encoder = await runtime.catalog.encoder(model)
    prepared = await runtime.lanes.run(submission.num_bytes, prepare, request, model, encoder, runtime.settings)
    async with runtime.transaction() as conn:
        accepted = (await accept(conn, submission.caller, [prepared], idempotency_key=submission.idempotency_key))[0]
        job = await get_job(conn, submission.caller.tenant_id, accepted.job_id)
    assert job is not None, "it was written in this transaction, or the key that leads to it would be gone"
    kill_point("api.after_commit")
    await _tell_workers(runtime, accepted)
    return Submitted(job, accepted.replayed)


async def _replay(runtime: Runtime, submission: Submission) -> Submitted | None:
    if submission.idempotency_key is None:
        return None
    async with runtime.transaction() as conn:
        first = await find_replay(conn, submission.caller, submission.idempotency_key, submission.request)
        job = await get_job(conn, submission.caller.tenant_id, first.job_id) if first else None
    return Submitted(job, True) if job else None


async def _tell_workers(runtime: Runtime, accepted: Accepted) -> None:
    if accepted.nomination is None:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(NOMINATE_TIMEOUT_S):
            await nominate(runtime.queue(accepted.pool), [accepted])
