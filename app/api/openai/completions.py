"""POST /v1/completions."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response

from app.api.authentication import Writer
from app.api.documents import answer
from app.api.openai.completion_answer import CompletionChunks, completion
from app.api.openai.completion_request import CompletionRequest
from app.api.openai.deltas import Delta, Ended, deltas_of
from app.api.openai.errors import FaceRoute
from app.api.openai.running import Call, begin, form_of, in_lane, read_request, until_succeeded
from app.api.openai.streaming import chunks, stream, succeeded
from app.api.runtime import runtime_of

router = APIRouter(prefix="/v1", tags=["openai"], route_class=FaceRoute, include_in_schema=False)


@router.post("/completions")
async def create_completion(request: Request, caller: Writer) -> Response:
    """Continue a prompt."""
    asked, body = await read_request(request, CompletionRequest)
    wanted = await in_lane(runtime_of(request), body, asked.job)
    call = await begin(request, caller, wanted, body, form_of(stream=asked.stream), is_kept=False)
    if asked.stream:
        options = asked.stream_options
        made = CompletionChunks(
            call.job, include_usage=bool(options and options.include_usage), with_ids=bool(asked.return_token_ids)
        )
        shows_tokens = bool(asked.return_token_ids) or asked.logprobs is not None
        return stream(call, _events(call, made, shows_tokens=shows_tokens))
    job = await until_succeeded(request, call)
    return answer(completion(job), 200, call.headers)


async def _events(call: Call, made: CompletionChunks, *, shows_tokens: bool) -> AsyncIterator[bytes]:
    async for each in deltas_of(call, shows_tokens=shows_tokens):
        if isinstance(each, Delta):
            yield chunks(made.push(each.index, each.text, each.logprobs, each.reason, each.token_ids))
        elif isinstance(each, Ended):
            yield chunks(made.usage(succeeded(each.job)))
