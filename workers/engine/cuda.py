"""What has to be decided, measured and set on a GPU when an engine is put together?"""

import logging
import os
from typing import Any

import torch

from workers.engine import multistep
from workers.engine.attention import AttentionBackend
from workers.engine.attention_torch import TorchAttention
from workers.engine.attention_varlen import VarlenAttention, why_not_varlen
from workers.engine.config import EngineConfig
from workers.engine.decode import DecodeLoop
from workers.engine.errors import EngineConfigError
from workers.engine.model import LoadedModel
from workers.engine.protocol import SamplingParams
from workers.engine.runner import FixedShape, ForwardPass, GenericForward, ModelRunner
from workers.engine.scheduler import Chunk, StepPlan
from workers.engine.sequence import Sequence

logger = logging.getLogger(__name__)

_DEFAULT_DECODE_STEPS = 4
_SPARE_BYTES = 256 << 20  # for what nobody measures: kernels that are loaded later, fragments


def be_deterministic() -> None:
    """Ask PyTorch and cuBLAS for the same bits each time. To be called before anything runs on the GPU."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # nothing is read here before it is written
    matmul: Any = torch.backends.cuda.matmul
    matmul.allow_tf32 = False
    for name in ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction"):
        try:
            setattr(matmul, name, (False, False))  # the second forbids split-K
        except (TypeError, ValueError, RuntimeError):
            logger.warning("this PyTorch can't be told to do without split-K")
            setattr(matmul, name, False)


def attention_backend(config: EngineConfig, model: LoadedModel, max_model_len: int) -> AttentionBackend:
    """What `config.attention` names, for this model. Raises EngineConfigError."""
    name = config.attention
    if name == "varlen":
        if config.deterministic:
            raise EngineConfigError('attention "varlen" can\'t be deterministic here: choose "triton"')
        fault = why_not_varlen(model, config.block_size)
        if fault is not None:
            raise EngineConfigError(f'attention "varlen" isn\'t possible: {fault}; choose "triton" or "auto"')
        return VarlenAttention()
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if name == "torch" or (name == "auto" and model.device.type == "cpu"):
        return TorchAttention()
    if model.device.type == "cpu" and not is_interpreted:
        raise EngineConfigError('attention "triton" needs a CUDA device: choose "torch" or "auto"')
    try:
        from workers.engine.attention_triton import TritonAttention
    except ImportError as error:
        if name == "triton":
            raise EngineConfigError(
                f"attention \"triton\" isn't possible: triton can't be imported ({error})"
            ) from error
        logger.warning("triton can't be imported, so attention is slow (%s)", error)
        return TorchAttention()
    programs = 16 if model.device.type == "cpu" else None
    return TritonAttention(max_model_len, uniform=config.deterministic, num_programs=programs)


def decode_steps(config: EngineConfig, device: torch.device) -> int:
    """Tokens between two looks of the host, at most."""
    return config.decode_steps or (_DEFAULT_DECODE_STEPS if device.type == "cuda" else 1)


def uses_graphs(config: EngineConfig, model: LoadedModel, backend: AttentionBackend) -> bool:
    """Whether decoding is captured: the plain backend asks the host for lengths, so it can't be."""
    return config.cuda_graphs and model.device.type == "cuda" and not isinstance(backend, TorchAttention)


def fixed_shape(config: EngineConfig, trash_block: int) -> FixedShape | None:
    """What forward passes are filled up to, if bits mustn't depend on their size."""
    if not config.deterministic:
        return None
    most_samples = config.max_num_seqs * (1 + config.speculative_tokens)
    return FixedShape(config.max_batch_tokens, min(config.max_batch_tokens, most_samples), trash_block)


def decode_loop(
    config: EngineConfig,
    model: LoadedModel,
    forward: ForwardPass,
    *,
    max_model_len: int,
    trash_block: int,
    graphs: bool,
) -> DecodeLoop | None:
    """The loop, with its graphs captured, or None where it would bring nothing."""
    if not graphs and decode_steps(config, model.device) == 1:
        return None
    shape = fixed_shape(config, trash_block)
    if shape is not None:
        sizes, most_samples = [shape.num_tokens], shape.num_samples
    elif graphs:
        sizes, most_samples = multistep.batch_sizes(config.max_num_seqs), config.max_num_seqs
    else:
        sizes, most_samples = list(range(1, config.max_num_seqs + 1)), config.max_num_seqs
    loop = DecodeLoop(
        forward,
        model.device,
        sizes=sizes,
        most_samples=most_samples,
        block_size=config.block_size,
        max_model_len=max_model_len,
        trash_block=trash_block,
    )
    if graphs:
        loop.capture()
    return loop


def kv_bytes(total: int, free: int, step_bytes: int, utilization: float) -> int:
    """Bytes for KV pages on a device with `total` bytes, of which `free` are free now and a step takes `step_bytes`."""
    return int(total * utilization) - (total - free) - step_bytes - _SPARE_BYTES


def measured_kv_bytes(config: EngineConfig, model: LoadedModel, max_model_len: int) -> int:
    """Bytes for KV pages on this GPU: what the weights and the largest step leave of `gpu_memory_utilization`.

    Raises:
        EngineConfigError: nothing is left.
    """
    backend = attention_backend(config, model, max_model_len)
    step_bytes = _step_bytes(config, model, backend, max_model_len)
    scratch_bytes = getattr(backend, "scratch_bytes", None)
    if scratch_bytes is not None:  # the measured step's sequences were short
        heads = max(layer.num_heads for layer in model.layers)
        value_dim = max(layer.value_dim for layer in model.layers)
        step_bytes += scratch_bytes(config.max_num_seqs, max_model_len, heads, value_dim)
    if uses_graphs(config, model, backend):
        step_bytes *= 2  # graphs keep memory of their own for as much
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(model.device)
    found = kv_bytes(total, free, step_bytes, config.gpu_memory_utilization)
    logger.info(
        "of %.1f GiB on the GPU %.1f are free; a step takes %.2f, so KV pages may take %.1f",
        *(number / 2**30 for number in (total, free, step_bytes, found)),
    )
    if found <= 0:
        raise EngineConfigError(
            f"no memory is left for KV pages: of {total >> 20} MiB on the GPU {free >> 20} are free, a step of "
            f"{config.max_batch_tokens} tokens takes {step_bytes >> 20}, and gpu_memory_utilization is "
            f"{config.gpu_memory_utilization}: lower max_batch_tokens or max_num_seqs, raise gpu_memory_utilization, "
            "or set kv_cache_bytes"
        )
    return found


def _step_bytes(config: EngineConfig, model: LoadedModel, backend: AttentionBackend, max_model_len: int) -> int:
    """The most that a step's tensors take: run on a pool of its own, with as many tokens and rows as there may be."""
    num_seqs = max(config.max_num_seqs, -(-config.max_batch_tokens // max_model_len))
    chunks = profile_chunks(num_seqs, config.max_batch_tokens, config.block_size)
    num_blocks = sum(len(chunk.sequence.block_table) for chunk in chunks)
    forward = GenericForward(model, backend, num_blocks=num_blocks, block_size=config.block_size)
    runner = ModelRunner(model, forward, block_size=config.block_size)
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    runner.run(StepPlan(chunks, left=[]))
    return torch.cuda.max_memory_allocated(model.device) - before


def profile_chunks(num_seqs: int, num_tokens: int, block_size: int) -> list[Chunk]:
    """So many prompts of so many tokens in all, on pages of their own; every one samples."""
    chunks, first_block = [], 0
    for place in range(num_seqs):
        length = num_tokens * (place + 1) // num_seqs - num_tokens * place // num_seqs
        num_blocks = -(-length // block_size)
        sequence = Sequence(
            request_id="profile",
            choice=0,
            priority=0,
            arrival=place,
            sampling=SamplingParams(max_tokens=1, top_p=0.9),
            max_len=length + 1,
            token_ids=[0] * length,
            num_prompt_tokens=length,
            block_table=list(range(first_block, first_block + num_blocks)),
        )
        first_block += num_blocks
        chunks.append(Chunk(sequence, 0, length, samples=True))
    return chunks
