"""How are many jobs submitted over HTTP in one call? POST /v1/jobs/bulk."""

from fastapi import APIRouter, Request, Response

from app.api.authentication import Writer
from app.api.body import read_body
from app.api.bulk_body import parse_bulk
from app.api.bulk_documents import BulkObject, BulkRequest
from app.api.bulk_submission import BulkSubmission, submit_bulk
from app.api.documents import answer
from app.api.headers import idempotency_key
from app.api.openapi import BULK, KEY_HEADER, body_of, problems, shows
from app.api.runtime import runtime_of
from app.ids import job_name

router = APIRouter(prefix="/v1", tags=["jobs"])


@router.post(
    "/jobs/bulk",
    operation_id="submitJobs",
    summary="Submit many jobs",
    status_code=202,
    responses=shows(202, "All of the jobs are promised.", BulkObject, BULK)
    | problems(400, 401, 403, 404, 413, 415, 422, 429, 503),
    openapi_extra={"requestBody": body_of(BulkRequest), "parameters": [KEY_HEADER]},
)
async def submit_jobs(request: Request, caller: Writer) -> Response:
    """Take up to 1,000 jobs in, all or none. Once this is answered with 202, each of them ends in exactly one way."""
    runtime = runtime_of(request)
    key = idempotency_key(request.headers)
    body = await read_body(request, most=runtime.settings.max_body_bytes)
    bulk = await runtime.lanes.run(len(body), parse_bulk, body, key)
    submitted = await submit_bulk(runtime, BulkSubmission(caller, bulk, body))
    headers = submitted.headers | ({"Idempotency-Replayed": "true"} if submitted.replayed else {})
    named = [job_name(each) for each in submitted.job_ids]
    return answer({"object": "job.bulk", "job_ids": named}, 202, headers)
