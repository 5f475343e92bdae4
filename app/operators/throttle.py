"""May somebody try a password now? Each failure of an account, and of an address, makes the next try wait longer."""

from dataclasses import dataclass

from sqlalchemy import delete, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import PenstockError
from app.operators.addresses import network_of
from app.operators.tables import login_failures

LONGEST_S = 900
FORGET_S = 86_400  # after so long without a try


@dataclass(frozen=True, slots=True)
class Allowance:
    """`free` failures cost nothing; each one more doubles the wait, from two seconds to `LONGEST_S`."""

    free: int


BY_NAME = Allowance(5)
BY_ADDRESS = Allowance(20)  # many may share one


class TooManyTries(PenstockError):
    """Too many log-ins failed, of this account or from this address. `retry_after_s` says when the next try is read."""

    code = "too_many_tries"
    status = 429
    retryable = True


# Counted before the password is looked at: tries that come at once can't all be the last free one.
_COUNT = text("""
    INSERT INTO login_failures AS f (subject, failures, last_at) VALUES (:subject, 1, statement_timestamp())
    ON CONFLICT (subject) DO UPDATE
    SET failures = CASE WHEN f.last_at < statement_timestamp() - make_interval(secs => :forget) THEN 1 ELSE f.failures + 1 END,
        last_at = statement_timestamp(),
        blocked_until = CASE
            WHEN f.last_at < statement_timestamp() - make_interval(secs => :forget) OR f.failures + 1 <= :free THEN f.blocked_until
            ELSE statement_timestamp() + make_interval(secs => least(:longest, power(2, least(f.failures + 1 - :free, 20)))) END
    WHERE f.blocked_until <= statement_timestamp()
    RETURNING f.failures
""")
_WAIT = text("""
    SELECT ceil(extract(epoch FROM blocked_until - statement_timestamp()))::int FROM login_failures WHERE subject = :subject
""")
_FORGET = text("DELETE FROM login_failures WHERE last_at < statement_timestamp() - make_interval(secs => :forget)")


async def count_try(conn: AsyncConnection, *, name: str | None, address: str) -> None:
    """Count a try as failed, until `forgive` says otherwise. To be committed before the password is looked at.

    Without a `name` it is counted for the address alone: nobody knows yet whose it is.

    Raises:
        TooManyTries: it isn't to be looked at now.
    """
    await conn.execute(_FORGET, {"forget": FORGET_S})
    counted = [(_place(address), BY_ADDRESS), *([(_account(name), BY_NAME)] if name is not None else [])]
    for subject, allowance in counted:
        values = {"subject": subject, "forget": FORGET_S, "free": allowance.free, "longest": LONGEST_S}
        if (await conn.execute(_COUNT, values)).one_or_none() is None:
            wait_s = max(1, await conn.scalar(_WAIT, {"subject": subject}) or 1)
            raise TooManyTries(f"too many log-ins failed: try again in {wait_s} s", retry_after_s=wait_s)


async def forgive(conn: AsyncConnection, *, name: str | None, address: str) -> None:
    """The try was right: the account's failures are forgotten, and the address gets this one back."""
    await conn.execute(  # in the order in which tries are counted: no two wait for each other
        text("UPDATE login_failures SET failures = greatest(0, failures - 1) WHERE subject = :subject"),
        {"subject": _place(address)},
    )
    if name is not None:
        await conn.execute(delete(login_failures).where(login_failures.c.subject == _account(name)))


def _place(address: str) -> str:
    return f"address:{network_of(address)}"


def _account(name: str) -> str:
    return f"account:{name[:100]}"
