"""Which pages of the KV pool are free, and who holds the others?"""

from collections.abc import Iterable


class OutOfBlocks(Exception):  # the scheduler's signal to make room, never seen by a user
    """Fewer blocks are free than were asked for; none was taken."""


class BlockPool:
    """Pages of `block_size` tokens each, with reference counts.

    Invariant: a block is in the free list if and only if its count is 0.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs blocks and tokens in them, not {num_blocks} blocks of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        # A stack: the block freed last is the one most likely still in the processor's cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._ref_counts = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks `num_tokens` tokens fill."""
        return -(-num_tokens // self.block_size)

    def ref_count(self, block: int) -> int:
        """How many holders a block has."""
        return self._ref_counts[block]

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, each with one holder; raises OutOfBlocks, and then takes none."""
        if count > len(self._free):
            raise OutOfBlocks
        if count == 0:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        taken.reverse()
        for block in taken:
            self._ref_counts[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add a holder to blocks that are held already."""
        for block in blocks:
            assert self._ref_counts[block] > 0, "a free block can't be shared"
            self._ref_counts[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one holder of each block; those without any are free again."""
        for block in blocks:
            count = self._ref_counts[block] - 1
            assert count >= 0, "a free block can't be released"
            self._ref_counts[block] = count
            if count == 0:
                self._free.append(block)
