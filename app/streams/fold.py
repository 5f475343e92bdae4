"""What is new for a reader? Deltas, which may overlap, repeat or be missing, become events without gap and repeat."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from app.queue.events import ChoiceDelta
from app.streams.event import Event, first_id, run_of, units_of


@dataclass(slots=True)
class _Told:
    """How far a choice was told."""

    tokens: int = 0
    chars: int = 0
    finished: bool = False


class Fold:
    """One place in one job's stream. It is moved on by deltas, from wherever they come, in the order in which they were written."""

    __slots__ = ("_choices", "_n", "_seeks", "_units", "has_gap", "run", "told")

    def __init__(self, n: int, after: int = 0) -> None:
        """For a job of `n` choices, and a reader who has all up to and with the event `after`."""
        self._n = n
        self.run = 0  # none yet
        self.told = after
        self.has_gap = False  # tokens are missing: only Postgres, at the end, or a new run helps
        self._choices: list[_Told] = []
        self._units = 0
        # The only choice's place follows from the id, so that its stream need not be read from the beginning.
        self._seeks = n == 1 and units_of(after) > 0

    def has_all(self, run: int, num_tokens: int) -> bool:
        """Whether all tokens of a run that made so many were told, and that its choices have finished."""
        return (
            self.run == run
            and not (self.has_gap or self._seeks)
            and sum(choice.tokens for choice in self._choices) == num_tokens
            and all(choice.finished for choice in self._choices)
        )

    @property
    def seek(self) -> str:
        """The id in the job's Redis stream before which there is nothing new, for XREAD."""
        run = run_of(self.told)
        # A unit back: it may have been the choice's finish. XREAD's start is exclusive.
        seq = max(0, units_of(self.told) - 1) if self._seeks else 0
        return f"{run << 32 | seq}-0"

    def take(self, run: int, deltas: Iterable[ChoiceDelta]) -> list[Event]:
        """What these deltas of a run bring that is new."""
        if run < self.run:
            return []
        events: list[Event] = []
        if run > self.run:
            self._begin(run, events)
        for delta in deltas:
            if not self.has_gap:
                self._join(delta, events)
        return events

    def fork(self) -> "Fold":
        """Another one at the same place."""
        other = Fold(self._n, self.told)
        other.run, other.has_gap, other._units, other._seeks = self.run, self.has_gap, self._units, self._seeks
        other._choices = [replace(choice) for choice in self._choices]
        return other

    def stands_with(self, other: "Fold") -> bool:
        """Whether both would make the same of whatever comes."""
        return (self.run, self.told, self.has_gap, self._seeks, self._choices) == (
            other.run,
            other.told,
            other.has_gap,
            other._seeks,
            other._choices,
        )

    def _begin(self, run: int, events: list[Event]) -> None:
        if run != run_of(self.told):
            self._seeks = False
        self.run, self.has_gap, self._units = run, False, 0
        self._choices = [_Told() for _ in range(self._n)]
        if (event_id := first_id(run)) > self.told:
            self.told = event_id
            events.append(Event(id=event_id, kind="started" if run == 1 else "restarted"))

    def _join(self, delta: ChoiceDelta, events: list[Event]) -> None:
        if delta.choice >= self._n:
            self.has_gap = True  # nothing that we know how to tell
            return
        choice = self._choices[delta.choice]
        if self._seeks:
            if delta.offset > units_of(self.told):
                self.has_gap = True
                return
            self._seeks = False
            choice.tokens, choice.chars, self._units = delta.offset, delta.text_offset, delta.offset
        if choice.finished:
            return
        known = choice.tokens - delta.offset
        if known < 0:
            self.has_gap = True
            return
        num_new = len(delta.token_ids) - known
        if num_new < 0 or (num_new == 0 and delta.finish_reason is None):
            return
        known_chars = choice.chars - delta.text_offset if known else 0
        text = delta.text[max(0, known_chars) :]
        offset, text_offset = choice.tokens, choice.chars
        choice.tokens += num_new
        choice.chars += len(text)
        choice.finished = delta.finish_reason is not None
        self._units += num_new + choice.finished
        event_id = first_id(self.run) + self._units
        if event_id <= self.told:
            return
        self.told = event_id
        events.append(
            Event(
                id=event_id,
                kind="tokens",
                index=delta.choice,
                offset=offset,
                text_offset=text_offset,
                text=text,
                token_ids=delta.token_ids[known:] if known else delta.token_ids,
                logprobs=(delta.logprobs[known:] if known else delta.logprobs) or None,
                finish_reason=delta.finish_reason,
            )
        )
