"""Which models are measured? Real shapes with random weights: the speed of the real ones, without a download."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.copying import ROPE_THETA, make_copying

_SPECIAL: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": True}


def _smol135() -> Any:
    """SmolLM2-135M's shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        **_SPECIAL,
    )


def _qwen05() -> Any:
    """Qwen2.5-0.5B's shape."""
    from transformers import Qwen2Config

    return Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        max_position_embeddings=32768,
        **_SPECIAL,
    )


def _llama8() -> Any:
    """Llama 3.1 8B's shape: 16 GB of weights, for a GPU."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
        **(_SPECIAL | {"tie_word_embeddings": False}),
    )


def _copy135() -> Any:
    """SmolLM2-135M's shape, to be given weights that copy: see `benchmarks.copying`."""
    config = _smol135()
    config.tie_word_embeddings = False
    config.rope_parameters = {"rope_type": "default", "rope_theta": ROPE_THETA}
    return config


MODELS: dict[str, Callable[[], Any]] = {"smol135": _smol135, "qwen05": _qwen05, "copy135": _copy135, "llama8": _llama8}


def default_folder() -> Path:
    """Where models are kept: in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock" / "benchmark-models"


def model_folder(name: str, models: Path) -> Path:
    """The folder of a model, made if it isn't there yet; `name` may also be the folder of any checkpoint."""
    if name not in MODELS:
        folder = Path(name).expanduser().resolve()
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{name} is neither one of {', '.join(MODELS)} nor a model's folder")
        return folder
    folder = models.expanduser().resolve() / name
    if not folder.is_dir():
        unfinished = folder.with_name(f"{name}.{os.getpid()}.unfinished")
        try:
            _make(name, unfinished)
            unfinished.rename(folder)  # whole or not at all
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _make(name: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from workers.engine.tokenizer import byte_bundle

    config = MODELS[name]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if name == "copy135":
        make_copying(model)
    model.save_pretrained(folder)
    bundle = byte_bundle(config.vocab_size)  # no contender needs it, but our engine won't load a model without
    (folder / "tokenizer.json").write_text(bundle.tokenizer_json, encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | bundle.special_tokens
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
