"""Which models could run this job? The one that is asked for, the one that the request names beside it, and the one that an operator has set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from app.api.asked import Submission
from app.api.runtime import Runtime
from app.errors import BudgetExhausted, InvalidRequest
from app.jobs.breakers import Standing
from app.jobs.models import Model
from app.jobs.prepare import PreparedJob, prepare, prepare_fallback
from app.jobs.request import JobRequest
from app.jobs.spending import fallback_of, model_change
from app.quotas.rights import check_size


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
    """Those of the models that take no new jobs now, by their breakers."""
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


def _check_size(submission: Submission, prepared: PreparedJob) -> None:
    check_size(
        submission.caller.rights,
        prompt_tokens=len(prepared.prompt_ids),
        n=prepared.request.n,
        max_tokens=prepared.max_tokens,
        prompt_field="messages" if prepared.request.messages is not None else "prompt",
    )


# Why no other model takes a job that the budgets can't hold: it has none, or none that is known, that takes new jobs, that can run it, or
# that is cheap enough.
Obstacle = Literal["none", "unknown", "unavailable", "invalid", "budget"]


@dataclass(frozen=True, slots=True)
class NoFallback:
    """That no model stands in. `why` tells the caller what happened, and what to do."""

    reason: Obstacle
    model: str | None
    why: str

    def beside(self, exhausted: BudgetExhausted) -> BudgetExhausted:
        """The budget's refusal, which says so, too."""
        refused = {"model": self.model, "reason": self.reason}
        error = BudgetExhausted(
            f"{exhausted.detail}. With on_budget: fallback, {self.why}", **exhausted.extra, fallback=refused
        )
        error.headers |= exhausted.headers
        return error


def named_one_fails(models: Sequence[Model], too_dear: Sequence[Model]) -> NoFallback:
    """The request's own fallback_model doesn't help, either. Those of both `models` that aren't `too_dear` take no new jobs now."""
    wanted, other = models
    whose = f"the fallback_model {other.name!r}"
    if other not in too_dear:
        return _unavailable(whose, other.name)
    if wanted in too_dear:
        return _too_dear(whose, other.name)
    why = f"only {whose} could run it now, since {wanted.name!r} takes no new jobs: ask for less (max_tokens), or try again later"
    return NoFallback("budget", other.name, why)


def set_one_fails(name: str) -> NoFallback:
    """The budgets can't hold it on the operators' fallback, either."""
    return _too_dear(_set_one(name), name)


def set_one_rests(name: str) -> NoFallback:
    """The operators' fallback takes no new jobs now."""
    return _unavailable(_set_one(name), name)


async def operators_choice(runtime: Runtime, submission: Submission, wanted: Model) -> Model | NoFallback:
    """The model that an operator has set as fallback, if it takes the job now."""
    async with runtime.transaction() as conn:
        name = await fallback_of(conn, wanted.name)
    if name is None:
        return NoFallback(
            "none", None,
            f"there is no other model for it: the request names no fallback_model, and no operator has set one for {wanted.name!r}. "
            "Name one that costs less, or have one set",
        )  # fmt: skip
    try:
        other = await runtime.catalog.find(name)
    except InvalidRequest:
        other = wanted
    if other.name == wanted.name:
        why = f"{_set_one(name)} is no other model that is known: name one as fallback_model, or have another set"
        return NoFallback("unknown", name, why)
    is_refusing = await refusing_of(runtime, [other])
    if is_refusing or runtime.admission.look(submission.applicant, other) is not None:
        return set_one_rests(name)
    return other


async def prepare_stand_in(
    runtime: Runtime, submission: Submission, wanted: Model, other: Model
) -> PreparedJob | NoFallback:
    """The job for the operators' fallback, if that can run it."""
    try:
        return (await prepare_all(runtime, submission, [wanted, other]))[1]
    except InvalidRequest as error:
        why = f"{_set_one(other.name)} can't run it: {error.detail}. Change that, or name another as fallback_model"
        return NoFallback("invalid", other.name, why)


async def stand_in(runtime: Runtime, submission: Submission, wanted: Model) -> PreparedJob | NoFallback:
    """The job for the model that an operator has set as fallback."""
    other = await operators_choice(runtime, submission, wanted)
    return other if isinstance(other, NoFallback) else await prepare_stand_in(runtime, submission, wanted, other)


def with_reason(prepared: PreparedJob, exhausted: BudgetExhausted | None) -> PreparedJob:
    """The job that stands in, with a word on why: a budget couldn't hold it on the model that was asked for."""
    if exhausted is None or prepared.requested_model is None:
        return prepared
    change = model_change(prepared.requested_model, prepared.model.name, exhausted.extra["budget_id"])
    return replace(prepared, changes=change)


def _set_one(name: str) -> str:
    return f"{name!r}, the fallback that an operator has set,"


def _too_dear(whose: str, name: str) -> NoFallback:
    why = f"a budget can't hold it on {whose} either: ask for less (max_tokens), or name a model that costs less"
    return NoFallback("budget", name, why)


def _unavailable(whose: str, name: str) -> NoFallback:
    why = f"{whose} takes no new jobs now: try again later, or name another model as fallback_model"
    return NoFallback("unavailable", name, why)
