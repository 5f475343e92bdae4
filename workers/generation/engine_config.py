"""Which engine do the settings ask for? Their words as an engine's configuration."""

from typing import Any

from app.errors import Misconfigured
from app.settings import Settings
from workers.engine.config import EngineConfig
from workers.engine.upstream_config import UpstreamConfig
from workers.models import BROOK


def model_of(settings: Settings) -> str:
    """The Hugging Face id or folder of the model that is served.

    Raises:
        Misconfigured: there has to be one, and none is named.
    """
    if settings.model is None:
        if settings.engine == "upstream":
            raise Misconfigured(
                "the engine `upstream` needs PENSTOCK_MODEL: the Hugging Face id or the folder of the server's model, "
                "for its tokenizer"
            )
        return "null" if settings.engine == "null" else str(BROOK)
    return settings.model


def config_of(settings: Settings) -> EngineConfig:
    """All that an engine is started with.

    Raises:
        Misconfigured: a setting makes no sense, or one is missing.
    """
    fields: dict[str, Any] = {
        "engine": settings.engine,
        "model": (settings.model or "") if settings.engine == "null" else model_of(settings),
        "device": settings.device,
        "dtype": settings.dtype,
        "max_num_seqs": settings.max_num_seqs,
        "max_model_len": settings.max_model_len or 0,
        "quantization": settings.quantization,
        "prefix_cache": settings.prefix_cache,
        "speculative_tokens": settings.speculative_tokens,
        "grammar_check_s": settings.grammar_check_s,
        "threads": settings.engine_threads or 0,
        "kernels": settings.kernels,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "attention": settings.attention,
        "cuda_graphs": settings.cuda_graphs,
        "decode_steps": settings.decode_steps or 0,
        "deterministic": settings.deterministic,
        "null_step_s": settings.null_step_s,
        "slow_step_s": settings.slow_step_s,
        "profile_dir": str(settings.profile_dir or ""),
        "profile_steps": settings.profile_steps,
        "engine_options": settings.engine_options or {},
    }
    if settings.max_batch_tokens is not None:
        fields["max_batch_tokens"] = settings.max_batch_tokens
    if settings.kv_cache_mib is not None:
        fields["kv_cache_bytes"] = settings.kv_cache_mib * 2**20
    try:
        if settings.engine == "upstream":
            fields["upstream"] = _upstream(settings)
        return EngineConfig(**fields)
    except ValueError as error:
        raise Misconfigured(str(error)) from error


def _upstream(settings: Settings) -> UpstreamConfig:
    if settings.upstream_url is None:
        raise Misconfigured("the engine `upstream` needs PENSTOCK_UPSTREAM_URL")
    return UpstreamConfig(
        url=settings.upstream_url,
        api_key=settings.upstream_api_key.get_secret_value() if settings.upstream_api_key else "",
        model=settings.upstream_model or "",
        dialect=settings.upstream_dialect,
        send_priority=settings.upstream_priority,
        timeout_s=settings.upstream_timeout_s,
        outage_s=settings.upstream_outage_s,
    )
