"""What is new for a reader? Deltas, which may overlap, repeat or be missing, become events without gap and repeat."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from app.queue.events import ChoiceDelta
from app.streams.event import Event, Tokens, first_id, run_of, units_of


@dataclass(slots=True)
class _Told:
    """How far a choice was told."""

    tokens: int = 0
    chars: int = 0
    finished: bool = False


class Fold:
    """One place in one job's stream. It is moved on by deltas, from wherever they come, in the order in which they were written."""

    __slots__ = ("_choices", "_first_id", "_n", "_seeks", "_units", "has_gap", "run", "told")

    def __init__(self, n: int, after: int = 0) -> None:
        """For a job of `n` choices, and a reader who has all up to and with the event `after`."""
        self._n = n
        self.run = 0  # none yet
        self.told = after
        self.has_gap = False  # tokens are missing: only Postgres, at the end, or a new run helps
        self._choices: list[_Told] = []
        self._first_id = 0  # of the run
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
        events: list[Event] = []
        if run != self.run:
            if run < self.run:
                return events
            self._begin(run, events)
        for delta in deltas:
            if not self.has_gap:
                self._join(delta, events)
        return events

    def fork(self) -> "Fold":
        """Another one at the same place."""
        other = Fold(self._n, self.told)
        other.run, other.has_gap, other._units, other._seeks = self.run, self.has_gap, self._units, self._seeks
        other._first_id = self._first_id
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
        self._first_id = first_id(run)
        self._choices = [_Told() for _ in range(self._n)]
        if self._first_id > self.told:
            self.told = self._first_id
            events.append(Event(self._first_id, "started" if run == 1 else "restarted"))

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
        offset, text_offset = choice.tokens, choice.chars
        token_ids, text, logprobs = delta.token_ids, delta.text, delta.logprobs
        known = offset - delta.offset
        if known:  # else it begins where the last one ended, as nearly all do
            if known < 0:
                self.has_gap = True
                return
            if known > len(token_ids):
                return
            token_ids, text, logprobs = (
                token_ids[known:],
                text[max(0, text_offset - delta.text_offset) :],
                logprobs[known:],
            )
        reason = delta.finish_reason
        if not token_ids and reason is None:
            return
        choice.tokens += len(token_ids)
        choice.chars += len(text)
        choice.finished = reason is not None
        self._units += len(token_ids) + choice.finished
        event_id = self._first_id + self._units
        if event_id <= self.told:
            return
        self.told = event_id
        events.append(
            Tokens(event_id, "tokens", delta.choice, offset, text_offset, text, token_ids, reason, logprobs or None)
        )
