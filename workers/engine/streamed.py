"""How does an engine whose tokens are made elsewhere keep the contract? A stream for each choice, on a thread of their own.

The stepping thread owns all state. The other one runs an event loop with the streams; what they bring goes into a mailbox
that `step` empties. It never holds more than the tokens that the running choices may still generate.
"""

import asyncio
import heapq
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from workers.engine.engine import fault_of
from workers.engine.errors import EngineError
from workers.engine.flight import Recorder, no_record
from workers.engine.noise import row_key
from workers.engine.protocol import (
    EngineInfo,
    EngineStats,
    FinishReason,
    Logprob,
    Request,
    RequestFailed,
    SamplingParams,
    StepOutput,
    TierLoad,
    TokenDelta,
)
from workers.engine.sequence import Sequence, SequenceState, sequences_of

logger = logging.getLogger(__name__)

_WAIT_S = 0.02  # a step's longest wait: so long may a command lie unread
_CANCEL_S = 0.5
_CLOSE_S = 4.0  # the worker kills after 5
_SEED_BITS = (1 << 63) - 1
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class ChoiceRequest:
    """One choice as a source is asked for it: a prompt that holds what was generated before, and what is left to do."""

    name: str  # unique in this engine
    token_ids: list[int]  # prompt, then tokens that were generated before
    num_generated: int  # how many of them those are
    max_tokens: int  # at least 1
    min_tokens: int
    seed: int  # of this choice from this position on; unsigned 63 bits
    sampling: (
        SamplingParams  # the rest; its seed, max_tokens, min_tokens and stop_repeating are none of a source's business
    )
    priority: int
    cache_salt: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that came. The last piece of a stream has a finish reason; a final EOS token is among the tokens."""

    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: tuple[Logprob, ...] = ()
    cached_tokens: int = 0


class StreamFailed(Exception):
    """One request can't be served; the others can."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class SourceStats:
    """What a source knows of itself; None where it doesn't."""

    progress: int | None = None  # grows while it works; None: it watches its own time-outs
    waiting: int | None = None  # sequences that it hasn't begun
    kv_ratio: float | None = None  # share of its KV pages in use


class TokenSource(Protocol):
    """Where the tokens come from."""

    def stream(self, choice: ChoiceRequest) -> AsyncIterator[Piece]:
        """The choice's new tokens. Cancelling frees what it holds. Raises StreamFailed, or EngineError where all is lost."""
        ...

    def fault_of(self, sampling: SamplingParams) -> StreamFailed | None:
        """What of these parameters the source can't do."""
        ...

    def stats(self) -> SourceStats:
        """Its state; called from the stepping thread."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="streams", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, _Result]) -> "Future[_Result]":
        """Start it there. Cancelling the future cancels the task."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, _Result], timeout_s: float | None = None) -> _Result:
        """Run it there, wait for it here; raises what it raises, or TimeoutError."""
        return self.submit(work).result(timeout_s)

    def stop(self, last: Coroutine[Any, Any, None], timeout_s: float = _CLOSE_S) -> None:
        """Cancel what runs in the loop, run `last`, end the loop. What takes longer than `timeout_s` is left to itself."""
        try:
            self.run(self._end(last), timeout_s)
        except TimeoutError:
            logger.warning("the streams didn't end within %g s", timeout_s)
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self, last: Coroutine[Any, Any, None]) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=_CANCEL_S)
        await last
        await self._loop.shutdown_asyncgens()


class _Mailbox:
    """What streams bring, in order, from one thread to the other."""

    def __init__(self) -> None:
        self._news: deque[tuple[int, Piece | Exception]] = deque()
        self._has_news = threading.Event()

    def put(self, arrival: int, news: Piece | Exception) -> None:
        self._news.append((arrival, news))
        self._has_news.set()

    def take(self, wait_s: float) -> list[tuple[int, Piece | Exception]]:
        self._has_news.wait(wait_s)
        self._has_news.clear()  # before emptying: what comes in between is found now or rings again
        return [self._news.popleft() for _ in range(len(self._news))]


class StreamedEngine:
    """The `Engine` protocol over a source of token streams."""

    def __init__(self, info: EngineInfo, source: TokenSource, loop: LoopThread, *, max_streams: int | None) -> None:
        """`max_streams`: how many choices the source is given at once; None = all, it has a scheduler of its own."""
        self._info = info
        self._source = source
        self._loop = loop
        self._max_streams = max_streams
        self._eos_token_ids = frozenset(info.eos_token_ids)
        self._requests: dict[str, list[Sequence]] = {}  # only what hasn't finished
        self._by_arrival: dict[int, Sequence] = {}
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []  # a heap by tier and arrival
        self._streams: dict[int, Future[None]] = {}  # by arrival
        self._mailbox = _Mailbox()
        self._deltas: list[TokenDelta] = []  # to be reported by the next step
        self._failed: list[RequestFailed] = []
        self._num_arrived = 0
        self._num_steps = 0
        self._generated_tokens = 0
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._output_ratio = 1.0  # of what requests may generate, the share that they do: a moving average
        self.recorder: Recorder = no_record

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self._info

    def add(self, request: Request) -> None:
        """Take a request in; its faults are reported by the next `step`."""
        fault = fault_of(request, self._info, self._requests) or self._fault_of_parameters(request)
        if fault is not None:
            self._failed.append(fault)
            return
        sequences = sequences_of(request, self._num_arrived, self._info.max_model_len)
        self._num_arrived += len(sequences)
        unfinished = []
        for sequence in sequences:
            reason = sequence.finish_reason(self._eos_token_ids)
            if reason is None:
                self._by_arrival[sequence.arrival] = sequence
                heapq.heappush(self._waiting, (sequence.order, sequence))
                unfinished.append(sequence)
            else:  # it was resumed after its last token
                offset = sequence.num_generated
                self._deltas.append(TokenDelta(request.id, sequence.choice, offset, [], finish_reason=reason))
        if unfinished:
            self._requests[request.id] = unfinished
        self._open_streams()

    def abort(self, request_id: str, choice: int | None = None) -> None:
        """Forget a request or one of its choices, end its streams, report nothing more of it."""
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
        return bool(self._deltas or self._failed or self._by_arrival)

    def step(self) -> StepOutput:
        """Take in what has come. Raises EngineError when the source is lost."""
        deltas, self._deltas = self._deltas, []
        self._record()
        self._open_streams()
        for arrival, news in self._mailbox.take(0.0 if deltas or self._failed else _WAIT_S):
            sequence = self._by_arrival.get(arrival)
            if isinstance(news, Piece):
                if sequence is not None:
                    deltas.append(self._append(sequence, news))
            elif not isinstance(news, StreamFailed):
                raise news
            elif sequence is not None:
                name = sequence.request_id
                self.abort(name)
                deltas = [delta for delta in deltas if delta.request_id != name]
                self._failed.append(RequestFailed(name, news.code, str(news), news.retryable))
        failed, self._failed = self._failed, []
        self._num_steps += 1
        return StepOutput(deltas=deltas, failed=failed, stats=self.stats())

    def _record(self) -> None:
        members: dict[str, bool] = {}  # whether it has brought a token
        for sequence in self._by_arrival.values():
            members[sequence.request_id] = members.get(sequence.request_id, True) and sequence.has_reported
        self.recorder(list(members), [name for name, has_reported in members.items() if not has_reported])

    def stats(self) -> EngineStats:
        """The state now. KV blocks are the source's own figure, or what its running sequences would fill."""
        info, source = self._info, self._source.stats()
        sequences: dict[int, int] = {}
        tokens: dict[int, int] = {}
        for sequence in self._by_arrival.values():
            tier = sequence.priority
            expected = len(sequence.token_ids) + round(sequence.num_remaining * self._output_ratio)
            sequences[tier] = sequences.get(tier, 0) + 1
            tokens[tier] = tokens.get(tier, 0) + expected
        num_seqs, num_tokens = len(self._by_arrival), sum(tokens.values())
        # A source's own word is of its last step, and may be older than what it was given since.
        waiting = max(num_seqs - len(self._streams) + (source.waiting or 0), num_seqs - info.max_num_seqs)
        waiting = min(num_seqs, waiting)
        sequence_capacity = info.max_num_seqs + max(1, info.max_num_seqs // 8)
        token_capacity = info.num_blocks * info.block_size
        return EngineStats(
            step=self._num_steps if source.progress is None else source.progress,
            running=num_seqs - waiting,
            waiting=waiting,
            kv_blocks_used=self._num_blocks_used(source.kv_ratio),
            kv_blocks_total=info.num_blocks,
            token_room=max(0, token_capacity - num_tokens) if num_seqs < sequence_capacity else 0,
            generated_tokens=self._generated_tokens,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            token_capacity=token_capacity,
            sequence_capacity=sequence_capacity,
            load={tier: TierLoad(sequences[tier], tokens[tier]) for tier in sequences},
        )

    def close(self) -> None:
        """End all streams and the source; waits for it some seconds at most."""
        for sequence in list(self._by_arrival.values()):
            self._leave(sequence)
        self._loop.stop(self._source.close())

    def _fault_of_parameters(self, request: Request) -> RequestFailed | None:
        fault = self._source.fault_of(request.sampling)
        if fault is None and request.sampling.grammar is not None and any(request.resume):
            # The source would begin the grammar anew behind the resumed tokens.
            fault = StreamFailed("grammar_unsupported", "this engine can't resume an output that is kept to a grammar")
        return None if fault is None else RequestFailed(request.id, fault.code, str(fault), fault.retryable)

    def _open_streams(self) -> None:
        while self._waiting and (self._max_streams is None or len(self._streams) < self._max_streams):
            _, sequence = heapq.heappop(self._waiting)
            if sequence.state is SequenceState.WAITING:
                sequence.state = SequenceState.RUNNING
                self._streams[sequence.arrival] = self._loop.submit(self._follow(sequence.arrival, _asked_of(sequence)))

    async def _follow(self, arrival: int, choice: ChoiceRequest) -> None:
        """Bring a stream's pieces into the mailbox, and its end, whatever that is."""
        has_finished = False
        try:
            async for piece in self._source.stream(choice):
                if not has_finished:  # to its very end, so that a connection can serve the next one
                    self._mailbox.put(arrival, piece)
                has_finished = has_finished or piece.finish_reason is not None
        except (StreamFailed, EngineError) as error:
            self._mailbox.put(arrival, error)
        except Exception as error:
            logger.exception("a stream broke")
            message = f"the engine broke the request off ({type(error).__name__})"
            self._mailbox.put(arrival, StreamFailed("stream_broken", message, retryable=True))
        else:
            if not has_finished:
                message = "the engine's tokens ended without a finish reason"
                self._mailbox.put(arrival, StreamFailed("stream_broken", message, retryable=True))

    def _append(self, sequence: Sequence, piece: Piece) -> TokenDelta:
        """Take a piece's tokens, up to the one that ends the sequence by our own rules."""
        is_first = not sequence.has_reported
        sequence.has_reported = True
        offset = sequence.num_generated
        reason: FinishReason | None = None
        num_taken = 0
        for token_id in piece.token_ids:
            sequence.token_ids.append(token_id)
            num_taken += 1
            reason = sequence.finish_reason(self._eos_token_ids)
            if reason is not None:
                break
        reason = reason or piece.finish_reason
        self._generated_tokens += num_taken
        if is_first:
            self._prompt_tokens += sequence.num_prompt_tokens
            self._cached_tokens += piece.cached_tokens
        if reason is not None:
            share = sequence.num_generated / max(1, sequence.max_len - sequence.num_prompt_tokens)
            self._output_ratio += 0.05 * (share - self._output_ratio)
            if piece.finish_reason is not None:
                self._streams.pop(sequence.arrival)  # it ends by itself
            self._leave(sequence)
        return TokenDelta(
            sequence.request_id,
            sequence.choice,
            offset,
            piece.token_ids[:num_taken],
            finish_reason=reason,
            cached_tokens=piece.cached_tokens if is_first else 0,
            logprobs=list(piece.logprobs[:num_taken]),
        )

    def _leave(self, sequence: Sequence) -> None:
        sequence.state = SequenceState.LEFT
        del self._by_arrival[sequence.arrival]
        stream = self._streams.pop(sequence.arrival, None)
        if stream is not None:
            stream.cancel()  # does nothing to one that has ended
        rest = self._requests[sequence.request_id]
        rest.remove(sequence)
        if not rest:
            del self._requests[sequence.request_id]

    def _num_blocks_used(self, kv_ratio: float | None) -> int:
        info = self._info
        if not self._streams:
            return 0
        if kv_ratio is not None:
            return round(kv_ratio * info.num_blocks)
        held = (self._by_arrival[arrival] for arrival in self._streams)
        return min(info.num_blocks, sum(-(-len(sequence.token_ids) // info.block_size) for sequence in held))


def _asked_of(sequence: Sequence) -> ChoiceRequest:
    sampling, done = sequence.sampling, sequence.num_generated
    heeds_grammar = sampling.grammar is not None
    # The first choice's is the request's own, so that it can be compared with what the source itself makes of it.
    is_plain = sequence.choice == 0 and done == 0
    position = len(sequence.token_ids)
    return ChoiceRequest(
        name=f"{sequence.request_id}.{sequence.choice}.{sequence.arrival}",
        token_ids=list(sequence.token_ids),
        num_generated=done,
        max_tokens=sequence.num_remaining,
        min_tokens=0 if heeds_grammar else min(max(0, sampling.min_tokens - done), sequence.num_remaining),
        seed=sampling.seed if is_plain else row_key(sampling.seed, sequence.choice, position) & _SEED_BITS,
        sampling=sampling,
        priority=sequence.priority,
        cache_salt=sequence.cache_salt,
    )
