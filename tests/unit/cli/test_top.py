"""Are spans of time short and true, and is no key named where none is heard?"""

from datetime import UTC, datetime

import pytest
from rich.console import Console

from app.cli.top import shown, span
from app.cli.top_figures import Picture


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"), (0.44, "0.4 s"), (12.4, "12 s"), (59.6, "1 m 0 s"), (200, "3 m 20 s"), (3600, "1 h 0 m"),
        (18_660, "5 h 11 m"), (86_399.7, "1 d 0 h"), (273_600, "3 d 4 h"),
    ],
)  # fmt: skip
def test_a_span_has_one_unit_or_two(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_a_key_is_named_where_it_is_heard_only() -> None:
    picture = Picture(datetime(2026, 11, 22, tzinfo=UTC), [], [], [], is_redis_away=False)
    for hears_keys in (False, True):
        console = Console(width=100)
        with console.capture() as capture:
            console.print(shown(picture, hears_keys=hears_keys))
        assert ("q: quit" in capture.get()) == hears_keys
