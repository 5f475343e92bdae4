"""Which pages of the KV pool are free, who holds the others, and which of them hold the beginning of a known text?

A full block can be found again by its key: a hash of its tokens and of the key of the block before it, so that a key
stands for everything from the first token on. The first block's parent is the salt: other salts never find it.
"""

from array import array
from collections.abc import Iterable
from collections.abc import Sequence as Items
from hashlib import blake2b


class OutOfBlocks(Exception):  # the scheduler's signal to make room, never seen by a user
    """Fewer blocks are free than were asked for; none was taken."""


def salt_key(salt: str) -> bytes:
    """The parent of a text's first block."""
    return blake2b(salt.encode(), digest_size=16, person=b"salt").digest()


def block_key(parent: bytes, token_ids: Items[int]) -> bytes:
    """The key of a full block; `parent` is the key of the one before it. 128 bits: nobody finds two alike."""
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


class BlockPool:
    """Pages of `block_size` tokens each, with reference counts and, for the published ones, keys.

    Invariants: a block is free if and only if its count is 0. A free block is either blank, or cached: then it has a key
    and is found by it until it is needed for something else, the one that was released first going first.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs blocks and tokens in them, not {num_blocks} blocks of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        # A stack: the block freed last is the one most likely still in the processor's cache.
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._cached: dict[int, None] = {}  # free blocks with a key, the least recently used first
        self._ref_counts = [0] * num_blocks
        self._keys: dict[int, bytes] = {}  # of published blocks, free or held
        self._blocks: dict[bytes, int] = {}  # the other way round

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._blank) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Of the free blocks, those that can be found again."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks `num_tokens` tokens fill."""
        return -(-num_tokens // self.block_size)

    def ref_count(self, block: int) -> int:
        """How many holders a block has."""
        return self._ref_counts[block]

    def is_published(self, block: int) -> bool:
        """Whether a block can be found by a key, so that nobody may write it."""
        return block in self._keys

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of a text's beginning, as far as they are here. They aren't taken: see `share`."""
        found = []
        for key in keys:
            block = self._blocks.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, each with one holder; raises OutOfBlocks, and then takes none."""
        if count > self.num_free:
            raise OutOfBlocks
        taken = [self._blank.pop() for _ in range(min(count, len(self._blank)))]
        while len(taken) < count:
            block = next(iter(self._cached))
            del self._cached[block]
            self.unpublish(block)
            taken.append(block)
        for block in taken:
            self._ref_counts[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add a holder to blocks that are held or cached."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                assert block in self._cached, "a blank block can't be shared"
                del self._cached[block]
            self._ref_counts[block] += 1

    def publish(self, block: int, key: bytes) -> None:
        """Let a full block be found from now on, unless another one is found by that key already."""
        assert self._ref_counts[block] > 0, "a free block can't be published"
        if key not in self._blocks and block not in self._keys:
            self._keys[block] = key
            self._blocks[key] = block

    def unpublish(self, block: int) -> None:
        """Let a block be found no more: it will be written."""
        key = self._keys.pop(block, None)
        if key is not None:
            del self._blocks[key]

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one holder of each block; those without any are free again."""
        for block in blocks:
            count = self._ref_counts[block] - 1
            assert count >= 0, "a free block can't be released"
            self._ref_counts[block] = count
            if count > 0:
                continue
            if block in self._keys:
                self._cached[block] = None
            else:
                self._blank.append(block)
