"""From where can a job go on whose worker was lost? From the tokens that its event stream holds."""

from dataclasses import dataclass, field
from uuid import UUID

from app.queue.events import ChoiceDelta, EventLog, JobEvent, Publication, StoredEvent, TokenLogprob
from app.queue.traces import Step

_PAGE = 1000  # entries a round trip


@dataclass(slots=True)
class ChoiceSoFar:
    """One choice as far as it was told to readers."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    num_chars: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a run has brought so far. It may be gone on with only by what would choose the same tokens (`made_by`)."""

    run: int
    made_by: str
    choices: list[ChoiceSoFar]
    steps: list[Step] = field(default_factory=list)  # in the order in which readers were told

    @property
    def num_tokens(self) -> int:
        """Of all choices."""
        return sum(len(choice.token_ids) for choice in self.choices)


async def read_checkpoint(log: EventLog, job_id: UUID, n: int) -> Checkpoint | None:
    """The job's newest run as its stream has it, for `n` choices; None where the stream can't be gone on from.

    Raises:
        RedisError: Redis doesn't answer.
    """
    entries: list[StoredEvent] = []
    after = "0-0"
    while page := await log.read(job_id, after=after, count=_PAGE):
        entries += page
        after = page[-1].place.entry_id
    return assemble(entries, n)


async def take_over(log: EventLog, job_id: UUID, known: Checkpoint, start: JobEvent) -> Checkpoint | None:
    """Begin an attempt that goes on from a checkpoint. From here on earlier ones, whose workers may not know that they are over, write
    nothing more.

    Returns:
        The checkpoint as it stands now, with what they wrote since it was read; None where it can't be gone on from any more.

    Raises:
        RedisError: Redis doesn't answer.
    """
    await log.publish([Publication(job_id, known.num_tokens, start, known.run)])
    found = await read_checkpoint(log, job_id, len(known.choices))
    return found if found is not None and found.run == known.run else None


def assemble(entries: list[StoredEvent], n: int) -> Checkpoint | None:
    """Put a stream's newest run together.

    None where its beginning is missing (trimmed, or lost with Redis), where there is a gap, or where two attempts told
    different tokens for the same place.
    """
    run = max((each.place.run for each in entries), default=0)
    events = [each.event for each in entries if each.place.run == run]
    made_by = next((event.made_by for event in events if event.made_by), "")
    checkpoint = Checkpoint(run, made_by, [ChoiceSoFar() for _ in range(n)])
    deltas = [delta for event in events for delta in event.deltas]
    if not made_by or not all(_join(checkpoint, delta) for delta in deltas):
        return None
    return checkpoint


def _join(checkpoint: Checkpoint, delta: ChoiceDelta) -> bool:
    """Take a delta in, which may overlap what is there; False where it doesn't fit."""
    if delta.choice >= len(checkpoint.choices):
        return False
    choice = checkpoint.choices[delta.choice]
    known = choice.token_ids[delta.offset :]
    shared = min(len(known), len(delta.token_ids))
    if delta.offset > len(choice.token_ids) or known[:shared] != delta.token_ids[:shared]:
        return False
    if len(delta.token_ids) >= shared and len(known) == shared:
        had_finished = choice.finish_reason is not None
        num_chars = len(delta.text) - (choice.num_chars - delta.text_offset if shared else 0)
        choice.token_ids += delta.token_ids[shared:]
        choice.logprobs += delta.logprobs[shared:]
        choice.finish_reason = choice.finish_reason or delta.finish_reason
        is_finished = choice.finish_reason is not None and not had_finished
        if len(delta.token_ids) > shared or is_finished:
            choice.num_chars += max(0, num_chars)
            checkpoint.steps.append(Step(delta.choice, len(delta.token_ids) - shared, max(0, num_chars), is_finished))
    return True
