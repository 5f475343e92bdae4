"""A model without weights that knows what must lie in every slot of the KV pool, and says so if something else does."""

from random import Random

from workers.engine.blocks import BlockPool
from workers.engine.engine import OutOfMemory, Sampled
from workers.engine.noise import mix_64, row_key
from workers.engine.scheduler import Chunk, StepPlan
from workers.engine.sequence import Sequence

VOCAB_SIZE = 50
EOS_ID = 0


class PageOracle:
    """The engine's `TokenModel`. A slot holds a hash of all tokens up to its own, as real keys and values would.

    Of steps with more than one token, the share `shortages` finds no memory; of tokens that are chosen several in a row,
    the share `open_ratio` is left open.
    """

    def __init__(self, pool: BlockPool, *, shortages: float = 0.0, open_ratio: float = 0.0) -> None:
        self._pool = pool
        self._shortages = shortages
        self._open_ratio = open_ratio
        self._draw = Random(5)
        self.num_rounds = 0  # of several steps
        self._slots: list[int | None] = [None] * (pool.num_blocks * pool.block_size)
        self._hashes: dict[int, list[int]] = {}  # arrival -> of its tokens
        self.num_fed = 0
        self.num_copied = 0

    def run(self, plan: StepPlan) -> list[Sampled]:
        for arrival in plan.left:
            self._hashes.pop(arrival, None)
        size = self._pool.block_size
        for copy in plan.copies:
            source, target = copy.source * size, copy.target * size
            self._slots[target : target + size] = self._slots[source : source + size]
            self.num_copied += 1
        if sum(chunk.num_fed for chunk in plan.chunks) > 1 and self._draw.random() < self._shortages:
            raise OutOfMemory("no room")
        written: set[int] = set()
        if plan.num_steps > 1:
            self.num_rounds += 1
            return [each for chunk in plan.chunks for each in self._run_steps(chunk, plan.num_steps, written)]
        for chunk in plan.chunks:
            self._write(chunk, written)
        for chunk in plan.chunks:
            self._read(chunk)
        return [
            self._sample(chunk, place)
            for chunk in plan.chunks
            if chunk.samples
            for place in range(1 + len(chunk.guess))
        ]

    def _run_steps(self, chunk: Chunk, num_steps: int, written: set[int]) -> list[Sampled]:
        """Feed the tokens that were chosen: as long as nobody looks, also those after the end."""
        sequence, found = chunk.sequence, []
        assert chunk.count == 1
        assert not chunk.guess
        for step in range(num_steps):
            tokens = [each.token_id for each in found]
            now = Chunk(sequence, chunk.start, 1, samples=True, guess=tokens)
            if step < sequence.num_remaining:  # later ones go to the trash
                self._write(now, written, skip=step)
                self._read(now)
            found.append(self._sample(now, step))
        open_from = next((place for place in range(num_steps) if self._draw.random() < self._open_ratio), num_steps)
        return [*found[:open_from], *(Sampled(EOS_ID, is_open=True) for _ in found[open_from:])]

    def _write(self, chunk: Chunk, written: set[int], skip: int = 0) -> None:
        hashes = self._hashes_of(chunk)
        for position in range(chunk.start + skip, chunk.start + chunk.num_fed):
            slot = self._slot(chunk.sequence, position)
            block = slot // self._pool.block_size
            assert self._pool.ref_count(block) == 1, "a block was written that others hold"
            assert not self._pool.is_published(block), "a block was written that others can find"
            assert slot not in written
            written.add(slot)
            self._slots[slot] = hashes[position]
            self.num_fed += 1

    def _read(self, chunk: Chunk) -> None:
        hashes = self._hashes_of(chunk)
        for position in range(chunk.start + chunk.num_fed):
            found = self._slots[self._slot(chunk.sequence, position)]
            assert found == hashes[position], f"position {position} of {chunk.sequence} has another text's content"

    def _sample(self, chunk: Chunk, place: int) -> Sampled:
        sequence = chunk.sequence
        position = len(sequence.token_ids) + place
        return Sampled(choose(sequence.sampling.seed, sequence.choice, position, self._hashes_of(chunk)[position - 1]))

    def _slot(self, sequence: Sequence, position: int) -> int:
        size = self._pool.block_size
        return sequence.block_table[position // size] * size + position % size

    def _hashes_of(self, chunk: Chunk) -> list[int]:
        """Of a sequence's tokens and of those that are guessed to follow."""
        sequence = chunk.sequence
        hashes = self._hashes.setdefault(sequence.arrival, [])
        for token in sequence.token_ids[len(hashes) :]:
            hashes.append(mix_64((hashes[-1] if hashes else mix_64(hash(sequence.cache_salt) % 2**64)) + token + 1))
        if not chunk.guess:
            return hashes
        hashes = list(hashes)
        for token in chunk.guess:
            hashes.append(mix_64(hashes[-1] + token + 1))
        return hashes


def choose(seed: int, choice: int, position: int, state: int) -> int:
    """The next token. Every other seed makes for texts with loops, so that there is something to guess right."""
    if seed % 2:
        return 1 + position % 6 if position % 29 else EOS_ID + 7
    return mix_64(row_key(seed, choice, position) ^ state) % VOCAB_SIZE


def expected_tokens(prompt_ids: list[int], salt: str, seed: int, choice: int, count: int) -> list[int]:
    """What `PageOracle` generates from a prompt, by itself."""
    state, generated = mix_64(hash(salt) % 2**64), []
    for token in prompt_ids:
        state = mix_64(state + token + 1)
    while len(generated) < count and EOS_ID not in generated:
        generated.append(choose(seed, choice, len(prompt_ids) + len(generated), state))
        state = mix_64(state + generated[-1] + 1)
    return generated
