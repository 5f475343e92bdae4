"""Any split of the tokens into pushes gives the text of the whole, cut off at the stop string."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from workers.engine.detokenize import Detokenizer
from workers.engine.tokenizer import byte_bundle

BYTES = Tokenizer.from_str(byte_bundle(300).tokenizer_json)


def _sentencepiece() -> Tokenizer:
    """As Llama 2 has it: words with a leading mark, bytes for what isn't in the vocabulary, one leading space dropped."""
    words = ["▁", "▁the", "▁cat", "s", "▁sat", "!", "é", "\n"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocab |= {word: 259 + number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


PIECES = _sentencepiece()
NUM_PIECES = 267


def ids(text):
    return list(text.encode())


def chunks(tokens, cuts):
    """Tokens split at the places `cuts`."""
    bounds = sorted({0, len(tokens), *(cut % (len(tokens) + 1) for cut in cuts)})
    return [tokens[start:end] for start, end in pairwise(bounds)]


def run(detokenizer, pushes):
    """(text of each push, flushed text, stopped)."""
    parts, stopped = [], False
    for push in pushes:
        text, stopped = detokenizer.push(push)
        parts.append(text)
    return parts, detokenizer.flush(), stopped


def test_an_emoji_split_over_tokens_comes_out_whole():
    tokens = ids("a😀b")
    parts, rest, _ = run(Detokenizer(BYTES), [[token] for token in tokens])
    assert parts == ["a", "", "", "", "😀", "b"]
    assert rest == ""


def test_an_unfinished_character_is_a_replacement_character_in_the_end():
    parts, rest, _ = run(Detokenizer(BYTES), [ids("é")[:1]])
    assert (parts, rest) == ([""], "\N{REPLACEMENT CHARACTER}")


def test_a_stop_string_over_token_borders_is_cut_out_and_counted():
    detokenizer = Detokenizer(BYTES, ["END"])
    parts, rest, stopped = run(detokenizer, [ids("one E"), ids("N"), ids("Q EN"), ids("D more")])
    assert parts == ["one ", "", "ENQ ", ""]
    assert (rest, stopped, detokenizer.stop_string) == ("", True, "END")
    assert detokenizer.num_tokens == len("one ENQ END")


def test_after_the_stop_string_tokens_are_ignored():
    detokenizer = Detokenizer(BYTES, ["."])
    assert detokenizer.push(ids("a.b")) == ("a", True)
    assert detokenizer.push(ids("c")) == ("", True)
    assert detokenizer.num_tokens == 2


def test_what_was_held_back_comes_out_in_the_end():
    parts, rest, stopped = run(Detokenizer(BYTES, ["###"]), [ids("a##")])
    assert (parts, rest, stopped) == (["a"], "##", False)


def test_of_two_stop_strings_the_one_that_is_complete_first_counts():
    for pushes in ([ids("xabcd")], [[token] for token in ids("xabcd")]):
        detokenizer = Detokenizer(BYTES, ["abcd", "bc"])
        parts, _, _ = run(detokenizer, pushes)
        assert ("".join(parts), detokenizer.stop_string, detokenizer.num_tokens) == ("xa", "bc", 4)


def test_a_stop_string_with_characters_of_several_bytes():
    detokenizer = Detokenizer(BYTES, ["—ü"])
    parts, _, stopped = run(detokenizer, [[token] for token in ids("a—b—ü!")])
    assert ("".join(parts), stopped, detokenizer.num_tokens) == ("a—b", True, len("a—b—ü".encode()))


def test_special_tokens_have_no_text():
    parts, rest, _ = run(Detokenizer(BYTES), [ids("a"), [299], ids("b"), [299]])
    assert parts == ["a", "", "b", ""]
    assert rest == ""


def test_words_keep_their_leading_spaces_also_after_invisible_tokens():
    the, cat, eos = 260, 261, 2
    detokenizer = Detokenizer(PIECES)
    parts, _, _ = run(detokenizer, [[the], [cat], [eos], [cat], [eos, eos], [the, cat], [cat]])
    assert parts == ["the", " cat", "", " cat", "", " the cat", " cat"]


def test_a_long_push_of_characters_that_straddle_every_slice():
    tokens = [260] + [3 + byte for byte in "😀".encode()] * 70
    assert Detokenizer(PIECES).push(tokens) == ("the" + "😀" * 70, False)


def test_the_first_word_keeps_its_space_behind_a_prompt():
    the, cat = 260, 261
    assert Detokenizer(PIECES, prompt_tail=[the]).push([cat]) == (" cat", False)
    assert Detokenizer(PIECES).push([cat]) == ("cat", False)


def test_a_prompt_that_ends_within_a_character():
    first, *rest = ids("é")
    assert Detokenizer(BYTES, prompt_tail=[first]).push(rest) == ("é", False)


def test_garbage_without_end_is_not_held_back_and_does_not_slow_down():
    detokenizer = Detokenizer(BYTES)
    parts, rest, _ = run(detokenizer, [[0x80]] * 3000)
    assert "".join(parts) + rest == "\N{REPLACEMENT CHARACTER}" * 3000
    assert len(rest) < 150
    assert len(detokenizer._state.window) < 200


def test_replaying_the_tokens_restores_the_state():
    tokens = ids("abc😀 STO")
    whole = Detokenizer(BYTES, ["STOP"])
    for token in tokens:
        whole.push([token])
    replayed = Detokenizer(BYTES, ["STOP"])
    replayed.push(tokens)
    assert whole.push(ids("Px")) == replayed.push(ids("Px")) == ("", True)
    assert whole.num_tokens == replayed.num_tokens == len(tokens) + 1


def _cut(tokenizer, tokens, stop):
    """(text, tokens consumed, stopped), by decoding every beginning anew."""
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:count]).rstrip("\N{REPLACEMENT CHARACTER}")
        found = [text.index(string) for string in stop if string in text]
        if found:
            return text[: min(found)], count, True
    return tokenizer.decode(tokens), len(tokens), False


TEXT = st.text(st.sampled_from("abc é€😀�\n"), max_size=40)
STOP = st.lists(st.text(st.sampled_from("abcé😀 "), min_size=1, max_size=4), max_size=3)
CUTS = st.lists(st.integers(0, 1000), max_size=12)


@given(text=TEXT, stop=STOP, cuts=CUTS)
@example(text="aab", stop=["ab"], cuts=[1, 2])
@example(text="��a", stop=[], cuts=[1, 2, 3, 4, 5, 6])
@settings(max_examples=300, deadline=None)
def test_any_split_gives_the_text_up_to_the_stop_string(text, stop, cuts):
    tokens = ids(text)
    detokenizer = Detokenizer(BYTES, stop)
    parts, rest, stopped = run(detokenizer, chunks(tokens, cuts))
    wanted, count, wanted_stop = _cut(BYTES, tokens, stop)
    assert ("".join(parts) + rest, detokenizer.num_tokens, stopped) == (wanted, count, wanted_stop)


@given(
    tokens=st.one_of(
        st.lists(st.integers(0, 299), max_size=120),
        st.lists(st.sampled_from([0x80, 0xE2, 0x82, 0xAC, 0xF0, 0x41, 299]), max_size=400),
    ),
    cuts=CUTS,
)
@example(tokens=[0x80] * 300 + list("a€".encode()), cuts=list(range(400)))
@settings(max_examples=300, deadline=None)
def test_any_split_of_any_bytes_gives_the_text_of_the_whole(tokens, cuts):
    parts, rest, _ = run(Detokenizer(BYTES), chunks(tokens, cuts))
    assert "".join(parts) + rest == BYTES.decode(tokens)


@given(
    tokens=st.lists(st.one_of(st.integers(259, NUM_PIECES - 1), st.sampled_from([0xE2, 0x82, 0xAC])), max_size=80),
    cuts=CUTS,
)
@settings(max_examples=300, deadline=None)
def test_any_split_of_sentencepiece_words_and_characters(tokens, cuts):
    # Whole characters only: in a run of bytes with a broken character, that decoder makes all of them replacements.
    euro = [3 + byte for byte in "€".encode()]
    tokens = [token for each in tokens for token in (euro if each < 259 else [each])]
    parts, rest, _ = run(Detokenizer(PIECES), chunks(tokens, cuts))
    assert "".join(parts) + rest == PIECES.decode(tokens)


@pytest.mark.parametrize("stop", [[], [""]])
def test_no_stop_string(stop):
    assert Detokenizer(BYTES, stop).push(ids("abc")) == ("abc", False)
