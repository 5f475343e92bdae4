"""Does the engine still give the tokens that it gave? A known prompt, greedily, compared with what this machine got before."""

import asyncio
import hashlib
import logging
import socket
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from workers.engine.process import EngineProcess
from workers.engine.protocol import Request, RequestFailed, SamplingParams, TokenDelta

log = logging.getLogger(__name__)

_PROMPT_TOKENS = 8
_NUM_TOKENS = 16
_PREFIX = "canary."
_PARTS = 10  # of the time that it may take
# Engines whose tokens depend on nothing but the request, when it runs alone.
_EXACT_ENGINES = {"paged", "null"}


class EngineUnfit(Exception):
    """The engine isn't to be trusted, or not any longer. `is_trusted`: whether the tokens that it made so far are good."""

    def __init__(self, reason: str, *, is_trusted: bool) -> None:
        super().__init__(reason)
        self.is_trusted = is_trusted


class Canary:
    """The self-test of one engine process. Its owner hands it every delta that bears its name."""

    def __init__(self, engine: EngineProcess, kind: str, *, timeout_s: float) -> None:
        self._engine = engine
        self._is_exact = kind in _EXACT_ENGINES
        self._timeout_s = timeout_s
        self._num_runs = 0
        self._token_ids: list[int] = []
        self._done: asyncio.Future[None] | None = None
        self._known: list[int] | None = None
        self.is_accepted = False  # whether the first test was passed, also beside what this machine gave before

    def is_mine(self, request_id: str) -> bool:
        """Whether a request is a canary."""
        return request_id.startswith(_PREFIX)

    def take(self, delta: TokenDelta) -> None:
        """Tokens of a canary, perhaps of an earlier one."""
        if self._done is None or self._done.done() or delta.request_id != self._name:
            return
        self._token_ids += delta.token_ids
        if delta.finish_reason is not None:
            self._done.set_result(None)

    def fail(self, failed: RequestFailed) -> None:
        """The engine refused a canary."""
        if self._done is not None and not self._done.done() and failed.request_id == self._name:
            self._done.set_exception(EngineUnfit(f"refused its self-test: {failed.message}", is_trusted=True))

    async def sing(self) -> None:
        """Run the known prompt, with nothing beside it in the engine.

        Raises:
            EngineUnfit: it was refused, no answer in time, or other tokens than at the first time.
        """
        self._num_runs += 1
        self._token_ids = []
        done = self._done = asyncio.get_running_loop().create_future()
        await self._engine.add(self._request())
        try:
            # A part at a time: of the time in which this process was stopped itself only a part counts against the engine.
            for _ in range(_PARTS):
                await asyncio.wait([done], timeout=self._timeout_s / _PARTS)
                if done.done():
                    done.result()
                    break
            else:
                done.cancel()  # what it says from here on is nobody's
                await self._engine.abort(self._name)
                raise EngineUnfit(f"no answer to its self-test within {self._timeout_s:g} s", is_trusted=False)
        finally:
            self._done = None
        if self._known is None:
            self._known = self._token_ids
        self._compare(self._token_ids, self._known)

    async def compare_with_before(self, db: AsyncEngine, made_by: str, settings: str) -> None:
        """Compare with what an engine of the same kind gave on this machine before; the first one's is kept.

        Raises:
            EngineUnfit: other tokens. SQLAlchemyError: it couldn't be found out.
        """
        if not self._is_exact or self._known is None:
            return
        async with db.begin() as conn:
            before = await _remember(conn, made_by, f"{socket.gethostname()} {settings}", self._known)
        self._compare(self._known, before)

    def _compare(self, found: list[int], known: list[int]) -> None:
        if self._is_exact and found != known:
            at = next((i for i, pair in enumerate(zip(found, known, strict=False)) if pair[0] != pair[1]), len(known))
            message = f"its self-test gave other tokens than before, from token {at} on: memory or device are broken"
            raise EngineUnfit(message, is_trusted=False)

    @property
    def _name(self) -> str:
        return f"{_PREFIX}{self._num_runs}"

    def _request(self) -> Request:
        digest = hashlib.sha256(b"penstock canary").digest()
        size = self._engine.info.vocab_size
        prompt = [int.from_bytes(digest[2 * i : 2 * i + 2]) % size for i in range(_PROMPT_TOKENS)]
        room = max(1, self._engine.info.max_model_len - _PROMPT_TOKENS)
        sampling = SamplingParams(
            max_tokens=min(_NUM_TOKENS, room), temperature=0.0, ignore_eos=self._is_exact, speculate=False
        )
        # A salt of its own for each run: what is found in the prefix cache isn't computed.
        return Request(id=self._name, prompt_ids=prompt, sampling=sampling, cache_salt=self._name)


async def _remember(conn: AsyncConnection, made_by: str, machine: str, token_ids: list[int]) -> list[int]:
    key: dict[str, Any] = {"made_by": made_by, "machine": machine}
    await conn.execute(
        text("""
            INSERT INTO canaries (made_by, machine, token_ids) VALUES (:made_by, :machine, :token_ids)
            ON CONFLICT (made_by, machine) DO UPDATE SET seen_at = statement_timestamp()
        """),
        key | {"token_ids": token_ids},
    )
    found: list[int] = await conn.scalar(
        text("SELECT token_ids FROM canaries WHERE made_by = :made_by AND machine = :machine"), key
    )
    return found
