"""What share of the engine's speed is left when the whole stack is around it? The same requests to both, by turns, in one run."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.control.client import Client
from benchmarks.control.stack import MODEL, ControlStack, now
from benchmarks.peers.penstock import engine_config, generate, requests_of
from benchmarks.peers.task import Task, prompts_of
from workers.engine.process import EngineProcess

CASE = "mixed64"
_LOOK_S = 0.25  # a look takes about a millisecond from the engine; what it comes late counts against us


async def bare(folder: Path, runs: int) -> list[float]:
    """Tokens a second of the engine in a process of its own, over the socket that a worker uses, with nothing else around it."""
    task = Task(str(folder), [CASE])
    engine = await EngineProcess.start(engine_config(task))
    try:
        prompts = prompts_of(CASE)
        await generate(engine, requests_of(prompts[:2], 0))
        speeds = []
        for run in range(1, runs + 1):
            start = now()
            made = await generate(engine, requests_of(prompts, run))
            speeds.append(sum(len(each) for each in made.arrivals) / (now() - start))
        return speeds
    finally:
        await engine.stop()


async def through_the_stack(stack: ControlStack, client: Client, runs: int) -> list[float]:
    """Tokens a second from the bulk submission of all requests to the moment when all results can be read."""
    prompts = prompts_of(CASE)
    await _submit(client, 0, limit=2)
    await stack.until_all_ended()
    speeds = []
    for run in range(1, runs + 1):
        start = now()
        names = await _submit(client, run)
        await stack.until_all_ended(every_s=_LOOK_S)
        took_s = now() - start
        jobs = await asyncio.gather(*(client.get(f"/v1/jobs/{name}") for name in names))
        counts = [job["usage"]["completion_tokens"] for job in jobs]
        assert counts == [each.num_tokens for each in prompts], "each must have got exactly its tokens"
        speeds.append(sum(counts) / took_s)
    return speeds


def settings_of(folder: Path) -> dict[str, str]:
    """A worker's, so that its engine is the bare one's equal."""
    config = engine_config(Task(str(folder), [CASE]))
    return {
        "PENSTOCK_MODEL": str(folder),
        "PENSTOCK_KV_CACHE_MIB": str(config.kv_cache_bytes >> 20),
        "PENSTOCK_MAX_NUM_SEQS": str(config.max_num_seqs),
        "PENSTOCK_MODEL_NAME": MODEL,
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
    }


async def _submit(client: Client, run: int, limit: int | None = None) -> list[str]:
    jobs: list[dict[str, Any]] = [
        # What differs only in this finds no prefix of the run before.
        {"model": MODEL, "prompt": [run + 3, *each.token_ids[1:]], "max_tokens": each.num_tokens, "temperature": 0, "ignore_eos": True}
        for each in prompts_of(CASE)[:limit]
    ]  # fmt: skip
    answer = await client.post("/v1/jobs/bulk", json.dumps({"jobs": jobs}).encode())
    names: list[str] = json.loads(answer)["job_ids"]
    return names
