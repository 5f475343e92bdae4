"""How do a model's weights become int8 or 4-bit ones? bitsandbytes does it, one weight at a time, while they are read.

Source of int8: T. Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", 2022, here
without its outlier columns (see `THRESHOLD`). Source of nf4: T. Dettmers et al., "QLoRA: Efficient Finetuning of Quantized
LLMs", 2023. bitsandbytes is imported only for a model that needs it.
"""

import json
import logging
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from workers.engine.config import Quantization
from workers.engine.errors import EngineConfigError, ModelNotLoadable

logger = logging.getLogger(__name__)

# Above it, a column of activations would be kept out of int8. Which columns, depends on all rows of the batch, so a
# sequence's tokens would depend on its neighbours; and to find them the host waits for the device, which breaks CUDA graphs.
THRESHOLD = 0.0
_BLOCK = 64  # inputs that share a scale in 4 bits
_PANEL = 32  # outputs that bitsandbytes' fused CPU kernel takes at once


def how_to_load(folder: Path, device: torch.device, wanted: Quantization) -> dict[str, Any]:
    """What `from_pretrained` must be told, beyond folder and dtype, to quantise what it reads; {} where there is no need.

    Raises EngineConfigError where the checkpoint is quantised in another way already, ModelNotLoadable where
    bitsandbytes can't do it here.
    """
    found = _kind_of_checkpoint(folder)
    if found is None and wanted == "none":
        return {}
    if found is not None and wanted not in {"none", found}:
        raise EngineConfigError(
            f"quantization is {wanted}, but this checkpoint is quantised as {found} already: "
            'set quantization to "none", and it is loaded as it is'
        )
    if found is not None and found not in get_args(Quantization):
        return {}  # another method than bitsandbytes: transformers knows what that needs
    _require_bitsandbytes(device)
    place = {"device_map": {"": device}}  # straight to the device, where it is quantised
    if found is not None:
        return place
    method = {"load_in_8bit": True} if wanted == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": wanted}
    settings = BitsAndBytesConfig(
        llm_int8_threshold=THRESHOLD, llm_int8_skip_modules=_left_out(folder, wanted), **method
    )
    return place | {"quantization_config": settings}


def settle(module: Any) -> str:
    """What a loaded model's linear layers are: none, int8, nf4 or fp4; nothing in them looks at the batch from now on."""
    kinds: set[str] = set()
    for layer in module.modules():
        if type(layer).__name__ == "Linear8bitLt":
            kinds.add("int8")
            layer.state.threshold = THRESHOLD
        elif type(layer).__name__ == "Linear4bit":
            kinds.add(layer.weight.quant_type)
            layer.compute_dtype, layer.compute_type_is_set = module.dtype, True
    return "+".join(sorted(kinds)) or "none"


def weight_bytes(module: nn.Module) -> int:
    """Bytes that the weights take, with the scales of quantised ones."""
    tensors = [*module.parameters(), *module.buffers()]
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        blocks = getattr(weight, "quant_state", None)
        scales = [getattr(getattr(layer, "state", None), "SCB", None), getattr(weight, "SCB", None)]
        scales += [getattr(blocks, "absmax", None), getattr(getattr(blocks, "state2", None), "absmax", None)]
        tensors += [scale for scale in scales if isinstance(scale, torch.Tensor)]
    return sum(tensor.nbytes for tensor in {tensor.data_ptr(): tensor for tensor in tensors}.values())


def _kind_of_checkpoint(folder: Path) -> str | None:
    """int8, nf4, fp4, or another method's name; None for plain weights."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return None  # transformers will say what is wrong with it
    if not settings:
        return None
    if settings.get("quant_method") not in {None, "bitsandbytes"}:
        return str(settings["quant_method"])
    return "int8" if settings.get("load_in_8bit") else str(settings.get("bnb_4bit_quant_type", "fp4"))


def _require_bitsandbytes(device: torch.device) -> None:
    # Each int8 product warns that it rounds its input to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(
        logging.ERROR
    )  # of an optional package that isn't needed
    try:
        import accelerate  # noqa: F401  # transformers quantises with its help only
        import bitsandbytes
        from bitsandbytes.cextension import lib
    except ImportError as error:
        raise ModelNotLoadable(
            f'quantised weights need bitsandbytes and accelerate ({error}): install them, or set quantization to "none"'
        ) from error
    has_kernels = getattr(lib, "compiled_with_cuda", False) if device.type == "cuda" else True
    if device.type not in bitsandbytes.supported_torch_devices or not has_kernels:
        raise ModelNotLoadable(
            f"bitsandbytes {bitsandbytes.__version__} has no kernels for {device.type} here "
            f'(`python -m bitsandbytes` says why): set quantization to "none", or use another device'
        )


def _left_out(folder: Path, wanted: Quantization) -> list[str]:
    """Names of the linear layers that stay as they are: the output's, and in 4 bits those that the kernels can't take."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D)}
    output = [name for name, part in linear.items() if part is model.get_output_embeddings()]
    linear = {name: part for name, part in linear.items() if name not in output}
    unfit = {name for name, part in linear.items() if wanted != "int8" and not _fits_4_bits(part)}
    if unfit:
        logger.warning(
            "%d of %d linear layers aren't quantised: %s takes inputs in multiples of %d and outputs in multiples of %d; "
            "the first is %s",
            *(len(unfit), len(linear), wanted, _BLOCK, _PANEL, min(unfit)),
        )
    return [*unfit, *output]


def _fits_4_bits(layer: Any) -> bool:
    outputs, inputs = layer.weight.T.shape if isinstance(layer, Conv1D) else layer.weight.shape
    return bool(outputs % _PANEL == 0 and inputs % _BLOCK == 0)
