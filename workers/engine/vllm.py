"""How do tokens come from vLLM? Its asynchronous engine runs in our process; its workers are processes of its own."""

import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from workers.engine.config import EngineConfig
from workers.engine.errors import EngineConfigError, EngineError, ModelNotLoadable
from workers.engine.facts import load_tokenizer, model_facts
from workers.engine.fingerprint import model_hash, text_hash
from workers.engine.load import LoadedEngine
from workers.engine.plain_words import plain_words
from workers.engine.protocol import EngineInfo, Logprob, SamplingParams
from workers.engine.streamed import ChoiceRequest, LoopThread, Piece, SourceStats, StreamedEngine, StreamFailed
from workers.engine.vllm_grammar import structured_outputs_of

logger = logging.getLogger(__name__)

_SHUTDOWN_S = 2.0  # then they are killed


def load_vllm_engine(config: EngineConfig, folder: Path) -> LoadedEngine:
    """Start vLLM with the model. Raises EngineConfigError, ModelNotLoadable."""
    _prepare_process(config)
    try:
        import vllm
    except ModuleNotFoundError as error:
        raise EngineConfigError(
            f"{sys.executable} has no package {error.name!r}, which the engine `vllm` needs: install it there, or let "
            "PENSTOCK_ENGINE_PYTHON name the interpreter of an environment that has it"
        ) from error
    bundle, facts = load_tokenizer(config.model, folder), model_facts(folder)
    options = _options(config)
    loop = LoopThread()
    try:
        source = loop.run(VllmSource.start(options))
    except (ValueError, TypeError) as error:  # pydantic's errors are ValueErrors
        raise EngineConfigError(f"vLLM refuses its settings: {error}") from error
    except RuntimeError as error:
        raise ModelNotLoadable(f"vLLM can't load {config.model}: {error}") from error
    measures = source.measures()
    info = EngineInfo(
        model=config.model,
        model_hash=model_hash(folder),
        tokenizer_hash=text_hash(bundle.tokenizer_json),
        settings_hash=text_hash("vllm", vllm.__version__, json.dumps(options, sort_keys=True, default=str)),
        architecture=facts.architecture,
        device=f"vllm:{measures['device']}",
        dtype=measures["dtype"],
        num_parameters=0,
        vocab_size=measures["vocab_size"],
        max_model_len=measures["max_model_len"],
        block_size=measures["block_size"],
        num_blocks=measures["num_blocks"],
        max_num_seqs=measures["max_num_seqs"],
        eos_token_ids=sorted({*facts.eos_token_ids, *measures["eos_token_ids"]}),
        max_batch_tokens=measures["max_batch_tokens"],
    )
    return LoadedEngine(StreamedEngine(info, source, loop, max_streams=None), bundle)


class VllmSource:
    """Streams of tokens from vLLM's `AsyncLLM`. Used from one event loop."""

    def __init__(self, llm: Any, meter: "_Meter") -> None:
        self._llm = llm
        self._meter = meter

    @classmethod
    async def start(cls, options: dict[str, Any]) -> "VllmSource":
        """Load the model, which takes as long as vLLM takes: minutes, where it compiles."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        meter = _Meter()
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**options), stat_loggers=[meter.as_logger])
        await llm.get_supported_tasks()  # asks the engine's process: it runs
        return cls(llm, meter)

    def measures(self) -> dict[str, Any]:
        """What vLLM made of its settings."""
        config = self._llm.vllm_config
        eos_id = self._llm.renderer.get_eos_token_id()
        return {
            "device": str(config.device_config.device_type),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "vocab_size": config.model_config.get_vocab_size(),
            "max_model_len": config.model_config.max_model_len,
            "block_size": config.cache_config.block_size,
            "num_blocks": config.cache_config.num_gpu_blocks or 0,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_batch_tokens": config.scheduler_config.max_num_batched_tokens,
            "eos_token_ids": [] if eos_id is None else [eos_id],
        }

    def fault_of(self, sampling: SamplingParams) -> StreamFailed | None:
        """vLLM checks the rest when it is asked."""
        try:
            if sampling.grammar is not None:
                structured_outputs_of(sampling.grammar)
        except ValueError as error:
            return StreamFailed("grammar_invalid", f"the choice can't be used: {plain_words(str(error))}")
        return None

    def stats(self) -> SourceStats:
        """What vLLM's scheduler said last."""
        meter = self._meter
        return SourceStats(progress=meter.num_records, waiting=meter.num_waiting, kv_ratio=meter.kv_ratio)

    async def stream(self, choice: ChoiceRequest) -> AsyncIterator[Piece]:
        """The choice's new tokens. Raises StreamFailed; EngineError when vLLM's engine is dead."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        prompt: dict[str, Any] = {"type": "token", "prompt_token_ids": choice.token_ids}
        if choice.cache_salt:
            prompt["cache_salt"] = choice.cache_salt
        num_top = choice.sampling.logprobs
        try:
            params = _params(choice)
            async for output in self._llm.generate(prompt, params, choice.name, priority=choice.priority):
                (completion,) = output.outputs
                yield _piece(completion, num_top, output.num_cached_tokens or 0)
        except EngineDeadError as error:
            raise EngineError("vLLM's engine died: its log is above") from error
        except (VLLMClientError, ValueError) as error:
            code = "request_invalid" if choice.sampling.grammar is None else "grammar_invalid"
            raise StreamFailed(code, f"vLLM refuses it: {plain_words(str(error))}") from error
        except EngineGenerateError as error:
            message = f"vLLM broke it off: {plain_words(str(error.__cause__ or error))}"
            raise StreamFailed("stream_broken", message, retryable=True) from error

    async def close(self) -> None:
        """End vLLM's processes."""
        self._llm.shutdown(timeout=_SHUTDOWN_S)


class _Meter:
    """Listens to vLLM's own statistics, which come after each step of its engine."""

    def __init__(self) -> None:
        self.num_records = 0
        self.num_waiting = 0
        self.kv_ratio = 0.0

    def as_logger(self, _config: Any, _engine_index: int = 0) -> Any:
        """vLLM's factory of stat loggers: one for each data-parallel engine."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        meter = self

        class Logger(StatLoggerBase):  # type: ignore[misc]
            def __init__(self) -> None: ...

            def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
                meter.num_records += 1
                if scheduler_stats is not None:
                    meter.num_waiting = scheduler_stats.num_waiting_reqs
                    meter.kv_ratio = scheduler_stats.kv_cache_usage

            def log_engine_initialized(self) -> None: ...

        return Logger()


def _prepare_process(config: EngineConfig) -> None:
    """Environment and process group, before vLLM is imported. What the operator has set stays."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would report to its makers
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # where the worker looks when it dies
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # Spawned processes import our main module, which ties them to their parent's life.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if config.device == "cpu":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, config.kv_cache_bytes >> 30)))  # GiB
        if config.threads:
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{config.threads - 1}")
    os.setpgrp()  # a Ctrl-C in a terminal is our parent's to answer; vLLM's processes would end by it


def _options(config: EngineConfig) -> dict[str, Any]:
    """vLLM's engine arguments: what follows from our settings, then what the operator gave."""
    options: dict[str, Any] = {
        "model": config.model,
        "dtype": config.dtype,
        "max_num_seqs": config.max_num_seqs,
        "enable_prefix_caching": config.prefix_cache,
        "scheduling_policy": "priority",
        "structured_outputs_config": {"backend": "guidance"},  # llguidance, as in our own engine
        "enable_log_requests": False,
        "disable_log_stats": True,  # ours listens
    }
    if config.max_model_len:
        options["max_model_len"] = config.max_model_len
    if config.num_blocks:
        options["num_gpu_blocks_override"] = config.num_blocks
    return options | config.engine_options


def _params(choice: ChoiceRequest) -> Any:
    from vllm import SamplingParams as VllmParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    sampling = choice.sampling
    grammar = sampling.grammar
    return VllmParams(
        max_tokens=choice.max_tokens,
        min_tokens=choice.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        logprobs=sampling.logprobs,
        seed=choice.seed,
        ignore_eos=sampling.ignore_eos and grammar is None,
        structured_outputs=None if grammar is None else StructuredOutputsParams(**structured_outputs_of(grammar)),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _piece(completion: Any, num_top: int | None, cached_tokens: int) -> Piece:
    """Raises StreamFailed for an output that vLLM broke off."""
    reason = completion.finish_reason
    if reason in {"abort", "error"}:
        raise StreamFailed("stream_broken", f"vLLM ended it with {reason!r}", retryable=True)
    token_ids = list(completion.token_ids)
    logprobs: tuple[Logprob, ...] = ()
    if num_top is not None and completion.logprobs is not None:
        logprobs = tuple(
            _logprob(token_id, found, num_top) for token_id, found in zip(token_ids, completion.logprobs, strict=True)
        )
    return Piece(
        token_ids, None if reason is None else "length" if reason == "length" else "stop", logprobs, cached_tokens
    )


def _logprob(token_id: int, found: dict[int, Any], num_top: int) -> Logprob:
    """`found` has the chosen token and the best ones, each with its rank; the chosen one may be one more."""
    best = sorted(found.items(), key=lambda item: (item[1].rank or sys.maxsize, -item[1].logprob))[:num_top]
    return Logprob(found[token_id].logprob, [other for other, _ in best], [each.logprob for _, each in best])
