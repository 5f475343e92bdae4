"""What the engine's benchmark makes of its measurements."""

import json
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from benchmarks.contest import Contender, ContenderFailed, Run, compete
from benchmarks.engine_report import Entry, Scene, report
from benchmarks.ladder import engine_rungs
from benchmarks.peers.inside import slots
from benchmarks.peers.task import Task, check_counts, latencies, percentile
from benchmarks.roofline import Limits, Shape, least_s
from benchmarks.workload import Prompt, cases
from workers.engine.protocol import SamplingParams
from workers.engine.sequence import Sequence


def test_latencies_are_of_all_requests_together():
    found = latencies(10.0, [[10.5, 10.6, 10.8], [11.0, 11.1]])
    assert (found.ttft_p50_s, found.itl_p50_s, found.itl_p99_s) == pytest.approx((0.5, 0.1, 0.2))


def test_percentiles_are_by_nearest_rank():
    assert percentile([float(number) for number in range(1, 101)], 99) == 99.0
    assert percentile([3.0], 99) == 3.0
    assert percentile([], 50) == 0.0


def test_a_run_with_a_missing_token_is_no_run():
    prompts = [Prompt([1], 4), Prompt([1], 5)]
    check_counts("x", prompts, [4, 5])
    with pytest.raises(RuntimeError, match="request 1: 4, not 5"):
        check_counts("x", prompts, [4, 4])


def test_a_contender_that_ends_early_shows_its_log():
    with pytest.raises(ContenderFailed, match=r"No module named benchmarks\.peers\.nobody"):
        compete(Contender("nobody", "benchmarks.peers.nobody", Task("", [])), lambda line: None)


def test_a_shared_block_counts_once_by_its_fullest_holder():
    assert slots([sequence([0, 1, 2], 20), sequence([0, 3], 9)], 8) == {0: 8, 1: 8, 2: 4, 3: 1}


def sequence(blocks, num_computed):
    return Sequence("x", 0, 0, 0, SamplingParams(max_tokens=1), 99, [], 0, num_computed, blocks)


class Rich(msgspec.Struct):
    speculation_min_match: Annotated[int, Meta(ge=1)] = 2
    speculation: Annotated[int, Meta(ge=0)] = 0
    prefix_cache: bool = True
    quantisation: Literal["none", "int8", "nf4"] = "none"
    prefix_name: str = ""


class Poor(msgspec.Struct):
    threads: int = 0


def test_rungs_follow_from_the_engines_settings():
    off = {"prefix_cache": False, "quantisation": "none", "speculation": 0}
    assert [(rung.name, rung.settings, rung.is_built) for rung in engine_rungs(Rich)] == [
        ("paged", off, True),
        ("+ prefix cache", off | {"prefix_cache": True}, True),
        ("+ quantised", off | {"prefix_cache": True, "quantisation": "int8"}, True),
        ("+ speculation", {"prefix_cache": True, "quantisation": "int8", "speculation": 4}, True),
    ]


def test_a_rung_without_a_setting_is_not_built():
    assert [rung.is_built for rung in engine_rungs(Poor)] == [True, False, False, False]


SHAPE = Shape(layer_weights=1000, head_weights=500, kv_bytes=10, attention_flops=4)


def test_the_least_time_is_bound_by_reading_or_by_computing():
    prompts = [Prompt([1, 2, 3], 3)]
    reading = least_s(SHAPE, prompts, Limits(bytes_per_s=1.0, flops_per_s=1e12))
    assert reading == pytest.approx(3 * 3000 + 10 * (4 + 5))  # the weights three times, keys and values twice
    computing = least_s(SHAPE, prompts, Limits(bytes_per_s=1e12, flops_per_s=1.0))
    assert computing == pytest.approx(2 * (3 * 1000 + 500) + 2 * (2 * 1500) + 4 * (6 + 4 + 5))


def test_a_shared_prefix_is_computed_once_at_best():
    limits = Limits(bytes_per_s=1e12, flops_per_s=1.0)
    shared = least_s(SHAPE, [Prompt([1, 2, 3, 4], 1), Prompt([1, 2, 3, 5], 1), Prompt([1, 2], 1)], limits)
    apart = least_s(SHAPE, [Prompt([1, 2, 3, 4], 1), Prompt([2, 2, 3, 5], 1), Prompt([3, 2], 1)], limits)
    assert apart - shared == 2 * 1000 * 5


def scene(folder, speeds):
    folder.joinpath("config.json").write_text(
        json.dumps(
            {
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 96,
                "vocab_size": 300,
            }
        )
    )
    times = {"ttft_p50_s": 0.1, "itl_p50_s": 0.1, "itl_p99_s": 0.1}
    tokens = sum(prompt.num_tokens for prompt in cases()["mixed64"])
    entries = [
        Entry("mixed64", name, [Run(tokens / speed, times, 0.0) for speed in each]) for name, each in speeds.items()
    ]
    return Scene("smol135", folder, Limits(1e9, 1e9), entries, {"mixed64": {"kv_waste": 0.05}})


def test_only_bars_whose_contenders_ran_are_judged(tmp_path):
    speeds = {"static64": [100.0, 90.0, 400.0], "penstock": [390.0, 410.0, 400.0]}
    result = report([scene(tmp_path, speeds)], settings={"device": "cpu"}, ladder_not_built=[])
    assert result.figures["smol135"]["mixed64"]["penstock"]["ratios"] == {"static64": pytest.approx(4.0)}
    assert result.missed() == ["smol135 mixed64 KV waste"]
    assert [bar.name for bar in result.bars] == ["smol135 mixed64 against static64", "smol135 mixed64 KV waste"]
    assert "smol135 mixed64 against vllm" in result.not_judged
    assert "smol135 mixed64 Python's share" in result.not_judged


@pytest.mark.parametrize(
    ("crc", "speeds", "missed"),
    [
        (1, [150.0, 200.0, 400.0], []),
        (1, [140.0, 140.0, 400.0], ["copy135 copying speculating against not"]),
        (2, [200.0, 200.0, 200.0], ["copy135 copying: speculation changed the output"]),
    ],
)
def test_speculation_is_judged_by_pairs_of_runs_and_by_its_output(tmp_path, crc, speeds, missed):
    it = scene(tmp_path, {})
    it.model = "copy135"
    tokens = sum(prompt.num_tokens for prompt in cases()["copying"])
    times = {"ttft_p50_s": 0.1, "itl_p50_s": 0.1, "itl_p99_s": 0.1}
    for name, each, figures in [
        ("penstock", [100.0, 100.0, 200.0], {"output_crc": 1}),
        ("penstock speculating", speeds, {"output_crc": crc, "acceptance": 0.5}),
    ]:
        it.entries.append(Entry("copying", name, [Run(tokens / speed, times, 0.0) for speed in each], figures))
    result = report([it], settings={"device": "cpu"}, ladder_not_built=[])
    assert result.missed() == missed
