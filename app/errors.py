"""Which errors can a caller see? One tree; each class has a public, documented `code`."""

from typing import Any, ClassVar


class PenstockError(Exception):
    """Root of all errors that Penstock raises on purpose.

    `code` is public and documented in docs/errors.md; `status` is the HTTP status where an API answers with it; `retryable` says whether
    the same request may succeed later. `extra` holds members that the problem document shows beside the standard ones, `headers` what
    its answer carries besides.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = True

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra
        self.headers: dict[str, str] = {}


class InvalidRequest(PenstockError):
    """The request breaks a rule that its sender can read and mend. `param` names the field."""

    code = "invalid_request"
    status = 422
    retryable = False


class MalformedBody(InvalidRequest):
    """The body isn't JSON, or not UTF-8."""

    code = "malformed_body"
    status = 400


class BodyTooLarge(InvalidRequest):
    """The body passes the limit; it wasn't read to its end."""

    code = "body_too_large"
    status = 413


class StorageFull(InvalidRequest):
    """As many bytes of the tenant's files are kept as may be (`limit`): delete some."""

    code = "storage_full"
    status = 413


class UnsupportedMedia(InvalidRequest):
    """The body is of a kind that isn't read here: send plain `application/json`."""

    code = "unsupported_media_type"
    status = 415


class PromptTooLong(InvalidRequest):
    """Prompt and wanted output don't fit into the model's context."""

    code = "prompt_too_long"


class OverTenantLimit(InvalidRequest):
    """This one request passes what its tenant may ask for at once; `param` names the field, `limit` what is allowed."""

    code = "over_tenant_limit"
    status = 400


class NotInBulk(InvalidRequest):
    """A job of a bulk asks for what only a job that comes alone may have; `param` names the field."""

    code = "not_in_bulk"
    status = 400


class UnknownModel(InvalidRequest):
    """No worker has ever registered this model."""

    code = "unknown_model"
    status = 404


class Unauthenticated(PenstockError):
    """No API key, or one that is unknown, expired or revoked."""

    code = "unauthenticated"
    status = 401
    retryable = False


class Forbidden(PenstockError):
    """The key is good but lacks the scope."""

    code = "forbidden"
    status = 403
    retryable = False


class TierNotAllowed(Forbidden):
    """The tenant has no right to this tier; `allowed` names those that it has."""

    code = "tier_not_allowed"


class TenantSuspended(Forbidden):
    """An operator has suspended the tenant: no new jobs are taken. Those that were accepted run on, and can be read and cancelled."""

    code = "tenant_suspended"


class NotFound(PenstockError):
    """It doesn't exist, or it is another tenant's."""

    code = "not_found"
    status = 404
    retryable = False


class InputForgotten(PenstockError):
    """The job's prompt isn't kept any more (`content_retention_s` of its tenant), so it can't be run again."""

    code = "input_forgotten"
    status = 410
    retryable = False


class OutputForgotten(PenstockError):
    """The job's output was kept for `output_retention_s`, or its tenant's `content_retention_s`, after its end, and that is over."""

    code = "output_forgotten"
    status = 410
    retryable = False


class MethodNotAllowed(PenstockError):
    """The path exists, but not for this method; `Allow` names those that it has."""

    code = "method_not_allowed"
    status = 405
    retryable = False


class NotCancellable(PenstockError):
    """The job ended before the cancel reached it."""

    code = "already_ended"
    status = 409
    retryable = False


class AlreadyExists(PenstockError):
    """There is such a thing already; `param` names what it is known by."""

    code = "already_exists"
    status = 409
    retryable = False


class ChangedMeanwhile(PenstockError):
    """Somebody else has changed it since it was shown; `now` says what it has in the fields that would become others."""

    code = "changed_meanwhile"
    status = 409
    retryable = False


class PreconditionFailed(PenstockError):
    """`If-Match` names another state than the one that is there now; `now` says what it has in the fields that would become others."""

    code = "precondition_failed"
    status = 412
    retryable = False


class KeyEnded(PenstockError):
    """The API key can't be changed or rotated: it was revoked, has expired, or, for a rotation, was rotated before."""

    code = "key_ended"
    status = 409
    retryable = False


class BudgetRetired(PenstockError):
    """The budget was retired: it can't be changed any more."""

    code = "budget_retired"
    status = 409
    retryable = False


class FileInUse(PenstockError):
    """A batch that hasn't ended reads or writes the file: cancel the batch first, or wait for its end."""

    code = "file_in_use"
    status = 409
    retryable = False


class AlreadyResolved(PenstockError):
    """The dead letter was requeued or discarded before; `resolution`, `resolved_by` and `resolved_at` say how, by whom and when."""

    code = "already_resolved"
    status = 409
    retryable = False


class IdempotencyMismatch(PenstockError):
    """The same Idempotency-Key came with another body."""

    code = "idempotency_mismatch"
    status = 422
    retryable = False


class BudgetExhausted(PenstockError):
    """A budget that applies can't hold this job's reservation."""

    code = "budget_exhausted"
    status = 429
    retryable = False


class QueueLimitReached(PenstockError):
    """As much of the tenant's work waits as may wait at a time. `reason` names the cap, `limit` and `queued` say how much."""

    code = "queue_limit_reached"
    status = 429
    retryable = True


class Unavailable(PenstockError):
    """A server that this request needs doesn't answer now."""

    code = "unavailable"
    status = 503
    retryable = True


class StreamsFull(Unavailable):
    """As many streams are read from this API process as may be, or it is going to end. Another process may have room."""

    code = "streams_full"


class StreamCut(PenstockError):
    """A stream ended before its end was told: the process is going to end, its reader took nothing for too long, or what it was told of is
    gone or has ended once more. Go on after its last event.
    """

    code = "stream_cut"
    status = 503
    retryable = True


class ModelUnavailable(PenstockError):
    """The model fails too often to take new jobs now; those that were accepted wait. `retry_after_s` says when to come back."""

    code = "model_unavailable"
    status = 503
    retryable = True


class Overloaded(PenstockError):
    """We have no capacity for this job now: too much waits before it. `retry_after_s` says when to come back, `reason` what was full."""

    code = "overloaded"
    status = 503
    retryable = True


class DeadlineUnreachable(Overloaded):
    """The job would probably end after its deadline. `predicted_s` says when, `retry_after_s` when it may do."""

    code = "deadline_unreachable"


class ShareExceeded(PenstockError):
    """The tenant has more work waiting than its share of the tier drains in time. `retry_after_s` says when to come back."""

    code = "share_exceeded"
    status = 429
    retryable = True


class LeaseLost(PenstockError):
    """Another worker owns this attempt now, or none does: drop its results without writing."""

    code = "lease_lost"
    status = 409
    retryable = False


class Misconfigured(PenstockError):
    """A setting, server or file isn't as it must be; the message says what to do."""

    code = "misconfigured"
    status = 500
    retryable = False
