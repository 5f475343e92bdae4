"""How are callers told of their limits? RateLimit fields of the IETF's draft, and the x-ratelimit fields that OpenAI's clients know.

Sources: draft-ietf-httpapi-ratelimit-headers-11 (structured fields, RFC 9651); OpenAI's API, "Rate limits in headers".
"""

from collections.abc import Sequence

from app.quotas.buckets import Standing, Unit

_SPREAD = 0.25  # of what is left to wait: those who were refused together don't come back together


def rate_headers(standings: Sequence[Standing]) -> dict[str, str]:
    """The fields for a caller with these limits; none where it has none."""
    if not standings:
        return {}
    headers = {
        "RateLimit-Policy": ", ".join(_policy(each) for each in standings),
        "RateLimit": ", ".join(_service_limit(each) for each in standings),
    }
    units: tuple[Unit, ...] = ("requests", "tokens")
    for unit in units:
        of_unit = [each for each in standings if each.bucket.unit == unit]
        if of_unit:
            tightest = min(of_unit, key=lambda each: each.remaining)
            headers[f"x-ratelimit-limit-{unit}"] = str(tightest.bucket.rate.burst)
            headers[f"x-ratelimit-remaining-{unit}"] = str(tightest.remaining)
            headers[f"x-ratelimit-reset-{unit}"] = duration(tightest.reset_us)
    return headers


def retry_after_s(wait_us: int, draw: float) -> int:
    """Seconds to wait, rounded up: never less than `wait_us`, and up to a quarter and a second more. `draw` is uniform in [0, 1)."""
    return -(-(wait_us + int(draw * (1_000_000 + _SPREAD * wait_us))) // 1_000_000)


def duration(span_us: int) -> str:
    """A span as Go writes it: `0s`, `120ms`, `8.64s`, `6m0s`, `1h0m0s`; rounded up to milliseconds."""
    ms = -(-span_us // 1000)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    seconds = f"{rest_ms // 1000}.{rest_ms % 1000:03}".rstrip("0").rstrip(".")
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _policy(standing: Standing) -> str:
    """The limit itself. A burst in the time that it takes to come back is what it allows in the long run."""
    rate = standing.bucket.rate
    unit = "" if standing.bucket.unit == "requests" else f';qu="{standing.bucket.unit}"'
    return f'"{standing.bucket.policy}";q={rate.burst}{unit};w={max(1, -(-rate.burst * 60 // rate.per_minute))}'


def _service_limit(standing: Standing) -> str:
    """What is left, and for how long there is no more."""
    span = f";t={-(-standing.next_us // 1_000_000)}" if standing.next_us else ""
    return f'"{standing.bucket.policy}";r={standing.remaining}{span}'
