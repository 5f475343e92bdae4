"""Which engine does a config ask for?"""

from dataclasses import dataclass
from pathlib import Path

from workers.engine.config import EngineConfig
from workers.engine.errors import ModelNotLoadable
from workers.engine.protocol import Engine
from workers.engine.tokenizer import TokenizerBundle


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that is ready to step, and the tokenizer that goes with its model."""

    engine: Engine
    tokenizer: TokenizerBundle


def load_engine(config: EngineConfig) -> LoadedEngine:
    """Load what `config.engine` names; raises EngineError with a message that says what to do."""
    config = config.validated()
    if config.engine == "null":
        from workers.engine.null import NullEngine

        engine = NullEngine(config)
        return LoadedEngine(engine, engine.tokenizer)
    folder = resolve_folder(
        config.model, needs_weights=config.engine == "paged"
    )  # before torch: a typo is answered at once
    if config.engine == "vllm":
        from workers.engine.vllm import load_vllm_engine

        return load_vllm_engine(config, folder)
    if config.engine == "upstream":
        from workers.engine.upstream import load_upstream_engine

        return load_upstream_engine(config, folder)
    from workers.engine.paged import load_paged_engine

    loaded = load_paged_engine(config, folder)
    if not config.profile_dir:
        return loaded
    from workers.engine.profiled import ProfiledEngine

    return LoadedEngine(ProfiledEngine(loaded.engine, config), loaded.tokenizer)


def resolve_folder(model: str, *, needs_weights: bool = True) -> Path:
    """The folder of a model, downloaded if it is a Hugging Face id. Raises ModelNotLoadable."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelNotLoadable(f"{model} has no config.json: is it a Hugging Face model's folder?")
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelNotLoadable(f"there is no folder {model}")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.model", "*.txt", "*.jinja", *(["*.safetensors"] if needs_weights else [])]
        return Path(snapshot_download(model, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ModelNotLoadable(
            f"{model} is neither a folder nor a Hugging Face model that can be fetched ({type(error).__name__}: {error})"
        ) from error
