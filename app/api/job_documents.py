"""What does a job look like in the API's answers? Built lean for the wire, and described for the OpenAPI document."""

from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.api.documents import Described
from app.ids import job_name
from app.jobs.forecast import Forecast
from app.jobs.read import JobView
from app.jobs.states import END_STATUSES, Status, Tier
from app.jobs.why import Why, WhyReason


def job_object(
    view: JobView, *, progress: int | None = None, when: Forecast | None = None, why: Why | None = None
) -> dict[str, Any]:
    """The job as its owner sees it. `progress` is how many tokens a running job has made, where that is known; `when` and `why` are a waiting one's."""
    path = f"/v1/jobs/{job_name(view.id)}"
    gone = {} if view.forgotten_at is None else {"forgotten": forgotten_object(view)}
    return {
        "id": job_name(view.id),
        "object": "job",
        "status": view.status,
        "tier": view.tier,
        "model": view.model,
        "requested_model": view.requested_model or view.model,
        "shared_from": None if view.shared_from is None else job_name(view.shared_from),
        "created_at": view.created_at,
        "started_at": view.started_at,
        "finished_at": view.finished_at,
        "deadline_at": view.deadline_at,
        "cancel_requested_at": view.cancel_requested_at,
        "attempts": view.attempt,
        "progress": None if progress is None else {"completion_tokens": progress},
        "forecast": forecast_object(when),
        "waiting_for": waiting_object(view, why),
        "usage": {
            "prompt_tokens": view.prompt_tokens,
            "cached_tokens": view.cached_tokens,
            "completion_tokens": view.completion_tokens,
            "total_tokens": view.prompt_tokens + view.completion_tokens,
        },
        "cost_micros": view.cost_micros,
        "timing": timing_object(view),
        "changes": view.changes,
        "choices": view.choices,
        **gone,
        "error": view.error,
        "urls": {"self": path, "cancel": f"{path}/cancel", "events": f"{path}/events"},
        "metadata": view.metadata,
    }


def timing_object(view: JobView) -> dict[str, float] | None:
    """Where an ended job's time went; to the millisecond, the parts rounded each."""
    return None if view.breakdown is None else {name: round(value, 3) for name, value in asdict(view.breakdown).items()}


def waiting_object(view: JobView, why: Why | None) -> dict[str, Any] | None:
    """What holds a waiting job up; without `why`, what its row alone tells."""
    budget_id = None if view.held_by is None else str(view.held_by)
    if why is not None:
        return {"reason": why.reason, "detail": why.detail, "clears_at": why.clears_at, "budget_id": budget_id}
    if budget_id is None:
        return None
    detail = f"its budget of {view.budget_metric} a {view.budget_period} has no room for it now"
    return {"reason": "budget", "detail": detail, "clears_at": view.not_before, "budget_id": budget_id}


def forgotten_object(view: JobView) -> dict[str, Any]:
    """Since when, and why, an output isn't there any more."""
    return {"at": view.forgotten_at, "reason": "content_retention_s" if view.forgotten_for else "output_retention_s"}


def forecast_object(when: Forecast | None) -> dict[str, Any] | None:
    """When a waiting job will start and end."""
    if when is None:
        return None
    return {
        "position": when.position,
        "start_p50": when.start_p50,
        "start_p95": when.start_p95,
        "finish_p50": when.finish_p50,
        "finish_p95": when.finish_p95,
    }


def has_ended(view: JobView) -> bool:
    """Whether nothing more will become of the job."""
    return view.status in END_STATUSES


# From here on: what the OpenAPI document says. tests/integration/api holds the answers against it.


class Progress(Described):
    """How far a running job has come."""

    completion_tokens: int = Field(ge=0, description="Tokens made so far, of all choices.")


class ForecastObject(Described):
    """When a waiting job will probably start and end. Times are null where no rate is known, or something else than its turn holds it up."""

    position: int = Field(ge=1, description="About how many jobs come before it in its tier, and itself.")
    start_p50: datetime | None = Field(description="Half of such jobs start earlier.")
    start_p95: datetime | None = Field(description="19 of 20 start earlier.")
    finish_p50: datetime | None
    finish_p95: datetime | None


class TimingObject(Described):
    """Where an ended job's time went, in seconds. The parts make up the whole."""

    held_s: float = Field(
        ge=0,
        description="Before it could run the last time: it waited for a budget or a retry, or earlier attempts ran.",
    )
    queued_s: float = Field(ge=0, description="It could run and waited for a worker.")
    prefill_s: float = Field(ge=0, description="From then until its first token.")
    decode_s: float = Field(ge=0, description="From its first token to its last.")
    persisted_s: float = Field(ge=0, description="From then until its end was written.")
    total_s: float = Field(ge=0, description="From `created_at` to `finished_at`.")


class WaitingFor(Described):
    """What holds a waiting job up; GET /v1/jobs/{id}/why says more."""

    reason: WhyReason
    detail: str
    clears_at: datetime | None = Field(description="When that is over, where it can be said.")
    budget_id: str | None = Field(description="The budget that it waits for, where it is one.")


class WhyObject(Described):
    """The one constraint that holds a job up now."""

    object: Literal["job.why"]
    id: str = Field(pattern="^job_[0-9a-f]{32}$")
    reason: WhyReason
    detail: str
    clears_at: datetime | None = Field(description="When that is over, where it can be said.")
    forecast: ForecastObject | None = Field(description="Of a waiting job.")
    figures: dict[str, Any] = Field(description="What the reason is made of; the names depend on it.")


class Usage(Described):
    """Tokens of a job. Those of the output are 0 before the end, and 0 where nothing is billed."""

    prompt_tokens: int = Field(ge=0)
    cached_tokens: int = Field(ge=0, description="Those of the prompt that the prefix cache gave.")
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0, description="prompt_tokens + completion_tokens")


class Choice(BaseModel):
    """One of the `n` texts."""

    model_config = ConfigDict(extra="allow")

    index: int = Field(ge=0)
    text: str
    finish_reason: str | None = Field(description="`stop`, `length`, or null where the job was ended from outside.")
    logprobs: dict[str, Any] | None = Field(
        None,
        description="Where the job asked for them: `content`, one entry a token, as in OpenAI's chat completions, "
        "each with its `token_id` besides.",
    )


class JobError(BaseModel):
    """Why a job ended without success."""

    model_config = ConfigDict(extra="allow")

    code: str
    message: str | None = None


class Change(Described):
    """What a job runs with that its owner asked differently."""

    asked: int | str
    given: int | str
    reason: Literal["budget"]
    budget_id: str = Field(description="The budget that couldn't hold what was asked.")


class Forgotten(Described):
    """The output was wiped; status and usage stay."""

    at: datetime
    reason: Literal["content_retention_s", "output_retention_s"] = Field(
        description="Whose word that was: the tenant's, or the installation's setting."
    )


class JobUrls(Described):
    """Where to go on from here."""

    self: str
    cancel: str
    events: str


class JobObject(Described):
    """A generation job."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "id": "job_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b",
                    "object": "job",
                    "status": "succeeded",
                    "tier": "interactive",
                    "model": "tiny-stories",
                    "requested_model": "tiny-stories",
                    "shared_from": None,
                    "created_at": "2026-01-31T12:00:00.000000Z",
                    "started_at": "2026-01-31T12:00:00.020000Z",
                    "finished_at": "2026-01-31T12:00:00.900000Z",
                    "deadline_at": None,
                    "cancel_requested_at": None,
                    "attempts": 1,
                    "progress": None,
                    "forecast": None,
                    "waiting_for": None,
                    "usage": {"prompt_tokens": 4, "cached_tokens": 0, "completion_tokens": 9, "total_tokens": 13},
                    "cost_micros": 6,
                    "timing": {
                        "held_s": 0.0,
                        "queued_s": 0.02,
                        "prefill_s": 0.11,
                        "decode_s": 0.76,
                        "persisted_s": 0.01,
                        "total_s": 0.9,
                    },
                    "changes": None,
                    "choices": [{"index": 0, "text": " there was a fox who liked the rain.", "finish_reason": "stop"}],
                    "error": None,
                    "urls": {
                        "self": "/v1/jobs/job_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b",
                        "cancel": "/v1/jobs/job_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b/cancel",
                        "events": "/v1/jobs/job_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b/events",
                    },
                    "metadata": {"project": "demo"},
                }
            ]
        },
    )

    id: str = Field(pattern="^job_[0-9a-f]{32}$")
    object: Literal["job"]
    status: Status
    tier: Tier
    model: str = Field(description="What runs it.")
    requested_model: str = Field(
        description="What its owner asked for: another one where that took no new jobs and `fallback_model` was given, or where a "
        "budget couldn't hold it and `on_budget` was `fallback`."
    )
    shared_from: str | None = Field(
        pattern="^job_[0-9a-f]{32}$", description="The job of identical work whose result it takes, or waits for."
    )
    created_at: datetime
    started_at: datetime | None = Field(description="When a worker first started it.")
    finished_at: datetime | None
    deadline_at: datetime | None
    cancel_requested_at: datetime | None = Field(description="When its owner asked to stop it while it ran.")
    attempts: int = Field(ge=0, description="How often a worker started it.")
    progress: Progress | None = Field(description="Of a running job, where it is known; null in lists.")
    forecast: ForecastObject | None = Field(description="Of a waiting job; null in lists.")
    waiting_for: WaitingFor | None = Field(
        description="Of a waiting job; in lists and in the answer to its submission only where it is a budget."
    )
    usage: Usage
    cost_micros: int | None = Field(
        ge=0,
        description="What it was charged, in millionths of the currency, as its tenant's budgets of costs count it: `usage` at the "
        "prices of its reservation, rounded up; 0 where nothing was billed. Null before the end, and where its model had no price.",
    )
    timing: TimingObject | None = Field(
        description="Of a job that has ended; null in lists, and where its last attempt wasn't measured: its worker was lost."
    )
    changes: dict[Literal["max_tokens", "model"], Change] | None = Field(
        description="What differs from the request, by field, because `on_budget` allowed it."
    )
    choices: list[Choice] | None = Field(description="Null before the end, in lists, and since it was `forgotten`.")
    forgotten: Forgotten | None = Field(None, description="Only where the output isn't kept any more.")
    error: JobError | None
    urls: JobUrls
    metadata: dict[str, str]


class JobPage(Described):
    """A page of jobs, newest first."""

    object: Literal["list"]
    data: list[JobObject]
    has_more: bool
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last.")
