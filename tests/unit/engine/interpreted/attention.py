"""The Triton kernels compute what the plain backend computes, and a row's bits are its own.

Under Triton's interpreter, hence in a process of their own: `tests/unit/engine/test_interpreted.py` starts it.
"""

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from tests.support.attention import Scene, assert_equal
from workers.engine.attention_torch import TorchAttention
from workers.engine.attention_triton import TritonAttention, segment_tokens

# The interpreter's own: numpy, as it computes 2 ** -inf and rows that nobody reads.
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch):
    """The interpreter keeps bfloat16 as 16-bit integers, and would multiply those."""
    multiply = interpreter.InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != interpreter.tl.bfloat16:
            return handle
        data = (handle.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(data, interpreter.tl.float32)

    def create_dot(self, left, right, *others):
        return multiply(self, widened(left), widened(right), *others)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


DECODE = [(1, 1), (15, 1), (16, 1), (17, 1), (127, 1), (128, 1), (129, 1), (300, 1)]
MIXED = [(300, 1), (9, 9), (140, 5), (1, 1), (70, 70), (150, 40), (128, 3), (257, 20)]


def over_both(cases, at_once):
    """Each case with rows of one query and with rows of any; the latter in the long matrix but for the case `at_once`."""
    assert at_once in cases
    marks = [[] if case == at_once else pytest.mark.long for case in cases]
    return [
        *(pytest.param(DECODE, case, id=f"decode-{case}") for case in cases),
        *(pytest.param(MIXED, case, id=f"mixed-{case}", marks=mark) for case, mark in zip(cases, marks, strict=True)),
    ]


HEADS = [(4, 4, 16, 16), (4, 2, 16, 16), (14, 2, 24, 24), (6, 1, 40, 16), (20, 1, 16, 8)]


@pytest.mark.parametrize(("lens", "shape"), over_both(HEADS, at_once=(6, 1, 40, 16)))
def test_heads_in_groups_and_dimensions_that_are_no_powers_of_two(lens, shape):
    heads, kv_heads, dim, value_dim = shape
    scene = Scene(lens, heads=heads, kv_heads=kv_heads, dim=dim, value_dim=value_dim)
    wanted = scene.run(TorchAttention())
    pool = scene.cache
    assert_equal(scene.run(TritonAttention(512, num_programs=12)), wanted)
    assert torch.equal(scene.cache.keys, pool.keys)
    assert torch.equal(scene.cache.values, pool.values)


EVERYTHING = {"softcap": 2.0, "sliding_window": 100, "sinks": True, "scaling": 1.1}
OPTIONS = [
    {"softcap": 0.7}, {"sliding_window": 1}, {"sliding_window": 20}, {"sliding_window": 130}, {"sinks": True}, EVERYTHING,
]  # fmt: skip


@pytest.mark.parametrize(("lens", "options"), over_both(OPTIONS, at_once=EVERYTHING))
def test_softcap_window_and_sinks(lens, options):
    scene = Scene(lens)
    options = options | ({"sinks": scene.sinks} if "sinks" in options else {})
    assert_equal(scene.run(TritonAttention(512, num_programs=12), **options), scene.run(TorchAttention(), **options))


@pytest.mark.parametrize(
    "block_size", [pytest.param(1, marks=pytest.mark.long), 7, pytest.param(32, marks=pytest.mark.long), 256]
)
def test_pages_of_any_size(block_size):
    scene = Scene(MIXED[:4] if block_size == 256 else MIXED, block_size=block_size)
    assert_equal(scene.run(TritonAttention(512, num_programs=12)), scene.run(TorchAttention()))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [pytest.param(torch.float16, 3e-3, marks=pytest.mark.long), (torch.bfloat16, 3e-2)]
)
def test_half_precision(dtype, tolerance):
    scene = Scene(MIXED, dtype=dtype)
    got = scene.run(TritonAttention(512, num_programs=12), sinks=scene.sinks)
    assert got[0].dtype == dtype
    exact = Scene(MIXED, dtype=dtype)
    for name in ("keys", "values", "sinks"):
        setattr(exact, name, getattr(exact, name).float())
    for name in ("query", "key", "value"):
        setattr(exact, name, [each.float() for each in getattr(exact, name)])
    assert_equal(got, exact.run(TorchAttention(), sinks=exact.sinks), tolerance)


@pytest.mark.parametrize(
    "options",
    [pytest.param({}, marks=pytest.mark.long), {"sliding_window": 140, "softcap": 2.0, "sinks": True}],
    ids=str,
)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(options):
    scene = Scene(MIXED)
    options = options | ({"sinks": scene.sinks} if "sinks" in options else {})
    together = scene.run(TritonAttention(512, num_programs=1), **options)
    others = scene.run(TritonAttention(512, num_programs=99), [6, 1, 4, 3, 0], **options)
    for place, output in zip([6, 1, 4, 3, 0], others, strict=True):
        assert torch.equal(output, together[place])
    for place, output in enumerate(together):
        (alone,) = scene.run(TritonAttention(512, num_programs=40), [place], **options)
        assert torch.equal(alone, output)


@pytest.mark.long
def test_uniform_rows_have_the_same_bits_however_their_sequence_was_cut_into_chunks():
    whole = Scene([(200, 200)])
    (wanted,) = whole.run(TritonAttention(512, uniform=True, num_programs=12), sinks=whole.sinks)
    pool = whole.cache
    for start, end in [(0, 1), (60, 77), (128, 129), (150, 200)]:
        part = Scene([(end, end - start)])
        part.keys, part.values, part.tables = pool.keys, pool.values, whole.tables
        for name in ("query", "key", "value"):
            setattr(part, name, [getattr(whole, name)[0][start:end]])
        (got,) = part.run(TritonAttention(512, uniform=True, num_programs=12), sinks=whole.sinks)
        assert torch.equal(got, wanted[start:end])


def test_segments_grow_with_the_longest_sequence_and_are_powers_of_two():
    assert [segment_tokens(length) for length in (1, 32_768, 32_769, 131_072)] == [128, 128, 256, 512]
    assert TritonAttention(131_072).scratch_bytes(2, 131_072, 8, 64) == 2 * 8 * 256 * 66 * 4
    assert TritonAttention(128).scratch_bytes(2, 128, 8, 64) == 0
