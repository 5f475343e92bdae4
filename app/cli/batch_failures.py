"""Why have lines of a batch failed? Its error file, counted by code, with the first of each by name."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from app.cli.tables import visible

MOST_CODES = 8  # that are told one by one
NUM_EXAMPLES = 3
MAX_ID_CHARS, MAX_MESSAGE_CHARS = 40, 160
_decoder = msgspec.json.Decoder(dict[str, Any])


@dataclass(slots=True)
class _Kind:
    """Lines with one code: how many, the first ones' custom_ids, and what the first was told."""

    message: str
    count: int = 0
    custom_ids: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Failures:
    """Takes an error file's bytes as they come and keeps what is told of them."""

    _kinds: dict[str, _Kind] = field(default_factory=dict)
    _rest: bytes = b""

    def feed(self, data: bytes) -> None:
        """The next bytes; the file ends with a line's end."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        for raw in whole:
            self._take(_decoder.decode(raw))

    def told(self) -> Iterator[str]:
        """A line for each code, the most frequent first."""
        ranked = sorted(self._kinds.items(), key=lambda each: -each[1].count)
        for code, kind in ranked[:MOST_CODES]:
            more = ", …" if kind.count > len(kind.custom_ids) else ""
            names = ", ".join(_short(each, MAX_ID_CHARS) for each in kind.custom_ids)
            yield f"{kind.count} x {_short(code, MAX_ID_CHARS)} ({names}{more}): {_short(kind.message, MAX_MESSAGE_CHARS)}"
        others = ranked[MOST_CODES:]
        if others:
            yield f"{sum(kind.count for _, kind in others)} with {len(others)} other codes"

    def _take(self, line: dict[str, Any]) -> None:
        error = line.get("error") or line["response"]["body"]["error"]
        kind = self._kinds.setdefault(str(error["code"]), _Kind(str(error["message"])))
        kind.count += 1
        if len(kind.custom_ids) < NUM_EXAMPLES:
            kind.custom_ids.append(line["custom_id"])


def _short(text: str, most: int) -> str:
    shown = visible(" ".join(text.split()))
    return shown if len(shown) <= most else shown[: most - 1] + "…"
