"""What do the API's answers on webhook endpoints and deliveries look like? Built, and described for the OpenAPI document."""

from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from app.api.documents import Described
from app.ids import delivery_name, endpoint_name, event_name, job_name
from app.webhooks.endpoints import Endpoint, FreshEndpoint
from app.webhooks.history import Delivery, Story
from app.webhooks.wanted import EXAMPLE_URL


def endpoint_object(endpoint: Endpoint) -> dict[str, Any]:
    """An endpoint without its secrets."""
    known = asdict(endpoint)
    known["id"] = endpoint_name(endpoint.id)
    known["old_secret_until"] = known.pop("old_until")
    return {"object": "webhook_endpoint", **known}


def fresh_endpoint_object(fresh: FreshEndpoint) -> dict[str, Any]:
    """An endpoint with its new secret, the only time."""
    return endpoint_object(fresh.endpoint) | {"secret": fresh.secret}


def delivery_object(delivery: Delivery) -> dict[str, Any]:
    """A delivery as lists show it."""
    return {
        "id": delivery_name(delivery.id),
        "object": "webhook_delivery",
        "event": event_name(delivery.event_id),
        "type": delivery.event_type,
        "job": None if delivery.job_id is None else job_name(delivery.job_id),
        "endpoint": None if delivery.endpoint_id is None else endpoint_name(delivery.endpoint_id),
        "url": delivery.url,
        "status": delivery.status,
        "tries": delivery.tries,
        "error": delivery.error,
        "next_try_at": delivery.next_try_at,
        "created_at": delivery.created_at,
        "ended_at": delivery.ended_at,
    }


def story_object(story: Story) -> dict[str, Any]:
    """A delivery with each of its tries and its payload."""
    return delivery_object(story.delivery) | {
        "tries_made": [asdict(each) for each in story.tries],
        "payload": msgspec.json.decode(story.body),
    }


ENDPOINT_EXAMPLE: dict[str, Any] = {
    "object": "webhook_endpoint",
    "id": "we_0190b8f2a1d37cc5b3a1d4e5f6a7b8c9",
    "url": EXAMPLE_URL,
    "description": "",
    "events": ["job.*", "budget.threshold"],
    "status": "enabled",
    "disabled_reason": None,
    "disabled_at": None,
    "failing_since": None,
    "old_secret_until": None,
    "created_at": "2026-01-31T12:00:00Z",
    "updated_at": "2026-01-31T12:00:00Z",
}
DELIVERY_EXAMPLE: dict[str, Any] = {
    "id": "wd_0190b8f2a1d37cc5b3a1d4e5f6a7b8ca",
    "object": "webhook_delivery",
    "event": "evt_0190b8f2a1d37cc5b3a1d4e5f6a7b8cb",
    "type": "job.succeeded",
    "job": "job_0190b8f2a1d37cc5b3a1d4e5f6a7b8cc",
    "endpoint": "we_0190b8f2a1d37cc5b3a1d4e5f6a7b8c9",
    "url": EXAMPLE_URL,
    "status": "delivered",
    "tries": 1,
    "error": None,
    "next_try_at": None,
    "created_at": "2026-01-31T12:00:00Z",
    "ended_at": "2026-01-31T12:00:01Z",
}
STORY_EXAMPLE: dict[str, Any] = DELIVERY_EXAMPLE | {
    "tries_made": [
        {"number": 1, "at": "2026-01-31T12:00:01Z", "http_status": 204, "error": None, "duration_ms": 31}
    ],
    "payload": {
        "id": "evt_0190b8f2a1d37cc5b3a1d4e5f6a7b8cb", "object": "event", "type": "job.succeeded",
        "created_at": "2026-01-31T12:00:00Z", "data": {"id": "job_0190b8f2a1d37cc5b3a1d4e5f6a7b8cc", "object": "job"},
    },
}  # fmt: skip


def _page(example: dict[str, Any]) -> ConfigDict:
    listed: dict[str, Any] = {"object": "list", "data": [example], "has_more": False, "next_cursor": None}
    return ConfigDict(json_schema_extra={"examples": [listed]})


class EndpointObject(Described):
    """An endpoint without its secrets."""

    model_config = ConfigDict(json_schema_extra={"examples": [ENDPOINT_EXAMPLE]})

    object: Literal["webhook_endpoint"]
    id: str = Field(pattern="^we_[0-9a-f]{32}$")
    url: str
    description: str
    events: list[str] | None = Field(description="Null: all but `job.started`.")
    status: Literal["enabled", "disabled"]
    disabled_reason: str | None = Field(
        description="Why, where it was disabled; the last failure where that was by itself."
    )
    disabled_at: datetime | None
    failing_since: datetime | None = Field(description="Of the first failed try since the last one that was accepted.")
    old_secret_until: datetime | None = Field(description="Until then tries are signed with the secret before, too.")
    created_at: datetime
    updated_at: datetime


class FreshEndpointObject(EndpointObject):
    """An endpoint with its new secret."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [ENDPOINT_EXAMPLE | {"secret": "whsec_RVhBTVBMRS1FWEFNUExFLUVYQU1QTEU="}]}
    )

    secret: str = Field(description="Shown now, and never again.")


class EndpointPage(Described):
    """A page of endpoints, oldest first."""

    model_config = _page(ENDPOINT_EXAMPLE)

    object: Literal["list"]
    data: list[EndpointObject]
    has_more: bool
    next_cursor: str | None


class DeletedEndpoint(Described):
    """An endpoint that is gone."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"id": ENDPOINT_EXAMPLE["id"], "object": "webhook_endpoint", "deleted": True}]}
    )

    id: str = Field(pattern="^we_[0-9a-f]{32}$")
    object: Literal["webhook_endpoint"]
    deleted: Literal[True]


class DeliveryObject(Described):
    """One event for one target."""

    model_config = ConfigDict(json_schema_extra={"examples": [DELIVERY_EXAMPLE]})

    id: str = Field(pattern="^wd_[0-9a-f]{32}$")
    object: Literal["webhook_delivery"]
    event: str = Field(description="The webhook-id of every try, and of the same event for other targets.")
    type: str
    job: str | None
    endpoint: str | None = Field(description="Null: a job's own URL.")
    url: str
    status: Literal["pending", "delivered", "failed"]
    tries: int = Field(ge=0)
    error: str | None = Field(description="Why it was given up.")
    next_try_at: datetime | None
    created_at: datetime
    ended_at: datetime | None


class DeliveryPage(Described):
    """A page of deliveries, newest first."""

    model_config = _page(DELIVERY_EXAMPLE)

    object: Literal["list"]
    data: list[DeliveryObject]
    has_more: bool
    next_cursor: str | None


class TryObject(Described):
    """One try; neither status nor error while it is under way, or where its worker was lost."""

    number: int = Field(ge=1)
    at: datetime
    http_status: int | None
    error: str | None
    duration_ms: int | None


class DeliveryStory(DeliveryObject):
    """A delivery with each of its tries and its payload."""

    model_config = ConfigDict(json_schema_extra={"examples": [STORY_EXAMPLE]})

    tries_made: list[TryObject]
    payload: dict[str, Any]


class RecoveredObject(Described):
    """How many deliveries are sent again."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"object": "webhook_recovery", "resent": 12}]})

    object: Literal["webhook_recovery"]
    resent: int = Field(ge=0, description="At most 10,000 at once: ask again for more.")


DESCRIBED: tuple[type[BaseModel], ...] = (
    EndpointObject, FreshEndpointObject, EndpointPage, DeletedEndpoint, DeliveryObject, DeliveryPage, DeliveryStory, RecoveredObject,
)  # fmt: skip
