"""Which engine does a config ask for?"""

from dataclasses import dataclass

from workers.engine.config import EngineConfig
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
    from workers.engine.paged import load_paged_engine

    return load_paged_engine(config)
