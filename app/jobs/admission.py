"""May this job come in now? Asked before its tokens are counted, answered from memory: which refusal, and when it is worth asking again."""

import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from app.clock import Clock
from app.errors import DeadlineUnreachable, Overloaded, PenstockError, ShareExceeded
from app.jobs.ceilings import max_wait_s
from app.jobs.lengths import LengthBook
from app.jobs.loads import Hold, LoadBoard
from app.jobs.models import Model
from app.jobs.pool_figures import PoolFigures
from app.jobs.request import JobRequest
from app.quotas.bookings import HORIZON_S, IDLE_PART, Bookings
from app.quotas.pressure import (
    POOL_PARTS,
    Ask,
    Ceilings,
    Refusal,
    drain_of_tenant,
    judge,
    longest_wait_s,
    predicted_wait_s,
)
from app.settings import Settings

MAX_RETRY_AFTER_S = int(HORIZON_S)  # the openai client gives up on more
_TOKENS_PER_CHAR = 0.25  # of usual text, until a model's own figure is known
_DENSITY_DECAY = 0.98  # a prompt's weight in that figure falls to a third after 50 more
_ENOUGH_BYTES = 64 * 2**10  # of each end of a body, to recognise it by
_MAX_AGE_S = 60.0  # older figures say nothing: better a promise too many than a gate that nobody opens any more
_UNKNOWN_RETRY_S = 30.0  # where no rate says when there is room again
_QUEUED_UP = {"tier_wait", "share", "booked"}  # who is refused for these gets a place of its own to come back at
_JITTER = 0.1  # of what is left to wait
# Who comes back at its time was promised room: a prediction that was off by so little doesn't send it away again.
_TOLERANCE = 1.05


@dataclass(frozen=True, slots=True)
class Applicant:
    """Who asks, for what. `digest` is the same when the same request comes again.

    `tokens`: of many jobs of one tier that come together, `request` the one with the earliest deadline; None: of the one request.
    """

    tenant_id: str
    request: JobRequest
    digest: bytes
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A model that can't take the job, and why."""

    applicant: Applicant
    model: Model
    figures: PoolFigures
    ask: Ask
    line: str  # those who share one drain: pool, tier, tenant
    refusal: Refusal


def digest_of(tenant_id: str, key: str | None, body: bytes) -> bytes:
    """What a request is recognised by when it comes again: its Idempotency-Key, or its body."""
    ends = body if len(body) <= 2 * _ENOUGH_BYTES else body[:_ENOUGH_BYTES] + body[-_ENOUGH_BYTES:]
    said = b"key " + key.encode() if key is not None else b"body %d " % len(body) + ends
    return hashlib.blake2b(tenant_id.encode() + b"\x00" + said, digest_size=16).digest()


def _num_chars(request: JobRequest) -> int:
    """Of the prompt, where it is text; 0 of token ids."""
    if request.messages is not None:
        return sum(len(each.content or "") for each in request.messages)
    return len(request.prompt) if isinstance(request.prompt, str) else 0


class Density:
    """How many tokens is a character of a prompt? By model, from the prompts that were counted; an estimate is enough to refuse by."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}  # tokens, characters

    def learn(self, model: str, *, num_chars: int, num_tokens: int) -> None:
        """A prompt was counted."""
        if num_chars:
            tokens, chars = self._sums.get(model, (0.0, 0.0))
            self._sums[model] = tokens * _DENSITY_DECAY + num_tokens, chars * _DENSITY_DECAY + num_chars

    def of(self, model: str) -> float:
        """Tokens a character."""
        tokens, chars = self._sums.get(model, (_TOKENS_PER_CHAR, 1.0))
        return tokens / chars


def size_of(request: JobRequest, settings: Settings, *, tokens_per_char: float = _TOKENS_PER_CHAR) -> int:
    """About how many tokens the job may need: prompt, by its characters, + n x max_tokens."""
    num_ids = 0 if request.prompt is None or isinstance(request.prompt, str) else len(request.prompt)
    prompt = num_ids + int(_num_chars(request) * tokens_per_char)
    return 1 + prompt + request.n * (request.max_tokens or settings.default_max_tokens)


def ceilings_of(tier: str, settings: Settings) -> Ceilings:
    """The tier's, as they are configured."""
    tokens = {
        "interactive": settings.max_queued_tokens_interactive,
        "standard": settings.max_queued_tokens_standard,
        "batch": settings.max_queued_tokens_batch,
    }[tier]
    return Ceilings(max_wait_s(tier, settings), tokens, int(settings.max_queued_tokens * POOL_PARTS[tier]))


def objectives_of(settings: Settings) -> dict[str, float]:
    """Seconds within which each tier's jobs should start."""
    return {
        "interactive": settings.objective_interactive_s,
        "standard": settings.objective_standard_s,
        "batch": settings.objective_batch_s,
    }


class Admission:
    """The gate of one API process. It keeps no promise and takes none back: a job that was accepted isn't its matter any more."""

    def __init__(
        self,
        settings: Settings,
        loads: LoadBoard,
        lengths: LengthBook,
        *,
        clock: Clock,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._loads = loads
        self._lengths = lengths
        self._clock = clock
        self._draw = draw
        self._bookings = Bookings()
        self._density = Density()
        self._forgot_at = clock.monotonic()

    def look(self, applicant: Applicant, model: Model) -> Verdict | None:
        """Why this model can't take the job now; None where it can. Waits for nothing."""
        figures = self._loads.figures(model.pool)
        if figures is None or (self._loads.age_s(model.pool) or 0.0) > _MAX_AGE_S:
            return None  # nothing is known: to refuse everybody would be a lie, too
        now = self._clock.monotonic()
        self._forget(now)
        ask = self._ask(applicant, model, figures)
        line = f"{model.pool} {ask.tier} {applicant.tenant_id}"
        refusal = self._judge(figures, ask, ceilings_of(ask.tier, self._settings), line, applicant.digest, now)
        if refusal is None:
            self._bookings.leave(applicant.digest)
            return None
        return Verdict(applicant, model, figures, ask, line, refusal)

    def refuse(self, verdict: Verdict) -> PenstockError:
        """The answer for a job that none of its models can take: this gives it the place that it is told."""
        refusal, rate = verdict.refusal, drain_of_tenant(verdict.figures.load, verdict.ask)
        after_s = _UNKNOWN_RETRY_S if math.isinf(refusal.over_s) else refusal.over_s
        if rate is not None and refusal.reason in _QUEUED_UP:
            now, tokens = self._clock.monotonic(), verdict.ask.tokens
            digest = verdict.applicant.digest
            if not math.isinf(refusal.over_s):
                after_s += tokens / rate  # room falls free by whole jobs
            after_s = self._bookings.book(digest, verdict.line, now, over_s=after_s, tokens=tokens, rate=rate)
        return self._error(verdict, after_s)

    def foretell(self, verdict: Verdict) -> PenstockError:
        """The same answer for one who only asks: it is given no place, and the time may be longer."""
        over_s = verdict.refusal.over_s
        return self._error(verdict, _UNKNOWN_RETRY_S if math.isinf(over_s) else over_s)

    def hold(self, applicant: Applicant, model: Model) -> Hold:
        """Count the job in from here on; see `LoadBoard.take`."""
        size = self._size(applicant, model)
        return self._loads.take(model.pool, applicant.request.tier, applicant.tenant_id, size)

    def learn(self, request: JobRequest, model: Model, num_prompt_tokens: int) -> None:
        """The prompt was counted: the next one's size is estimated better."""
        self._density.learn(model.name, num_chars=_num_chars(request), num_tokens=num_prompt_tokens)

    def size(self, request: JobRequest, model: Model) -> int:
        """About how many tokens the job may need."""
        return size_of(request, self._settings, tokens_per_char=self._density.of(model.name))

    def _size(self, applicant: Applicant, model: Model) -> int:
        return self.size(applicant.request, model) if applicant.tokens is None else applicant.tokens

    def _ask(self, applicant: Applicant, model: Model, figures: PoolFigures) -> Ask:
        request, tenant = applicant.request, applicant.tenant_id
        lengths = self._lengths.of(tenant, model.name)
        max_tokens = request.max_tokens or self._settings.default_max_tokens
        # Without evidence nobody is refused for what it might write.
        load = figures.load
        service_s = max_tokens * (load.pace_of(request.tier) or 0.0) * lengths.usual if lengths.is_known else 0.0
        return Ask(
            request.tier,
            self._size(applicant, model),
            self._loads.own_tokens(model.pool, request.tier, tenant),
            self._loads.weight_of(model.pool, request.tier, tenant),
            request.deadline_s,
            service_s,
            max_tokens * (load.slow_pace_of(request.tier) or 0.0) * lengths.most,
            self._loads.owed_tokens(model.pool, request.tier, tenant),
        )

    def _judge(
        self, figures: PoolFigures, ask: Ask, ceilings: Ceilings, line: str, digest: bytes, now: float
    ) -> Refusal | None:
        """The pool's own word, and that requests which were refused before come first."""
        refusal, wait_s = judge(figures.load, ask, ceilings), predicted_wait_s(figures.load, ask)
        is_due = self._bookings.is_due(digest, now)
        if refusal is not None:
            is_by_wait = refusal.reason in _QUEUED_UP and refusal.unit == "s" and wait_s is not None
            if is_due and is_by_wait and (wait_s or 0.0) <= longest_wait_s(ask, ceilings) * _TOLERANCE:
                return None
            return refusal
        if is_due or wait_s is None:
            return None
        if wait_s <= longest_wait_s(ask, ceilings) * IDLE_PART:
            return None
        if self._bookings.others_first(line, now):
            return Refusal("booked", 0.0, wait_s, ceilings.wait_s)
        return None

    def _error(self, verdict: Verdict, after_s: float) -> PenstockError:
        refusal, ask, model, figures = verdict.refusal, verdict.ask, verdict.model, verdict.figures
        retry_after_s = max(1, min(MAX_RETRY_AFTER_S, math.ceil(after_s * (1 + _JITTER * self._draw()))))
        about = {
            "reason": refusal.reason,
            "model": model.name,
            "tier": ask.tier,
            "limit": refusal.limit,
            "predicted_s": None if refusal.wait_s is None else round(refusal.wait_s, 3),
            "figures": figures.source,
            "retry_after_s": retry_after_s,
        }
        again = f"Come back in {retry_after_s} s{_age(figures)}. Nothing was written"
        if refusal.reason == "deadline":
            return DeadlineUnreachable(
                f"deadline_s: the job would probably end after {refusal.wait_s:.1f} s, later than its deadline of "
                f"{refusal.limit:g} s; a later deadline, fewer max_tokens or a higher tier may do. {again}",
                param="deadline_s", **about,
            )  # fmt: skip
        if refusal.is_own:
            return ShareExceeded(
                f"tier: your own work that waits in {ask.tier} for {model.name!r} takes up more than your share "
                f"({_limit(refusal)}). {again}",
                param="tier", **about,
            )  # fmt: skip
        return Overloaded(
            f"tier: {model.name!r} has no room for more {ask.tier} jobs ({_limit(refusal)}); another tier, or "
            f"fallback_model, may have. {again}",
            param="tier", **about,
        )  # fmt: skip

    def _forget(self, now: float) -> None:
        if now - self._forgot_at >= 1.0:
            self._bookings.forget(now)
            self._forgot_at = now


def _limit(refusal: Refusal) -> str:
    if refusal.unit == "tokens" or refusal.wait_s is None:
        return f"at most {refusal.limit:,.0f} tokens may wait"
    places = "; what falls free goes to requests that were refused before" if refusal.reason == "booked" else ""
    return f"a wait of about {refusal.wait_s:.1f} s is predicted, at most {refusal.limit:g} s is promised{places}"


def _age(figures: PoolFigures) -> str:
    return "" if figures.source == "redis" else " (Redis doesn't answer: the queue was counted a while ago)"
