"""What of a choice hasn't its reader seen? After a restart the same comes again, in other pieces, and is passed over."""

from collections.abc import Sequence

import msgspec

from app.errors import Unavailable


class OtherText(Unavailable):
    """A job began anew and writes another text than its reader has seen: this stream can't go on."""

    code = "stream_restarted"


class News(msgspec.Struct, frozen=True):
    """The new part of a piece: its text, its tokens but the first `known_tokens`, and the reason of its end if that wasn't told."""

    text: str
    known_tokens: int
    reason: str | None


class Once:
    """One choice as its reader has it."""

    __slots__ = ("_at", "_at_token", "_has_ended", "_ids", "_minds_tokens", "_num_tokens", "_text")

    def __init__(self, *, minds_tokens: bool) -> None:
        """`minds_tokens`: the reader sees tokens, so that another run has to give the same ones, not the same text alone."""
        self._minds_tokens = minds_tokens
        self._text = ""
        self._ids: list[int] = []
        self._num_tokens = 0
        self._has_ended = False
        self._at = self._at_token = 0  # how far of it has come in this run

    def again(self) -> None:
        """It begins anew."""
        self._at = self._at_token = 0

    def take(self, text: str, token_ids: Sequence[int], reason: str | None) -> News:
        """What is new in the next piece of this run.

        Raises:
            OtherText: it isn't what the reader has seen.
        """
        known = self._text[self._at : self._at + len(text)]
        new = text[len(known) :]
        self._at += len(text)
        known_tokens = min(len(token_ids), self._num_tokens - self._at_token)
        is_same = text.startswith(known) and self._are_same(token_ids[:known_tokens])
        # What has ended can't go on, and what ends must have come as far as before.
        if not is_same or (self._has_ended and new) or (reason is not None and self._at < len(self._text)):
            raise OtherText("the job began anew with another text than was streamed; read its result, or ask again")
        self._text += new
        self._at_token += len(token_ids)
        self._num_tokens = max(self._num_tokens, self._at_token)
        if self._minds_tokens:
            self._ids += token_ids[known_tokens:]
        had_ended, self._has_ended = self._has_ended, self._has_ended or reason is not None
        return News(new, known_tokens, None if had_ended else reason)

    def _are_same(self, known: Sequence[int]) -> bool:
        return not self._minds_tokens or self._ids[self._at_token : self._at_token + len(known)] == list(known)
