"""Is a step that takes too long told of, with the shape of its batch?"""

from workers.engine.config import EngineConfig
from workers.engine.null import NullEngine
from workers.engine.protocol import Request, SamplingParams, SlowStep

STEP_S = 0.01


def slow_steps(requests: list[Request], **changes: object) -> list[SlowStep | None]:
    engine = NullEngine(EngineConfig(engine="null", null_step_s=STEP_S, **changes))  # type: ignore[arg-type]
    for each in requests:
        engine.add(each)
    found = []
    while engine.has_work():
        found.append(engine.step().slow)
    return found


def request(name: str, prompt: int, max_tokens: int, priority: int = 0) -> Request:
    return Request(id=name, prompt_ids=[1] * prompt, sampling=SamplingParams(max_tokens=max_tokens), priority=priority)


def test_each_slow_step_tells_what_it_had_to_do() -> None:
    prefill, *decode = slow_steps([request("a", 30, 3), request("b", 5, 3)], slow_step_s=STEP_S / 2)
    assert prefill is not None
    assert (prefill.sequences, prefill.prefill_tokens, prefill.decode_tokens, prefill.preempted) == (2, 35, 0, 0)
    assert prefill.seconds >= STEP_S
    for each in decode:
        assert each is not None
        assert (each.sequences, each.prefill_tokens, each.decode_tokens) == (2, 0, 2)
    assert len(decode) == 2


def test_who_gave_up_its_pages_is_counted() -> None:
    small = {"num_blocks": 4, "block_size": 16, "max_model_len": 64, "max_num_seqs": 4, "prefix_cache": False}
    found = slow_steps([request("a", 14, 40), request("b", 14, 40)], slow_step_s=STEP_S / 2, **small)
    assert sum(each.preempted for each in found if each) > 0


def test_a_step_in_time_is_not_told_of_and_without_a_limit_none_is() -> None:
    assert set(slow_steps([request("a", 8, 2)], slow_step_s=60)) == {None}
    assert set(slow_steps([request("a", 8, 2)])) == {None}
