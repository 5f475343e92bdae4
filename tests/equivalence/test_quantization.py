"""Weights quantised while they are loaded: which, how large they get, what they cost, and what is refused."""

import json
import logging
import sys

import pytest
import torch
import transformers

from benchmarks.quantization import quality_of
from tests.equivalence import tiny
from workers.engine.config import EngineConfig
from workers.engine.errors import EngineConfigError, ModelNotLoadable
from workers.engine.lean import why_not_lean
from workers.engine.load import load_engine
from workers.engine.model import load_model
from workers.engine.protocol import Request
from workers.engine.quantize import how_to_load, weight_bytes
from workers.models import BROOK

CPU = torch.device("cpu")
KINDS = ["int8", "nf4", "fp4"]
REQUESTS = [Request(id=str(i), prompt_ids=prompt, sampling=tiny.GREEDY) for i, prompt in enumerate(tiny.prompts(3))]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """One whose matrices all fit the 4-bit kernels."""
    folder = tmp_path_factory.mktemp("quantisable")
    torch.manual_seed(5)
    config = transformers.LlamaConfig(**tiny._GQA | {"intermediate_size": 128})
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tiny.save_tokenizer(folder)
    return folder


def names(module, kind):
    return {name.rpartition(".")[2] for name, part in module.named_modules() if type(part).__name__ == kind}


@pytest.mark.parametrize(
    ("kind", "layer", "bits"), [("int8", "Linear8bitLt", 8), ("nf4", "Linear4bit", 4), ("fp4", "Linear4bit", 4)]
)
def test_the_linear_layers_shrink_and_the_output_stays(llama, kind, layer, bits):
    plain, model = load_model(llama, CPU, "auto"), load_model(llama, CPU, "auto", kind)
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert (names(model.module, layer), names(model.module, "Linear")) == (projections, {"lm_head"})
    assert (model.quantization, model.dtype) == (kind, torch.bfloat16)
    assert model.num_parameters == plain.num_parameters
    inside = sum(part.weight.numel() for name, part in plain.module.named_modules() if name.endswith("_proj"))
    saved = weight_bytes(plain.module) - weight_bytes(model.module)
    assert 0.8 * inside * (16 - bits) / 8 < saved < inside * (16 - bits) / 8


def test_the_settings_hash_tells_kinds_apart(llama):
    engines = [tiny.load(llama, quantization=kind) for kind in ("none", *KINDS)]
    assert len({engine.info.settings_hash for engine in engines}) == 4
    assert tiny.load(llama, quantization="nf4").info.settings_hash == engines[2].info.settings_hash


def test_a_quantised_model_goes_the_generic_way_and_the_log_says_why(llama, caplog):
    with caplog.at_level(logging.INFO, "workers.engine.paged"):
        tiny.load(llama, quantization="int8")
    assert "quantised as int8" in why_not_lean(load_model(llama, CPU, "auto", "int8"))
    assert any("runs through transformers: its weights are quantised as int8" in text for text in caplog.messages)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_checkpoint_that_is_quantised_already_is_loaded_as_it_is(llama, kind, tmp_path):
    quantised = transformers.AutoModelForCausalLM.from_pretrained(llama, **how_to_load(llama, CPU, kind))
    quantised.config.quantization_config.llm_int8_threshold = 6.0
    quantised.save_pretrained(tmp_path)
    tiny.save_tokenizer(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["llm_int8_threshold"] == 6.0
    wanted = tiny.run(tiny.load(llama, quantization=kind), REQUESTS).tokens
    for setting in ("none", kind):
        assert tiny.run(tiny.load(tmp_path, quantization=setting), REQUESTS).tokens == wanted
    thresholds = {
        part.state.threshold for part in load_model(tmp_path, CPU, "auto").module.modules() if hasattr(part, "state")
    }
    assert thresholds == ({0.0} if kind == "int8" else set()), "else the outlier columns depend on the neighbours"
    with pytest.raises(
        EngineConfigError, match=f"quantization is fp4, but this checkpoint is quantised as {kind} already"
    ):
        tiny.load(tmp_path, quantization="fp4")


def test_matrices_that_the_4_bit_kernels_cannot_take_stay_as_they_are(checkpoint, caplog):
    folder = checkpoint("llama")[1]  # 96 inputs of down_proj are no multiple of 64
    model = load_model(folder, CPU, "bfloat16", "nf4")
    assert names(model.module, "Linear") == {"down_proj", "lm_head"}
    assert any("3 of 21 linear layers aren't quantised" in text for text in caplog.messages)
    assert names(load_model(folder, CPU, "bfloat16", "int8").module, "Linear") == {"lm_head"}


def test_the_conv1d_layers_of_gpt2_are_quantised(checkpoint):
    model = load_model(checkpoint("gpt2")[1], CPU, "bfloat16", "nf4")
    assert names(model.module, "Linear4bit") == {"c_attn", "c_proj", "c_fc"}


@pytest.mark.parametrize("missing", ["bitsandbytes", "accelerate"])
def test_without_its_packages_the_error_says_what_to_install(llama, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ModelNotLoadable, match=r"need bitsandbytes and accelerate.*install them, or set quantization to"
    ):
        tiny.load(llama, quantization="int8")
    tiny.load(llama)


def test_a_device_that_bitsandbytes_has_no_kernels_for(llama):
    with pytest.raises(ModelNotLoadable, match="has no kernels for vulkan here"):
        how_to_load(llama, torch.device("vulkan"), "nf4")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there are kernels for CUDA")
def test_a_build_of_bitsandbytes_without_cuda(llama):
    with pytest.raises(ModelNotLoadable, match="has no kernels for cuda here"):
        how_to_load(llama, torch.device("cuda"), "nf4")


def test_what_it_costs_the_bundled_model():
    """The core of `python -m benchmarks quantization`, over few tokens."""
    plain, *others = (quality_of(BROOK, kind, 2048) for kind in ("none", *KINDS))
    assert 1.2 < plain.perplexity < 4.0
    ratios = [other.perplexity / plain.perplexity for other in others]
    assert ratios[0] < 1.02
    assert 1.0 < ratios[1] < 1.05
    assert 1.0 < ratios[2] < 1.10
    assert plain.weight_bytes > others[0].weight_bytes > others[1].weight_bytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_on_cuda_too(llama, kind):
    model = load_model(llama, torch.device("cuda"), "bfloat16", kind)
    assert {part.weight.device.type for part in model.module.modules() if hasattr(part, "weight")} == {"cuda"}
    engine = load_engine(EngineConfig(model=str(llama), device="cuda", quantization=kind)).engine
    outcome = tiny.run(engine, REQUESTS)
    assert all(len(tokens) == tiny.GREEDY.max_tokens for tokens in outcome.tokens.values())
