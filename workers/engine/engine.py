"""How do requests become tokens? The engine's loop: schedule, run the model, settle. No torch in it."""

import logging
import math
from collections.abc import Callable, Container
from collections.abc import Sequence as Items
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

from workers.engine.flight import Recorder, no_record
from workers.engine.pressure import MemoryPressure
from workers.engine.protocol import (
    EngineInfo,
    EngineStats,
    Grammar,
    Logprob,
    Moved,
    Request,
    RequestFailed,
    SlowStep,
    StepOutput,
    TierLoad,
    TokenDelta,
)
from workers.engine.scheduler import Chunk, Scheduler, StepPlan
from workers.engine.sequence import Sequence, SequenceState, sequences_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token that a sampling chunk brought forth."""

    token_id: int
    logprob: Logprob | None = None
    fault: str | None = None  # why its request has to fail, if it has to; the token then means nothing
    is_open: bool = False  # not decided in this round: this token and those after it mean nothing


class OutOfMemory(Exception):  # the model's signal to plan less, never seen by a user
    """The device had no room for a step. Its copies are made; nothing else of it counts."""


_CHECK_WAIT_S = 0.005  # commands that come meanwhile wait as long


class TokenModel(Protocol):
    """What the loop needs of a model."""

    def run(self, plan: StepPlan) -> Items[Sampled]:
        """Make the copies, feed all chunks; `Sampled` in the chunks' order: of each chunk that samples, the token after
        its last pending one, then, for each guessed token, the one after it if all guesses up to there are right. With
        `plan.num_steps` above 1: so many tokens of each chunk. Raises OutOfMemory.
        """
        ...


class GrammarCheck(Protocol):
    """What the loop needs to know about grammars."""

    def begin(self, grammar: Grammar) -> "Future[Any]":
        """Check it without holding anybody up; the future raises for one that can't be used, best with a `code`."""
        ...


@dataclass(frozen=True, slots=True)
class _Checking:
    """A request whose grammar is being looked at."""

    request: Request
    verdict: "Future[Any]"
    dropped: set[int] = field(default_factory=set)  # choices that were aborted meanwhile


class PagedEngine:
    """The `Engine` protocol over a scheduler and a model."""

    def __init__(
        self,
        info: EngineInfo,
        scheduler: Scheduler,
        model: TokenModel,
        grammars: GrammarCheck | None = None,
        *,
        decode_steps: int = 1,
        slow_step_s: float = 0.0,
        timer: Callable[[], float] = perf_counter,
    ) -> None:
        """`decode_steps`: the most tokens of a sequence between two looks at them. `slow_step_s`: a step that takes longer is told of; 0: none is."""
        self._info = info
        self._scheduler = scheduler
        self._model = model
        self._grammars = grammars
        self._eos_token_ids = frozenset(info.eos_token_ids)
        self._requests: dict[str, list[Sequence]] = {}  # only what hasn't finished
        self._checking: dict[str, _Checking] = {}  # not among the requests yet
        self._deltas: list[TokenDelta] = []  # to be reported by the next step
        self._failed: list[RequestFailed] = []
        self._num_arrived = 0
        self._num_steps = 0
        self._generated_tokens = 0
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._guessed_tokens = 0
        self._accepted_tokens = 0
        self._decode_steps = decode_steps
        self._slow_step_s = slow_step_s or math.inf
        self._timer = timer
        self._must_look = False  # whether a token was left open, so that it has to be chosen in a step of its own
        self._max_num_seqs = scheduler.max_num_seqs
        self._pressure = MemoryPressure(scheduler.max_batch_tokens)
        self._output_ratio = 1.0  # of what requests may generate, the share that they do: a moving average
        self.recorder: Recorder = no_record

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self._info

    def add(self, request: Request) -> None:
        """Take a request in; its faults are reported by the next `step`."""
        self.recorder([request.id], [request.id])
        fault = self._fault_of(request)
        if fault is not None:
            self._failed.append(fault)
        elif request.sampling.grammar is None:
            self._admit(request)
        else:
            assert self._grammars is not None, "a fault"
            self._checking[request.id] = _Checking(request, self._grammars.begin(request.sampling.grammar))
            self._admit_checked()

    def _admit(self, request: Request) -> None:
        sequences = sequences_of(request, self._num_arrived, self._info.max_model_len)
        self._num_arrived += len(sequences)
        unfinished = []
        for sequence in sequences:
            reason = sequence.finish_reason(self._eos_token_ids)
            if reason is None:
                self._scheduler.add(sequence)
                unfinished.append(sequence)
            else:  # it was resumed after its last token
                offset = sequence.num_generated
                self._deltas.append(TokenDelta(request.id, sequence.choice, offset, [], finish_reason=reason))
        if unfinished:
            self._requests[request.id] = unfinished

    def abort(self, request_id: str, choice: int | None = None) -> None:
        """Forget a request or one of its choices, free its blocks, report nothing more of it."""
        if choice is None:
            self._checking.pop(request_id, None)
        elif request_id in self._checking:
            self._checking[request_id].dropped.add(choice)
        for sequence in list(self._requests.get(request_id, ())):
            if choice is None or sequence.choice == choice:
                self._leave(sequence)
        self._deltas = [
            delta
            for delta in self._deltas
            if delta.request_id != request_id or (choice is not None and delta.choice != choice)
        ]

    def has_work(self) -> bool:
        """Whether `step` would do or report anything."""
        return bool(self._deltas or self._failed or self._checking) or self._scheduler.has_work()

    def step(self) -> StepOutput:
        """Schedule, run, settle. With nothing to run but grammars being checked, wait a moment for those."""
        self._admit_checked()
        if self._checking and not (self._deltas or self._failed or self._scheduler.has_work()):
            wait([each.verdict for each in self._checking.values()], _CHECK_WAIT_S, FIRST_COMPLETED)
            self._admit_checked()
        deltas, self._deltas = self._deltas, []
        failed, self._failed = self._failed, []
        began, preempted = self._timer(), self._scheduler.num_preemptions
        plan = self._scheduler.plan(1 if self._must_look else self._decode_steps)
        if plan.chunks or plan.left:
            self._record(plan)
            try:
                sampled = self._model.run(plan)
            except OutOfMemory as error:
                self._relieve(plan, error)
            else:
                deltas += self._settle(plan, sampled)
                if self._pressure.grow():
                    self._limit()
            failed += self._failed
            self._failed = []
        self._num_steps += 1
        seconds = self._timer() - began
        slow = (
            None if seconds <= self._slow_step_s else _slow(plan, seconds, self._scheduler.num_preemptions - preempted)
        )
        moved = [
            Moved(each.sequence.request_id, each.sequence.choice, each.is_back) for each in self._scheduler.take_moves()
        ]
        return StepOutput(deltas=deltas, failed=failed, moved=moved, stats=self.stats(), slow=slow)

    def stats(self) -> EngineStats:
        """The state now."""
        pool, scheduler = self._scheduler.pool, self._scheduler
        sequences: dict[int, int] = {}
        tokens: dict[int, int] = {}
        for source in (scheduler.running, scheduler.waiting):
            for sequence in source:
                tier = sequence.priority
                expected = len(sequence.token_ids) + round(sequence.num_remaining * self._output_ratio)
                sequences[tier] = sequences.get(tier, 0) + 1
                tokens[tier] = tokens.get(tier, 0) + expected
        for each in self._checking.values():
            tier, n = each.request.priority, each.request.n
            expected = len(each.request.prompt_ids) + round(each.request.sampling.max_tokens * self._output_ratio)
            sequences[tier] = sequences.get(tier, 0) + n
            tokens[tier] = tokens.get(tier, 0) + n * expected
        num_seqs, num_tokens = sum(sequences.values()), sum(tokens.values())
        # A few may wait, so that a slot that falls free is filled in the same step.
        sequence_capacity = scheduler.max_num_seqs + max(1, scheduler.max_num_seqs // 8)
        token_capacity = max(0, pool.num_blocks - scheduler.watermark) * pool.block_size
        return EngineStats(
            step=self._num_steps,
            running=len(scheduler.running),
            waiting=num_seqs - len(scheduler.running),
            kv_blocks_used=pool.num_used,
            kv_blocks_total=pool.num_blocks,
            token_room=max(0, token_capacity - num_tokens) if num_seqs < sequence_capacity else 0,
            preemptions=scheduler.num_preemptions,
            generated_tokens=self._generated_tokens,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            guessed_tokens=self._guessed_tokens,
            accepted_tokens=self._accepted_tokens,
            token_capacity=token_capacity,
            sequence_capacity=sequence_capacity,
            load={tier: TierLoad(sequences[tier], tokens[tier]) for tier in sequences},
            batch_tokens=self._pressure.num_tokens,
            memory_shortages=self._pressure.num_shortages,
        )

    def close(self) -> None:
        """Nothing to let go of."""

    def _record(self, plan: StepPlan) -> None:
        members: dict[str, bool] = {}  # whether it has brought a token
        for chunk in plan.chunks:
            name = chunk.sequence.request_id
            members[name] = members.get(name, True) and chunk.sequence.has_reported
        self.recorder(list(members), [name for name, has_reported in members.items() if not has_reported])

    def _relieve(self, plan: StepPlan, error: OutOfMemory) -> None:
        """Plan less from now on; a request whose sequence finds no room even alone, with one token, fails."""
        num_fed = sum(chunk.num_fed for chunk in plan.chunks)
        if num_fed > 1:
            self._pressure.shrink(num_fed)
            self._limit()
            logger.warning(
                "out of memory with %d tokens (%s): trying with %d", num_fed, error, self._pressure.num_tokens
            )
        elif plan.num_steps > 1:
            self._must_look = True
        else:
            name = plan.chunks[0].sequence.request_id
            logger.warning("out of memory with a single token (%s): request %s fails", error, name)
            self.abort(name)
            message = "the device has no memory left for this request, even alone and one token at a time"
            self._failed.append(RequestFailed(name, "out_of_memory", message))

    def _limit(self) -> None:
        num_tokens = self._pressure.num_tokens
        self._scheduler.limit(min(self._max_num_seqs, num_tokens), num_tokens)

    def _settle(self, plan: StepPlan, sampled: Items[Sampled]) -> list[TokenDelta]:
        """Advance the sequences, append what was sampled, let the finished go."""
        deltas = []
        results = iter(sampled)
        self._must_look = False
        for chunk in plan.chunks:
            if chunk.samples:
                rows = [next(results) for _ in range(max(plan.num_steps, 1 + len(chunk.guess)))]
                if chunk.sequence.state is SequenceState.LEFT:  # a sibling failed
                    continue
                if rows[0].is_open:
                    self._must_look = True
                    continue
                if rows[0].fault is None:
                    deltas.append(self._append(chunk, rows))
                else:
                    name = chunk.sequence.request_id
                    self.abort(name)
                    deltas = [delta for delta in deltas if delta.request_id != name]
                    self._failed.append(RequestFailed(name, "grammar_failed", rows[0].fault))
            elif chunk.sequence.state is not SequenceState.LEFT:
                self._scheduler.advance(chunk)
        return deltas

    def _append(self, chunk: Chunk, results: list[Sampled]) -> TokenDelta:
        """Take a chunk's new tokens, up to the end, to one that is open, or to the first that wasn't guessed right.

        What comes after that was made from something that isn't so.
        """
        sequence = chunk.sequence
        is_first = not sequence.has_reported
        sequence.has_reported = True
        offset = sequence.num_generated
        kept = []
        reason = None
        for place, result in enumerate(results):
            if result.is_open or result.fault is not None:  # the first has no fault: the next step meets it there
                break
            sequence.token_ids.append(result.token_id)
            kept.append(result)
            reason = sequence.finish_reason(self._eos_token_ids)
            if reason is not None or (place < len(chunk.guess) and result.token_id != chunk.guess[place]):
                break
        self._scheduler.advance(chunk, num_right=len(kept) - 1)
        self._generated_tokens += len(kept)
        if chunk.guess:
            self._guessed_tokens += len(chunk.guess)
            self._accepted_tokens += len(kept) - 1
        if is_first:
            self._prompt_tokens += sequence.num_prompt_tokens
            self._cached_tokens += sequence.num_cached_tokens or 0
        if reason is not None:
            share = sequence.num_generated / max(1, sequence.max_len - sequence.num_prompt_tokens)
            self._output_ratio += 0.05 * (share - self._output_ratio)
            self._leave(sequence)
        return TokenDelta(
            sequence.request_id,
            sequence.choice,
            offset,
            [result.token_id for result in kept],
            finish_reason=reason,
            cached_tokens=(sequence.num_cached_tokens or 0) if is_first else 0,
            logprobs=[result.logprob for result in kept if result.logprob is not None],
        )

    def _leave(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        rest = self._requests[sequence.request_id]
        rest.remove(sequence)
        if not rest:
            del self._requests[sequence.request_id]

    def _fault_of(self, request: Request) -> RequestFailed | None:
        """Why a request can never be served, or None."""
        fault = fault_of(request, self._info, {*self._requests, *self._checking})
        if fault is None and request.sampling.grammar is not None and self._grammars is None:
            return RequestFailed(request.id, "grammar_unsupported", "this engine can't keep outputs to a grammar")
        return fault

    def _admit_checked(self) -> None:
        """Let those whose grammar has been looked at in, or say why not."""
        for each in [each for each in self._checking.values() if each.verdict.done()]:
            request, grammar = each.request, each.request.sampling.grammar
            assert grammar is not None
            del self._checking[request.id]
            error = each.verdict.exception()
            if error is None:
                self._admit(request)
                for choice in each.dropped:
                    self.abort(request.id, choice)
            else:
                code = getattr(error, "code", "grammar_unchecked")
                self._failed.append(RequestFailed(request.id, code, f"the {grammar.noun} can't be used: {error}"))


def fault_of(request: Request, info: EngineInfo, known: Container[str]) -> RequestFailed | None:
    """Why a request can never be served by any engine of these measures, or None. `known`: ids that are in it already."""
    length = len(request.prompt_ids)
    tokens = [request.prompt_ids, *request.resume, list(request.sampling.logit_bias)]
    if request.id in known:
        code, message = "duplicate_request", f"request {request.id} is in the engine already"
    elif length == 0:
        code, message = "prompt_empty", "the prompt has no tokens; send at least one"
    elif length >= info.max_model_len:
        code = "prompt_too_long"
        message = (
            f"the prompt has {length} tokens, but prompt and output together may have {info.max_model_len} here "
            f"(the model's limit, or what {info.num_blocks} KV blocks of {info.block_size} tokens hold)"
        )
    elif any(ids and (min(ids) < 0 or max(ids) >= info.vocab_size) for ids in tokens):
        code, message = "token_id_invalid", f"token ids must be from 0 to {info.vocab_size - 1}"
    elif request.n < 1 or request.sampling.max_tokens < 1 or len(request.resume) > request.n:
        code, message = "request_invalid", "n and max_tokens must be at least 1, and resume have at most n entries"
    else:
        return None
    return RequestFailed(request.id, code, message)


def _slow(plan: StepPlan, seconds: float, preempted: int) -> SlowStep:
    decoding = [chunk for chunk in plan.chunks if chunk.samples and chunk.count == 1]
    fed = sum(chunk.num_fed for chunk in plan.chunks)
    decoded = sum(chunk.num_fed for chunk in decoding)
    return SlowStep(seconds, len(plan.chunks), fed - decoded, decoded * plan.num_steps, preempted)
