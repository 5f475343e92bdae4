"""How is a response streamed, so that a reader may come back at any event? Its events' numbers follow from the text alone.

A number counts what was told before: each event one, and each character of a text or of arguments one, whatever pieces they came in. So
the same text gives the same numbers, after a restart of anything and also when the tokens are told anew in other pieces; between two
deltas the numbers leave gaps. Who has seen number N gets exactly what is behind it: a delta that reaches over N is cut there.
"""

from collections.abc import Iterator
from typing import Any

from app.api.openai.calls import Arguments, CallBegun, CallEnded, Part, Said, reader_of
from app.api.openai.response_answer import OutputItems, logprobs_of, response_object, shown_logprob, status_of
from app.api.openai.token_places import TokenPlaces
from app.jobs.read import JobView
from app.openai.response_request import ResponseRequest


class ResponseEvents:
    """Turns what is new of a job into the events of its response, from those after the number `after` on; -1: all."""

    def __init__(self, job: JobView, request: ResponseRequest, *, after: int = -1) -> None:
        self._job = job
        self._request = request
        self._after = after
        self._number = -1
        self._reader = reader_of(request.calling())
        self._places = TokenPlaces()
        self._output = OutputItems(job.id)
        self._is_started = False

    def begin(self) -> Iterator[dict[str, Any]]:
        """The response exists."""
        status = "queued" if self._request.background else "in_progress"
        yield from self._tell("response.created", response=self._snapshot(status))

    def start(self) -> Iterator[dict[str, Any]]:
        """It is being worked on."""
        if not self._is_started:
            self._is_started = True
            yield from self._tell("response.in_progress", response=self._snapshot("in_progress"))

    def push(self, text: str, logprobs: list[dict[str, Any]] | None) -> Iterator[dict[str, Any]]:
        """What this text brings."""
        yield from self.start()
        self._places.push(text, logprobs or [])
        yield from self._events_of(self._reader.push(text))

    def end(self, job: JobView) -> Iterator[dict[str, Any]]:
        """The rest: the job has ended so."""
        yield from self.start()
        yield from self._events_of(self._reader.close())
        status = status_of(job)
        if not self._output.items and job.choices:
            yield from self._open(Said(""))
        self._output.note(shown_logprob(each) for each in self._places.close())
        yield from self._close(is_whole=status == "completed")
        kind = f"response.{status if status in {'completed', 'incomplete'} else 'failed'}"
        yield from self._tell(kind, response=response_object(job, self._request))

    def _events_of(self, parts: Iterator[Part]) -> Iterator[dict[str, Any]]:
        for part in parts:
            if isinstance(part, CallBegun):
                yield from self._close()
            yield from self._open(part)
            if isinstance(part, Said | Arguments):
                yield from self._delta(part)
            elif isinstance(part, CallEnded):
                yield from self._close()

    def _open(self, part: Part) -> Iterator[dict[str, Any]]:
        if not self._output.begin(part):
            return
        item = self._output.items[-1]
        yield from self._tell(
            "response.output_item.added",
            output_index=self._index,
            item=item | ({"content": []} if item["type"] == "message" else {}),
        )
        if item["type"] == "message":
            yield from self._tell("response.content_part.added", **self._place, part=dict(item["content"][0]))

    def _delta(self, part: Said | Arguments) -> Iterator[dict[str, Any]]:
        self._output.write(part)
        entries = logprobs_of(part, self._places)
        self._output.note(shown for _, shown in entries)
        begin = self._number
        self._number += len(part.text)
        if self._number <= self._after:
            return
        known = max(0, self._after - begin)
        text = part.text[known:]
        if isinstance(part, Said):
            logprobs = [shown for place, shown in entries if place >= part.begin + known]
            yield self._event("response.output_text.delta", **self._place, delta=text, logprobs=logprobs)
        else:
            yield self._event("response.function_call_arguments.delta", **self._item_place, delta=text)

    def _close(self, *, is_whole: bool = True) -> Iterator[dict[str, Any]]:
        item = self._output.end(is_whole=is_whole)
        if item is None:
            return
        if item["type"] == "message":
            content = item["content"][0]
            text, logprobs = content["text"], content["logprobs"]
            yield from self._tell("response.output_text.done", **self._place, text=text, logprobs=logprobs)
            yield from self._tell("response.content_part.done", **self._place, part=dict(content))
        else:
            yield from self._tell(
                "response.function_call_arguments.done",
                **self._item_place,
                name=item["name"],
                arguments=item["arguments"],
            )
        yield from self._tell("response.output_item.done", output_index=self._index, item=dict(item))

    @property
    def _index(self) -> int:
        return len(self._output.items) - 1

    @property
    def _item_place(self) -> dict[str, Any]:
        return {"item_id": self._output.items[-1]["id"], "output_index": self._index}

    @property
    def _place(self) -> dict[str, Any]:
        return self._item_place | {"content_index": 0}

    def _snapshot(self, status: str) -> dict[str, Any]:
        return response_object(self._job, self._request, status=status, output=[])

    def _tell(self, kind: str, **members: Any) -> Iterator[dict[str, Any]]:
        self._number += 1
        if self._number > self._after:
            yield self._event(kind, **members)

    def _event(self, kind: str, **members: Any) -> dict[str, Any]:
        return {"type": kind, "sequence_number": self._number} | members
