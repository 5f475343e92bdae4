"""Are spans of time short and true?"""

import pytest

from app.cli.top import span


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0 s"), (0.44, "0.4 s"), (12.4, "12 s"), (59.6, "1 m 0 s"), (200, "3 m 20 s"), (3600, "1 h 0 m"),
        (18_660, "5 h 11 m"), (86_399.7, "1 d 0 h"), (273_600, "3 d 4 h"),
    ],
)  # fmt: skip
def test_a_span_has_one_unit_or_two(seconds: float, shown: str) -> None:
    assert span(seconds) == shown
