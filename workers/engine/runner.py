"""How does a plan become tokens? The KV pool, the forward pass, the sampler."""

from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from workers.engine.attention import AttentionBackend, LayerCache, PagedForward, forward_context
from workers.engine.batch import Batch, build_batch
from workers.engine.engine import Sampled
from workers.engine.errors import ModelUnsupported
from workers.engine.grammar import GrammarMasks, Grammars
from workers.engine.model import LoadedModel
from workers.engine.sampler import Argmax, Forbid, Sampler, torch_argmax, torch_forbid
from workers.engine.scheduler import StepPlan
from workers.engine.selfcheck import is_alike, probe_steps, similarity
from workers.engine.sequence import Sequence


def block_bytes(model: LoadedModel, block_size: int) -> int:
    """Bytes that one block takes in the pool, over all layers."""
    numbers = sum(layer.num_kv_heads * (layer.head_dim + layer.value_dim) for layer in model.layers)
    return numbers * block_size * model.dtype.itemsize


class ForwardPass(Protocol):
    """A way to run a model over a KV pool of its own."""

    def __call__(self, batch: Batch) -> Tensor:
        """Logits [R, vocab] of the rows that sample, in the model's dtype or float32, the caller's until the next call."""
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block's keys and values in all layers."""
        ...


class GenericForward:
    """The model's own forward pass, in transformers, over a KV pool."""

    def __init__(self, model: LoadedModel, backend: AttentionBackend, *, num_blocks: int, block_size: int) -> None:
        self._model = model
        self._backend = backend
        self._block_size = block_size
        slots = num_blocks * block_size
        caches = {
            layer.module: LayerCache(
                torch.zeros(slots, layer.num_kv_heads, layer.head_dim, dtype=model.dtype, device=model.device),
                torch.zeros(slots, layer.num_kv_heads, layer.value_dim, dtype=model.dtype, device=model.device),
            )
            for layer in model.layers
        }
        self._context = PagedForward(backend, caches)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Tensor:
        """Logits [R, vocab] of the rows that sample, in the model's dtype."""
        self._backend.prepare(batch)
        chosen = {"logits_to_keep": batch.sample_rows} if self._model.keeps_logits else {}
        with forward_context(self._context):
            output = self._model.module(
                input_ids=batch.input_ids.unsqueeze(0),
                position_ids=batch.positions.unsqueeze(0),
                use_cache=False,
                **chosen,
            )
        logits: Tensor = output.logits[0]
        return logits if self._model.keeps_logits else logits[batch.sample_rows]

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block's keys and values in all layers."""
        size = self._block_size
        for cache in self._context.caches.values():
            for pages in (cache.keys, cache.values):
                pages[target * size : (target + 1) * size] = pages[source * size : (source + 1) * size]


class ModelRunner:
    """A model, a way to run it, and a sampler: the engine's `TokenModel`."""

    def __init__(
        self,
        model: LoadedModel,
        forward: ForwardPass,
        *,
        block_size: int,
        argmax: Argmax = torch_argmax,
        forbid: Forbid = torch_forbid,
        grammars: Grammars | None = None,
    ) -> None:
        self._model = model
        self._forward = forward
        self._block_size = block_size
        self._grammars = grammars
        self._mask_thread = ThreadPoolExecutor(1, "grammar-masks")
        self._sampler = Sampler(model.vocab_size, model.eos_token_ids, model.device, argmax, forbid)

    def check(self) -> None:
        """Compare the paged forward pass with the model's own. Raises ModelUnsupported. The pool must be unused yet."""
        model = self._model
        steps = probe_steps(model.reference.token_ids, self._block_size)
        got = [self._forward(build_batch(chunks, self._block_size, model.device)).clone() for chunks in steps]
        value = similarity(torch.cat(got), model.reference)
        if not is_alike(value, model.dtype if model.quantization == "none" else torch.bfloat16):
            raise ModelUnsupported(
                f"{model.architecture} can't run here: over paged attention it computes something else than by its own "
                f"(similarity {value:.3f}); choose another model, or serve this one by an engine that knows it"
            )

    def run(self, plan: StepPlan) -> Items[Sampled]:
        """Feed all chunks; the next token of those that sample."""
        self._sampler.forget(plan.left)
        if self._grammars is not None:
            self._grammars.forget(plan.left)
        if not plan.chunks:
            return []
        for copy in plan.copies:  # in this order: a block may be a target first and a source later
            self._forward.copy_block(copy.source, copy.target)
        sampling = [chunk for chunk in plan.chunks if chunk.samples]
        sequences = [chunk.sequence for chunk in sampling for _ in range(1 + len(chunk.guess))]
        guesses = [chunk.guess[:place] for chunk in sampling for place in range(1 + len(chunk.guess))]
        masks = self._begin_masks(sequences, guesses)  # filled while the forward pass runs
        logits = self._forward(build_batch(plan.chunks, self._block_size, self._model.device))
        return self._sampler.sample(logits, sequences, guesses, masks.result() if masks is not None else None)

    def _begin_masks(self, sequences: list[Sequence], guesses: list[list[int]]) -> "Future[GrammarMasks] | None":
        if all(sequence.sampling.grammar is None for sequence in sequences):
            return None
        assert self._grammars is not None, "refused by the engine"
        return self._mask_thread.submit(self._grammars.masks, sequences, guesses)
