"""Tiny random models of many architectures, saved as real checkpoints, and the ways to run them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from workers.engine.config import EngineConfig
from workers.engine.decode import DecodeLoop
from workers.engine.engine import PagedEngine
from workers.engine.load import load_engine
from workers.engine.protocol import Logprob, Moved, Request, RequestFailed, SamplingParams
from workers.engine.tokenizer import byte_bundle

VOCAB_SIZE = 300
EOS_ID = VOCAB_SIZE - 1
GREEDY = SamplingParams(max_tokens=16, temperature=0.0)

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
    "pad_token_id": None,
    "initializer_range": 0.2,  # large enough for a greedy choice to depend on all of the context
    "tie_word_embeddings": False,  # tied ones make a random model repeat its input
}
_GQA = _COMMON | {"num_key_value_heads": 2}
_DEEPSEEK_EXPERTS = {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}


def _gemma(config: type, **more: Any) -> Any:
    return config(**_GQA, head_dim=16, sliding_window=8, query_pre_attn_scalar=16, **more)


# The first eight are the fast matrix.
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_GQA),
    "qwen2": lambda: transformers.Qwen2Config(**_GQA),
    "qwen3": lambda: transformers.Qwen3Config(**_GQA, head_dim=32),
    "mistral": lambda: transformers.MistralConfig(**_GQA, sliding_window=8),
    "gemma2": lambda: _gemma(transformers.Gemma2Config, attn_logit_softcapping=5.0, final_logit_softcapping=10.0),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=64,
        n_layer=3,
        n_head=4,
        n_positions=128,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        initializer_range=0.2,
        tie_word_embeddings=False,
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_COMMON),
    "phi3": lambda: transformers.Phi3Config(**_GQA),
    "gemma3": lambda: _gemma(transformers.Gemma3TextConfig),
    "mixtral": lambda: transformers.MixtralConfig(**_GQA, num_local_experts=4),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_GQA, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
    "phi": lambda: transformers.PhiConfig(**_GQA),
    "olmo2": lambda: transformers.Olmo2Config(**_GQA),
    "granite": lambda: transformers.GraniteConfig(**_GQA),
    "cohere2": lambda: transformers.Cohere2Config(**_GQA, sliding_window=8),
    "starcoder2": lambda: transformers.Starcoder2Config(**_GQA),
    "opt": lambda: transformers.OPTConfig(
        **{key: value for key, value in _COMMON.items() if key not in ("intermediate_size", "initializer_range")},
        ffn_dim=96,
        init_std=0.2,
        word_embed_proj_dim=64,
    ),
    "smollm3": lambda: transformers.SmolLM3Config(**_GQA),
    "glm4": lambda: transformers.Glm4Config(**_GQA, head_dim=16),
    "gpt_oss": lambda: transformers.GptOssConfig(**_GQA, head_dim=16, sliding_window=8, num_local_experts=4),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **_COMMON,
        num_key_value_heads=4,
        **_DEEPSEEK_EXPERTS,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
    ),
    "gemma": lambda: transformers.GemmaConfig(**_GQA, head_dim=16),
    "stablelm": lambda: transformers.StableLmConfig(**_GQA),
    "olmo": lambda: transformers.OlmoConfig(**_GQA),
    "olmo3": lambda: transformers.Olmo3Config(**_GQA, sliding_window=8),
    "olmoe": lambda: transformers.OlmoeConfig(**_GQA, num_experts=4, num_experts_per_tok=2),
    "granitemoe": lambda: transformers.GraniteMoeConfig(**_GQA, num_local_experts=4),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **_GQA, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32
    ),
    "nemotron": lambda: transformers.NemotronConfig(**_GQA),
    "exaone4": lambda: transformers.Exaone4Config(**_GQA, sliding_window=8),
    "helium": lambda: transformers.HeliumConfig(**_GQA, head_dim=16),
    "ernie4_5": lambda: transformers.Ernie4_5Config(**_GQA, head_dim=16),
    "hunyuan": lambda: transformers.HunYuanDenseV1Config(**_GQA, head_dim=16),
    "apertus": lambda: transformers.ApertusConfig(**_GQA),
    "arcee": lambda: transformers.ArceeConfig(**_GQA),
    "seed_oss": lambda: transformers.SeedOssConfig(**_GQA, head_dim=16),
    "glm": lambda: transformers.GlmConfig(**_GQA, head_dim=16),
    "glm4_moe": lambda: transformers.Glm4MoeConfig(**_GQA, **_DEEPSEEK_EXPERTS, head_dim=16),
    "cohere": lambda: transformers.CohereConfig(**_GQA),
    "gpt_bigcode": lambda: transformers.GPTBigCodeConfig(
        vocab_size=VOCAB_SIZE,
        n_embd=64,
        n_layer=3,
        n_head=4,
        n_positions=128,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        initializer_range=0.2,
        tie_word_embeddings=False,
    ),
    "persimmon": lambda: transformers.PersimmonConfig(**_COMMON),
    "phimoe": lambda: transformers.PhimoeConfig(**_GQA, num_local_experts=4),
    "biogpt": lambda: transformers.BioGptConfig(**_COMMON),
    "jetmoe": lambda: transformers.JetMoeConfig(**_GQA),
    "llama4": lambda: transformers.Llama4TextConfig(
        **_GQA, head_dim=16, intermediate_size_mlp=96, num_local_experts=4, attention_chunk_size=128
    ),
    # Not through AttentionInterface: must be refused.
    "falcon": lambda: transformers.FalconConfig(
        vocab_size=VOCAB_SIZE, hidden_size=64, num_hidden_layers=2, num_attention_heads=4
    ),
    "bloom": lambda: transformers.BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=64, n_layer=2, n_head=4),
    "gptj": lambda: transformers.GPTJConfig(vocab_size=VOCAB_SIZE, n_embd=64, n_layer=2, n_head=4, rotary_dim=8),
    "mamba": lambda: transformers.MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=64, num_hidden_layers=2),
    "codegen": lambda: transformers.CodeGenConfig(vocab_size=VOCAB_SIZE, n_embd=64, n_layer=2, n_head=4, rotary_dim=8),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        vocab_size=VOCAB_SIZE, hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
    ),
    "diffllama": lambda: transformers.DiffLlamaConfig(**_GQA),
}
REFUSED = ["falcon", "bloom", "gptj", "mamba", "codegen", "gpt_neo", "diffllama"]
# Experts and routers are multiplied by PyTorch, whose last bit depends on the number of rows.
MIXTURES = {
    *("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3", "olmoe", "granitemoe", "glm4_moe", "phimoe"),
    *("jetmoe", "llama4"),
}
FAST = list(CONFIGS)[:8]
WIDE = [name for name in CONFIGS if name not in FAST and name not in REFUSED]


def save_model(name: str, folder: Path) -> Any:
    """Make a random model of an architecture, save it with a tokenizer of bytes; the model."""
    torch.manual_seed(sum(name.encode()))
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32).eval()
    model.generation_config.eos_token_id = EOS_ID
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def save_tokenizer(folder: Path, vocab_size: int = VOCAB_SIZE) -> None:
    bundle = byte_bundle(vocab_size)
    (folder / "tokenizer.json").write_text(bundle.tokenizer_json)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "T"} | bundle.special_tokens)
    )


def prompts(count: int, longest: int = 40, seed: int = 1) -> list[list[int]]:
    """Random prompts of all lengths from 1."""
    generator = torch.Generator().manual_seed(seed)
    lens = [1 + (number * (longest - 1)) // max(1, count - 1) for number in range(count)]
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lens]


def plain_generate(model: Any, prompt: list[int], max_tokens: int) -> list[int]:
    """What transformers' own greedy search says."""
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
    return output[0, len(prompt) :].tolist()


def load(folder: Path, **settings: Any) -> PagedEngine:
    engine = load_engine(EngineConfig(**({"model": str(folder), "device": "cpu"} | settings))).engine
    assert isinstance(engine, PagedEngine)
    return engine


def filled_up(engine: PagedEngine, sizes: list[int]) -> PagedEngine:
    """The engine, its batches filled up to these sizes as for CUDA graphs."""
    runner, info = engine._model, engine.info
    runner.loop = DecodeLoop(
        runner._forward,
        torch.device("cpu"),
        sizes=sizes,
        most_samples=sizes[-1],
        block_size=info.block_size,
        max_model_len=info.max_model_len,
        trash_block=info.num_blocks,
    )
    return engine


@dataclass
class Outcome:
    tokens: dict[tuple[str, int], list[int]]
    reasons: dict[tuple[str, int], str]
    logprobs: dict[tuple[str, int], list[Logprob]]
    failed: list[RequestFailed]
    moved: list[Moved] = field(default_factory=list)


def run(engine: PagedEngine, requests: list[Request]) -> Outcome:
    """Step until all is done; checks that deltas come in order, without gap or repeat, and that no block leaks."""
    for request in requests:
        engine.add(request)
    outcome = Outcome({}, {}, {}, [])
    starts = {(r.id, choice): len(r.resume[choice]) if r.resume else 0 for r in requests for choice in range(r.n)}
    for _ in range(10_000):
        if not engine.has_work():
            break
        output = engine.step()
        outcome.failed += output.failed
        outcome.moved += output.moved
        for delta in output.deltas:
            key = (delta.request_id, delta.choice)
            tokens = outcome.tokens.setdefault(key, [])
            assert delta.offset == starts.get(key, 0) + len(tokens)
            assert key not in outcome.reasons
            tokens += delta.token_ids
            outcome.logprobs.setdefault(key, []).extend(delta.logprobs)
            if delta.finish_reason is not None:
                outcome.reasons[key] = delta.finish_reason
    assert not engine.has_work()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)
    return outcome
