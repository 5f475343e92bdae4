"""Text that streams in, as tokens: whatever the pieces, the tokens' text is the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from workers.engine.retokenize import Retokenizer, TextUnreadable
from workers.models import BROOK

BYTE_LEVEL = Tokenizer.from_file(str(BROOK / "tokenizer.json"))


def metaspace(*, with_bytes: bool = True) -> Tokenizer:
    """As Llama 2's: a space in front of all that is encoded, bytes for what isn't in the vocabulary."""
    vocab = {"<unk>": 0, "\u2581": 1, "\u2581the": 2, "\u2581fox": 3, "a": 4, "b": 5, "t": 6, "h": 7, "e": 8}
    if with_bytes:
        vocab |= {f"<0x{byte:02X}>": 9 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=with_bytes, ignore_merges=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def write(tokenizer: Tokenizer, *pieces: str) -> list[int]:
    retokenizer = Retokenizer(tokenizer)
    token_ids = [token_id for piece in pieces for token_id in retokenizer.push(piece)]
    return token_ids + retokenizer.flush()


def test_words_become_the_tokens_that_the_whole_text_has() -> None:
    text = "Once upon a time there was a fox, and it was not very quick."
    assert write(BYTE_LEVEL, *text) == BYTE_LEVEL.encode(text, add_special_tokens=False).ids


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=8))
def test_any_text_in_any_pieces_is_written_to_the_letter(pieces: list[str]) -> None:
    special = BYTE_LEVEL.get_added_tokens_decoder().values()
    text = "".join(pieces)
    if not any(token.content in text for token in special):
        assert BYTE_LEVEL.decode(write(BYTE_LEVEL, *pieces), skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["the fox the", "ab the", "fox\u754c\u754c the", "\u00e9t\u00e9 the"])
def test_a_tokenizer_that_puts_spaces_in_front_is_not_fooled(text: str) -> None:
    tokenizer = metaspace()
    assert tokenizer.decode(write(tokenizer, *text), skip_special_tokens=False) == text


def test_text_without_spaces_does_not_wait_for_its_end() -> None:
    assert Retokenizer(BYTE_LEVEL).push("x" * 100)


def test_text_that_the_tokenizer_cannot_write_is_refused() -> None:
    with pytest.raises(TextUnreadable, match="does the model match"):
        write(metaspace(with_bytes=False), "\u754c")
