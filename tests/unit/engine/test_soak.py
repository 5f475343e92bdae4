"""Ten thousand requests, cancelled at random, through a pool that is far too small: nothing lost, twice, or leaked."""

import random

import pytest

from tests.support.pages import EOS_ID, VOCAB_SIZE, PageOracle, expected_tokens
from workers.engine.blocks import BlockPool
from workers.engine.engine import PagedEngine
from workers.engine.protocol import EngineInfo, Request, SamplingParams
from workers.engine.scheduler import Scheduler
from workers.engine.speculate import Speculator

INFO = EngineInfo(
    model="oracle",
    model_hash="",
    tokenizer_hash="",
    settings_hash="",
    architecture="none",
    device="cpu",
    dtype="none",
    num_parameters=0,
    vocab_size=VOCAB_SIZE,
    max_model_len=64,
    block_size=4,
    num_blocks=24,
    max_num_seqs=12,
    eos_token_ids=[EOS_ID],
    max_batch_tokens=40,
)


def engine(prefix_cache=True, decode_steps=1, faults=None, **more):
    pool = BlockPool(INFO.num_blocks, INFO.block_size)
    scheduler = Scheduler(
        pool, max_num_seqs=INFO.max_num_seqs, max_batch_tokens=INFO.max_batch_tokens, prefix_cache=prefix_cache, **more
    )
    oracle = PageOracle(pool, **(faults or {}))
    return PagedEngine(INFO, scheduler, oracle, decode_steps=decode_steps), oracle


def some_request(number, draw):
    prompt = [1 + place % 5 for place in range(draw.choice([0, 0, 7, 8, 20]))]
    prompt += [draw.randrange(1, VOCAB_SIZE) for _ in range(draw.randint(1, 24))]
    seed, salt = draw.randrange(3), draw.choice(["", "tenant"])
    n = draw.choice([1, 1, 1, 2, 3])
    max_tokens = draw.randint(1, 20)
    resume = []
    if draw.random() < 0.1:
        resume = [expected_tokens(prompt, salt, seed, choice, draw.randint(0, max_tokens)) for choice in range(n)]
    return Request(
        id=str(number),
        prompt_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, seed=seed),
        n=n,
        priority=draw.randrange(3),
        cache_salt=salt,
        resume=resume,
    )


class Journal:
    """What was promised, what came."""

    def __init__(self):
        self.open = {}
        self.got = {}
        self.num_finished = 0

    def promise(self, request):
        for choice in range(request.n):
            resumed = request.resume[choice] if request.resume else []
            self.open[request.id, choice] = request
            self.got[request.id, choice] = list(resumed)

    def cancel(self, key):
        del self.open[key], self.got[key]

    def note(self, delta):
        key = (delta.request_id, delta.choice)
        request, tokens = self.open[key], self.got[key]
        assert delta.offset == len(tokens)
        tokens += delta.token_ids
        if delta.finish_reason is not None:
            sampling = request.sampling
            wanted = expected_tokens(
                request.prompt_ids, request.cache_salt, sampling.seed, delta.choice, sampling.max_tokens
            )
            assert tokens == wanted
            assert delta.finish_reason == ("stop" if wanted[-1] == EOS_ID else "length")
            self.num_finished += 1
            self.cancel(key)


def soak(target, count, seed):
    draw = random.Random(seed)
    journal, number = Journal(), 0
    while number < count or target.has_work():
        while number < count and target.stats().waiting < 10:
            request = some_request(number, draw)
            number += 1
            target.add(request)
            journal.promise(request)
        if journal.open and draw.random() < 0.1:
            name, choice = draw.choice(list(journal.open))
            whole = draw.random() < 0.5
            target.abort(name, None if whole else choice)
            for key in [key for key in journal.open if key[0] == name and (whole or key[1] == choice)]:
                journal.cancel(key)
        output = target.step()
        assert not output.failed
        for delta in output.deltas:
            journal.note(delta)
    assert not journal.open
    stats = target.stats()
    assert (stats.running, stats.waiting, stats.kv_blocks_used, stats.load) == (0, 0, 0, {})
    assert stats.preemptions > count / 50
    return journal, stats


@pytest.mark.parametrize("count", [1500, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
@pytest.mark.parametrize(("prefix_cache", "guesses"), [(True, 0), (True, 6), (False, 6)])
def test_random_requests_with_random_cancels_through_a_pool_that_is_far_too_small(count, prefix_cache, guesses):
    target, oracle = engine(prefix_cache=prefix_cache, speculator=Speculator(guesses) if guesses else None)
    journal, stats = soak(target, count, seed=count)
    assert journal.num_finished > count
    assert oracle.num_copied > 0
    assert bool(stats.cached_tokens) == prefix_cache
    assert bool(stats.guessed_tokens) == bool(stats.accepted_tokens) == bool(guesses)


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
@pytest.mark.parametrize(
    ("steps", "faults", "guesses"),
    [
        (5, {}, 0),
        (3, {"open_ratio": 0.2}, 6),
        (1, {"shortages": 0.05}, 6),
        (4, {"shortages": 0.05, "open_ratio": 0.2}, 0),
    ],
)
def test_the_same_with_several_steps_in_a_row_tokens_left_open_and_a_device_without_memory(
    count, steps, faults, guesses
):
    target, oracle = engine(decode_steps=steps, faults=faults, speculator=Speculator(guesses) if guesses else None)
    journal, stats = soak(target, count, seed=count)
    # Under shortages there are many more steps, and so more cancels.
    assert journal.num_finished > (count / 5 if "shortages" in faults else count)
    assert (oracle.num_rounds > 0) == (steps > 1)
    assert (stats.memory_shortages > 0) == ("shortages" in faults)
