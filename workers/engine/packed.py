"""How do the linear layers of a model that runs through transformers get our product? Their weights are packed, layer by layer.

PyTorch picks its way to multiply by the number of rows, and each way sums in an order of its own. So a sequence's
tokens would depend on its neighbours, and on the chunks that it is fed in. Our product has one order for all.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from workers.engine import native
from workers.engine.model import LoadedModel
from workers.engine.native import Kernels

_DTYPES = {torch.float32, torch.bfloat16}
_STEP = 32  # inputs that the kernels take at once


def pack_linears(kernels: Kernels, model: LoadedModel) -> int:
    """Let `model.linears` compute by the kernels, and free the weights that nothing else holds; how many they are."""
    module: Any = model.module
    embedding = module.get_input_embeddings().weight
    found: list[Any] = [part for part in model.linears if part.weight.dtype in _DTYPES]
    for part in found:
        if isinstance(part.forward, PackedLinear):  # packed already
            continue
        part.forward = PackedLinear(kernels, part)
        if part.weight is not embedding:
            part.weight = nn.Parameter(part.weight.new_empty(0), requires_grad=False)
    return len(found)


class PackedLinear:
    """The forward pass of one nn.Linear or Conv1D. Keeps a copy of its weights."""

    def __init__(self, kernels: Kernels, layer: Any) -> None:
        weight = layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach()
        self._kernels = kernels
        self._num_outputs, num_inputs = weight.shape
        padded = pad(weight, (0, -num_inputs % _STEP))
        self._packed = kernels.pack(padded)
        self._bias = layer.bias.detach().float().contiguous() if layer.bias is not None else None
        bias = self._bias.data_ptr() if self._bias is not None else None
        self._matrix = native.Matrix(self._packed.data_ptr(), bias, *padded.shape)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., inputs] of the weights' dtype -> [..., outputs]."""
        if x.dtype != self._packed.dtype:
            raise TypeError(f"a linear layer of {self._packed.dtype} was given {x.dtype}")
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        out = rows.new_empty(len(rows), self._num_outputs)
        self._kernels.linear(rows, self._matrix, out)
        return out.view(*x.shape[:-1], self._num_outputs)
