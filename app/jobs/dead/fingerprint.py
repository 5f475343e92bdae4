"""Which dead letters are of one kind? Model, reason, and what the crash looked like once numbers, addresses and ids are taken out."""

import hashlib
import re
import signal
from typing import Any

MAX_SIGNATURE_CHARS = 300
_FINGERPRINT_HEX = 16
_READ_CHARS = 16_384  # of a log's end: more says nothing new, and a regex should meet no end of text

_STATUS = re.compile(r"exit status (-?\d+)")
# The line of a log that says what went wrong: a Python exception, a crash of the interpreter or the C library, the kernel's word.
_ERROR_LINE = re.compile(
    r"^\s*(?:[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Exhausted|Died|Failed)\b.*"
    r"|Fatal Python error:.*|Segmentation fault.*|.*\bpanicked at\b.*|terminate called .*|.*\bAssertion .* failed.*"
    r"|.*\bCUDA error\b.*|.*\b(?:out of memory|Out of memory|Cannot allocate memory)\b.*|Killed|Aborted.*)\s*$"
)
_FRAME = re.compile(r'^\s*File "([^"]+)", line \d+,? in (\S+)')
# What differs from one crash of a kind to the next, in the order in which it has to be taken out.
_VARYING = [
    (re.compile(r"\x1b\[[0-9;?]*[A-Za-z]"), ""),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"), "<time>"),
    (re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"), "<id>"),
    (re.compile(r"\b0[xX][0-9a-fA-F]+\b"), "<address>"),
    (re.compile(r"(?<![A-Za-z0-9])(?:[a-z]+_)?(?=[0-9a-f]*\d)[0-9a-f]{12,}(?:\.\d+)?(?![A-Za-z0-9])"), "<id>"),
    (re.compile(r"(?<![\w.])(?:/[\w.@+-]+)+/([\w.@+-]+)"), r"\1"),
    (re.compile(r"[-+]?(?<![A-Za-z_0-9])\d+(?:[.,]\d+)*(?:e[-+]?\d+)?"), "<n>"),
    (re.compile(r"[\s\x00-\x1f\x7f-\x9f]+"), " "),
]


def normalise(text: str) -> str:
    """`text` without what differs between two events of one kind: times, ids, addresses, folders, numbers."""
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    return text.strip()


def signature_of(reason: str, detail: dict[str, Any]) -> str:
    """What the last attempt's end looked like, in a line: error code, how the process ended, what its log said last.

    Args:
        reason: why the job was given up, such as `engine_crashes`.
        detail: of the attempt that gave the last reason; `reason`, `log_tail`, `code` and `message` are read.
    """
    parts = [reason, _text(detail, "code"), _named_status(_text(detail, "reason")), normalise(_text(detail, "message"))]
    parts.append(_last_error(_text(detail, "log_tail")[-_READ_CHARS:]))
    return " | ".join(part for part in parts if part)[:MAX_SIGNATURE_CHARS]


def fingerprint_of(model: str, signature: str) -> str:
    """The group that a dead letter belongs to: 16 hex digits, the same wherever and whenever they are computed."""
    return hashlib.sha256(f"{model}\n{signature}".encode()).hexdigest()[:_FINGERPRINT_HEX]


def _text(detail: dict[str, Any], name: str) -> str:
    value = detail.get(name)
    return str(value)[:_READ_CHARS] if value is not None else ""


def _named_status(text: str) -> str:
    """The text, normalised but for the exit status, which is a kind of crash and not a number of one."""
    found = _STATUS.search(text)
    if found is None:
        return normalise(text)
    code = int(found[1])
    try:
        name = signal.Signals(-code).name if code < 0 else f"status {code}"
    except ValueError:
        name = f"signal {-code}"
    return f"{normalise(_STATUS.sub('', text))} ({name})"


def _last_error(log_tail: str) -> str:
    """The last line that says what went wrong, with the innermost frame before it; empty where none does."""
    lines = log_tail.splitlines()
    last = next((place for place in range(len(lines) - 1, -1, -1) if _ERROR_LINE.match(lines[place])), None)
    if last is None:
        return ""
    frame = next((found for line in reversed(lines[:last]) if (found := _FRAME.match(line))), None)
    where = f" in {frame[1].rpartition('/')[2]}:{frame[2]}" if frame else ""
    return normalise(lines[last]) + where
