"""Hugging Face transformers: `generate` one by one (`naive`), in padded batches (`static8`), or its `continuous` batching."""

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from benchmarks.peers.task import Reporter, Task, check_counts, latencies, now, prompts_of, take_part
from benchmarks.workload import Prompt


def play(task: Task, report: Reporter) -> None:
    """Each case, `repeat` times."""
    torch.set_num_threads(task.num_threads)
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.bfloat16).eval().to(task.device)
    _static(model, [Prompt([6] * 8, 4)], 1)
    report.ready(transformers=transformers.__version__, torch=torch.__version__)
    for case in task.cases:
        prompts = prompts_of(case)
        for run in range(1, task.repeat + 1):
            if task.mode == "continuous":
                _continuous(model, case, run, report)
                continue
            size = 1 if task.mode == "naive" else int(task.mode.removeprefix("static"))
            report.start(case, run)
            start = now()
            arrivals = _static(model, prompts, size)
            report.run(case, now() - start, latencies(start, arrivals))


class _Clock(StoppingCriteria):  # type: ignore[misc]
    """Never stops anything; notes when each token was there, as a streamer would (which works for one row only)."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self.times.append(now())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _static(model: Any, prompts: list[Prompt], size: int) -> list[list[float]]:
    """Batches of `size` in order; when each token came. The longest request of a batch keeps the others waiting."""
    arrivals = []
    for i in range(0, len(prompts), size):
        batch = prompts[i : i + size]
        times = _generate(model, batch)
        arrivals += [times[: prompt.num_tokens] for prompt in batch]
    return arrivals


def _generate(model: Any, batch: list[Prompt]) -> list[float]:
    longest = max(len(prompt.token_ids) for prompt in batch)
    wanted = max(prompt.num_tokens for prompt in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(batch):
        ids[row, longest - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
        mask[row, longest - len(prompt.token_ids) :] = 1
    clock = _Clock()
    with torch.inference_mode():
        output = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=wanted,
            min_new_tokens=wanted,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
    if output.shape[1] != longest + wanted or len(clock.times) != wanted:
        raise RuntimeError(f"generate gave {output.shape[1] - longest} tokens instead of {wanted}")
    return clock.times


def _continuous(model: Any, case: str, run: int, report: Reporter) -> None:
    """A manager for each run, so that none finds another's prefixes; starting it isn't timed."""
    prompts = prompts_of(case)
    longest = max(prompt.num_tokens for prompt in prompts)
    config = GenerationConfig(max_new_tokens=longest, do_sample=False, eos_token_id=-1, pad_token_id=0)
    manager = model.init_continuous_batching(generation_config=config)
    manager.start()
    try:
        _collect(manager, [Prompt([6] * 8, 4)], "warm")
        report.start(case, run)
        start = now()
        outputs = _collect(manager, prompts, "timed")
        seconds = now() - start
    finally:
        manager.stop(block=True)
    check_counts(case, prompts, [len(output.generated_tokens) for output in outputs])
    report.run(case, seconds, latencies(start, [output.timestamps for output in outputs]))


def _collect(manager: Any, prompts: list[Prompt], name: str) -> list[Any]:
    for i, prompt in enumerate(prompts):
        manager.add_request(
            prompt.token_ids, request_id=f"{name}-{i}", max_new_tokens=prompt.num_tokens, record_timestamps=True
        )
    found: dict[str, Any] = {}
    while len(found) < len(prompts):
        output = manager.get_result(timeout=1)
        if output is None:
            if not manager.is_running():
                raise RuntimeError("continuous batching has stopped by itself")
        elif output.error is not None:
            raise RuntimeError(output.error)
        elif output.is_finished():
            found[output.request_id] = output
    return [found[f"{name}-{i}"] for i in range(len(prompts))]


if __name__ == "__main__":
    take_part(play)
