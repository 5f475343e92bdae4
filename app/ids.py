"""How are things named? Time-ordered ids (UUIDv7, RFC 9562), shown to callers with a prefix."""

from uuid import UUID

from uuid_utils.compat import uuid7

JOB_PREFIX = "job_"
RESPONSE_PREFIX = "resp_"
FILE_PREFIX = "file-"
BATCH_PREFIX = "batch_"
EVENT_PREFIX = "evt_"
ENDPOINT_PREFIX = "we_"
DELIVERY_PREFIX = "wd_"
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"  # whoever names a model chooses; a pool is called as its model


def new_id() -> UUID:
    """A fresh UUIDv7: later ids of one process sort after earlier ones."""
    return uuid7()


def job_name(job_id: UUID) -> str:
    """The id that callers see: `job_` and 32 hex digits."""
    return JOB_PREFIX + job_id.hex


def parse_job_name(name: str) -> UUID | None:
    """The id behind a public name; None where it can't be one."""
    return parse_name(JOB_PREFIX, name)


def response_name(job_id: UUID) -> str:
    """The id of the response that a job is: `resp_` and 32 hex digits."""
    return RESPONSE_PREFIX + job_id.hex


def event_name(event_id: UUID) -> str:
    """The id of a webhook's event, its webhook-id: `evt_` and 32 hex digits."""
    return EVENT_PREFIX + event_id.hex


def endpoint_name(endpoint_id: UUID) -> str:
    """The id of a webhook endpoint: `we_` and 32 hex digits."""
    return ENDPOINT_PREFIX + endpoint_id.hex


def delivery_name(delivery_id: UUID) -> str:
    """The id of a webhook delivery: `wd_` and 32 hex digits."""
    return DELIVERY_PREFIX + delivery_id.hex


def parse_name(prefix: str, name: str) -> UUID | None:
    """The id behind a public name with this prefix; None where it can't be one."""
    digits = name.removeprefix(prefix)
    if digits == name or len(digits) != 32 or not all(c in "0123456789abcdef" for c in digits):
        return None
    return UUID(hex=digits)
