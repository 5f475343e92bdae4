"""What does this worker run now? One object a job: its tokens, its text, what isn't published yet."""

from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from app.jobs.finish import Ending
from app.jobs.notices import Used
from app.jobs.states import EndStatus
from app.jobs.store import StartedJob
from app.jobs.timing import Timing
from app.queue.checkpoints import Checkpoint, ChoiceSoFar
from app.queue.events import ChoiceDelta, TokenLogprob
from app.queue.traces import Step, Trace
from workers.engine.detokenize import Detokenizer
from workers.engine.protocol import Moved, TokenDelta
from workers.engine.token_bytes import TokenBytes

MAX_PREEMPTED = 32  # times that are kept of an attempt
_PROMPT_TAIL = 8  # tokens that a detokenizer sees of the prompt, so that a continuation joins it seamlessly


@dataclass(slots=True)
class Choice:
    """One of a job's n choices as it grows."""

    index: int
    detokenizer: Detokenizer
    is_structured: bool = False
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    unpublished: ChoiceDelta | None = None
    num_unreadable: int = 0  # tokens that the tokenizer couldn't write: nobody is told of them, but they were computed
    last_token_at: float | None = None  # when its last token came
    _undecoded: list[int] = field(default_factory=list)  # tokens that aren't text yet
    _new_logprobs: list[TokenLogprob] = field(default_factory=list)  # theirs
    _offset: int = 0  # of the first of them

    def resume(self, known: ChoiceSoFar) -> None:
        """Go on from what readers know. The text follows from the tokens."""
        self.text, stopped = self.detokenizer.push(known.token_ids)
        self.token_ids, self.logprobs = list(known.token_ids), list(known.logprobs)
        self.finish_reason = "stop" if stopped else known.finish_reason
        if self.finish_reason is not None and not stopped:
            self.text += self.detokenizer.flush(whole_only=self.is_structured)

    @property
    def num_tokens(self) -> int:
        """Tokens that the choice has, those that aren't text yet included."""
        return len(self.token_ids) + len(self._undecoded)

    def take(self, delta: TokenDelta) -> bool:
        """Take new tokens in; return whether a stop string ended the choice, so that the engine need not go on."""
        if self.finish_reason is not None:
            return False  # the engine was a step ahead of our stop string
        if not self._undecoded:
            self._offset = delta.offset
        self._undecoded += delta.token_ids
        self._new_logprobs += [TokenLogprob(each.chosen, each.top_ids, each.top_logprobs) for each in delta.logprobs]
        if delta.finish_reason is None and not self.detokenizer.has_stop_strings:
            return False  # their text isn't needed before somebody is told: many tokens cost little more than one
        return self.decode(delta.finish_reason)

    def decode(self, finish_reason: str | None = None) -> bool:
        """Turn what was taken into text, the choice's end with `finish_reason` included; return whether a stop string came."""
        if not self._undecoded and finish_reason is None:
            return False
        new, self._undecoded = self._undecoded, []
        logprobs, self._new_logprobs = self._new_logprobs, []
        before = self.detokenizer.num_tokens
        self.num_unreadable = len(new)  # unless it comes to the end of this
        text, stopped = self.detokenizer.push(new)
        taken = self.detokenizer.num_tokens - before
        if stopped:
            self.finish_reason = "stop"
        elif finish_reason is not None:
            self.finish_reason = finish_reason
            # Half a character would spoil what is a beginning of a valid document.
            text += self.detokenizer.flush(whole_only=self.is_structured)
        self.num_unreadable = 0
        new, logprobs = new[:taken], logprobs[:taken]
        self.token_ids += new
        self.logprobs += logprobs
        self.text += text
        waiting = self.unpublished
        self.unpublished = ChoiceDelta(
            choice=self.index,
            offset=waiting.offset if waiting else self._offset,
            token_ids=[*waiting.token_ids, *new] if waiting else new,
            text=waiting.text + text if waiting else text,
            text_offset=waiting.text_offset if waiting else len(self.text) - len(text),
            finish_reason=self.finish_reason,
            logprobs=[*waiting.logprobs, *logprobs] if waiting else logprobs,
        )
        return stopped

    def result(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The choice as it is stored and shown. Logprobs are in the form of OpenAI's chat completions, and have ids besides."""
        shown: dict[str, Any] = {"index": self.index, "text": self.text, "finish_reason": self.finish_reason}
        if self.logprobs:
            token_bytes = TokenBytes(tokenizer)
            shown["logprobs"] = {
                "content": [
                    _shown(token_bytes, token_id, entry.chosen)
                    | {
                        "top_logprobs": [
                            _shown(token_bytes, top_id, value)
                            for top_id, value in zip(entry.top_ids, entry.top_logprobs, strict=True)
                        ]
                    }
                    for token_id, entry in zip(self.token_ids, self.logprobs, strict=False)
                ]
            }
        return shown


def _shown(token_bytes: TokenBytes, token_id: int, logprob: float) -> dict[str, Any]:
    of_token = token_bytes.of(token_id)
    # NUL can be no part of a text in Postgres; `bytes` has it.
    text = of_token.decode(errors="replace").replace("\x00", "\N{REPLACEMENT CHARACTER}")
    return {"token": text, "token_id": token_id, "bytes": list(of_token), "logprob": logprob}


class RunningJob:
    """A started attempt. It leaves the hand when Postgres has its end, not before."""

    def __init__(self, started: StartedJob, tokenizer: Tokenizer, now: float) -> None:
        self.started = started
        is_structured = bool(started.sampling.get("grammar"))
        # A grammar speaks of every character, also of a space at the beginning.
        continues_text = started.request.get("messages") is None or is_structured
        tail = started.prompt_ids[-_PROMPT_TAIL:] if continues_text else []
        self._tokenizer = tokenizer
        stop: list[str] = started.sampling.get("stop", [])
        self.choices = [Choice(i, Detokenizer(tokenizer, stop, tail), is_structured) for i in range(started.n)]
        self.deadline: float | None = None if started.deadline_in_s is None else now + started.deadline_in_s
        self.taken_at = now
        self.first_token_at: float | None = None  # of this attempt
        self.ended_at: float | None = None  # when its end was decided
        self.cached_tokens = 0
        self.run = started.attempt  # the attempt that this one's tokens go on from: itself, unless it is resumed
        self.num_resumed = 0  # tokens that an earlier attempt made
        self.steps: list[Step] = []  # what was published to readers, in order
        self.published_at: float | None = None  # when that was last
        self.is_read = False  # whether somebody is known to read it as it comes
        self.preempted: list[dict[str, Any]] = []  # its choices that lost their KV pages: when, and when they came back
        self._num_published = 0  # tokens
        self.num_discarded = 0  # tokens that readers were told and that don't count any more
        self._unreadable: Exception | None = None  # what its tokens did to the tokenizer
        self.is_handed_over = False  # to the engine
        self.has_output = False  # whether the engine has brought anything in this attempt
        self.is_ending = False  # an ending or give-back is on its way to Postgres: outputs and cancels come too late

    @property
    def request_id(self) -> str:
        """The engine's name for this attempt: outputs of an older attempt can't be mistaken for ours."""
        return request_id_of(self.started)

    def age_s(self, now: float) -> float:
        """Seconds since its submission."""
        return self.started.age_s + now - self.taken_at

    @property
    def timing(self) -> Timing:
        """Where this attempt's time went, once its end is decided."""
        assert self.ended_at is not None
        first_at = self.ended_at if self.first_token_at is None else self.first_token_at
        return Timing(self.started.waited_s, first_at - self.taken_at, self.ended_at - first_at)

    @property
    def cost(self) -> int:
        """Most tokens that the job can hold at once."""
        return self.started.cost

    @property
    def num_generated(self) -> int:
        """Tokens of all choices so far that are or may become text, resumed ones included: the sequence number of the job's next event."""
        return sum(choice.num_tokens for choice in self.choices)

    @property
    def num_unfinished(self) -> int:
        """Choices that hold a place in the engine."""
        return 0 if self.is_ending else sum(choice.finish_reason is None for choice in self.choices)

    @property
    def is_complete(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.finish_reason is not None for choice in self.choices)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from the tokens of an earlier attempt, before this one has made any."""
        for choice, known in zip(self.choices, checkpoint.choices, strict=True):
            choice.resume(known)
        self.run = checkpoint.run
        self.num_resumed = self._num_published = self.num_generated
        self.steps = list(checkpoint.steps)

    def take(self, delta: TokenDelta) -> bool:
        """Take new tokens in; return whether the engine shall drop this choice.

        Raises:
            Exception: whatever the tokenizer raised at these tokens, or at some that were taken before.
        """
        if self._unreadable is not None:
            raise self._unreadable
        self.has_output = True
        cached_tokens = min(delta.cached_tokens, len(self.started.prompt_ids))  # of resumed ones, too, by the engine
        self.cached_tokens = max(self.cached_tokens, cached_tokens)
        return self.choices[delta.choice].take(delta)

    def take_unpublished(self, *, at_end: bool = False) -> list[ChoiceDelta]:
        """What readers haven't been told yet; they count as told from here on.

        A finish without a token waits for the next token of any choice, or for the end: its event would have the id of the last.
        """
        if self._num_published == self.num_generated and not at_end:
            return []
        self._decode()
        deltas = self._unpublished()
        self._num_published = self.num_generated
        self.steps += [_step_of(delta) for delta in deltas]
        for choice in self.choices:
            choice.unpublished = None
        return deltas

    def _unpublished(self) -> list[ChoiceDelta]:
        return [choice.unpublished for choice in self.choices if choice.unpublished is not None]

    def _decode(self) -> None:
        """Turn all that was taken into text. Who only wants to know what there is isn't the one to fail the job: the next `take` is."""
        for choice in self.choices:
            try:
                choice.decode()
            except Exception as error:  # noqa: BLE001 - the per-job edge, raised later
                self._unreadable = error

    def _trace(self) -> bytes:
        """How readers were told, what they will be told with the end included."""
        steps = self.steps + [_step_of(delta) for delta in self._unpublished()]
        return Trace.of(self.run, steps, [choice.token_ids for choice in self.choices]).pack()

    def used(self) -> Used:
        """Tokens that the job has cost so far, were it to end now: resumed ones count once, here."""
        return Used(len(self.started.prompt_ids), self.cached_tokens, self.num_generated + self._num_unreadable)

    def wasted(self, *, is_kept: bool) -> Used:
        """Tokens that were computed for nothing if this attempt ends now; `is_kept`: others can resume from its tokens."""
        lost = self._num_unreadable + (0 if is_kept else self.num_generated - self.num_resumed)
        num_prompt = len(self.started.prompt_ids) if self.is_handed_over else 0
        return Used(num_prompt, self.cached_tokens, lost + self.num_discarded)

    @property
    def _num_unreadable(self) -> int:
        return sum(choice.num_unreadable for choice in self.choices)

    def move(self, moved: Moved, now: float) -> None:
        """Note that one of its choices lost its place in the batch, or got it back, at `now` on the monotonic clock."""
        at_s = round(now - self.taken_at, 3)
        if not moved.is_back:
            if len(self.preempted) < MAX_PREEMPTED:
                self.preempted.append({"choice": moved.choice, "out_s": at_s, "back_s": None})
            return
        for each in self.preempted:
            if each["choice"] == moved.choice and each["back_s"] is None:
                each["back_s"] = at_s

    def detail(self, known: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """What is kept of this attempt, for operators: `known`, and when it was preempted."""
        return {**(known or {}), "preempted": self.preempted} if self.preempted else known

    def ending(self, status: EndStatus, error: dict[str, Any] | None = None) -> Ending:
        """This attempt's end, billed for what was computed; what there is of a text is kept, whatever the end."""
        self._decode()
        used, is_billed = self.used(), status != "failed"
        # What is billed for output has a result to show, though none of it be text.
        has_text = status == "succeeded" or (used.completion_tokens if is_billed else self.num_generated) > 0
        return Ending(
            self.started.job_id,
            self.started.attempt,
            status,
            choices=[choice.result(self._tokenizer) for choice in self.choices] if has_text else None,
            error=error,
            used=used,
            wasted=Used(0, 0, self.num_discarded),
            billed=is_billed,
            outcome=status,
            detail=self.detail(),
            trace=self._trace() if has_text else None,
            timing=None if self.ended_at is None else self.timing,
        )


def _step_of(delta: ChoiceDelta) -> Step:
    return Step(delta.choice, len(delta.token_ids), len(delta.text), delta.finish_reason is not None)


def request_id_of(job: StartedJob) -> str:
    """The engine's name for an attempt: job and attempt."""
    return f"{job.job_id.hex}.{job.attempt}"
