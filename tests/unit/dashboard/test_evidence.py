"""Is what was stored of a death shown as it was, what wasn't kept named as unknown, and nothing taken for what it isn't?"""

from datetime import UTC, datetime
from html import unescape
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.dashboard.evidence import facts_of
from app.dashboard.pages import environment

JOB = "0197a1b2c3d47e8f9a0b1c2d3e4f5a6b"
FLIGHT = {"step": 7, "members": [f"{JOB}.2", "b.1"], "num_members": 2, "admitted": [f"{JOB}.2"], "num_admitted": 1}
WORKER = {"incarnation": "ab" * 16, "host": "gpu-1", "pid": 7, "device": "cuda", "model_hash": "c" * 64}
CRASH = {
    "attempt": 2, "outcome": "engine_crash", "ended_at": "2026-01-31T12:00:00+00:00", "queued_s": 1.5, "prefill_s": None, "decode_s": 2,
    "worker": WORKER,
    "detail": {"reason": "signal 11", "log_tail": "\nboom\n", "flight": FLIGHT, "preempted": [{}, {}], "upstream": {"status": 502}},
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
)
NAMES = (
    "attempt",
    "outcome",
    "ended_at",
    "queued_s",
    "worker",
    "detail",
    "flight",
    "step",
    "members",
    "num_members",
    "log_tail",
    "preempted",
)
ODD = st.dictionaries(
    st.sampled_from(NAMES), JSON | st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4), max_size=6
)


def shown(evidence: dict[str, Any]) -> str:
    """The section of the page."""
    template = environment.get_template("letter_evidence.html")
    story = type("Story", (), {"evidence": evidence})
    return unescape(template.render(facts=facts_of(JOB, evidence), story=story))


def test_the_newest_attempt_stands_first_with_all_that_is_known_of_it() -> None:
    evidence = {
        "error": {"code": "engine_crashes", "message": "it died"},
        "attempts": [{"attempt": 1}, CRASH],
        "attempts_left_out": 3,
    }
    facts = facts_of(JOB, evidence)
    assert (facts.message, facts.code, facts.left_out) == ("it died", "engine_crashes", 3)
    last, first = facts.attempts
    assert (last.number, last.outcome, last.ended_at) == (2, "engine_crash", datetime(2026, 1, 31, 12, tzinfo=UTC))
    assert (last.queued_s, last.prefill_s, last.decode_s) == (1.5, None, 2)
    assert last.worker is not None
    assert (last.worker.host, last.worker.pid, last.worker.device) == ("gpu-1", "7", "cuda")
    assert (last.error, last.log, last.preemptions) == ("signal 11", "boom", 2)
    assert last.flight is not None
    assert (last.flight.step, last.flight.members, last.flight.new) == (7, 2, 1)
    assert last.flight.was_in_it
    assert last.flight.was_new
    assert "502" in last.others["upstream"]
    assert (first.number, first.worker, first.flight, first.error, first.ended_at) == (1, None, None, "", None)


def test_another_attempt_in_the_last_step_is_not_this_one() -> None:
    (attempt,) = facts_of(JOB, {"attempts": [CRASH | {"attempt": 3}]}).attempts
    assert attempt.flight is not None
    assert not attempt.flight.was_in_it


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        ({}, "No attempt left any"),
        ({"attempts": [], "too_large": True}, "Too large to be kept"),
        ({"attempts": [{"attempt": 1, "outcome": "worker_lost"}]}, "not measured"),
        ({"attempts": [{"attempt": 1}]}, "not known"),
        ({"attempts": [CRASH | {"detail": None}]}, "no record"),
        ({"attempts": [CRASH], "attempts_left_out": 2}, "2 older attempts aren't kept"),
    ],
)
def test_what_is_not_known_is_said(evidence: dict[str, Any], said: str) -> None:
    assert said in shown(evidence)


@settings(max_examples=40)
@given(st.fixed_dictionaries({"attempts": st.lists(ODD, max_size=3) | JSON, "error": JSON, "attempts_left_out": JSON}))
def test_whatever_was_stored_is_shown_without_an_error(evidence: dict[str, Any]) -> None:
    assert "All of it as JSON" in shown(evidence)
