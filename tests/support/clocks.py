"""Which clock does a test move?"""


class HandClock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def monotonic(self) -> float:
        return self.time_s

    def now(self) -> float:
        return self.time_s
