"""Can a response's stream be resumed at every number, however its text was cut?"""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from app.api.openai.response_answer import response_object
from app.api.openai.response_stream import ResponseEvents
from app.jobs.read import JobView
from app.openai.response_request import ResponseRequest

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = JobView(
    id=UUID(int=7), tenant_id="acme", status="queued", tier="standard", model="m", requested_model=None, shared_from=None, pool="m",
    gen=1, attempt=0, n=1, prompt_tokens=3, max_tokens=9, cached_tokens=0, completion_tokens=0, metadata={}, error=None,
    created_at=NOW, started_at=None, finished_at=None, deadline_at=None, cancel_requested_at=None, changes=None, held_by=None,
    not_before=None, budget_metric=None, budget_period=None, choices=None,
)  # fmt: skip
TOOLS = [{"type": "function", "name": "now"}]
CALL = '{"name": "now", "arguments": {"a": [1, "x"]}}'
FREE = ResponseRequest.model_validate({"input": "a", "tools": TOOLS})
FORCED = ResponseRequest.model_validate({"input": "a", "tools": TOOLS, "tool_choice": "required"})
TEXTS = st.one_of(
    st.tuples(st.just(FREE), st.lists(st.sampled_from([f"<tool_call>{CALL}</tool_call>", " so ", "it\n", "<tool", "ü"])).map("".join)),
    st.tuples(st.just(FORCED), st.sampled_from([f"[{CALL}]", f"[{CALL}, {CALL}]", f"[{CALL}, {CALL[:30]}", "["])),
)  # fmt: skip


def ended(text: str, reason: str | None) -> JobView:
    choices = [{"index": 0, "text": text, "finish_reason": reason}]
    status = "cancelled" if reason is None else "succeeded"
    return replace(JOB, status=status, finished_at=NOW, choices=choices, completion_tokens=5)


def events(asked: ResponseRequest, job: JobView, pieces: list[str], after: int = -1) -> list[dict[str, Any]]:
    made = ResponseEvents(JOB, asked, after=after)
    found = [*made.begin(), *made.start()]
    for piece in pieces:
        found += made.push(piece, None)
    return [*found, *made.end(job)]


def cut(data: Any, text: str) -> list[str]:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)) | {0, len(text)})
    return [text[begin:end] for begin, end in pairwise(places)]


def joined(told: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """What a reader has, with deltas of one item put together."""
    found: list[tuple[str, Any]] = []
    for event in told:
        kind = event["type"]
        if kind.endswith(".delta") and found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + event["delta"])
        else:
            rest = {name: value for name, value in event.items() if name != "sequence_number"}
            found.append((kind, event["delta"] if kind.endswith(".delta") else rest))
    return found


@given(TEXTS, st.sampled_from(["stop", "length", None]), st.data())
def test_whoever_has_seen_an_event_gets_exactly_the_rest(
    case: tuple[ResponseRequest, str], reason: str | None, data: Any
) -> None:
    asked, text = case
    job = ended(text, reason)
    whole = events(asked, job, cut(data, text))
    numbers = [event["sequence_number"] for event in whole]
    assert numbers[0] == 0
    assert all(before < after for before, after in pairwise(numbers))
    place = data.draw(st.integers(0, len(whole) - 1))
    rest = events(asked, job, cut(data, text), after=numbers[place])
    assert all(event["sequence_number"] > numbers[place] for event in rest)
    assert joined(whole[: place + 1] + rest) == joined(whole)
    assert (rest or whole)[-1]["sequence_number"] == numbers[-1]


@given(TEXTS, st.sampled_from(["stop", "length", None]), st.data())
def test_a_stream_tells_what_the_object_shows(case: tuple[ResponseRequest, str], reason: str | None, data: Any) -> None:
    asked, text = case
    job = ended(text, reason)
    told = events(asked, job, cut(data, text))
    last = told[-1]
    assert (
        last["type"] == {"stop": "response.completed", "length": "response.incomplete", None: "response.failed"}[reason]
    )
    assert last["response"] == response_object(job, asked)
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert done == last["response"]["output"]
    for item in done:
        kind = "message" if item["type"] == "message" else "function_call"
        assert item["id"].startswith({"message": "msg_", "function_call": "fc_"}[kind])
    assert len({item["id"] for item in done}) == len(done)
