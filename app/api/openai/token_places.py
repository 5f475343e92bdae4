"""Where in a text does each of its tokens begin? Found as text and tokens come, in pieces of any size, always in the same way."""

import codecs
from collections import deque
from typing import Any

Entry = dict[str, Any]  # a token's log-probability in chat completions' form, with its bytes
_REPLACED = str.maketrans({"\x00": "\N{REPLACEMENT CHARACTER}"})  # as results have it


class TokenPlaces:
    """Tokens and their text, put side by side. A token that the text doesn't have, such as an end's, begins where the last one ended."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._placed: deque[tuple[int, Entry]] = deque()
        self._coming: deque[tuple[str, Entry | None]] = deque()  # by their characters; None: was handed out
        self._ahead = ""  # of the text, what no token was found for
        self._at = 0  # where `_ahead` begins
        self._is_closed = False

    def push(self, text: str, entries: list[Entry]) -> None:
        """More of both. A text may come after its tokens, not before."""
        if not (entries or self._coming):
            self._at += len(self._ahead) + len(text)
            self._ahead = ""
            return
        self._ahead += text.translate(_REPLACED)
        for entry in entries:
            chars = self._decoder.decode(bytes(entry["bytes"])).translate(_REPLACED)
            self._coming.append((chars, entry))
        self._place()

    def within(self, begin: int, end: int) -> list[tuple[int, Entry]]:
        """Those that begin at or after `begin` and before `end`, up to where the text is known; what begins before is dropped."""
        found = []
        while self._placed and self._placed[0][0] < end:
            found.append(self._placed.popleft())
        if self._coming and self._at < end:  # where it begins is known, if not where it ends
            chars, entry = self._coming[0]
            if entry is not None:
                found.append((self._at, entry))
                self._coming[0] = (chars, None)
        return [each for each in found if each[0] >= begin]

    def close(self) -> list[Entry]:
        """There is no more text: those that stand behind all of it."""
        self._is_closed = True
        self._place()
        end = self._at + len(self._ahead)
        return [entry for place, entry in self._placed if place >= end]

    def _place(self) -> None:
        while self._coming:
            chars, entry = self._coming[0]
            size = self._size_of(chars)
            if size is None:
                return
            self._coming.popleft()
            if entry is not None:
                self._placed.append((self._at, entry))
            self._at += size
            self._ahead = self._ahead[size:]

    def _size_of(self, chars: str) -> int | None:
        """How much of the text is this token; None where that isn't known yet."""
        # Tokenizers that write words with a blank before them leave the first one out.
        for form in (chars, chars.lstrip(" ")) if self._at == 0 else (chars,):
            if self._ahead.startswith(form):
                return len(form)
            if not self._is_closed and form.startswith(self._ahead):
                return None
        return 0
