"""What does Penstock cost without a model? An engine that makes tokens up: same contract, same scheduler, no torch.

A token depends only on (seed, choice, position), so a resumed or preempted request goes on as if nothing had happened.
"""

import hashlib
import os
import signal
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from workers.engine.blocks import BlockPool
from workers.engine.config import EngineConfig
from workers.engine.engine import PagedEngine, Sampled
from workers.engine.errors import EngineConfigError, ModelNotLoadable
from workers.engine.noise import mix_64, row_key
from workers.engine.protocol import EngineInfo, Logprob
from workers.engine.scheduler import Chunk, Scheduler, StepPlan
from workers.engine.speculate import Speculator
from workers.engine.tokenizer import TokenizerBundle, byte_bundle, load_bundle

_DEFAULT_BLOCKS = 4096
_DEFAULT_MODEL_LEN = 8192
_SPACE = "Ġ"  # byte-level BPE's way to write a space


class NullOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may go wrong with a null engine, from `engine_options`: for tests of those who watch it."""

    poison_token: int = -1  # a prompt with this token kills the process
    poison_at: int = 0  # once so many tokens of it were generated; 0 = as soon as the prompt is run
    poison_hangs: bool = False  # it makes no step any more, instead of dying
    garble_file: str = ""  # while this file exists, the tokens are wrong
    leak_mib_per_step: int = 0  # memory that each step takes and never gives back


class NullEngine(PagedEngine):
    """`PagedEngine` without a model: printable tokens at a chosen speed (`null_*` in the config)."""

    def __init__(self, config: EngineConfig, sleep: Callable[[float], None] = time.sleep) -> None:
        self.tokenizer = null_tokenizer(config)
        tokenizer = Tokenizer.from_str(self.tokenizer.tokenizer_json)
        eos_token = self.tokenizer.special_tokens.get("eos_token")
        eos_id = tokenizer.token_to_id(eos_token) if eos_token else None
        num_blocks = config.num_blocks or _DEFAULT_BLOCKS
        info = EngineInfo(
            model=config.model or "null",
            model_hash="null",
            tokenizer_hash=hashlib.sha256(self.tokenizer.tokenizer_json.encode()).hexdigest(),
            settings_hash=f"null:{config.null_stop_ratio}",
            architecture="null",
            device="cpu",
            dtype="none",
            num_parameters=0,
            vocab_size=tokenizer.get_vocab_size(),
            max_model_len=min(config.max_model_len or _DEFAULT_MODEL_LEN, num_blocks * config.block_size),
            block_size=config.block_size,
            num_blocks=num_blocks,
            max_num_seqs=config.max_num_seqs,
            eos_token_ids=[] if eos_id is None else [eos_id],
            max_batch_tokens=config.max_batch_tokens,
        )
        scheduler = Scheduler(
            BlockPool(num_blocks, config.block_size),
            max_num_seqs=config.max_num_seqs,
            max_batch_tokens=config.max_batch_tokens,
            watermark_ratio=config.watermark_ratio,
            prefix_cache=config.prefix_cache,
            speculator=Speculator(config.speculative_tokens) if config.speculative_tokens else None,
        )
        model = _NullModel(config, _options(config), printable_ids(tokenizer), eos_id, sleep)
        super().__init__(info, scheduler, model, slow_step_s=config.slow_step_s)


class _NullModel:
    """Draws each token from a hash of where it stands."""

    def __init__(
        self,
        config: EngineConfig,
        options: NullOptions,
        token_ids: list[int],
        eos_id: int | None,
        sleep: Callable[[float], None],
    ) -> None:
        self._options = options
        self._leaked: list[bytes] = []
        self._token_ids = token_ids
        self._eos_id = eos_id
        self._stop_below = int(config.null_stop_ratio * 2**32) if eos_id is not None else 0
        self._step_s = config.null_step_s
        self._s_per_token = 1 / config.null_tokens_per_s if config.null_tokens_per_s else 0.0
        self._sleep = sleep

    def run(self, plan: StepPlan) -> Items[Sampled]:
        self._misbehave(plan)
        sampled = [
            self._draw(chunk, place) for chunk in plan.chunks if chunk.samples for place in range(1 + len(chunk.guess))
        ]
        pause_s = max(self._step_s, len(sampled) * self._s_per_token)
        if plan.chunks and pause_s > 0:
            self._sleep(pause_s)
        return sampled

    def _misbehave(self, plan: StepPlan) -> None:
        options = self._options
        if options.leak_mib_per_step:
            self._leaked.append(b"x" * (options.leak_mib_per_step << 20))
        if options.poison_token < 0:
            return
        for chunk in plan.chunks:
            sequence = chunk.sequence
            prompt = sequence.token_ids[: sequence.num_prompt_tokens]
            if options.poison_token in prompt and sequence.num_generated >= options.poison_at:
                while options.poison_hangs:
                    time.sleep(1)
                os.kill(os.getpid(), signal.SIGKILL)

    def _draw(self, chunk: Chunk, place: int) -> Sampled:
        sequence = chunk.sequence
        sampling = sequence.sampling
        key = row_key(sampling.seed, sequence.choice, len(sequence.token_ids) + place)
        if self._options.garble_file and Path(self._options.garble_file).exists():
            key ^= 1 << 33
        token_id = self._token_ids[(key >> 32) % len(self._token_ids)]
        if self._stop_below and sequence.num_generated + place >= sampling.min_tokens:
            is_stop = mix_64(key) & 0xFFFFFFFF < self._stop_below
            token_id = self._eos_id if is_stop and self._eos_id is not None else token_id
        if sampling.logprobs is None:
            return Sampled(token_id)
        top_ids = [token_id, *(other for other in self._token_ids if other != token_id)][: sampling.logprobs]
        return Sampled(token_id, Logprob(-0.5, top_ids, [-0.5 - rank for rank in range(len(top_ids))]))


def _options(config: EngineConfig) -> NullOptions:
    try:
        return msgspec.convert(config.engine_options, NullOptions)
    except msgspec.ValidationError as error:
        raise EngineConfigError(f"engine_options: {error}") from error


def null_tokenizer(config: EngineConfig) -> TokenizerBundle:
    """The tokenizer of `config.model`'s folder, or one of bytes where that is empty. Raises ModelNotLoadable."""
    if not config.model:
        return byte_bundle(config.null_vocab_size)
    if not (Path(config.model) / "tokenizer.json").is_file():
        raise ModelNotLoadable(f"{config.model} has no tokenizer.json; leave `model` empty for a tokenizer of bytes")
    return load_bundle(config.model)


def printable_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids of the tokens that are plain ASCII text, in ascending order; never empty."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    found = [
        token_id
        for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items()
        if token not in special and all(" " < letter <= "~" for letter in token.replace(_SPACE, "x"))
    ]
    return sorted(found) or [0]
