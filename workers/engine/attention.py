"""How does a layer attend to keys and values that lie scattered over pages?

transformers calls `attend` for each layer. What it needs beyond the layer's own tensors, it finds in the forward context,
a variable of this module: handed through kwargs it would get lost in models that drop them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from workers.engine.batch import Batch

INTERFACE_NAME = "penstock"


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's part of the KV pool."""

    keys: Tensor  # [slots, kv heads, head dim]
    values: Tensor  # [slots, kv heads, value dim]


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What a layer asks for. T = tokens of the batch; rotary embedding is applied already."""

    query: Tensor  # [T, heads, head dim]
    key: Tensor  # [T, kv heads, head dim]
    value: Tensor  # [T, kv heads, value dim]
    scaling: float  # factor on query x key
    sliding_window: int | None = None  # tokens that a token sees, itself included; None = all before it
    softcap: float | None = None  # scores are squashed to softcap * tanh(score / softcap)
    sinks: Tensor | None = None  # [heads], a score each that takes its share of the softmax and gives no value


class AttentionBackend(Protocol):
    """A way to do it on some device."""

    name: str

    def prepare(self, batch: Batch) -> None:
        """Do once a step what all layers share."""
        ...

    def attend(self, call: AttentionCall, cache: LayerCache) -> Tensor:
        """Write keys and values to the batch's slots, attend over the pages; [T, heads, value dim]."""
        ...


class Recorder(Protocol):
    """Takes note of the calls of a probe instead of attending."""

    def record(self, module: nn.Module, call: AttentionCall) -> Tensor:
        """[T, heads, value dim], whatever it holds."""
        ...


@dataclass(frozen=True, slots=True)
class PagedForward:
    """The context of a real forward pass."""

    backend: AttentionBackend
    caches: dict[nn.Module, LayerCache]  # by attention module


_context: PagedForward | Recorder | None = None


@contextmanager
def forward_context(context: PagedForward | Recorder) -> Iterator[None]:
    """Let `attend` find its context. One forward pass at a time in a process."""
    global _context  # noqa: PLW0603
    assert _context is None, "forward passes can't nest"
    _context = context
    try:
        yield
    finally:
        _context = None


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  # None: no mask function is registered for us
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001  # a model in eval mode has none
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers' AttentionInterface calls: query [1, heads, T, D] -> ([1, T, heads, Dv], None)."""
    if _context is None:
        raise RuntimeError("attention was called outside of the engine's forward pass")
    if kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention with a position bias isn't supported")
    call = AttentionCall(
        query=query[0].transpose(0, 1),
        key=key[0].transpose(0, 1),
        value=value[0].transpose(0, 1),
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=kwargs.get("sliding_window") or None,
        softcap=kwargs.get("softcap") or None,
        sinks=kwargs.get("s_aux"),
    )
    if isinstance(_context, PagedForward):
        output = _context.backend.attend(call, _context.caches[module])
    else:
        output = _context.record(module, call)
    return output.unsqueeze(0), None
