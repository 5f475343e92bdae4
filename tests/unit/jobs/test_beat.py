"""Do maintenance's rounds begin together, and none of them too soon or too late?"""

import pytest

from workers.maintenance.keeper import until_beat


@pytest.mark.parametrize(
    ("since_s", "every_s", "rest_s"),
    [
        (0.0, 2.0, 2.0),
        (6.003, 0.2, 0.197),
        (6.003, 1.0, 0.997),
        (6.003, 2.0, 1.997),  # all three go on at multiples of two seconds
        (6.9, 1.0, 1.0),  # it worked for nearly a second: not at once again
        (7.2, 2.0, 2.0),
    ],
)
def test_rounds_of_different_intervals_begin_together(since_s: float, every_s: float, rest_s: float) -> None:
    assert until_beat(since_s, every_s) == pytest.approx(rest_s)


@pytest.mark.parametrize("every_s", [0.2, 1.0, 300.0])
def test_no_rest_is_longer_than_the_interval_or_shorter_than_half_of_it(every_s: float) -> None:
    rests = [until_beat(since_ms / 1000, every_s) for since_ms in range(3000)]
    assert min(rests) >= every_s / 2 - 1e-9
    assert max(rests) <= every_s
