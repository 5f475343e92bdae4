"""What does a caller ask for, and what was it promised?"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs.admission import Applicant, digest_of
from app.jobs.idempotency import IdempotencyKey
from app.jobs.read import JobView
from app.jobs.request import JobRequest
from app.jobs.submit import Caller


@dataclass(frozen=True, slots=True)
class Submission:
    """What a caller asks for. `num_bytes` is the size of its body, which says how long it will take."""

    caller: Caller
    request: JobRequest
    num_bytes: int
    idempotency_key: str | None = None
    body: bytes = b""
    with_job: Callable[[AsyncConnection, UUID], Awaitable[None]] | None = None  # what is written beside a new job

    @property
    def key(self) -> IdempotencyKey | None:
        """Under which it may come again."""
        return None if self.idempotency_key is None else IdempotencyKey.of_one(self.idempotency_key, self.request)

    @property
    def applicant(self) -> Applicant:
        """Who asks, as the gate knows it."""
        tenant_id = self.caller.tenant_id
        return Applicant(tenant_id, self.request, digest_of(tenant_id, self.idempotency_key, self.body))


@dataclass(frozen=True, slots=True)
class Submitted:
    """The job that was promised. `replayed`: by an earlier request with the same Idempotency-Key. `headers`: its caller's rates."""

    job: JobView
    replayed: bool
    headers: dict[str, str] = field(default_factory=dict)
