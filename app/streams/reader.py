"""What waits for one reader? A bounded buffer, filled by the hub and emptied by whoever reads."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from app.db import is_outage
from app.streams.event import Event, Tokens, wire
from app.streams.fold import Fold
from app.streams.rows import Ended, Output

_CHUNK_EVENTS = 200  # of a finished job, told at once
_PARTS = 8  # in which a finished job's output is loaded at most: each time all of it is read
_RETRY_S = 1.0  # after Postgres didn't answer


class Item:
    """An event and its bytes on the wire, made once for all readers who need them."""

    __slots__ = ("_wire", "event", "size")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.size = _size(event)
        self._wire: bytes | None = None

    @property
    def wire(self) -> bytes:
        """As it is sent."""
        if self._wire is None:
            self._wire = wire(self.event)
        return self._wire


def _size(told: Event) -> int:
    """What it takes in memory, in bytes, about."""
    if not isinstance(told, Tokens):
        return 200
    logprobs = told.logprobs or ()
    num_top = len(logprobs[0].top_ids) if logprobs else 0  # as many in each place
    return 200 + len(told.text) + 8 * len(told.token_ids) + (100 + 32 * num_top) * len(logprobs)


def wire_of(items: Sequence[Item]) -> bytes:
    """Items as they are sent, in one piece."""
    return items[0].wire if len(items) == 1 else b"".join([item.wire for item in items])


class Spare:
    """What the readers of one process may hold of finished jobs' outputs, all together. It may be overdrawn: each may hold a little."""

    __slots__ = ("num_bytes",)

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes


class Reader:
    """One reader of one job. `read` gives what is new; whoever has read enough calls `close`."""

    __slots__ = (
        "_beats",
        "_ended",
        "_has_more",
        "_items",
        "_load",
        "_now",
        "_num_bytes",
        "_num_taken",
        "_on_close",
        "_on_room",
        "_rest",
        "_rest_bytes",
        "_spare",
        "_unsent",
        "_waiter",
        "busy_since",
        "cut_off",
        "fold",
        "heard_at",
        "is_closed",
        "job_id",
        "most_bytes",
        "outlet",
        "stalled",
    )

    def __init__(
        self,
        job_id: UUID,
        fold: Fold,
        *,
        most_bytes: int,
        load: Callable[[UUID], Awaitable[Output]],
        on_close: Callable[["Reader"], None],
        now: Callable[[], float],
        spare: Spare,
    ) -> None:
        """`load` reads a finished job's output; `fold` is this reader's place, once no hub moves it on any more.

        Of that output it holds what is `spare`, at least `most_bytes` and a `_PARTS`th of it, and loads it again for the rest.
        """
        self.job_id = job_id
        self.fold = fold
        self.most_bytes = most_bytes
        self.heard_at = now()  # when something was last put in
        self.busy_since = 0.0  # since when what was read is on its way; 0: more is waited for
        self.cut_off = False
        self.is_closed = False
        self.stalled: Callable[[], object] | None = None  # what stops a write that goes nowhere
        # Where news go while `read` waits for them.
        self.outlet: Callable[[bytes], Awaitable[None] | None] | None = None
        self._unsent: Awaitable[None] | None = None  # what the outlet hasn't finished
        self._items: deque[Item] = deque()
        self._num_bytes = 0
        self._beats = False
        self._ended: Ended | None = None
        self._rest: deque[Event] = deque()  # of a finished job's row, what comes next
        self._rest_bytes = 0  # of what is spare
        self._num_taken = 0  # of its deltas, into `_rest`
        self._has_more = True  # that weren't
        self._spare = spare
        self._waiter: asyncio.Future[None] | None = None
        self._load = load
        self._on_room: Callable[[], None] | None = None
        self._on_close = on_close
        self._now = now

    # The hub's side.

    @property
    def is_full(self) -> bool:
        """Whether no more may be put in."""
        return self._num_bytes >= self.most_bytes

    def offer(self, event: Event, now: float) -> bool:
        """Tell it at once, where it is waited for (so nothing is before it) and there is an outlet; whether it was."""
        waiter, outlet = self._waiter, self.outlet
        if waiter is None or outlet is None or waiter.done():
            return False
        self.heard_at = now
        self._unsent = outlet(wire(event))
        if self._unsent is not None:
            self._block(waiter)
        return True

    def put(self, items: Sequence[Item], num_bytes: int, now: float) -> None:
        """Something new, of this size; `tell` tells the reader of all that was put in."""
        self.heard_at = now
        self._items += items
        self._num_bytes += num_bytes

    def tell(self) -> None:
        """There may be news. A reader that waits for them and has an outlet gets them through it: no task is woken for it."""
        waiter = self._waiter
        if not self._items or waiter is None or waiter.done():
            return
        if self.outlet is None:
            waiter.set_result(None)
            return
        self._unsent = self.outlet(wire_of(self._take()))
        if self._unsent is not None:
            self._block(waiter)

    def _block(self, waiter: "asyncio.Future[None]") -> None:
        """What the outlet has begun is to be ended by the task that reads."""
        self.busy_since = self._now()
        waiter.set_result(None)

    def call_at_room(self, on_room: Callable[[], None]) -> None:
        """Have this called once the buffer is half empty."""
        self._on_room = on_room

    def beat(self) -> None:
        """Nothing new: let `read` return, so that the connection is kept."""
        self._beats = True
        self._wake()

    def end(self, ended: Ended, fold: Fold, *, is_complete: bool) -> None:
        """The job has ended. The reader stands at `fold` when its buffer is empty; `is_complete`: there are no more tokens."""
        self._ended, self.fold = ended, fold
        self._has_more = not is_complete
        self._wake()

    def cut(self) -> None:
        """Let it go, wherever it stands."""
        self.cut_off = True
        self._drop_rest()
        if self.busy_since and self.stalled is not None:
            self.stalled()
        self._wake()

    # The reader's own side.

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to read, and never will be."""
        return self._ended is not None and not self._items and self.fold.told >= self._ended.event.id

    async def read(self) -> list[Item] | None:
        """What is new, at least one; nothing where it is time to say that one is there still; None after the end, or when cut off.

        Raises:
            SQLAlchemyError: Postgres refuses to give the output, for another reason than that it is away.
        """
        self.busy_since = 0.0
        items = await self._next()
        self.busy_since = self._now()
        return items

    def close(self) -> None:
        """Read no more."""
        if not self.is_closed:
            self.is_closed = True
            self._items.clear()
            self._drop_rest()
            self._wake()
            self._on_close(self)

    async def _next(self) -> list[Item] | None:
        while not self.is_closed:
            if self._unsent is not None:
                unsent, self._unsent = self._unsent, None
                await unsent
                self.busy_since = 0.0
                continue  # it may have been closed meanwhile: who was awaited for so long may be gone
            if self._items:
                return self._take()
            if self.cut_off:
                return None
            if self._ended is not None:
                return await self._after_end(self._ended)
            if self._beats:
                self._beats = False
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return None

    def _take(self) -> list[Item]:
        items = list(self._items)
        self._items.clear()
        self._num_bytes = 0
        if self._on_room is not None:
            on_room, self._on_room = self._on_room, None
            on_room()
        return items

    async def _after_end(self, ended: Ended) -> list[Item] | None:
        """The rest of a finished job, a part at a time, then its end."""
        while self._rest or self._has_more:
            if self._rest:
                part = [Item(self._rest.popleft()) for _ in range(min(_CHUNK_EVENTS, len(self._rest)))]
                self._give_back(sum(item.size for item in part))
                return part
            try:
                found = await self._load(self.job_id)
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                if not isinstance(error, TimeoutError) and not is_outage(error):
                    raise
                await asyncio.sleep(_RETRY_S)
                return []
            if self.is_closed or self.cut_off:
                return None
            if found.is_forgotten or found.run > max(1, ended.attempt):
                self.cut_off = True  # whoever comes back is told so, or of the life that it has had since
                return None
            self._keep_next(found)
        if ended.event.id <= self.fold.told:
            return None
        self.fold.told = ended.event.id
        return [Item(ended.event)]

    def _keep_next(self, found: Output) -> None:
        """Of a finished job's output, what comes next and may be held."""
        self.fold.has_gap = False
        most_bytes = max(self.most_bytes, self._spare.num_bytes)
        least_until = self._num_taken + len(found.deltas) // _PARTS
        for delta in islice(found.deltas, self._num_taken, None):
            self._num_taken += 1
            for event in self.fold.take(found.run, [delta]):
                self._rest.append(event)
                self._rest_bytes += _size(event)
            if self._rest_bytes >= most_bytes and self._num_taken >= least_until:
                break
        self._has_more = self._num_taken < len(found.deltas)
        self._spare.num_bytes -= self._rest_bytes

    def _give_back(self, num_bytes: int) -> None:
        self._rest_bytes -= num_bytes
        self._spare.num_bytes += num_bytes

    def _drop_rest(self) -> None:
        self._rest.clear()
        self._give_back(self._rest_bytes)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
