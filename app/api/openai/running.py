"""How does a call become a job, and how does its caller wait for it? Whoever leaves takes his job with him, unless it is kept."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar
from uuid import UUID

from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.api.asked import Submission, Submitted
from app.api.body import parse_body, read_body
from app.api.errands import is_passing
from app.api.headers import idempotency_key
from app.api.openai.errors import end_of
from app.api.preparing import LONG_BYTES
from app.api.runtime import Runtime, runtime_of
from app.api.submission import submit
from app.errors import NotCancellable, NotFound, PenstockError, StreamsFull, Unavailable
from app.ids import job_name
from app.jobs import cancel as cancelling
from app.jobs.read import JobView, get_job
from app.jobs.request import JobRequest
from app.jobs.states import END_STATUSES
from app.jobs.submit import Caller
from app.openai.fields import Generation

SPREAD_TIMEOUT_S = 1.0
LOOK_AGAIN_S = 30.0  # while a caller waits: an end is heard of at once, this is for its leaving unheard

M = TypeVar("M", bound=Generation)
T = TypeVar("T")
Form = Literal["whole", "stream", "background"]
WithJob = Callable[[AsyncConnection, UUID], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Call:
    """A call whose job was promised. `is_kept`: it goes on when its caller has left."""

    runtime: Runtime
    caller: Caller
    job: JobView
    headers: dict[str, str]
    is_kept: bool


async def read_request(request: Request, model: type[M]) -> tuple[M, bytes]:
    """What the body says, and the body. Refusals raised after it speak of the job's fields by the names that this caller gave them."""
    runtime = runtime_of(request)
    body = await read_body(request, most=runtime.settings.max_body_bytes)
    asked = await in_lane(runtime, body, parse_body, body, model)
    request.state.asked = asked
    return asked, body


async def in_lane(runtime: Runtime, body: bytes, work: Callable[..., T], *args: object) -> T:
    """`work(*args)`, in a thread where the body is so large that it would hold up others."""
    return work(*args) if len(body) < LONG_BYTES else await runtime.lanes.run(len(body), work, *args)


def form_of(*, stream: bool | None, background: bool | None = False) -> Form:
    """How the caller wants to be answered."""
    return "stream" if stream else "background" if background else "whole"


async def begin(
    request: Request,
    caller: Caller,
    wanted: JobRequest,
    body: bytes,
    form: Form,
    *,
    is_kept: bool,
    with_job: WithJob | None = None,
    with_replay: WithJob | None = None,
) -> Call:
    """Promise the job. `with_replay` looks at one that its key brought back, as `with_job` writes beside a new one.

    Raises:
        Unavailable: nobody could wait for it now.
        PenstockError: as `app.api.submission.submit`.
    """
    runtime = runtime_of(request)
    check_room(runtime, form)
    key = idempotency_key(request.headers)
    submission = Submission(caller, wanted, len(body), key, body, with_job)
    submitted: Submitted = await submit(runtime, submission)
    if submitted.replayed and with_replay is not None:
        async with runtime.transaction() as conn:
            await with_replay(conn, submitted.job.id)
    headers = {"x-request-id": job_name(submitted.job.id), "Cache-Control": "no-store"} | submitted.headers
    # Whoever sends a key means to come back with it.
    return Call(runtime, caller, submitted.job, headers, is_kept or key is not None)


def check_room(runtime: Runtime, form: Form, num_jobs: int = 1) -> None:
    """Raises Unavailable where a job would be made that nobody here could be told of."""
    if form == "background":
        return
    if runtime.watch.is_closed:
        raise Unavailable("this server is about to restart; try again")
    if form == "stream" and runtime.streams.num_readers + num_jobs > runtime.settings.stream_max_readers:
        raise StreamsFull("as many streams are read from this process as may be (stream_max_readers); try again")
    if form == "whole" and runtime.watch.num_seated >= runtime.watch.max_seats:
        raise Unavailable("too many callers wait for their results here; try again, or submit to /v1/jobs and poll")


async def until_succeeded(request: Request, call: Call) -> JobView:
    """The job when it has succeeded. If its caller leaves, it is cancelled. While Postgres is away it is waited for, too.

    Raises:
        JobEndedWithout: it ended otherwise.
        Unavailable: this process is about to end; the job was cancelled, unless it is kept.
    """
    runtime, job = call.runtime, call.job
    async with runtime.watch.seat(job.id) as seat:
        while True:
            found = await _found(call)
            if found is not None and found.status in END_STATUSES:
                job = found
                break
            if await request.is_disconnected() or runtime.watch.is_closed:
                await leave(call)
                raise Unavailable("this server is about to restart; try again")
            if seat is None or found is None:
                await asyncio.sleep(runtime.watch.poll_every_s)
            else:
                await seat.wait(LOOK_AGAIN_S, request)
    if job.status != "succeeded":
        raise end_of(job)
    if job.choices is None:  # found by its Idempotency-Key, long after
        raise NotFound(f"the output of {job_name(job.id)} isn't kept any more")
    return job


async def patiently(runtime: Runtime, work: Callable[[], Awaitable[T]]) -> T:
    """What `work` gives, which is asked again for as long as Postgres doesn't answer."""
    while True:
        try:
            return await work()
        except (PenstockError, SQLAlchemyError, OSError) as error:
            if not is_passing(error):
                raise
        await asyncio.sleep(runtime.watch.poll_every_s)


async def _found(call: Call) -> JobView | None:
    """The call's job as it is now; None while Postgres doesn't answer."""
    try:
        return await job_of(call.runtime, call.caller, call.job.id)
    except (PenstockError, SQLAlchemyError, OSError) as error:
        if not is_passing(error):
            raise
        return None


async def leave(call: Call) -> None:
    """Its caller won't get the result: cancel the job, unless it is kept; where Postgres is away, once it is back."""
    if call.is_kept:
        return
    cancelling_it = partial(cancel, call.runtime, call.caller, call.job.id)
    try:
        await cancelling_it()
    except (PenstockError, SQLAlchemyError, OSError) as error:
        if is_passing(error):
            call.runtime.errands.add(cancelling_it)
        elif not isinstance(error, PenstockError):
            raise


async def cancel(runtime: Runtime, caller: Caller, job_id: UUID) -> JobView:
    """Cancel the job, or find it ended.

    Raises:
        NotFound: the tenant has no such job.
    """
    cancelled = None
    async with runtime.transaction() as conn:
        with contextlib.suppress(NotCancellable):
            cancelled = await cancelling.cancel(conn, caller.tenant_id, job_id)
        job = await get_job(conn, caller.tenant_id, job_id)
    assert job is not None, "its row is locked by this transaction"
    if cancelled is not None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SPREAD_TIMEOUT_S):
                await cancelling.spread_cancel(runtime.queue(cancelled.pool), cancelled)
    return job


async def job_of(runtime: Runtime, caller: Caller, job_id: UUID) -> JobView:
    """The tenant's job as it is now. Raises NotFound."""
    async with runtime.transaction() as conn:
        job = await get_job(conn, caller.tenant_id, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_name(job_id)}")
    return job
