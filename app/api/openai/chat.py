"""POST /v1/chat/completions, and GET for those that were stored."""

from collections.abc import AsyncGenerator
from uuid import UUID

from fastapi import APIRouter, Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from app.api.authentication import Reader, Writer
from app.api.documents import answer
from app.api.openai import stored
from app.api.openai.chat_answer import ChatChunks, chat_completion
from app.api.openai.common_answer import CHAT, job_id_of
from app.api.openai.deltas import Delta, Ended, deltas_of
from app.api.openai.errors import FaceRoute, end_of
from app.api.openai.running import Call, begin, form_of, in_lane, read_request, until_succeeded
from app.api.openai.streaming import chunks, stream, succeeded
from app.api.runtime import runtime_of
from app.errors import NotFound
from app.openai.chat_request import ChatRequest

FACE = "chat"

router = APIRouter(prefix="/v1", tags=["openai"], route_class=FaceRoute, include_in_schema=False)


@router.post("/chat/completions")
async def create_chat_completion(request: Request, caller: Writer) -> Response:
    """Answer a conversation."""
    runtime = runtime_of(request)
    asked, body = await read_request(request, ChatRequest)
    calling = asked.calling()
    calling.check(runtime.settings)
    wanted = await in_lane(runtime, body, asked.job)

    async def kept(conn: AsyncConnection, job_id: UUID) -> None:
        await stored.keep(
            conn, caller.tenant_id, job_id, FACE, asked.model_dump(mode="json", exclude_none=True, by_alias=True)
        )

    async def replayed(conn: AsyncConnection, job_id: UUID) -> None:
        await stored.check_replay(conn, caller.tenant_id, job_id, FACE)

    call = await begin(
        request,
        caller,
        wanted,
        body,
        form_of(stream=asked.stream),
        is_kept=bool(asked.store),
        with_job=kept if asked.store else None,
        with_replay=replayed if asked.store else None,
    )
    if asked.stream:
        options = asked.stream_options
        made = ChatChunks(call.job, calling, include_usage=bool(options and options.include_usage))
        return stream(call, _events(call, made, shows_tokens=bool(asked.logprobs)))
    job = await until_succeeded(request, call)
    return answer(chat_completion(job, calling), 200, call.headers)


@router.get("/chat/completions/{id}")
async def read_chat_completion(request: Request, caller: Reader) -> Response:
    """A chat completion that was made with `store: true`."""
    name = request.path_params["id"]
    job_id = job_id_of(CHAT, name)
    async with runtime_of(request).transaction() as conn:
        found = None if job_id is None else await stored.find(conn, caller.tenant_id, job_id, FACE)
    if found is None:
        raise NotFound(f"there is no stored chat completion {name[:64]!r}")
    if found.job.status in {"queued", "running"}:
        raise NotFound(f"the chat completion {name} isn't complete yet: it is {found.job.status}")
    if found.job.status != "succeeded":
        raise end_of(found.job)
    asked = ChatRequest.model_validate(found.body)
    return answer(chat_completion(found.job, asked.calling()) | {"metadata": asked.metadata or {}})


async def _events(call: Call, made: ChatChunks, *, shows_tokens: bool) -> AsyncGenerator[bytes]:
    yield chunks(made.begin())
    async for each in deltas_of(call, shows_tokens=shows_tokens):
        if isinstance(each, Delta):
            chunk = made.push(each.index, each.text, each.logprobs, each.reason)
            if chunk:
                yield chunks(chunk)
        elif isinstance(each, Ended):
            yield chunks(made.usage(succeeded(each.job)))
