"""Which part of a model's text is for the reader, and which calls a function? Read as the text comes, in pieces of any size.

However the text was cut into pieces, the same parts come out, but for where a text or a call's arguments are cut in two.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.openai.tools import Calling


@dataclass(slots=True)  # one is made for each event of each stream: a frozen one takes several times as long
class Said:
    """Text for the reader; `begin` is where it begins in all that was written."""

    text: str
    begin: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A function is called; its arguments follow."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A part of the arguments of the call that was begun last."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The arguments are whole."""


Part = Said | CallBegun | Arguments | CallEnded


class Reader(Protocol):
    """Reads the text of one choice."""

    def push(self, text: str) -> Iterator[Part]:
        """What is known with this piece of the text."""
        ...

    def close(self) -> Iterator[Part]:
        """The rest: there is no more text."""
        ...


def reader_of(calling: Calling) -> Reader:
    """The reader for what was asked."""
    if calling.forced:
        return ForcedCalls()
    return PossibleCalls(calling.names) if calling.choice == "auto" else PlainText()


class PlainText:
    """No calls: all is for the reader."""

    def __init__(self) -> None:
        self._at = 0

    def push(self, text: str) -> Iterator[Part]:
        """The piece itself."""
        if text:
            yield Said(text, self._at)
            self._at += len(text)

    def close(self) -> Iterator[Part]:
        """Nothing is held back."""
        yield from ()


class ForcedCalls:
    """The output of `Calling.grammar`, which may be cut off anywhere."""

    _HEAD = re.compile(r'[\[,]\s*\{"name": "([^"]*)", "arguments": ')

    def __init__(self) -> None:
        self._held = ""  # outside of arguments: what isn't a whole head yet
        self._is_inside = False
        self._depth = 0
        self._is_string = False
        self._is_escaped = False

    def push(self, text: str) -> Iterator[Part]:
        """Each call's name as soon as it is whole, its arguments as they come."""
        while text:
            if self._is_inside:
                end = self._end_of_arguments(text)
                yield Arguments(text[:end])
                if self._depth == 0:
                    self._is_inside = False
                    yield CallEnded()
                text = text[end:]
                continue
            self._held += text
            found = self._HEAD.search(self._held)
            if found is None:
                return
            yield CallBegun(found[1])
            text, self._held = self._held[found.end() :], ""
            self._is_inside = True

    def close(self) -> Iterator[Part]:
        """What was cut off stays as it is."""
        yield from ()

    def _end_of_arguments(self, text: str) -> int:
        """How far into `text` the arguments go; the depth is 0 where they end there."""
        for place, letter in enumerate(text):
            if self._is_string:
                self._is_string = self._is_escaped or letter != '"'
                self._is_escaped = letter == "\\" and not self._is_escaped
            elif letter == '"':
                self._is_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        return len(text)


class PossibleCalls:
    """Text in which a model may call functions, in the ways that models were taught.

    `<tool_call>{"name", "arguments"}</tool_call>` anywhere (Hermes, Qwen and their like), or the whole text as one such object or a list of
    them, also behind `<|python_tag|>` or `[TOOL_CALLS]` (Llama, Mistral); `parameters` is as good as `arguments`. What calls no function
    that there is, is text.
    """

    _OPEN, _CLOSE = "<tool_call>", "</tool_call>"
    _TAG = "<|python_tag|>"
    _TAGS = re.compile(r"^\s*(?:<\|python_tag\|>|\[TOOL_CALLS\])")

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._held = ""
        self._at = 0  # where that begins
        self._has_called = False
        self._state: Callable[[], Iterator[Part]] = self._beginning

    def push(self, text: str) -> Iterator[Part]:
        """What can't be the beginning of a call any more, and calls that are whole."""
        self._held += text
        state = None
        while self._held and state != (self._state, self._held):
            state = (self._state, self._held)
            yield from self._state()

    def close(self) -> Iterator[Part]:
        """What was held back: the calls that it makes, or its text."""
        held, self._held = self._held, ""
        if self._state == self._whole:
            calls = self._calls_in(self._TAGS.sub("", held))
        elif self._state == self._call:  # the end of the text is as good as the closing tag
            calls = self._calls_in(held.strip().removeprefix(self._OPEN))
        else:
            calls = None
        if calls is not None:
            yield from _parts_of(calls)
        elif held.strip() or (held and not self._has_called):
            yield Said(held, self._at)

    def _beginning(self) -> Iterator[Part]:
        """Nothing but blanks so far, or the beginning of what may turn out to be a call as a whole."""
        text = self._held.lstrip()
        if text.startswith(("{", "[", self._TAG)):
            self._state = self._whole
        elif not self._TAG.startswith(text):
            self._state = self._text
        yield from ()

    def _whole(self) -> Iterator[Part]:
        """All of it is a call, or none: the end will tell."""
        yield from ()

    def _text(self) -> Iterator[Part]:
        place = self._held.find(self._OPEN)
        if place >= 0:
            before = self._held[:place].rstrip()
            self._state = self._call
        else:
            keep = _num_open(self._held, self._OPEN)
            before = self._held[: len(self._held) - keep]
        begin = self._pass(len(before))
        if before:
            yield Said(before, begin)

    def _call(self) -> Iterator[Part]:
        """Blanks, the opening tag and what follows, up to the closing one."""
        place = self._held.find(self._CLOSE)
        if place < 0:
            return
        end = place + len(self._CLOSE)
        raw = self._held[:end]
        begin = self._pass(end)
        self._state = self._text
        calls = self._calls_in(raw.strip().removeprefix(self._OPEN).removesuffix(self._CLOSE))
        if calls is None:
            yield Said(raw, begin)
        else:
            self._has_called = True
            yield from _parts_of(calls)

    def _pass(self, size: int) -> int:
        """Hold so much less; where it began."""
        begin = self._at
        self._held = self._held[size:]
        self._at += size
        return begin

    def _calls_in(self, text: str) -> list[tuple[str, str]] | None:
        """(name, arguments) of the calls that a JSON text makes; None where it isn't all calls of functions that there are."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        items = found if isinstance(found, list) else [found]
        calls = [_call_of(each, self._names) for each in items]
        whole = [each for each in calls if each is not None]
        return whole if whole and len(whole) == len(calls) else None


def _call_of(item: Any, names: frozenset[str]) -> tuple[str, str] | None:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str) or item["name"] not in names:
        return None
    arguments = item.get("arguments", item.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    # NaN and 1e999 are read, and are no JSON; what can be read can be too deep to be written.
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    # Half of a pair of surrogates, written as an escape, is JSON, but no text that could be sent.
    return item["name"], text if text.isascii() or _is_encodable(text) else json.dumps(arguments)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parts_of(calls: list[tuple[str, str]]) -> Iterator[Part]:
    for name, arguments in calls:
        yield CallBegun(name)
        yield Arguments(arguments)
        yield CallEnded()


def _num_open(text: str, tag: str) -> int:
    """How many letters at the end may yet belong to a tag: the beginning of one, and blanks before it."""
    begun = next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-size:])), 0)
    rest = text[: len(text) - begun]
    return begun + len(rest) - len(rest.rstrip())
