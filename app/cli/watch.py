"""How do parts stay up? Each one that dies is started again, with backoff; one that dies and dies is given up."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Literal

from app.cli.errors import CommandFailed
from app.cli.parts import Part
from app.errors import Misconfigured

TICK_S = 0.1


@dataclass(frozen=True, slots=True)
class Report:
    """What is said of a part while it goes on. `seconds` since the part began to start."""

    part: str
    event: Literal["starting", "ready", "ended", "stopping", "warning"]
    seconds: float = 0.0
    detail: str = ""


@dataclass(slots=True)
class Restarts:
    """When does a part that died run again? Backoff, doubled with each quick death in a row.

    A part that lived for `quick_s` has recovered: its next death is the first one again.
    """

    quick_s: float = 20.0
    base_s: float = 0.25
    cap_s: float = 5.0
    most: int = 5
    quick_deaths: int = 0

    def delay_s(self, lived_s: float) -> float | None:
        """Seconds to wait after a death that came `lived_s` after the start; None gives the part up."""
        self.quick_deaths = self.quick_deaths + 1 if lived_s < self.quick_s else 1
        if self.quick_deaths >= self.most:
            return None
        return min(self.cap_s, self.base_s * 2.0 ** (self.quick_deaths - 1))


class _Watched:
    """A part with its restarts."""

    def __init__(self, part: Part, restarts: Restarts) -> None:
        self.part = part
        self.restarts = restarts
        self.started_at = monotonic()
        self.restart_at: float | None = None
        self.starting: asyncio.Task[None] | None = None


class Watch:
    """Looks at parts that were started, ten times a second."""

    def __init__(
        self, parts: Iterable[Part], report: Callable[[Report], None], restarts: Callable[[], Restarts] = Restarts
    ) -> None:
        self._report = report
        self._watched = [_Watched(part, restarts()) for part in parts]

    async def run(self) -> None:
        """Start again what dies, until cancelled.

        Raises:
            CommandFailed: a part died too often too quickly; the message ends with its log.
        """
        try:
            while True:
                for each in self._watched:
                    self._look_at(each)
                await asyncio.sleep(TICK_S)
        finally:
            # A start that is under way ends first: whoever stops the parts must find it.
            for each in self._watched:
                if each.starting is not None:
                    with suppress(Misconfigured, OSError):
                        await each.starting

    def _look_at(self, each: _Watched) -> None:
        """Is it dead, is its restart due, did its restart fail?"""
        now = monotonic()
        if each.starting is not None:
            if each.starting.done():
                error, each.starting = each.starting.exception(), None
                if error is not None:
                    self._mourn(each, str(error), now)
        elif each.restart_at is not None:
            if now >= each.restart_at:
                each.restart_at, each.started_at = None, now
                each.starting = asyncio.create_task(each.part.start())
        elif (reason := each.part.ended()) is not None:
            self._mourn(each, reason, now)

    def _mourn(self, each: _Watched, reason: str, now: float) -> None:
        lived_s = now - each.started_at
        delay_s = each.restarts.delay_s(lived_s)
        if delay_s is None:
            raise CommandFailed(
                f"{each.part.name} died {each.restarts.most} times in a row ({reason}), so all is stopped{with_log(each.part)}"
            )
        each.restart_at = now + delay_s
        detail = f"{reason} after {lived_s:.0f} s; it is started again in {delay_s:g} s"
        self._report(Report(each.part.name, "ended", lived_s, detail))


def with_log(part: Part) -> str:
    """The rest of a sentence on what a part did wrong: the end of its log, and where the whole is."""
    tail = part.log_tail()
    if not tail:
        return f"; see {part.log_file}"
    return ":\n" + "\n".join(f"  {line}" for line in tail) + f"\nThe whole log: {part.log_file}"
