"""Which settings does an engine have? One struct: it is also the first thing that the engine's process is told."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from workers.engine.upstream_config import UpstreamConfig

_MIN_POOL_TOKENS = 16

Quantization = Literal["none", "int8", "nf4", "fp4"]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one engine. 0 means "choose for me" where the comment says so.

    Bounds are checked when the struct is decoded (msgspec) and, for one built in Python, by `validated`.
    """

    # "vllm" runs vLLM, "upstream" asks a server; "null" makes up tokens: for tests and control plane benchmarks
    engine: Literal["paged", "vllm", "upstream", "null"] = "paged"
    model: str = ""  # a folder or a Hugging Face id; for "null" a folder whose tokenizer is used, or "" for bytes
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto = cuda where there is one
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto = what the checkpoint was saved in
    quantization: Quantization = "none"  # of the linear layers' weights, by bitsandbytes

    # The KV pool. Wins over bytes where it isn't 0: num_blocks.
    kv_cache_bytes: Annotated[int, Meta(ge=0)] = (
        0  # bytes; 0 = 1 GiB on CPU, on CUDA what gpu_memory_utilization leaves; never more than max_num_seqs could fill
    )
    gpu_memory_utilization: Annotated[float, Meta(ge=0.05, le=1.0)] = 0.9  # share of a GPU's memory, all included
    num_blocks: Annotated[int, Meta(ge=0, le=1 << 24)] = (
        0  # pages; 0 = as many as kv_cache_bytes holds; else see min_blocks
    )
    block_size: Annotated[int, Meta(ge=1, le=256)] = 16  # tokens a page
    watermark_ratio: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.01  # share of the pages that admission leaves free
    prefix_cache: bool = True  # find the beginning of a prompt that an earlier one of the same salt left in the pool

    # The batch.
    max_num_seqs: Annotated[int, Meta(ge=1, le=4096)] = 64  # sequences that run at once
    max_batch_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] = 512  # tokens of one forward pass; >= max_num_seqs
    max_model_len: Annotated[int, Meta(ge=0, le=1 << 24)] = 0  # tokens, prompt + output; 0 = the model's own limit
    speculative_tokens: Annotated[int, Meta(ge=0, le=64)] = 0  # most tokens to guess ahead a sequence; 0 = never
    grammar_check_s: Annotated[int, Meta(ge=1, le=600)] = 5  # processor time, in seconds, that compiling one may take
    threads: Annotated[int, Meta(ge=0, le=1024)] = (
        0  # CPU threads of the forward pass; 0 = one for a small model, else PyTorch's default
    )
    kernels: Literal["auto", "torch"] = "auto"  # auto = our own C++ on CPU, where there is a compiler; torch = without
    attention: Literal["auto", "triton", "varlen", "torch"] = "auto"  # auto = triton on CUDA, torch on CPU
    cuda_graphs: bool = True  # capture decoding at load, where the model allows it
    decode_steps: Annotated[int, Meta(ge=0, le=64)] = (
        0  # most tokens of a sequence between two looks of the host; 0 = 4 on CUDA, 1 on CPU
    )
    slow_step_s: Annotated[float, Meta(ge=0.0)] = 0.0  # a step that takes longer is told of; 0 = none
    deterministic: bool = False  # the same bits whatever else is in the batch, on CUDA at the cost of speed

    # Other engines only.
    # vLLM's own engine arguments, which go before what follows from the rest; for "null" see NullOptions
    engine_options: dict[str, Any] = {}
    upstream: UpstreamConfig | None = None

    # The null engine only.
    null_vocab_size: Annotated[int, Meta(ge=257, le=1 << 20)] = 512  # tokens; ignored where `model` is given
    null_step_s: Annotated[float, Meta(ge=0.0, le=60.0)] = 0.0  # seconds that each step takes
    null_tokens_per_s: Annotated[float, Meta(ge=0.0)] = 0.0  # tokens per second over the whole batch; 0 = no limit
    null_stop_ratio: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0  # chance that a token is EOS; 0 = run to max_tokens

    def __post_init__(self) -> None:
        if self.max_batch_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_batch_tokens ({self.max_batch_tokens}) must be at least max_num_seqs ({self.max_num_seqs}): "
                "a step feeds one token to every running sequence"
            )
        if 0 < self.num_blocks < min_blocks(self.block_size):
            raise ValueError(f"num_blocks must be 0 (choose for me) or at least {min_blocks(self.block_size)}")
        if self.engine != "null" and not self.model:
            raise ValueError("model is empty: name a folder or a Hugging Face model id")

    def validated(self) -> "EngineConfig":
        """This config, with every bound checked; raises msgspec.ValidationError, which names the field."""
        return msgspec.convert(msgspec.to_builtins(self), EngineConfig)


def min_blocks(block_size: int) -> int:
    """The smallest pool: two sequences of 8 tokens, which is what the check at load runs."""
    return 2 * -(-_MIN_POOL_TOKENS // (2 * block_size))
