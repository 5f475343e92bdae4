"""What may a tenant ask for of its webhooks? Endpoints as they are made, changed and rotated; each field with its bounds."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr

from app.webhooks.address import web_url
from app.webhooks.events import FILTERS

MAX_ENDPOINTS = 50  # of one tenant
MAX_OVERLAP_S = 30 * 86_400
DEFAULT_OVERLAP_S = 86_400
EXAMPLE_URL = "https://hooks.example.com/penstock"


def _no_control(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must hold printable characters only, on one line")
    return value


def _known(values: list[str]) -> list[str]:
    unknown = [each for each in values if each not in FILTERS]
    if unknown:
        raise ValueError(f"{unknown[0][:64]!r} isn't an event or a kind of events; there are {', '.join(FILTERS)}")
    return [each for each in FILTERS if each in values]


Url = Annotated[StrictStr, Field(max_length=2048, description="https only."), AfterValidator(web_url)]
Words = Annotated[StrictStr, Field(max_length=200), AfterValidator(_no_control)]
Filters = Annotated[
    list[Annotated[StrictStr, Field(max_length=64)]],
    Field(
        min_length=1, max_length=len(FILTERS), json_schema_extra={"items": {"type": "string", "enum": list(FILTERS)}}
    ),
    AfterValidator(_known),
]


class _Wanted(BaseModel):
    """Base: nothing is guessed, nothing is ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EndpointWanted(_Wanted):
    """A new endpoint."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"url": EXAMPLE_URL, "events": ["job.*", "budget.threshold"]}]}
    )

    url: Url
    description: Words = ""
    events: Filters | None = Field(None, description="Types, or kinds as `job.*`. Null: all but `job.started`.")


class EndpointChange(_Wanted):
    """What shall be different; what is left out stays. `enabled` after a while of failures gives it a fresh start."""

    model_config = ConfigDict(
        json_schema_extra={"minProperties": 1, "examples": [{"events": None}, {"status": "enabled"}]}
    )

    url: Url = Field("", description="https only.")
    description: Words = ""
    events: Filters | None = Field(None, description="Types, or kinds as `job.*`. Null: all but `job.started`.")
    status: Literal["enabled", "disabled"] = "enabled"

    def given(self) -> dict[str, Any]:
        """What was said, and nothing else: null is said, too."""
        return self.model_dump(exclude_unset=True)


class SecretRotation(_Wanted):
    """A new secret beside the one of now."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"overlap_s": 3600}, {}]})

    overlap_s: Annotated[StrictInt, Field(ge=0, le=MAX_OVERLAP_S)] = Field(
        DEFAULT_OVERLAP_S, description="So long tries are signed with both; the secret before that ends at once."
    )


class Recovery(_Wanted):
    """Which failed deliveries shall be sent again."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"since_s": 86400}]})

    since_s: Annotated[StrictInt, Field(ge=1, le=90 * 86_400)] = Field(
        description="Those of events of the last so many seconds that failed."
    )
