"""Is the bundled model whole, small and readable, and is its text made the same way each time?"""

import json
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workers.models import BROOK
from workers.models.corpus import documents, known_words, story, words_of
from workers.models.train_brook import render

END = "<|end|>"
FILES = (
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BROOK, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    # One thread: with so small a model, threads on a busy machine only wait for each other.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield AutoModelForCausalLM.from_pretrained(BROOK, local_files_only=True).eval()
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def vocabulary() -> frozenset[str]:
    return known_words()


def test_the_folder_is_whole_and_small() -> None:
    assert sorted(path.name for path in BROOK.iterdir()) == sorted(FILES)
    assert sum(path.stat().st_size for path in BROOK.iterdir()) < 8_000_000


def test_the_model_has_between_one_and_four_million_parameters(model: Any) -> None:
    assert 1_000_000 <= model.num_parameters() <= 4_000_000
    assert model.config.model_type == "llama"
    assert model.config.num_key_value_heads < model.config.num_attention_heads


def test_one_eos_ends_chats_and_plain_text(model: Any, tokenizer: Any) -> None:
    assert tokenizer.eos_token == END
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time, a fox found a lantern.",
        "  two  spaces ,  and a space before a comma , kept\n\n\ttabs too ",
        "Grüße, naïve café, Ærøskøbing, İstanbul",
        "水車小屋 мельница طاحونة טחנה मिल",
        "🦊🏮 👩‍👩‍👧‍👦 e\u0301 \u200b \ufeff \x00 \U0010ffff",
        '{"name": "Mara", "n": 1234567890}',
        "",
    ],
)
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_character_of_the_first_planes_can_be_encoded(tokenizer: Any) -> None:
    text = "".join(chr(code) for code in range(0x3000) if not 0xD800 <= code < 0xE000)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_plain_text_gets_one_bos(tokenizer: Any) -> None:
    ids = tokenizer("Once upon a time")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_the_chat_template_renders_all_roles(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": " Who is Mara?\n"},
        {"role": "assistant", "content": "Mara is the miller."},
        {"role": "user", "content": "Thank you!"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|bos|><|system|>Answer briefly.<|end|><|user|>Who is Mara?<|end|>"
        "<|assistant|>Mara is the miller.<|end|><|user|>Thank you!<|end|><|assistant|>"
    )


def test_the_chat_template_refuses_a_role_it_was_not_trained_on(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "3"}], tokenize=False)


def test_training_saw_what_the_template_writes(tokenizer: Any) -> None:
    chat = next(document for document in documents(1) if document[0].role == "system")
    messages = [{"role": turn.role, "content": turn.text} for turn in chat]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == render(chat)


@pytest.mark.parametrize(
    "prompt",
    [
        "Write a short story about a fox and a lantern.",
        "Tell me about the mill.",
        "List three things you find by the river.",
    ],
)
def test_a_greedy_answer_ends_and_is_made_of_known_words(
    model: Any, tokenizer: Any, vocabulary: frozenset[str], prompt: str
) -> None:
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, do_sample=False, max_new_tokens=250)[0, inputs["input_ids"].shape[1] :].tolist()
    assert out[-1] == tokenizer.eos_token_id
    words = words_of(tokenizer.decode(out, skip_special_tokens=True))
    assert words
    assert sum(word in vocabulary for word in words) >= 0.95 * len(words)


def test_the_corpus_depends_on_the_seed_alone() -> None:
    first, again, other = (list(islice(documents(seed), 50)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_the_corpus_is_rich_and_leaves_no_slot_unfilled(vocabulary: frozenset[str]) -> None:
    assert len(vocabulary) >= 1500
    for document in islice(documents(5), 2000):
        for turn in document:
            assert turn.text == turn.text.strip() != ""
            json_answer = turn.text.startswith("{")
            assert json_answer or not set("{}<|>") & set(turn.text), turn.text
            if json_answer:
                json.loads(turn.text)


def test_a_story_introduces_both_heroes_and_tells_them_apart() -> None:
    rng = random.Random(11)
    for _ in range(200):
        tale = story(rng)
        one, two = tale.heroes
        assert one.name != two.name
        assert one.kind != two.kind
        for hero in tale.heroes:
            assert hero.intro.lower() in tale.body.lower()
