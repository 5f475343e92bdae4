"""What do the API's answers have in common, and what do those look like that are no room's own: models, errors, health?"""

from typing import Any, Literal

import msgspec
from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

_encode = msgspec.json.Encoder().encode


def answer(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer; times are RFC 3339 with Z, since our sessions speak UTC. Not to be cached: it is one tenant's, and it changes."""
    return Response(_encode(body), status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")


# From here on: what the OpenAPI document says. tests/integration/api holds the answers against it.


class Described(BaseModel):
    """Base of all descriptions."""

    model_config = ConfigDict(extra="forbid")


class ModelObject(Described):
    """A model that jobs may name."""

    id: str = Field(description="Its name.")
    object: Literal["model"]
    created: int = Field(description="When a worker last registered it, in seconds since the epoch.")
    owned_by: str
    name: str
    max_model_len: int = Field(ge=1, description="Longest prompt + output, in tokens.")
    breaker: Literal["closed", "open", "half_open"] = Field(
        description="`open`: it fails too often and takes no new jobs; `half_open`: it takes a few, to see."
    )


class ModelList(Described):
    """All models that workers have registered."""

    object: Literal["list"]
    data: list[ModelObject]


class FieldError(Described):
    """One rule that a request breaks."""

    field: str
    message: str
    limit: int | float | str | None = None


class Problem(BaseModel):
    """RFC 9457: why a request was refused."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "/errors/invalid_request",
                    "title": "Invalid request",
                    "status": 422,
                    "detail": "temperature: must be less than or equal to 2",
                    "code": "invalid_request",
                    "retryable": False,
                    "param": "temperature",
                    "errors": [{"field": "temperature", "message": "must be less than or equal to 2", "limit": 2}],
                }
            ]
        },
    )

    type: str = Field(
        description="Leads to a page that explains the code.", json_schema_extra={"format": "uri-reference"}
    )
    title: str
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="What happened here; names the field and its limit.")
    code: str = Field(description="Stable; branch on this.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    param: str | None = Field(None, description="The field, parameter or header at fault.")
    errors: list[FieldError] | None = Field(None, description="Each broken rule, the first 20.")


class Explanation(Described):
    """What a code means where a job, or a line of a batch, has it."""

    meaning: str
    advice: str


class ErrorPage(Described):
    """What an error code means: in an answer of the API, and in what a job or a line of a batch ended with."""

    code: str
    title: str
    status: int | None = Field(description="Of an answer of the API; null where none has this code.")
    retryable: bool | None = Field(description="Of an answer of the API; null where none has this code.")
    meaning: str
    job: Explanation | None = Field(description="As the code of a job, or of one of its attempts.")
    line: Explanation | None = Field(description="As the code of a line of a batch, or in OpenAI's words of a call.")


class Health(Described):
    """The process turns."""

    status: Literal["ok"]


class Check(Described):
    """One thing that the API needs."""

    ok: bool
    detail: str


class Readiness(Described):
    """Whether requests can be served. `degraded`: yes, but without Redis (new jobs start once the sweeper has found them) or one of the models."""

    status: Literal["ready", "degraded"]
    checks: dict[str, Check]
