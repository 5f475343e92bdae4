"""Which bytes does a token stand for? For those who want to see single tokens, as in logprobs. No torch."""

import re

from tokenizers import Tokenizer

from workers.engine.tokenizer import byte_symbols

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece writes a byte that is no part of a piece
_SPACE = "\u2581"  # how it writes a space


class TokenBytes:
    """Knows the three ways in which tokenizers write bytes: byte-level BPE, SentencePiece, and as they are."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {token_id: each.content for token_id, each in tokenizer.get_added_tokens_decoder().items()}
        decoder = repr(tokenizer.decoder)
        self._byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())} if "ByteLevel" in decoder else {}
        self._has_pieces = _SPACE in decoder or "Metaspace" in decoder

    def of(self, token_id: int) -> bytes:
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
