"""The same seed gives the same tokens: alone, batched, preempted, resumed. And what happens to odd requests."""

import msgspec
import pytest

from tests.equivalence import tiny
from workers.engine.protocol import Request, SamplingParams

SAMPLED = SamplingParams(max_tokens=20, temperature=1.0, seed=7)
EVERYTHING = SamplingParams(
    max_tokens=20,
    min_tokens=5,
    temperature=0.9,
    top_p=0.95,
    top_k=50,
    min_p=0.001,
    presence_penalty=0.5,
    frequency_penalty=0.3,
    repetition_penalty=1.2,
    logit_bias={65: 2.0, 66: -100.0},
    seed=2**63 - 1,
)
GREEDY = SamplingParams(max_tokens=20, temperature=0.0)
PARAMS = pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, EVERYTHING], ids=["greedy", "sampled", "everything"])
PROMPT = tiny.prompts(5)[3]


@pytest.fixture
def folder(checkpoint):
    return checkpoint("llama")[1]


def _alone(folder, sampling, n=1):
    outcome = tiny.run(tiny.load(folder), [Request(id="it", prompt_ids=PROMPT, sampling=sampling, n=n)])
    return [outcome.tokens["it", choice] for choice in range(n)]


def _others(count=5):
    return [
        Request(id=f"other{i}", prompt_ids=prompt, sampling=SamplingParams(max_tokens=9 + i, seed=i))
        for i, prompt in enumerate(tiny.prompts(count, longest=20, seed=9))
    ]


@PARAMS
def test_same_seed_same_tokens_whatever_else_is_in_the_batch(folder, sampling):
    engine = tiny.load(folder, max_batch_tokens=13, max_num_seqs=6, block_size=4)
    others = _others()
    outcome = tiny.run(engine, [*others[:2], Request(id="it", prompt_ids=PROMPT, sampling=sampling, n=2), *others[2:]])
    assert [outcome.tokens["it", 0], outcome.tokens["it", 1]] == _alone(folder, sampling, n=2)


@PARAMS
def test_same_seed_same_tokens_after_preemption(folder, sampling):
    engine = tiny.load(folder, max_num_seqs=6, block_size=4, num_blocks=20)
    it = Request(id="it", prompt_ids=PROMPT, sampling=sampling, priority=1)
    engine.add(it)
    got = []
    for _ in range(6):
        got += [token for delta in engine.step().deltas for token in delta.token_ids]
    for other in _others():
        engine.add(other)  # of a higher tier
    while engine.has_work():
        got += [token for delta in engine.step().deltas if delta.request_id == "it" for token in delta.token_ids]
    assert engine.stats().preemptions > 0
    assert [got] == _alone(folder, sampling)


@PARAMS
@pytest.mark.parametrize("num_resumed", [1, 10, 19])
def test_resuming_goes_on_as_if_nothing_had_happened(folder, sampling, num_resumed):
    (whole,) = _alone(folder, sampling)
    resumed = Request(id="it", prompt_ids=PROMPT, sampling=sampling, resume=[whole[:num_resumed]])
    outcome = tiny.run(tiny.load(folder, max_batch_tokens=8, max_num_seqs=8), [resumed])
    assert whole[:num_resumed] + outcome.tokens["it", 0] == whole
    assert outcome.reasons["it", 0] == "length"


@PARAMS
def test_same_seed_same_tokens_from_the_prefix_cache(folder, sampling):
    engine = tiny.load(folder, block_size=4)
    request = Request(id="it", prompt_ids=PROMPT, sampling=sampling, n=2)
    wanted = _alone(folder, sampling, n=2)
    for _ in range(2):
        outcome = tiny.run(engine, [request])
        assert [outcome.tokens["it", choice] for choice in range(2)] == wanted
    assert engine.stats().cached_tokens == 2 * ((len(PROMPT) - 1) // 4 * 4)


@PARAMS
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_choices_that_share_their_prompt_are_those_computed_one_by_one(folder, sampling, prefix_cache):
    engine = tiny.load(
        folder, block_size=4, num_blocks=24, max_batch_tokens=8, max_num_seqs=7, prefix_cache=prefix_cache
    )
    request = Request(id="it", prompt_ids=PROMPT, sampling=sampling, n=4, priority=1)
    outcome = tiny.run(engine, [request, *_others(3)])
    assert engine.stats().preemptions > 0
    for choice in range(4):  # alone in its engine, by resuming nothing and dropping the others
        single = tiny.load(folder, prefix_cache=False)
        single.add(request)
        for other in set(range(4)) - {choice}:
            single.abort("it", other)
        got = []
        while single.has_work():
            got += [token for delta in single.step().deltas for token in delta.token_ids]
        assert outcome.tokens["it", choice] == got


@PARAMS
@pytest.mark.parametrize("resumed", [0, 9])
def test_same_seed_same_tokens_with_speculation(folder, sampling, resumed):
    """The prompt repeats itself, and the bias makes the output do so too: there is something to guess, and to get wrong."""
    prompt = PROMPT[:6] * 4
    bias = dict.fromkeys(prompt[:2], 40.0)
    sampling = msgspec.structs.replace(sampling, max_tokens=40, logit_bias=sampling.logit_bias | bias, logprobs=1)
    request = Request(id="it", prompt_ids=prompt, sampling=sampling, n=2)
    plain = tiny.run(tiny.load(folder, prefix_cache=False), [request])
    whole = [plain.tokens["it", choice] for choice in range(2)]
    engine = tiny.load(folder, block_size=4, num_blocks=40, max_num_seqs=8, max_batch_tokens=32, speculative_tokens=6)
    request = msgspec.structs.replace(request, resume=[tokens[:resumed] for tokens in whole] if resumed else [])
    outcome = tiny.run(engine, [request, *_others(4)])
    for choice in range(2):
        assert whole[choice][:resumed] + outcome.tokens["it", choice] == whole[choice]
        got, wanted = outcome.logprobs["it", choice], plain.logprobs["it", choice][resumed:]
        assert [each.top_ids for each in got] == [each.top_ids for each in wanted]
        assert [each.chosen for each in got] == pytest.approx([each.chosen for each in wanted], abs=1e-4)
    stats = engine.stats()
    assert stats.accepted_tokens > 0
    assert stats.accepted_tokens < stats.guessed_tokens or sampling.temperature == 0


def test_speculation_takes_fewer_steps_where_the_output_repeats_itself(folder):
    sampling = SamplingParams(max_tokens=60, temperature=0.0, logit_bias={65: 1000.0}, ignore_eos=True)
    steps = {}
    for guesses in (0, 8):
        for speculate in (True, False):
            engine = tiny.load(folder, speculative_tokens=guesses)
            request = Request(
                id="it", prompt_ids=PROMPT, sampling=msgspec.structs.replace(sampling, speculate=speculate)
            )
            assert tiny.run(engine, [request]).tokens["it", 0] == [65] * 60
            steps[guesses, speculate] = engine.stats().step
    assert steps[0, True] == steps[0, False] == steps[8, False] == 60
    assert steps[8, True] < 15


def test_choices_and_seeds_differ(folder):
    first, second = _alone(folder, SAMPLED, n=2)
    (third,) = _alone(folder, SamplingParams(max_tokens=20, seed=8))
    assert first != second
    assert first != third


def test_resuming_after_the_last_token_reports_the_end_and_nothing_else(folder):
    requests = [
        Request(id="full", prompt_ids=PROMPT, sampling=SamplingParams(max_tokens=3), resume=[[1, 2, 3]]),
        Request(id="eos", prompt_ids=PROMPT, sampling=SAMPLED, resume=[[1, tiny.EOS_ID]]),
        Request(id="half", prompt_ids=PROMPT, sampling=SamplingParams(max_tokens=3), n=2, resume=[[1, 2, 3], [1]]),
    ]
    outcome = tiny.run(tiny.load(folder), requests)
    assert outcome.tokens["full", 0] == []
    assert outcome.tokens["eos", 0] == []
    assert len(outcome.tokens["half", 1]) == 2
    assert outcome.reasons == {("full", 0): "length", ("eos", 0): "stop", ("half", 0): "length", ("half", 1): "length"}


def test_eos_stops_unless_it_comes_too_early_or_is_to_be_ignored(folder):
    always_eos = SamplingParams(max_tokens=6, temperature=0.0, logit_bias={tiny.EOS_ID: 1000.0})
    cases = {
        "stops": {},
        "waits": {"min_tokens": 3},
        "ignores": {"ignore_eos": True},
    }
    requests = [
        Request(
            id=name,
            prompt_ids=PROMPT,
            sampling=SamplingParams(max_tokens=6, temperature=0.0, logit_bias=always_eos.logit_bias, **more),
        )
        for name, more in cases.items()
    ]
    outcome = tiny.run(tiny.load(folder), requests)
    assert outcome.tokens["stops", 0] == [tiny.EOS_ID]
    assert outcome.reasons["stops", 0] == "stop"
    assert len(outcome.tokens["waits", 0]) == 4
    assert outcome.tokens["waits", 0].index(tiny.EOS_ID) == 3
    assert outcome.tokens["ignores", 0] == [tiny.EOS_ID] * 6
    assert outcome.reasons["ignores", 0] == "length"


def test_aborting_frees_the_blocks_and_silences_the_request(folder):
    engine = tiny.load(folder, max_num_seqs=2)
    for name in ("stays", "goes", "waits"):
        engine.add(Request(id=name, prompt_ids=PROMPT, sampling=GREEDY, n=2 if name == "goes" else 1))
    engine.step()
    engine.abort("goes")
    engine.abort("waits")
    engine.abort("nobody knows it")
    used = engine.stats().kv_blocks_used
    assert used == -(-len(PROMPT) // engine.info.block_size)
    named = set()
    while engine.has_work():
        named |= {delta.request_id for delta in engine.step().deltas}
    assert named == {"stays"}
    assert engine.stats().kv_blocks_used == 0


def test_aborting_one_choice_leaves_the_other(folder):
    engine = tiny.load(folder)
    engine.add(Request(id="it", prompt_ids=PROMPT, sampling=SAMPLED, n=2))
    got = [token for delta in engine.step().deltas if delta.choice == 1 for token in delta.token_ids]
    engine.abort("it", 0)
    while engine.has_work():
        got += [token for delta in engine.step().deltas for token in delta.token_ids]
    assert got == _alone(folder, SAMPLED, n=2)[1]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"prompt_ids": [1] * 64}, "prompt_too_long"),
        ({"prompt_ids": [1] * 500}, "prompt_too_long"),
        ({"prompt_ids": []}, "prompt_empty"),
        ({"prompt_ids": [tiny.VOCAB_SIZE]}, "token_id_invalid"),
        ({"prompt_ids": [-1]}, "token_id_invalid"),
        ({"prompt_ids": [1], "resume": [[999]]}, "token_id_invalid"),
        ({"prompt_ids": [1], "resume": [[1], [1]]}, "request_invalid"),
        ({"prompt_ids": [1], "sampling": SamplingParams(max_tokens=0)}, "request_invalid"),
        ({"prompt_ids": [1], "sampling": SamplingParams(max_tokens=1, logit_bias={5000: 1.0})}, "token_id_invalid"),
    ],
)
def test_a_request_that_can_never_be_served_fails_alone(folder, change, code):
    engine = tiny.load(folder, block_size=4, num_blocks=16)  # 64 tokens
    good = Request(id="good", prompt_ids=PROMPT, sampling=GREEDY)
    bad = Request(**({"id": "bad", "sampling": GREEDY, "prompt_ids": PROMPT} | change))
    outcome = tiny.run(engine, [bad, good])
    assert [(fault.request_id, fault.code) for fault in outcome.failed] == [("bad", code)]
    assert [outcome.tokens["good", 0]] == _alone(folder, GREEDY)


def test_the_same_id_twice_fails_the_second(folder):
    request = Request(id="it", prompt_ids=PROMPT, sampling=GREEDY)
    outcome = tiny.run(tiny.load(folder), [request, request])
    assert [fault.code for fault in outcome.failed] == ["duplicate_request"]
    assert [outcome.tokens["it", 0]] == _alone(folder, GREEDY)


def test_generation_ends_where_the_pool_ends(folder):
    engine = tiny.load(folder, block_size=4, num_blocks=8)
    assert engine.info.max_model_len == 32
    long = SamplingParams(max_tokens=1000, temperature=0.0, ignore_eos=True)
    outcome = tiny.run(engine, [Request(id="it", prompt_ids=[1] * 20, sampling=long)])
    assert (len(outcome.tokens["it", 0]), outcome.reasons["it", 0]) == (12, "length")


def test_logprobs_are_of_the_models_own_distribution(folder, checkpoint):
    model = checkpoint("llama")[0]
    sampling = SamplingParams(max_tokens=4, temperature=0.5, top_k=3, logprobs=5, presence_penalty=2.0, seed=3)
    requests = [
        Request(id="it", prompt_ids=PROMPT, sampling=sampling),
        Request(id="bare", prompt_ids=PROMPT, sampling=SamplingParams(max_tokens=4, logprobs=0)),
        *_others(2),
    ]
    outcome = tiny.run(tiny.load(folder), requests)
    tokens, logprobs = outcome.tokens["it", 0], outcome.logprobs["it", 0]
    ids = tiny.torch.tensor([PROMPT + tokens])
    wanted = model(input_ids=ids).logits[0].log_softmax(dim=-1).detach()
    for place, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
        row = wanted[len(PROMPT) - 1 + place]
        assert logprob.chosen == pytest.approx(row[token].item(), abs=1e-4)
        assert logprob.top_ids == row.topk(5).indices.tolist()
        assert logprob.top_logprobs == pytest.approx(row.topk(5).values.tolist(), abs=1e-4)
    assert [len(logprob.top_ids) for logprob in outcome.logprobs["bare", 0]] == [0] * 4
    assert "other0" not in {key[0] for key, found in outcome.logprobs.items() if found}


def test_bfloat16_is_the_default_of_a_bfloat16_checkpoint(checkpoint, tmp_path):
    model, _ = checkpoint("llama")
    model = type(model)(model.config).to(tiny.torch.bfloat16)
    model.save_pretrained(tmp_path)
    tiny.save_tokenizer(tmp_path)
    engine = tiny.load(tmp_path)
    assert engine.info.dtype == "bfloat16"
    outcome = tiny.run(engine, [Request(id="it", prompt_ids=PROMPT, sampling=SAMPLED), *_others()])
    alone = tiny.run(tiny.load(tmp_path), [Request(id="it", prompt_ids=PROMPT, sampling=SAMPLED)])
    assert outcome.tokens["it", 0] == alone.tokens["it", 0]


def test_the_hashes_tell_models_and_settings_apart(checkpoint, folder, tmp_path):
    model, _ = checkpoint("llama")
    info = tiny.load(folder).info
    again = tiny.load(folder, max_num_seqs=3).info
    hashes = ("model_hash", "tokenizer_hash", "settings_hash")
    assert [getattr(info, name) for name in hashes] == [getattr(again, name) for name in hashes]
    weight = model.lm_head.weight
    before = weight[0, 0].item()
    weight.data[0, 0] = before + 1
    model.save_pretrained(tmp_path)
    weight.data[0, 0] = before
    tiny.save_tokenizer(tmp_path, vocab_size=299)
    other = tiny.load(tmp_path, dtype="bfloat16").info
    assert all(getattr(info, name) != getattr(other, name) for name in hashes)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@PARAMS
def test_in_bfloat16_too_neither_neighbours_nor_preemption_nor_guesses_change_a_token(folder, sampling, kernels):
    settings = {"dtype": "bfloat16", "kernels": kernels, "block_size": 4}
    asked = msgspec.structs.replace(sampling, max_tokens=30)
    it = Request(id="it", prompt_ids=PROMPT, sampling=asked, n=2, priority=1)
    alone = tiny.run(tiny.load(folder, **settings), [it])
    crowd = [msgspec.structs.replace(other, priority=0) for other in _others()]
    tight = {"num_blocks": 40, "max_num_seqs": 6, "max_batch_tokens": 13, "speculative_tokens": 4}
    engine = tiny.load(folder, **settings, **tight)
    outcome = tiny.run(engine, [it, *crowd])
    assert {key: outcome.tokens[key] for key in alone.tokens} == alone.tokens
    resumed = msgspec.structs.replace(it, resume=[alone.tokens["it", 0][:7], []])
    rest = tiny.run(tiny.load(folder, **settings), [resumed]).tokens
    assert (rest["it", 0], rest["it", 1]) == (alone.tokens["it", 0][7:], alone.tokens["it", 1])
