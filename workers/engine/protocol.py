"""What does an engine take, what does it give back? The contract that every engine keeps.

An engine knows requests and tokens, never jobs or text. One engine serves one model. It isn't thread-safe: one loop
calls `add`, `abort` and `step`.
"""

from typing import Literal, Protocol

import msgspec

from workers.engine.flight import Recorder

FinishReason = Literal["stop", "length"]


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What an output must look like, from its first token to EOS."""

    kind: Literal["json_schema", "json_object", "regex", "choice", "lark"]
    text: str = ""  # the schema, regex or grammar; for "choice" a JSON list of texts

    @property
    def noun(self) -> str:
        """What its sender calls it."""
        nouns = {"json_schema": "JSON schema", "json_object": "JSON object", "lark": "Lark grammar"}
        return nouns.get(self.kind, self.kind)


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one request's tokens are chosen. All values were validated at the edge (app.jobs); the names are OpenAI's."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 = no limit
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None  # None = none; k = the chosen token's and the k best ones'
    seed: int = 0  # unsigned 63 bits; with (choice, position, token id) it fixes all randomness
    ignore_eos: bool = False
    stop_repeating: int = 0  # k >= 2 = end with "stop" when the output repeats a pattern k times; 0 = never
    grammar: Grammar | None = None  # goes before min_tokens and ignore_eos: what it allows decides when the output ends
    speculate: bool = True  # let the engine guess ahead, where it does; the tokens are the same either way


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One job as the engine sees it: a prompt and `n` choices to generate from it."""

    id: str
    prompt_ids: list[int]
    sampling: SamplingParams
    n: int = 1
    priority: int = 0  # lower runs first, and may take the place of higher ones
    cache_salt: str = ""  # prefix blocks are shared only under the same salt (the tenant)
    resume: list[list[int]] = []  # tokens already generated, by choice: positions go on from there


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural log of the probability of a generated token and of the best ones, before temperature and filters."""

    chosen: float
    top_ids: list[int]
    top_logprobs: list[float]


class TokenDelta(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of one choice. `offset` counts generated tokens from 0, resumed ones included."""

    request_id: str
    choice: int
    offset: int
    token_ids: list[int]  # a final EOS token is included and counted
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0  # prompt tokens that came from the prefix cache; set on a choice's first delta
    logprobs: list[Logprob] = []


class RequestFailed(msgspec.Struct, frozen=True, array_like=True):
    """A request that can't be served; its batch mates go on."""

    request_id: str
    code: str  # a public error code, e.g. "prompt_too_long"
    message: str
    retryable: bool = False  # whether it may go well another time: what serves it broke, not it


class TierLoad(msgspec.Struct, frozen=True, array_like=True):
    """What one tier has in the engine, running and waiting."""

    sequences: int = 0
    tokens: int = 0  # prompt and output so far, and the output that is still expected


class Moved(msgspec.Struct, frozen=True, array_like=True):
    """A choice of a request left the batch, since others needed its KV pages; or came back into it."""

    request_id: str
    choice: int
    is_back: bool


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's state after a step."""

    step: int = 0  # grows as long as work goes on; one that stands still while there is work is a hang
    running: int = 0  # sequences in the batch
    waiting: int = 0  # sequences admitted to the engine, not in the batch
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    token_room: int = 0  # tokens (prompt + expected output) of new work, of the lowest tier, that it could take in now
    preemptions: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    guessed_tokens: int = 0  # by speculation
    accepted_tokens: int = 0  # those of them that were right
    token_capacity: int = 0  # tokens that the pool holds above the admission watermark
    sequence_capacity: int = 0  # sequences that may be in the engine, running or waiting, before it takes no more
    load: dict[int, TierLoad] = {}  # by priority
    batch_tokens: int = 0  # that a step may feed at present: less than configured while the device lacks memory
    memory_shortages: int = 0  # steps that the device had no room for; they were repeated with less

    @property
    def held_tokens(self) -> int:
        """What all that is in the engine has and is expected to bring: what a full engine is worth, whatever it is that fills it."""
        return sum(load.tokens for load in self.load.values())

    def room_for(self, priority: int) -> int:
        """Tokens of new work at `priority` that it could take in now: what runs at higher numbers can be taken from it."""
        above = [load for rank, load in self.load.items() if rank <= priority]
        if sum(load.sequences for load in above) >= self.sequence_capacity:
            return 0
        return max(0, self.token_capacity - sum(load.tokens for load in above))


class SlowStep(msgspec.Struct, frozen=True, array_like=True):
    """What a step had to do that took longer than it should."""

    seconds: float
    sequences: int
    prefill_tokens: int  # fed of prompts, and of what a preempted or resumed sequence had generated before
    decode_tokens: int  # fed to go on by one, guesses included
    preempted: int  # sequences that gave up their pages for it


class StepOutput(msgspec.Struct, frozen=True, kw_only=True):
    """All that one step brought forth."""

    deltas: list[TokenDelta] = []
    failed: list[RequestFailed] = []
    moved: list[Moved] = []
    stats: EngineStats = EngineStats()
    slow: SlowStep | None = None
    profile: str = ""  # the file of a profile that this step completed


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is loaded: sent once, when the engine is ready."""

    model: str  # the path or id it was loaded from
    model_hash: str  # of config and weights' names, sizes and bytes
    tokenizer_hash: str
    settings_hash: str  # of whatever else decides tokens: dtype, quantisation, backend
    architecture: str
    device: str
    dtype: str
    num_parameters: int  # 0 = not known
    vocab_size: int
    max_model_len: int
    block_size: int
    num_blocks: int
    max_num_seqs: int
    eos_token_ids: list[int]
    max_batch_tokens: int = 0


class Engine(Protocol):
    """Tokens in, tokens out."""

    recorder: Recorder  # told before whatever may kill the process; set by the process's main

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        ...

    def add(self, request: Request) -> None:
        """Take a request in. One that can never be served is reported by the next `step` as failed, not raised."""
        ...

    def abort(self, request_id: str, choice: int | None = None) -> None:
        """Forget a request (or one of its choices) at once and free its blocks; unknown ids are ignored."""
        ...

    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        ...

    def step(self) -> StepOutput:
        """Bring the work on; return what came of it: one forward pass, or what came in since from elsewhere.

        An engine whose tokens are made elsewhere waits for them, at most 20 ms, and may return without any.
        Raises EngineError where nothing can be served any more: the engine is of no use then.
        """
        ...

    def stats(self) -> EngineStats:
        """The state now."""
        ...

    def close(self) -> None:
        """Drop all work and let go of processes and connections. The last call."""
        ...
