"""Our engine, in the process and over the socket that a worker uses."""

import asyncio
import zlib
from dataclasses import dataclass
from typing import Any

import msgspec

from benchmarks.peers.task import Reporter, Task, check_counts, latencies, now, prompts_of, take_part
from benchmarks.workload import JSON_SCHEMA, VARIANTS, Prompt, max_num_seqs
from workers.engine.config import EngineConfig
from workers.engine.process import EngineProcess
from workers.engine.protocol import EngineStats, Grammar, Request, SamplingParams


def engine_config(task: Task) -> EngineConfig:
    """The settings: defaults, but the limits that every engine is given."""
    # On a GPU the pool takes what is free, as it would for a user.
    pool_bytes = 2 << 30 if task.device == "cpu" else 0
    limits: dict[str, Any] = {
        "kv_cache_bytes": pool_bytes,
        "max_model_len": 0,
        "max_num_seqs": max_num_seqs(task.cases),
    }
    if "copying" in task.cases:
        limits["speculative_tokens"] = 8
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


def variants_of(case: str, requests: list[Request], *, speculate: bool = False) -> dict[str, list[Request]]:
    """By the name under which its runs are told: the case as it is, and with what it is about.

    `speculate`: whether all requests may, where the engine does. Else only those do that are about it.
    """
    requests = [_with(each, speculate=speculate) for each in requests]
    if case not in VARIANTS:
        return {case: requests}
    name = f"{case}/{VARIANTS[case]}"
    # A salt of its own, or it would find the prefixes of the run before.
    others = [msgspec.structs.replace(each, cache_salt=f"{each.cache_salt}, {VARIANTS[case]}") for each in requests]
    if case == "copying":
        return {
            case: [_with(each, speculate=False) for each in requests],
            name: [_with(each, speculate=True) for each in others],
        }
    return {case: requests, name: [_with(each, grammar=Grammar("json_schema", JSON_SCHEMA)) for each in others]}


def _with(request: Request, **sampling: Any) -> Request:
    return msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, **sampling))


def play(task: Task, report: Reporter) -> None:
    """Each case, `repeat` times."""
    asyncio.run(_play(task, report))


async def _play(task: Task, report: Reporter) -> None:
    engine = await EngineProcess.start(engine_config(task))
    try:
        await generate(engine, requests_of([Prompt([6] * 8, 4)], 0))
        report.ready(architecture=engine.info.architecture, dtype=engine.info.dtype)
        speculate = "speculative_tokens" in task.settings
        for case in task.cases:
            prompts = prompts_of(case)
            if case in VARIANTS:  # what is compiled once isn't counted
                for requests in variants_of(case, requests_of(prompts[:1], 0), speculate=speculate).values():
                    await generate(engine, requests)
            for run in range(1, task.repeat + 1):
                for name, requests in variants_of(case, requests_of(prompts, run), speculate=speculate).items():
                    report.start(name, run)
                    start = now()
                    made = await generate(engine, requests)
                    seconds = now() - start
                    check_counts(name, prompts, [len(times) for times in made.arrivals])
                    report.run(name, seconds, latencies(start, made.arrivals))
                    if case in VARIANTS:
                        report.figures(name, made.figures())
    finally:
        await engine.stop()


@dataclass
class Made:
    """What came of a run."""

    arrivals: list[list[float]]  # of each request, when each token came in
    token_ids: list[list[int]]
    before: EngineStats
    after: EngineStats

    def figures(self) -> dict[str, float]:
        """Which tokens came out, as a number that can be compared, and how the guesses went."""
        guessed = self.after.guessed_tokens - self.before.guessed_tokens
        right = self.after.accepted_tokens - self.before.accepted_tokens
        found: dict[str, float] = {"output_crc": zlib.crc32(repr(self.token_ids).encode())}
        return found | ({"acceptance": right / guessed} if guessed else {})


async def generate(engine: EngineProcess, requests: list[Request]) -> Made:
    """Run requests to their ends. Raises RuntimeError if the engine refuses one."""
    arrivals: dict[str, list[float]] = {request.id: [] for request in requests}
    token_ids: dict[str, list[int]] = {request.id: [] for request in requests}
    before: EngineStats | None = None
    stats = EngineStats()
    num_open = len(requests)
    for request in requests:
        await engine.add(request)
    async for output in engine:
        if output.failed:
            raise RuntimeError(f"the engine refused a request: {output.failed[0].message}")
        at = now()
        before, stats = before or output.stats, output.stats
        for delta in output.deltas:
            arrivals[delta.request_id] += [at] * len(delta.token_ids)
            token_ids[delta.request_id] += delta.token_ids
            num_open -= delta.finish_reason is not None
        if not num_open:
            break
    return Made(list(arrivals.values()), list(token_ids.values()), before or stats, stats)


if __name__ == "__main__":
    take_part(play)
