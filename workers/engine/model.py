"""How does a checkpoint become a model that attends through our pages, and how do we know that it does?"""

import inspect
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from workers.engine.attention import INTERFACE_NAME, AttentionCall, attend, forward_context
from workers.engine.config import Quantization
from workers.engine.errors import ModelNotLoadable, ModelUnsupported
from workers.engine.quantize import how_to_load, settle, weight_bytes
from workers.engine.selfcheck import Reference, probe_token_ids

logger = logging.getLogger(__name__)

_DEFAULT_MAX_LEN = 4096  # for a model that states no limit
_ROPE_TYPES_THAT_LOOK_AT_THE_BATCH = {"dynamic", "longrope"}

AttentionInterface.register(INTERFACE_NAME, attend)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The heads of one attention layer."""

    module: nn.Module
    num_kv_heads: int
    head_dim: int
    value_dim: int
    num_heads: int
    has_softcap: bool = False
    has_sinks: bool = False


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in eval mode that attends through `attention.attend`."""

    module: nn.Module
    layers: list[LayerShape]  # in the order of the calls
    architecture: str
    dtype: torch.dtype  # of what isn't quantised, and of keys and values
    quantization: str  # none, int8, nf4, fp4
    device: torch.device
    vocab_size: int  # rows of the embedding
    max_len: int  # tokens
    eos_token_ids: list[int]
    num_parameters: int
    keeps_logits: bool  # whether it can compute the logits of chosen rows only
    reference: Reference  # to check the paged forward pass against
    linears: list[nn.Module]  # nn.Linear and Conv1D, unquantised, that the forward pass calls


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one. Raises ModelNotLoadable if CUDA is asked for and missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelNotLoadable('no CUDA device is visible; set device to "auto" or "cpu"')
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def load_model(folder: Path, device: torch.device, dtype: str, quantization: Quantization = "none") -> LoadedModel:
    """Load, quantise, hook up, probe. Raises EngineConfigError, ModelNotLoadable or ModelUnsupported."""
    try:
        module, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            **how_to_load(folder, device, quantization),
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelNotLoadable(f"{folder} can't be loaded as a causal language model: {error}") from error
    missing = sorted(loading["missing_keys"])
    if missing:  # they would be random
        raise ModelNotLoadable(f"{folder} lacks {len(missing)} of the model's weights, such as {missing[0]}")
    module = module.eval()
    quantized = settle(module)
    if quantized == "none":
        module = module.to(device)
    else:
        logger.info("weights are quantised as %s and take %.1f MiB", quantized, weight_bytes(module) / 2**20)
    parameters = inspect.signature(module.forward).parameters
    config = module.config.get_text_config(decoder=True)
    vocab_size = module.get_input_embeddings().weight.shape[0]
    with _calls_of_linears(module) as linears:
        reference = _reference(module, probe_token_ids(vocab_size))  # before our attention takes over
    layers = _hook_up(module, config.num_hidden_layers, "position_ids" in parameters)
    return LoadedModel(
        module=module,
        layers=layers,
        architecture=type(module).__name__,
        dtype=module.dtype,
        quantization=quantized,
        device=device,
        vocab_size=vocab_size,
        max_len=_max_len(config),
        eos_token_ids=_eos_token_ids(module, config),
        num_parameters=module.num_parameters(),
        keeps_logits="logits_to_keep" in parameters,
        reference=reference,
        linears=list(linears),
    )


@contextmanager
def _calls_of_linears(module: nn.Module) -> Iterator[dict[nn.Module, None]]:
    """Which plain linear layers are called, in order. Others may have their weights read by somebody else's code."""
    called: dict[nn.Module, None] = {}
    linears = [part for part in module.modules() if type(part) in {nn.Linear, Conv1D}]
    hooks = [part.register_forward_pre_hook(lambda part, _: called.setdefault(part)) for part in linears]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def _reference(module: Any, token_ids: list[int]) -> Reference:
    ids = torch.tensor([token_ids], device=module.device)
    return Reference(token_ids, module(input_ids=ids, use_cache=False).logits[0])


class _Probe:
    """Notes who calls, with which shapes."""

    def __init__(self) -> None:
        self.layers: list[LayerShape] = []

    def record(self, module: nn.Module, call: AttentionCall) -> Tensor:
        self.layers.append(
            LayerShape(
                module,
                num_kv_heads=call.key.shape[1],
                head_dim=call.key.shape[2],
                value_dim=call.value.shape[2],
                num_heads=call.query.shape[1],
                has_softcap=call.softcap is not None,
                has_sinks=call.sinks is not None,
            )
        )
        return call.query.new_zeros(*call.query.shape[:2], call.value.shape[2])


def _hook_up(module: Any, num_layers: int, takes_positions: bool) -> list[LayerShape]:
    """Set our attention and make sure, with two tokens, that each layer uses it exactly once."""
    name = type(module).__name__
    reason = f"{name} can't run here: it doesn't do its attention through transformers' AttentionInterface"
    advice = "choose another model, or serve this one by an engine that knows it"
    probe = _Probe()
    try:
        module.set_attn_implementation(INTERFACE_NAME)
        ids = torch.arange(2, device=module.device).unsqueeze(0)
        with forward_context(probe), torch.inference_mode():
            module(input_ids=ids, use_cache=False, **({"position_ids": ids} if takes_positions else {}))
    except Exception as error:  # broad: a model that we know nothing of may raise anything
        raise ModelUnsupported(f"{reason} ({type(error).__name__}: {error}); {advice}") from error
    calls = Counter(layer.module for layer in probe.layers)
    if len(calls) != num_layers or set(calls.values()) != {1}:
        raise ModelUnsupported(f"{reason} ({len(probe.layers)} calls from {num_layers} layers); {advice}")
    if not takes_positions:
        raise ModelUnsupported(f"{name} can't run here: its forward takes no position_ids; {advice}")
    return probe.layers


def _max_len(config: Any) -> int:
    limit = int(getattr(config, "max_position_embeddings", None) or _DEFAULT_MAX_LEN)
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and chunk < limit and "chunked_attention" in (getattr(config, "layer_types", None) or []):
        # Beyond it a token sees nothing of the chunks before its own, which our attention isn't told.
        logger.warning("max_model_len is limited to %d, this model's attention chunk", chunk)
        return int(chunk)
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings")
    if rope.get("rope_type") in _ROPE_TYPES_THAT_LOOK_AT_THE_BATCH and original and original < limit:
        # Beyond it the frequencies depend on the longest sequence in the batch: neighbours would change each other.
        logger.warning("max_model_len is limited to %d, up to which this model's rotary embedding is fixed", original)
        return int(original)
    return limit


def _eos_token_ids(module: Any, config: Any) -> list[int]:
    generation = getattr(module, "generation_config", None)
    for source in (generation, config):
        found = getattr(source, "eos_token_id", None)
        if found is not None:
            return sorted(set(found)) if isinstance(found, list) else [found]
    return []
