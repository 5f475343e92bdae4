"""Does a running job turn the engine's deltas into text, events and an end that fit together?"""

from itertools import pairwise
from typing import cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from app.ids import new_id
from app.jobs.notices import Used
from app.jobs.store import StartedJob
from app.queue.events import ChoiceDelta
from workers.engine.protocol import Logprob, Moved, TokenDelta
from workers.engine.tokenizer import byte_bundle
from workers.generation.hand import MAX_PREEMPTED, RunningJob

TOKENIZER = Tokenizer.from_str(byte_bundle(512).tokenizer_json)
EOS = 511


def job(
    n: int = 1, stop: tuple[str, ...] = (), max_tokens: int = 100, deadline_in_s: float | None = None
) -> RunningJob:
    started = StartedJob(
        new_id(), 1, 1, "acme", "standard", "normal", n, list(b"hi"), "hash", {"prompt": "hi"},
        {"stop": list(stop), "max_tokens": max_tokens}, deadline_in_s, False,
    )  # fmt: skip
    return RunningJob(started, TOKENIZER, 10.0)


def delta(running: RunningJob, choice: int, offset: int, ids: list[int], reason: str | None = None) -> TokenDelta:
    return TokenDelta(running.request_id, choice, offset, ids, reason)  # type: ignore[arg-type]


def test_each_attempt_has_a_name_of_its_own() -> None:
    running = job()
    assert running.request_id == f"{running.started.job_id.hex}.1"
    assert UUID(hex=running.request_id.partition(".")[0]) == running.started.job_id


def test_text_grows_and_the_end_is_billed_to_the_token() -> None:
    running = job()
    assert not running.take(delta(running, 0, 0, list(b"ab")))
    assert not running.take(delta(running, 0, 2, [EOS], "stop"))
    assert running.is_complete
    ending = running.ending("succeeded")
    assert ending.choices == [{"index": 0, "text": "ab", "finish_reason": "stop"}]
    assert (ending.used.prompt_tokens, ending.used.completion_tokens) == (2, 3)


def test_a_stop_string_ends_the_choice_and_what_the_engine_made_beyond_is_not_taken() -> None:
    running = job(stop=("bc",))
    assert not running.take(delta(running, 0, 0, list(b"ab")))
    assert running.take(delta(running, 0, 2, list(b"cd")))
    assert not running.take(delta(running, 0, 4, list(b"ef"), "length"))
    ending = running.ending("succeeded")
    assert ending.choices == [{"index": 0, "text": "a", "finish_reason": "stop"}]
    assert ending.used.completion_tokens == 3


def test_a_job_is_complete_when_all_its_choices_are() -> None:
    running = job(n=2)
    running.take(delta(running, 1, 0, [97], "length"))
    assert not running.is_complete
    running.take(delta(running, 0, 0, [98], "length"))
    assert running.is_complete
    assert running.num_generated == 2


def test_a_failed_job_is_not_billed_and_has_no_text() -> None:
    ending = job().ending("failed", {"code": "x", "message": "y"})
    assert (ending.billed, ending.choices) == (False, None)


def test_a_cancelled_job_keeps_what_it_had() -> None:
    running = job()
    running.take(delta(running, 0, 0, list(b"ab")))
    ending = running.ending("cancelled")
    assert ending.billed
    assert ending.choices == [{"index": 0, "text": "ab", "finish_reason": None}]


def test_the_deadline_is_told_on_this_machines_clock() -> None:
    assert job(deadline_in_s=5.0).deadline == 15.0
    assert job().deadline is None


@given(
    text=st.text(max_size=30), cuts=st.lists(st.integers(0, 200), max_size=8), told=st.lists(st.booleans(), min_size=20)
)
def test_events_joined_are_the_text(text: str, cuts: list[int], told: list[bool]) -> None:
    running = job(max_tokens=1000)
    ids = [*text.encode(), EOS]
    borders = sorted({0, len(ids), *(cut for cut in cuts if cut < len(ids))})
    heard: list[ChoiceDelta] = []
    for (start, end), is_told in zip(pairwise(borders), told, strict=False):
        running.take(delta(running, 0, start, ids[start:end], "stop" if end == len(ids) else None))
        if is_told:
            heard += running.take_unpublished()
    heard += running.take_unpublished()
    assert "".join(each.text for each in heard) == running.choices[0].text == text
    assert [token for each in heard for token in each.token_ids] == ids
    assert [each.offset for each in heard] == [sum(len(e.token_ids) for e in heard[:i]) for i in range(len(heard))]


def test_tokens_that_are_not_text_yet_count_and_are_told_and_billed() -> None:
    running = job()
    running.take(delta(running, 0, 0, list(b"ab")))
    assert running.num_generated == 2
    (told,) = running.take_unpublished()
    assert (told.text, told.offset) == ("ab", 0)
    running.take(delta(running, 0, 2, list(b"c")))
    ending = running.ending("cancelled")
    assert ending.choices == [{"index": 0, "text": "abc", "finish_reason": None}]
    assert ending.used.completion_tokens == 3


class Unreadable:
    """A tokenizer that can't decode one token."""

    decoder = TOKENIZER.decoder

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        if 300 in ids:
            raise OverflowError("300")
        return TOKENIZER.decode(ids, skip_special_tokens=skip_special_tokens)


def test_what_cant_be_text_is_the_next_takes_error_and_stops_no_reader_of_others() -> None:
    running = RunningJob(job().started, cast("Tokenizer", Unreadable()), 10.0)
    running.take(delta(running, 0, 0, [300]))
    assert running.take_unpublished() == []
    with pytest.raises(OverflowError):
        running.take(delta(running, 0, 1, list(b"a")))
    assert running.ending("failed", {"code": "internal_error", "message": ""}).choices is None
    at_once = RunningJob(job().started, cast("Tokenizer", Unreadable()), 10.0)
    with pytest.raises(OverflowError):
        at_once.take(delta(at_once, 0, 0, [300], "length"))


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "untold"])
def test_tokens_that_cant_be_text_are_billed_to_who_cancels_before_anybody_noticed(is_told: bool) -> None:
    """They were dropped where they should have become text: the bill, and the waste of a job that was given back, lacked them."""
    running = RunningJob(job(n=2).started, cast("Tokenizer", Unreadable()), 10.0)
    running.take(delta(running, 0, 0, list(b"ab")))
    (first,) = running.take_unpublished()
    running.take(delta(running, 0, 2, [99, 300, 99]))
    running.take(delta(running, 1, 0, list(b"xyz")))
    if is_told:
        (told,) = running.take_unpublished()
        assert (told.choice, told.token_ids) == (1, list(b"xyz")), "the other choice's are text all the same"
    ending = running.ending("cancelled")
    assert (ending.billed, ending.used.completion_tokens) == (True, 2 + 3 + 3)
    assert [each["text"] for each in ending.choices or []] == ["ab", "xyz"]
    assert running.num_generated == len(first.token_ids) + 3, "events are numbered by what readers can be told"
    assert (running.wasted(is_kept=True).completion_tokens, running.wasted(is_kept=False).completion_tokens) == (3, 8)


def test_what_the_engine_was_never_given_wastes_nothing() -> None:
    running = job()
    assert running.wasted(is_kept=True) == Used()
    running.is_handed_over = True
    assert running.wasted(is_kept=True) == Used(prompt_tokens=2)


def test_what_is_billed_leaves_a_result_though_none_of_it_is_text() -> None:
    running = RunningJob(job().started, cast("Tokenizer", Unreadable()), 10.0)
    running.take(delta(running, 0, 0, [300]))
    ending = running.ending("expired")
    assert ending.used.completion_tokens == 1
    assert ending.choices == [{"index": 0, "text": "", "finish_reason": None}]


def structured(text: bytes, reason: str) -> RunningJob:
    running = job()
    running.started.sampling["grammar"] = {"kind": "regex", "text": ".*"}
    running = RunningJob(running.started, TOKENIZER, 10.0)
    running.take(delta(running, 0, 0, list(text), reason))
    return running


def test_a_structured_text_that_is_cut_ends_with_a_whole_character() -> None:
    assert structured('"ä🦊'.encode()[:-1], "length").choices[0].text == '"ä'
    assert structured('"ä🦊'.encode(), "length").choices[0].text == '"ä🦊'
    plain = job()
    plain.take(delta(plain, 0, 0, list("ä".encode()[:1]), "length"))
    assert plain.choices[0].text == "\N{REPLACEMENT CHARACTER}"


def test_logprobs_name_tokens_as_openai_does_also_parts_of_a_character() -> None:
    running = job()
    ids = [*"é".encode(), 0]
    logprobs = [Logprob(-0.5, [token, 97], [-0.5, -1.5]) for token in ids]
    running.take(TokenDelta(running.request_id, 0, 0, ids, "length", logprobs=logprobs))
    (choice,) = running.ending("succeeded").choices or []
    first, _, last = choice["logprobs"]["content"]
    assert first == {
        "token": "\N{REPLACEMENT CHARACTER}", "token_id": 0xC3, "bytes": [0xC3], "logprob": -0.5,
        "top_logprobs": [
            {"token": "\N{REPLACEMENT CHARACTER}", "token_id": 0xC3, "bytes": [0xC3], "logprob": -0.5},
            {"token": "a", "token_id": 97, "bytes": [97], "logprob": -1.5},
        ],
    }  # fmt: skip
    assert (last["token"], last["bytes"]) == ("\N{REPLACEMENT CHARACTER}", [0]), "a text in Postgres has no NUL"


def test_preemptions_are_kept_with_the_attempt_and_at_most_so_many() -> None:
    running = job(n=2)
    assert running.detail() is None
    assert running.detail({"reason": "x"}) == {"reason": "x"}
    for choice, is_back, now in ((1, False, 12.0), (0, False, 12.5), (1, True, 14.25)):
        running.move(Moved(running.request_id, choice, is_back), now)
    known = [{"choice": 1, "out_s": 2.0, "back_s": 4.25}, {"choice": 0, "out_s": 2.5, "back_s": None}]
    assert running.detail({"reason": "x"}) == {"reason": "x", "preempted": known}
    running.take(delta(running, 0, 0, list(b"a"), "length"))
    assert running.ending("cancelled").detail == {"preempted": known}
    for _ in range(2 * MAX_PREEMPTED):
        running.move(Moved(running.request_id, 0, False), 20.0)
    assert len(running.preempted) == MAX_PREEMPTED
