"""What is new of a call's job? Texts of its choices as they come, each character once, and the job as it ended."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from app.api.errands import is_passing
from app.api.openai.once import Once
from app.api.openai.running import Call, job_of, patiently
from app.errors import Unavailable
from app.jobs.read import JobView
from app.jobs.states import END_STATUSES
from app.jobs.token_text import TokenText
from app.streams import Event, Finished, Tokens, follow


class Delta(msgspec.Struct, frozen=True):
    """What is new of one choice. `reason`: it has ended."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[str, Any]] | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Begun:
    """A worker has started the job."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The job has ended, and is this now."""

    job: JobView


async def deltas_of(call: Call, *, shows_tokens: bool = False) -> AsyncGenerator[Begun | Delta | Ended]:
    """All that becomes of the job, from its beginning; `shows_tokens`: the reader will see their ids or log-probabilities.

    Raises:
        OtherText: its attempt was lost with its tokens, and another one gave another text.
        PenstockError: as `app.streams.follow`.
    """
    tokens: TokenText | None = None
    last: Event | None = None
    once = [Once(minds_tokens=shows_tokens) for _ in range(call.job.n)]
    async with contextlib.aclosing(_events_of(call)) as events:
        async for event in events:
            last = event
            if event.kind == "started":
                yield Begun()
            elif event.kind == "restarted":
                for each in once:
                    each.again()
            elif isinstance(event, Tokens):
                if event.logprobs and tokens is None:
                    tokens = await _tokens_of(call)
                if (delta := _delta(event, once[event.index], tokens)) is not None:
                    yield delta
    job = await patiently(call.runtime, lambda: job_of(call.runtime, call.caller, call.job.id))
    if job.status not in END_STATUSES:
        # A dead job that an operator has requeued since: the life that was asked for is over.
        assert isinstance(last, Finished)
        assert last.status in END_STATUSES, "its stream ends after its end was committed"
        job = replace(job, status=last.status, error=last.error)
    yield Ended(job)


async def _events_of(call: Call) -> AsyncGenerator[Event]:
    """The job's events, waited for while Postgres, which knows whose job it is, doesn't answer."""
    last_id = 0
    while True:
        try:
            async with contextlib.aclosing(follow(call.runtime, call.job.id, call.caller.tenant_id, last_id)) as events:
                async for event in events:
                    yield event
                    last_id = event.id
            return
        except Unavailable as error:
            if not is_passing(error):
                raise
        await asyncio.sleep(call.runtime.watch.poll_every_s)


async def _tokens_of(call: Call) -> TokenText:
    async def found() -> TokenText:
        catalog = call.runtime.catalog
        return TokenText((await catalog.encoder(await catalog.find(call.job.model))).tokenizer)

    return await patiently(call.runtime, found)


def _delta(event: Tokens, once: Once, tokens: TokenText | None) -> Delta | None:
    """What is new of the event's choice; None where nothing is."""
    news = once.take(event.text, event.token_ids, event.finish_reason)
    token_ids, logprobs = event.token_ids[news.known_tokens :], None
    if event.logprobs and tokens is not None:
        pairs = zip(token_ids, event.logprobs[news.known_tokens :], strict=False)
        logprobs = [tokens.entry(token_id, logprob) for token_id, logprob in pairs]
    if not (news.text or token_ids or news.reason):
        return None
    return Delta(event.index, news.text, token_ids, logprobs, news.reason)
