"""POST /v1/responses, and what can be done with those that were stored: read, streamed again, cancelled, deleted."""

from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.datastructures import QueryParams

from app.api.authentication import Reader, Writer
from app.api.batch_documents import list_object
from app.api.documents import answer
from app.api.files import page_of
from app.api.openai import stored
from app.api.openai.common_answer import RESPONSE, job_id_of
from app.api.openai.deltas import Begun, Delta, deltas_of
from app.api.openai.errors import FaceRoute
from app.api.openai.response_answer import output_of, response_object
from app.api.openai.response_query import ResponseQuery, parse_query
from app.api.openai.response_stream import ResponseEvents
from app.api.openai.running import Call, begin, cancel, form_of, in_lane, read_request, until_succeeded
from app.api.openai.sse import named_event
from app.api.openai.streaming import chunks, stream
from app.api.runtime import Runtime, runtime_of
from app.errors import InvalidRequest, NotFound
from app.jobs.submit import Caller
from app.openai.response_items import InputItem, turns_of
from app.openai.response_request import ResponseRequest

FACE = "responses"
_ITEMS, _MOST_ITEMS = 20, 100  # of a page, as OpenAI's

router = APIRouter(prefix="/v1", tags=["openai"], route_class=FaceRoute, include_in_schema=False)


@router.post("/responses")
async def create_response(request: Request, caller: Writer) -> Response:
    """Answer an input: now, in a stream, or in the background."""
    runtime = runtime_of(request)
    asked, body = await read_request(request, ResponseRequest)
    asked.calling().check(runtime.settings)
    before = await _turns_before(runtime, caller, asked.previous_response_id)
    wanted = await in_lane(runtime, body, asked.job, before)

    async def kept(conn: AsyncConnection, job_id: UUID) -> None:
        said = asked.model_dump(mode="json", exclude_none=True, by_alias=True)
        await stored.keep(conn, caller.tenant_id, job_id, FACE, said, is_background=bool(asked.background))

    async def replayed(conn: AsyncConnection, job_id: UUID) -> None:
        await stored.check_replay(conn, caller.tenant_id, job_id, FACE, is_background=bool(asked.background))

    form = form_of(stream=asked.stream, background=asked.background)
    call = await begin(
        request, caller, wanted, body, form, is_kept=asked.is_stored, with_job=kept if asked.is_stored else None,
        with_replay=replayed if asked.is_stored else None,
    )  # fmt: skip
    if asked.stream:
        return stream(call, _events(call, asked))
    if asked.background:
        return answer(response_object(call.job, asked), 200, call.headers)
    job = await until_succeeded(request, call)
    return answer(response_object(job, asked), 200, call.headers)


@router.get("/responses/{id}")
async def read_response(request: Request, caller: Reader) -> Response:
    """A response as it is now; with `?stream=true` its events, from any of them on."""
    query = parse_query(request.query_params)
    found, asked = await _stored(request, caller)
    if query.stream:
        call = Call(runtime_of(request), caller, found.job, {"Cache-Control": "no-store"}, is_kept=True)
        return stream(call, _events(call, asked, after=_after(query)))
    return answer(response_object(found.job, asked))


@router.get("/responses/{id}/input_items")
async def read_input_items(request: Request, caller: Reader) -> Response:
    """A page of the items of a response's own input, newest first unless `order` is `asc`."""
    # There is nothing that could be included; the package repeats the parameter for each thing.
    query = [pair for pair in request.query_params.multi_items() if pair[0] not in {"include", "include[]"}]
    given, limit = page_of(QueryParams(query), ("limit", "order", "after"), most=_MOST_ITEMS, default=_ITEMS)
    found, asked = await _stored(request, caller)
    items = _named(asked.items, found.job.id)
    if given.get("order") != "asc":
        items.reverse()
    first = 0
    if "after" in given:
        first = next((place for place, item in enumerate(items, 1) if item["id"] == given["after"]), 0)
        if not first:
            raise InvalidRequest("after: must be the id of one of the response's items", param="after")
    return answer(list_object(items[first : first + limit], has_more=len(items) > first + limit))


@router.post("/responses/{id}/cancel")
async def cancel_response(request: Request, caller: Writer) -> Response:
    """Stop a response that was made in the background. Cancelling it again, or after its end, changes nothing."""
    found, asked = await _stored(request, caller)
    if not asked.background:
        raise InvalidRequest("only a response with background: true can be cancelled; leave the others", param="id")
    job = await cancel(runtime_of(request), caller, found.job.id)
    status = "cancelled" if job.status == "running" else None  # its worker was asked, and will obey
    return answer(response_object(job, asked, status=status, output=[] if status else None))


@router.delete("/responses/{id}")
async def delete_response(request: Request, caller: Writer) -> Response:
    """Forget a response."""
    name = request.path_params["id"]
    job_id = _id_of(name)
    async with runtime_of(request).transaction() as conn:
        if not await stored.forget(conn, caller.tenant_id, job_id, FACE):
            raise _unknown(name)
    return answer({"id": name, "object": "response", "deleted": True})


def _named(items: list[dict[str, Any]], job_id: UUID) -> list[dict[str, Any]]:
    """The items with an id each: their own, unless another one before has it."""
    seen: set[str] = set()
    named = []
    for place, item in enumerate(items):
        own = item.get("id")
        name = own if own and own not in seen else f"item_{job_id.hex}_{place}"
        seen.add(name)
        named.append(item | {"id": name})
    return named


async def _events(call: Call, asked: ResponseRequest, *, after: int = -1) -> AsyncGenerator[bytes]:
    made = ResponseEvents(call.job, asked, after=after)
    yield chunks([*made.begin()], named_event)
    async for each in deltas_of(call, shows_tokens=asked.has_logprobs):
        if isinstance(each, Begun):
            fresh = made.start()
        elif isinstance(each, Delta):
            fresh = made.push(each.text, each.logprobs)
        else:
            fresh = made.end(each.job)
        if events := [*fresh]:
            yield chunks(events, named_event)


async def _stored(request: Request, caller: Caller) -> tuple[stored.StoredCall, ResponseRequest]:
    name = request.path_params["id"]
    async with runtime_of(request).transaction() as conn:
        found = await stored.find(conn, caller.tenant_id, _id_of(name), FACE)
    if found is None:
        raise _unknown(name)
    return found, ResponseRequest.model_validate(found.body)


async def _turns_before(runtime: Runtime, caller: Caller, name: str | None) -> list[dict[str, Any]]:
    """The conversation up to a previous response, without its instructions, which OpenAI doesn't carry on either."""
    if name is None:
        return []
    job_id = job_id_of(RESPONSE, name)
    async with runtime.transaction() as conn:
        found = None if job_id is None else await stored.find(conn, caller.tenant_id, job_id, FACE)
        turns = [] if found is None else await stored.turns_before(conn, caller.tenant_id, found.job.id)
    param = "previous_response_id"
    if found is None:
        raise InvalidRequest(f"{param}: there is no stored response {name[:64]!r}", param=param)
    if found.job.status != "succeeded":
        raise InvalidRequest(f"{param}: {name} has no whole output: its job is {found.job.status}", param=param)
    asked = ResponseRequest.model_validate(found.body)
    own = turns[1:] if asked.instructions is not None else turns
    return own + turns_of(_said(output_of(found.job, asked)))


def _said(output: list[dict[str, Any]]) -> list[InputItem]:
    """An output as the items of the next input, without a text that is empty."""
    kept = [item for item in output if item["type"] != "message" or item["content"][0]["text"]]
    return ResponseRequest.model_validate({"input": kept}).input if kept else []  # type: ignore[return-value]


def _after(query: ResponseQuery) -> int:
    return -1 if query.starting_after is None else query.starting_after


def _id_of(name: str) -> UUID:
    job_id = job_id_of(RESPONSE, name)
    if job_id is None:
        raise _unknown(name)
    return job_id


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no stored response {name[:64]!r}")
