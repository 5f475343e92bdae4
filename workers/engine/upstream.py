"""How do tokens come from a server that speaks OpenAI's API? By one streamed completion for each choice.

What goes wrong is one of four things. The request is refused: it fails. It breaks after its first token: it fails as
retryable. Nothing has come yet: it is sent again, as long as the server is known to answer at all. The server answers
nobody, or refuses our key: UpstreamUnavailable, and the engine ends.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import msgspec
from tokenizers import Tokenizer

from workers.engine.completions import (
    BUSY,
    NOT_OURS,
    REFUSED,
    Choice,
    ModelList,
    NotYet,
    ServedModel,
    exact_piece,
    finish_reason_of,
    message_of,
    read_chunk,
    read_completion,
    refusal_of,
)
from workers.engine.config import EngineConfig
from workers.engine.errors import EngineConfigError, UpstreamUnavailable
from workers.engine.facts import load_tokenizer, model_facts
from workers.engine.fingerprint import text_hash
from workers.engine.load import LoadedEngine
from workers.engine.plain_words import plain_words
from workers.engine.protocol import EngineInfo, SamplingParams
from workers.engine.retokenize import Retokenizer, TextUnreadable
from workers.engine.streamed import ChoiceRequest, LoopThread, Piece, SourceStats, StreamedEngine, StreamFailed
from workers.engine.tokenizer import TokenizerBundle
from workers.engine.upstream_config import UpstreamConfig
from workers.engine.vllm_grammar import structured_outputs_of

logger = logging.getLogger(__name__)

_CONNECT_S = 10.0
_PROBE = "The quick brown fox jumps over the lazy dog, and then"  # a sentence: no server is surprised by that
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_MAX_ERRORS = 3  # of a request that the server breaks on, before we ask whether it breaks on others too


class UpstreamSource:
    """Streams of tokens from a server. Used from one event loop."""

    def __init__(
        self,
        config: UpstreamConfig,
        client: httpx.AsyncClient,
        *,
        model: str,
        tokenizer: Tokenizer,
        bundle: TokenizerBundle,
        eos_token_ids: list[int],
        takes_token_ids: bool,
    ) -> None:
        self._config = config
        self._client = client
        self._model = model
        self._tokenizer = tokenizer
        bos = bundle.special_tokens.get("bos_token")
        self._bos_id = tokenizer.token_to_id(bos) if bos and bundle.add_bos else None
        self._eos_id = eos_token_ids[0] if eos_token_ids else None
        self._takes_token_ids = takes_token_ids
        self._away_since: float | None = None  # when the first of the failures was that no answer has followed

    def fault_of(self, sampling: SamplingParams) -> StreamFailed | None:
        """What the dialect has no words for."""
        if self._config.dialect == "vllm":
            try:
                if sampling.grammar is not None:
                    structured_outputs_of(sampling.grammar)
            except ValueError as error:
                return StreamFailed("grammar_invalid", f"the choice can't be used: {plain_words(str(error))}")
            return None
        if sampling.grammar is not None:
            return StreamFailed("grammar_unsupported", "the upstream's dialect (openai) has no grammars")
        wanted = {
            "top_k": sampling.top_k != 0,
            "min_p": sampling.min_p != 0.0,
            "repetition_penalty": sampling.repetition_penalty != 1.0,
            "min_tokens": sampling.min_tokens != 0,
            "ignore_eos": sampling.ignore_eos,
            "logprobs": sampling.logprobs is not None,
        }
        names = [name for name, is_wanted in wanted.items() if is_wanted]
        if names:
            return StreamFailed("parameter_unsupported", f"the upstream's dialect (openai) has no {', '.join(names)}")
        return None

    def stats(self) -> SourceStats:
        """Nothing is known of a server's inside."""
        return SourceStats()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def stream(self, choice: ChoiceRequest) -> AsyncIterator[Piece]:
        """The choice's new tokens; sent again until the first of them has come. Raises StreamFailed, UpstreamUnavailable."""
        body = self._body(choice)
        num_tries = num_errors = 0
        while True:
            has_begun = False
            try:
                async with aclosing(self._pieces(body, choice.sampling.logprobs or 0)) as pieces:
                    async for piece in pieces:
                        has_begun = True
                        yield piece
                if has_begun:
                    return
                raise NotYet("the upstream ended the stream before its first token", counts=True)  # noqa: TRY301
            except (httpx.TransportError, NotYet) as error:
                if has_begun:
                    message = f"the upstream broke off ({type(error).__name__}: {error})"
                    raise StreamFailed("upstream_failed", message, retryable=True) from error
                num_errors += isinstance(error, NotYet) and error.counts
                is_answered = await self._is_answered(num_errors)
                num_errors += is_answered
                if is_answered and num_errors >= _MAX_ERRORS:
                    message = f"the upstream answers, but not this request: {error}"
                    raise StreamFailed("upstream_failed", message, retryable=True) from error
            await asyncio.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(num_tries, 10)))
            num_tries += 1

    async def probe(self) -> str:
        """The text of a tiny completion. Raises UpstreamUnavailable; StreamFailed where the server refuses the request."""
        body = self._body(_probe_of(self._tokenizer)) | {"stream": False}
        try:
            response = await self._client.post("completions", json=body)
        except httpx.TransportError as error:
            raise UpstreamUnavailable(f"{self._config.url} doesn't answer ({type(error).__name__}: {error})") from error
        if response.status_code in REFUSED:
            raise StreamFailed("upstream_rejected", message_of(response.content))
        if not response.is_success:
            raise UpstreamUnavailable(refusal_of(self._config.url, response.status_code, response.content))
        try:
            found = read_completion(response.content).choices[0]
        except (msgspec.DecodeError, IndexError) as error:
            raise UpstreamUnavailable(
                f"{self._config.url} answers something that isn't a completion: {error}"
            ) from error
        if self._config.dialect == "vllm":
            if found.token_ids is None:
                raise UpstreamUnavailable(f"{self._config.url} returns no token ids: is it vLLM, 0.10.2 or newer?")
            ours = self._tokenizer.decode(found.token_ids, skip_special_tokens=True)
            if ours.strip() != (found.text or "").strip():
                raise UpstreamUnavailable(
                    f"the tokens of {self._config.url} aren't those of our tokenizer: PENSTOCK_MODEL must name its model"
                )
        return found.text or ""

    async def _is_answered(self, num_errors: int) -> bool:
        """After a failure without a token, when it is time to ask: whether the server answers a request that is surely good.

        Raises UpstreamUnavailable where it doesn't, and has answered nobody for too long.
        """
        self._away_since = self._away_since or monotonic()
        is_outage = monotonic() - self._away_since >= self._config.outage_s
        if not is_outage and num_errors < _MAX_ERRORS:
            return False
        try:
            await self.probe()
        except UpstreamUnavailable:
            if is_outage:
                raise
            return False
        except StreamFailed as refused:
            logger.warning("the upstream refuses the probe: %s", refused)  # but it answers
        self._away_since = None
        return True

    async def _pieces(self, body: dict[str, Any], num_top: int) -> AsyncGenerator[Piece]:
        """One try. Raises httpx.TransportError, NotYet, StreamFailed, UpstreamUnavailable."""
        is_exact = self._config.dialect == "vllm"
        retokenizer = None if is_exact else Retokenizer(self._tokenizer)
        async with self._client.stream("POST", "completions", json=body) as response:
            if not response.is_success:
                raise self._refusal(response.status_code, await response.aread())
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                chunk = read_chunk(data)
                self._away_since = None
                for found in chunk.choices:
                    try:
                        piece = exact_piece(found, num_top) if retokenizer is None else self._piece(retokenizer, found)
                    except TextUnreadable as error:
                        raise StreamFailed("upstream_unreadable", str(error)) from error
                    if piece.token_ids or piece.finish_reason:
                        yield piece

    def _piece(self, retokenizer: Retokenizer, found: Choice) -> Piece:
        token_ids = retokenizer.push(found.text or "")
        reason = finish_reason_of(found.finish_reason)
        if reason is not None:
            token_ids += retokenizer.flush()
        if reason == "stop" and self._eos_id is not None:
            token_ids.append(self._eos_id)  # no text has it, and an output that stops ends with it
        return Piece(token_ids, reason)

    def _refusal(self, status: int, content: bytes) -> Exception:
        if status in REFUSED:
            return StreamFailed("upstream_rejected", f"the upstream refuses it: {message_of(content)}")
        text = refusal_of(self._config.url, status, content)
        if status in NOT_OURS:
            return UpstreamUnavailable(text)
        return NotYet(text, counts=status not in BUSY)

    def _body(self, choice: ChoiceRequest) -> dict[str, Any]:
        """A completion request. All values are said, since servers have defaults of their own."""
        sampling = choice.sampling
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": choice.token_ids if self._takes_token_ids else self._text_of(choice.token_ids),
            "stream": True,
            "max_tokens": choice.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": choice.seed,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
        }
        if sampling.logit_bias:
            body["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias.items()}
        if self._config.dialect == "vllm":
            body |= self._vllm_fields(choice)
        return body

    def _vllm_fields(self, choice: ChoiceRequest) -> dict[str, Any]:
        sampling = choice.sampling
        fields: dict[str, Any] = {
            "return_token_ids": True,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "min_tokens": choice.min_tokens,
            "ignore_eos": sampling.ignore_eos and sampling.grammar is None,
        }
        if choice.cache_salt:
            fields["cache_salt"] = text_hash("penstock", choice.cache_salt)  # a tenant's name is none of its business
        if self._config.send_priority:
            fields["priority"] = choice.priority
        if sampling.logprobs is not None:
            fields |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
        if sampling.grammar is not None:
            fields["structured_outputs"] = structured_outputs_of(sampling.grammar)
        return fields

    def _text_of(self, token_ids: list[int]) -> str:
        """The prompt's text, special tokens included, without a BOS that the server adds itself."""
        if token_ids and token_ids[0] == self._bos_id:
            token_ids = token_ids[1:]
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


def _probe_of(tokenizer: Tokenizer) -> ChoiceRequest:
    return ChoiceRequest(
        name="probe",
        token_ids=list(tokenizer.encode(_PROBE, add_special_tokens=False).ids),
        num_generated=0,
        max_tokens=4,
        min_tokens=0,
        seed=0,
        sampling=SamplingParams(max_tokens=4, temperature=0.0),
        priority=0,
        cache_salt="",
    )


def client_of(config: UpstreamConfig, max_streams: int) -> httpx.AsyncClient:
    """A client with one connection for each stream, and some for probes."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each request
    most = max_streams + 4
    return httpx.AsyncClient(
        base_url=config.base_url,
        headers={"Authorization": f"Bearer {config.api_key}"} if config.api_key else {},
        timeout=httpx.Timeout(config.timeout_s, connect=min(_CONNECT_S, config.timeout_s), pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=most),  # the engine bounds its streams
    )


def load_upstream_engine(config: EngineConfig, folder: Path) -> LoadedEngine:
    """An engine over the server; `folder` has the tokenizer and config.json of the server's model, no weights.

    Waits `outage_s` for the server to come up. Raises UpstreamUnavailable, EngineConfigError, ModelNotLoadable.
    """
    if config.upstream is None:
        raise EngineConfigError("no upstream is configured: set PENSTOCK_UPSTREAM_URL")
    bundle, facts = load_tokenizer(config.model, folder), model_facts(folder)
    tokenizer = Tokenizer.from_str(bundle.tokenizer_json)
    loop = LoopThread()
    client = client_of(config.upstream, config.max_num_seqs)
    try:
        served, source = loop.run(_connect(config.upstream, client, tokenizer, bundle, facts.eos_token_ids))
    except BaseException:
        loop.stop(client.aclose())
        raise
    max_model_len = config.max_model_len or served.max_model_len or facts.max_len
    per_sequence = -(-max_model_len // config.block_size)
    info = EngineInfo(
        model=config.model,
        model_hash=text_hash("upstream", served.id, facts.config),
        tokenizer_hash=text_hash(bundle.tokenizer_json),
        settings_hash=text_hash("upstream", config.upstream.url, config.upstream.dialect),
        architecture=facts.architecture,
        device="upstream",
        dtype="unknown",
        num_parameters=0,
        vocab_size=max(facts.vocab_size, tokenizer.get_vocab_size()),
        max_model_len=max_model_len,
        block_size=config.block_size,
        num_blocks=per_sequence * config.max_num_seqs,  # never what limits: the server has its own pool
        max_num_seqs=config.max_num_seqs,
        eos_token_ids=facts.eos_token_ids,
    )
    return LoadedEngine(StreamedEngine(info, source, loop, max_streams=config.max_num_seqs), bundle)


async def _connect(
    config: UpstreamConfig,
    client: httpx.AsyncClient,
    tokenizer: Tokenizer,
    bundle: TokenizerBundle,
    eos_token_ids: list[int],
) -> tuple[ServedModel, UpstreamSource]:
    """Find the model, see how it takes prompts; again and again while the server isn't there."""

    def source_of(model: str, *, takes_token_ids: bool) -> UpstreamSource:
        return UpstreamSource(
            config, client, model=model, tokenizer=tokenizer, bundle=bundle, eos_token_ids=eos_token_ids,
            takes_token_ids=takes_token_ids,
        )  # fmt: skip

    give_up_at = monotonic() + config.outage_s
    while True:
        try:
            served = await _served_model(config, client)
            source = source_of(served.id, takes_token_ids=True)
            try:
                await source.probe()
            except StreamFailed as refused:
                if config.dialect == "vllm":
                    raise EngineConfigError(f"{config.url} refuses a completion: {refused}") from refused
                logger.info("the upstream takes no token ids, so prompts are sent as text: %s", refused)
                source = source_of(served.id, takes_token_ids=False)
                try:
                    await source.probe()
                except StreamFailed as again:
                    raise EngineConfigError(f"{config.url} refuses a completion: {again}") from again
            return served, source
        except UpstreamUnavailable:
            if monotonic() >= give_up_at:
                raise
        await asyncio.sleep(_LONGEST_PAUSE_S / 2)


async def _served_model(config: UpstreamConfig, client: httpx.AsyncClient) -> ServedModel:
    """The model with the configured name, or the only one. Raises UpstreamUnavailable, EngineConfigError."""
    try:
        response = await client.get("models")
    except httpx.TransportError as error:
        raise UpstreamUnavailable(f"{config.url} doesn't answer ({type(error).__name__}: {error})") from error
    if response.status_code in {404, 405} and config.model:
        return ServedModel(config.model)  # a server without a list: the probe shows whether the name is right
    if not response.is_success:
        raise UpstreamUnavailable(refusal_of(config.url, response.status_code, response.content))
    try:
        found = msgspec.json.decode(response.content, type=ModelList).data
    except msgspec.DecodeError as error:
        raise UpstreamUnavailable(f"{config.url}/models isn't a list of models: {error}") from error
    matching = [each for each in found if each.id == config.model] if config.model else found
    if len(matching) != 1:
        names = ", ".join(each.id for each in found) or "none"
        raise EngineConfigError(f"set PENSTOCK_UPSTREAM_MODEL to one of the upstream's models: {names}")
    return matching[0]
