"""How are batches made, read, changed and cancelled over HTTP? /v1/batches, as OpenAI's, and a little more."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse

from app.api.authentication import Reader, Writer
from app.api.batch_documents import (
    BatchChangeRequest,
    BatchObject,
    BatchPage,
    BatchRequest,
    batch_object,
    list_object,
)
from app.api.body import parse_body, read_body
from app.api.documents import answer
from app.api.files import LINES, page_of, page_query, streamed
from app.api.headers import idempotency_key
from app.api.openai.errors import BothRoute
from app.api.openapi import BATCH_KEY_HEADER, REPLAYED, body_of, problems, shows
from app.api.runtime import runtime_of
from app.batches import store
from app.batches.store import Batch, BatchChange, BatchWanted, batch_id_of
from app.files.store import file_id_of
from app.jobs.submit import Caller

MAX_PAGE = 100
MAX_BODY_BYTES = 64 * 2**10
_QUERY = ("limit", "after")

router = APIRouter(prefix="/v1", tags=["batches"], route_class=BothRoute)

BatchId = Annotated[str, Path(alias="id", description="`batch_` and 32 hex digits.")]


@router.post(
    "/batches",
    operation_id="createBatch",
    summary="Make a batch of an uploaded file",
    responses=shows(200, "It is made, and will be validated.", BatchObject, REPLAYED)
    | problems(400, 401, 403, 404, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(BatchRequest), "parameters": [BATCH_KEY_HEADER]},
)
async def create_batch(request: Request, caller: Writer) -> Response:
    """Make a batch. It is validated whole; then its lines run, the order being ours."""
    runtime = runtime_of(request)
    key = idempotency_key(request.headers)
    wanted = parse_body(await read_body(request, most=MAX_BODY_BYTES), BatchRequest)
    row = BatchWanted(
        file_id_of(wanted.input_file_id), wanted.endpoint, wanted.completion_window, wanted.tier, wanted.metadata
    )
    async with runtime.transaction() as conn:
        made = await store.create_batch(conn, caller, row, most_s=runtime.settings.max_batch_window_s, key=key)
    return _shown(made.batch, {"Idempotency-Replayed": "true"} if made.replayed else None)


@router.get(
    "/batches",
    operation_id="listBatches",
    summary="List batches",
    responses=shows(200, "A page of the tenant's batches, newest first.", BatchPage)
    | problems(401, 403, 404, 422, 503),
    openapi_extra={"parameters": page_query(MAX_PAGE, _QUERY)},
)
async def page_of_batches(request: Request, caller: Reader) -> Response:
    """The tenant's batches, newest first."""
    given, limit = page_of(request.query_params, _QUERY, most=MAX_PAGE, default=20)
    after = batch_id_of(given["after"]) if "after" in given else None
    async with runtime_of(request).transaction() as conn:
        found = await store.list_batches(conn, caller.tenant_id, limit=limit + 1, after=after)
    now = datetime.now(UTC)
    return answer(list_object([batch_object(each, now) for each in found[:limit]], has_more=len(found) > limit))


@router.get(
    "/batches/{id}",
    operation_id="getBatch",
    summary="Read a batch",
    responses=shows(200, "The batch as it is now.", BatchObject) | problems(401, 403, 404, 503),
)
async def read_batch(request: Request, name: BatchId, caller: Reader) -> Response:
    """The batch with its counts."""
    return _shown(await _batch(request, caller, batch_id_of(name)))


@router.post(
    "/batches/{id}",
    operation_id="changeBatch",
    summary="Change a batch's tier, deadline or metadata",
    responses=shows(200, "It is changed.", BatchObject) | problems(400, 401, 403, 404, 409, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(BatchChangeRequest)},
)
async def change_batch(request: Request, name: BatchId, caller: Writer) -> Response:
    """Ours: let a batch run in another tier, or until another time."""
    runtime = runtime_of(request)
    wanted = parse_body(await read_body(request, most=MAX_BODY_BYTES), BatchChangeRequest)
    change = BatchChange(wanted.tier, wanted.completion_window, wanted.deadline_s, wanted.metadata)
    async with runtime.transaction() as conn:
        batch = await store.change_batch(
            conn, caller, batch_id_of(name), change, most_s=runtime.settings.max_batch_window_s
        )
    return _shown(batch)


@router.post(
    "/batches/{id}/cancel",
    operation_id="cancelBatch",
    summary="Cancel a batch",
    responses=shows(200, "It will end.", BatchObject) | problems(401, 403, 404, 409, 503),
)
async def cancel_batch(request: Request, name: BatchId, caller: Writer) -> Response:
    """Stop a batch: what waits doesn't run any more, what is done can be read."""
    async with runtime_of(request).transaction() as conn:
        return _shown(await store.cancel_batch(conn, caller.tenant_id, batch_id_of(name)))


@router.get(
    "/batches/{id}/output",
    operation_id="getBatchOutput",
    summary="Read the answers that are there now",
    responses=LINES | problems(401, 403, 404, 503),
    response_class=StreamingResponse,
)
async def read_output(request: Request, name: BatchId, caller: Reader) -> Response:
    """Ours: the lines of the output file as far as it is written, in the middle of the batch, too."""
    batch = await _batch(request, caller, batch_id_of(name))
    return streamed(runtime_of(request), batch.output_file_id)


@router.get(
    "/batches/{id}/errors",
    operation_id="getBatchErrors",
    summary="Read the errors that are there now",
    responses=LINES | problems(401, 403, 404, 503),
    response_class=StreamingResponse,
)
async def read_errors(request: Request, name: BatchId, caller: Reader) -> Response:
    """Ours: the lines of the error file as far as it is written."""
    batch = await _batch(request, caller, batch_id_of(name))
    return streamed(runtime_of(request), batch.error_file_id)


async def _batch(request: Request, caller: Caller, batch_id: UUID) -> Batch:
    async with runtime_of(request).transaction() as conn:
        return await store.get_batch(conn, caller.tenant_id, batch_id)


def _shown(batch: Batch, headers: dict[str, str] | None = None) -> Response:
    return answer(batch_object(batch, datetime.now(UTC)), 200, headers)
