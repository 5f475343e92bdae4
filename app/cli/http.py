"""How does the command line talk to the API? Jobs over HTTP, patient where the API asks for patience."""

import asyncio
import ipaddress
import os
import random
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from app.cli.errors import CommandFailed
from app.cli.folder import DataFolder
from app.errors import Unavailable
from app.settings import Settings

Job = dict[str, Any]

ENDED = frozenset({"succeeded", "failed", "cancelled", "expired", "dead"})
TIMEOUT_S = 30.0
MAX_WAIT_S = 25.0  # `Prefer: wait`: less than proxies hang up after
_WORTH_SAYING_S = 5.0  # a wait that is shorter needs no word
PATIENCE_S = 600.0  # how long one request is tried again while the API says "later"
LOST_S = 20.0  # how long it is tried again while an API that answered before doesn't
BACKOFF_CAP_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where the API is, and who we are to it."""

    url: str
    api_key: str


class Refused(CommandFailed):
    """The API says no; `extra` has its `code` and `status`."""

    code = "refused"


def find_target(settings: Settings, url: str | None, api_key: str | None) -> Target:
    """What the caller gave, completed from the data folder of a running `penstock up`.

    Raises:
        CommandFailed: one of both is nowhere to be found.
    """
    folder = DataFolder(settings.data_dir)
    url = url or folder.url
    if not url:
        raise CommandFailed("where is the API? Run `penstock up` in this folder first, or give --url or PENSTOCK_URL")
    api_key = api_key or folder.api_key
    if not api_key:
        raise CommandFailed("there is no API key: give --key or PENSTOCK_API_KEY; `penstock keys create` makes one")
    if not url.startswith(("http://", "https://")):
        raise CommandFailed(f"--url must begin with http:// or https://, and {url!r} doesn't")
    return Target(url.rstrip("/").removesuffix("/v1"), api_key)


class Api:
    """Calls of /v1/jobs. Use it as an async context manager.

    A request that may be repeated is tried again on 429 and 503, after what Retry-After says, and when the connection is lost,
    if it ever stood: an API that never answered isn't waited for.
    """

    def __init__(
        self,
        target: Target,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
        connections: int = 32,
    ) -> None:
        self._target = target
        self._sleep = sleep
        self._has_answered = False
        self._http = httpx.AsyncClient(
            base_url=target.url,
            headers={"Authorization": f"Bearer {target.api_key}"},
            timeout=httpx.Timeout(TIMEOUT_S, read=TIMEOUT_S + MAX_WAIT_S),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            trust_env=not _is_local(target.url),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def submit(self, body: dict[str, Any], *, idempotency_key: str) -> Job:
        """Hand a job in; the same key gives the same job, so that it is safe to ask again."""
        return await self._call("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": idempotency_key})

    async def job(self, job_id: str, *, wait_s: float = 0.0) -> Job:
        """The job; with `wait_s`, as soon as it ends or that time is over."""
        headers = {"Prefer": f"wait={wait_s:g}"} if wait_s else {}
        return await self._call("GET", f"/v1/jobs/{job_id}", headers=headers)

    async def jobs(self, *, limit: int, **filters: str | None) -> list[Job]:
        """The newest jobs that pass the filters, newest first, without their texts."""
        found: list[Job] = []
        cursor: str | None = None
        while len(found) < limit:
            wanted = {name: value for name, value in filters.items() if value is not None}
            query = wanted | {"limit": str(min(100, limit - len(found)))} | ({"cursor": cursor} if cursor else {})
            page = await self._call("GET", "/v1/jobs", params=query)
            found += page["data"]
            cursor = page.get("next_cursor")
            if not cursor:
                break
        return found

    async def cancel(self, job_id: str) -> Job:
        """Ask for the job's end; it has ended at once where it was waiting."""
        return await self._call("POST", f"/v1/jobs/{job_id}/cancel")

    async def _call(self, method: str, path: str, **options: Any) -> Job:
        began, tries = monotonic(), 0
        lost_since: float | None = None
        while True:
            tries += 1
            try:
                response = await self._http.request(method, path, **options)
            except httpx.TransportError as error:
                lost_since = lost_since or monotonic()
                if not self._has_answered or monotonic() - lost_since > LOST_S:
                    raise Unavailable(
                        f"no answer from {self._target.url} ({_reason(error)}): is `penstock up` running?"
                    ) from error
                await self._sleep(_backoff_s(tries))
                continue
            self._has_answered, lost_since = True, None
            if response.is_success:
                return _object(response, self._target.url)
            delay_s = _retry_after_s(response, tries)
            if delay_s is None or monotonic() - began + delay_s > PATIENCE_S:
                raise refusal_of(response)
            if delay_s >= _WORTH_SAYING_S:
                say = f"penstock: {refusal_of(response)}; trying again in {delay_s:.0f} s, Ctrl-C gives up"
                print(say, file=sys.stderr, flush=True)
            await self._sleep(delay_s)


def describe_error(job: Job) -> str:
    """Why a job didn't succeed, in a line."""
    error = job.get("error") or {}
    reason = error.get("message") or error.get("detail") or ""
    code = f" ({error['code']})" if error.get("code") else ""
    return f"{job.get('status')}{f': {reason}' if reason else ''}{code}"


def texts_of(job: Job) -> list[str]:
    """What it wrote, one text a choice."""
    return [str(choice.get("text") or "") for choice in job.get("choices") or []]


def tokens_of(job: Job) -> int:
    """Tokens that it wrote, as far as is known: those that were billed, or its progress."""
    done = (job.get("usage") or {}).get("completion_tokens") or 0
    return int(done or (job.get("progress") or {}).get("completion_tokens") or 0)


def _object(response: httpx.Response, url: str) -> Job:
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CommandFailed(f"what answers at {url} isn't Penstock: it sent no JSON object")
    return found


def refusal_of(response: httpx.Response) -> Refused:
    """The error that an answer tells."""
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    problem = problem if isinstance(problem, dict) else {}
    code = problem.get("code") or f"http_{response.status_code}"
    detail = problem.get("detail") or problem.get("title") or response.reason_phrase or "refused"
    return Refused(f"{detail} ({code})", code=code, status=response.status_code)


def _retry_after_s(response: httpx.Response, tries: int) -> float | None:
    """Seconds to wait before the same request may succeed; None where it can't."""
    if response.status_code not in {429, 502, 503, 504} or response.headers.get("x-should-retry") == "false":
        return None
    try:
        if response.json().get("retryable") is False:
            return None
    except (ValueError, AttributeError):
        pass
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return _backoff_s(tries)


def _backoff_s(tries: int) -> float:
    """Full jitter, as everywhere."""
    return random.uniform(0.05, min(BACKOFF_CAP_S, 0.25 * 2.0 ** min(tries, 10)))  # noqa: S311


def _reason(error: httpx.TransportError) -> str:
    """The system's own words, which stand at the bottom of the chain of causes."""
    words, below = str(error) or type(error).__name__, error.__cause__ or error.__context__
    while below is not None:
        if isinstance(below, OSError) and below.strerror:
            words = os.strerror(below.errno) if below.errno and below.errno > 0 else below.strerror
        below = below.__cause__ or below.__context__
    return words


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
