"""Does a reader get each event once, wherever and however its connections are cut?"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.client import Event, NoAnswer, NotPenstock, Penstock, Refused, Retries
from tests.support.hostile import RESET, Answer, Asked, Slept, hostile, http, stream_head
from tests.unit.client.conftest import KEY, Driven

Drive = Callable[..., Driven]
TEXTS = ["Once", " upon", " a", " tïme", " 🦊", "\n", "\r\n", " ended"]


def sse(number: int, kind: str, end: str = "\n", **data: Any) -> bytes:
    """One event on the wire."""
    lines = [f"id: {number}", f"event: {kind}", f"data: {json.dumps(data, ensure_ascii=False)}", "", ""]
    return end.join(lines).encode()


def story(end: str = "\n") -> list[tuple[int, bytes]]:
    """A whole stream: each event with its number, which grows but leaves numbers out, as token offsets do."""
    events = [(1, sse(1, "started", end))]
    events += [
        (3 * place, sse(3 * place, "tokens", end, index=0, text=text)) for place, text in enumerate(TEXTS, start=1)
    ]
    return [*events, (99, sse(99, "finished", end, status="succeeded"))]


IDS = [number for number, _ in story()]


def told(events: list[Event]) -> tuple[list[int], str]:
    return [event.id for event in events], "".join(event.text for event in events)


WHOLE = (IDS, "".join(TEXTS))


def after(asked: Asked | httpx.Request, *, end: str = "\n", overlap: int = 0) -> bytes:
    """What is left of the story for this reader; with `overlap`, some events that it has are sent again."""
    last = int(asked.headers.get("last-event-id", "-1"))
    done = sum(number <= last for number in IDS)
    return b"".join(wire for _, wire in story(end)[max(0, done - overlap) :])


# --- any cut, by example ---------------------------------------------------------------------------------------------


@dataclass
class Cut(httpx.SyncByteStream):
    """A body that comes in pieces and then ends, or breaks."""

    body: bytes
    piece: int
    breaks: bool

    def __iter__(self) -> Iterator[bytes]:
        for place in range(0, len(self.body), self.piece):
            yield self.body[place : place + self.piece]
        if self.breaks:
            raise httpx.ReadError("cut")


@dataclass(frozen=True)
class Connection:
    """How one connection fares."""

    end: str
    overlap: int
    noise: bytes
    num_bytes: int
    piece: int
    breaks: bool
    status: int


connections = st.builds(
    Connection,
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    overlap=st.integers(0, 3),
    noise=st.sampled_from([b"", b": hello\n\n", b"\xef\xbb\xbf", b"retry: 10\n\n", b"event: empty\n\n"]),
    num_bytes=st.integers(0, 700),
    piece=st.integers(1, 40),
    breaks=st.booleans(),
    status=st.sampled_from([200, 200, 200, 429, 503]),
)


@given(st.lists(connections, max_size=12))
def test_however_connections_fare_each_event_is_told_once(fares: list[Connection]) -> None:
    rest = iter(fares)

    def serve(request: httpx.Request) -> httpx.Response:
        fare = next(rest, None)
        if fare is not None and fare.status != 200:
            return httpx.Response(fare.status, json={"retryable": True}, headers={"Retry-After": "1"})
        body = (
            after(request)
            if fare is None
            else (fare.noise + after(request, end=fare.end, overlap=fare.overlap))[: fare.num_bytes]
        )
        stream = Cut(body, fare.piece if fare else 100, fare.breaks if fare else False)
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=stream)

    slept = Slept()
    with Penstock("http://x", KEY, transport=httpx.MockTransport(serve), sleep=slept, clock=lambda: 0.0) as penstock:
        assert told(list(penstock.stream("job_1"))) == WHOLE


# --- over real connections, both clients -----------------------------------------------------------------------------


def test_connections_that_are_reset_again_and_again_lose_and_repeat_nothing(driven: Drive) -> None:
    def act(asked: Asked) -> Answer:
        rest = after(asked, overlap=1)
        return [stream_head(), rest[: len(rest) * 2 // 5 + 30], RESET]

    with hostile(*[act] * 6, lambda asked: [stream_head(), after(asked)]) as server:
        assert told(driven(url=server.url).events()) == WHOLE
        assert len(server.asked) > 3
        assert server.asked[0].line == "GET /v1/jobs/job_1/events HTTP/1.1"
        assert "last-event-id" not in server.asked[0].headers
        assert int(server.asked[-1].headers["last-event-id"]) in IDS


def test_bytes_that_come_one_by_one_make_whole_events(driven: Drive) -> None:
    def drip(asked: Asked) -> Answer:
        whole = stream_head() + after(asked, end="\r\n")
        return [whole[place : place + 1] for place in range(len(whole))]

    with hostile(drip) as server:
        assert told(driven(url=server.url).events()) == WHOLE
        assert len(server.asked) == 1


def test_a_half_written_event_is_not_told_but_asked_for_again(driven: Drive) -> None:
    half = story()[1][1].rstrip(b"\n")  # all of it but the blank line that would end it
    with hostile(
        lambda _: [stream_head(), story()[0][1], half],
        lambda _: [stream_head(), b'id: 3\nevent: tokens\ndata: {"text": "On\n\n'],
        lambda asked: [stream_head(), after(asked)],
    ) as server:
        assert told(driven(url=server.url).events()) == WHOLE
        assert [each.headers.get("last-event-id") for each in server.asked] == [None, "1", "1"]


def test_a_reader_goes_on_where_it_says(driven: Drive) -> None:
    with hostile(lambda asked: [stream_head(), after(asked)]) as server:
        events = driven(url=server.url).events(after=6)
    assert told(events) == (IDS[3:], "".join(TEXTS[2:]))


def test_a_reader_who_has_all_is_told_nothing(driven: Drive) -> None:
    with hostile(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n") as server:
        assert driven(url=server.url).events(after=99) == []
        assert len(server.asked) == 1


def test_refusals_in_between_are_waited_out(driven: Drive) -> None:
    cut = [stream_head(), *[wire for _, wire in story()[:3]]]
    busy = http(503, b'{"retryable": true}', Retry_After="3")
    with hostile(lambda _: cut, busy, busy, lambda asked: [stream_head(), after(asked)]) as server:
        client = driven(url=server.url)
        assert told(client.events()) == WHOLE
    assert client.slept.seconds.count(3.0) == 2
    assert [error is None for error, _ in client.told] == [True, False, False], "the cut connection is told, too"


def test_a_job_that_isnt_there_is_refused(driven: Drive) -> None:
    with hostile(http(404, b'{"code": "not_found", "detail": "there is no job", "retryable": false}')) as server:
        with pytest.raises(Refused, match="there is no job"):
            driven(url=server.url).events()
        assert len(server.asked) == 1


def test_a_server_that_only_ever_sends_halves_is_given_up(driven: Drive) -> None:
    with hostile(lambda _: [stream_head(), b"id: 1\ndata: {}"]) as server:
        client = driven(url=server.url, draw=1.0, retries=Retries(lost_s=20))
        with pytest.raises(NoAnswer, match="its answers break off"):
            client.events()
    assert sum(client.slept.seconds) <= 20


def test_a_page_of_html_is_no_stream(driven: Drive) -> None:
    page = http(200, b"<html>", Content_Type="text/html")
    with hostile(page) as server, pytest.raises(NotPenstock, match="no stream"):
        driven(url=server.url).events()


def test_the_pause_that_the_server_asks_for_is_kept(driven: Drive) -> None:
    first = [stream_head(), b"retry: 2500\n\n", story()[0][1]]
    with hostile(lambda _: first, lambda asked: [stream_head(), after(asked)]) as server:
        client = driven(url=server.url)
        assert told(client.events()) == WHOLE
    assert client.slept.seconds == [2.5]


def test_heartbeats_keep_a_reader_patient_for_longer_than_silence_may_last(driven: Drive) -> None:
    beat = [stream_head(), b": still here\n\n"]
    with hostile(*[lambda _: beat] * 60, lambda asked: [stream_head(), after(asked)]) as server:
        client = driven(url=server.url, draw=1.0, retries=Retries(lost_s=5))
        assert told(client.events()) == WHOLE
    assert sum(client.slept.seconds) > 5


def test_what_an_event_says_is_there_typed_and_whole(driven: Drive) -> None:
    said = {
        "index": 1,
        "offset": 7,
        "text": "ü",
        "token_ids": [5, 6],
        "finish_reason": "stop",
        "usage": {"total_tokens": 3},
        "new": [1],
    }
    wire = sse(4, "tokens", **said) + sse(5, "finished", status="failed", error={"code": "x"})
    with hostile(lambda _: [stream_head(), wire]) as server:
        first, last = driven(url=server.url).events()
    assert (first.id, first.kind, first.index, first.offset) == (4, "tokens", 1, 7)
    assert (first.text, first.token_ids) == ("ü", [5, 6])
    assert (first.finish_reason, first.usage, first.data) == ("stop", {"total_tokens": 3}, said)
    assert (first.is_end, last.is_end) == (False, True)
    assert (last.status, last.error) == ("failed", {"code": "x"})
