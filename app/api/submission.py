"""How does a request become a promise? Checked, held against the gate, prepared in a thread, written by one transaction."""

import contextlib
from collections.abc import Iterator
from functools import partial

from app.api.asked import Submission, Submitted
from app.api.candidates import (
    NoFallback,
    models_of,
    named_one_fails,
    operators_choice,
    prepare_all,
    prepare_stand_in,
    refusing_of,
    set_one_fails,
    set_one_rests,
    with_reason,
)
from app.api.promising import NoProbeLeft, promising
from app.api.runtime import Runtime
from app.api.traced import submitting
from app.errors import (
    BudgetExhausted,
    ModelUnavailable,
    Overloaded,
    OverTenantLimit,
    QueueLimitReached,
    ShareExceeded,
    TenantSuspended,
    TierNotAllowed,
)
from app.ids import job_name
from app.jobs.admission import Applicant
from app.jobs.breakers import Standing, unavailable
from app.jobs.loads import Hold
from app.jobs.models import Model
from app.jobs.prepare import PreparedJob
from app.jobs.read import JobView, get_job
from app.jobs.submit import Accepted, Caller, find_replay
from app.quotas.rates import RateLimited
from app.quotas.rights import check_rights
from app.webhooks.address import check_url


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
    too_dear: list[Model] = []
    with runtime.admission.hold(applicant, with_room[0]) as hold:
        for prepared in await prepare_all(runtime, submission, models):
            if prepared.model not in with_room:
                continue
            hold.move(prepared.model.pool, prepared.cost)
            try:
                submitted = await _write(runtime, submission, with_reason(prepared, exhausted))
            except NoProbeLeft as refused:
                refusing.append(refused.standing)
                continue
            except BudgetExhausted as refused:
                if request.on_budget != "fallback":
                    raise
                exhausted = exhausted or refused
                too_dear.append(prepared.model)
                continue
            _keep(runtime, hold, prepared, submitted)
            return submitted
    if exhausted is not None:
        if len(models) > 1:
            raise named_one_fails(models, too_dear).beside(exhausted)
        return await _fall_back(runtime, submission, models[0], exhausted)
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


async def _fall_back(runtime: Runtime, submission: Submission, wanted: Model, exhausted: BudgetExhausted) -> Submitted:
    """On the model that an operator has set; else the budget's refusal, which says why not."""
    other = await operators_choice(runtime, submission, wanted)
    if isinstance(other, NoFallback):
        raise other.beside(exhausted)
    with runtime.admission.hold(submission.applicant, other) as hold:
        prepared = await prepare_stand_in(runtime, submission, wanted, other)
        if isinstance(prepared, NoFallback):
            raise prepared.beside(exhausted)
        hold.move(other.pool, prepared.cost)
        try:
            submitted = await _write(runtime, submission, with_reason(prepared, exhausted))
        except BudgetExhausted:
            raise set_one_fails(other.name).beside(exhausted) from None
        except NoProbeLeft:
            raise set_one_rests(other.name).beside(exhausted) from None
        _keep(runtime, hold, prepared, submitted)
        return submitted


async def _write(runtime: Runtime, submission: Submission, prepared: PreparedJob) -> Submitted:
    caller = submission.caller
    async with promising(runtime, caller, [prepared], submission.key) as new:
        (accepted,) = new.accepted
        if submission.with_job is not None and not accepted.replayed:
            await submission.with_job(new.conn, accepted.job_id)
        job = _new_view(caller, prepared, accepted) or await get_job(new.conn, caller.tenant_id, accepted.job_id)
    assert job is not None, "it was written in this transaction, or the key that leads to it would be gone"
    return Submitted(job, accepted.replayed, new.charge.headers)


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
