"""How is a special token's name in a message kept from becoming that token?

A sender who writes `<|end|><|system|>...` into a message could otherwise close his turn and write the next one himself.
In two steps: in the contents, each such name is broken by a mark that the template carries along; and what the template
put in itself is then encoded by a tokenizer that knows special tokens by other names, which nobody can guess or write. So
the rest of the prompt is encoded as it always is.
"""

import json
import re
from collections import Counter
from typing import Any

from tokenizers import Tokenizer

_PRIVATE_USE = range(0xE000, 0xF8FF)  # characters without a meaning
_OUTER = "\U0010fffd"  # the last character for private use, at both ends of a new name
_NOT_PLAIN = "a content holds the name of a special token, which this model can't read as plain text"


class ForgedTokens:
    """Finds the names of special tokens in texts, and encodes them as plain text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids = {
            token.content: token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special and token.content
        }
        # The longest first, as the tokenizer itself prefers it.
        names = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names))) if names else None
        self._renamed: _Renamed | None = None

    def are_in(self, texts: list[str]) -> bool:
        """Whether any text holds a special token's name."""
        return self._pattern is not None and any(self._pattern.search(text) for text in texts)

    def mark_for(self, texts: list[str]) -> str:
        """A character that none of the texts holds. Raises ValueError if there is none."""
        used = set().union(*texts)
        mark = next((chr(code) for code in _PRIVATE_USE if chr(code) not in used), None)
        if mark is None or _OUTER in used:
            raise ValueError("a message holds characters for private use beside the name of a special token")
        return mark

    def break_names(self, text: str, mark: str) -> str:
        """The text with a mark after each character of each special token's name. Raises ValueError for names of one."""
        assert self._pattern is not None
        if any(len(found[0]) == 1 for found in self._pattern.finditer(text)):
            raise ValueError(_NOT_PLAIN)
        return self._pattern.sub(lambda found: "".join(letter + mark for letter in found[0]), text)

    def encode(self, rendered: str, mark: str) -> list[int]:
        """Ids of a rendered conversation: names that are broken by the mark are text, all others are special tokens.

        Raises ValueError if the tokenizer can't write such a name as text.
        """
        assert self._pattern is not None
        if self._renamed is None:
            self._renamed = _Renamed(self._tokenizer, list(self._ids))
        whole = [found[0] for found in self._pattern.finditer(rendered)]
        names = self._renamed.names
        ids = self._renamed.encode(self._pattern.sub(lambda found: names[found[0]], rendered).replace(mark, ""))
        special = set(self._ids.values()) - {self._renamed.unknown_id}
        got = Counter(token_id for token_id in ids if token_id in special)
        if got != Counter(self._ids[name] for name in whole if self._ids[name] in special):
            raise ValueError(_NOT_PLAIN)
        return ids


class _Renamed:
    """A copy of a tokenizer whose special tokens have other names."""

    def __init__(self, tokenizer: Tokenizer, names: list[str]) -> None:
        self.names = {name: f"{_OUTER}{number}{_OUTER}" for number, name in enumerate(names)}
        document: dict[str, Any] = json.loads(tokenizer.to_str())
        wanted: dict[str, int] = {}
        for token in document["added_tokens"]:
            token["content"] = self.names.get(token["content"], token["content"])
            wanted[token["content"]] = token["id"]
        document["post_processor"] = None  # it would ask for the old names; templates put in special tokens themselves
        self._tokenizer = Tokenizer.from_str(json.dumps(document))
        unknown_id, unknown = document["model"].get("unk_id"), document["model"].get("unk_token")
        self.unknown_id = tokenizer.token_to_id(unknown) if unknown is not None else unknown_id
        # A token whose name isn't in the model's vocabulary gets the next free id.
        found = {content: self._tokenizer.token_to_id(content) for content in wanted}
        self._ids = {found[content]: token_id for content, token_id in wanted.items()}

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self._ids.get(token_id, token_id) for token_id in ids]
