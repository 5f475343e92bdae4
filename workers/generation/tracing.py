"""Which spans does an attempt leave? Its wait, its generation with prefill, decode and finish: told when it is over, from times noted anyway."""

from app.clock import Clock
from app.ids import job_name
from app.observe.tracing import Attribute, Tracing
from workers.generation.hand import RunningJob


def trace_attempt(
    tracing: Tracing | None, clock: Clock, job: RunningJob, model: str, *, error: str | None = None
) -> None:
    """The attempt is over, and that is written. `error`: the code of what went wrong.

    GenAI semantic conventions; the model runs in a process of ours, so the spans are internal ones.
    """
    started, ended_at = job.started, job.ended_at
    if tracing is None or started.traceparent is None or ended_at is None:
        return
    now = clock.monotonic()
    epoch = clock.now() - now  # from the monotonic clock to the epoch
    taken_at, first_at = epoch + job.taken_at, job.first_token_at
    about: dict[str, Attribute] = {
        "penstock.job.id": job_name(started.job_id),
        "penstock.tier": started.tier,
        "penstock.attempt": started.attempt,
    }
    tracing.record("queue wait", taken_at - started.waited_s, taken_at, about, parent=started.traceparent)
    operation = "text_completion" if started.request.get("messages") is None else "chat"
    used = job.used()
    generation = tracing.record(
        f"{operation} {model}",
        taken_at,
        epoch + now,
        about
        | {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "penstock",
            "gen_ai.request.model": model,
            "gen_ai.request.max_tokens": int(started.sampling["max_tokens"]),
            "gen_ai.request.temperature": float(started.sampling.get("temperature", 1.0)),
            "gen_ai.request.top_p": float(started.sampling.get("top_p", 1.0)),
            "gen_ai.request.choice.count": started.n,
            "gen_ai.response.model": model,
            "gen_ai.response.finish_reasons": [each.finish_reason or "error" for each in job.choices],
            "gen_ai.usage.input_tokens": used.prompt_tokens,
            "gen_ai.usage.output_tokens": used.completion_tokens,
            "penstock.usage.cached_tokens": used.cached_tokens,
        },
        parent=started.traceparent,
        error=error,
    )
    tracing.record("prefill", taken_at, epoch + (first_at or ended_at), parent=generation)
    if first_at is not None:
        tracing.record("decode", epoch + first_at, epoch + ended_at, parent=generation)
    tracing.record("finish", epoch + ended_at, epoch + now, parent=generation)
