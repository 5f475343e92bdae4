"""Which bytes does a token stand for, where a reader of a stream wants to see single tokens?

The worker writes the same into results; a test holds both against each other.
"""

import re
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from app.queue.events import TokenLogprob

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece writes a byte that is no part of a piece
_SPACE = "\u2581"  # how it writes a space


def _byte_symbols() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on, in their order."""
    alphabet = set(ByteLevel.alphabet())
    own = {byte for byte in range(256) if chr(byte) in alphabet}
    others = (byte for byte in range(256) if byte not in own)
    return {chr(byte): byte for byte in own} | {chr(256 + place): byte for place, byte in enumerate(others)}


class TokenText:
    """Knows byte-level BPE, SentencePiece, and tokenizers that write tokens as they are."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {token_id: each.content for token_id, each in tokenizer.get_added_tokens_decoder().items()}
        decoder = repr(tokenizer.decoder)
        self._byte_of = _byte_symbols() if "ByteLevel" in decoder else {}
        self._has_pieces = _SPACE in decoder or "Metaspace" in decoder

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes; a special token's are its name's. Empty for an id that isn't in the vocabulary."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_of and all(symbol in self._byte_of for symbol in token):
            return bytes(self._byte_of[symbol] for symbol in token)
        if self._has_pieces:
            byte = _BYTE_TOKEN.fullmatch(token)
            return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()
        return token.encode()

    def entry(self, token_id: int, logprob: TokenLogprob) -> dict[str, Any]:
        """A token's log-probability as results have it: in the form of OpenAI's chat completions, with ids besides."""
        best = zip(logprob.top_ids, logprob.top_logprobs, strict=True)
        return self._shown(token_id, logprob.chosen) | {"top_logprobs": [self._shown(*each) for each in best]}

    def _shown(self, token_id: int, logprob: float) -> dict[str, Any]:
        of_token = self.bytes_of(token_id)
        text = of_token.decode(errors="replace").replace("\x00", "\N{REPLACEMENT CHARACTER}")
        return {"token": text, "token_id": token_id, "bytes": list(of_token), "logprob": logprob}
