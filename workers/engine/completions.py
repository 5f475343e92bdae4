"""What does an OpenAI-compatible server's answer say? Its chunks, its errors, its statuses."""

from typing import Any

import msgspec

from workers.engine.plain_words import plain_words
from workers.engine.protocol import FinishReason, Logprob
from workers.engine.streamed import Piece, StreamFailed

REFUSED = frozenset({400, 413, 422})  # what was sent is wrong
NOT_OURS = frozenset({401, 403, 404, 405})  # who sends it, or where to, is wrong: every request would fail so
BUSY = frozenset({408, 425, 429, 502, 503, 504})  # later, says the server or what stands before it


class NotYet(Exception):
    """Nothing can be had of a request now. `counts`: the server broke on it, rather than being away or busy."""

    def __init__(self, message: str, *, counts: bool = False) -> None:
        super().__init__(message)
        self.counts = counts


class Logprobs(msgspec.Struct):
    """Of a chunk's tokens, which vLLM writes as "token_id:<id>"."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class Choice(msgspec.Struct):
    """What is read of a choice."""

    text: str | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: Logprobs | None = None


class Completion(msgspec.Struct):
    """What is read of a completion, or of a chunk of one; unknown fields are ignored."""

    choices: list[Choice] = []
    error: Any = None


class ServedModel(msgspec.Struct):
    """What is read of a model in a server's list. Only vLLM and those that follow it say the length."""

    id: str
    max_model_len: int | None = None


class ModelList(msgspec.Struct):
    """`GET /v1/models`."""

    data: list[ServedModel]


_decoder = msgspec.json.Decoder(Completion)


def read_completion(content: bytes | str) -> Completion:
    """Raises msgspec.DecodeError."""
    return _decoder.decode(content)


def read_chunk(data: str) -> Completion:
    """A chunk without an error in it. Raises NotYet, StreamFailed."""
    try:
        chunk = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise NotYet(f"the upstream's stream can't be read: {error}", counts=True) from error
    if chunk.error is None:
        return chunk
    code = chunk.error.get("code") if isinstance(chunk.error, dict) else None
    message = message_of(data.encode())
    if code in REFUSED:
        raise StreamFailed("upstream_rejected", f"the upstream refuses it: {message}")
    raise NotYet(f"the upstream failed: {message}", counts=True)


def exact_piece(found: Choice, num_top: int) -> Piece:
    """A chunk of vLLM's, with its token ids and the `num_top` best logprobs. Raises NotYet for one without ids."""
    token_ids = found.token_ids or []
    if found.text and not token_ids:
        raise NotYet("the upstream sent text without token ids", counts=True)
    logprobs: tuple[Logprob, ...] = ()
    if found.logprobs is not None:
        each = found.logprobs
        tops = each.top_logprobs or [None] * len(each.tokens)
        logprobs = tuple(_logprob(value, top, num_top) for value, top in zip(each.token_logprobs, tops, strict=True))
    return Piece(token_ids, finish_reason_of(found.finish_reason), logprobs)


def _logprob(value: float | None, top: dict[str, float] | None, num_top: int) -> Logprob:
    best = sorted((top or {}).items(), key=lambda item: -item[1])[:num_top]  # the chosen one may be there as one more
    ids = [int(name.removeprefix("token_id:")) for name, _ in best]
    return Logprob(value or 0.0, ids, [logprob for _, logprob in best])


def finish_reason_of(reason: str | None) -> FinishReason | None:
    """Ours for theirs. Raises StreamFailed for one that means a failure."""
    if not reason:
        return None
    if reason in {"abort", "error"}:
        raise StreamFailed("upstream_failed", f"the upstream ended it with {reason!r}", retryable=True)
    return "length" if reason == "length" else "stop"


def message_of(content: bytes) -> str:
    """The words of an error, in any of the forms in which servers give it, without what it may quote of a request."""
    try:
        document = msgspec.json.decode(content)
    except msgspec.DecodeError:
        document = content.decode(errors="replace")
    for name in ("error", "message", "detail"):
        if isinstance(document, dict) and document.get(name):
            document = document[name]
    return plain_words(str(document))


def refusal_of(url: str, status: int, content: bytes) -> str:
    """A status in words, with advice where there is some."""
    advice = ""
    if status in {401, 403}:
        advice = " (check PENSTOCK_UPSTREAM_API_KEY)"
    elif status in NOT_OURS:
        advice = " (check PENSTOCK_UPSTREAM_URL and PENSTOCK_UPSTREAM_MODEL)"
    return f"{url} answers {status}: {message_of(content)}{advice}"
