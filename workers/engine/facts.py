"""What does a model's folder say about it, without its weights? For engines that don't load them themselves."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.engine.errors import ModelNotLoadable
from workers.engine.tokenizer import TokenizerBundle, load_bundle

_DEFAULT_MAX_LEN = 2048


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What config.json and generation_config.json say."""

    architecture: str
    vocab_size: int  # 0 = not said
    max_len: int  # tokens
    eos_token_ids: list[int]
    config: str  # config.json as it is


def model_facts(folder: Path) -> ModelFacts:
    """Raises ModelNotLoadable for a config.json that can't be read."""
    text = _read(folder / "config.json")
    config: dict[str, Any] = _parse(text, folder)
    inner = config.get("text_config")  # models that also see
    texts = config | inner if isinstance(inner, dict) else config
    generation = folder / "generation_config.json"
    said = _parse(_read(generation), folder) if generation.is_file() else {}
    eos = said.get("eos_token_id", texts.get("eos_token_id"))
    return ModelFacts(
        architecture=(config.get("architectures") or [config.get("model_type") or "unknown"])[0],
        vocab_size=int(texts.get("vocab_size") or 0),
        max_len=int(texts.get("max_position_embeddings") or _DEFAULT_MAX_LEN),
        eos_token_ids=[] if eos is None else sorted(set(eos)) if isinstance(eos, list) else [eos],
        config=text,
    )


def load_tokenizer(model: str, folder: Path) -> TokenizerBundle:
    """Raises ModelNotLoadable."""
    try:
        return load_bundle(str(folder))
    except Exception as error:  # broad: the tokenizers library raises bare Exceptions
        raise ModelNotLoadable(f"{model} has no tokenizer that can be loaded: {error}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelNotLoadable(f"{path} can't be read: {error}") from error


def _parse(text: str, folder: Path) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ModelNotLoadable(f"a JSON file in {folder} is broken: {error}") from error
    if not isinstance(document, dict):
        raise ModelNotLoadable(f"a JSON file in {folder} isn't an object")
    return document
