"""What do the admin API's answers on dead letters look like? Built, and described for the OpenAPI document."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.api.documents import Described
from app.ids import job_name
from app.jobs.dead.read import Letter, LetterGroup, LetterStory
from app.jobs.dead.resolve import Refusal
from app.jobs.states import Status, Tier


def letter_object(letter: Letter) -> dict[str, Any]:
    """A letter without its evidence."""
    return {
        "object": "dead_letter",
        "id": job_name(letter.job_id),
        "reservation": letter.reservation,
        "attempt": letter.attempt,
        "pool": letter.pool,
        "tenant": letter.tenant_id,
        "reason": letter.reason,
        "fingerprint": letter.fingerprint,
        "signature": letter.signature,
        "died_at": letter.at,
        "resolution": letter.resolution,
        "resolved_at": letter.resolved_at,
        "resolved_by": letter.resolved_by,
        "resolution_reason": letter.resolution_reason,
    }


def group_object(group: LetterGroup) -> dict[str, Any]:
    """A group of letters."""
    return {
        "object": "dead_letter_group",
        "fingerprint": group.fingerprint,
        "signature": group.signature,
        "reason": group.reason,
        "count": group.count,
        "pools": sorted(group.pools),
        "tenants": group.tenants,
        "first_died_at": group.first_at,
        "last_died_at": group.last_at,
        "ids": [job_name(job_id) for job_id in group.job_ids],
    }


def story_object(story: LetterStory, private: dict[str, Any] | None = None) -> dict[str, Any]:
    """All that is known of a job that was given up; prompts and texts only as `private`."""
    return letter_object(story.letter) | {
        "evidence": story.evidence,
        "job": {
            "status": story.job_status,
            "model": story.model,
            "tier": story.tier,
            "n": story.n,
            "prompt_tokens": story.prompt_tokens,
            "max_tokens": story.max_tokens,
            "created_at": story.created_at,
            "deadline_at": story.deadline_at,
            "request": story.shown_request,
        },
        "private": private,
        "earlier": [letter_object(each) for each in story.others],
    }


def refusal_object(refusal: Refusal) -> dict[str, Any]:
    """A letter that stays as it is, and why."""
    return {"id": job_name(refusal.job_id), "code": refusal.error.code, "detail": refusal.error.detail}


def resolved_object(done: Sequence[str], refused: Sequence[Refusal], next_cursor: str | None) -> dict[str, Any]:
    """What became of the letters that a request meant."""
    return {
        "object": "dead_letter_resolution",
        "done": list(done),
        "refused": [refusal_object(each) for each in refused],
        "next_cursor": next_cursor,
    }


JOB_NAME = "^job_[0-9a-f]{32}$"
LETTER_EXAMPLE: dict[str, Any] = {
    "object": "dead_letter",
    "id": "job_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b",
    "reservation": 1,
    "attempt": 3,
    "pool": "tiny-stories",
    "tenant": "acme",
    "reason": "engine_crashes",
    "fingerprint": "9f86d081884c7d65",
    "signature": "engine_crashes | the engine's process died with; the end of its log: (SIGSEGV)",
    "died_at": "2026-01-31T12:00:00.000000Z",
    "resolution": None,
    "resolved_at": None,
    "resolved_by": None,
    "resolution_reason": None,
}


class DeadLetter(Described):
    """A job that was given up, once for each of its lives."""

    model_config = ConfigDict(json_schema_extra={"examples": [LETTER_EXAMPLE]})

    object: Literal["dead_letter"]
    id: str = Field(pattern=JOB_NAME, description="The job's.")
    reservation: int = Field(ge=1, description="Which of the job's lives ended: one more with each requeue.")
    attempt: int = Field(ge=0, description="The life's last attempt; the count goes on from life to life.")
    pool: str
    tenant: str
    reason: str = Field(description="The code of the job's error.")
    fingerprint: str = Field(description="Letters with the same one are of one kind.")
    signature: str = Field(description="The fingerprint in words: numbers, addresses and ids are taken out.")
    died_at: datetime
    resolution: Literal["requeued", "discarded"] | None = Field(description="Null while it is open.")
    resolved_at: datetime | None
    resolved_by: str | None
    resolution_reason: str | None


class DeadLetterPage(Described):
    """A page of dead letters, newest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"object": "list", "data": [LETTER_EXAMPLE], "has_more": False, "next_cursor": None}]
        }
    )

    object: Literal["list"]
    data: list[DeadLetter]
    has_more: bool
    next_cursor: str | None


class DeadLetterGroup(Described):
    """Letters of one kind."""

    object: Literal["dead_letter_group"]
    fingerprint: str
    signature: str
    reason: str
    count: int = Field(ge=1)
    pools: list[str]
    tenants: int = Field(ge=1, description="How many tenants' jobs.")
    first_died_at: datetime
    last_died_at: datetime
    ids: list[str] = Field(description="The newest few jobs.")


class DeadLetterGroups(Described):
    """The largest groups, largest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "list",
                    "data": [
                        {
                            "object": "dead_letter_group",
                            "fingerprint": "9f86d081884c7d65",
                            "signature": LETTER_EXAMPLE["signature"],
                            "reason": "engine_crashes",
                            "count": 12,
                            "pools": ["tiny-stories"],
                            "tenants": 3,
                            "first_died_at": "2026-01-31T11:00:00.000000Z",
                            "last_died_at": "2026-01-31T12:00:00.000000Z",
                            "ids": ["job_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b"],
                        }
                    ],
                }
            ]
        }
    )

    object: Literal["list"]
    data: list[DeadLetterGroup]


class DeadJob(Described):
    """The job as it is now."""

    status: Status
    model: str
    tier: Tier
    n: int = Field(ge=1)
    prompt_tokens: int = Field(ge=0)
    max_tokens: int = Field(ge=1)
    created_at: datetime
    deadline_at: datetime | None
    request: dict[str, Any] = Field(description="What was asked for, but for the texts that are its owner's own.")


class Private(Described):
    """What only its owner should see."""

    request: dict[str, Any] = Field(
        description="`prompt` or `messages`, and the other texts: `tools`, schemas, `stop`."
    )
    texts: list[str] | None = Field(
        description="What each choice had written, as far as its event stream has it; null where Redis doesn't answer."
    )


class DeadLetterStory(DeadLetter):
    """The newest letter of a job with its evidence, the job, and the letters of its earlier lives."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                LETTER_EXAMPLE
                | {
                    "evidence": {
                        "error": {"code": "engine_crashes", "message": "the engine died 3 times while it ran the job"},
                        "failures": 0,
                        "worker_losses": 0,
                        "engine_crashes": 2,
                        "attempts": [],
                        "attempts_left_out": 3,
                    },
                    "job": {
                        "status": "dead",
                        "model": "tiny-stories",
                        "tier": "interactive",
                        "n": 1,
                        "prompt_tokens": 4,
                        "max_tokens": 64,
                        "created_at": "2026-01-31T11:59:00.000000Z",
                        "deadline_at": None,
                        "request": {"max_tokens": 64, "tier": "interactive"},
                    },
                    "private": None,
                    "earlier": [],
                }
            ]
        }
    )

    evidence: dict[str, Any] = Field(
        description="Error, counters, attempts with what each left behind. At most 64 KiB."
    )
    job: DeadJob
    private: Private | None = Field(description="Only with `prompts=true`, which is written down.")
    earlier: list[DeadLetter]


class RefusedLetter(Described):
    """A letter that stays as it is."""

    id: str = Field(pattern=JOB_NAME)
    code: str
    detail: str


class DeadLetterResolution(Described):
    """What became of the letters that a request meant."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "dead_letter_resolution",
                    "done": ["job_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b"],
                    "refused": [
                        {
                            "id": "job_0197a1b2c3d47e8f9a0b1c2d3e4f5a6c",
                            "code": "already_resolved",
                            "detail": "the dead letter of job_0197a1b2c3d47e8f9a0b1c2d3e4f5a6c was requeued by "
                            "cli:ann at 2026-01-31T12:00:00+00:00",
                        }
                    ],
                    "next_cursor": None,
                }
            ]
        }
    )

    object: Literal["dead_letter_resolution"]
    done: list[str]
    refused: list[RefusedLetter]
    next_cursor: str | None = Field(
        description="With `filter`: `cursor` of the next request; null when all were looked at."
    )


DESCRIBED: tuple[type[BaseModel], ...] = (
    DeadLetter, DeadLetterPage, DeadLetterGroups, DeadLetterStory, DeadLetterResolution,
)  # fmt: skip
