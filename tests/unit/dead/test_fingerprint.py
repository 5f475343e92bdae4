"""Are deaths of one kind one group, and others another, whatever differs by chance?"""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.jobs.dead.fingerprint import MAX_SIGNATURE_CHARS, fingerprint_of, normalise, signature_of

TRACEBACK = """{{"at":"2026-01-31T12:00:0{n}Z","level":"info","event":"step","tokens":{n}}}
Traceback (most recent call last):
  File "/srv/{n}/workers/engine/child.py", line 1{n}, in main
    run()
  File "/srv/{n}/workers/engine/paged.py", line 21{n}, in step
    raise
RuntimeError: CUDA error: an illegal memory access at 0x7f{n}00dead in job_0197a1b2c3d47e8f9a0b1c2d3e4f5a6{n} of {n}.5 MiB
"""


def crash(status: int, log_tail: str) -> dict[str, object]:
    return {"reason": f"the engine's process died with exit status {status}; the end of its log:", "log_tail": log_tail}


def signature(status: int, log_tail: str = "") -> str:
    return signature_of("engine_crashes", crash(status, log_tail))


def test_the_same_crash_is_one_group_whatever_its_numbers() -> None:
    signatures = {signature(-6, TRACEBACK.format(n=n)) for n in range(1, 9)}
    assert len(signatures) == 1
    (one,) = signatures
    assert "SIGABRT" in one
    assert "RuntimeError: CUDA error: an illegal memory access at <address> in <id> of <n> MiB in paged.py:step" in one


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (signature(-11), signature(-9)),
        (signature(1), signature(3)),
        (signature(1, "ValueError: bad shape\n"), signature(1, "KeyError: bad shape\n")),
        (signature(1, TRACEBACK.format(n=1)), signature(1, TRACEBACK.format(n=1).replace("in step", "in load"))),
        (signature_of("workers_lost", {}), signature_of("engine_crashes", {})),
        (
            signature_of("attempts_exhausted", {"code": "stream_broken", "message": "it ended"}),
            signature_of("attempts_exhausted", {"code": "upstream_failed", "message": "it ended"}),
        ),
    ],
)
def test_another_kind_of_death_is_another_group(one: str, other: str) -> None:
    assert one != other
    assert fingerprint_of("m", one) != fingerprint_of("m", other)


def test_models_have_groups_of_their_own() -> None:
    assert fingerprint_of("a", "s") != fingerprint_of("b", "s")
    assert fingerprint_of("a", "s") == fingerprint_of("a", "s")


def test_chatter_in_the_log_makes_no_groups() -> None:
    assert signature(-9, "loading shard 3\nwarming up\n") == signature(-9, "ready\n") == signature(-9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no step for 31 s with 5 jobs at hand", "no step for <n> s with <n> jobs at hand"),
        ("at 0xDEADbeef", "at <address>"),
        ("job 0197a1b2-c3d4-7e8f-9a0b-1c2d3e4f5a6b failed", "job <id> failed"),
        ("0197a1b2c3d47e8f9a0b1c2d3e4f5a6b.3 is too long", "<id> is too long"),
        ("2026-01-31T12:00:00.123Z it broke", "<time> it broke"),
        ("\x1b[31mred\x1b[0m   tape", "red tape"),
        ("\x1b]0;title\x07 \x9b1m", "]<n>;title <n>m"),
        ("/usr/lib/x86_64/libcuda.so: bad", "libcuda.so: bad"),
        ("float16 and int8", "float16 and int8"),
    ],
)
def test_what_varies_is_taken_out(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(reason=st.text(), log_tail=st.text(max_size=2000), extra=st.none() | st.integers() | st.lists(st.text()))
def test_whatever_an_attempt_left_gives_a_bounded_signature(reason: str, log_tail: str, extra: object) -> None:
    found = signature_of("engine_crashes", {"reason": reason, "log_tail": log_tail, "code": extra, "message": extra})
    assert len(found) <= MAX_SIGNATURE_CHARS
    assert not any(unicodedata.category(char) == "Cc" for char in found)
