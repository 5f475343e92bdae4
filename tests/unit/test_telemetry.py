"""Is every log line one JSON object, and does none repeat what a caller sent?"""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from app.errors import LeaseLost
from app.telemetry import configure_logging, emit

log = logging.getLogger("penstock.test")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        configure_logging("INFO", stream)
        yield stream
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_with_its_fields(stream: io.StringIO) -> None:
    emit(log, logging.INFO, "test.happened", count=3, name="a\nb", share=0.5, none=None, odd="\ud800")
    emit(log, logging.DEBUG, "test.unseen")
    (line,) = lines(stream)
    assert line.pop("at").endswith("Z")
    assert line == {
        "level": "info", "logger": "penstock.test", "event": "test.happened",
        "count": 3, "name": "a\nb", "share": 0.5, "none": None, "odd": "\\ud800",
    }  # fmt: skip


def test_an_error_is_told_by_class_and_place_not_by_what_it_quotes(stream: io.StringIO) -> None:
    try:
        int("a caller's secret")
    except ValueError as error:
        emit(log, logging.ERROR, "test.failed", error=error)
        log.exception("it failed")
    for line in lines(stream):
        assert line["error"] == "builtins.ValueError"
        assert "test_telemetry.py" in line["frames"][-1]
    assert "secret" not in stream.getvalue()


def test_our_own_errors_say_their_detail(stream: io.StringIO) -> None:
    emit(log, logging.ERROR, "test.failed", error=LeaseLost("worker 7: its lease has ended"))
    assert lines(stream)[0]["detail"] == "worker 7: its lease has ended"


def test_other_loggers_speak_json_too(stream: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").info("Started %s", "x" * 9000)
    logging.getLogger("httpx").info("HTTP Request: GET http://example.com/?token=1")
    (line,) = lines(stream)
    assert (line["event"], line["logger"]) == ("log", "uvicorn.error")
    assert len(line["message"]) < 600
