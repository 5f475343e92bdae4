"""Whatever a random model would like to say, its output keeps to the grammar; and a bad grammar fails alone."""

import json
import re

import pytest
from tokenizers import Tokenizer

from tests.equivalence import tiny
from workers.engine.protocol import Grammar, Request, SamplingParams

PROMPT = tiny.prompts(5)[3]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
GRAMMARS = {
    "json_schema": Grammar("json_schema", json.dumps(SCHEMA)),
    "regex": Grammar("regex", "[0-9]{3}-[a-f]{2,4}"),
    "choice": Grammar("choice", '["yes", "no", "perhaps \\"so\\""]'),
    "lark": Grammar("lark", 'start: "a" (", " "b")+ "."'),
}


@pytest.fixture
def folder(checkpoint):
    return checkpoint("llama")[1]


def request(name, grammar, seed=1, n=1, **more):
    sampling = SamplingParams(**({"max_tokens": 90, "seed": seed, "grammar": grammar} | more))
    return Request(id=name, prompt_ids=PROMPT, sampling=sampling, n=n)


def text_of(folder, tokens):
    assert tokens[-1] == tiny.EOS_ID
    return Tokenizer.from_file(str(folder / "tokenizer.json")).decode(tokens[:-1])


def is_valid(kind, text):
    if kind == "json_schema":
        value = json.loads(text)
        return list(value) == ["name", "age"] and isinstance(value["name"], str) and 0 <= value["age"] <= 99
    pattern = {"regex": r"[0-9]{3}-[a-f]{2,4}", "choice": r'yes|no|perhaps "so"', "lark": r"a(, b)+\."}[kind]
    return re.fullmatch(pattern, text) is not None


def test_outputs_keep_to_their_grammars_beside_others_that_have_none(folder):
    engine = tiny.load(folder, speculative_tokens=4)
    requests = [
        request(f"{kind}-{seed}", grammar, seed, **more)
        for kind, grammar in GRAMMARS.items()
        for seed, more in enumerate([{}, {"top_p": 0.9}, {"min_tokens": 60, "ignore_eos": True}])
    ]
    free = Request(id="free", prompt_ids=PROMPT, sampling=SamplingParams(max_tokens=20, seed=7))
    outcome = tiny.run(engine, [*requests, free])
    ended = [name for (name, _), reason in outcome.reasons.items() if reason == "stop" and name != "free"]
    assert len(ended) >= 11  # a random model may go on with ", b" for as long as it is let
    for name in ended:
        assert is_valid(name.split("-")[0], text_of(folder, outcome.tokens[name, 0])), name
    assert outcome.tokens["free", 0] == tiny.run(tiny.load(folder), [free]).tokens["free", 0]
    engine.add(free)
    engine.step()
    assert not engine._grammars._matchers, "whoever left is forgotten"


def test_guesses_under_a_grammar_change_nothing_and_are_right_where_it_repeats_itself(folder):
    rows = Grammar("lark", 'start: ("row " /[0-9]{3}/ ": value;\\n"){12}')
    requests = [
        request("rows", rows, max_tokens=120, logprobs=2),
        request("many", GRAMMARS["json_schema"], n=3),
        request("drawn", rows, temperature=1.5, presence_penalty=0.5, logit_bias={ord("7"): 2.0}),
        request("greedy", rows, temperature=0.0, max_tokens=64),
        request("never", rows, speculate=False),
    ]
    plain = tiny.run(tiny.load(folder), requests)
    guessing = tiny.load(folder, speculative_tokens=6)
    outcome = tiny.run(guessing, requests)
    assert outcome.tokens == plain.tokens
    assert outcome.reasons == plain.reasons
    assert [each.chosen for each in outcome.logprobs["rows", 0]] == pytest.approx(
        [each.chosen for each in plain.logprobs["rows", 0]]
    )
    stats = guessing.stats()
    assert stats.accepted_tokens > 60
    # What the grammar forbids isn't even tried: alone, a sequence that is forced along is nearly always guessed right.
    alone = tiny.load(folder, speculative_tokens=6)
    forced = Grammar("regex", "(abcdefgh){40}")
    tiny.run(alone, [request("forced", forced, max_tokens=200)])
    stats = alone.stats()
    assert stats.accepted_tokens > 0.9 * stats.guessed_tokens > 50


def test_a_pool_that_is_too_small_changes_nothing(folder):
    requests = [
        request(f"{kind}-{seed}", grammar, seed, max_tokens=40)
        for kind, grammar in GRAMMARS.items()
        for seed in range(3)
    ]
    plain = tiny.run(tiny.load(folder), requests)
    tight = tiny.load(folder, num_blocks=14, block_size=8, speculative_tokens=4, max_model_len=112)
    assert tiny.run(tight, requests).tokens == plain.tokens
    assert tight.stats().preemptions > 0


def test_a_document_that_max_tokens_cuts_ends_with_length(folder):
    outcome = tiny.run(tiny.load(folder), [request("it", GRAMMARS["json_schema"], max_tokens=5)])
    assert outcome.reasons["it", 0] == "length"
    assert bytes(outcome.tokens["it", 0]).startswith(b"{")


def test_a_grammar_that_takes_too_long_fails_its_request_and_the_others_go_on_meanwhile(folder):
    engine = tiny.load(folder, grammar_check_s=1)
    endless = Grammar("json_schema", '{"type": "integer", "multipleOf": 99999989}')
    engine.add(request("endless", endless))
    engine.add(request("free", None, max_tokens=30))
    seen = []
    while engine.has_work():
        output = engine.step()
        seen += [delta.request_id for delta in output.deltas] + [fault.code for fault in output.failed]
    assert seen == ["free"] * 30 + ["grammar_too_complex"]


def test_what_the_vocabulary_cannot_spell_fails_that_request_only(checkpoint, tmp_path):
    """A tokenizer without the letter z."""
    source = checkpoint("llama")[1]
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    document = json.loads((source / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    vocab["never-written"] = vocab.pop("z")
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    outcome = tiny.run(
        tiny.load(tmp_path),
        [
            request("at once", Grammar("regex", "z")),
            request("later", Grammar("regex", "az")),
            request("good", Grammar("regex", "ay")),
        ],
    )
    assert {fault.request_id: fault.code for fault in outcome.failed} == {
        "at once": "grammar_invalid",
        "later": "grammar_failed",
    }
    assert all("vocabulary" in fault.message for fault in outcome.failed)
    assert bytes(outcome.tokens["good", 0][:2]) == b"ay"


def test_any_object_is_one(folder):
    sampling = {"max_tokens": 80, "logit_bias": {ord("}"): 8.0}}
    outcome = tiny.run(tiny.load(folder), [request("it", Grammar("json_object"), **sampling)])
    assert isinstance(json.loads(text_of(folder, outcome.tokens["it", 0])), dict)


@pytest.mark.parametrize("resumed", [1, 8])
def test_a_resumed_output_goes_on_by_the_grammar(folder, resumed):
    whole = tiny.run(tiny.load(folder), [request("it", GRAMMARS["json_schema"])]).tokens["it", 0]
    again = Request(
        id="it",
        prompt_ids=PROMPT,
        sampling=SamplingParams(max_tokens=90, seed=1, grammar=GRAMMARS["json_schema"]),
        resume=[whole[:resumed]],
    )
    rest = tiny.run(tiny.load(folder), [again]).tokens["it", 0]
    assert whole[:resumed] + rest == whole


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("json_schema", "{"),
        Grammar("json_schema", '{"type": "nonsense"}'),
        Grammar("regex", "["),
        Grammar("lark", "start: unknown_rule"),
        Grammar("choice", "[]"),
        Grammar("choice", '"yes"'),
        Grammar("json_schema", '{"type": "string", "pattern": "' + "a" * 300_000 + '"}'),
    ],
    ids=lambda grammar: f"{grammar.kind} {grammar.text[:20]}",
)
def test_a_bad_grammar_fails_its_request_only(folder, grammar):
    good = request("good", GRAMMARS["regex"])
    outcome = tiny.run(tiny.load(folder), [request("bad", grammar), good])
    assert [fault.request_id for fault in outcome.failed] == ["bad"]
    assert outcome.failed[0].code == "grammar_invalid"
    assert outcome.failed[0].message.startswith(f"the {grammar.noun} can't be used: ")
    assert "_" not in grammar.noun
    assert is_valid("regex", text_of(folder, outcome.tokens["good", 0]))


def test_tokens_that_the_grammar_forbids_cannot_be_resumed_from(folder):
    wrong = Request(
        id="wrong",
        prompt_ids=PROMPT,
        n=2,
        sampling=SamplingParams(max_tokens=9, grammar=GRAMMARS["regex"]),
        resume=[[ord("x")], []],
    )
    outcome = tiny.run(tiny.load(folder), [wrong])
    assert [(fault.request_id, fault.code) for fault in outcome.failed] == [("wrong", "grammar_failed")]
