"""How does a tile of queries attend over pages? The Triton kernels; `attention_triton` launches them.

A program takes a tile of queries of one sequence with all heads that share a KV head (grouped queries become rows of one
matrix product), and goes over the keys in blocks, by online softmax. Keys are cut into segments of a fixed size, counted
from the first key. A segment's result is computed for itself and merged into those before it, always in that order:

- where a sequence has few queries (decode, guesses), its segments are programs of their own, and a second kernel merges;
- where it has many (prefill), one program does all segments, merging in registers, by the same operations.

So a query's result depends on its own keys only: not on the batch, the grid or the device's size. Blocks that a query
doesn't see change nothing in it, to the bit.

Sources: T. Dao et al., "FlashAttention", 2022 (online softmax by blocks); W. Kwon et al., "Efficient Memory Management for
Large Language Model Serving with PagedAttention", 2023; T. Dao et al., "Flash-Decoding for long-context inference", 2023
(splitting keys over programs).
"""

# Without annotations beyond Triton's own: what goes in are pointers, numbers and constants.

import triton
import triton.language as tl


@triton.jit
def store(
    key_ptr, value_ptr, keys_ptr, values_ptr, slots_ptr,
    key_t, key_h, value_t, value_h, keys_s, keys_h, values_s, values_h,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A token's key and value of one head go to the token's slot."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots_ptr + token)
    at = tl.arange(0, WIDTH)
    key = tl.load(key_ptr + token * key_t + head * key_h + at, mask=at < DIM)
    tl.store(keys_ptr + slot * keys_s + head * keys_h + at, key, mask=at < DIM)
    value = tl.load(value_ptr + token * value_t + head * value_h + at, mask=at < VALUE_DIM)
    tl.store(values_ptr + slot * values_s + head * values_h + at, value, mask=at < VALUE_DIM)


@triton.jit
def _merge(most, total, out, more, m_total, m_out):
    """Two parts of a softmax become one; an empty part (most = -inf, total = 0) changes nothing."""
    top = tl.maximum(most, more)
    safe = tl.where(top == float("-inf"), 0.0, top)
    old, new = tl.exp(most - safe), tl.exp(more - safe)
    return top, total * old + m_total * new, out * old[:, None] + m_out * new[:, None]


@triton.jit
def _segment(
    query, keys_ptr, values_ptr, table_ptr, keys_s, values_s, positions, begin, end, scaling, softcap, window,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, PAGE: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """Softmax over keys `begin` to `end` for each row: its greatest score, the sum of its weights, weighted values."""
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, VALUE_WIDTH], tl.float32)
    dim, value_dim = tl.arange(0, WIDTH), tl.arange(0, VALUE_WIDTH)
    for start in range(begin, end, KEYS):
        at = start + tl.arange(0, KEYS)
        there = at < end
        slot = tl.load(table_ptr + at // PAGE, mask=there, other=0).to(tl.int64) * PAGE + at % PAGE
        key = tl.load(
            keys_ptr + slot[:, None] * keys_s + dim[None, :], mask=there[:, None] & (dim[None, :] < DIM), other=0.0
        )
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scaling
        if HAS_SOFTCAP:
            score = softcap * (1.0 - 2.0 / (tl.exp(2.0 * (score / softcap)) + 1.0))  # tanh
        seen = there[None, :] & (at[None, :] <= positions[:, None])
        if HAS_WINDOW:
            seen = seen & (positions[:, None] - at[None, :] < window)
        score = tl.where(seen, score, float("-inf"))
        top = tl.maximum(most, tl.max(score, 1))
        safe = tl.where(top == float("-inf"), 0.0, top)
        weight, old = tl.exp(score - safe[:, None]), tl.exp(most - safe)
        value = tl.load(
            values_ptr + slot[:, None] * values_s + value_dim[None, :],
            mask=there[:, None] & (value_dim[None, :] < VALUE_DIM),
            other=0.0,
        )
        total = total * old + tl.sum(weight, 1)
        out = out * old[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        most = top
    return most, total, out


@triton.jit
def attend(
    query_ptr, keys_ptr, values_ptr, out_ptr, parts_ptr, most_ptr, total_ptr, sinks_ptr,
    tile_seqs_ptr, tile_firsts_ptr, tile_rows_ptr, query_starts_ptr, kv_lens_ptr, tables_ptr,
    query_t, query_h, keys_s, keys_h, values_s, values_h, out_t, out_h, table_width, num_segments,
    scaling, softcap, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, SEGMENT: tl.constexpr,
    PAGE: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SINKS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):  # fmt: skip
    """A tile of queries, the heads of one KV head; one segment (IS_SPLIT: a part goes out) or all (the result does)."""
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    seq = tl.load(tile_seqs_ptr + tile)
    first = tl.load(tile_firsts_ptr + tile)
    query_start = tl.load(query_starts_ptr + seq)
    num_queries = tl.load(query_starts_ptr + seq + 1) - query_start
    kv_len = tl.load(kv_lens_ptr + seq)
    row = tl.arange(0, ROWS)
    place = first + row // GROUP  # of the sequence's queries
    head = kv_head * GROUP + row % GROUP
    valid = (row < QUERIES * GROUP) & (place < num_queries)
    before = kv_len - num_queries  # keys that were there before this step
    positions = tl.where(valid, before + place, -1)  # -1 sees no key
    last = before + tl.minimum(first + QUERIES, num_queries) - 1
    lowest = before + first - window + 1 if HAS_WINDOW else 0
    lowest = tl.maximum(lowest, 0) // KEYS * KEYS

    dim, value_dim = tl.arange(0, WIDTH), tl.arange(0, VALUE_WIDTH)
    token = (query_start + place).to(tl.int64)
    query = tl.load(
        query_ptr + token[:, None] * query_t + head[:, None] * query_h + dim[None, :],
        mask=valid[:, None] & (dim[None, :] < DIM),
        other=0.0,
    )
    k_ptr, v_ptr, table_ptr = (
        keys_ptr + kv_head * keys_h,
        values_ptr + kv_head * values_h,
        tables_ptr + seq * table_width,
    )
    if IS_SPLIT:
        segment = tl.program_id(2)
        begin = tl.maximum(segment * SEGMENT, lowest)
        end = tl.minimum((segment + 1) * SEGMENT, last + 1)
        if begin < end:
            most, total, out = _segment(
                query, k_ptr, v_ptr, table_ptr, keys_s, values_s, positions, begin, end, scaling, softcap, window,
                DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, ROWS, KEYS, PAGE, HAS_SOFTCAP, HAS_WINDOW,
            )  # fmt: skip
            part_row = (tl.load(tile_rows_ptr + tile) + row // GROUP).to(tl.int64)
            part = (part_row * HEADS + head) * num_segments + segment
            tl.store(most_ptr + part, most, mask=valid)
            tl.store(total_ptr + part, total, mask=valid)
            tl.store(
                parts_ptr + part[:, None] * VALUE_DIM + value_dim[None, :],
                out,
                mask=valid[:, None] & (value_dim[None, :] < VALUE_DIM),
            )
    else:
        most = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        out = tl.zeros([ROWS, VALUE_WIDTH], tl.float32)
        for segment in range(lowest // SEGMENT, last // SEGMENT + 1):
            begin = tl.maximum(segment * SEGMENT, lowest)
            end = tl.minimum((segment + 1) * SEGMENT, last + 1)
            more, m_total, m_out = _segment(
                query, k_ptr, v_ptr, table_ptr, keys_s, values_s, positions, begin, end, scaling, softcap, window,
                DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, ROWS, KEYS, PAGE, HAS_SOFTCAP, HAS_WINDOW,
            )  # fmt: skip
            most, total, out = _merge(most, total, out, more, m_total, m_out)
        if HAS_SINKS:
            sink = tl.load(sinks_ptr + head, mask=valid, other=0.0).to(tl.float32)
            most, total, out = _merge(most, total, out, sink, tl.full([ROWS], 1.0, tl.float32), tl.zeros_like(out))
        tl.store(
            out_ptr + token[:, None] * out_t + head[:, None] * out_h + value_dim[None, :],
            (out / tl.where(valid, total, 1.0)[:, None]).to(out_ptr.dtype.element_ty),
            mask=valid[:, None] & (value_dim[None, :] < VALUE_DIM),
        )


@triton.jit
def merge_segments(
    parts_ptr, most_ptr, total_ptr, sinks_ptr, out_ptr, rows_ptr, positions_ptr, out_t, out_h, num_segments, window,
    HEADS: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_WIDTH: tl.constexpr, SEGMENT: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """The parts of one query and head, in the order of the keys."""
    row, head = tl.program_id(0), tl.program_id(1)
    token = tl.load(rows_ptr + row).to(tl.int64)
    position = tl.load(positions_ptr + token)
    lowest = tl.maximum(position - window + 1, 0) if HAS_WINDOW else position * 0
    value_dim = tl.arange(0, VALUE_WIDTH)
    one = tl.zeros([1], tl.float32)
    most = one - float("inf")
    total = one
    out = tl.zeros([1, VALUE_WIDTH], tl.float32)
    base = (row.to(tl.int64) * HEADS + head) * num_segments
    for segment in range(lowest // SEGMENT, position // SEGMENT + 1):
        part = base + segment
        more = one + tl.load(most_ptr + part)
        m_total = one + tl.load(total_ptr + part)
        m_out = tl.load(parts_ptr + part * VALUE_DIM + value_dim, mask=value_dim < VALUE_DIM, other=0.0)[None, :]
        most, total, out = _merge(most, total, out, more, m_total, m_out)
    if HAS_SINKS:
        sink = one + tl.load(sinks_ptr + head).to(tl.float32)
        most, total, out = _merge(most, total, out, sink, one + 1.0, tl.zeros_like(out))
    tl.store(
        out_ptr + token * out_t + head * out_h + value_dim[None, :],
        (out / total[:, None]).to(out_ptr.dtype.element_ty),
        mask=value_dim[None, :] < VALUE_DIM,
    )
