"""When is a delivery tried again?"""

import pytest

from app.webhooks.retries import DELAYS_S, MAX_TRIES, Answer, Verdict, judge, parse_retry_after


def answer(status: int | None, retry_after_s: float | None = None) -> Answer:
    return Answer(status, None, 1, retry_after_s)


def test_the_schedule_is_the_documented_one() -> None:
    minutes, hours = 60, 3600
    delays = [judge(answer(500), number=n, draw=0.0).delay_s for n in range(1, MAX_TRIES)]
    assert delays == [5, 5 * minutes, 30 * minutes, *(n * hours for n in (2, 5, 10, 14, 20, 24))]
    assert judge(answer(500), number=MAX_TRIES, draw=0.0) == Verdict("failed")


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    assert judge(answer(status), number=1, draw=0.0).outcome == "delivered"
    assert judge(answer(status), number=MAX_TRIES, draw=0.0).outcome == "delivered"


@pytest.mark.parametrize("status", [None, 301, 302, 307, 308, 304, 400, 401, 404, 422, 429, 500, 503])
def test_all_else_is_tried_again(status: int | None) -> None:
    assert judge(answer(status), number=1, draw=0.0).outcome == "again"


def test_gone_is_gone_at_once() -> None:
    assert judge(answer(410), number=1, draw=0.0) == Verdict("failed")


def test_jitter_only_adds_and_at_most_a_tenth() -> None:
    for number, delay_s in enumerate(DELAYS_S, start=1):
        assert delay_s <= judge(answer(None), number=number, draw=0.999).delay_s <= delay_s * 1.1


@pytest.mark.parametrize(("wanted_s", "delay_s"), [(1.0, 5.0), (0.0, 5.0), (120.0, 120.0), (1e9, 86_400.0)])
def test_retry_after_is_honoured_within_bounds(wanted_s: float, delay_s: float) -> None:
    assert judge(answer(503, wanted_s), number=1, draw=0.0).delay_s == delay_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("9" * 400, 999_999_999_999.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 22:13:50 -0000", 30.0),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0.0),
        ("", None),
        (None, None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("Tue, 99 Nov 2023 22:13:50 GMT", None),
        ("Tue, 14 Nov 99999999999999 22:13:50 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, now=1_700_000_000.0) == seconds
