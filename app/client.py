"""How does a Python program use Penstock? One file, to import or to copy: jobs, streams, batches, webhooks; sync and async.

It needs Python 3.11, httpx, and nothing else of this repository.

    from app.client import Penstock, texts

    with Penstock("http://127.0.0.1:8000", "pk_...") as penstock:
        job = penstock.submit(prompt="Once upon a time", max_tokens=40)
        for event in penstock.stream(job):
            print(event.text, end="", flush=True)
        print(texts(penstock.wait(job)))

Every call is safe to repeat, and is repeated: a submission carries an Idempotency-Key of its own making, so that a lost answer
never makes a second job. How long, and when not: `Retries`. What the API refuses is raised as `Refused`, with its code.
"""

import asyncio
import base64
import binascii
import builtins
import hmac
import ipaddress
import json
import math
import os
import random
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NotRequired, Self, TypedDict, TypeVar, Unpack, cast
from urllib.parse import quote, urlsplit

import httpx

T = TypeVar("T")

# --- what goes in ----------------------------------------------------------------------------------------------------

Tier = Literal["interactive", "standard", "batch"]
Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired", "dead"]
ENDED: Final = frozenset({"succeeded", "failed", "cancelled", "expired", "dead"})
BATCH_ENDED: Final = frozenset({"completed", "failed", "cancelled", "expired"})


class WebhookTarget(TypedDict, total=False):
    """Where a job's events are sent, and which."""

    url: str
    events: Sequence[str]


class JobParams(TypedDict, total=False):
    """The body of a submission; docs/api.md says what each field means. One of `prompt` and `messages` is needed."""

    prompt: str | Sequence[int]
    messages: Sequence[Mapping[str, Any]]
    model: str
    fallback_model: str
    tier: Tier
    on_budget: Literal["reject", "wait", "truncate", "fallback"]
    deadline_s: float
    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    n: int
    seed: int
    stop: str | Sequence[str]
    logprobs: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[str, float]
    ignore_eos: bool
    stop_repeating: int
    speculate: bool
    response_format: Mapping[str, Any]
    structured_outputs: Mapping[str, Any]
    webhook: WebhookTarget
    metadata: Mapping[str, str]


class JobFilters(TypedDict, total=False):
    """Which jobs a list shows; left out or None: all."""

    status: str | None
    tier: str | None
    model: str | None
    created_after: str | None
    created_before: str | None
    metadata: Mapping[str, str] | None


# --- what comes out: the API's objects as they are, so that what a newer API adds is there, too ----------------------


class Usage(TypedDict):
    """Tokens; those of the output are 0 before the end."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int


class Choice(TypedDict):
    """One of the `n` texts."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: NotRequired[dict[str, Any]]


class Forecast(TypedDict):
    """When a waiting job will probably start and end, as RFC 3339 times."""

    position: int
    start_p50: str | None
    start_p95: str | None
    finish_p50: str | None
    finish_p95: str | None


class WaitingFor(TypedDict):
    """What holds a waiting job up."""

    reason: str
    detail: str
    clears_at: str | None
    budget_id: str | None


class JobError(TypedDict):
    """Why a job ended without success."""

    code: str
    message: NotRequired[str | None]


class Job(TypedDict):
    """A job; times are RFC 3339. `choices` is None before the end, and in lists.

    `cost_micros` is what it was charged, in millionths of the currency: None before the end, and where its model has no price.
    """

    id: str
    object: Literal["job"]
    status: Status
    tier: Tier
    model: str
    requested_model: str
    shared_from: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    deadline_at: str | None
    cancel_requested_at: str | None
    attempts: int
    progress: dict[str, int] | None
    forecast: Forecast | None
    waiting_for: WaitingFor | None
    usage: Usage
    cost_micros: int | None
    timing: dict[str, float] | None
    changes: dict[str, dict[str, Any]] | None
    choices: list[Choice] | None
    forgotten: NotRequired[dict[str, str]]
    error: JobError | None
    urls: dict[str, str]
    metadata: dict[str, str]


class Why(TypedDict):
    """The one constraint that holds a job up now."""

    object: Literal["job.why"]
    id: str
    reason: str
    detail: str
    clears_at: str | None
    forecast: Forecast | None
    figures: dict[str, Any]


class Quote(TypedDict):
    """What a submission would get now; prices and cost in millionths of the currency."""

    object: Literal["quote"]
    outcome: Literal["accepted", "waiting", "rejected"]
    on_budget: str
    model: str
    requested_model: str
    prompt_tokens: int
    n: int
    max_tokens: int
    max_total_tokens: int
    max_cost_micros: int
    input_price: int
    output_price: int
    changes: dict[str, dict[str, Any]] | None
    detail: str | None
    budgets: list[dict[str, Any]]


class File(TypedDict):
    """An uploaded or a written file; times are seconds since the epoch."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str


class RequestCounts(TypedDict):
    """Lines of a batch."""

    total: int
    completed: int
    failed: int


class Batch(TypedDict):
    """A batch, as OpenAI's; times are seconds since the epoch."""

    id: str
    object: Literal["batch"]
    endpoint: str
    status: str
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    errors: dict[str, Any] | None
    request_counts: RequestCounts
    completion_window: str
    created_at: int
    expires_at: NotRequired[int | None]
    model: NotRequired[str | None]
    tier: NotRequired[Tier]
    eta: NotRequired[int | None]
    waiting_for: NotRequired[WaitingFor | None]
    metadata: dict[str, str] | None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """An ended batch with its files' lines by `custom_id`: what was answered, and what went wrong."""

    batch: Batch
    outputs: dict[str, dict[str, Any]]
    errors: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job's stream.

    `kind` is `started`, `tokens` (new ones of the choice `index`), `restarted` (texts so far are void: they begin anew), or
    `finished`, which has `status`, `usage` and `error`. `offset` counts the choice's tokens before it.
    """

    id: int
    kind: str
    index: int = 0
    offset: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: Any = None
    finish_reason: str | None = None
    status: Status | None = None
    usage: Usage | None = None
    error: JobError | None = None
    data: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_end(self) -> bool:
        """Whether nothing comes after it."""
        return self.kind == "finished"


class WebhookEvent(TypedDict):
    """What a webhook's body says."""

    id: str
    object: Literal["event"]
    type: str
    created_at: str
    data: dict[str, Any]


def texts(job: Job) -> list[str]:
    """What a job wrote, one text a choice; empty before the end."""
    return [str(choice.get("text") or "") for choice in job.get("choices") or []]


# --- what goes wrong -------------------------------------------------------------------------------------------------


class PenstockError(Exception):
    """Root of what the client raises. `code` is stable; `retryable` says whether the same call may succeed later."""

    def __init__(self, message: str, *, code: str, retryable: bool) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.retryable = retryable


class Refused(PenstockError):
    """The API says no. docs/errors.md lists the codes.

    `field` and `limit` name what is at fault and what is allowed, where the answer says so; `retry_after_s` when to come back;
    `problem` is the whole answer.
    """

    def __init__(self, message: str, *, status: int, problem: Mapping[str, Any], retry_after_s: float | None) -> None:
        code = problem.get("code")
        first: Any = next(iter(problem.get("errors") or []), {})
        first = first if isinstance(first, dict) else {}
        super().__init__(
            message,
            code=str(code) if code else f"http_{status}",
            retryable=bool(problem.get("retryable", status in _TRY_AGAIN)),
        )
        self.status = status
        self.problem = dict(problem)
        self.field: str | None = problem.get("param") or first.get("field")
        self.limit: Any = problem.get("limit", first.get("limit"))
        self.retry_after_s = retry_after_s


class NoAnswer(PenstockError):
    """The API can't be reached, or its answers break off; for longer than `Retries` allow."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="no_answer", retryable=True)


class NotPenstock(PenstockError):
    """Something answers, but not as Penstock does: a wrong address, or a proxy with an opinion."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="not_penstock", retryable=False)


class TimedOut(PenstockError):
    """What was waited for isn't over yet; it goes on, and can be waited for again."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="timed_out", retryable=True)


class SignatureInvalid(PenstockError):
    """A webhook that isn't signed with the secret, or too long ago: answer 401 and don't read it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="webhook_signature_invalid", retryable=False)


# --- webhooks --------------------------------------------------------------------------------------------------------


def verify_webhook(
    secrets: str | Sequence[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance_s: float = 300.0,
    now: float | None = None,
) -> WebhookEvent:
    """The event in `body`, exactly the bytes that came, if one of the secrets signed it at most `tolerance_s` from `now`.

    Deliveries are repeated until they are answered with 2xx: keep the header `webhook-id`, and skip what was seen before.
    Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

    Raises:
        SignatureInvalid: the message says what is wrong.
        ValueError: a secret isn't `whsec_` and base64, or there is none.
    """
    keys = [_webhook_key(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    if not keys:
        raise ValueError("a webhook is verified with at least one secret")
    given = {name.lower(): value for name, value in headers.items()}
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        if name not in given:
            raise SignatureInvalid(f"the header {name} is missing")
    stamp = given["webhook-timestamp"]
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 12):
        raise SignatureInvalid("webhook-timestamp isn't a number of seconds")
    if abs((time.time() if now is None else now) - int(stamp)) > tolerance_s:
        raise SignatureInvalid(
            f"webhook-timestamp is more than {tolerance_s:g} s from now: an old delivery, or a clock that is wrong"
        )
    signed = b".".join((given["webhook-id"].encode("utf-8", "replace"), stamp.encode(), body))
    wanted = [base64.b64encode(hmac.digest(key, signed, "sha256")) for key in keys]
    came = [
        each.removeprefix("v1,").encode("utf-8", "replace")
        for each in given["webhook-signature"].split()
        if each.startswith("v1,")
    ]
    # All are compared, whichever fits: the time tells nothing about which.
    fits = [hmac.compare_digest(ours, theirs) for ours in wanted for theirs in came]
    if not any(fits):
        raise SignatureInvalid("no signature fits: another secret, or the body was changed")
    try:
        event = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise SignatureInvalid("it is signed, but no JSON") from error
    return cast("WebhookEvent", event)


def _webhook_key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise ValueError("a webhook secret is whsec_ followed by base64")
    return key


# --- patience --------------------------------------------------------------------------------------------------------

MAX_WAIT_S: Final = 25.0  # `Prefer: wait`: less than proxies hang up after
BULK_JOBS: Final = 1000  # of one POST /v1/jobs/bulk
_BULK_BYTES: Final = 4 << 20  # half of what the API takes by default
_TIMEOUT_S: Final = 30.0
_SILENCE_S: Final = 60.0  # a stream has heartbeats: after so long without a byte its connection is dead
_MAX_EVENT_BYTES: Final = 32 << 20
_PAUSE_S: Final = 0.5  # between two looks, where the API has no seat to wait in
_TRY_AGAIN: Final = frozenset({408, 429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Retries:
    """How long a call is tried again before its error is raised.

    429, 408, 502, 503 and 504 are tried again after `Retry-After` and up to a tenth more, or where there is none after an exponential
    backoff with full jitter; not if the answer says `retryable: false` or `x-should-retry: false`, and not if the wait would
    pass `patience_s`. Lost connections are tried again for `lost_s`; before the first answer only with `first_contact`.
    """

    patience_s: float = 120.0
    lost_s: float = 60.0
    first_contact: bool = True
    backoff_cap_s: float = 10.0

    def backoff_s(self, tries: int, draw: float) -> float:
        """Seconds before try `tries` + 1; `draw` is uniform in [0, 1).

        Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
        """
        return max(0.05, draw * min(self.backoff_cap_s, 0.25 * 2.0 ** min(tries, 10)))


@dataclass(slots=True)
class _Patience:
    """What one call, or one stream, has put up with so far."""

    retries: Retries
    clock: Callable[[], float]
    draw: Callable[[], float]
    until: float = math.inf  # what comes later is of no use to the caller
    tries: int = 0
    refused_since: float | None = None
    lost_since: float | None = None

    def went_well(self) -> None:
        self.tries, self.refused_since, self.lost_since = 0, None, None

    def after_refusal(self, refusal: Refused, response: httpx.Response) -> float:
        """Seconds to wait.

        Raises:
            Refused: it can't succeed, or not soon.
            TimedOut: it might, but later than its caller waits.
        """
        now = self.clock()
        self.tries, self.lost_since = self.tries + 1, None
        self.refused_since = now if self.refused_since is None else self.refused_since
        should_retry = response.headers.get("x-should-retry")
        may_succeed = should_retry == "true" or (response.status_code in _TRY_AGAIN and refusal.retryable)
        delay_s = self.retries.backoff_s(self.tries, self.draw())
        if refusal.retry_after_s is not None:
            delay_s = refusal.retry_after_s * (1.0 + 0.1 * self.draw())
        if should_retry == "false" or not may_succeed or now + delay_s > self.refused_since + self.retries.patience_s:
            raise refusal
        self._check_time(now + delay_s, refusal)
        return delay_s

    def after_loss(self, url: str, error: Exception | None, *, has_answered: bool) -> float:
        """Seconds to wait.

        Raises:
            NoAnswer: it has lasted too long.
            TimedOut: longer than its caller waits.
        """
        now = self.clock()
        self.tries += 1
        self.lost_since = now if self.lost_since is None else self.lost_since
        delay_s = self.retries.backoff_s(self.tries, self.draw())
        lost = NoAnswer(f"no answer from {url} ({_reason(error)})")
        if not (has_answered or self.retries.first_contact) or now + delay_s > self.lost_since + self.retries.lost_s:
            raise lost from error
        self._check_time(now + delay_s, lost)
        return delay_s

    def _check_time(self, again_at: float, error: Exception) -> None:
        if again_at > self.until:
            raise TimedOut(f"no good answer in the time that was given; the last one: {error}") from error


def _reason(error: Exception | None) -> str:
    """The system's own words, which stand at the bottom of the chain of causes."""
    if error is None:
        return "its answers break off"
    words, below = str(error) or type(error).__name__, error.__cause__ or error.__context__
    while below is not None:
        if isinstance(below, OSError) and below.strerror:
            words = os.strerror(below.errno) if below.errno and below.errno > 0 else below.strerror
        below = below.__cause__ or below.__context__
    return words


def refusal_of(response: httpx.Response) -> Refused:
    """The answer as an error: a problem document of ours, OpenAI's `error`, or what a proxy says of a server that is away or busy.

    Raises:
        NotPenstock: none of them.
    """
    try:
        said = response.json()
    except ValueError:
        said = None
    problem: dict[str, Any] = said if isinstance(said, dict) else {}
    if isinstance(problem.get("error"), dict):
        problem = problem["error"]
    may_be_a_proxys = response.status_code in _TRY_AGAIN or "x-should-retry" in response.headers
    if "code" not in problem and not may_be_a_proxys:
        root, status = str(response.url.join("/")).rstrip("/"), f"{response.status_code} {response.reason_phrase}"
        raise NotPenstock(
            f"what answers at {root} isn't Penstock: it says {status.strip()}, and none of our error codes"
        )
    detail = problem.get("detail") or problem.get("message") or problem.get("title") or response.reason_phrase
    return Refused(
        str(detail or "refused"),
        status=response.status_code,
        problem=problem,
        retry_after_s=_retry_after_s(response.headers.get("retry-after")),
    )


def _retry_after_s(said: str | None) -> float | None:
    """Seconds or a date, as RFC 9110 has it; None where it is neither."""
    if said is None:
        return None
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


# --- what both clients do: calls as steps, so that the sync and the async one share every decision -------------------


@dataclass(frozen=True, slots=True)
class _Send:
    """A step: send this request; what comes back is its response, or an httpx.RequestError is thrown in."""

    method: str
    path: str
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Sleep:
    """A step: let so much time pass."""

    seconds: float


_Flow = Generator[_Send | _Sleep, Any, T]


class _Calls:
    """Every call of the API as a flow of steps. Has no network and no clock of its own."""

    def __init__(
        self,
        url: str,
        retries: Retries,
        clock: Callable[[], float],
        draw: Callable[[], float],
        on_retry: Callable[[PenstockError | None, float], None] | None,
    ) -> None:
        self.url = url
        self.clock = clock
        self.has_answered = False
        self._retries = retries
        self._draw = draw
        self._on_retry = on_retry

    def patience(self, until: float = math.inf) -> _Patience:
        return _Patience(self._retries, self.clock, self._draw, until)

    def will_retry(self, refusal: Refused | None, delay_s: float) -> None:
        if self._on_retry is not None:
            self._on_retry(refusal, delay_s)

    def call(
        self, method: str, path: str, *, repeatable: bool = True, until: float = math.inf, **options: Any
    ) -> _Flow[httpx.Response]:
        """The answer, once it is a good one. What isn't `repeatable` isn't sent again where it may have been served."""
        patience = self.patience(until)
        while True:
            try:
                response: httpx.Response = yield _Send(method, path, options)
            except httpx.RequestError as error:
                if not repeatable and not isinstance(
                    error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout
                ):
                    raise NoAnswer(f"no answer from {self.url} ({_reason(error)})") from error
                refusal, delay_s = None, patience.after_loss(self.url, error, has_answered=self.has_answered)
            else:
                self.has_answered = True
                if response.is_success:
                    return response
                refusal = refusal_of(response)
                if not repeatable and response.status_code in {502, 504}:
                    raise NoAnswer(f"no answer from {self.url} ({refusal})") from refusal
                delay_s = patience.after_refusal(refusal, response)
            self.will_retry(refusal, delay_s)
            yield _Sleep(delay_s)

    def ask(self, method: str, path: str, **options: Any) -> _Flow[Any]:
        """The JSON object that is answered."""
        response = yield from self.call(method, path, **options)
        return self.object_of(response)

    def object_of(self, response: httpx.Response) -> dict[str, Any]:
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise NotPenstock(f"what answers at {self.url} isn't Penstock: it sent no JSON object")
        return found

    # jobs

    def submit(self, job: JobParams, key: str | None, wait_s: float) -> _Flow[Job]:
        headers = {"Idempotency-Key": key or _new_key()} | _prefer(wait_s)
        return (yield from self.ask("POST", "/v1/jobs", json=job, headers=headers))  # type: ignore[no-any-return]

    def submit_many(self, jobs: Iterable[JobParams], key: str | None) -> _Flow[list[str]]:
        key = key or _new_key()
        taken: list[str] = []
        for body in _bulks(jobs):
            headers = {"Idempotency-Key": f"{key}-{len(taken)}", "Content-Type": "application/json"}
            try:
                answer = yield from self.ask("POST", "/v1/jobs/bulk", content=body, headers=headers)
            except PenstockError as error:
                if taken:
                    error.add_note(
                        f"the first {len(taken)} jobs were taken; the same call with idempotency_key={key!r} goes on"
                    )
                raise
            taken += answer["job_ids"]
        return taken

    def get(self, job: Job | str, wait_s: float, until: float = math.inf) -> _Flow[Job]:
        return (yield from self.ask("GET", _job_path(job), headers=_prefer(wait_s), until=until))  # type: ignore[no-any-return]

    def wait(self, job: Job | str, timeout_s: float | None) -> _Flow[Job]:
        until = math.inf if timeout_s is None else self.clock() + timeout_s
        while True:
            asked_at = self.clock()
            found = yield from self.get(job, until - asked_at, until)
            if found["status"] in ENDED:
                return found
            now = self.clock()
            if now >= until:
                raise TimedOut(f"{found['id']} is still {found['status']} after {timeout_s:g} s")
            # An API with too many who wait, or one that goes down, answers at once.
            yield _Sleep(max(0.0, min(asked_at + _PAUSE_S, until) - now))

    def page(self, filters: JobFilters, limit: int, cursor: str | None) -> _Flow[dict[str, Any]]:
        wanted: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
        wanted |= {f"metadata[{name}]": value for name, value in (wanted.pop("metadata", None) or {}).items()}
        wanted |= {"limit": limit} | ({"cursor": cursor} if cursor else {})
        return (yield from self.ask("GET", "/v1/jobs", params=wanted))  # type: ignore[no-any-return]

    def cancel(self, job: Job | str) -> _Flow[Job]:
        return (yield from self.ask("POST", f"{_job_path(job)}/cancel"))  # type: ignore[no-any-return]

    def quote(self, job: JobParams) -> _Flow[Quote]:
        return (yield from self.ask("POST", "/v1/jobs/quote", json=job))  # type: ignore[no-any-return]

    def why(self, job: Job | str) -> _Flow[Why]:
        return (yield from self.ask("GET", f"{_job_path(job)}/why"))  # type: ignore[no-any-return]

    # files and batches

    def upload(self, content: bytes, name: str, purpose: str) -> _Flow[File]:
        # Repeated where its answer is lost: a file more that nobody names does no harm.
        form = {"files": {"file": (name, content, "application/jsonl")}, "data": {"purpose": purpose}}
        return (yield from self.ask("POST", "/v1/files", **form))  # type: ignore[no-any-return]

    def content(self, file_id: str) -> _Flow[bytes]:
        response = yield from self.call("GET", f"/v1/files/{quote(file_id, safe='')}/content")
        return response.content

    def create_batch(
        self, file_id: str, endpoint: str, window: str, metadata: Mapping[str, str] | None, more: Mapping[str, Any]
    ) -> _Flow[Batch]:
        """Never two by one call: where an answer is lost, the same key has the same batch."""
        body = dict(more) | {"input_file_id": file_id, "endpoint": endpoint, "completion_window": window}
        if metadata is not None:
            body["metadata"] = dict(metadata)
        headers = {"Idempotency-Key": _new_key()}
        return (yield from self.ask("POST", "/v1/batches", json=body, headers=headers))  # type: ignore[no-any-return]

    def get_batch(self, batch: Batch | str, until: float = math.inf) -> _Flow[Batch]:
        return (yield from self.ask("GET", _batch_path(batch), until=until))  # type: ignore[no-any-return]

    def cancel_batch(self, batch: Batch | str) -> _Flow[Batch]:
        return (yield from self.ask("POST", f"{_batch_path(batch)}/cancel"))  # type: ignore[no-any-return]

    def wait_batch(
        self, batch: Batch | str, timeout_s: float | None, on_progress: Callable[[Batch], None] | None
    ) -> _Flow[Batch]:
        until = math.inf if timeout_s is None else self.clock() + timeout_s
        pause_s, told = _PAUSE_S, None
        while True:
            found = yield from self.get_batch(batch, until)
            news = (found["status"], found.get("request_counts"))
            if news != told:
                told, pause_s = news, _PAUSE_S
                if on_progress is not None:
                    on_progress(found)
            if found["status"] in BATCH_ENDED:
                return found
            now = self.clock()
            if now >= until:
                raise TimedOut(f"{found['id']} is still {found['status']} after {timeout_s:g} s")
            yield _Sleep(min(pause_s, until - now))
            pause_s = min(5.0, pause_s * 1.5)

    def batch_result(self, batch: Batch | str) -> _Flow[BatchResult]:
        """What is there: finished lines can be read while others still run."""
        found = yield from self.get_batch(batch)
        outputs: dict[str, dict[str, Any]] = {}
        errors: dict[str, dict[str, Any]] = {}
        for part, file_id, lines in (
            ("output", found.get("output_file_id"), outputs),
            ("errors", found.get("error_file_id"), errors),
        ):
            if found["status"] not in BATCH_ENDED:  # it names its files when they are whole
                content = (yield from self.call("GET", f"{_batch_path(batch)}/{part}")).content
            elif file_id:
                content = yield from self.content(file_id)
            else:
                continue
            lines |= {line["custom_id"]: line for line in map(json.loads, content.splitlines()) if line}
        return BatchResult(found, outputs, errors)

    def run_batch(
        self,
        requests: Mapping[str, Mapping[str, Any]],
        endpoint: str,
        window: str,
        metadata: Mapping[str, str] | None,
        timeout_s: float | None,
        on_progress: Callable[[Batch], None] | None,
    ) -> _Flow[BatchResult]:
        file = yield from self.upload(batch_lines(requests, endpoint), "batch.jsonl", "batch")
        made = yield from self.create_batch(file["id"], endpoint, window, metadata, {})
        ended = yield from self.wait_batch(made, timeout_s, on_progress)
        return (yield from self.batch_result(ended))


def batch_lines(requests: Mapping[str, Mapping[str, Any]], endpoint: str) -> bytes:
    """The input file of a batch: bodies for `endpoint` by their `custom_id`."""
    lines = (
        {"custom_id": custom_id, "method": "POST", "url": endpoint, "body": body}
        for custom_id, body in requests.items()
    )
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def _bulks(jobs: Iterable[JobParams]) -> Iterator[bytes]:
    """Bodies of POST /v1/jobs/bulk: the same cut for the same jobs, so that the same keys meet the same bodies."""
    chunk: list[bytes] = []
    num_bytes = 0
    for job in jobs:
        encoded = json.dumps(job, ensure_ascii=False, allow_nan=False).encode()
        if chunk and (len(chunk) == BULK_JOBS or num_bytes + len(encoded) > _BULK_BYTES):
            yield b'{"jobs": [' + b",".join(chunk) + b"]}"
            chunk, num_bytes = [], 0
        chunk.append(encoded)
        num_bytes += len(encoded) + 1
    if chunk:
        yield b'{"jobs": [' + b",".join(chunk) + b"]}"


def _new_key() -> str:
    return uuid.uuid4().hex


def _prefer(wait_s: float) -> dict[str, str]:
    return {"Prefer": f"wait={math.ceil(min(wait_s, MAX_WAIT_S))}"} if wait_s > 0 else {}


def _job_path(job: Job | str) -> str:
    return f"/v1/jobs/{quote(job if isinstance(job, str) else job['id'], safe='')}"


def _batch_path(batch: Batch | str) -> str:
    return f"/v1/batches/{quote(batch if isinstance(batch, str) else batch['id'], safe='')}"


# --- streams ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Message:
    """One server-sent event."""

    id: str
    kind: str
    data: str


class _Broken(Exception):
    """What came isn't a whole event: the connection is given up, and another one goes on behind the last whole one."""


class _Parser:
    """Server-sent events out of bytes, however they are cut. A half event at the end is never told.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    def __init__(self) -> None:
        self.num_whole = 0  # events and comments
        self.retry_s = 0.0
        self._rest: list[bytes] = []
        self._num_bytes = 0
        self._ended_with_cr = False
        self._is_first = True
        self._data: list[bytes] = []
        self._kind = self._id = b""

    def feed(self, chunk: bytes) -> Iterator[_Message]:
        if self._ended_with_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._ended_with_cr = False
        if not chunk:
            return
        self._ended_with_cr = chunk.endswith(b"\r")
        self._num_bytes += len(chunk)
        *lines, rest = _LINE_END.split(chunk)
        for line in lines:
            whole = b"".join([*self._rest, line])
            self._rest.clear()
            yield from self._line(whole)
        self._rest.append(rest)
        if self._num_bytes > _MAX_EVENT_BYTES:
            raise NotPenstock(f"an event of more than {_MAX_EVENT_BYTES} bytes came")

    def _line(self, line: bytes) -> Iterator[_Message]:
        if self._is_first:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._is_first = False
        if not line:
            if self._data:
                data = b"\n".join(self._data).decode("utf-8", "replace")
                self.num_whole += 1
                yield _Message(self._id.decode("utf-8", "replace"), self._kind.decode("utf-8", "replace"), data)
            self._data, self._kind, self._num_bytes = [], b"", 0
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"":
                self.num_whole += 1
            case b"data":
                self._data.append(value)
            case b"event":
                self._kind = value
            case b"id" if b"\0" not in value:
                self._id = value
            case b"retry" if value.isdigit() and len(value) <= 6:
                self.retry_s = int(value) / 1000


_LINE_END: Final = re.compile(rb"\r\n|\r|\n")


class _Reading:
    """One reader's stream over as many connections as it takes: each goes on behind the last event that was told."""

    def __init__(self, calls: _Calls, job: Job | str, after: int | None) -> None:
        self.path = f"{_job_path(job)}/events"
        self.is_over = False
        self.timeout = httpx.Timeout(_TIMEOUT_S, read=_SILENCE_S)
        self._calls = calls
        self._last = -1 if after is None else after
        self._patience = calls.patience()
        self._parser = _Parser()
        self._retry_s = 0.0

    def headers(self) -> dict[str, str]:
        """Of the next connection."""
        self._parser = _Parser()
        last = {"Last-Event-ID": str(self._last)} if self._last >= 0 else {}
        return {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-store"} | last

    def check(self, response: httpx.Response) -> None:
        """Raises NotPenstock: it isn't a stream."""
        self._calls.has_answered = True
        if response.status_code == 204:  # nothing follows the event that was named
            self.is_over = True
            return
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise NotPenstock(f"what answers at {self._calls.url} sends no stream of events")

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Events that are whole now and weren't told before."""
        whole = self._parser.num_whole
        for message in self._parser.feed(chunk):
            event = _event_of(message)
            # What was told before is sent again by a server that lost count, or one that took the number for "from".
            if event.id <= self._last:
                continue
            self._last = event.id
            self.is_over = event.is_end
            yield event
            if self.is_over:
                return
        self._retry_s = self._parser.retry_s or self._retry_s
        if self._parser.num_whole > whole:
            self._patience.went_well()

    def refused(self, response: httpx.Response) -> float:
        """Seconds until the next connection; raises Refused, or NotPenstock, where there shall be none."""
        self._calls.has_answered = True
        refusal = refusal_of(response)
        delay_s = self._patience.after_refusal(refusal, response)
        self._calls.will_retry(refusal, delay_s)
        return delay_s

    def lost(self, error: Exception | None) -> float:
        """Seconds until the next connection; raises NoAnswer where there shall be none."""
        delay_s = self._patience.after_loss(self._calls.url, error, has_answered=self._calls.has_answered)
        delay_s = max(delay_s, self._retry_s)
        self._calls.will_retry(None, delay_s)
        return delay_s


def _event_of(message: _Message) -> Event:
    try:
        data = json.loads(message.data)
        number = int(message.id)
    except ValueError as error:
        raise _Broken(f"an event that can't be read: {error}") from error
    if not isinstance(data, dict):
        raise _Broken("an event that is no JSON object")
    return Event(
        id=number,
        kind=message.kind or str(data.get("kind") or "message"),
        index=data.get("index") or 0,
        offset=data.get("offset") or 0,
        text=data.get("text") or "",
        token_ids=data.get("token_ids") or [],
        logprobs=data.get("logprobs"),
        finish_reason=data.get("finish_reason"),
        status=data.get("status"),
        usage=data.get("usage"),
        error=data.get("error"),
        data=data,
    )


# --- the clients -----------------------------------------------------------------------------------------------------


def _target(url: str | None, api_key: str | None) -> tuple[str, str]:
    url = url or os.environ.get("PENSTOCK_URL")
    api_key = api_key or os.environ.get("PENSTOCK_API_KEY")
    if not url or not url.startswith(("http://", "https://")):
        raise ValueError(
            f"the API's address must begin with http:// or https://, and {url!r} doesn't: give url, or PENSTOCK_URL"
        )
    if not api_key:
        raise ValueError("there is no API key: give api_key, or PENSTOCK_API_KEY")
    return url.rstrip("/").removesuffix("/v1"), api_key


def _http_options(url: str, api_key: str, connections: int) -> dict[str, Any]:
    return {
        "base_url": url,
        "headers": {"Authorization": f"Bearer {api_key}"},
        "timeout": httpx.Timeout(_TIMEOUT_S, read=_TIMEOUT_S + MAX_WAIT_S),
        # How many there are at once is for `_slots` to say. A full pool of httpcore's would lose each connection that it was about to
        # give to a caller who has given up, for ever (httpcore issue 1093).
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=connections),
        "trust_env": not _is_local(url),  # no proxy between us and this machine
    }


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Penstock:
    """The API, for threads. Use it as a context manager, or `close` it; threads may share it.

    Without `url` and `api_key` it takes PENSTOCK_URL and PENSTOCK_API_KEY. `on_retry` is told of each wait before another try: why
    (None: the connection was lost), and how many seconds. `connections` bounds the calls that are under way at once, others wait
    for their turn; a stream has a connection beside them.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retries: Retries = Retries(),
        on_retry: Callable[[PenstockError | None, float], None] | None = None,
        connections: int = 32,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        url, api_key = _target(url, api_key)
        self._calls = _Calls(url, retries, clock, draw, on_retry)
        self._sleep = sleep
        self._slots = threading.BoundedSemaphore(connections)
        self._http = httpx.Client(**_http_options(url, api_key, connections), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def submit(self, *, idempotency_key: str | None = None, wait_s: float = 0.0, **job: Unpack[JobParams]) -> Job:
        """Hand a job in; with `wait_s` (at most 25) the answer comes at its end, if that is sooner.

        The same `idempotency_key` and job give the same job, also from another process: keep one where yours may die in between.
        """
        return self._run(self._calls.submit(job, idempotency_key, wait_s))

    def submit_many(self, jobs: Iterable[JobParams], *, idempotency_key: str | None = None) -> builtins.list[str]:
        """Hand many in, up to 1,000 a request, each request all or nothing; the jobs' ids, in their order."""
        return self._run(self._calls.submit_many(jobs, idempotency_key))

    def get(self, job: Job | str, *, wait_s: float = 0.0) -> Job:
        """The job as it is now; with `wait_s` (at most 25), as soon as it ends, or after that time."""
        return self._run(self._calls.get(job, wait_s))

    def list(self, *, limit: int | None = None, **filters: Unpack[JobFilters]) -> Iterator[Job]:
        """The tenant's jobs, newest first, without their texts; pages are fetched as they are needed."""
        cursor, left = None, limit
        while left is None or left > 0:
            page = self._run(self._calls.page(filters, _page_size(left), cursor))
            yield from page["data"]
            left = None if left is None else left - len(page["data"])
            cursor = page.get("next_cursor")
            if not cursor:
                return

    def wait(self, job: Job | str, *, timeout_s: float | None = None) -> Job:
        """The job with its result, when it has ended, however it ended.

        Raises:
            TimedOut: it goes on after `timeout_s`, or nobody could say so.
        """
        return self._run(self._calls.wait(job, timeout_s))

    def cancel(self, job: Job | str) -> Job:
        """Ask for the job's end; where it waited, it has ended. What it wrote until then is kept, and billed."""
        return self._run(self._calls.cancel(job))

    def quote(self, **job: Unpack[JobParams]) -> Quote:
        """What a submission would cost now, and whether it would be taken; nothing is written."""
        return self._run(self._calls.quote(job))

    def why(self, job: Job | str) -> Why:
        """What the job is waiting for, and until when."""
        return self._run(self._calls.why(job))

    def stream(self, job: Job | str, *, after: int | None = None) -> Iterator[Event]:
        """The job's events up to its end, each once; behind the event `after`, where one is given.

        A lost connection is made again behind the last event that was told, for as long as `Retries` allow.
        """
        reading = _Reading(self._calls, job, after)
        while not reading.is_over:
            try:
                with self._http.stream(
                    "GET", reading.path, headers=reading.headers(), timeout=reading.timeout
                ) as answer:
                    if answer.is_success:
                        reading.check(answer)
                        for chunk in answer.iter_bytes():
                            yield from reading.feed(chunk)
                            if reading.is_over:
                                return
                        delay_s = 0.0 if reading.is_over else reading.lost(None)
                    else:
                        answer.read()
                        delay_s = reading.refused(answer)
            except (httpx.RequestError, _Broken) as error:
                delay_s = reading.lost(error)
            self._sleep(delay_s)

    def batch(
        self,
        requests: Mapping[str, Mapping[str, Any]],
        *,
        endpoint: str = "/v1/chat/completions",
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        on_progress: Callable[[Batch], None] | None = None,
    ) -> BatchResult:
        """Run many requests of the OpenAI face as one batch: bodies by their `custom_id` in, lines by it out.

        `on_progress` is called with the batch whenever its status or counts have changed.

        Raises:
            TimedOut: it goes on after `timeout_s`: `wait_batch` and `batch_result` take it from there.
        """
        flow = self._calls.run_batch(requests, endpoint, completion_window, metadata, timeout_s, on_progress)
        return self._run(flow)

    def upload(self, content: bytes | Path, *, filename: str = "batch.jsonl", purpose: str = "batch") -> File:
        """Store a file, such as a batch's lines."""
        if isinstance(content, Path):
            filename, content = content.name, content.read_bytes()
        return self._run(self._calls.upload(content, filename, purpose))

    def file_content(self, file_id: str) -> bytes:
        """What is in a file."""
        return self._run(self._calls.content(file_id))

    def create_batch(
        self,
        input_file_id: str,
        *,
        endpoint: str = "/v1/chat/completions",
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Batch:
        """Start a batch over an uploaded file; `more` are other members of the request, such as `tier`."""
        return self._run(self._calls.create_batch(input_file_id, endpoint, completion_window, metadata, more))

    def get_batch(self, batch: Batch | str) -> Batch:
        """The batch as it is now."""
        return self._run(self._calls.get_batch(batch))

    def cancel_batch(self, batch: Batch | str) -> Batch:
        """Ask for its end; finished lines stay."""
        return self._run(self._calls.cancel_batch(batch))

    def wait_batch(
        self,
        batch: Batch | str,
        *,
        timeout_s: float | None = None,
        on_progress: Callable[[Batch], None] | None = None,
    ) -> Batch:
        """The batch, when it has ended, however it ended.

        Raises:
            TimedOut: it goes on after `timeout_s`, or nobody could say so.
        """
        return self._run(self._calls.wait_batch(batch, timeout_s, on_progress))

    def batch_result(self, batch: Batch | str) -> BatchResult:
        """The batch and the lines that are finished."""
        return self._run(self._calls.batch_result(batch))

    def request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Any other route of the API, tried again like the others: the JSON object that it answers.

        `options` are httpx': json, params, headers, ... With `repeatable=False` it isn't sent again where it may have been served.
        """
        return cast("dict[str, Any]", self._run(self._calls.ask(method, path, **options)))

    def _run(self, flow: _Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, _Sleep):
                    self._sleep(step.seconds)
                    step = flow.send(None)
                    continue
                try:
                    with self._slots:
                        response = self._http.request(step.method, step.path, **step.options)
                except httpx.RequestError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(response)
        except StopIteration as ended:
            return cast("T", ended.value)


class AsyncPenstock:
    """The API, for asyncio. Use it as an async context manager, or `close` it. Each method is as `Penstock`'s of the same name."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retries: Retries = Retries(),
        on_retry: Callable[[PenstockError | None, float], None] | None = None,
        connections: int = 32,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        url, api_key = _target(url, api_key)
        self._calls = _Calls(url, retries, clock, draw, on_retry)
        self._sleep = sleep
        self._slots = asyncio.BoundedSemaphore(connections)
        self._http = httpx.AsyncClient(**_http_options(url, api_key, connections), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def submit(self, *, idempotency_key: str | None = None, wait_s: float = 0.0, **job: Unpack[JobParams]) -> Job:
        """Hand a job in."""
        return await self._run(self._calls.submit(job, idempotency_key, wait_s))

    async def submit_many(self, jobs: Iterable[JobParams], *, idempotency_key: str | None = None) -> builtins.list[str]:
        """Hand many in."""
        return await self._run(self._calls.submit_many(jobs, idempotency_key))

    async def get(self, job: Job | str, *, wait_s: float = 0.0) -> Job:
        """The job as it is now."""
        return await self._run(self._calls.get(job, wait_s))

    async def list(self, *, limit: int | None = None, **filters: Unpack[JobFilters]) -> AsyncIterator[Job]:
        """The tenant's jobs, newest first: `async for`."""
        cursor, left = None, limit
        while left is None or left > 0:
            page = await self._run(self._calls.page(filters, _page_size(left), cursor))
            for each in page["data"]:
                yield each
            left = None if left is None else left - len(page["data"])
            cursor = page.get("next_cursor")
            if not cursor:
                return

    async def wait(self, job: Job | str, *, timeout_s: float | None = None) -> Job:
        """The job with its result, when it has ended."""
        return await self._run(self._calls.wait(job, timeout_s))

    async def cancel(self, job: Job | str) -> Job:
        """Ask for the job's end."""
        return await self._run(self._calls.cancel(job))

    async def quote(self, **job: Unpack[JobParams]) -> Quote:
        """What a submission would cost now."""
        return await self._run(self._calls.quote(job))

    async def why(self, job: Job | str) -> Why:
        """What the job is waiting for."""
        return await self._run(self._calls.why(job))

    async def stream(self, job: Job | str, *, after: int | None = None) -> AsyncIterator[Event]:
        """The job's events up to its end, each once: `async for`."""
        reading = _Reading(self._calls, job, after)
        while not reading.is_over:
            try:
                async with self._http.stream(
                    "GET", reading.path, headers=reading.headers(), timeout=reading.timeout
                ) as answer:
                    if answer.is_success:
                        reading.check(answer)
                        async for chunk in answer.aiter_bytes():
                            for event in reading.feed(chunk):
                                yield event
                            if reading.is_over:
                                return
                        delay_s = 0.0 if reading.is_over else reading.lost(None)
                    else:
                        await answer.aread()
                        delay_s = reading.refused(answer)
            except (httpx.RequestError, _Broken) as error:
                delay_s = reading.lost(error)
            await self._sleep(delay_s)

    async def batch(
        self,
        requests: Mapping[str, Mapping[str, Any]],
        *,
        endpoint: str = "/v1/chat/completions",
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        on_progress: Callable[[Batch], None] | None = None,
    ) -> BatchResult:
        """Run many requests as one batch."""
        flow = self._calls.run_batch(requests, endpoint, completion_window, metadata, timeout_s, on_progress)
        return await self._run(flow)

    async def upload(self, content: bytes | Path, *, filename: str = "batch.jsonl", purpose: str = "batch") -> File:
        """Store a file."""
        if isinstance(content, Path):
            filename, content = content.name, await asyncio.to_thread(content.read_bytes)
        return await self._run(self._calls.upload(content, filename, purpose))

    async def file_content(self, file_id: str) -> bytes:
        """What is in a file."""
        return await self._run(self._calls.content(file_id))

    async def create_batch(
        self,
        input_file_id: str,
        *,
        endpoint: str = "/v1/chat/completions",
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Batch:
        """Start a batch over an uploaded file."""
        return await self._run(self._calls.create_batch(input_file_id, endpoint, completion_window, metadata, more))

    async def get_batch(self, batch: Batch | str) -> Batch:
        """The batch as it is now."""
        return await self._run(self._calls.get_batch(batch))

    async def cancel_batch(self, batch: Batch | str) -> Batch:
        """Ask for its end."""
        return await self._run(self._calls.cancel_batch(batch))

    async def wait_batch(
        self,
        batch: Batch | str,
        *,
        timeout_s: float | None = None,
        on_progress: Callable[[Batch], None] | None = None,
    ) -> Batch:
        """The batch, when it has ended."""
        return await self._run(self._calls.wait_batch(batch, timeout_s, on_progress))

    async def batch_result(self, batch: Batch | str) -> BatchResult:
        """The batch and the lines that are finished."""
        return await self._run(self._calls.batch_result(batch))

    async def request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Any other route of the API."""
        return cast("dict[str, Any]", await self._run(self._calls.ask(method, path, **options)))

    async def _run(self, flow: _Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, _Sleep):
                    await self._sleep(step.seconds)
                    step = flow.send(None)
                    continue
                try:
                    async with self._slots:
                        response = await self._http.request(step.method, step.path, **step.options)
                except httpx.RequestError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(response)
        except StopIteration as ended:
            return cast("T", ended.value)


def _page_size(left: int | None) -> int:
    return 100 if left is None else min(100, left)
