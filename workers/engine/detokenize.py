"""How do tokens become text, as they come, and where does a stop string end it? For the parent process; no torch.

Text is held back while it may still change or be cut off: a character whose bytes are split over tokens, and an end
that may be the beginning of a stop string. All of it follows from the tokens, so pushing them again restores any state.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what decoders write for bytes that aren't (yet) a character
_SLICE_TOKENS = 32  # decoded at once
_MAX_UNFINISHED_TOKENS = 3  # a character has at most 4 bytes
_MAX_WINDOW_TOKENS = 4 * _SLICE_TOKENS
_MIN_WINDOW_TOKENS = 16


@dataclass(frozen=True, slots=True)
class _State:
    """Where decoding stands. The last tokens are decoded again each time, since tokens change each other's text."""

    window: list[int]
    boundary: int  # of the window's tokens, those up to here are whole characters, and out
    num_emitted: int  # characters of the window's text that are out or held
    is_whole: bool = True  # whether the window ends with a whole character
    held: str = ""  # text that may be the beginning of a stop string


class Detokenizer:
    """Turns one choice's tokens into text, a push at a time. How tokens are split into pushes makes no difference."""

    def __init__(self, tokenizer: Tokenizer, stop: Items[str] = (), prompt_tail: Items[int] = ()) -> None:
        """`prompt_tail`: the prompt's last tokens (8 are plenty), where the text is to join the prompt's seamlessly.

        Without them some tokenizers (SentencePiece's) drop the first word's leading space, as one wants for chat.
        """
        self._tokenizer = tokenizer
        self._stop = [string for string in stop if string]
        self._state = _State(list(prompt_tail), len(prompt_tail), len(_stable(self._decode(prompt_tail))))
        self._num_tokens = 0
        self._stop_string: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens consumed: all that were pushed, or those up to and including the one that completed a stop string."""
        return self._num_tokens

    @property
    def has_stop_strings(self) -> bool:
        """Whether a stop string may end the text: then each token is to be pushed as it comes."""
        return bool(self._stop)

    @property
    def stop_string(self) -> str | None:
        """The stop string that was found."""
        return self._stop_string

    def push(self, token_ids: Items[int]) -> tuple[str, bool]:
        """The text that is certain now, and whether a stop string has come. Text never holds any part of that string.

        After a stop string, further tokens are ignored.
        """
        text = self._push_all(
            token_ids[start : start + _SLICE_TOKENS] for start in range(0, len(token_ids), _SLICE_TOKENS)
        )
        return text, self._stop_string is not None

    def flush(self, *, whole_only: bool = False) -> str:
        """The text that was held back, when no more tokens come; an unfinished character is a replacement character.

        With `whole_only` it is left out.
        """
        if self._stop_string is not None:
            return ""
        state = self._state
        text = self._decode(state.window)
        text = state.held + (_stable(text) if whole_only else text)[state.num_emitted :]
        self._state = _State([], 0, 0)
        return text

    def _push_all(self, slices: Iterable[Items[int]]) -> str:
        text = ""
        for token_ids in slices:
            if self._stop_string is None:
                text += self._push_slice(token_ids)
        return text

    def _push_slice(self, token_ids: Items[int]) -> str:
        state, text = self._advance(self._state, token_ids)
        found = self._find_stop(text)
        if found is not None and len(token_ids) > 1:
            # Somewhere in here. Go token by token, so that no split into pushes decides which string comes first.
            return self._push_all([token_id] for token_id in token_ids)
        if not state.is_whole and len(token_ids) > _MAX_UNFINISHED_TOKENS:
            # Go slowly at the end, so that the window can be cut at the last whole character.
            head, tail = token_ids[:-_MAX_UNFINISHED_TOKENS], token_ids[-_MAX_UNFINISHED_TOKENS:]
            return self._push_all([head, *([token_id] for token_id in tail)])
        self._num_tokens += len(token_ids)
        if found is None:
            return self._release(state, text)
        self._stop_string = found
        return text[: text.index(found)]

    def _advance(self, state: _State, token_ids: Items[int]) -> tuple[_State, str]:
        """The state after more tokens, and all text that isn't out yet (held and new) but for unfinished characters."""
        window, boundary = [*state.window, *token_ids], state.boundary
        text = self._decode(window)
        stable = _stable(text)
        kept = window
        if len(stable) == len(text) > state.num_emitted:
            # Keep the tokens that brought this: alone, or after invisible ones, a word may lose its leading space.
            kept = window[boundary:]
            boundary = len(kept)
        elif len(window) > _MAX_WINDOW_TOKENS:
            # Nothing but invisible tokens, or bytes that never make a character; only the last may still begin one.
            kept = window[-_MIN_WINDOW_TOKENS:]
            boundary = 0
            stable = text.removesuffix(_REPLACEMENT)
        num_emitted = max(state.num_emitted, len(stable))
        num_left = len(text) - num_emitted
        if kept is not window:
            num_emitted = max(0, len(self._decode(kept)) - num_left)
        is_whole = num_left == 0
        return _State(kept, boundary, num_emitted, is_whole, state.held), state.held + stable[state.num_emitted :]

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


def _stable(text: str) -> str:
    """Text without the replacement characters at its end, which more bytes may turn into a character."""
    return text.rstrip(_REPLACEMENT)


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that is a beginning of `string`, but not all of it."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
