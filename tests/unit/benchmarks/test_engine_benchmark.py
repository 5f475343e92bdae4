"""The engine's benchmark from end to end, on a tiny model: real processes, no figure that means anything."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.equivalence.tiny import save_tokenizer
from tests.support.processes import have_ended

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=256,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def command(*arguments):
    return [sys.executable, "-m", "benchmarks", "engine", "--threads", "1", *map(str, arguments)]


@pytest.mark.long  # four processes that load torch, one after the other; `test_figures.py` has what is made of their figures
def test_it_measures_a_tiny_model_beside_a_peer(model, tmp_path):
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        command("--model", model, "--case", "smoke", "--peer", "static8", "--check", "--json", figures),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert "not judged" in done.stdout
    document = json.loads(figures.read_text())
    assert document["bars"] == []
    measured = document["figures"][model.name]["smoke"]
    assert set(measured) == {"static8", "penstock"}
    ours = measured["penstock"]
    assert ours["tokens"] == 53
    assert min(ours["tok_s"], ours["ttft_p50_s"], ours["itl_p99_s"], ours["ratios"]["static8"]) > 0
    assert 0 < ours["kv_waste"] < 1
    assert 0 < ours["python_share"] < 1


def test_ctrl_c_leaves_nobody_behind(model):
    benchmark = subprocess.Popen(
        command("--model", model, "--case", "mixed64", "--repeat", "1000"), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert benchmark.stderr is not None
    family = []
    for line in benchmark.stderr:
        if "loading" in line:
            family = psutil.Process(benchmark.pid).children(recursive=True)
            os.kill(benchmark.pid, signal.SIGINT)
            break
    assert family
    assert benchmark.stderr.read().strip().endswith("stopped")
    assert benchmark.wait(timeout=30) == 130
    benchmark.stderr.close()
    assert have_ended(family)


def test_a_missing_model_is_answered_in_words():
    done = subprocess.run(command("--model", "nothing-like-it"), cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 2
    assert "nothing-like-it is neither one of smol135, qwen05, copy135, llama8 nor a model's folder" in done.stderr


def test_a_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import plot
    from benchmarks.result import Result

    speeds = {"vllm": {"tok_s": 250.0}, "penstock": {"tok_s": 300.0}}
    machine = {"cpu": "a processor", "cores": 2, "torch": "2"}
    figures = {"smol135": {"mixed64": speeds, "single-64-128": speeds}, "machine": machine}
    path = tmp_path / "plot.png"
    plot.draw(Result("engine", {"model": ["smol135"]}, figures), path)
    assert path.read_bytes().startswith(b"\x89PNG")
