"""POST /v1/completions."""

import contextlib
from collections.abc import AsyncGenerator, Sequence

from fastapi import APIRouter, Request, Response

from app.api.authentication import Writer
from app.api.documents import answer
from app.api.openai.completion_answer import CompletionChunks, completion
from app.api.openai.deltas import Delta, Ended, deltas_of
from app.api.openai.errors import FaceRoute
from app.api.openai.many import all_succeeded, begin_many, side_by_side
from app.api.openai.running import Call, begin, form_of, in_lane, read_request
from app.api.openai.streaming import chunks, stream, succeeded
from app.api.runtime import runtime_of
from app.jobs.read import JobView
from app.openai.completion_request import CompletionRequest

router = APIRouter(prefix="/v1", tags=["openai"], route_class=FaceRoute, include_in_schema=False)


@router.post("/completions")
async def create_completion(request: Request, caller: Writer) -> Response:
    """Continue a prompt, or several, each by a job of its own."""
    asked, body = await read_request(request, CompletionRequest)
    wanted = await in_lane(runtime_of(request), body, asked.jobs)
    form = form_of(stream=asked.stream)
    if len(wanted) == 1:
        calls = [await begin(request, caller, wanted[0], body, form, is_kept=False)]
    else:
        calls = await begin_many(request, caller, wanted, body, form)
    if asked.stream:
        options = asked.stream_options
        made = CompletionChunks(
            [call.job for call in calls],
            include_usage=bool(options and options.include_usage),
            with_ids=bool(asked.return_token_ids),
        )
        shows_tokens = bool(asked.return_token_ids) or asked.logprobs is not None
        return stream(calls[0], _events(calls, made, shows_tokens=shows_tokens), others=calls[1:])
    jobs = await all_succeeded(request, calls)
    return answer(completion(jobs), 200, calls[0].headers)


async def _events(calls: Sequence[Call], made: CompletionChunks, *, shows_tokens: bool) -> AsyncGenerator[bytes]:
    ended: dict[int, JobView] = {}
    news = side_by_side([deltas_of(call, shows_tokens=shows_tokens) for call in calls])
    async with contextlib.aclosing(news) as parts:
        async for prompt, each in parts:
            if isinstance(each, Delta):
                yield chunks(made.push(prompt, each))
            elif isinstance(each, Ended):
                ended[prompt] = succeeded(each.job)
    yield chunks(made.usage([ended[prompt] for prompt in range(len(calls))]))
