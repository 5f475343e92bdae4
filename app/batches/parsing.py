"""Is this a batch? Its lines one by one, as their bytes come, each checked on its own; errors say in which line."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from app.batches.order import prefix_key, prompt_text
from app.batches.translate import Body, names_in, to_request
from app.errors import InvalidRequest
from app.jobs.request import JobRequest
from app.openai.fields import in_callers_words
from app.settings import Settings

MAX_ERRORS = 100  # that a batch shows; the count of all is said besides
MAX_MESSAGE_CHARS = 500
MAX_CUSTOM_ID_CHARS = 512
_FIELDS = {"custom_id", "method", "url", "body"}
_decoder = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class Line:
    """A line that holds: where it is in the file, in bytes, and how it is sorted."""

    number: int
    custom_id: str
    start: int
    length: int
    key: bytes
    model: str | None


@dataclass(frozen=True, slots=True)
class LineError:
    """What is wrong with a line, or with the file, where `line` is None."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None

    def document(self) -> dict[str, Any]:
        """As OpenAI's batch object shows it."""
        return {"code": self.code, "line": self.line, "message": self.message, "param": self.param}


def _place(error: LineError) -> int:
    return error.line or 0


class _Wrong(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


@dataclass(slots=True)
class BatchReader:
    """Takes a file's bytes as they come and keeps of each line what is needed to find and sort it; the bodies go."""

    endpoint: str
    settings: Settings
    lines: list[Line] = field(default_factory=list)
    errors: list[LineError] = field(default_factory=list)
    num_errors: int = 0
    _numbers: dict[str, int] = field(default_factory=dict)  # custom_id -> line
    _rest: bytes = b""
    _at: int = 0  # in the file, of `_rest`
    _number: int = 0
    _count: int = 0  # of lines that aren't empty
    _is_over: bool = False

    def feed(self, data: bytes) -> None:
        """The next bytes. Takes long: call it in a thread."""
        if self._is_over:
            return
        *whole, self._rest = (self._rest + data).split(b"\n")
        for raw in whole:
            self._take(raw)
            self._at += len(raw) + 1
        # No body may be as long: what has no end of line isn't kept in memory.
        if len(self._rest) > self.settings.max_body_bytes:
            self._number += 1
            self._wrong("line_too_long", f"a line must have at most {self.settings.max_body_bytes} bytes", self._number)
            self._is_over = True

    def close(self) -> None:
        """No more bytes come."""
        if not self._is_over:
            self._take(self._rest)
        self._rest = b""
        if not self.lines and not self.num_errors:
            self._wrong("empty_file", "the file holds no line", None)

    def add_errors(self, found: Sequence[LineError]) -> None:
        """Errors of lines that hold by themselves, found by others. The first ones of the file are kept."""
        self.num_errors += len(found)
        self.errors = sorted([*self.errors, *found], key=_place)[:MAX_ERRORS]

    def documents(self) -> list[dict[str, Any]]:
        """The errors as the batch shows them, by line."""
        shown = [each.document() for each in sorted(self.errors, key=_place)]
        if self.num_errors > len(shown):
            message = f"{self.num_errors - len(shown)} more errors aren't listed"
            shown.append(LineError("more_errors", message).document())
        return shown

    def _take(self, raw: bytes) -> None:
        self._number += 1
        start = self._at
        if self._number == 1 and raw.startswith(codecs.BOM_UTF8):  # spreadsheets and PowerShell write one
            raw = raw.removeprefix(codecs.BOM_UTF8)
            start += len(codecs.BOM_UTF8)
        if not raw.strip() or self._is_over:
            return  # empty lines count, and mean nothing
        self._count += 1
        if self._count > self.settings.max_batch_lines:
            most = self.settings.max_batch_lines
            self._wrong("too_many_lines", f"a batch must have at most {most} lines", self._number)
            self._is_over = True
            return
        try:
            custom_id, body = self._checked(raw)
            request = to_request(self.endpoint, body)
            self._check_limits(request, body)
        except InvalidRequest as error:
            self._wrong(error.code, error.detail, self._number, error.extra.get("param"))
        except _Wrong as error:
            self._wrong(error.code, error.message, self._number, error.param)
        else:
            key = prefix_key(request.model, prompt_text(request))
            self.lines.append(Line(self._number, custom_id, start, len(raw), key, request.model))

    def _checked(self, raw: bytes) -> tuple[str, dict[str, Any]]:
        if len(raw) > self.settings.max_body_bytes:
            raise _Wrong("line_too_long", f"a line must have at most {self.settings.max_body_bytes} bytes")
        line = decode_line(raw)
        unknown = sorted(line.keys() - _FIELDS)
        if unknown:
            raise _Wrong("unknown_parameter", f"{unknown[0][:64]}: isn't a known field", unknown[0][:64])
        for name in ("custom_id", "method", "url", "body"):
            if line.get(name) is None:
                raise _Wrong("missing_required_parameter", f"{name}: is required", name)
        custom_id, body = line["custom_id"], line["body"]
        self._check_id(custom_id)
        if line["method"] != "POST":
            raise _Wrong("invalid_method", "method: must be POST", "method")
        if line["url"] != self.endpoint:
            advice = "mend the line, or make the batch with its url as endpoint"
            raise _Wrong("mismatched_endpoint", f"url: must be the batch's endpoint, {self.endpoint}: {advice}", "url")
        if not isinstance(body, dict):
            raise _Wrong("invalid_type", "body: must be an object", "body")
        return custom_id, body

    def _check_id(self, custom_id: Any) -> None:
        if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_CUSTOM_ID_CHARS or "\x00" in custom_id:
            message = f"custom_id: must be a text of 1 to {MAX_CUSTOM_ID_CHARS} characters without U+0000"
            raise _Wrong("invalid_custom_id", message, "custom_id")
        first = self._numbers.setdefault(custom_id, self._number)
        if first != self._number:
            raise _Wrong("duplicate_custom_id", f"custom_id: is that of line {first}, too", "custom_id")

    def _check_limits(self, request: JobRequest, body: Body) -> None:
        for name, message in request.check_limits(self.settings):
            said, param = in_callers_words(f"{name}: {message}", name, names_in(self.endpoint, body))
            raise _Wrong("invalid_request", said, param)

    def _wrong(self, code: str, message: str, line: int | None, param: str | None = None) -> None:
        self.num_errors += 1
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(LineError(code, message[:MAX_MESSAGE_CHARS], line, param))


def decode_line(raw: bytes) -> dict[str, Any]:
    """The object of a line. Raises an error with code `invalid_json_line`."""
    try:
        return _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        place = (
            str(error).removeprefix("JSON is malformed: ")
            if isinstance(error, msgspec.DecodeError)
            else "see its bytes"
        )
        raise _Wrong("invalid_json_line", f"the line must be one JSON object in UTF-8 ({place})") from None
