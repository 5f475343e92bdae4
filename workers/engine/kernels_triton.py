"""Which kernels does paged attention on a GPU consist of? Written in Triton, run by `attention_triton`.

A program works on a tile: some queries of one sequence, times all query heads that share a KV head. Keys are read in
groups of BLOCK_N that begin at multiples of BLOCK_N of the *sequence's own* positions, and long sequences are cut at
multiples of SEGMENT, never by how much else is to be done. So what a row adds up, and in which order, follows from its
own sequence alone.

Sources: M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", 2018; T. Dao et al.,
"FlashAttention", 2022 and "Flash-Decoding for long-context inference", 2023; W. Kwon et al., "Efficient Memory
Management for Large Language Model Serving with PagedAttention", 2023.
"""

# Triton's language isn't Python's: its types can't be written down for mypy.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, no-any-return, assignment, misc"

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)  # scores are kept in base 2, in which the hardware has an exponential


@triton.jit
def write_pages(
    key,  # [tokens, kv heads, HEAD_DIM]
    value,  # [tokens, kv heads, VALUE_DIM]
    keys,  # [slots, kv heads, HEAD_DIM], dense
    values,  # [slots, kv heads, VALUE_DIM], dense
    slot_mapping,  # [tokens]
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
):
    """Copy one token's key and value of one head to its slot. Grid: tokens, kv heads."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = tl.load(slot_mapping + token) * tl.num_programs(1) + head
    dims = tl.arange(0, HEAD_PAD)
    inside = dims < HEAD_DIM
    loaded = tl.load(key + token * key_token_stride + head * key_head_stride + dims, mask=inside)
    tl.store(keys + row * HEAD_DIM + dims, loaded, mask=inside)
    dims = tl.arange(0, VALUE_PAD)
    inside = dims < VALUE_DIM
    loaded = tl.load(value + token * value_token_stride + head * value_head_stride + dims, mask=inside)
    tl.store(values + row * VALUE_DIM + dims, loaded, mask=inside)


@triton.jit
def attend_pages(
    query,  # [tokens, heads, HEAD_DIM]
    keys,  # [slots, kv heads, HEAD_DIM], dense
    values,  # [slots, kv heads, VALUE_DIM], dense
    output,  # [tokens, heads, VALUE_DIM], dense
    sums,  # [tiles, kv heads, segments, rows of a tile, VALUE_DIM] float32, if SEGMENT
    peaks,  # [tiles, kv heads, segments, rows of a tile] float32, if SEGMENT
    totals,  # like peaks
    sinks,  # [heads], if HAS_SINKS
    tiles,  # [tiles, 2], sequence and first query, if HAS_TILES; else tile n is the only query of sequence n
    query_starts,  # [seqs + 1]
    seq_lens,  # [seqs], keys that are in the pool, those of this call included
    block_tables,  # [seqs, blocks]
    scale,
    softcap,
    window,
    query_token_stride,
    query_head_stride,
    table_stride,
    num_segments,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    GROUP: tl.constexpr,  # query heads of a KV head
    BLOCK_SIZE: tl.constexpr,  # tokens of a page
    BLOCK_Q: tl.constexpr,  # queries of a tile; it has BLOCK_Q * GROUP rows
    BLOCK_M: tl.constexpr,  # the same, padded
    BLOCK_N: tl.constexpr,
    SEGMENT: tl.constexpr,  # keys after which a sum is cut, a multiple of BLOCK_N; 0 = never
    HAS_TILES: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """Attend for one tile and KV head. Grid: tiles, kv heads, parts; a part takes every n-th segment.

    A tile that sees one segment only writes its output; of one that sees several, `merge_segments` makes it.
    """
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    num_kv_heads = tl.num_programs(1)
    part = tl.program_id(2)
    if HAS_TILES:
        sequence = tl.load(tiles + 2 * tile)
        first_query = tl.load(tiles + 2 * tile + 1)
    else:
        sequence = tile.to(tl.int64)
        first_query = sequence * 0
    begin = tl.load(query_starts + sequence)
    num_queries = tl.load(query_starts + sequence + 1) - begin
    num_before = tl.load(seq_lens + sequence) - num_queries

    rows = tl.arange(0, BLOCK_M)
    place = first_query + rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    is_row = (rows < BLOCK_Q * GROUP) & (place < num_queries)
    position = tl.where(is_row, num_before + place, -1)  # -1 sees nothing
    dims = tl.arange(0, HEAD_PAD)
    tile_query = tl.load(
        query + ((begin + place) * query_token_stride + head * query_head_stride)[:, None] + dims[None, :],
        mask=is_row[:, None] & (dims < HEAD_DIM)[None, :],
        other=0.0,
    )
    high = num_before + tl.minimum(first_query + BLOCK_Q, num_queries)  # the first key that no row sees
    low = high * 0
    if HAS_WINDOW:
        low = tl.maximum(num_before + first_query - window + 1, 0)

    value_dims = tl.arange(0, VALUE_PAD)
    output_at = output + ((begin + place) * (num_kv_heads * GROUP) + head)[:, None] * VALUE_DIM + value_dims[None, :]
    is_output = is_row[:, None] & (value_dims < VALUE_DIM)[None, :]
    table = block_tables + sequence * table_stride
    step = BLOCK_N if SEGMENT == 0 else SEGMENT
    first = low // step
    last = (high - 1) // step
    if SEGMENT == 0:
        total_sum, peak, total = _fold(
            tile_query, position, keys, values, table, kv_head, num_kv_heads, low // BLOCK_N * BLOCK_N, high,
            scale, softcap, window,
            HEAD_DIM, HEAD_PAD, VALUE_DIM, VALUE_PAD, BLOCK_SIZE, BLOCK_M, BLOCK_N, HAS_SOFTCAP, HAS_WINDOW,
        )  # fmt: skip
        result = _finish(total_sum, peak, total, sinks, head, is_row, HAS_SINKS)
        tl.store(output_at, result.to(output.dtype.element_ty), mask=is_output)
    else:
        for segment in range(first + part, last + 1, tl.num_programs(2)):
            begin_key = tl.maximum(low, segment * SEGMENT) // BLOCK_N * BLOCK_N
            end_key = tl.minimum(high, (segment + 1) * SEGMENT)
            total_sum, peak, total = _fold(
                tile_query, position, keys, values, table, kv_head, num_kv_heads, begin_key, end_key,
                scale, softcap, window,
                HEAD_DIM, HEAD_PAD, VALUE_DIM, VALUE_PAD, BLOCK_SIZE, BLOCK_M, BLOCK_N, HAS_SOFTCAP, HAS_WINDOW,
            )  # fmt: skip
            if first == last:
                result = _finish(total_sum, peak, total, sinks, head, is_row, HAS_SINKS)
                tl.store(output_at, result.to(output.dtype.element_ty), mask=is_output)
            else:
                base = ((tile.to(tl.int64) * num_kv_heads + kv_head) * num_segments + segment) * (BLOCK_Q * GROUP)
                tl.store(peaks + base + rows, peak, mask=is_row)
                tl.store(totals + base + rows, total, mask=is_row)
                tl.store(sums + (base + rows)[:, None] * VALUE_DIM + value_dims[None, :], total_sum, mask=is_output)


@triton.jit
def merge_segments(
    output,
    sums,
    peaks,
    totals,
    sinks,
    tiles,
    query_starts,
    seq_lens,
    window,
    num_segments,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SEGMENT: tl.constexpr,
    HAS_TILES: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """Add up the segments of each row, from the first to the last. Arguments as above. Grid: tiles, kv heads."""
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    num_kv_heads = tl.num_programs(1)
    if HAS_TILES:
        sequence = tl.load(tiles + 2 * tile)
        first_query = tl.load(tiles + 2 * tile + 1)
    else:
        sequence = tile.to(tl.int64)
        first_query = sequence * 0
    begin = tl.load(query_starts + sequence)
    num_queries = tl.load(query_starts + sequence + 1) - begin
    num_before = tl.load(seq_lens + sequence) - num_queries
    high = num_before + tl.minimum(first_query + BLOCK_Q, num_queries)
    low = high * 0
    if HAS_WINDOW:
        low = tl.maximum(num_before + first_query - window + 1, 0)
    first = low // SEGMENT
    last = (high - 1) // SEGMENT
    if first < last:
        rows = tl.arange(0, BLOCK_M)
        place = first_query + rows // GROUP
        head = kv_head * GROUP + rows % GROUP
        is_row = (rows < BLOCK_Q * GROUP) & (place < num_queries)
        dims = tl.arange(0, VALUE_PAD)
        is_output = is_row[:, None] & (dims < VALUE_DIM)[None, :]
        base = (tile.to(tl.int64) * num_kv_heads + kv_head) * num_segments
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        if HAS_SINKS:
            top = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32) * _LOG2_E
        start = top
        for segment in range(first, last + 1):
            at = (base + segment) * (BLOCK_Q * GROUP) + rows
            top = tl.maximum(top, tl.load(peaks + at, mask=is_row, other=0.0))
        total = tl.exp2(start - top)
        total_sum = tl.zeros([BLOCK_M, VALUE_PAD], tl.float32)
        for segment in range(first, last + 1):
            at = (base + segment) * (BLOCK_Q * GROUP) + rows
            fade = tl.exp2(tl.load(peaks + at, mask=is_row, other=0.0) - top)
            total += tl.load(totals + at, mask=is_row, other=1.0) * fade
            total_sum += (
                tl.load(sums + at[:, None] * VALUE_DIM + dims[None, :], mask=is_output, other=0.0) * fade[:, None]
            )
        output_at = output + ((begin + place) * (num_kv_heads * GROUP) + head)[:, None] * VALUE_DIM + dims[None, :]
        tl.store(output_at, (total_sum / total[:, None]).to(output.dtype.element_ty), mask=is_output)


@triton.jit
def _fold(
    query,
    position,
    keys,
    values,
    table,
    kv_head,
    num_kv_heads,
    begin,
    end,
    scale,
    softcap,
    window,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """Weighted sum of the values of keys begin to end [BLOCK_M, VALUE_PAD], the highest score and the weights' total [BLOCK_M].

    Keys that a row doesn't see change nothing in it, not even a bit: they weigh exactly 0, before the first one that it
    sees as well as after the last.
    """
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    total_sum = tl.zeros([BLOCK_M, VALUE_PAD], tl.float32)
    dims = tl.arange(0, HEAD_PAD)
    value_dims = tl.arange(0, VALUE_PAD)
    for start in range(begin, end, BLOCK_N):
        at = start + tl.arange(0, BLOCK_N)
        inside = at < end
        block = tl.load(table + at // BLOCK_SIZE, mask=inside, other=0)
        row = (block * BLOCK_SIZE + at % BLOCK_SIZE) * num_kv_heads + kv_head
        key = tl.load(
            keys + row[None, :] * HEAD_DIM + dims[:, None],
            mask=inside[None, :] & (dims < HEAD_DIM)[:, None],
            other=0.0,
        )
        scores = tl.dot(query, key, input_precision="ieee") * scale
        if HAS_SOFTCAP:
            decay = tl.exp2(tl.abs(scores) * (-2.0 * _LOG2_E / softcap))
            squashed = softcap * (1.0 - decay) / (1.0 + decay)
            scores = tl.where(scores < 0, -squashed, squashed)
        is_seen = inside[None, :] & (at[None, :] <= position[:, None])
        if HAS_WINDOW:
            is_seen &= position[:, None] - at[None, :] < window
        scores = tl.where(is_seen, scores * _LOG2_E, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        level = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores - level[:, None])
        fade = tl.exp2(peak - level)
        value = tl.load(
            values + row[:, None] * VALUE_DIM + value_dims[None, :],
            mask=inside[:, None] & (value_dims < VALUE_DIM)[None, :],
            other=0.0,
        )
        total = total * fade + tl.sum(weights, 1)
        total_sum = total_sum * fade[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        peak = new_peak
    return total_sum, peak, total


@triton.jit
def _finish(total_sum, peak, total, sinks, head, is_row, HAS_SINKS: tl.constexpr):
    """The weighted mean, a sink's share taken off."""
    if HAS_SINKS:
        sink = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32) * _LOG2_E
        top = tl.maximum(peak, sink)
        fade = tl.exp2(peak - top)
        total = total * fade + tl.exp2(sink - top)
        total_sum = total_sum * fade[:, None]
    total = tl.where(is_row, total, 1.0)
    return total_sum / total[:, None]
