"""How do tokens become text, as they come, and where does a stop string end it? For the parent process; no torch.

Text is held back while it may still change or be cut off: a character whose bytes are split over tokens, and an end
that may be the beginning of a stop string. All of it follows from the tokens, so pushing them again restores any state.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what decoders write for bytes that aren't (yet) a character
_MAX_HELD_REPLACEMENTS = 16  # more in a row than any unfinished character explains: they are there to stay
_SLICE_TOKENS = 32  # decoded at once
_MAX_WINDOW_TOKENS = 4 * _SLICE_TOKENS
_MIN_WINDOW_TOKENS = 16


@dataclass(frozen=True, slots=True)
class _State:
    """Where decoding stands. The last tokens are decoded again each time, since tokens change each other's text."""

    window: list[int]
    boundary: int  # of the window's tokens, those up to here are whole characters, and out
    num_emitted: int  # characters of the window's text that are out or held
    held: str = ""  # text that may be the beginning of a stop string


class Detokenizer:
    """Turns one choice's tokens into text, a push at a time. How tokens are split into pushes makes no difference."""

    def __init__(self, tokenizer: Tokenizer, stop: Items[str] = (), prompt_tail: Items[int] = ()) -> None:
        """`prompt_tail`: the prompt's last tokens (8 are plenty), where the text is to join the prompt's seamlessly.

        Without them some tokenizers (SentencePiece's) drop the first word's leading space, as one wants for chat.
        """
        self._tokenizer = tokenizer
        self._stop = [string for string in stop if string]
        self._state = _State(list(prompt_tail), len(prompt_tail), len(self._stable(self._decode(prompt_tail))))
        self._num_tokens = 0
        self._stop_string: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens consumed: all that were pushed, or those up to and including the one that completed a stop string."""
        return self._num_tokens

    @property
    def stop_string(self) -> str | None:
        """The stop string that was found."""
        return self._stop_string

    def push(self, token_ids: Items[int]) -> tuple[str, bool]:
        """The text that is certain now, and whether a stop string has come. Text never holds any part of that string.

        After a stop string, further tokens are ignored.
        """
        emitted = ""
        for start in range(0, len(token_ids), _SLICE_TOKENS):
            if self._stop_string is None:
                emitted += self._push_slice(token_ids[start : start + _SLICE_TOKENS])
        return emitted, self._stop_string is not None

    def flush(self) -> str:
        """The text that was held back, when no more tokens come; an unfinished character is a replacement character."""
        if self._stop_string is not None:
            return ""
        state = self._state
        text = state.held + self._decode(state.window)[state.num_emitted :]
        self._state = _State([], 0, 0)
        return text

    def _push_slice(self, token_ids: Items[int]) -> str:
        state, text = self._advance(self._state, token_ids)
        found = self._find_stop(text)
        if found is None:
            self._num_tokens += len(token_ids)
            return self._release(state, text)
        if len(token_ids) > 1:
            # Somewhere in here. Go token by token, so that no split into pushes decides which string comes first.
            emitted = ""
            for token_id in token_ids:
                if self._stop_string is None:
                    emitted += self._push_slice([token_id])
            return emitted
        self._num_tokens += 1
        self._stop_string = found
        return text[: text.index(found)]

    def _advance(self, state: _State, token_ids: Items[int]) -> tuple[_State, str]:
        """The state after more tokens, and all text that isn't out yet (held and new) but for unfinished characters."""
        window, boundary = [*state.window, *token_ids], state.boundary
        text = self._decode(window)
        stable = self._stable(text)
        new = stable[state.num_emitted :]
        num_emitted = max(state.num_emitted, len(stable))
        # Forget old tokens. The window keeps some that have a text, for alone after invisible ones a word may lose its
        # leading space, and the first bytes of an unfinished character.
        kept = window
        if new and len(stable) == len(text):
            kept = window[boundary:]
            boundary = len(kept)
        elif len(window) > _MAX_WINDOW_TOKENS:  # nothing but garbage or invisible tokens comes
            kept = window[-_MIN_WINDOW_TOKENS:]
            boundary = 0
        if kept is not window:
            num_emitted = max(0, len(self._decode(kept)) - (len(text) - num_emitted))
        return _State(kept, boundary, num_emitted, state.held), state.held + new

    def _release(self, state: _State, text: str) -> str:
        """Let go of all text but what may be the beginning of a stop string."""
        num_held = max((_overlap(text, string) for string in self._stop), default=0)
        self._state = replace(state, held=text[len(text) - num_held :])
        return text[: len(text) - num_held]

    def _find_stop(self, text: str) -> str | None:
        """The stop string that begins first."""
        found = [string for string in self._stop if string in text]
        return min(found, key=text.index, default=None)

    def _decode(self, token_ids: Iterable[int]) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    @staticmethod
    def _stable(text: str) -> str:
        """Text without the replacement characters at its end that more bytes may turn into a character."""
        stripped = text.rstrip(_REPLACEMENT)
        if len(text) - len(stripped) > _MAX_HELD_REPLACEMENTS:
            return text[:-1]
        return stripped


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that is a beginning of `string`, but not all of it."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
