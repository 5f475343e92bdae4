"""What does /openapi.json say that FastAPI can't know? The body that is parsed by hand, the problems, the headers."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from app.api.batch_documents import DESCRIBED as BATCHES
from app.api.batch_documents import BatchChangeRequest, BatchRequest
from app.api.bulk_documents import BulkObject, BulkRequest
from app.api.documents import Problem
from app.api.event_documents import DESCRIBED as EVENTS
from app.api.job_documents import JobObject
from app.api.letter_documents import DESCRIBED as LETTERS
from app.api.quota_documents import DESCRIBED as QUOTAS
from app.api.webhook_documents import DESCRIBED as WEBHOOKS
from app.jobs.dead.selection import DiscardRequest, RequeueRequest
from app.jobs.prices import ModelChange
from app.jobs.request import JobRequest
from app.quotas.wanted import (
    Because,
    BudgetChange,
    BudgetWanted,
    KeyChange,
    KeyRotation,
    KeyWanted,
    TenantChange,
    TenantWanted,
)
from app.webhooks.wanted import EndpointChange, EndpointWanted, Recovery, SecretRotation

PROBLEM = "application/problem+json"
_REF = "#/components/schemas/{model}"
_REASONS = {
    400: "The body isn't JSON, or not UTF-8; or one request passes its tenant's limits.",
    401: "No API key, or one that isn't valid.",
    403: "The key lacks the scope, or the tenant may not: it is suspended, or has no right to the tier.",
    404: "There is no such thing, or it is another tenant's.",
    409: "It has ended otherwise, was resolved before, or there is such a thing already.",
    410: "It was there, and isn't kept any more.",
    412: "`If-Match` names another version than the one that is there now; nothing was changed.",
    413: "The body is too large; it wasn't read to its end.",
    415: "The body isn't plain application/json.",
    422: "A rule is broken; `param` and `errors` name the fields and limits.",
    429: "A rate limit is reached (come back after `Retry-After` seconds), a budget can't hold this job, or as much of the "
    "tenant's work waits as may.",
    503: "A server that this request needs doesn't answer now, or the model fails too often; come back after `Retry-After` seconds.",
}

WAIT_HEADER: dict[str, Any] = {
    "name": "Prefer",
    "in": "header",
    "description": "`wait=N`: answer when the job has ended, or after N seconds (RFC 7240). The answer's "
    "`Preference-Applied` says how long was meant. What can't be understood is ignored.",
    "schema": {"type": "string"},
    "example": "wait=10",
}
KEY_HEADER: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key and body again give the first job, with `Idempotency-Replayed: true`; another body "
    "under the same key is a 422. 1 to 255 visible ASCII characters, bare or quoted. Kept until a day after the job's end.",
    "schema": {"type": "string", "pattern": '^([!#-~][!-~]{0,254}|"[!#-\\[\\]-~]{1,255}")$'},
    "example": "5f0c3f9e-order-17",
}
BATCH_KEY_HEADER: dict[str, Any] = KEY_HEADER | {
    "description": "The same key and body again give the first batch, with `Idempotency-Replayed: true`; another body "
    "under the same key is a 422. 1 to 255 visible ASCII characters, bare or quoted. Kept as long as the batch.",
}
APPLIED: dict[str, Any] = {
    "Preference-Applied": {"description": "`wait=N` as it was honoured.", "schema": {"type": "string"}}
}
RATES: dict[str, Any] = {
    "RateLimit-Policy": {
        "description": "The rate limits of key and tenant (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string"},
        "example": '"key-requests";q=60;w=60, "tenant-tokens";q=20000;qu="tokens";w=60',
    },
    "RateLimit": {
        "description": "What is left of each, `r`, and for how many seconds there is no more, `t`.",
        "schema": {"type": "string"},
        "example": '"key-requests";r=59;t=1, "tenant-tokens";r=19730;t=1',
    },
    **{
        f"x-ratelimit-{what}-{unit}": {"description": f"{meaning} (as in OpenAI's API).", "schema": {"type": kind}}
        for unit in ("requests", "tokens")
        for what, meaning, kind in (
            ("limit", f"Most {unit} at once", "integer"),
            ("remaining", f"How many {unit} are left now", "integer"),
            ("reset", f"When all {unit} are there again, as `6m0s`", "string"),
        )
    },
}
REPLAYED: dict[str, Any] = {
    "Idempotency-Replayed": {
        "description": "`true` where an earlier request with this key has made it.",
        "schema": {"type": "string", "enum": ["true"]},
    },
}
SUBMITTED: dict[str, Any] = (
    APPLIED
    | RATES
    | {"Location": {"description": "The job's URL.", "schema": {"type": "string", "format": "uri-reference"}}}
    | REPLAYED
)
BULK: dict[str, Any] = {name: value for name, value in SUBMITTED.items() if name not in {"Location", *APPLIED}}


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """A body that is parsed by hand; `BODIES` has to name its model."""
    assert model in BODIES
    return {"required": True, "content": {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}}


BODIES: tuple[type[BaseModel], ...] = (
    JobRequest, RequeueRequest, DiscardRequest, TenantWanted, TenantChange, Because, KeyWanted, KeyChange, KeyRotation, BudgetWanted,
    BudgetChange, ModelChange, BulkRequest, EndpointWanted, EndpointChange, SecretRotation, Recovery, BatchRequest,
    BatchChangeRequest,
)  # fmt: skip
DESCRIBED: tuple[type[BaseModel], ...] = (
    JobObject, BulkObject, Problem, *EVENTS, *LETTERS, *QUOTAS, *WEBHOOKS, *BATCHES,
)  # fmt: skip
JOB_BODY = body_of(JobRequest)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documented refusals with these statuses."""
    headers: dict[int, dict[str, Any]] = {
        401: {"WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}}},
        429: {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}} | RATES,
        503: {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
    }
    return {
        status: {
            "description": _REASONS[status],
            "content": {PROBLEM: {"schema": {"$ref": _REF.format(model="Problem")}}},
            **({"headers": headers[status]} if status in headers else {}),
        }
        for status in statuses
    }


def shows(
    status: int, description: str, model: type[BaseModel], headers: dict[str, Any] | None = None
) -> dict[int | str, dict[str, Any]]:
    """A documented answer."""
    return {status: {"description": description, "model": model, **({"headers": headers} if headers else {})}}


def install(app: FastAPI) -> None:
    """Let the app serve the whole document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=app.description,
                routes=app.routes,
            )
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            # FastAPI drops nulls from examples: what has some is described anew.
            described_anew: tuple[type[BaseModel], ...] = (*BODIES, *DESCRIBED)
            for model in described_anew:
                described = model.model_json_schema(ref_template=_REF)
                schemas.update(described.pop("$defs", {}))
                schemas[model.__name__] = described
            # FastAPI adds its own 422 to whatever takes a parameter; ours are problems, and are documented where they happen.
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for operation in (each for path in schema["paths"].values() for each in path.values()):
                content = operation["responses"].get("422", {}).get("content", {})
                if "HTTPValidationError" in str(content):
                    del operation["responses"]["422"]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
