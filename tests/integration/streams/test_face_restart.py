"""Is each thing told once to a reader of the face when an attempt is lost with its tokens and another one begins anew?"""

import asyncio
import json
from typing import Any

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine

from app.errors import Unavailable
from app.queue.events import EventLog
from tests.support.api import HandWorker, Tenant, job_id_of, until
from tests.support.streams import Served, Writer, finished, until_followed


class Chunks:
    """What a stream has told so far, by choice."""

    def __init__(self) -> None:
        self.texts, self.reasons = ["", ""], [[], []]  # type: ignore[var-annotated]
        self.ids: list[list[int]] = [[], []]
        self.logprobs: list[list[float]] = [[], []]
        self.error: dict[str, Any] | None = None

    async def read(self, answer: httpx.Response, *, until: tuple[str, str] | None = None) -> None:
        """To the end, or until these texts stand there."""
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            self.error = chunk.get("error")
            for choice in chunk.get("choices", []):
                place = choice["index"]
                self.texts[place] += choice["text"]
                self.ids[place] += choice["token_ids"]
                if choice["logprobs"]:
                    self.logprobs[place] += choice["logprobs"]["token_logprobs"]
                if choice["finish_reason"]:
                    self.reasons[place].append(choice["finish_reason"])
            if until == tuple(self.texts):
                return


BODY: dict[str, Any] = {
    "prompt": "Once", "max_tokens": 64, "n": 2, "stream": True, "return_token_ids": True, "logprobs": 1,
}  # fmt: skip


async def test_tokens_reasons_and_logprobs_are_told_once(
    served: Served, client: httpx.AsyncClient, worker: HandWorker, log: EventLog, engine: AsyncEngine
) -> None:
    told = Chunks()
    async with asyncio.timeout(30), client.stream("POST", "/v1/completions", json=BODY) as answer:
        await until_followed(served)
        (job,) = (await client.get("/v1/jobs")).json()["data"]
        old = Writer(log, job_id_of(job), n=2, with_logprobs=True)
        await worker.start(job)
        await old.start()
        await old.write("Once", "Twice", reasons={1: "stop"})
        reading = asyncio.create_task(told.read(answer))
        while told.texts != ["Once", "Twice"]:
            assert not reading.done()
            await asyncio.sleep(0.005)
        new = Writer(log, old.job_id, n=2, attempt=2, run=2, with_logprobs=True)
        await new.start()
        await new.write("On", "Tw")
        await new.write("ce up", "ice", reasons={1: "stop"})  # reaches over what was told
        await new.end("on", "", reasons={0: "length"})
        await finished(engine, new)
        await reading
    assert told.error is None
    assert told.texts == ["Once upon", "Twice"]
    assert told.ids == [[ord(letter) for letter in text] for text in told.texts]
    assert told.logprobs == [[-place for place in range(1, len(text) + 1)] for text in told.texts]
    assert told.reasons == [["length"], ["stop"]]


async def test_a_stream_is_opened_when_postgres_answers_again(
    served: Served, client: httpx.AsyncClient, worker: HandWorker, log: EventLog, monkeypatch: Any
) -> None:
    opened, open_reader = [], served.hub.open

    async def away_at_first(*args: Any) -> Any:
        opened.append(args)
        if len(opened) == 1:
            raise Unavailable("Postgres doesn't answer now; try again")
        return await open_reader(*args)

    monkeypatch.setattr(served.hub, "open", away_at_first)
    told = Chunks()
    async with asyncio.timeout(30), client.stream("POST", "/v1/completions", json=BODY) as answer:
        await until_followed(served)
        (job,) = (await client.get("/v1/jobs")).json()["data"]
        writer = Writer(log, job_id_of(job), n=2)
        writer.deltas("Once", "Twice", reasons={0: "stop", 1: "stop"})
        await worker.finish(job, **writer.result())
        await told.read(answer)
    assert told.error is None
    assert told.texts == ["Once", "Twice"]
    assert len(opened) == 2


async def test_who_leaves_takes_the_jobs_of_all_his_prompts_with_him(
    served: Served, client: httpx.AsyncClient, tenant: Tenant
) -> None:
    for is_stream in (False, True):
        body = {"prompt": ["Once", "Twice"], "stream": is_stream}
        async with served.client(tenant) as other:
            call = asyncio.create_task(other.post("/v1/completions", json=body))
            await until(lambda: served.runtime.watch.num_seated + served.hub.num_topics == (2 if is_stream else 1))  # noqa: B023
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        async with asyncio.timeout(20):
            while {job["status"] for job in (await client.get("/v1/jobs")).json()["data"]} != {"cancelled"}:
                await asyncio.sleep(0.02)
    assert len((await client.get("/v1/jobs")).json()["data"]) == 4
