"""How are jobs submitted, read, listed and cancelled over HTTP? /v1/jobs."""

import asyncio
import contextlib
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response

from app.api.asked import Submission
from app.api.authentication import Reader, Writer
from app.api.body import parse_job, read_body
from app.api.documents import answer
from app.api.headers import idempotency_key, preferred_wait_s
from app.api.job_documents import JobObject, JobPage, has_ended, job_object
from app.api.openapi import APPLIED, JOB_BODY, KEY_HEADER, SUBMITTED, WAIT_HEADER, problems, shows
from app.api.outlook import outlook, outlook_at_submission
from app.api.paging import QUERY, cursor_after, page_answer, parse_page
from app.api.preparing import LONG_BYTES
from app.api.runtime import Runtime, runtime_of
from app.api.submission import submit
from app.errors import NotFound
from app.ids import job_name, parse_job_name
from app.jobs import cancel as cancelling
from app.jobs.outlook import Outlook
from app.jobs.read import JobView, get_job, list_jobs
from app.jobs.request import JobRequest
from app.jobs.states import END_STATUSES
from app.jobs.submit import Caller
from app.redis import RedisError

PROGRESS_TIMEOUT_S = 0.2  # how long a read waits for Redis to say how far a running job is
SPREAD_TIMEOUT_S = 1.0

router = APIRouter(prefix="/v1", tags=["jobs"])

JobId = Annotated[str, Path(alias="id", description="`job_` and 32 hex digits.")]


@router.post(
    "/jobs",
    operation_id="submitJob",
    summary="Submit a job",
    status_code=202,
    responses=shows(202, "The job is promised.", JobObject, SUBMITTED)
    | shows(200, "It ended within `Prefer: wait`.", JobObject, SUBMITTED)
    | problems(400, 401, 403, 404, 413, 415, 422, 429, 503),
    openapi_extra={"requestBody": JOB_BODY, "parameters": [KEY_HEADER, WAIT_HEADER]},
)
async def submit_job(request: Request, caller: Writer) -> Response:
    """Take a job in. Once this is answered with 202, the job ends in exactly one way, whatever crashes."""
    runtime = runtime_of(request)
    key = idempotency_key(request.headers)
    wait_s = preferred_wait_s(request.headers, most=runtime.settings.max_wait_s)
    body = await read_body(request, most=runtime.settings.max_body_bytes)
    wanted = await _parse(runtime, body)
    submitted = await submit(runtime, Submission(caller, wanted, len(body), key, body))
    job = submitted.job
    headers = {"Location": f"/v1/jobs/{job_name(job.id)}"} | submitted.headers
    if submitted.replayed:
        headers["Idempotency-Replayed"] = "true"
    when = outlook_at_submission(runtime, job)
    if when is not None:
        runtime.forecasts.remember(job.id, when)
    if wait_s is not None:
        job, applied = await _wait_for_end(request, caller, job.id, wait_s)
        headers |= applied
    shown = job_object(job, when=when if job.status == "queued" else None)
    return answer(shown, 200 if wait_s is not None and has_ended(job) else 202, headers)


@router.get(
    "/jobs/{id}",
    operation_id="getJob",
    summary="Read a job",
    responses=shows(200, "The job as it is now.", JobObject, APPLIED) | problems(401, 403, 404, 503),
    openapi_extra={"parameters": [WAIT_HEADER]},
)
async def read_job(request: Request, name: JobId, caller: Reader) -> Response:
    """The job with its result, if it has one."""
    runtime = runtime_of(request)
    wait_s = preferred_wait_s(request.headers, most=runtime.settings.max_wait_s)
    job_id = id_of(name)
    headers: dict[str, str] = {}
    if wait_s is None:
        job = await _job(runtime, caller, job_id)
    else:
        job, headers = await _wait_for_end(request, caller, job_id, wait_s)
    ahead = await _outlook(runtime, caller, job)
    progress = await _progress(runtime, job)
    shown = job_object(job, progress=progress, when=ahead.forecast if ahead else None, why=ahead.why if ahead else None)
    return answer(shown, 200, headers)


@router.get(
    "/jobs",
    operation_id="listJobs",
    summary="List jobs",
    responses=shows(200, "A page of the tenant's jobs, newest first.", JobPage) | problems(401, 403, 422, 503),
    openapi_extra={"parameters": QUERY},
)
async def page_of_jobs(request: Request, caller: Reader) -> Response:
    """The tenant's jobs, newest first, without their texts. New jobs never shift a page that follows."""
    runtime = runtime_of(request)
    page = parse_page(request.query_params, default_limit=runtime.settings.page_size)
    async with runtime.transaction() as conn:
        found = await list_jobs(conn, caller.tenant_id, page.wanted, limit=page.limit + 1, older_than=page.older_than)
    return page_answer(found, page.limit, job_object, lambda job: cursor_after(job.id))


@router.post(
    "/jobs/{id}/cancel",
    operation_id="cancelJob",
    summary="Cancel a job",
    responses=shows(200, "It is cancelled.", JobObject)
    | shows(202, "It runs; its worker was asked to stop it.", JobObject)
    | problems(401, 403, 404, 409, 503),
)
async def cancel_job(request: Request, name: JobId, caller: Writer) -> Response:
    """Stop a job: at once where it waits, within a second where it runs. Asking again changes nothing."""
    runtime = runtime_of(request)
    job_id = id_of(name)
    async with runtime.transaction() as conn:
        cancelled = await cancelling.cancel(conn, caller.tenant_id, job_id)
        job = await get_job(conn, caller.tenant_id, job_id)
    assert job is not None, "its row is locked by this transaction"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SPREAD_TIMEOUT_S):
            await cancelling.spread_cancel(runtime.queue(cancelled.pool), cancelled)
    return answer(job_object(job), 200 if cancelled.ended else 202)


async def _parse(runtime: Runtime, body: bytes) -> JobRequest:
    if len(body) < LONG_BYTES:
        return parse_job(body)
    return await runtime.lanes.run(len(body), parse_job, body)


def id_of(name: str) -> UUID:
    """The job behind a name in a path.

    Raises:
        NotFound: it can't be one.
    """
    job_id = parse_job_name(name)
    if job_id is None:
        raise NotFound(f"there is no job {name[:64]!r}: ids look like job_ and 32 hex digits")
    return job_id


async def _job(runtime: Runtime, caller: Caller, job_id: UUID) -> JobView:
    async with runtime.transaction() as conn:
        job = await get_job(conn, caller.tenant_id, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_name(job_id)}")
    return job


async def _wait_for_end(request: Request, caller: Caller, job_id: UUID, wait_s: int) -> tuple[JobView, dict[str, str]]:
    """The job when it has ended, or as it is after `wait_s`, and the header that says whether waiting was possible."""
    runtime = runtime_of(request)
    async with runtime.watch.seat(job_id) as seat:
        # After taking the seat: an end between this look and the wait is heard of.
        job = await _job(runtime, caller, job_id)
        if seat is None:
            return job, {}
        until = runtime.clock.monotonic() + wait_s
        while wait_s and not has_ended(job):
            is_woken = await seat.wait(until - runtime.clock.monotonic(), request)
            job = await _job(runtime, caller, job_id)
            # Woken, and it hasn't ended: by word of the end of an earlier life. An operator has sent the job back since.
            if not is_woken or runtime.watch.is_closed:
                break
    return job, {"Preference-Applied": f"wait={wait_s}"}


async def _outlook(runtime: Runtime, caller: Caller, job: JobView) -> Outlook | None:
    """Of a job that still waits when it is looked at a second time."""
    runtime.forecasts.seen(job, runtime.metrics)
    if job.status != "queued":
        return None
    found = await outlook(runtime, caller.tenant_id, job.id)
    if found is None or found.forecast is None:
        return None
    runtime.forecasts.remember(job.id, found.forecast)
    return found


async def _progress(runtime: Runtime, job: JobView) -> int | None:
    if job.status != "running":
        return None
    try:
        async with asyncio.timeout(PROGRESS_TIMEOUT_S):
            last = await runtime.events.last(job.id)
    except (RedisError, TimeoutError):
        return None
    # A running job's stream that ends with an end tells of an earlier life.
    return last.seq if last and last.event.kind not in END_STATUSES else None
