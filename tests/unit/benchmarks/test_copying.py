"""A model whose weights were set by hand copies without a mistake, so that speculation has something to be right about."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.copying import ROPE_THETA, make_copying
from benchmarks.peers.penstock import requests_of, variants_of
from benchmarks.workload import Prompt, cases


def test_it_goes_on_as_the_text_before():
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49_152,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    make_copying(model)
    prompt = cases()["copying"][0].token_ids
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert output[0, len(prompt) :].tolist() == prompt[8:20]


def test_only_what_is_about_speculation_speculates():
    # Two cases in one run: `copying` turned speculation on for `json-schema`, too, and made a schema look 38 % slower.
    requests = requests_of([Prompt([1, 2, 3], 4)], 1)
    speculating = {
        name: [each.sampling.speculate for each in variant]
        for case in ("copying", "json-schema", "mixed64")
        for name, variant in variants_of(case, requests).items()
    }
    assert [name for name, flags in speculating.items() if all(flags)] == ["copying/speculating"]
    assert all(each.sampling.speculate for each in variants_of("mixed64", requests, speculate=True)["mixed64"])
