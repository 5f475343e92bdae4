"""What would a job cost, and would it be let in? POST /v1/jobs/quote: the body of a submission, and nothing comes of it."""

from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from app.api.asked import Submission
from app.api.authentication import Writer
from app.api.body import parse_job, read_body
from app.api.candidates import (
    NoFallback,
    models_of,
    named_one_fails,
    prepare_all,
    refusing_of,
    set_one_fails,
    stand_in,
    with_reason,
)
from app.api.documents import Described, answer
from app.api.job_documents import Change, ForecastObject, forecast_object
from app.api.openapi import JOB_BODY, problems, shows
from app.api.outlook import outlook_of_quote
from app.api.runtime import Runtime, runtime_of
from app.errors import BudgetExhausted, PenstockError
from app.jobs.admission import Applicant, Verdict
from app.jobs.breakers import unavailable
from app.jobs.forecast import Forecast
from app.jobs.prepare import PreparedJob
from app.jobs.quote import Quote, quote
from app.jobs.request import JobRequest
from app.jobs.states import OnBudget
from app.jobs.submit import Caller
from app.quotas.rights import check_rights

router = APIRouter(prefix="/v1", tags=["jobs"])


class BudgetQuote(Described):
    """One budget that applies, in its window of now."""

    id: str
    applies_to: Literal["tenant", "key"]
    metric: str
    period: str
    limit: int
    used: int
    reserved: int = Field(description="By jobs that wait or run.")
    left: int = Field(ge=0)
    wanted: int = Field(description="What this job would reserve, uncut.")
    would_refuse: bool
    resets_at: str | None = Field(description="When the next window begins; null where there is none.")


class QuoteObject(Described):
    """What a submission with this body would get now. No promise: others may be faster."""

    object: Literal["quote"]
    outcome: Literal["accepted", "waiting", "rejected"]
    on_budget: OnBudget
    model: str = Field(description="What would run it.")
    requested_model: str
    prompt_tokens: int
    n: int
    max_tokens: int = Field(description="Of each choice, as it would be let in.")
    max_total_tokens: int = Field(description="prompt_tokens + n x max_tokens")
    max_cost_micros: int = Field(description="The most that it can cost, in millionths of the currency.")
    input_price: int = Field(description="Millionths of the currency for a million tokens.")
    output_price: int = Field(description="Millionths of the currency for a million tokens.")
    changes: dict[Literal["max_tokens", "model"], Change] | None
    code: str | None = Field(description="The error that a submission would be answered with.")
    detail: str | None = Field(description="Why it would be rejected.")
    retry_after_s: int | None = Field(description="When to come back, where that is known.")
    forecast: ForecastObject | None = Field(
        description="When it would start and end; null where it wouldn't be queued."
    )
    budgets: list[BudgetQuote]


@router.post(
    "/jobs/quote",
    operation_id="quoteJob",
    summary="Ask what a job would cost",
    responses=shows(200, "What a submission would get now.", QuoteObject)
    | problems(400, 401, 403, 404, 413, 415, 422, 503),
    openapi_extra={"requestBody": JOB_BODY},
)
async def quote_job(request: Request, caller: Writer) -> Response:
    """Count and price a job and ask its budgets, without submitting it: nothing is written, reserved or counted."""
    runtime = runtime_of(request)
    body = await read_body(request, most=runtime.settings.max_body_bytes)
    wanted = await runtime.lanes.run(len(body), parse_job, body)
    quoted = await _quote(runtime, caller, wanted, len(body))
    when = None
    if quoted.refused is None and quoted.answer is not None and not quoted.answer.hold:
        job = replace(quoted.job, max_tokens=quoted.answer.max_tokens)
        when = outlook_of_quote(runtime, caller.tenant_id, job)
    return answer(_document(quoted, when))


async def _quote(runtime: Runtime, caller: Caller, wanted: JobRequest, num_bytes: int) -> Quote:
    submission = Submission(caller, wanted, num_bytes)
    models = await models_of(runtime, wanted)
    refusing = await refusing_of(runtime, models)
    candidates = await prepare_all(runtime, submission, models)
    try:
        check_rights(caller.rights, tier=wanted.tier)
        if len(refusing) == len(models):
            raise unavailable(refusing, open_s=runtime.settings.breaker_open_s)
    except PenstockError as refused:
        return replace(await _ask(runtime, caller, candidates[0]), refused=refused)
    closed = {each.model for each in refusing}
    candidates = [each for each in candidates if each.model.name not in closed]
    verdicts = [_look(runtime, caller, each) for each in candidates]
    with_room = [each for each, verdict in zip(candidates, verdicts, strict=True) if verdict is None]
    if verdicts[0] is not None and not with_room:
        return replace(await _ask(runtime, caller, candidates[0]), refused=runtime.admission.foretell(verdicts[0]))
    candidates = with_room
    first = await _ask(runtime, caller, candidates[0])
    if first.refused is None or wanted.on_budget != "fallback":
        return first
    exhausted = first.refused
    if not isinstance(exhausted, BudgetExhausted):
        return first
    if len(models) > 1:
        other: PreparedJob | NoFallback = (
            candidates[1] if len(candidates) > 1 else named_one_fails(models, [candidates[0].model])
        )
    else:
        other = await stand_in(runtime, submission, models[0])
    if isinstance(other, NoFallback):
        return replace(first, refused=other.beside(exhausted))
    second = await _ask(runtime, caller, with_reason(other, exhausted))
    if second.refused is None:
        return second
    if not isinstance(second.refused, BudgetExhausted):
        return first
    fails = named_one_fails(models, models) if len(models) > 1 else set_one_fails(other.model.name)
    return replace(first, refused=fails.beside(exhausted))


def _look(runtime: Runtime, caller: Caller, prepared: PreparedJob) -> Verdict | None:
    """Under a digest of its own, so that whoever was told when to come back keeps that place."""
    applicant = Applicant(caller.tenant_id, prepared.request, b"quote", tokens=prepared.cost)
    return runtime.admission.look(applicant, prepared.model)


async def _ask(runtime: Runtime, caller: Caller, prepared: PreparedJob) -> Quote:
    async with runtime.transaction() as conn:
        quoted = await quote(conn, caller, prepared)
    try:
        await runtime.rates.look(caller.tenant_id, caller.api_key_id, caller.limits, tokens=prepared.cost)
    except PenstockError as refused:
        return replace(quoted, refused=refused)
    return quoted


def _document(quoted: Quote, when: Forecast | None) -> dict[str, Any]:
    ask, given = quoted.ask, quoted.answer
    max_tokens = ask.max_tokens if given is None else given.max_tokens
    spending = ask.wanted(max_tokens)
    changes = (quoted.job.changes or {}) | ((given.changes if given else None) or {})
    budgets = []
    for each in quoted.windows:
        wanted = ask.wanted().amount(each.metric)
        budgets.append(
            {
                "id": str(each.budget_id),
                "applies_to": "tenant" if each.api_key_id is None else "key",
                "metric": each.metric,
                "period": each.period,
                "limit": each.hard_limit,
                "used": each.used,
                "reserved": each.reserved,
                "left": max(0, each.left),
                "wanted": wanted,
                "would_refuse": not each.holds(wanted),
                "resets_at": each.resets_at,
            }
        )
    return {
        "object": "quote",
        "outcome": "rejected" if quoted.refused or given is None else "waiting" if given.hold else "accepted",
        "on_budget": ask.on_budget,
        "model": quoted.job.model.name,
        "requested_model": quoted.job.requested_model or quoted.job.model.name,
        "prompt_tokens": ask.prompt_tokens,
        "n": ask.n,
        "max_tokens": max_tokens,
        "max_total_tokens": spending.amount("total_tokens"),
        "max_cost_micros": spending.cost_micros,
        "input_price": ask.prices.input_price,
        "output_price": ask.prices.output_price,
        "changes": changes or None,
        "code": None if quoted.refused is None else quoted.refused.code,
        "detail": None if quoted.refused is None else quoted.refused.detail,
        "retry_after_s": None if quoted.refused is None else quoted.refused.extra.get("retry_after_s"),
        "forecast": forecast_object(when),
        "budgets": budgets,
    }
