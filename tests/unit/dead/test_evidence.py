"""Is the evidence whole where it is small, and bounded where it isn't?"""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from app.jobs.dead.evidence import MAX_ATTEMPTS, MAX_BYTES, evidence_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5),
)
ERROR = {"code": "engine_crashes", "message": "the engine died 3 times"}


def attempt(number: int, detail: object = None) -> dict[str, object]:
    return {"attempt": number, "outcome": "engine_crash", "detail": detail}


def test_what_is_small_is_kept_as_it_is() -> None:
    detail = {"reason": "it died", "log_tail": "x", "flight": {"step": 3, "members": ["a.1"], "admitted": []}}
    found = evidence_of(ERROR, {"failures": 2}, [attempt(1, detail)], {"last": detail, "self_test": "passed"})
    assert found == {"error": ERROR, "failures": 2, "self_test": "passed", "attempts": [attempt(1, detail)]}


def test_the_newest_attempts_stay() -> None:
    found = evidence_of(ERROR, {}, [attempt(number) for number in range(1, 101)], {})
    assert [each["attempt"] for each in found["attempts"]] == list(range(101 - MAX_ATTEMPTS, 101))
    large = [attempt(number, {"log_tail": "é" * 10**5}) for number in range(1, 101)]
    found = evidence_of(ERROR, {}, large, {})
    assert 1 < len(found["attempts"]) < MAX_ATTEMPTS
    assert found["attempts"][-1]["attempt"] == 100


def test_what_is_far_too_large_leaves_the_counters() -> None:
    extra = {f"{number}": "x" * 5000 for number in range(100)}
    found = evidence_of(ERROR, {"failures": 2}, [attempt(1)], extra)
    assert (found["failures"], found["too_large"]) == (2, True)


@given(extra=st.dictionaries(st.text(max_size=9), JSON, max_size=5), details=st.lists(JSON, max_size=5))
def test_whatever_was_left_it_is_bounded_and_storable(extra: dict, details: list) -> None:
    found = evidence_of(ERROR, {"failures": 0}, [attempt(1, detail) for detail in details], extra)
    encoded = msgspec.json.encode(found)
    assert len(encoded) <= MAX_BYTES
    assert b"\\u0000" not in encoded
