"""How are figures, spans and projections shown?"""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from starlette.datastructures import Headers

from app.dashboard.access import safe_next
from app.dashboard.budget_figures import outlook
from app.dashboard.figures import figure, figure_name, moment, money, short, span, unit_of
from app.dashboard.guard import is_ours
from app.dashboard.usage import MOST_SERIES, OTHERS, Usage, UsageRow, safe_cells, series, span_of
from app.errors import InvalidRequest
from app.operators import passwords
from app.quotas.budget_acts import BudgetView

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (7, "7"), (1.234, "1.23"), (999, "999"), (1000, "1\u202fk"), (1234, "1.23\u202fk"), (999_999, "1\u202fM"), (12_345_678, "12.3\u202fM"),
     (2_000_000_000, "2\u202fG"), (None, "–")],
)  # fmt: skip
def test_a_number_is_shortened_to_three_digits(value: float | None, shown: str) -> None:
    assert short(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.25, "250\u202fms"), (1, "1\u202fs"), (59.94, "59.9\u202fs"), (60, "1\u202fmin"), (250, "4\u202fmin 10\u202fs"), (7500, "2\u202fh 5\u202fmin"), (14_400, "4\u202fh"),
     (273_600, "3\u202fd 4\u202fh"), (None, "–")],
)  # fmt: skip
def test_a_span_is_told_in_its_two_largest_units(seconds: float | None, shown: str) -> None:
    assert span(seconds) == shown


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("served_tokens_per_s", 812.5, "served: 812 tokens/s"), ("kv_usage", 0.25, "kv usage: 25\u202f%"), ("wait_s", 70, "wait: 1\u202fmin 10\u202fs"),
        ("preemptions", 1200, "preemptions: 1,200"), ("seconds_per_token", 0.02, "seconds per token: 0.020"), ("worker_state", "ready", "worker state: ready"),
        ("is_full", True, "is full: True"),
    ],
)  # fmt: skip
def test_a_workers_figure_is_told_in_the_unit_that_its_name_ends_with(name: str, value: object, shown: str) -> None:
    assert f"{figure_name(name)}: {figure(value, name)}" == shown


def test_money_keeps_what_counts() -> None:
    assert [money(each) for each in (0, 1, 1_500_000, 1_234_567, 12_345_678_900_000)] == [
        "0.00", "0.000001", "1.50", "1.234567", "12,345,678.90",
    ]  # fmt: skip


def test_one_of_a_thing_is_one() -> None:
    assert [unit_of(value, unit) for value, unit in ((1, "jobs"), (2, "jobs"), (1, "tokens/s"), (None, "jobs"))] == [
        "job", "jobs", "tokens/s", "jobs",
    ]  # fmt: skip


def test_a_time_leaves_in_utc_with_its_exact_moment() -> None:
    tokyo = datetime(2026, 3, 10, 21, 0, 1, tzinfo=UTC).astimezone()
    assert 'datetime="2026-03-10T21:00:01.000Z" title="2026-03-10 21:00:01 UTC"' in moment(tokyo)
    assert moment(None, "never") == "never"


def budget(used: int, reserved: int, limit: int, *, end: datetime | None) -> BudgetView:
    start = NOON.replace(hour=0) if end else datetime.fromtimestamp(0, UTC)
    return BudgetView(
        uuid4(),
        "acme",
        None,
        "total_tokens",
        "day" if end else "total",
        limit,
        [],
        NOON,
        None,
        start,
        end,
        used,
        reserved,
    )


MIDNIGHT = NOON.replace(hour=0) + timedelta(days=1)


def test_half_of_a_day_is_projected_to_the_whole() -> None:
    found = outlook(budget(400, 100, 2000, end=MIDNIGHT), NOON)
    assert (found.projected, found.full_at) == (1000, None)


def test_a_budget_that_runs_out_says_when() -> None:
    found = outlook(budget(400, 100, 800, end=MIDNIGHT), NOON)
    assert (found.projected, found.full_at) == (1000, NOON.replace(hour=19, minute=12))


def test_a_budget_that_is_passed_already_is_full_now() -> None:
    assert outlook(budget(900, 0, 800, end=MIDNIGHT), NOON).full_at == NOON


def test_nothing_is_projected_too_early_or_without_an_end() -> None:
    assert outlook(budget(400, 0, 800, end=MIDNIGHT), NOON.replace(hour=1)).projected is None
    assert outlook(budget(400, 0, 800, end=None), NOON).projected is None


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_a_cell_that_a_spreadsheet_would_run_is_text(text: str) -> None:
    assert safe_cells([text, -5, "plain"]) == [f"'{text}", -5, "plain"]


def test_a_span_ends_with_the_step_that_is_not_over() -> None:
    at = NOON.replace(minute=30)
    assert span_of("day", at) == (NOON - timedelta(hours=23), NOON + timedelta(hours=1), "hour")
    since, until, step = span_of("week", at)
    assert (since, until, step) == (MIDNIGHT - timedelta(days=7), MIDNIGHT, "day")


def test_a_series_has_each_step_and_puts_the_small_ones_together() -> None:
    rows = [
        UsageRow(NOON - timedelta(hours=i % 3), f"m{i}", "batch", "", 1, 10 * i, 0, 0, 0)
        for i in range(MOST_SERIES + 3)
    ]
    since, until, step = span_of("day", NOON)
    found = series(Usage(rows, since, until, step, None), "model")
    assert len(found["times"]) == 24
    assert [each["name"] for each in found["series"]] == [f"m{i}" for i in range(7, 2, -1)] + [OTHERS]
    assert all(len(each["values"]) == 24 for each in found["series"])
    assert sum(sum(each["values"]) for each in found["series"]) == sum(10 * i for i in range(MOST_SERIES + 3))


@pytest.mark.parametrize(
    ("to", "safe"),
    [("/admin/tenants", "/admin/tenants"), ("//evil", "/admin"), ("/admin/../v1", "/admin"), ("/admin/link/x", "/admin"),
     ("/admin/overview/live", "/admin"), ("javascript:alert(1)", "/admin"), ("/admin/" + "x" * 600, "/admin")],
)  # fmt: skip
def test_a_log_in_leads_to_pages_only(to: str, safe: str) -> None:
    assert safe_next(to) == safe


async def test_passwords_are_hashed_as_rfc_9106_says_and_names_are_not_told_by_time() -> None:
    stored = await passwords.hashed("four rivers meet here")
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert await passwords.is_right(stored, "four rivers meet here")
    assert not await passwords.is_right(stored, "four rivers meet her")
    assert not await passwords.is_right(None, "nobody has this one")  # looked at all the same, and never right


@pytest.mark.parametrize(
    ("password", "again", "said"),
    [("eleven char", "eleven char", "12 to 200"), ("x" * 201, "x" * 201, "12 to 200"), ("ada-lovelace", "ada-lovelace", "harder"),
     ("ababababababab", "ababababababab", "harder"), ("four rivers meet", "four rivers met!", "the same")],
)  # fmt: skip
def test_a_password_that_is_easy_or_was_mistyped_is_refused(password: str, again: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        passwords.check_new(password, again, name="ada-lovelace")


@pytest.mark.parametrize(
    ("headers", "url", "ours"),
    [({"origin": "https://a.test", "host": "a.test"}, None, True), ({"origin": "https://b.test", "host": "a.test"}, None, False),
     ({"origin": "null", "host": "a.test"}, None, False), ({"host": "a.test"}, None, False),
     ({"host": "a.test", "sec-fetch-site": "same-origin"}, None, True), ({"host": "a.test", "sec-fetch-site": "same-site"}, None, False),
     ({"origin": "https://a.test", "host": "10.0.0.1:8000"}, "https://a.test/", True), ({"origin": "http://a.test", "host": "a.test"}, "https://a.test", False),
     ({"origin": "https://a.test:8443", "host": "a.test"}, None, False)],
)  # fmt: skip
def test_a_form_is_ours_by_its_origin(headers: dict[str, str], url: str | None, ours: bool) -> None:
    assert is_ours(Headers(headers), url) is ours
