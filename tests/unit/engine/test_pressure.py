"""A device without memory: steps shrink, everybody is served, and only who doesn't even fit alone fails."""

import pytest

from tests.support.pages import PageOracle, expected_tokens
from workers.engine.blocks import BlockPool
from workers.engine.engine import OutOfMemory, PagedEngine
from workers.engine.pressure import MemoryPressure
from workers.engine.protocol import EngineInfo, Request, SamplingParams
from workers.engine.scheduler import Scheduler

INFO = EngineInfo(
    model="oracle",
    model_hash="",
    tokenizer_hash="",
    settings_hash="",
    architecture="none",
    device="cpu",
    dtype="none",
    num_parameters=0,
    vocab_size=50,
    max_model_len=256,
    block_size=4,
    num_blocks=256,
    max_num_seqs=8,
    eos_token_ids=[0],
    max_batch_tokens=32,
)


class SmallDevice(PageOracle):
    """Has room for so many tokens a step, and for none of a text that begins with `poison`."""

    def __init__(self, pool, most_tokens, poison=None):
        super().__init__(pool)
        self.most_tokens, self.poison, self.sizes = most_tokens, poison, []

    def run(self, plan):
        self.sizes.append(sum(chunk.num_fed for chunk in plan.chunks))
        if self.sizes[-1] > self.most_tokens or any(c.sequence.token_ids[0] == self.poison for c in plan.chunks):
            raise OutOfMemory("no room")
        return super().run(plan)


def engine(most_tokens, poison=None):
    pool = BlockPool(INFO.num_blocks, INFO.block_size)
    device = SmallDevice(pool, most_tokens, poison)
    return PagedEngine(INFO, Scheduler(pool, max_num_seqs=8, max_batch_tokens=32), device), device


def requests(count=8, priority=lambda number: number % 2):
    sampling = SamplingParams(max_tokens=12, seed=2)
    return [
        Request(id=str(i), prompt_ids=[i + 1] * (5 + 3 * i), sampling=sampling, priority=priority(i))
        for i in range(count)
    ]


def serve(target, asked):
    for request in asked:
        target.add(request)
    tokens, failed = {request.id: [] for request in asked}, []
    for _ in range(3000):
        if not target.has_work():
            break
        output = target.step()
        failed += output.failed
        for delta in output.deltas:
            assert delta.offset == len(tokens[delta.request_id])
            tokens[delta.request_id] += delta.token_ids
    assert not target.has_work()
    assert target.stats().kv_blocks_used == 0
    return tokens, failed


def wanted(request):
    return expected_tokens(request.prompt_ids, "", request.sampling.seed, 0, request.sampling.max_tokens)


@pytest.mark.parametrize("most_tokens", [1, 2, 5, 16, 31])
def test_nobody_is_lost_and_tokens_are_the_same_however_little_fits(most_tokens):
    target, device = engine(most_tokens)
    asked = requests()
    tokens, failed = serve(target, asked)
    assert not failed
    assert tokens == {request.id: wanted(request) for request in asked}
    stats = target.stats()
    assert most_tokens / 2 < stats.batch_tokens <= most_tokens
    assert stats.memory_shortages == sum(size > most_tokens for size in device.sizes) > 0


def test_the_last_of_the_lowest_tier_make_room():
    target, device = engine(most_tokens=32)
    asked = requests(8)
    for request in asked:
        target.add(request)
    while len(target._scheduler.running) < 8:
        target.step()
    device.most_tokens = 4
    while target.stats().memory_shortages == 0:
        target.step()
    running = [(sequence.priority, sequence.request_id) for sequence in target._scheduler.running]
    everybody = [(0, "0"), (0, "2"), (0, "4"), (0, "6"), (1, "1"), (1, "3"), (1, "5"), (1, "7")]
    assert 0 < len(running) < 8
    assert running == everybody[: len(running)]
    assert target.stats().preemptions == 8 - len(running)


def test_only_the_request_that_has_no_room_alone_fails():
    target, _ = engine(most_tokens=32, poison=1)
    asked = requests()
    tokens, failed = serve(target, asked)
    assert [(each.request_id, each.code) for each in failed] == [("0", "out_of_memory")]
    assert tokens == {request.id: wanted(request) for request in asked} | {"0": []}


def test_the_budget_comes_back_slower_after_each_failure():
    pressure, waits = MemoryPressure(64), []
    for _ in range(3):
        pressure.shrink(64)
        assert pressure.num_tokens == 32
        waits.append(next(count for count in range(1, 10_000) if pressure.grow()))
        assert pressure.num_tokens == 64
        assert not pressure.grow()
    assert waits == [waits[0], 2 * waits[0], 4 * waits[0]]
