"""What may an operator ask for? Tenants, keys and budgets as they are made and changed, by whatever face; each field with its bounds."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
)  # fmt: skip

from app.errors import InvalidRequest
from app.wording import in_house_words

TENANT = r"^[a-z0-9][a-z0-9-]{0,62}$"
PREFIX = r"^[0-9a-f]{12}$"
Tier = Literal["interactive", "standard", "batch"]
TIERS: tuple[Tier, ...] = ("interactive", "standard", "batch")
METRICS = ("input_tokens", "output_tokens", "total_tokens", "requests", "cost")
PERIODS = ("minute", "hour", "day", "month", "total")
SCOPES = ("jobs:read", "jobs:write", "admin")

MAX_COUNT = 2**31 - 1  # Postgres' integer
MAX_TOKENS = 10**15  # exact in every JSON reader, and far from the end of Postgres' bigint even as a sum
MAX_RATE = 10**9
MAX_BURST = 75_000_000  # the buckets' arithmetic is exact up to here
MAX_SHARE_S = 30 * 86_400
MAX_DAYS = 10_000
MIN_CONTENT_S = 60  # whoever waits for a result must be able to read it
MAX_EXPIRY_S = 10 * 366 * 86_400
MAX_OVERLAP_S = 90 * 86_400
DEFAULT_OVERLAP_S = 86_400

M = TypeVar("M", bound=BaseModel)

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _no_control(value: str) -> str:
    """Names are shown in terminals and pages: they may command neither."""
    if not value.isprintable():
        raise ValueError("must hold printable characters only, on one line")
    return value


def _has_words(value: str) -> str:
    if not value.strip():
        raise ValueError("must say something")
    return value


def _in_order(values: list[str]) -> list[str]:
    return [each for each in (*TIERS, *SCOPES) if each in values]


def _written_as_time(value: Any) -> Any:
    if isinstance(value, datetime) or (isinstance(value, str) and _RFC_3339.fullmatch(value)):
        return value
    raise ValueError("must be a time as in 2026-01-31T12:00:00Z (RFC 3339)")


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be a time of these years") from None


def _ascending(values: list[int]) -> list[int]:
    return sorted(set(values))


Name = Annotated[StrictStr, Field(max_length=200), AfterValidator(_no_control)]
Words = Annotated[
    StrictStr, Field(min_length=1, max_length=500), AfterValidator(_no_control), AfterValidator(_has_words)
]
TenantId = Annotated[StrictStr, Field(pattern=TENANT)]
KeyPrefix = Annotated[StrictStr, Field(pattern=PREFIX)]
Tiers = Annotated[list[Tier], Field(min_length=1, max_length=3), AfterValidator(_in_order)]
Scopes = Annotated[
    list[Literal["jobs:read", "jobs:write", "admin"]], Field(min_length=1, max_length=3), AfterValidator(_in_order)
]
Weight = Annotated[StrictInt, Field(ge=1, le=1000)]
Count = Annotated[StrictInt, Field(ge=0, le=MAX_COUNT)]
Tokens = Annotated[StrictInt, Field(ge=0, le=MAX_TOKENS)]
Rate = Annotated[StrictInt, Field(ge=1, le=MAX_RATE)]
Burst = Annotated[StrictInt, Field(ge=1, le=MAX_BURST)]
ShareS = Annotated[StrictInt, Field(ge=1, le=MAX_SHARE_S)]
Days = Annotated[StrictInt, Field(ge=1, le=MAX_DAYS)]
ContentS = Annotated[StrictInt, Field(ge=MIN_CONTENT_S, le=MAX_DAYS * 86_400)]
ExpiryS = Annotated[StrictInt, Field(ge=1, le=MAX_EXPIRY_S)]
Moment = Annotated[AwareDatetime, BeforeValidator(_written_as_time), AfterValidator(_in_utc)]
Thresholds = Annotated[
    list[Annotated[StrictInt, Field(ge=1, le=100)]], Field(max_length=10), AfterValidator(_ascending)
]


class Wanted(BaseModel):
    """Base: nothing is guessed, nothing is ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def given(self) -> dict[str, Any]:
        """What was said, and nothing else: null is said, too."""
        return self.model_dump(exclude_unset=True)


class Rates(Wanted):
    """How fast an owner, a tenant or a key, may submit."""

    requests_per_minute: Rate | None = Field(None, description="Null: no limit.")
    request_burst: Burst | None = Field(None, description="So many at once; null: as many as a minute brings.")
    tokens_per_minute: Rate | None = Field(
        None, description="Counted as a job may need them at most: prompt + n x max_tokens. Null: no limit."
    )
    token_burst: Burst | None = Field(None, description="So many at once; null: as many as a minute brings.")


class TenantLimits(Rates):
    """Everything about a tenant where null is no limit."""

    max_running_jobs: Count | None = Field(None, description="Most that run at a time. Null: no limit.")
    max_queued_jobs: Count | None = Field(None, description="Most that wait at a time. Null: no limit.")
    max_queued_tokens: Tokens | None = Field(
        None, description="Most tokens that wait at a time, as prompt + n x max_tokens. Null: no limit."
    )
    max_prompt_tokens: Count | None = Field(None, description="Of one request. Null: the model's context.")
    max_output_tokens: Count | None = Field(None, description="Of one request: n x max_tokens. Null: no limit.")
    share_identical_s: ShareS | None = Field(
        None,
        description="Identical deterministic work is computed once if it is in flight or no older than this. Null: never.",
    )
    retention_days: Days | None = Field(
        None,
        description="Ended jobs are deleted so many days after their end. Null: as the installation's setting says.",
    )
    content_retention_s: ContentS | None = Field(
        None,
        description="Prompts and outputs are wiped so many seconds after a job's end; 60 is the least. Null: kept as long as the job.",
    )


class TenantWanted(TenantLimits):
    """A new tenant."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"id": "acme"},
                {
                    "id": "rival",
                    "display_name": "Rival Ltd",
                    "weight": 2,
                    "tiers": ["standard", "batch"],
                    "max_queued_jobs": 1000,
                    "max_output_tokens": 4096,
                    "requests_per_minute": 600,
                },
            ]
        }
    )

    id: TenantId = Field(description="A slug; it never changes.")
    display_name: Name = ""
    weight: Weight = Field(1, description="Its share of a tier among the tenants that have work there.")
    tiers: Tiers = Field(list(TIERS), description="Those that it may submit to.")
    bill_shared: StrictBool = Field(True, description="Whether a result that was shared counts as used.")


class TenantChange(TenantLimits):
    """What shall be different; what is left out stays."""

    model_config = ConfigDict(
        json_schema_extra={
            "minProperties": 1,
            "examples": [{"weight": 4, "max_queued_tokens": 2_000_000}, {"max_queued_jobs": None}],
        }
    )

    # No default is told: what is left out isn't reset, and null means nothing here.
    display_name: Name = Field(default_factory=str)
    weight: Weight = Field(default_factory=lambda: 1)
    tiers: Tiers = Field(default_factory=lambda: list(TIERS))
    bill_shared: StrictBool = Field(default_factory=lambda: True)


class Because(Wanted):
    """Why, for the log of operators' acts."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "unpaid since March"}]})

    reason: Words


class KeyWanted(Rates):
    """A new key of a tenant."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{}, {"name": "nightly import", "scopes": ["jobs:write"], "expires_in_s": 86400}]
        }
    )

    name: Name = Field("", description="For your own memory.")
    scopes: Scopes = ["jobs:read", "jobs:write"]
    expires_in_s: ExpiryS | None = Field(None, description="Null: never.")


class KeyChange(Rates):
    """What shall be different; what is left out stays."""

    model_config = ConfigDict(
        json_schema_extra={
            "minProperties": 1,
            "examples": [
                {"name": "nightly import"},
                {"scopes": ["jobs:read"], "expires_at": "2030-01-31T12:00:00Z"},
                {"expires_at": None, "requests_per_minute": None},
            ],
        }
    )

    name: Name = Field(default_factory=str)
    scopes: Scopes = Field(default_factory=list)
    expires_at: Moment | None = Field(
        None,
        description="RFC 3339: later than now, and within ten years. Null: never. A key that shall end now is revoked.",
    )


class KeyRotation(Wanted):
    """A new secret for a key. Budgets, rates and scopes stay: the key does."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"overlap_s": 0}, {"expires_in_s": 7_776_000}]})

    overlap_s: Annotated[StrictInt, Field(ge=0, le=MAX_OVERLAP_S)] = Field(
        DEFAULT_OVERLAP_S, description="For so long the secret before is valid, too; 0: it ends at once."
    )
    expires_in_s: ExpiryS | None = Field(
        None, description="From now on; null: never. Left out: the key expires when it did."
    )


class BudgetWanted(Wanted):
    """A new budget of a tenant, or of one of its keys."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"metric": "total_tokens", "period": "day", "limit": 1_000_000},
                {"metric": "requests", "period": "hour", "limit": 500, "key": "0123456789ab", "thresholds": [50, 90]},
            ]
        }
    )

    metric: Literal["input_tokens", "output_tokens", "total_tokens", "requests", "cost"]
    period: Literal["minute", "hour", "day", "month", "total"]
    limit: Tokens = Field(description="Of each window: tokens, requests, or millionths of the currency.")
    thresholds: Thresholds = Field([80, 100], description="Per cent at which a warning is told, once a window each.")
    key: KeyPrefix | None = Field(None, description="The key's prefix. Null: all of the tenant's keys together.")


class BudgetChange(Wanted):
    """What shall be different; what is left out stays."""

    model_config = ConfigDict(
        json_schema_extra={"minProperties": 1, "examples": [{"limit": 2_000_000}, {"thresholds": []}]}
    )

    limit: Tokens = Field(
        default_factory=int, description="Below what is used and reserved: nothing more is taken in this window."
    )
    thresholds: Thresholds = Field(default_factory=list)


def checked(model: type[M], values: Mapping[str, Any]) -> M:
    """`values` as `model`, for those who have no body to parse.

    Raises:
        InvalidRequest: a rule is broken; the message names the field and its limit.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "request"
        message = in_house_words(first["msg"])
        message = message if message.startswith("must") else f"must {message}"
        raise InvalidRequest(f"{field}: {message}", param=field) from None
