"""How do files and batches look on the wire? As OpenAI's, with a few members of our own behind theirs."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, model_validator

from app.api.documents import Described
from app.batches.store import Batch, batch_name
from app.files.store import StoredFile, file_name
from app.jobs.states import Tier
from app.jobs.structure import Words

Metadata = Annotated[
    dict[
        Annotated[Words, Field(min_length=1, max_length=64)],
        Annotated[Words, Field(max_length=512)],
    ],
    Field(max_length=16),
]


class BatchRequest(BaseModel):
    """The body of POST /v1/batches."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "input_file_id": "file-0197a1b2c3d47e8f9a0b1c2d3e4f5a6b",
                    "endpoint": "/v1/chat/completions",
                    "completion_window": "24h",
                }
            ]
        },
    )

    input_file_id: StrictStr = Field(description="A file with the purpose `batch`.")
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"] = Field(
        description="The `url` of each of its lines."
    )
    completion_window: StrictStr = Field(
        "24h", description="How long it may take: a number and s, m, h or d. What isn't done then expires."
    )
    metadata: Metadata | None = None
    tier: Tier = Field("batch", description="Ours: of all of its lines.")


class BatchChangeRequest(BaseModel):
    """The body of POST /v1/batches/{id}. What is left out stays."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"tier": "standard"}]})

    tier: Tier | None = Field(None, description="Of its lines that wait, and of those to come.")
    completion_window: StrictStr | None = Field(None, description="Counted from the batch's creation, as at first.")
    deadline_s: Annotated[StrictFloat | StrictInt, Field(gt=0, le=31_536_000)] | None = Field(
        None, description="Instead of a window: seconds from now."
    )
    metadata: Metadata | None = None

    @model_validator(mode="after")
    def _one_deadline(self) -> Self:
        if self.completion_window is not None and self.deadline_s is not None:
            raise ValueError("deadline_s: give only one of completion_window and deadline_s")
        return self


def file_object(file: StoredFile) -> dict[str, Any]:
    """A file as OpenAI's clients know it."""
    return {
        "id": file_name(file.id),
        "object": "file",
        "bytes": file.bytes,
        "created_at": _seconds(file.created_at),
        "expires_at": _seconds(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def batch_object(batch: Batch, now: datetime) -> dict[str, Any]:
    """A batch as OpenAI's clients know it, and what is ours: tier, ETA, why it waits, where its lines are read before its end."""
    name = batch_name(batch.id)
    is_over = batch.has_ended
    return {
        "id": name,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": None if batch.errors is None else {"object": "list", "data": batch.errors},
        "input_file_id": file_name(batch.input_file_id),
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": file_name(batch.output_file_id) if batch.output_file_id and is_over else None,
        "error_file_id": file_name(batch.error_file_id) if batch.error_file_id and is_over else None,
        "created_at": _seconds(batch.created_at),
        "in_progress_at": _seconds(batch.in_progress_at),
        "expires_at": _seconds(batch.expires_at),
        "finalizing_at": _seconds(batch.finalizing_at),
        "completed_at": _seconds(batch.completed_at),
        "failed_at": _seconds(batch.failed_at),
        "expired_at": _seconds(batch.expired_at),
        "cancelling_at": _seconds(batch.cancelling_at),
        "cancelled_at": _seconds(batch.cancelled_at),
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.metadata,
        "tier": batch.tier,
        "eta": None if batch.eta_s is None else int(now.timestamp() + batch.eta_s),
        "waiting_for": batch.waiting_for if batch.status == "in_progress" else None,
        "urls": {
            "self": f"/v1/batches/{name}",
            "cancel": f"/v1/batches/{name}/cancel",
            "output": f"/v1/batches/{name}/output",
            "errors": f"/v1/batches/{name}/errors",
        },
    }


def list_object(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A page as OpenAI's clients know it."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


# From here on: what the OpenAPI document says.

Seconds = int | None


_FILE: dict[str, Any] = {
    "id": "file-0197a1b2c3d47e8f9a0b1c2d3e4f5a6b",
    "object": "file",
    "bytes": 2048,
    "created_at": 1769860800,
    "expires_at": None,
    "filename": "in.jsonl",
    "purpose": "batch",
    "status": "processed",
    "status_details": None,
}


class FileObject(Described):
    """A file."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_FILE]})

    id: str = Field(pattern="^file-[0-9a-f]{32}$")
    object: Literal["file"]
    bytes: int = Field(ge=0)
    created_at: int = Field(description="Seconds since 1970, as all times of files and batches.")
    expires_at: Seconds = Field(description="When it is deleted; null: never.")
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: None


class FilePage(Described):
    """A page of files."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Described):
    """A file is gone."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class BatchError(Described):
    """What is wrong with a line of the input file."""

    code: str
    line: int | None = Field(description="Counted from 1; null where it is about the whole file.")
    message: str
    param: str | None


class BatchErrors(Described):
    """Why validation failed."""

    object: Literal["list"]
    data: list[BatchError]


class RequestCounts(Described):
    """Lines; those that aren't counted in `completed` or `failed` have no result yet."""

    total: int = Field(ge=0)
    completed: int = Field(ge=0)
    failed: int = Field(ge=0, description="Those in the error file, whatever brought them there.")


class BatchWaiting(Described):
    """Why no more of its lines are submitted now."""

    reason: Literal["budget", "queue_limit", "breaker", "suspended"]
    detail: str


class BatchUrls(Described):
    """Where to go on from here."""

    self: str
    cancel: str
    output: str
    errors: str


_BATCH: dict[str, Any] = {
    "id": "batch_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "model": "tiny-stories",
    "errors": None,
    "input_file_id": "file-0197a1b2c3d47e8f9a0b1c2d3e4f5a6b",
    "completion_window": "24h",
    "status": "in_progress",
    "output_file_id": None,
    "error_file_id": None,
    "created_at": 1769860800,
    "in_progress_at": 1769860802,
    "expires_at": 1769947200,
    "finalizing_at": None,
    "completed_at": None,
    "failed_at": None,
    "expired_at": None,
    "cancelling_at": None,
    "cancelled_at": None,
    "request_counts": {"total": 1000, "completed": 420, "failed": 1},
    "metadata": {"project": "demo"},
    "tier": "batch",
    "eta": 1769860900,
    "waiting_for": None,
    "urls": {
        "self": "/v1/batches/batch_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b",
        "cancel": "/v1/batches/batch_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b/cancel",
        "output": "/v1/batches/batch_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b/output",
        "errors": "/v1/batches/batch_0197a1b2c3d47e8f9a0b1c2d3e4f5a6b/errors",
    },
}


class BatchObject(Described):
    """A batch."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_BATCH]})

    id: str = Field(pattern="^batch_[0-9a-f]{32}$")
    object: Literal["batch"]
    endpoint: str
    model: str | None = Field(description="Null where its lines name none, or several.")
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None = Field(description="When it has ended, if any line got an answer.")
    error_file_id: str | None = Field(description="When it has ended, if any line got none.")
    created_at: int
    in_progress_at: Seconds
    expires_at: Seconds
    finalizing_at: Seconds
    completed_at: Seconds
    failed_at: Seconds
    expired_at: Seconds
    cancelling_at: Seconds
    cancelled_at: Seconds
    request_counts: RequestCounts
    metadata: dict[str, str] | None
    tier: Tier
    eta: int | None = Field(description="When it will have ended at the rate of lately; null where that isn't known.")
    waiting_for: BatchWaiting | None
    urls: BatchUrls


class BatchPage(Described):
    """A page of batches, newest first."""

    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


DESCRIBED: tuple[type[BaseModel], ...] = (FileObject, BatchObject)
