"""How does text that streams in become tokens, where a server doesn't say which they were?

The tokens' text is the server's text, to the letter; that is what is promised. They are those that the tokenizer makes of
each word, which is mostly what the model generated, but needn't be: their number may differ from the server's own.
"""

import re

from tokenizers import Tokenizer

_BEFORE_LAST_WORD = re.compile(r"\s+\S*$")  # what still may change: the last word, and the white space before it
_MAX_HELD_CHARS = 64  # text without white space (Chinese, base64) is cut anyway
_KEPT_CHARS = 4
_WINDOW_TOKENS = 8  # tokens before a piece that may change how it is decoded


class TextUnreadable(ValueError):
    """The tokenizer can't write this text: the server's model has another one."""


class Retokenizer:
    """Tokens for one choice's text, a piece at a time; what is out never changes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._held = ""
        self._window: list[int] = []

    def push(self, text: str) -> list[int]:
        """The tokens of all whole words so far. Raises TextUnreadable."""
        self._held += text
        found = _BEFORE_LAST_WORD.search(self._held)
        cut = found.start() if found else 0
        if cut == 0 and len(self._held) > _MAX_HELD_CHARS:
            cut = len(self._held) - _KEPT_CHARS
        piece, self._held = self._held[:cut], self._held[cut:]
        return self._encode(piece) if piece else []

    def flush(self) -> list[int]:
        """The tokens of what was held back, at the end. Raises TextUnreadable."""
        piece, self._held = self._held, ""
        return self._encode(piece) if piece else []

    def _encode(self, piece: str) -> list[int]:
        before = self._decode(self._window)
        for token_ids in self._candidates(before, piece):
            if self._decode([*self._window, *token_ids]) == before + piece:
                self._window = [*self._window, *token_ids][-_WINDOW_TOKENS:]
                return token_ids
        raise TextUnreadable("the server's text isn't one that this tokenizer can write: does the model match?")

    def _candidates(self, before: str, piece: str) -> list[list[int]]:
        """Ways to write a piece, the likeliest first."""
        ways = [self._ids(piece)]
        if piece.startswith(" "):  # SentencePiece's tokenizers put that space there themselves
            ways.append(self._ids(piece[1:]))
        joined = self._ids(before + piece)
        if joined[: len(self._window)] == self._window:
            ways.append(joined[len(self._window) :])
        spelled = [self._spell(letter) for letter in piece]
        if all(spelled):
            ways.append([token_id for letter in spelled for token_id in letter])
        return ways

    def _spell(self, letter: str) -> list[int]:
        """A letter's own token, or those of its bytes; empty if there are none."""
        token_id = self._tokenizer.token_to_id(letter.replace(" ", "\u2581"))
        if token_id is not None:
            return [token_id]
        names = [f"<0x{byte:02X}>" for byte in letter.encode()]
        found = [token_id for name in names if (token_id := self._tokenizer.token_to_id(name)) is not None]
        return found if len(found) == len(names) else []

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)
