"""How are figures shown? With their unit, grouped or shortened, and times in UTC, as filters take them."""

from datetime import UTC, datetime

from markupsafe import Markup

_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
NOTHING = "–"


def grouped(value: float | None, digits: int = 0) -> str:
    """1234567 as 1,234,567."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def short(value: float | None) -> str:
    """1234567 as 1.23 M: three digits that count, and what they are multiplied by."""
    if value is None:
        return NOTHING
    for step, letter in _STEPS:
        if abs(value) >= step * 0.9995:
            return f"{_three(value / step)}\u202f{letter}"
    return _three(value)


def span(seconds: float | None) -> str:
    """A length of time: 250 ms, 3.2 s, 4 min 10 s, 2 h 5 min, 3 d 4 h."""
    if seconds is None:
        return NOTHING
    if seconds < 1:
        return f"{seconds * 1000:.0f}\u202fms"
    if seconds < 60:
        return f"{_three(seconds)}\u202fs"
    whole = round(seconds)
    for size, unit, below, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size}\u202f{unit}" + (f" {rest}\u202f{small}" if rest else "")
    return f"{whole}\u202fs"


def money(micros: float | None) -> str:
    """Millionths of the currency as units of it: 1234567 as 1.234567, without zeros at the end beyond the second."""
    if micros is None:
        return NOTHING
    whole, _, part = f"{micros / 1e6:,.6f}".partition(".")
    return f"{whole}.{part.rstrip('0').ljust(2, '0')}"


def percent(part: float | None, of: float = 1.0) -> str:
    """`part` of `of` in per cent."""
    if part is None or of <= 0:
        return NOTHING
    return f"{100 * part / of:.0f}\u202f%"


def moment(at: datetime | None, never: str = NOTHING) -> Markup | str:
    """A time in UTC; on hover what it is where the viewer is, once penstock.js has seen it."""
    if at is None:
        return never
    utc = at.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        utc.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        f"{utc:%Y-%m-%d %H:%M:%S} UTC",
        f"{utc:%Y-%m-%d %H:%M:%S}Z",
    )


def figure(value: object, name: str) -> str:
    """A figure that a worker or a queue tells, in the unit that its name ends with; `figure_name` is the rest of the name."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if name.endswith("_tokens_per_s"):
        return f"{short(value)} tokens/s"
    if name.endswith("_usage"):
        return percent(value)
    if name.endswith("_s"):
        return span(value)
    return grouped(value, 0 if value == int(value) else 3)


def figure_name(name: str) -> str:
    """kv_usage as kv usage, served_tokens_per_s as served: the unit stands with the value."""
    return name.removesuffix("_tokens_per_s").removesuffix("_s").replace("_", " ")


_COUNTED = {
    "jobs": "job",
    "tokens": "token",
    "requests": "request",
    "seqs": "seq",
    "seconds": "second",
    "tenants": "tenant",
}


def unit_of(value: float | None, unit: str) -> str:
    """The unit as it stands after this value: 1 job, 2 jobs."""
    return _COUNTED.get(unit, unit) if value == 1 else unit


FILTERS = {
    "unit_of": unit_of,
    "grouped": grouped,
    "short": short,
    "span": span,
    "money": money,
    "percent": percent,
    "moment": moment,
    "figure": figure,
    "figure_name": figure_name,
}


def _three(value: float) -> str:
    value = float(f"{value:.3g}") if abs(value) < 1000 else value
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"
