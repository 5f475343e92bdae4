"""How does a request become a promise? Prepare in a thread, accept in one transaction, then tell the workers."""

import asyncio
import contextlib
from dataclasses import dataclass

from app.api.runtime import Runtime
from app.errors import InvalidRequest
from app.jobs.breakers import Standing, take_probe, unavailable
from app.jobs.models import Model
from app.jobs.read import JobView, get_job
from app.jobs.request import JobRequest
from app.jobs.submit import (
    Accepted,
    Caller,
    PreparedJob,
    accept,
    find_replay,
    nominate,
    prepare,
    prepare_fallback,
)
from app.killpoints import kill_point
from app.quotas.rights import check_rights, check_size
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
        TenantSuspended, TierNotAllowed, OverTenantLimit, QueueLimitReached: its tenant may not.
        BudgetExhausted: a budget can't hold it.
        ModelUnavailable: the model's breaker is open, and so is the fallback's, if there is one.
        Unavailable: Postgres doesn't answer, or too much is being prepared.
    """
    request = submission.request
    if request.webhook is not None:
        check_url(request.webhook.url, allow_local=runtime.settings.webhook_allow_local)
    replay = await _replay(runtime, submission)
    if replay is not None:
        return replay
    check_rights(submission.caller.rights, tier=request.tier)
    models = await _models(runtime, request)
    refusing = await _refusing(runtime, models)
    if len(refusing) == len(models):
        raise unavailable(refusing, open_s=runtime.settings.breaker_open_s)  # before the work of counting tokens
    candidates = await _prepare(runtime, submission, models)
    names = {each.model for each in refusing}
    for prepared in candidates:
        if prepared.model.name in names:
            continue
        try:
            return await _promise(runtime, submission, prepared)
        except _NoProbeLeft as refused:
            refusing.append(refused.standing)
    raise unavailable(refusing, open_s=runtime.settings.breaker_open_s)


def _check_size(submission: Submission, prepared: PreparedJob) -> None:
    check_size(
        submission.caller.rights,
        prompt_tokens=len(prepared.prompt_ids),
        n=prepared.request.n,
        max_tokens=prepared.max_tokens,
        prompt_field="messages" if prepared.request.messages is not None else "prompt",
    )


class _NoProbeLeft(Exception):
    """Others took the half-open model's last probe: this transaction is rolled back."""

    def __init__(self, standing: Standing) -> None:
        super().__init__(standing.model)
        self.standing = standing


async def _models(runtime: Runtime, request: JobRequest) -> list[Model]:
    """The model that is asked for, and the one that stands in, if one is named."""
    found = [await runtime.catalog.find(request.model, default=runtime.settings.default_model)]
    if request.fallback_model is not None:
        if request.fallback_model == found[0].name:
            raise InvalidRequest(
                f"fallback_model: must be another model than {found[0].name!r}", param="fallback_model"
            )
        found.append(await runtime.catalog.find(request.fallback_model, field="fallback_model"))
    return found


async def _refusing(runtime: Runtime, models: list[Model]) -> list[Standing]:
    standings = [await runtime.breakers.standing(model.name) for model in models]
    return [each for each in standings if each is not None and each.is_refusing]


async def _prepare(runtime: Runtime, submission: Submission, models: list[Model]) -> list[PreparedJob]:
    """The job for each model, the fallback too: what is refused must not depend on which one happens to fail."""
    request, settings, num_bytes = submission.request, runtime.settings, submission.num_bytes
    encoders = [await runtime.catalog.encoder(model) for model in models]
    prepared = [await runtime.lanes.run(num_bytes, prepare, request, models[0], encoders[0], settings)]
    for fallback, encoder in zip(models[1:], encoders[1:], strict=True):
        prepared.append(
            await runtime.lanes.run(num_bytes, prepare_fallback, request, models[0], fallback, encoder, settings)
        )
    for each in prepared:
        _check_size(submission, each)
    return prepared


async def _promise(runtime: Runtime, submission: Submission, prepared: PreparedJob) -> Submitted:
    standing = await runtime.breakers.standing(prepared.model.name)
    async with runtime.transaction() as conn:
        accepted = (await accept(conn, submission.caller, [prepared], idempotency_key=submission.idempotency_key))[0]
        if standing is not None and not accepted.replayed:
            refused = await take_probe(conn, prepared.model.name)
            if refused is not None:
                raise _NoProbeLeft(refused)
        job = await get_job(conn, submission.caller.tenant_id, accepted.job_id)
        kill_point("api.before_commit")
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
