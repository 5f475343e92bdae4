"""Are the request's headers read as their standards say?"""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from app.api.headers import idempotency_key, preferred_wait_s
from app.errors import InvalidRequest


def headers(name: str, *values: str) -> Headers:
    return Headers(raw=[(name.encode(), value.encode("latin-1")) for value in values])


@pytest.mark.parametrize(
    ("given", "wait_s"),
    [
        ("wait=9", 9), ("WAIT = 9", 9), ('wait="9"', 9), ("respond-async, wait=9", 9), ("wait=0", 0), ("wait=007", 7),
        ('foo="a, wait=7"; x=1, wait=9', 9), ("wait=9; strict", 9), ("wait=9, wait=50", 9), (",, wait=9", 9),
        ("@@@, wait=9", 9), ("wait=, wait=9", 9), ("wait=61", 60), ("wait=" + "9" * 400, 60),
        ("wait", None), ("wait=", None), ("wait=-1", None), ("wait=1.5", None), ("wait=soon", None),
        ("wait=\xb2", None), ("waiting=5", None), ("", None), ('foo="wait=5', None), ("x" * 5000, None),
        ("wait=x, wait=9", None),
    ],
)  # fmt: skip
def test_prefer_is_read_as_rfc_7240_says(given: str, wait_s: int | None) -> None:
    assert preferred_wait_s(headers("prefer", given), most=60.0) == wait_s


def test_several_prefer_headers_are_one_list() -> None:
    assert preferred_wait_s(headers("prefer", "respond-async", "wait=5"), most=60) == 5
    assert preferred_wait_s(Headers(), most=60) is None


@given(st.text(st.characters(max_codepoint=255), max_size=300))
def test_no_header_breaks_the_readers(text: str) -> None:
    wait_s = preferred_wait_s(headers("prefer", text), most=60)
    assert wait_s is None or 0 <= wait_s <= 60
    with contextlib.suppress(InvalidRequest):
        key = idempotency_key(headers("idempotency-key", text))
        assert key
        assert len(key) <= 255
        assert all("!" <= char <= "~" for char in key)


def test_a_reader_of_prefer_isn_t_slow_on_any_text() -> None:
    """A pattern that backtracks would need longer than the universe for these."""
    for text in ("a;" * 4000, 'a="' + "\\\\" * 4000, "a" * 8000 + "=", 'a;"b"' * 2000, " " * 8000, "a ; " * 2000 + '"'):
        preferred_wait_s(headers("prefer", text), most=60)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("order-17", "order-17"), ('"order-17"', "order-17"), (" k ", "k"), (r'"a\"b\\c"', r'a"b\c'), ("x" * 255, "x" * 255),
        ('a"b', 'a"b'),
    ],
)  # fmt: skip
def test_a_key_is_the_same_bare_and_quoted(given: str, key: str) -> None:
    assert idempotency_key(headers("idempotency-key", given)) == key


@pytest.mark.parametrize("given", ["", " ", '""', "a b", "x" * 256, '"abc', '"a"b', "caf\xe9", "a\x00", '"', "a\x7f"])
def test_other_keys_are_refused_by_name_and_limit(given: str) -> None:
    with pytest.raises(InvalidRequest, match=r"Idempotency-Key.*255"):
        idempotency_key(headers("idempotency-key", given))


def test_two_keys_are_none() -> None:
    with pytest.raises(InvalidRequest):
        idempotency_key(headers("idempotency-key", "a", "b"))
