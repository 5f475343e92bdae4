"""Paged attention in plain PyTorch: runs anywhere, and is the reference for every faster backend.

Each sequence is attended to alone, at its exact length: on CPU, padded or masked kernels give other bits, and a
sequence's tokens must not depend on who else is in the batch.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.engine.attention import AttentionCall, LayerCache
from workers.engine.batch import Batch


class TorchAttention:
    """Gather the keys and values of all sequences, then attend sequence by sequence."""

    name = "torch"

    def __init__(self) -> None:
        self._batch: Batch | None = None
        self._kv_slots = torch.empty(0, dtype=torch.int64)  # [sum of kv_lens], slots in the order of the tokens
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def prepare(self, batch: Batch) -> None:
        """Find the slots that the sequences read; drop the last step's masks."""
        device = batch.block_tables.device
        slots = batch.block_tables[:, :, None] * batch.block_size + torch.arange(batch.block_size, device=device)
        slots = slots.flatten(1)
        lens = torch.tensor(batch.kv_lens, device=device)
        self._kv_slots = slots[torch.arange(slots.shape[1], device=device) < lens[:, None]]
        self._batch = batch
        self._masks.clear()

    def attend(self, call: AttentionCall, cache: LayerCache) -> Tensor:
        """[T, heads, value dim] for all sequences of the batch."""
        batch = self._batch
        assert batch is not None, "prepare comes first"
        cache.keys.index_copy_(0, batch.slot_mapping, call.key)
        cache.values.index_copy_(0, batch.slot_mapping, call.value)
        queries = call.query.split_with_sizes(batch.query_lens)
        keys = cache.keys.index_select(0, self._kv_slots).split_with_sizes(batch.kv_lens)
        values = cache.values.index_select(0, self._kv_slots).split_with_sizes(batch.kv_lens)
        is_plain = call.softcap is None and call.sinks is None
        attend_one = self._attend_fused if is_plain else self._attend_spelled_out
        return torch.cat([attend_one(call, *tensors) for tensors in zip(queries, keys, values, strict=True)])

    def _attend_fused(self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One sequence by PyTorch's own kernel: query [t, heads, D], key and value [L, kv heads, D]."""
        num_queries, num_heads, _ = query.shape
        num_kv_heads = key.shape[1]
        key, value = _visible(call, num_queries, key, value)
        k, v = key.transpose(0, 1).unsqueeze(0), value.transpose(0, 1).unsqueeze(0)
        if num_queries == 1:
            # The heads of a group stand in for query positions: no key is copied and none needs a mask.
            q = query.view(1, num_kv_heads, num_heads // num_kv_heads, -1)
            output = scaled_dot_product_attention(q, k, v, scale=call.scaling)
            return output.reshape(1, num_heads, -1)
        q = query.transpose(0, 1).unsqueeze(0)
        is_causal = num_queries == key.shape[0] and call.sliding_window is None
        output = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if is_causal else self._mask(num_queries, key.shape[0], call.sliding_window),
            is_causal=is_causal,
            scale=call.scaling,
            enable_gqa=num_heads != num_kv_heads,
        )
        return output[0].transpose(0, 1)

    def _attend_spelled_out(self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One sequence in single steps, for what the kernel can't do: softcap and sinks."""
        num_queries, num_heads, _ = query.shape
        key, value = _visible(call, num_queries, key, value)
        group = num_heads // key.shape[1]
        k = key.transpose(0, 1).repeat_interleave(group, dim=0)  # [heads, L, D]
        v = value.transpose(0, 1).repeat_interleave(group, dim=0)
        scores = (query.transpose(0, 1) @ k.transpose(1, 2)) * call.scaling  # [heads, t, L]
        if call.softcap is not None:
            scores = torch.tanh(scores / call.softcap) * call.softcap
        scores = scores.float()
        if num_queries > 1:
            mask = self._mask(num_queries, key.shape[0], call.sliding_window)
            scores = scores.masked_fill(~mask, float("-inf"))
        if call.sinks is not None:
            sinks = call.sinks.float().view(-1, 1, 1).expand(-1, num_queries, 1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = torch.softmax(scores, dim=-1)[..., : key.shape[0]].to(v.dtype)
        return (weights @ v).transpose(0, 1)

    def _mask(self, num_queries: int, num_keys: int, window: int | None) -> Tensor:
        """[t, L] bool, true where a query sees a key; the last query stands at the last key."""
        at = (num_queries, num_keys, window)
        if at not in self._masks:
            device = self._kv_slots.device
            behind = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None] - torch.arange(
                num_keys, device=device
            )
            mask = behind >= 0
            if window is not None:
                mask &= behind < window
            self._masks[at] = mask
        return self._masks[at]


def _visible(call: AttentionCall, num_queries: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values that at least one of the queries sees."""
    if call.sliding_window is None:
        return key, value
    first = max(0, key.shape[0] - num_queries - call.sliding_window + 1)
    return key[first:], value[first:]
