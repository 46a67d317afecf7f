"""Numbers with their units, as people read them."""

from __future__ import annotations

from datetime import UTC, datetime


def bytes_text(size: int) -> str:
    """Return a size in bytes.

    >>> bytes_text(0), bytes_text(999), bytes_text(12_345), bytes_text(3_400_000_000)
    ('0 B', '999 B', '12.3 kB', '3.4 GB')
    """
    number, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while number >= 999.95 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.0f} B" if units[0] == "B" else f"{number:.1f} {units[0]}"


def rate_text(per_second: float) -> str:
    """Return a rate.

    >>> rate_text(0), rate_text(0.25), rate_text(12_345.6)
    ('0/s', '0.25/s', '12,346/s')
    """
    if not per_second:
        return "0/s"
    return f"{per_second:.2g}/s" if per_second < 10 else f"{per_second:,.0f}/s"


def age_text(seconds: float) -> str:
    """Return how long ago something was.

    >>> age_text(0.2), age_text(59), age_text(150), age_text(7300), age_text(200_000)
    ('just now', '59 s', '2 min', '2 h', '2 d')
    """
    if seconds < 1:
        return "just now"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def time_text(ts_us: int | None) -> str:
    """Return a time in UTC, to the millisecond; "–" where there is none.

    >>> time_text(1_622_620_132_123_000), time_text(0)
    ('2021-06-02 07:48:52.123', '–')
    """
    if not ts_us:
        return "–"
    try:
        return datetime.fromtimestamp(ts_us / 1e6, UTC).isoformat(" ", "milliseconds").removesuffix("+00:00")
    except (OverflowError, ValueError, OSError):
        return f"{ts_us} µs"
