"""How fast are the workers of each pool? Rooflines of data sheets: assumptions, not measurements."""

from dataclasses import dataclass

from benchmarks.simulation.traffic import Job

# Assumed: the share of a device's peak that an engine reaches, and what a step costs besides.
_OF_BANDWIDTH = 0.6
_OF_COMPUTE = 0.45
_STEP_S = 0.003
_OF_MEMORY = 0.9


@dataclass(frozen=True, slots=True)
class Spec:
    """A kind of worker, in seconds and tokens."""

    gpu: str
    model: str
    base_s: float  # of a step
    kv_token_s: float  # of a step, for each token in the KV pool
    prefill_token_s: float
    kv_tokens: int
    max_seqs: int = 64
    load_s: float = 120.0  # from the start of a worker to its first claim


def spec(
    gpu: str,
    model: str,
    *,
    params: float,
    weight_bytes: int,
    kv_bytes: int,
    memory: float,
    bandwidth: float,
    flops: float,
) -> Spec:
    """By roofline: weights and KV are read at the memory's speed, prompts are computed at the cores'."""
    weights = params * weight_bytes
    return Spec(
        gpu,
        model,
        base_s=_STEP_S + weights / (bandwidth * _OF_BANDWIDTH),
        kv_token_s=kv_bytes / (bandwidth * _OF_BANDWIDTH),
        prefill_token_s=2 * params / (flops * _OF_COMPUTE),
        kv_tokens=int((memory * _OF_MEMORY - weights) / kv_bytes),
    )


# Share of the jobs, and what serves them. Shapes of current open models on GPUs of 80 and 141 GB.
POOLS: dict[str, tuple[float, Spec]] = {
    "small": (
        0.3,
        spec("80 GB", "8B, bf16", params=8e9, weight_bytes=2, kv_bytes=131_072, memory=80e9, bandwidth=3.35e12, flops=0.99e15),
    ),
    "medium": (
        0.3,
        spec("80 GB", "32B, fp8", params=32e9, weight_bytes=1, kv_bytes=262_144, memory=80e9, bandwidth=3.35e12, flops=1.98e15),
    ),
    "large": (
        0.4,
        spec("141 GB", "70B, fp8", params=70e9, weight_bytes=1, kv_bytes=327_680, memory=141e9, bandwidth=4.8e12, flops=1.98e15),
    ),
}  # fmt: skip


def work_s(kind: Spec, job: Job) -> float:
    """About how many seconds of a whole worker a job takes where the KV pool is full: to size pools, not to simulate."""
    step = kind.base_s + kind.kv_tokens * kind.kv_token_s
    return job.prompt * kind.prefill_token_s + job.output * step * (job.prompt + job.output / 2) / kind.kv_tokens
