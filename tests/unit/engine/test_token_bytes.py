"""Do single tokens show the bytes that they stand for, whatever kind of tokenizer?"""

import json

import pytest
from tokenizers import Tokenizer, decoders

from workers.engine.token_bytes import TokenBytes
from workers.engine.tokenizer import byte_bundle
from workers.models import BROOK


def pieces():
    tokenizer = Tokenizer.from_str(byte_bundle(512).tokenizer_json)
    document = json.loads(tokenizer.to_str())
    vocab = ["<unk>", "▁the", "s", "<0x0A>", "<0xF0>", "é"]
    document["model"] |= {"vocab": {piece: number for number, piece in enumerate(vocab)}, "unk_token": "<unk>"}
    document["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def test_byte_level_tokens_are_their_bytes():
    token_bytes = TokenBytes(Tokenizer.from_str(byte_bundle(512).tokenizer_json))
    assert [token_bytes.of(byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert token_bytes.of(511) == b"<|end|>"
    assert token_bytes.of(10_000) == b""


def test_a_text_is_its_tokens_bytes():
    tokenizer = Tokenizer.from_file(str(BROOK / "tokenizer.json"))
    text = "The heron, it was said, saw 🦊 and naïve ducks.\n"
    token_bytes = TokenBytes(tokenizer)
    assert b"".join(token_bytes.of(each) for each in tokenizer.encode(text).ids).endswith(text.encode())


@pytest.mark.parametrize(("token_id", "wanted"), [(1, b" the"), (2, b"s"), (3, b"\n"), (4, b"\xf0"), (5, "é".encode())])
def test_sentencepieces_are_their_bytes(token_id, wanted):
    assert TokenBytes(pieces()).of(token_id) == wanted
