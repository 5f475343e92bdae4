import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.blocks import BlockPool, OutOfBlocks, block_key, salt_key


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


def test_a_published_block_is_found_until_it_is_needed_for_something_else():
    pool = BlockPool(2, 4)
    key = block_key(salt_key(""), [1, 2, 3, 4])
    (block,) = pool.allocate(1)
    pool.publish(block, key)
    pool.release([block])
    assert (pool.num_free, pool.num_cached, pool.num_used) == (2, 1, 0)
    assert pool.find([key, b"unknown", key]) == [block]
    pool.share([block])
    assert (pool.ref_count(block), pool.num_cached) == (1, 0)
    pool.release([block])
    assert block not in pool.allocate(1), "a blank one goes first"
    assert pool.allocate(1) == [block]
    assert pool.find([key]) == []


def test_the_least_recently_used_block_goes_first():
    pool = BlockPool(3, 4)
    blocks = pool.allocate(3)
    for block in blocks:
        pool.publish(block, bytes([block]))
        pool.release([block])
    pool.share(blocks[:1])
    pool.release(blocks[:1])
    assert pool.allocate(3) == [blocks[1], blocks[2], blocks[0]]


def test_of_two_blocks_with_the_same_key_the_first_is_found():
    pool = BlockPool(2, 4)
    first, second = pool.allocate(2)
    for block in (first, second):
        pool.publish(block, b"key")
    assert pool.find([b"key"]) == [first]
    assert not pool.is_published(second)
    pool.unpublish(second)
    assert pool.find([b"key"]) == [first]


def test_a_key_stands_for_all_tokens_so_far_and_for_the_salt():
    texts = [("", [1, 2]), ("", [2, 1]), ("a", [1, 2]), ("", [258])]
    first = [block_key(salt_key(salt), tokens) for salt, tokens in texts]
    assert len({*first, *(block_key(key, [1, 2]) for key in first)}) == 8


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
