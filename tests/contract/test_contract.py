"""What every engine promises, whatever is behind it: ours, one that makes tokens up, a server, vLLM."""

import json
import re
import time
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from tokenizers import Tokenizer

from tests.contract.conftest import Subject
from workers.engine.protocol import Engine, EngineStats, Grammar, Logprob, Request, RequestFailed, SamplingParams
from workers.models import BROOK

PROMPT = "Once upon a time, a fox"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(BROOK / "tokenizer.json"))


def request(name: str = "it", text: str = PROMPT, n: int = 1, **changes: object) -> Request:
    outer = {key: changes.pop(key) for key in ("prompt_ids", "resume", "priority", "cache_salt") if key in changes}
    outer.setdefault("prompt_ids", Tokenizer.from_file(str(BROOK / "tokenizer.json")).encode(text).ids)
    return Request(id=name, n=n, sampling=SamplingParams(**({"max_tokens": 24} | changes)), **outer)


@dataclass
class Outcome:
    tokens: dict[tuple[str, int], list[int]] = field(default_factory=lambda: defaultdict(list))
    starts: dict[tuple[str, int], int] = field(default_factory=dict)
    reasons: dict[tuple[str, int], str] = field(default_factory=dict)
    logprobs: dict[tuple[str, int], list[Logprob]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[str, RequestFailed] = field(default_factory=dict)
    stats: EngineStats = field(default_factory=EngineStats)


def step(engine: Engine, found: Outcome) -> None:
    """One step, checked: contiguous offsets, nothing after an end."""
    output = engine.step()
    for delta in output.deltas:
        key = (delta.request_id, delta.choice)
        assert key not in found.reasons, "a delta after the end"
        start = found.starts.setdefault(key, delta.offset)
        assert delta.offset == start + len(found.tokens[key]), "a gap, or a token twice"
        assert delta.token_ids or delta.finish_reason, "a delta that says nothing"
        found.tokens[key] += delta.token_ids
        found.logprobs[key] += delta.logprobs
        if delta.finish_reason is not None:
            found.reasons[key] = delta.finish_reason
    for failed in output.failed:
        assert failed.request_id not in found.failed
        found.failed[failed.request_id] = failed
    found.stats = output.stats


def run(engine: Engine, *requests: Request) -> Outcome:
    found = Outcome()
    for each in requests:
        engine.add(each)
    while engine.has_work():
        step(engine, found)
    return found


def until(engine: Engine, found: Outcome, num_tokens: int) -> None:
    while not found.tokens or min(len(tokens) for tokens in found.tokens.values()) < num_tokens:
        step(engine, found)


def test_each_token_comes_once_and_the_end_says_why(engine: Engine) -> None:
    found = run(engine, *(request(f"r{i}", seed=i, max_tokens=5 + i) for i in range(12)))
    assert len(found.reasons) == 12
    assert set(found.starts.values()) == {0}
    eos = set(engine.info.eos_token_ids)
    for (name, _), tokens in found.tokens.items():
        limit = 5 + int(name[1:])
        reason = found.reasons[name, 0]
        assert len(tokens) <= limit
        assert (reason == "length") == (tokens[-1] not in eos)
        if reason == "length":
            assert len(tokens) == limit


def test_an_end_by_eos_counts_it(subject: Subject, engine: Engine) -> None:
    eos = engine.info.eos_token_ids[0]
    if subject.has_model:
        found = run(engine, request(logit_bias={eos: 100.0}, temperature=0.0))
        assert found.tokens["it", 0] == [eos]
        assert found.reasons["it", 0] == "stop"
        held = run(engine, request(logit_bias={eos: 100.0}, temperature=0.0, min_tokens=4))
        assert len(held.tokens["it", 0]) == 5
        assert eos not in held.tokens["it", 0][:4]
        on = run(engine, request(logit_bias={eos: 100.0}, temperature=0.0, ignore_eos=True, max_tokens=6))
        assert (on.tokens["it", 0], on.reasons["it", 0]) == ([eos] * 6, "length")
    elif subject.name == "upstream-text":
        found = run(engine, request(logit_bias={eos: 100.0}, temperature=0.0))
        assert (found.tokens["it", 0], found.reasons["it", 0]) == ([eos], "stop")
    else:
        pytest.skip("it has no logits to bias")


def test_prompt_and_output_end_at_the_longest_length(engine: Engine) -> None:
    length = engine.info.max_model_len
    ids = (request().prompt_ids * length)[: length - 3]
    found = run(engine, request(prompt_ids=ids, max_tokens=50))
    assert len(found.tokens["it", 0]) <= 3
    assert found.reasons["it", 0] in {"length", "stop"}


def test_choices_are_each_their_own_and_all_end(engine: Engine) -> None:
    found = run(engine, request(n=4, seed=11, max_tokens=12))
    assert sorted(found.reasons) == [("it", i) for i in range(4)]
    assert len({tuple(tokens) for tokens in found.tokens.values()}) > 1


def test_the_same_seed_gives_the_same_tokens(subject: Subject, engine: Engine) -> None:
    first = run(engine, request(seed=5, n=2))
    again = run(engine, request("again", seed=5, n=2))
    assert [again.tokens["again", i] for i in range(2)] == [first.tokens["it", i] for i in range(2)]
    other = run(engine, request(seed=6))
    assert other.tokens["it", 0] != first.tokens["it", 0]


def test_an_aborted_request_is_silent_and_leaves_nothing(subject: Subject, engine: Engine) -> None:
    found = Outcome()
    engine.add(request("gone", n=2, max_tokens=400, seed=1))
    until(engine, found, 2)
    engine.abort("gone")
    late = run(engine, request("other", max_tokens=4))
    if subject.name == "vllm":  # what the process had sent before stays: the worker ignores it
        late.tokens.pop(("gone", 0), None), late.tokens.pop(("gone", 1), None)
    assert set(late.tokens) == {("other", 0)}
    assert (late.stats.running, late.stats.waiting, late.stats.kv_blocks_used) == (0, 0, 0)
    if subject.server is not None:
        assert_idle(subject)


def assert_idle(subject: Subject) -> None:
    """The server behind it has heard of the abort, too: its connection was closed."""
    assert subject.server is not None
    give_up_at = time.monotonic() + 20
    while (stats := subject.server.stats())["running"] + stats["waiting"]:
        assert time.monotonic() < give_up_at, stats
    assert stats["kv_blocks_used"] == 0


def test_one_choice_is_aborted_alone(subject: Subject, engine: Engine) -> None:
    found = Outcome()
    engine.add(request(n=3, max_tokens=100, seed=2))
    until(engine, found, 1)
    before = len(found.tokens["it", 1])
    was_over = ("it", 1) in found.reasons
    engine.abort("it", 1)
    while engine.has_work():
        step(engine, found)
    assert {("it", 0), ("it", 2)} <= set(found.reasons)
    if not was_over and subject.name != "vllm":
        assert ("it", 1) not in found.reasons
        assert len(found.tokens["it", 1]) == before


def test_unknown_aborts_are_ignored(engine: Engine) -> None:
    engine.abort("nobody")
    engine.add(request(max_tokens=3))
    engine.abort("it", 7)
    assert len(run(engine).reasons) == 1


def test_an_abort_before_the_first_step_is_heard(subject: Subject, engine: Engine) -> None:
    engine.add(request("gone", max_tokens=400))
    engine.abort("gone")
    found = run(engine, request("other", max_tokens=4))
    assert ("other", 0) in found.reasons
    if subject.name != "vllm":
        assert set(found.tokens) == {("other", 0)}


def test_a_name_can_be_used_again_after_an_abort(engine: Engine) -> None:
    found = Outcome()
    engine.add(request(max_tokens=200, seed=3))
    until(engine, found, 2)
    engine.abort("it")
    engine.add(request("mark", max_tokens=1))
    rest = Outcome()
    while engine.has_work():
        rest.starts.clear(), rest.tokens.clear()
        step(engine, rest)
    fresh = run(engine, request(seed=4, max_tokens=6))
    assert fresh.starts["it", 0] == 0
    assert len(fresh.tokens["it", 0]) <= 6


def test_bad_requests_fail_alone(engine: Engine) -> None:
    length = engine.info.max_model_len
    bad = {
        "long": (request("long", prompt_ids=[5] * length), "prompt_too_long"),
        "empty": (request("empty", prompt_ids=[]), "prompt_empty"),
        "token": (request("token", prompt_ids=[engine.info.vocab_size]), "token_id_invalid"),
        "bias": (request("bias", logit_bias={engine.info.vocab_size: 1.0}), "token_id_invalid"),
        "none": (request("none", n=0), "request_invalid"),
    }
    good = [request(f"good{i}", seed=i, max_tokens=8) for i in range(3)]
    found = run(engine, good[0], *(each for each, _ in bad.values()), *good[1:])
    assert {name: failed.code for name, failed in found.failed.items()} == {
        name: code for name, (_, code) in bad.items()
    }
    assert not any(failed.retryable for failed in found.failed.values())
    assert {name for name, _ in found.reasons} == {"good0", "good1", "good2"}
    assert all(name.startswith("good") for name, _ in found.tokens)


def test_a_request_that_is_in_it_already_is_refused(subject: Subject, engine: Engine) -> None:
    if subject.name == "vllm":
        pytest.skip("the child's face here counts by name")
    engine.add(request(max_tokens=8))
    found = run(engine, request(max_tokens=8))
    assert found.failed["it"].code == "duplicate_request"
    assert ("it", 0) in found.reasons


def test_a_resumed_choice_goes_on_at_its_offset(subject: Subject, engine: Engine) -> None:
    whole = run(engine, request(temperature=0.0, seed=9, max_tokens=20)).tokens["it", 0]
    assert len(whole) > 8, "the prompt is a bad choice for this test"
    found = run(engine, request(temperature=0.0, seed=9, max_tokens=20, resume=[whole[:7]]))
    assert found.starts["it", 0] == 7
    assert len(found.tokens["it", 0]) <= 13
    if subject.is_exact:
        assert found.tokens["it", 0] == whole[7:]
    sampled = run(engine, request(seed=9, max_tokens=20)).tokens["it", 0]
    again = run(engine, request(seed=9, max_tokens=20, resume=[sampled[:5]]))
    assert again.starts["it", 0] == min(5, len(sampled))
    if subject.resumes_exactly:
        assert again.tokens["it", 0] == sampled[5:]


def test_choices_are_resumed_each_from_where_it_was(engine: Engine) -> None:
    resume = [run(engine, request(seed=1, max_tokens=6)).tokens["it", 0], []]
    found = run(engine, request(seed=1, n=3, max_tokens=12, resume=resume))
    assert [found.starts["it", i] for i in range(3)] == [6, 0, 0]
    assert len(found.reasons) == 3


def test_what_was_resumed_after_its_last_token_ends_at_once(engine: Engine) -> None:
    found = run(engine, request(max_tokens=5, resume=[[5, 6, 7, 8, 9]]))
    assert (found.starts["it", 0], found.tokens["it", 0], found.reasons["it", 0]) == (5, [], "length")


def test_logprobs_have_their_shape(subject: Subject, engine: Engine) -> None:
    if not subject.is_exact:
        found = run(engine, request(logprobs=2))
        assert found.failed["it"].code == "parameter_unsupported"
        return
    found = run(engine, request("two", logprobs=2, temperature=0.0), request("none", logprobs=0, max_tokens=3))
    assert len(found.logprobs["two", 0]) == len(found.tokens["two", 0])
    for token_id, each in zip(found.tokens["two", 0], found.logprobs["two", 0], strict=True):
        assert len(each.top_ids) == len(each.top_logprobs) == 2
        assert each.top_logprobs[0] >= each.top_logprobs[1]
        assert each.chosen <= 0.0
        assert each.top_ids[0] == token_id, "greedy takes the best"
        assert each.chosen == pytest.approx(each.top_logprobs[0])
    assert [each.top_ids for each in found.logprobs["none", 0]] == [[]] * len(found.tokens["none", 0])


def test_the_parameters_that_it_lacks_are_refused_not_ignored(subject: Subject, engine: Engine) -> None:
    if subject.name != "upstream-text":
        pytest.skip("it has them all")
    lacking = {
        "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 3, "ignore_eos": True,
    }  # fmt: skip
    found = run(engine, *(request(name, **{name: value}) for name, value in lacking.items()))
    assert {name: failed.code for name, failed in found.failed.items()} == dict.fromkeys(
        lacking, "parameter_unsupported"
    )
    assert all(name in failed.message for name, failed in found.failed.items())


def test_all_parameters_at_once(subject: Subject, engine: Engine) -> None:
    more = {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 3} if subject.is_exact else {}
    found = run(
        engine,
        request(
            temperature=0.7, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.5, logit_bias={7: -50.0}, seed=2**62,
            cache_salt="acme", priority=2, **more,
        ),
    )  # fmt: skip
    assert not found.failed
    if subject.has_model:
        assert 7 not in found.tokens["it", 0]


def test_an_output_that_runs_in_circles_can_be_stopped(subject: Subject, engine: Engine) -> None:
    if not subject.has_model:
        pytest.skip("it can't be made to repeat itself")
    found = run(engine, request(logit_bias={40: 100.0}, temperature=0.0, stop_repeating=4, max_tokens=200))
    assert (found.tokens["it", 0], found.reasons["it", 0]) == ([40] * 32, "stop")


def test_grammars(subject: Subject, engine: Engine, tokenizer: Tokenizer) -> None:
    if not subject.has_grammars:
        found = run(engine, request(grammar=Grammar("json_object")))
        assert found.failed["it"].code == "grammar_unsupported"
        return
    schema = {
        "type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}},
        "required": ["age", "ok"], "additionalProperties": False,
    }  # fmt: skip
    # A model this small, once in white space, stays there.
    blank = {
        i: -100.0
        for i in range(tokenizer.get_vocab_size())
        if not tokenizer.decode([i], skip_special_tokens=False).strip()
    }
    found = run(
        engine,
        request("schema", grammar=Grammar("json_schema", json.dumps(schema)), max_tokens=100, seed=1, logit_bias=blank),
        request("regex", grammar=Grammar("regex", "[0-9]{3}-[a-f]{2}"), max_tokens=50),
        request(
            "choice", grammar=Grammar("choice", json.dumps(["yes", "no", "perhaps"])), max_tokens=50, ignore_eos=True
        ),
        request("lark", grammar=Grammar("lark", 'start: "a" "b"+ "c"'), max_tokens=100, min_tokens=90, temperature=0.0),
        request("bad", grammar=Grammar("json_schema", '{"type": 7}')),
        request("worse", grammar=Grammar("choice", "no list")),
        request("plain", max_tokens=5),
    )
    assert {name: failed.code for name, failed in found.failed.items()} == {
        "bad": "grammar_invalid" if subject.name in {"paged", "vllm"} else "upstream_rejected",
        "worse": "grammar_invalid",
    }
    texts = {name: tokenizer.decode(tokens) for (name, _), tokens in found.tokens.items()}
    assert set(json.loads(texts["schema"])) == {"age", "ok"}
    assert len(texts["regex"]) == 6
    assert texts["choice"] in {"yes", "no", "perhaps"}
    if found.reasons["lark", 0] == "stop":
        assert re.fullmatch("ab+c", texts["lark"])
    assert ("plain", 0) in found.reasons


def test_stats_add_up_while_work_goes_on_and_at_the_end(engine: Engine) -> None:
    names = [f"r{i}" for i in range(20)]
    before = engine.stats()
    for i, name in enumerate(names):
        engine.add(request(name, seed=i, priority=i % 3, max_tokens=10))
    found = Outcome()
    steps = []
    while engine.has_work():
        step(engine, found)
        stats = found.stats
        steps.append(stats.step)
        assert 0 <= stats.kv_blocks_used <= stats.kv_blocks_total
        assert stats.running <= max(engine.info.max_num_seqs, 1)
        assert sum(load.sequences for load in stats.load.values()) == stats.running + stats.waiting
        assert stats.running + stats.waiting <= 20
    assert steps == sorted(steps)
    assert steps[-1] > steps[0]
    after = found.stats
    assert (after.running, after.waiting, after.kv_blocks_used, after.load) == (0, 0, 0, {})
    assert after.token_room == after.token_capacity > 0
    generated = sum(len(tokens) for tokens in found.tokens.values())
    assert after.generated_tokens - before.generated_tokens == generated
    assert after.prompt_tokens - before.prompt_tokens == 20 * len(request().prompt_ids)


def test_what_is_loaded_is_told(engine: Engine) -> None:
    info = engine.info
    assert info.max_model_len == 512
    assert info.max_num_seqs == 16
    assert info.num_blocks * info.block_size >= info.max_model_len
    assert info.eos_token_ids
    assert info.model_hash
    assert info.tokenizer_hash
    assert info.vocab_size == 2048
