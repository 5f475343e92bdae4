"""The null engine keeps the contract: what it makes up depends on the request alone."""

import pytest
from tokenizers import Tokenizer

from workers.engine.config import EngineConfig
from workers.engine.errors import ModelNotLoadable
from workers.engine.null import NullEngine
from workers.engine.protocol import EngineStats, Grammar, Request, SamplingParams, TierLoad


def engine(sleep=None, **settings):
    return NullEngine(EngineConfig(engine="null", **settings), sleep=sleep or (lambda _: None))


def request(name="it", prompt=20, n=1, resume=(), priority=0, **sampling):
    return Request(
        id=name,
        prompt_ids=[65] * prompt,
        n=n,
        resume=list(resume),
        priority=priority,
        sampling=SamplingParams(**({"max_tokens": 30} | sampling)),
    )


def run(target, *requests):
    for each in requests:
        target.add(each)
    tokens, reasons = {}, {}
    while target.has_work():
        for delta in target.step().deltas:
            tokens.setdefault((delta.request_id, delta.choice), []).extend(delta.token_ids)
            if delta.finish_reason:
                reasons[delta.request_id, delta.choice] = delta.finish_reason
    assert target.stats().kv_blocks_used == 0
    return tokens, reasons


def test_the_text_is_printable_and_depends_on_seed_and_choice_only():
    tokens, reasons = run(engine(), request(n=2), request("other", prompt=3, seed=1))
    text = Tokenizer.from_str(engine().tokenizer.tokenizer_json).decode(tokens["it", 0])
    assert text.isascii()
    assert text.isprintable()
    assert set(reasons.values()) == {"length"}
    assert tokens["it", 0] != tokens["it", 1]
    assert run(engine(max_num_seqs=1, num_blocks=4), request())[0]["it", 0] == tokens["it", 0]


def test_resume_goes_on():
    whole = run(engine(), request())[0]["it", 0]
    assert run(engine(), request(resume=[whole[:12]]))[0]["it", 0] == whole[12:]


def test_preempted_sequences_go_on():
    target = engine(num_blocks=6, max_num_seqs=4)
    requests = [request(f"r{i}", seed=i, priority=i % 2) for i in range(4)]
    tokens, _ = run(target, *requests)
    assert target.stats().preemptions > 0
    for each in requests:
        assert tokens[each.id, 0] == run(engine(), each)[0][each.id, 0]


def test_it_can_stop_by_eos_and_counts_it():
    target = engine(null_stop_ratio=0.2)
    tokens, reasons = run(target, *(request(f"r{i}", seed=i, min_tokens=3) for i in range(20)))
    (eos,) = target.info.eos_token_ids
    assert "stop" in reasons.values()
    assert all(tokens[key][-1] == eos for key, reason in reasons.items() if reason == "stop")
    assert all(eos not in found[:3] for found in tokens.values())


def test_it_takes_the_time_that_it_is_told_to():
    slept = []
    target = engine(sleep=slept.append, null_step_s=0.5, null_tokens_per_s=2.0)
    run(target, request(max_tokens=1), request("b", max_tokens=2))
    assert slept == [1.0, 0.5]


def test_logprobs_have_their_shape():
    target = engine()
    target.add(request(logprobs=3, max_tokens=1))
    (delta,) = target.step().deltas
    assert len(delta.logprobs) == 1
    assert len(delta.logprobs[0].top_ids) == len(delta.logprobs[0].top_logprobs) == 3


def test_it_guesses_ahead_without_changing_what_it_makes_up():
    many = [65, 66, 67] * 20
    plain, _ = run(engine(), Request(id="it", prompt_ids=many, sampling=SamplingParams(max_tokens=300)))
    target = engine(speculative_tokens=4)
    assert run(target, Request(id="it", prompt_ids=many, sampling=SamplingParams(max_tokens=300)))[0] == plain


def test_it_keeps_to_no_grammar_and_says_so():
    target = engine()
    target.add(request(grammar=Grammar("json_object")))
    assert [fault.code for fault in target.step().failed] == ["grammar_unsupported"]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelNotLoadable, match=r"has no tokenizer\.json"):
        engine(model=str(tmp_path))


def test_token_room_shrinks_with_what_is_taken_in_and_comes_back():
    target = engine(num_blocks=100, block_size=16, max_num_seqs=4, watermark_ratio=0.05)
    empty = target.stats()
    assert empty.token_room == empty.token_capacity == 95 * 16
    target.add(request(prompt=100, max_tokens=200))
    assert target.stats().token_room == 95 * 16 - 300
    for i in range(4):
        target.add(request(f"r{i}", prompt=10, max_tokens=10))
    assert target.stats().token_room == 0, "five are in: one waits, and that is enough"
    run(target)
    assert target.stats().token_room == 95 * 16


def test_room_for_a_tier_counts_out_what_it_may_take_from_lower_ones():
    stats = EngineStats(
        token_capacity=1000, sequence_capacity=5, load={0: TierLoad(1, 100), 1: TierLoad(2, 300), 2: TierLoad(2, 400)}
    )
    assert [stats.room_for(priority) for priority in (0, 1, 2)] == [900, 600, 0]


def test_requests_that_end_early_make_more_room_for_the_next():
    target = engine(null_stop_ratio=0.5, num_blocks=1000, max_num_seqs=8)
    for i in range(100):
        target.add(request(f"r{i}", seed=i, max_tokens=200))
    run(target)
    target.add(request("last", prompt=10, max_tokens=200))
    assert target.stats().load[0].tokens < 60


def test_aborted_requests_say_nothing_more():
    target = engine()
    target.add(request())
    target.add(request("done", resume=[[65] * 30]))
    target.abort("it")
    target.abort("done")
    assert not target.has_work()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "null", "max_batch_tokens": 10}, "max_batch_tokens"),
        ({"engine": "null", "num_blocks": 1}, "num_blocks"),
        ({"engine": "paged"}, "model is empty"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EngineConfig(**settings)


def test_bounds_are_checked_on_request():
    with pytest.raises(ValueError, match=r"\$\.block_size"):
        EngineConfig(engine="null", block_size=1000).validated()
