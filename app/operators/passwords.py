"""Is this the operator's password? Argon2id (RFC 9106), in a thread, few at a time: each takes 64 MiB."""

import asyncio
from functools import lru_cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from app.errors import InvalidRequest

MIN_CHARS = 12
MAX_CHARS = 200
_AT_ONCE = 2

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
    """What is stored of it."""
    async with _turns():
        return await asyncio.to_thread(_hasher.hash, password)


async def is_right(stored: str | None, given: str) -> bool:
    """Whether `given` is the password of which `stored` was kept; as slow where there is none, so that time tells no names."""
    async with _turns():
        right = await asyncio.to_thread(_verified, stored or _nobodys(), given[: MAX_CHARS + 1])
    return right and stored is not None


def _verified(stored: str, given: str) -> bool:
    try:
        return _hasher.verify(stored, given)
    except (VerificationError, InvalidHashError):
        return False


@lru_cache(maxsize=1)
def _nobodys() -> str:
    return _hasher.hash("nobody has this one")


_semaphores: dict[int, asyncio.Semaphore] = {}


def _turns() -> asyncio.Semaphore:
    """One an event loop."""
    loop = id(asyncio.get_running_loop())
    if loop not in _semaphores:
        _semaphores.clear()
        _semaphores[loop] = asyncio.Semaphore(_AT_ONCE)
    return _semaphores[loop]
