"""What is new of a call's job? Texts of its choices as they come, each character once, and the job as it ended."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from app.api.errands import is_passing
from app.api.openai.running import Call, job_of, patiently
from app.errors import Unavailable
from app.jobs.read import JobView
from app.jobs.states import END_STATUSES
from app.jobs.token_text import TokenText
from app.streams import Event, follow


@dataclass(frozen=True, slots=True)
class Delta:
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


class OtherText(Unavailable):
    """A job began anew and writes another text than its reader has seen: this stream can't go on."""

    code = "stream_restarted"


async def deltas_of(call: Call) -> AsyncIterator[Begun | Delta | Ended]:
    """All that becomes of the job, from its beginning.

    Raises:
        OtherText: its attempt was lost with its tokens, and another one gave another text.
        PenstockError: as `app.streams.follow`.
    """
    tokens: TokenText | None = None
    once = [_Once() for _ in range(call.job.n)]
    async with contextlib.aclosing(_events_of(call)) as events:
        async for event in events:
            if event.kind == "started":
                yield Begun()
            elif event.kind == "restarted":
                for each in once:
                    each.again()
            elif event.kind == "tokens":
                if event.logprobs and tokens is None:
                    tokens = await _tokens_of(call)
                yield _delta(event, once[event.index], tokens)
    job = await patiently(call.runtime, lambda: job_of(call.runtime, call.caller, call.job.id))
    assert job.status in END_STATUSES, "its stream ends after its end was committed"
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


def _delta(event: Event, once: "_Once", tokens: TokenText | None) -> Delta:
    logprobs = None
    if event.logprobs and tokens is not None:
        pairs = zip(event.token_ids, event.logprobs, strict=False)
        logprobs = [tokens.entry(token_id, logprob) for token_id, logprob in pairs]
    is_new = once.is_new
    return Delta(
        event.index, once.new_of(event.text), event.token_ids, logprobs if is_new else None, event.finish_reason
    )


class _Once:
    """A choice's text as its reader has it. After a restart the same text comes again and is passed over."""

    def __init__(self) -> None:
        self._seen = ""
        self._at = 0

    @property
    def is_new(self) -> bool:
        """Whether all that was seen has come again."""
        return self._at == len(self._seen)

    def again(self) -> None:
        """It begins anew."""
        self._at = 0

    def new_of(self, text: str) -> str:
        """What the reader hasn't seen of this. Raises OtherText."""
        known = self._seen[self._at : self._at + len(text)]
        if not text.startswith(known):
            raise OtherText("the job began anew with another text than was streamed; read its result, or ask again")
        self._at += len(text)
        self._seen += text[len(known) :]
        return text[len(known) :]
