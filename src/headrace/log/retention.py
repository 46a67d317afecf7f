"""Retention of a log's rows: by age, by size, and never past what a consumer still needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from headrace.clock import duration_us
from headrace.errors import DeclarationError
from headrace.log.base import Log, TopicInfo

FOREVER = "forever"
_BYTES = {"b": 1, "byte": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BYTES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


@dataclass(frozen=True, slots=True)
class Keep:
    """The part of a topic that is kept; both None means everything.

    Attributes:
        age_us: entries older than this many microseconds go.
        bytes: the oldest entries go while the topic's bodies take more than this.
    """

    age_us: int | None = None
    bytes: int | None = None

    @classmethod
    def parse(cls, value: str | timedelta | Keep | None) -> Keep:
        """Read what a user writes: a duration, a size, or ``forever``.

        >>> Keep.parse("12 h"), Keep.parse("500 MB"), Keep.parse("forever")
        (Keep(age_us=43200000000, bytes=None), Keep(age_us=None, bytes=500000000), Keep(age_us=None, bytes=None))

        Raises:
            DeclarationError: it is neither.
        """
        if isinstance(value, Keep):
            return value
        if value is None or value == FOREVER:
            return cls()
        text = value.lower() if isinstance(value, str) else ""
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text)
        size = _BYTES.get(found[2]) or _BYTES.get(found[2].removesuffix("s")) if found else None
        try:
            if found and size and (amount := round(float(found[1]) * size)):
                return cls(bytes=amount)
            return cls(age_us=duration_us(text or value))
        except ValueError:
            raise DeclarationError(
                f"cannot read keep={str(value)!r}",
                advice='Write a duration ("7 days", "12 h"), a size ("10 GB") or "forever".',
            ) from None


def apply_retention(
    log: Log,
    keep: Keep,
    needed: Mapping[str, int],
    now_us: int,
    *,
    topics: Iterable[str] | None = None,
    force: bool = False,
) -> dict[str, int]:
    """Prune whole entries that ``keep`` no longer keeps; returns the rows dropped, by topic.

    Args:
        log: opened for writing.
        keep: the same for every topic.
        needed: by topic, the oldest offset that a consumer still needs; a topic that is missing is needed by none.
        now_us: the time that ages are counted from.
        topics: the topics to prune; all of them by default.
        force: prune also what is needed; a consumer then starts at the oldest row left.
    """
    dropped = {}
    known = log.topics()
    for name in known if topics is None else topics:
        if name not in known:
            continue
        offset = _kept_from(log, known[name], keep, now_us)
        if not force:
            offset = min(offset, needed.get(name, offset))
        rows = log.prune(name, before_offset=offset) if offset > known[name].first else 0
        if rows:
            dropped[name] = rows
    return dropped


def _kept_from(log: Log, topic: TopicInfo, keep: Keep, now_us: int) -> int:
    """Offset of the oldest entry that is kept; the topic's end when none is."""
    surplus = 0 if keep.bytes is None else topic.bytes - keep.bytes
    cutoff = 0 if keep.age_us is None else now_us - keep.age_us
    offset = topic.first
    while page := log.extents(topic.name, offset=offset):
        for extent in page:
            if surplus <= 0 and extent.ts_us >= cutoff:
                return offset
            surplus -= extent.bytes
            offset = extent.offset + extent.rows
    return offset
