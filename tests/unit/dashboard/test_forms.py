"""Does a number in a form mean what its writer meant, and is everything else refused at once?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dashboard.figures import grouped, money
from app.dashboard.forms import micros_of, whole_of
from app.dashboard.models import price_of
from app.dashboard.tenant_forms import limit_of
from app.errors import InvalidRequest
from app.jobs.prices import MAX_PRICE


@pytest.mark.parametrize(
    ("written", "micros"),
    [
        ("0", 0), ("0.15", 150_000), (".5", 500_000), ("2.50000000", 2_500_000), ("1,250.50", 1_250_500_000),
        ("1 250", 1_250_000_000), ("1'000'000", 10**12), ("1250", 1_250_000_000), ("-1", -1_000_000), ("0.000001", 1),
    ],
)  # fmt: skip
def test_an_amount_is_read_as_it_is_written(written: str, micros: int) -> None:
    assert micros_of(written) == micros


@pytest.mark.parametrize(
    "written",
    [
        "", "-", ".", "0,15", "0,150", "12,5", "1,25", "1,2345", "1,000,00", "1,000 000", "1.000.000", "1e3", "9e999990",
        "1e999999999", "0.0000001", "NaN", "Infinity", "١", "1" * 19, "0x1", "1.", "--1", "1_0",
    ],
)  # fmt: skip
def test_what_is_no_amount_is_refused_and_a_decimal_comma_is_none(written: str) -> None:
    """`9e999990` held the event loop for minutes, `1e999999999` was a 500, and `0,15` became 15.00."""
    assert micros_of(written) is None
    if written:
        with pytest.raises(InvalidRequest, match="input_price: must be 0 to"):
            price_of(written, "input_price")
    with pytest.raises(InvalidRequest, match="limit: must be an amount"):
        limit_of({"limit": [written]}, "cost")


@given(st.integers(0, 10**14))
def test_what_a_page_shows_is_read_back(micros: int) -> None:
    assert micros_of(money(micros)) == micros
    assert whole_of({"x": [grouped(micros)]}, "x") == micros


def test_a_price_ends_where_prices_end() -> None:
    assert price_of("", "input_price") == 0
    assert price_of(money(MAX_PRICE), "input_price") == MAX_PRICE
    for beyond in ("10,000.000001", "-1"):
        with pytest.raises(InvalidRequest):
            price_of(beyond, "input_price")


@pytest.mark.parametrize("written", ["1,5", "0,15", "10_00", "1,000 000", "1.5", "1e3", ",", "9" * 19])
def test_a_whole_number_has_its_commas_where_thousands_end(written: str) -> None:
    with pytest.raises(InvalidRequest, match="x: must be a whole number"):
        whole_of({"x": [written]}, "x")
    assert whole_of({"x": ["1,000"]}, "x") == whole_of({"x": ["1 000"]}, "x") == whole_of({"x": ["1_000"]}, "x") == 1000
    assert whole_of({"x": [""]}, "x") is None
