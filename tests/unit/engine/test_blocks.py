import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.blocks import BlockPool, OutOfBlocks


def test_a_refused_allocation_takes_no_block():
    pool = BlockPool(4, 16)
    pool.allocate(3)
    with pytest.raises(OutOfBlocks):
        pool.allocate(2)
    assert pool.num_free == 1
    assert pool.num_used == 3


def test_a_shared_block_is_free_when_its_last_holder_lets_go():
    pool = BlockPool(2, 16)
    (block,) = pool.allocate(1)
    pool.share([block])
    pool.release([block])
    assert pool.num_used == 1
    pool.release([block])
    assert pool.num_used == 0


def test_the_block_freed_last_is_taken_first():
    pool = BlockPool(8, 16)
    blocks = pool.allocate(3)
    pool.release(blocks)
    assert pool.allocate(1) == blocks[-1:]


def test_a_free_block_can_be_neither_shared_nor_released():
    pool = BlockPool(2, 16)
    with pytest.raises(AssertionError):
        pool.share([0])
    with pytest.raises(AssertionError):
        pool.release([0])


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2)])
def test_blocks_for_tokens(tokens, blocks):
    assert BlockPool(4, 16).blocks_for(tokens) == blocks


def test_a_pool_needs_room():
    with pytest.raises(ValueError, match="needs blocks"):
        BlockPool(0, 16)


@given(st.lists(st.integers(-8, 8)))
def test_every_block_is_free_or_held(steps):
    pool = BlockPool(12, 4)
    held: list[int] = []
    for step in steps:
        if step >= 0:
            try:
                held += pool.allocate(step)
            except OutOfBlocks:
                assert step > 12 - len(held)
        else:
            pool.release(held[step:])
            del held[step:]
        assert len(set(held)) == len(held) == pool.num_used
        assert {block for block in range(12) if pool.ref_count(block)} == set(held)
