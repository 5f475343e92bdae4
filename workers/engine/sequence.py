"""What is known of one choice of one request while it is being generated?"""

from dataclasses import dataclass, field
from enum import Enum

from workers.engine.protocol import FinishReason, Request, SamplingParams
from workers.engine.repetition import runs_in_circles


class SequenceState(Enum):
    """Where a sequence is: `waiting` holds no block, `running` is in the batch, `left` is gone for good."""

    WAITING = "waiting"
    RUNNING = "running"
    LEFT = "left"


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice: its tokens, how many of them are in the KV pool, and in which blocks.

    Invariants: `num_computed < len(token_ids)` between steps (the last token is always still to be fed), and
    `block_table` covers at least `num_computed` tokens.
    """

    request_id: str
    choice: int
    priority: int  # lower runs first, and may take the place of higher ones
    arrival: int  # order of arrival in this engine; unique, so it also serves as a name
    sampling: SamplingParams
    max_len: int  # tokens, prompt + output, at which it ends with "length"
    token_ids: list[int]  # prompt, then generated
    num_prompt_tokens: int
    num_computed: int = 0  # tokens whose keys and values are in the pool
    block_table: list[int] = field(default_factory=list)
    state: SequenceState = SequenceState.WAITING
    num_preemptions: int = 0
    num_cached_tokens: int | None = (
        None  # prompt tokens that an earlier request had left in the pool; None = not known yet
    )
    cache_salt: str = ""  # blocks are found only under the salt that they were published under
    block_keys: list[bytes] = field(default_factory=list)  # of its full blocks, as far as they were asked for
    siblings: "list[Sequence]" = field(
        default_factory=list, repr=False
    )  # all choices of its request, if there are more
    has_reported: bool = False  # whether a token of this stay in the engine went out

    @property
    def num_generated(self) -> int:
        """Tokens generated so far, resumed ones included."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_pending(self) -> int:
        """Tokens that must be fed before the next one can be sampled; 1 while decoding."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_remaining(self) -> int:
        """Tokens that it may still generate."""
        return self.max_len - len(self.token_ids)

    @property
    def order(self) -> tuple[int, int]:
        """The one order of everything: tier, then arrival."""
        return (self.priority, self.arrival)

    def finish_reason(self, eos_token_ids: frozenset[int]) -> FinishReason | None:
        """Why it ends after the tokens that it has, or None if it goes on."""
        sampling = self.sampling
        heeds_eos = sampling.grammar is not None or not sampling.ignore_eos
        if self.num_generated > 0 and heeds_eos and self.token_ids[-1] in eos_token_ids:
            return "stop"
        if self.num_remaining <= 0:
            return "length"
        if sampling.stop_repeating > 1 and self.num_generated >= sampling.min_tokens:
            is_circle = runs_in_circles(self.token_ids, self.num_prompt_tokens, sampling.stop_repeating)
            return "stop" if is_circle else None
        return None


def sequences_of(request: Request, first_arrival: int, max_model_len: int) -> list[Sequence]:
    """One sequence for each choice of a request; resumed tokens count as generated."""
    prompt_len = len(request.prompt_ids)
    max_len = min(prompt_len + request.sampling.max_tokens, max_model_len)
    sequences = []
    for choice in range(request.n):
        resumed = request.resume[choice] if choice < len(request.resume) else []
        sequences.append(
            Sequence(
                request_id=request.id,
                choice=choice,
                priority=request.priority,
                arrival=first_arrival + choice,
                sampling=request.sampling,
                max_len=max_len,
                token_ids=[*request.prompt_ids, *resumed],
                num_prompt_tokens=prompt_len,
                cache_salt=request.cache_salt,
            )
        )
    if request.n > 1:
        for sequence in sequences:
            sequence.siblings = sequences
    return sequences
