"""How does a request become a promise? Prepare in a thread, accept in one transaction, then tell the workers."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.api.runtime import Runtime
from app.api.traced import submitting
from app.errors import (
    BudgetExhausted,
    InvalidRequest,
    ModelUnavailable,
    Overloaded,
    OverTenantLimit,
    QueueLimitReached,
    ShareExceeded,
    TenantSuspended,
    TierNotAllowed,
)
from app.ids import job_name
from app.jobs.admission import Applicant, digest_of
from app.jobs.breakers import Standing, take_probe, unavailable
from app.jobs.idempotency import IdempotencyKey
from app.jobs.loads import Hold
from app.jobs.models import Model
from app.jobs.prepare import PreparedJob, prepare, prepare_fallback
from app.jobs.read import JobView, get_job
from app.jobs.request import JobRequest
from app.jobs.spending import fallback_of, model_change
from app.jobs.submit import Accepted, Caller, accept, find_replay, nominate_all
from app.killpoints import kill_point
from app.quotas.rates import RateLimited
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
    body: bytes = b""
    with_job: Callable[[AsyncConnection, UUID], Awaitable[None]] | None = None  # what is written beside a new job

    @property
    def key(self) -> IdempotencyKey | None:
        """Under which it may come again."""
        return None if self.idempotency_key is None else IdempotencyKey.of_one(self.idempotency_key, self.request)

    @property
    def applicant(self) -> Applicant:
        """Who asks, as the gate knows it."""
        tenant_id = self.caller.tenant_id
        return Applicant(tenant_id, self.request, digest_of(tenant_id, self.idempotency_key, self.body))


@dataclass(frozen=True, slots=True)
class Submitted:
    """The job that was promised. `replayed`: by an earlier request with the same Idempotency-Key. `headers`: its caller's rates."""

    job: JobView
    replayed: bool
    headers: dict[str, str] = field(default_factory=dict)


async def submit(runtime: Runtime, submission: Submission) -> Submitted:
    """`promise`, and count what became of it."""
    count = runtime.metrics.count
    with submitting(runtime) as span, refusals_counted(runtime):
        submitted = await promise(runtime, submission)
        if span is not None:
            span.set_attribute("penstock.job.id", job_name(submitted.job.id))
    figures = runtime.loads.figures(submitted.job.pool)
    if submitted.replayed:
        count("accepted", "replay")
    elif submitted.job.requested_model is not None:
        count("accepted", "fallback")
    else:
        count("accepted", "no_worker" if figures is not None and figures.load.num_workers == 0 else "room")
    return submitted


@contextlib.contextmanager
def refusals_counted(runtime: Runtime, *, num: int = 1) -> Iterator[None]:
    """Count a refusal of one job, or of `num` that come together."""
    count = partial(runtime.metrics.count, "refused", num=num)
    try:
        yield
    except (Overloaded, ShareExceeded) as error:
        count(error.extra["reason"])
        raise
    except ModelUnavailable:
        count("breaker")
        raise
    except BudgetExhausted:
        count("budget")
        raise
    except RateLimited:
        count("rate")
        raise
    except (TenantSuspended, TierNotAllowed, OverTenantLimit, QueueLimitReached):
        count("tenant")
        raise


async def promise(runtime: Runtime, submission: Submission) -> Submitted:
    """Promise the job: when this returns, it is in Postgres, and Redis knows it if Redis can be reached.

    Raises:
        InvalidRequest: a rule is broken (or PromptTooLong, UnknownModel).
        IdempotencyMismatch: the key came with another body before.
        RateLimited: key or tenant submit too fast (or ExceedsBurst).
        TenantSuspended, TierNotAllowed, OverTenantLimit, QueueLimitReached: its tenant may not.
        BudgetExhausted: a budget can't hold it.
        ModelUnavailable: the model's breaker is open, and so is the fallback's, if there is one.
        Overloaded: too much waits before it, or ShareExceeded: too much of its tenant's own. With a fallback: there, too.
        DeadlineUnreachable: it would end too late.
        Unavailable: Postgres doesn't answer, or too much is being prepared.
    """
    request = submission.request
    if request.webhook is not None:
        check_url(request.webhook.url, allow_local=runtime.settings.webhook_allow_local)
    replay = await _replay(runtime, submission)
    if replay is not None:
        return replay
    check_rights(submission.caller.rights, tier=request.tier)
    models = await models_of(runtime, request)
    refusing = await refusing_of(runtime, models)
    if len(refusing) == len(models):
        raise unavailable(refusing, open_s=runtime.settings.breaker_open_s)  # before the work of counting tokens
    applicant = submission.applicant
    with_room = _with_room(runtime, applicant, [each for each in models if each.name not in _names(refusing)])
    exhausted: BudgetExhausted | None = None
    with runtime.admission.hold(applicant, with_room[0]) as hold:
        for prepared in await prepare_all(runtime, submission, models):
            if prepared.model not in with_room:
                continue
            hold.move(prepared.model.pool, prepared.cost)
            try:
                submitted = await _rated(runtime, submission, told(prepared, exhausted))
            except _NoProbeLeft as refused:
                refusing.append(refused.standing)
                continue
            except BudgetExhausted as refused:
                if request.on_budget != "fallback":
                    raise
                exhausted = exhausted or refused
                continue
            _keep(runtime, hold, prepared, submitted)
            return submitted
    if exhausted is not None:
        return await _fall_back(runtime, submission, models, exhausted)
    raise unavailable(refusing, open_s=runtime.settings.breaker_open_s)


def _keep(runtime: Runtime, hold: Hold, prepared: PreparedJob, submitted: Submitted) -> None:
    """The gate counts the new job on, and knows the next one's size better."""
    if not submitted.replayed:
        hold.keep(prepared.cost)
        runtime.admission.learn(prepared.request, prepared.model, len(prepared.prompt_ids))


def _names(refusing: list[Standing]) -> set[str]:
    return {each.model for each in refusing}


def _with_room(runtime: Runtime, applicant: Applicant, models: list[Model]) -> list[Model]:
    """Those of the models whose pools aren't overloaded; the first one's refusal where none is left."""
    verdicts = [(model, runtime.admission.look(applicant, model)) for model in models]
    found = [model for model, verdict in verdicts if verdict is None]
    if not found and verdicts[0][1] is not None:
        raise runtime.admission.refuse(verdicts[0][1])
    return found


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


async def models_of(runtime: Runtime, request: JobRequest) -> list[Model]:
    """The model that is asked for, and the one that stands in, if one is named."""
    found = [await runtime.catalog.find(request.model, default=runtime.settings.default_model)]
    if request.fallback_model is not None:
        if request.fallback_model == found[0].name:
            raise InvalidRequest(
                f"fallback_model: must be another model than {found[0].name!r}", param="fallback_model"
            )
        found.append(await runtime.catalog.find(request.fallback_model, field="fallback_model"))
    return found


async def refusing_of(runtime: Runtime, models: list[Model]) -> list[Standing]:
    """The breakers of these models that let nothing through now."""
    standings = [await runtime.breakers.standing(model.name) for model in models]
    return [each for each in standings if each is not None and each.is_refusing]


async def prepare_all(runtime: Runtime, submission: Submission, models: list[Model]) -> list[PreparedJob]:
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


async def _rated(runtime: Runtime, submission: Submission, prepared: PreparedJob) -> Submitted:
    """Promise the job inside the caller's rate limits, which get back what they gave for a job that wasn't made."""
    caller = submission.caller
    async with runtime.rates.charged(
        caller.tenant_id, caller.api_key_id, caller.limits, tokens=prepared.cost, undone_by=(_NoProbeLeft,)
    ) as charge:
        submitted = await _promise(runtime, submission, prepared)
        if submitted.replayed:
            charge.void()
    return replace(submitted, headers=charge.headers)


async def stand_in(runtime: Runtime, submission: Submission, models: list[Model]) -> PreparedJob | None:
    """The job for the model that an operator has set as fallback; None where the request names its own, or can't run there now."""
    other = await _operators_choice(runtime, submission, models)
    return None if other is None else await _prepare_stand_in(runtime, submission, models[0], other)


async def _operators_choice(runtime: Runtime, submission: Submission, models: list[Model]) -> Model | None:
    if len(models) > 1:
        return None
    async with runtime.transaction() as conn:
        name = await fallback_of(conn, models[0].name)
    if name is None or name == models[0].name:
        return None
    try:
        other = await runtime.catalog.find(name)
    except InvalidRequest:
        return None
    is_refusing = await refusing_of(runtime, [other])
    return None if is_refusing or runtime.admission.look(submission.applicant, other) is not None else other


async def _prepare_stand_in(
    runtime: Runtime, submission: Submission, wanted: Model, other: Model
) -> PreparedJob | None:
    try:
        return (await prepare_all(runtime, submission, [wanted, other]))[1]
    except InvalidRequest:
        return None


def told(prepared: PreparedJob, exhausted: BudgetExhausted | None) -> PreparedJob:
    """The job that stands in, with a word on why: a budget couldn't hold it on the model that was asked for."""
    if exhausted is None or prepared.requested_model is None:
        return prepared
    change = model_change(prepared.requested_model, prepared.model.name, exhausted.extra["budget_id"])
    return replace(prepared, changes=change)


async def _fall_back(
    runtime: Runtime, submission: Submission, models: list[Model], exhausted: BudgetExhausted
) -> Submitted:
    other = await _operators_choice(runtime, submission, models)
    if other is None:
        raise exhausted
    with runtime.admission.hold(submission.applicant, other) as hold:
        prepared = await _prepare_stand_in(runtime, submission, models[0], other)
        if prepared is not None:
            hold.move(other.pool, prepared.cost)
            with contextlib.suppress(BudgetExhausted, _NoProbeLeft):
                submitted = await _rated(runtime, submission, told(prepared, exhausted))
                _keep(runtime, hold, prepared, submitted)
                return submitted
    raise exhausted


async def _promise(runtime: Runtime, submission: Submission, prepared: PreparedJob) -> Submitted:
    standing = await runtime.breakers.standing(prepared.model.name)
    async with runtime.transaction() as conn:
        accepted = (await accept(conn, submission.caller, [prepared], key=submission.key))[0]
        if submission.with_job is not None and not accepted.replayed:
            await submission.with_job(conn, accepted.job_id)
        # Who asks no engine, or not now, takes no probe: it would tell nothing.
        if standing is not None and accepted.nomination is not None:
            refused = await take_probe(conn, prepared.model.name)
            if refused is not None:
                raise _NoProbeLeft(refused)
        job = _new_view(submission.caller, prepared, accepted)
        if job is None:
            job = await get_job(conn, submission.caller.tenant_id, accepted.job_id)
        kill_point("api.before_commit")
    assert job is not None, "it was written in this transaction, or the key that leads to it would be gone"
    kill_point("api.after_commit")
    await tell_workers(runtime, [accepted])
    return Submitted(job, accepted.replayed)


def _new_view(caller: Caller, job: PreparedJob, accepted: Accepted) -> JobView | None:
    """A job that was just written, as a read would show it; None where something else became of it than was asked."""
    if accepted.arrival is None:
        return None
    return JobView(
        id=job.id, tenant_id=caller.tenant_id, status="queued", tier=job.request.tier, model=job.model.name,
        requested_model=job.requested_model, shared_from=None, pool=job.model.pool, gen=1, attempt=0, n=job.request.n,
        prompt_tokens=len(job.prompt_ids), max_tokens=job.max_tokens, cached_tokens=0, completion_tokens=0,
        metadata=job.request.metadata, error=None, created_at=accepted.arrival.created_at, started_at=None, finished_at=None,
        deadline_at=accepted.arrival.deadline_at, cancel_requested_at=None, changes=job.changes, held_by=None,
        not_before=None, budget_metric=None, budget_period=None, choices=None,
    )  # fmt: skip


async def _replay(runtime: Runtime, submission: Submission) -> Submitted | None:
    if submission.key is None:
        return None
    async with runtime.transaction() as conn:
        first = await find_replay(conn, submission.caller, submission.key)
        job = await get_job(conn, submission.caller.tenant_id, first[0].job_id) if first else None
    return Submitted(job, True) if job else None


async def tell_workers(runtime: Runtime, accepted: Sequence[Accepted]) -> None:
    """After the commit, as far as Redis answers."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(NOMINATE_TIMEOUT_S):
            await nominate_all(runtime.queue, accepted)
