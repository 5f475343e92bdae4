"""How does a plan become tokens? The KV pool, the forward pass, the sampler."""

import gc
from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from workers.engine.attention import AttentionBackend, LayerCache, PagedForward, forward_context
from workers.engine.batch import Batch, build_batch, fill_up
from workers.engine.choose import Argmax, torch_argmax
from workers.engine.decode import DecodeLoop
from workers.engine.engine import OutOfMemory, Sampled
from workers.engine.errors import ModelUnsupported
from workers.engine.grammar import GrammarMasks, Grammars
from workers.engine.model import LoadedModel
from workers.engine.sampler import Forbid, Sampler, torch_forbid
from workers.engine.scheduler import StepPlan
from workers.engine.selfcheck import is_alike, probe_steps, similarity
from workers.engine.sequence import Sequence
from workers.engine.transfer import Download


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


@dataclass(frozen=True, slots=True)
class FixedShape:
    """What every forward pass is filled up to, so that matrix products are always of the same shape."""

    num_tokens: int
    num_samples: int
    trash_block: int


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
        loop: DecodeLoop | None = None,
        shape: FixedShape | None = None,
    ) -> None:
        """With `loop`, batches of nothing but decoding sequences go through it, and they only may take several steps."""
        self._model = model
        self.loop = loop
        self._shape = shape
        self._forward = forward
        self._block_size = block_size
        self._grammars = grammars
        self._mask_thread = ThreadPoolExecutor(1, "grammar-masks")
        self._sampler = Sampler(model.vocab_size, model.eos_token_ids, model.device, argmax, forbid)

    def check(self) -> None:
        """Compare the paged forward pass with the model's own. Raises ModelUnsupported. The pool must be unused yet."""
        model = self._model
        steps = probe_steps(model.reference.token_ids, self._block_size)
        got = [self._logits(build_batch(chunks, self._block_size, model.device)).clone() for chunks in steps]
        value = similarity(torch.cat(got), model.reference)
        if not is_alike(value, model.dtype if model.quantization == "none" else torch.bfloat16):
            raise ModelUnsupported(
                f"{model.architecture} can't run here: over paged attention it computes something else than by its own "
                f"(similarity {value:.3f}); choose another model, or serve this one by an engine that knows it"
            )

    def run(self, plan: StepPlan) -> Items[Sampled]:
        """Feed all chunks; the next tokens of those that sample. Raises OutOfMemory."""
        try:
            return self._run(plan)
        except torch.OutOfMemoryError as error:
            message = str(error).partition(". ")[0]
        # Not within the handler: the traceback kept the failed pass's tensors alive.
        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(message)

    def _run(self, plan: StepPlan) -> Items[Sampled]:
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
        is_decoding = all(chunk.count == 1 and chunk.samples and not chunk.guess for chunk in plan.chunks)
        if self.loop is not None and is_decoding and self.loop.start(plan.chunks, plan.num_steps):
            if plan.num_steps > 1:
                return self._run_steps(self.loop, plan)
            logits = self.loop.logits()
        else:
            assert plan.num_steps == 1, "only a loop goes on by itself"
            logits = self._logits(build_batch(plan.chunks, self._block_size, self._model.device))
        return self._sampler.sample(logits, sequences, guesses, masks.result() if masks is not None else None)

    def _begin_masks(self, sequences: list[Sequence], guesses: list[list[int]]) -> "Future[GrammarMasks] | None":
        if all(sequence.sampling.grammar is None for sequence in sequences):
            return None
        assert self._grammars is not None, "refused by the engine"
        return self._mask_thread.submit(self._grammars.masks, sequences, guesses)

    def _run_steps(self, loop: DecodeLoop, plan: StepPlan) -> list[Sampled]:
        """Several tokens of each sequence, one after the other; the host looks at the end only."""
        chooser = self._sampler.chooser([chunk.sequence for chunk in plan.chunks], plan.num_steps)
        tokens, is_open = [], []
        for step in range(plan.num_steps):
            chosen, left_open = chooser(loop.logits().float(), step)
            loop.feed(chosen)
            tokens.append(chosen)
            is_open.append(left_open)
        by_step, open_by_step = Download(torch.stack(tokens), torch.stack(is_open)).wait()
        return [
            Sampled(token, is_open=is_left_open)
            for row, open_row in zip(by_step.T.tolist(), open_by_step.T.tolist(), strict=True)
            for token, is_left_open in zip(row, open_row, strict=True)
        ]

    def _logits(self, batch: Batch) -> Tensor:
        """[R, vocab] of the rows that sample."""
        if self._shape is None:
            return self._forward(batch)
        shape = self._shape
        filled = fill_up(batch, shape.num_tokens, shape.num_samples, shape.trash_block)
        return self._forward(filled)[: len(batch.sample_rows)]
