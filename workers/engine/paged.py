"""How is the paged engine put together from its settings?"""

import logging
from pathlib import Path

import torch
import transformers

from workers.engine import cuda, lean, native
from workers.engine.attention import AttentionBackend
from workers.engine.attention_native import NativeAttention, can_attend
from workers.engine.attention_torch import TorchAttention
from workers.engine.blocks import BlockPool
from workers.engine.choose import Argmax, torch_argmax
from workers.engine.config import EngineConfig, min_blocks
from workers.engine.engine import PagedEngine
from workers.engine.errors import EngineConfigError, ModelNotLoadable, ModelUnsupported
from workers.engine.fingerprint import model_hash, text_hash
from workers.engine.grammar import Grammars
from workers.engine.load import LoadedEngine
from workers.engine.model import LoadedModel, choose_device, load_model
from workers.engine.packed import pack_linears
from workers.engine.protocol import EngineInfo
from workers.engine.runner import ForwardPass, GenericForward, ModelRunner, block_bytes
from workers.engine.sampler import Forbid, torch_forbid
from workers.engine.scheduler import Scheduler
from workers.engine.speculate import Speculator
from workers.engine.tokenizer import load_bundle

logger = logging.getLogger(__name__)

_DEFAULT_KV_BYTES = 1 << 30  # on the CPU

# A smaller model's matrices are so small that threads cost more, waiting for each other, than they bring.
_ONE_THREAD_PARAMETERS = 20_000_000


def load_paged_engine(config: EngineConfig, folder: Path) -> LoadedEngine:
    """Load model and tokenizer from `folder`, size the pool. Raises EngineError."""
    if config.threads:
        torch.set_num_threads(config.threads)
    try:
        bundle = load_bundle(str(folder))
    except Exception as error:  # broad: the tokenizers library raises bare Exceptions
        raise ModelNotLoadable(f"{config.model} has no tokenizer that can be loaded: {error}") from error
    device = choose_device(config.device)
    if config.deterministic and device.type == "cuda":
        cuda.be_deterministic()
    model = load_model(folder, device, config.dtype, config.quantization)
    if not config.threads and model.device.type == "cpu" and model.num_parameters < _ONE_THREAD_PARAMETERS:
        torch.set_num_threads(1)
    engine = paged_engine(
        config,
        model,
        model_hash=model_hash(folder),
        tokenizer_hash=text_hash(bundle.tokenizer_json),
        grammars=_grammars(config, bundle.tokenizer_json, model),
    )
    return LoadedEngine(engine, bundle)


def paged_engine(
    config: EngineConfig,
    model: LoadedModel,
    *,
    model_hash: str,
    tokenizer_hash: str,
    grammars: Grammars | None = None,
) -> PagedEngine:
    """An engine around a model that is loaded already. Raises EngineConfigError."""
    max_model_len = _max_model_len(config, model)
    num_blocks = _num_blocks(config, model, max_model_len)
    fits = num_blocks * config.block_size
    if fits < max_model_len:
        logger.warning(
            "max_model_len is limited to %d tokens, which is what %d blocks of %d hold; raise kv_cache_bytes for %d",
            fits,
            num_blocks,
            config.block_size,
            max_model_len,
        )
    runner, way = _runner(config, model, num_blocks, min(max_model_len, fits), grammars)
    dtype = str(model.dtype).removeprefix("torch.")
    info = EngineInfo(
        model=config.model,
        model_hash=model_hash,
        tokenizer_hash=tokenizer_hash,
        settings_hash=text_hash(
            dtype, model.quantization, model.device.type, way, torch.__version__, transformers.__version__, "sampler 1"
        ),
        architecture=model.architecture,
        device=str(model.device),
        dtype=dtype,
        num_parameters=model.num_parameters,
        vocab_size=model.vocab_size,
        max_model_len=min(max_model_len, fits),
        block_size=config.block_size,
        num_blocks=num_blocks,
        max_num_seqs=config.max_num_seqs,
        eos_token_ids=model.eos_token_ids,
        max_batch_tokens=config.max_batch_tokens,
    )
    scheduler = Scheduler(
        BlockPool(num_blocks, config.block_size),
        max_num_seqs=config.max_num_seqs,
        max_batch_tokens=config.max_batch_tokens,
        watermark_ratio=config.watermark_ratio,
        prefix_cache=config.prefix_cache,
        speculator=_speculator(config, grammars),
    )
    return PagedEngine(
        info,
        scheduler,
        runner,
        grammars,
        decode_steps=cuda.decode_steps(config, model.device),
        slow_step_s=config.slow_step_s,
    )


def _speculator(config: EngineConfig, grammars: Grammars | None) -> Speculator | None:
    if not config.speculative_tokens:
        return None
    return Speculator(config.speculative_tokens, grammars.permitted if grammars is not None else None)


def _grammars(config: EngineConfig, tokenizer_json: str, model: LoadedModel) -> Grammars | None:
    try:
        return Grammars(tokenizer_json, model.vocab_size, model.eos_token_ids, check_limit_s=config.grammar_check_s)
    except ValueError as error:
        logger.warning("no structured output with this model: %s", error)
        return None


def _runner(
    config: EngineConfig, model: LoadedModel, num_blocks: int, max_model_len: int, grammars: Grammars | None
) -> tuple[ModelRunner, str]:
    """The fastest way to run a model that passes its check, and a name for whatever in it decides tokens."""
    kernels = native.kernels() if config.kernels == "auto" and model.device.type == "cpu" else None
    reason = lean.why_not_lean(model)
    trash_block = num_blocks  # a page more than there are: for rows that nobody wants
    if config.attention not in {"auto", "torch"}:
        kernels, reason = None, f"attention is {config.attention}"

    def runner_for(forward: ForwardPass, argmax: Argmax, forbid: Forbid, *, graphs: bool) -> ModelRunner:
        runner = ModelRunner(
            model,
            forward,
            block_size=config.block_size,
            argmax=argmax,
            forbid=forbid,
            grammars=grammars,
            shape=cuda.fixed_shape(config, trash_block),
        )
        runner.check()
        runner.loop = cuda.decode_loop(
            config, model, forward, max_model_len=max_model_len, trash_block=trash_block, graphs=graphs
        )
        return runner

    if kernels is not None and reason is None:
        decoder = lean.LeanDecoder(kernels, model, num_blocks=num_blocks + 1, block_size=config.block_size)
        try:
            runner = runner_for(decoder, kernels.argmax, kernels.forbid, graphs=False)
        except ModelUnsupported as error:
            logger.warning("the C++ kernels aren't used for this model: %s", error)
        else:
            lean.release_weights(model)
            return runner, decoder.name
    elif kernels is not None:
        logger.info("this model runs through transformers: %s", reason)
    backends = _backends(config, model, max_model_len, kernels)
    for backend in backends:  # the first that passes the check
        forward = GenericForward(model, backend, num_blocks=num_blocks + 1, block_size=config.block_size)
        try:
            runner = runner_for(forward, torch_argmax, torch_forbid, graphs=cuda.uses_graphs(config, model, backend))
        except ModelUnsupported as error:
            if backend is backends[-1]:
                raise
            logger.warning("attention %s isn't used for this model: %s", backend.name, error)
        else:
            return runner, f"{backend.name} deterministic" if config.deterministic else backend.name
    raise AssertionError("there is at least one backend")


def _backends(
    config: EngineConfig, model: LoadedModel, max_model_len: int, kernels: native.Kernels | None
) -> list[AttentionBackend]:
    """For a model that runs through transformers, the best first. Packs its weights where there are kernels for them."""
    backends = [cuda.attention_backend(config, model, max_model_len)]
    if config.attention == "auto" and not isinstance(backends[0], TorchAttention):
        backends.append(TorchAttention())
    if kernels is not None:
        pack_linears(kernels, model)
        if config.attention == "auto" and can_attend(model):
            backends.insert(0, NativeAttention(kernels, config.block_size))
    return backends


def _max_model_len(config: EngineConfig, model: LoadedModel) -> int:
    if config.max_model_len > model.max_len:
        raise EngineConfigError(
            f"max_model_len is {config.max_model_len}, but the model takes at most {model.max_len} tokens: "
            "lower it, or set it to 0 for the model's own limit"
        )
    return config.max_model_len or model.max_len


def _num_blocks(config: EngineConfig, model: LoadedModel, max_model_len: int) -> int:
    if config.num_blocks:
        return config.num_blocks
    size = block_bytes(model, config.block_size)
    kv_cache_bytes = config.kv_cache_bytes
    if not kv_cache_bytes:
        is_cuda = model.device.type == "cuda"
        kv_cache_bytes = cuda.measured_kv_bytes(config, model, max_model_len) if is_cuda else _DEFAULT_KV_BYTES
    least = min_blocks(config.block_size)
    most = config.max_num_seqs * -(-max_model_len // config.block_size)  # more could never be used
    num_blocks = min(kv_cache_bytes // size, max(most, least))
    if num_blocks < least:
        raise EngineConfigError(
            f"kv_cache_bytes is {kv_cache_bytes}, but a block of {config.block_size} tokens takes {size} bytes: "
            f"set it to {least * size} at the very least"
        )
    return num_blocks
