"""vLLM, through its offline `LLM`. Runs in vLLM's own interpreter, so: standard library, vLLM and nothing of ours but the task."""

import os
from typing import Any

from benchmarks.peers.task import Reporter, Task, check_counts, latencies, now, prompts_of, take_part
from benchmarks.workload import Prompt, max_num_seqs

_MAX_MODEL_LEN = 2048


def play(task: Task, report: Reporter) -> None:
    """Each case, `repeat` times by `LLM.generate`; its latencies in one more run that looks at every step's output."""
    if task.device == "cpu":
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"  # GiB
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{task.num_threads - 1}"
    import vllm

    llm = vllm.LLM(
        model=task.model,
        dtype="bfloat16",
        max_model_len=_MAX_MODEL_LEN,
        max_num_seqs=max_num_seqs(task.cases),
        skip_tokenizer_init=True,
    )
    _generate(llm, [Prompt([6] * 64, 128)], "warm")
    report.ready(vllm=vllm.__version__)
    for case in task.cases:
        prompts = prompts_of(case)
        found = _latencies(llm, case, prompts)
        for run in range(1, task.repeat + 1):
            report.start(case, run)
            start = now()
            counts = _generate(llm, prompts, f"run {run}")
            seconds = now() - start
            check_counts(case, prompts, counts)
            report.run(case, seconds, found)


def _inputs(prompts: list[Prompt], salt: str) -> list[dict[str, Any]]:
    """The salt keeps a run from finding the prefixes of the run before it."""
    return [{"prompt_token_ids": prompt.token_ids, "cache_salt": salt} for prompt in prompts]


def _sampling(prompt: Prompt, **more: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(max_tokens=prompt.num_tokens, temperature=0, ignore_eos=True, detokenize=False, **more)


def _generate(llm: Any, prompts: list[Prompt], salt: str) -> list[int]:
    outputs = llm.generate(_inputs(prompts, salt), [_sampling(prompt) for prompt in prompts], use_tqdm=False)
    return [len(output.outputs[0].token_ids) for output in outputs]


def _latencies(llm: Any, case: str, prompts: list[Prompt]) -> Any:
    """What `generate` does, with a look at the clock at each token."""
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    arrivals: dict[str, list[float]] = {}
    start = now()
    for i, (each, prompt) in enumerate(zip(_inputs(prompts, "latencies"), prompts, strict=True)):
        arrivals[f"latency-{i}"] = []
        engine.add_request(f"latency-{i}", each, _sampling(prompt, output_kind=RequestOutputKind.DELTA))
    while engine.has_unfinished_requests():
        outputs = engine.step()
        at = now()
        for output in outputs:
            name = output.request_id.rsplit("/", 1)[-1]
            arrivals[name] += [at] * len(output.outputs[0].token_ids)
    check_counts(case, prompts, [len(times) for times in arrivals.values()])
    return latencies(start, list(arrivals.values()))


if __name__ == "__main__":
    take_part(play)
