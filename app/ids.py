"""How are things named? Time-ordered ids (UUIDv7, RFC 9562), shown to callers with a prefix."""

from uuid import UUID

from uuid_utils.compat import uuid7

JOB_PREFIX = "job_"


def new_id() -> UUID:
    """A fresh UUIDv7: later ids of one process sort after earlier ones."""
    return uuid7()


def job_name(job_id: UUID) -> str:
    """The id that callers see: `job_` and 32 hex digits."""
    return JOB_PREFIX + job_id.hex


def parse_job_name(name: str) -> UUID | None:
    """The id behind a public name; None where it can't be one."""
    digits = name.removeprefix(JOB_PREFIX)
    if digits == name or len(digits) != 32 or not all(c in "0123456789abcdef" for c in digits):
        return None
    return UUID(hex=digits)
