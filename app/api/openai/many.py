"""How does one call become several jobs? All of them or none, answered together; if one ends without a result, so does the call."""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import TypeVar

from fastapi import Request

from app.api.bulk_body import bulk_of
from app.api.bulk_submission import BulkSubmission, submit_bulk
from app.api.headers import idempotency_key
from app.api.openai.running import Call, Form, check_room, job_of, leave, patiently, until_succeeded
from app.api.runtime import runtime_of
from app.errors import PenstockError
from app.ids import job_name
from app.jobs.read import JobView
from app.jobs.request import JobRequest
from app.jobs.submit import Caller

_WAITING = 2  # news of each job that wait for their reader
T = TypeVar("T")


async def begin_many(request: Request, caller: Caller, wanted: list[JobRequest], body: bytes, form: Form) -> list[Call]:
    """Promise a job for each prompt.

    Raises:
        Unavailable: nobody could wait for them now.
        PenstockError: as `app.api.bulk_submission.submit_bulk`; fields are named as in completions.
    """
    runtime = runtime_of(request)
    check_room(runtime, form, len(wanted))
    key = idempotency_key(request.headers)
    try:
        submitted = await submit_bulk(runtime, BulkSubmission(caller, bulk_of(wanted, key), body))
    except PenstockError as error:
        raise _of_prompts(error) from error
    headers = {"x-request-id": job_name(submitted.job_ids[0]), "Cache-Control": "no-store"} | submitted.headers
    jobs = [await patiently(runtime, partial(job_of, runtime, caller, job_id)) for job_id in submitted.job_ids]
    return [Call(runtime, caller, job, headers, is_kept=key is not None) for job in jobs]


async def all_succeeded(request: Request, calls: Sequence[Call]) -> list[JobView]:
    """The jobs when all have succeeded. If one doesn't, or the caller leaves, all are cancelled.

    Raises:
        PenstockError: as `until_succeeded`.
    """
    try:
        return [await until_succeeded(request, call) for call in calls]
    except Exception:
        for call in calls if len(calls) > 1 else ():
            await leave(call)
        raise


async def side_by_side(streams: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[tuple[int, T]]:
    """What comes of each, with its place among them, as it comes. The first one's error ends all."""
    news: asyncio.Queue[tuple[int, T] | None] = asyncio.Queue(_WAITING * len(streams))

    async def pass_on(place: int, stream: AsyncGenerator[T]) -> None:
        async with contextlib.aclosing(stream) as items:
            async for item in items:
                await news.put((place, item))

    async def pass_all_on() -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for place, stream in enumerate(streams):
                    tasks.create_task(pass_on(place, stream))
        finally:
            if not is_left:
                await news.put(None)

    if len(streams) == 1:  # no way round for what most calls are
        async with contextlib.aclosing(streams[0]) as only:
            async for each in only:
                yield 0, each
        return
    is_left = False
    passing = asyncio.create_task(pass_all_on())
    try:
        while (item := await news.get()) is not None:
            yield item
        try:
            await passing
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
    finally:
        is_left = True  # nobody takes what is put in now
        passing.cancel()
        await asyncio.gather(passing, return_exceptions=True)


def _of_prompts(error: PenstockError) -> PenstockError:
    """The same of fields as the call's body has them: each job has a prompt of its own, and all else in common."""
    param = error.extra.get("param")
    if param is None:
        return error
    return type(error)(_named(error.detail), **(error.extra | {"param": _named(param)}))


def _named(text: str) -> str:
    """`jobs` itself is the list of prompts."""
    text = re.sub(r"jobs\[(\d+)\]\.prompt", r"prompt[\1]", text)
    return re.sub(r"^jobs(?=:|$)", "prompt", re.sub(r"jobs\[\d+\]\.", "", text))
