"""Our engine, in the process and over the socket that a worker uses."""

import asyncio
from typing import Any

from benchmarks.peers.task import Reporter, Task, check_counts, latencies, now, prompts_of, take_part
from benchmarks.workload import Prompt
from workers.engine.config import EngineConfig
from workers.engine.process import EngineProcess
from workers.engine.protocol import Request, SamplingParams


def engine_config(task: Task) -> EngineConfig:
    """The settings: defaults, but the limits that every engine is given."""
    # On a GPU the pool takes what is free, as it would for a user.
    pool_bytes = 2 << 30 if task.device == "cpu" else 0
    limits: dict[str, Any] = {"kv_cache_bytes": pool_bytes, "max_model_len": 0, "max_num_seqs": 64}
    settings = limits | {"device": task.device, "threads": task.threads} | task.settings
    return EngineConfig(model=task.model, **settings).validated()


def requests_of(prompts: list[Prompt], run: int) -> list[Request]:
    """The salt keeps a run from finding the prefixes of the run before it."""
    return [
        Request(
            id=f"{run}-{i}",
            prompt_ids=prompt.token_ids,
            sampling=SamplingParams(max_tokens=prompt.num_tokens, temperature=0.0, ignore_eos=True),
            cache_salt=f"run {run}",
        )
        for i, prompt in enumerate(prompts)
    ]


def play(task: Task, report: Reporter) -> None:
    """Each case, `repeat` times."""
    asyncio.run(_play(task, report))


async def _play(task: Task, report: Reporter) -> None:
    engine = await EngineProcess.start(engine_config(task))
    try:
        await generate(engine, requests_of([Prompt([6] * 8, 4)], 0))
        report.ready(architecture=engine.info.architecture, dtype=engine.info.dtype)
        for case in task.cases:
            prompts = prompts_of(case)
            for run in range(1, task.repeat + 1):
                requests = requests_of(prompts, run)
                report.start(case, run)
                start = now()
                arrivals = await generate(engine, requests)
                seconds = now() - start
                check_counts(case, prompts, [len(times) for times in arrivals])
                report.run(case, seconds, latencies(start, arrivals))
    finally:
        await engine.stop()


async def generate(engine: EngineProcess, requests: list[Request]) -> list[list[float]]:
    """When each token of each request came in. Raises RuntimeError if the engine refuses one."""
    arrivals: dict[str, list[float]] = {request.id: [] for request in requests}
    num_open = len(requests)
    for request in requests:
        await engine.add(request)
    async for output in engine:
        if output.failed:
            raise RuntimeError(f"the engine refused a request: {output.failed[0].message}")
        at = now()
        for delta in output.deltas:
            arrivals[delta.request_id] += [at] * len(delta.token_ids)
            num_open -= delta.finish_reason is not None
        if not num_open:
            break
    return list(arrivals.values())


if __name__ == "__main__":
    take_part(play)
