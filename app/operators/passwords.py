"""Is this the operator's password? Argon2id (RFC 9106), in a thread, few at a time: each takes 64 MiB."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from app.errors import InvalidRequest, Unavailable

MIN_CHARS = 12
MAX_CHARS = 200
_AT_ONCE = 2
MOST_GUESSES = 16  # that are looked at or wait for it, in one process
MOST_GUESSES_OF_ONE = 4  # of one network: it leaves turns to the others
BUSY_RETRY_S = 5

_hasher = PasswordHasher()  # the library's defaults: RFC 9106's second recommendation


def check_new(password: str, again: str, *, name: str) -> None:
    """Whether it may become a password.

    Raises:
        InvalidRequest: it is too short or too long, is the operator's name, or was typed differently the second time.
    """
    if not MIN_CHARS <= len(password) <= MAX_CHARS:
        raise InvalidRequest(f"password: must have {MIN_CHARS} to {MAX_CHARS} characters", param="password")
    if password.strip().lower() == name or len(set(password)) < 4:
        raise InvalidRequest("password: must be harder to guess than that", param="password")
    if password != again:
        raise InvalidRequest("password, again: must be the same as the first", param="again")


async def hashed(password: str) -> str:
    """What is stored of it. Waits for no guess: only who has a link, or knows the old password, comes so far."""
    async with _turns().known:
        return await asyncio.to_thread(_hasher.hash, password)


async def is_right(stored: str | None, given: str) -> bool:
    """Whether `given` is the password of which `stored` was kept; as slow where there is none, so that time tells no names.

    For who is logged in. A guess from outside asks for its turn first: `guessing`.
    """
    async with _turns().known:
        return await _is_right(stored, given)


@dataclass(frozen=True, slots=True)
class Guess:
    """A place in the queue of those whose password is looked at."""

    turns: asyncio.Semaphore

    async def is_right(self, stored: str | None, given: str) -> bool:
        """As the function of that name, behind the guesses that came before."""
        async with self.turns:
            return await _is_right(stored, given)


@asynccontextmanager
async def guessing(network: str) -> AsyncIterator[Guess]:
    """A place in that queue while the block lasts: asked for before anything is read or written.

    Raises:
        Unavailable: it is full, or this network has its share of it.
    """
    turns = _turns()
    if turns.guesses.total() >= MOST_GUESSES or turns.guesses[network] >= MOST_GUESSES_OF_ONE:
        raise Unavailable(
            f"too many passwords are being looked at: try again in {BUSY_RETRY_S} s", retry_after_s=BUSY_RETRY_S
        )
    turns.guesses[network] += 1
    try:
        yield Guess(turns.unknown)
    finally:
        turns.guesses[network] -= 1
        turns.guesses += Counter()  # drops what is zero


async def _is_right(stored: str | None, given: str) -> bool:
    right = await asyncio.to_thread(_verified, stored, given[: MAX_CHARS + 1])
    return right and stored is not None


def _verified(stored: str | None, given: str) -> bool:
    try:
        return _hasher.verify(stored or _nobodys(), given)
    except (VerificationError, InvalidHashError):
        return False


@lru_cache(maxsize=1)
def _nobodys() -> str:
    return _hasher.hash("nobody has this one")


@dataclass(slots=True)
class _Turns:
    known: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    unknown: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    guesses: Counter[str] = field(default_factory=Counter)  # by network


_by_loop: dict[int, _Turns] = {}


def _turns() -> _Turns:
    """Those of this event loop."""
    loop = id(asyncio.get_running_loop())
    if loop not in _by_loop:
        _by_loop.clear()
        _by_loop[loop] = _Turns()
    return _by_loop[loop]
