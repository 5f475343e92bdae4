"""What is refused when a model is loaded, and what the refusal says."""

import json

import pytest
import torch
import transformers

from tests.equivalence import tiny
from workers.engine.attention import attend
from workers.engine.errors import EngineConfigError, ModelNotLoadable, ModelUnsupported


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_len": 129}, "the model takes at most 128 tokens: lower it"),
        ({"kv_cache_bytes": 1 << 16, "block_size": 256}, "set it to"),
    ],
)
def test_settings_that_do_not_fit_the_model(checkpoint, settings, message):
    with pytest.raises(EngineConfigError, match=message):
        tiny.load(checkpoint("llama")[1], **settings)


def test_the_pool_is_sized_from_bytes_but_never_larger_than_can_be_used(checkpoint):
    folder = checkpoint("llama")[1]
    block_bytes = 3 * 2 * 2 * 16 * 16 * 4  # layers, key and value, heads, dim, tokens, bytes
    assert tiny.load(folder, kv_cache_bytes=10 * block_bytes).info.num_blocks == 10
    assert tiny.load(folder, kv_cache_bytes=1 << 30, max_num_seqs=4).info.num_blocks == 4 * 128 // 16


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(ModelNotLoadable, match=r"has no config\.json"):
        tiny.load(tmp_path)


def test_a_folder_without_a_tokenizer(checkpoint, tmp_path):
    checkpoint("llama")[0].save_pretrained(tmp_path)
    with pytest.raises(ModelNotLoadable, match="no tokenizer that can be loaded"):
        tiny.load(tmp_path)


def test_broken_weights(checkpoint, tmp_path):
    checkpoint("llama")[0].save_pretrained(tmp_path)
    tiny.save_tokenizer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelNotLoadable, match="can't be loaded as a causal language model"):
        tiny.load(tmp_path)


def test_missing_weights_are_not_made_up(checkpoint, tmp_path):
    model, _ = checkpoint("llama")
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.mlp.up" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    tiny.save_tokenizer(tmp_path)
    with pytest.raises(ModelNotLoadable, match=r"lacks 1 of the model's weights, such as .*up_proj"):
        tiny.load(tmp_path)


def test_an_encoder_is_no_causal_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    tiny.save_tokenizer(tmp_path)
    with pytest.raises(ModelNotLoadable, match="can't be loaded as a causal language model"):
        tiny.load(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(checkpoint):
    with pytest.raises(ModelNotLoadable, match="no CUDA device is visible"):
        tiny.load(checkpoint("llama")[1], device="cuda")


@pytest.mark.parametrize("lost", ["scaling", "sliding_window", "softcap"])
def test_a_model_whose_attention_we_get_wrong_is_refused(checkpoint, monkeypatch, lost):
    """As if a model asked for something that our interface doesn't know."""
    # The window of the check's own size, so that eight tokens show it.
    folder = checkpoint("gemma2")[1]
    config = json.loads((folder / "config.json").read_text())
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", _with_window(3))

    def attend_without(*args, **kwargs):
        kwargs[lost] = 1.0 if lost == "scaling" else None
        return attend(*args, **kwargs)

    tiny.load(folder)
    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "penstock", attend_without)
    assert config["attn_logit_softcapping"]
    with pytest.raises(ModelUnsupported, match="it computes something else than by its own"):
        tiny.load(folder)


def test_a_model_that_loses_positions_is_refused(checkpoint, monkeypatch):
    model, folder = checkpoint("llama")
    plain = type(model.model).forward

    def forward(self, input_ids=None, position_ids=None, **kwargs):
        return plain(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", forward)
    with pytest.raises(ModelUnsupported, match="it computes something else than by its own"):
        tiny.load(folder, kernels="torch")


def test_a_model_that_attends_in_chunks_is_limited_to_its_first(tmp_path, caplog):
    config = tiny.CONFIGS["llama4"]()
    config.attention_chunk_size = 64
    torch.manual_seed(1)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny.save_tokenizer(tmp_path)
    assert tiny.load(tmp_path).info.max_model_len == 64
    assert "max_model_len is limited to 64, this model's attention chunk" in caplog.messages
    with pytest.raises(EngineConfigError, match="the model takes at most 64 tokens"):
        tiny.load(tmp_path, max_model_len=65)


def test_attention_outside_of_a_forward_pass_says_so(checkpoint):
    tensor = torch.zeros(1, 2, 3, 4)
    with pytest.raises(RuntimeError, match="outside of the engine's forward pass"):
        attend(checkpoint("llama")[0], tensor, tensor, tensor, None)


def _with_window(window):
    plain = transformers.AutoModelForCausalLM.from_pretrained

    def from_pretrained(folder, **kwargs):
        config = transformers.AutoConfig.from_pretrained(folder)
        config.sliding_window = window
        return plain(folder, config=config, **kwargs)

    return from_pretrained
