"""How fast could this machine be at best? Its measured limits, and the least time that a case takes under them."""

import json
import mmap
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.workload import Prompt

if TYPE_CHECKING:
    from torch import Tensor

_BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the machine, with the threads that contenders use."""

    bytes_per_s: float  # memory, reading
    flops_per_s: float  # bf16 matrix products


@dataclass(frozen=True, slots=True)
class Shape:
    """What a decoder of the Llama family costs."""

    layer_weights: int  # numbers in the matrices of all layers
    head_weights: int  # numbers in the last matrix, which only rows that sample need
    kv_bytes: int  # bytes of keys and values a token
    attention_flops: int  # flops of one query token for each token that it looks at

    @classmethod
    def of(cls, folder: Path) -> "Shape":
        """Read from a model's config.json."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        hidden, layers = config["hidden_size"], config["num_hidden_layers"]
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or hidden // heads
        queries, keys = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim
        layer = hidden * (2 * queries + 2 * keys + 3 * config["intermediate_size"])
        return cls(
            layer_weights=layers * layer,
            head_weights=hidden * config["vocab_size"],
            kv_bytes=layers * 2 * keys * _BF16_BYTES,
            attention_flops=layers * 4 * queries,
        )


def least_s(shape: Shape, prompts: list[Prompt], limits: Limits) -> float:
    """Seconds of a perfect engine: all prompts in one pass (a shared prefix once), then one pass for each further token.

    All requests run at once, weights are read once a pass, keys and values of a shared prefix too, and a pass takes as long as its slower half: reading or
    computing. An engine that overlaps one pass's reading with another's computing could be faster than that.
    """
    new_tokens = _distinct_prefix_tokens(prompts)
    lens = [len(prompt.token_ids) for prompt in prompts]
    attention = sum(length * (length + 1) // 2 for length in lens) * shape.attention_flops
    flops = 2 * (new_tokens * shape.layer_weights + len(prompts) * shape.head_weights) + attention
    weight_bytes = (shape.layer_weights + shape.head_weights) * _BF16_BYTES
    seconds = max(weight_bytes / limits.bytes_per_s, flops / limits.flops_per_s)
    left: list[Prompt] = []
    for step in range(1, max(prompt.num_tokens for prompt in prompts)):
        alive = [prompt for prompt in prompts if prompt.num_tokens > step]
        if len(alive) != len(left):
            left, kept_tokens = alive, _distinct_prefix_tokens(alive)
            seen_tokens = sum(len(prompt.token_ids) for prompt in alive)
        own_tokens = len(alive) * step
        read = weight_bytes + (kept_tokens + own_tokens) * shape.kv_bytes
        attention = (seen_tokens + own_tokens) * shape.attention_flops
        flops = 2 * len(alive) * (shape.layer_weights + shape.head_weights) + attention
        seconds += max(read / limits.bytes_per_s, flops / limits.flops_per_s)
    return seconds


def _distinct_prefix_tokens(prompts: list[Prompt]) -> int:
    """Tokens of all prompts, those that begin alike counted once."""
    count, before = 0, list[int]()
    for token_ids in sorted(prompt.token_ids for prompt in prompts):  # neighbours share the most
        shared = next((i for i, (a, b) in enumerate(zip(before, token_ids, strict=False)) if a != b), None)
        count += len(token_ids) - (min(len(before), len(token_ids)) if shared is None else shared)
        before = token_ids
    return count


def measure_limits(device: str, threads: int) -> Limits:
    """The best of some tries, in a few seconds. To be called in a process of its own: it sets torch's threads."""
    import torch

    if device == "cpu":
        torch.set_num_threads(threads)
    if device == "cpu":
        big = _in_large_pages(1 << 29).view(torch.float32).fill_(1.0)
    else:
        big = torch.ones(1 << 30, dtype=torch.float32, device=device)
    matrices = big.view(torch.bfloat16).view(1 << 14, -1)
    vector = torch.ones(matrices.shape[1], dtype=torch.bfloat16, device=device)
    readers: list[Callable[[], object]] = [big.sum, big.view(torch.int64).sum, partial(torch.mv, matrices, vector)]
    bytes_per_s = big.nbytes / min(_fastest_s(device, reader) for reader in readers)
    size = 2048 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    flops_per_s = 2 * size**3 / _fastest_s(device, partial(torch.mm, left, right))
    return Limits(bytes_per_s, flops_per_s)


def _in_large_pages(size: int) -> "Tensor":
    """`size` bytes beyond any cache, in large pages where the system has them: with small ones reading is slower."""
    import torch

    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _fastest_s(device: str, work: Callable[[], object]) -> float:
    """Of ten tries, or of those that a second has room for, three at least; the first warms up."""
    import torch

    times: list[float] = []
    while len(times) < 3 or (len(times) < 10 and sum(times) < 1.0):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
