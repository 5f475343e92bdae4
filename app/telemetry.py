"""What is written to the log? One JSON object a line: a fixed event name and scalars; never prompts, outputs, keys or URLs with queries."""

import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from traceback import extract_tb
from typing import Any, TextIO

import msgspec

from app.errors import PenstockError

Scalar = str | int | float | bool | None

MAX_CHARS = 500  # of a field's text or a foreign message
MAX_FRAMES = 30  # of a traceback, the innermost
# Foreign loggers that speak of single requests, with their URLs: only their warnings are ours to show.
QUIET = ("httpx", "httpcore", "asyncio", "urllib3")

_encode = msgspec.json.Encoder().encode


def emit(
    logger: logging.Logger, level: int, event: str, *, error: BaseException | None = None, **fields: Scalar
) -> None:
    """Log `event`, a fixed name such as `api.request`; what varies is in `fields`. `error` adds its class and where it was raised."""
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"event": event, "fields": fields}, exc_info=error)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: `at`, `level`, `logger`, `event`, then the event's fields.

    A record that `emit` didn't make has the event `log` and a `message`. An error is told by its class and its frames; its
    message only where it is one of our own, since others may quote what a caller sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, without its end."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", "log"),
        }
        if not hasattr(record, "event"):
            line["message"] = record.getMessage().strip()
        line.update(getattr(record, "fields", {}))
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line.update(_error_fields(error))
        return _encode({name: _shown(value) for name, value in line.items()}).decode()


def configure_logging(level: str, stream: TextIO | None = None) -> None:
    """Send all loggers of this process, uvicorn's too, as JSON lines to `stream` (stderr if left out)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def _error_fields(error: BaseException) -> dict[str, Any]:
    fields: dict[str, Any] = {"error": f"{type(error).__module__}.{type(error).__qualname__}"}
    if isinstance(error, PenstockError):
        fields["detail"] = error.detail
    frames = extract_tb(error.__traceback__)[-MAX_FRAMES:]
    fields["frames"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    if error.__cause__ is not None:
        fields["cause"] = f"{type(error.__cause__).__module__}.{type(error.__cause__).__qualname__}"
    return fields


def _shown(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    cut = value if len(value) <= MAX_CHARS else value[:MAX_CHARS] + "…"
    # A lone surrogate can't be encoded; it is shown as an escape.
    return cut.encode("utf-8", "backslashreplace").decode()
