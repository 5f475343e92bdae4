"""Which letters does an operator mean? Some by their jobs, or all of a kind; never all there are by saying nothing."""

from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, create_model, model_validator

from app.ids import MODEL_NAME, parse_job_name
from app.jobs.dead.edit import CHANGEABLE
from app.jobs.dead.read import LetterFilter
from app.jobs.dead.resolve import MAX_REASON_CHARS
from app.jobs.request import JobRequest, Number
from app.jobs.structure import Words

MAX_IDS = 100  # of one request
TENANT = r"^[a-z0-9][a-z0-9-]{0,62}$"
REASON = r"^[a-z][a-z0-9_]{0,63}$"
FINGERPRINT = r"^[A-Za-z0-9][A-Za-z0-9:._/-]{0,255}$"

JobName = Annotated[StrictStr, Field(pattern=r"^job_[0-9a-f]{32}$")]


class LetterChoice(BaseModel):
    """Open letters of one kind: those that fit all that is given."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"minProperties": 1})

    pool: Annotated[StrictStr, Field(pattern=MODEL_NAME)] | None = None
    tenant: Annotated[StrictStr, Field(pattern=TENANT)] | None = None
    reason: Annotated[StrictStr, Field(pattern=REASON)] | None = None
    fingerprint: Annotated[StrictStr, Field(pattern=FINGERPRINT)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not any(getattr(self, name) for name in type(self).model_fields):
            raise ValueError("filter: name at least one of pool, tenant, reason and fingerprint")
        return self


class Selection(BaseModel):
    """Letters, and why they are resolved."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ids: Annotated[list[JobName], Field(min_length=1, max_length=MAX_IDS)] | None = Field(
        None, description="Jobs whose letters are meant. Exactly one of `ids` and `filter`."
    )
    filter: LetterChoice | None = Field(None, description="Open letters of one kind, in the order of their jobs' ids.")
    cursor: JobName | None = Field(None, description="With `filter`: `next_cursor` of the answer before.")
    limit: Annotated[StrictInt, Field(ge=1, le=MAX_IDS)] = Field(
        MAX_IDS, description="With `filter`: most letters of this request."
    )
    reason: Annotated[Words, Field(min_length=1, max_length=MAX_REASON_CHARS)] = Field(
        description="Why, for the log of operators' acts."
    )

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give exactly one of ids and filter")
        if self.cursor is not None and self.filter is None:
            raise ValueError("cursor: goes with filter only")
        if not self.reason.strip():
            raise ValueError("reason: must say something")
        return self

    @property
    def job_ids(self) -> list[UUID]:
        """`ids`, each once, in the order in which they are locked."""
        return sorted({job_id for name in self.ids or [] if (job_id := parse_job_name(name))})

    @property
    def after(self) -> UUID | None:
        """`cursor` as an id."""
        return parse_job_name(self.cursor) if self.cursor else None

    @property
    def wanted(self) -> LetterFilter:
        """`filter` as a query takes it."""
        assert self.filter is not None
        return LetterFilter(**self.filter.model_dump())


_FIELDS: dict[str, Any] = {
    name: (JobRequest.model_fields[name].annotation, JobRequest.model_fields[name]) for name in CHANGEABLE
}
JobChanges = create_model(
    "JobChanges",
    __config__=ConfigDict(extra="forbid", frozen=True),
    __doc__="What may be changed of a job before it is requeued, with the limits of a submission.",
    **_FIELDS,
)


class RequeueRequest(Selection):
    """The body of POST /v1/admin/dead-letters/requeue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"filter": {"fingerprint": "9f86d081884c7d65"}, "reason": "driver 550.90 is rolled out"},
                {
                    "ids": ["job_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b"],
                    "reason": "fewer tokens fit",
                    "changes": {"max_tokens": 256, "tier": "batch"},
                    "deadline_s": 600,
                },
            ]
        }
    )

    deadline_s: Annotated[Number, Field(gt=0, le=31_536_000)] | None = Field(
        None, description="A new deadline, in seconds from now; left out: as long as the job asked for at first."
    )
    clear_deadline: StrictBool = Field(False, description="The job shall have no deadline.")
    changes: JobChanges | None = Field(None, description="With one id: fields of the job that become others.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.clear_deadline and self.deadline_s is not None:
            raise ValueError("clear_deadline: can't go with deadline_s")
        if self.changes is not None and len(self.ids or []) != 1:
            raise ValueError("changes: need exactly one id")
        return self


class DiscardRequest(Selection):
    """The body of POST /v1/admin/dead-letters/discard."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"ids": ["job_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b"], "reason": "asked for by nobody any more"}]
        }
    )
