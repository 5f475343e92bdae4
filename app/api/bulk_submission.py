"""How do many requests become promises at once? Asked as one of rates, pressure, caps and budgets; written by one transaction; all or none."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

from app.api.bulk_body import Bulk, Errors, placed_error
from app.api.promising import promising
from app.api.runtime import Runtime
from app.api.submission import refusals_counted
from app.api.traced import submitting
from app.errors import InvalidRequest, ModelUnavailable, PenstockError
from app.jobs.admission import Applicant, digest_of
from app.jobs.breakers import Standing, unavailable
from app.jobs.models import Model
from app.jobs.prepare import PreparedJob, prepare
from app.jobs.request import JobRequest
from app.jobs.submit import Accepted, Caller, find_replay
from app.jobs.tokenizing import PromptEncoder
from app.quotas.rights import Rights, check_rights, check_size
from app.settings import Settings
from app.webhooks.address import check_url


@dataclass(frozen=True, slots=True)
class BulkSubmission:
    """What a caller asks for. `body` is what it is recognised by when it comes again."""

    caller: Caller
    bulk: Bulk
    body: bytes


@dataclass(frozen=True, slots=True)
class SubmittedBulk:
    """The jobs that were promised, in the order of their requests."""

    job_ids: list[UUID]
    replayed: bool
    headers: dict[str, str] = field(default_factory=dict)


async def submit_bulk(runtime: Runtime, submission: BulkSubmission) -> SubmittedBulk:
    """Promise all of the jobs or none, and count what became of them.

    Raises:
        InvalidRequest: a job breaks a rule; the field's name begins with the job's (`jobs[17].max_tokens`).
        PenstockError: as `submission.promise` does, for all together.
    """
    num = len(submission.bulk.requests)
    with submitting(runtime, num), refusals_counted(runtime, num=num):
        submitted = await _promise(runtime, submission)
    runtime.metrics.count("accepted", "replay" if submitted.replayed else "room", num=num)
    return submitted


async def _promise(runtime: Runtime, submission: BulkSubmission) -> SubmittedBulk:
    caller, bulk = submission.caller, submission.bulk
    _check_webhooks(runtime, bulk.requests)
    replay = await _replay(runtime, caller, bulk)
    if replay is not None:
        return SubmittedBulk([each.job_id for each in replay], replayed=True)
    _check_tiers(caller.rights, bulk.requests)
    models = await _models_of(runtime, bulk.requests)
    await _refuse_broken(runtime, models)
    with contextlib.ExitStack() as holds:
        kept = []
        for model, applicant in _applicants(runtime, submission, models):
            verdict = runtime.admission.look(applicant, model)
            if verdict is not None:
                raise runtime.admission.refuse(verdict)
            key = (model.name, applicant.request.tier)
            kept.append((key, holds.enter_context(runtime.admission.hold(applicant, model))))
        encoders = {model.name: await runtime.catalog.encoder(model) for model in models}
        prepared = await runtime.lanes.run(
            len(submission.body), _prepare_all, bulk.requests, models, encoders, caller.rights, runtime.settings
        )
        submitted = await _write(runtime, submission, prepared)
        if not submitted.replayed:
            costs: Counter[tuple[str, str]] = Counter()
            for each in prepared:
                costs[each.model.name, each.request.tier] += each.cost
                runtime.admission.learn(each.request, each.model, len(each.prompt_ids))
            for key, hold in kept:
                hold.keep(costs[key])
    return submitted


def _check_webhooks(runtime: Runtime, requests: Sequence[JobRequest]) -> None:
    seen: set[str] = set()
    for place, each in enumerate(requests):
        if each.webhook is None or each.webhook.url in seen:
            continue
        seen.add(each.webhook.url)
        with _job(place):
            check_url(each.webhook.url, allow_local=runtime.settings.webhook_allow_local)


def _check_tiers(rights: Rights, requests: Sequence[JobRequest]) -> None:
    for tier in {each.tier for each in requests}:
        with _job(next(place for place, each in enumerate(requests) if each.tier == tier)):
            check_rights(rights, tier=tier)


async def _models_of(runtime: Runtime, requests: Sequence[JobRequest]) -> list[Model]:
    """The model of each request."""
    found: dict[str | None, Model] = {}
    for place, each in enumerate(requests):
        if each.model not in found:
            with _job(place):
                found[each.model] = await runtime.catalog.find(each.model, default=runtime.settings.default_model)
    return [found[each.model] for each in requests]


async def _refuse_broken(runtime: Runtime, models: Sequence[Model]) -> None:
    standings = [await runtime.breakers.standing(name) for name in {model.name for model in models}]
    refusing = [each for each in standings if each is not None and each.is_refusing]
    if refusing:
        raise unavailable(refusing, open_s=runtime.settings.breaker_open_s)


def _applicants(runtime: Runtime, submission: BulkSubmission, models: Sequence[Model]) -> list[tuple[Model, Applicant]]:
    """The gate sees the jobs of one model and tier as one."""
    groups: dict[tuple[str, str], list[tuple[Model, JobRequest]]] = defaultdict(list)
    for model, request in zip(models, submission.bulk.requests, strict=True):
        groups[model.name, request.tier].append((model, request))
    tenant_id, key = submission.caller.tenant_id, submission.bulk.key
    digest = digest_of(tenant_id, None if key is None else key.key, submission.body)
    found = []
    for group in groups.values():
        model, first = min(group, key=lambda pair: pair[1].deadline_s or float("inf"))
        tokens = sum(runtime.admission.size(request, model) for _, request in group)
        found.append((model, Applicant(tenant_id, first, digest, tokens)))
    return found


def _prepare_all(
    requests: Sequence[JobRequest],
    models: Sequence[Model],
    encoders: dict[str, PromptEncoder],
    rights: Rights,
    settings: Settings,
) -> list[PreparedJob]:
    prepared, errors = [], Errors()
    for place, (request, model) in enumerate(zip(requests, models, strict=True)):
        try:
            each = prepare(request, model, encoders[model.name], settings)
            check_size(
                rights,
                prompt_tokens=len(each.prompt_ids),
                n=request.n,
                max_tokens=each.max_tokens,
                prompt_field="messages" if request.messages is not None else "prompt",
            )
            prepared.append(each)
        except InvalidRequest as error:
            errors.add(place, error)
            if errors.are_enough:
                break
    errors.throw()
    return prepared


async def _write(runtime: Runtime, submission: BulkSubmission, prepared: Sequence[PreparedJob]) -> SubmittedBulk:
    refuse = partial(_not_so_many, open_s=runtime.settings.breaker_open_s)
    async with promising(runtime, submission.caller, prepared, submission.bulk.key, refuse=refuse) as new:
        ids = [each.job_id for each in new.accepted]
    return SubmittedBulk(ids, new.accepted[0].replayed, new.charge.headers)


def _not_so_many(refusing: Standing, *, open_s: float) -> ModelUnavailable:
    error = unavailable([refusing], open_s=open_s)
    return ModelUnavailable(
        f"model: {refusing.model!r} is being tried again and takes only a few jobs now, fewer than these. "
        f"Come back in {error.extra['retry_after_s']} s, or send a few by themselves",
        **error.extra,
    )


async def _replay(runtime: Runtime, caller: Caller, bulk: Bulk) -> list[Accepted] | None:
    if bulk.key is None:
        return None
    async with runtime.transaction() as conn:
        return await find_replay(conn, caller, bulk.key)


@contextlib.contextmanager
def _job(place: int) -> Iterator[None]:
    """An error that is raised inside is the job's at this place."""
    try:
        yield
    except PenstockError as error:
        if "param" not in error.extra:
            raise
        raise placed_error(place, error) from error
