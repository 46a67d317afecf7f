"""Windows over a stream, as a user declares them: what of, then what is made of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from headrace.clock import duration_us
from headrace.errors import DeclarationError
from headrace.grade import metrics
from headrace.grade.metrics import Aggregate
from headrace.grade.windows.window import WindowSpec
from headrace.pipeline.declared import Declared, Root
from headrace.plan.operators import Windows

if TYPE_CHECKING:
    from headrace.pipeline.stream import Stream


# Added to a time, and ten times this long remembered, it stays below 64 bits.
_LONGEST_US = 2**56


def microseconds(duration: str | int | timedelta, what: str) -> int:
    """A duration that a user gave.

    Raises:
        DeclarationError: it is none.
    """
    try:
        found = duration_us(duration)  # type: ignore[arg-type]  # a number is refused there
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DeclarationError(f"{what}={duration!r}: {error}", advice='Give one such as "1 min".') from error
    if found > _LONGEST_US:
        raise DeclarationError(f"{what}={duration!r} is longer than 2,283 years", advice='Give one such as "1 min".')
    return found


class Windowed:
    """Windows over a stream; `agg`, or a word for one aggregate, says what is made of each.

    A window's line has ``window_start``, ``window_end``, the columns it is grouped by, ``rows``, and what was asked.
    """

    def __init__(self, root: Root, spec: WindowSpec, time: str | None, stream_of: Callable[[Declared], Stream]) -> None:
        self._root = root
        self._stream_of = stream_of
        self._spec = spec
        self._time = time

    def agg(self, **aggregates: Aggregate) -> Stream:
        """Several aggregates by the names of their columns: ``agg(ErrorAvg=hr.metrics.mean("error"))``."""
        if not aggregates:
            raise DeclarationError("window(…).agg() makes nothing", advice="Name at least one aggregate.")
        for name, one in aggregates.items():
            if not isinstance(one, Aggregate):
                raise DeclarationError(
                    f"agg({name}={one!r}) is no aggregate", advice='For example hr.metrics.mean("error").'
                )
            if name in ("window_start", "window_end", "rows", "final", *self._spec.by):
                raise DeclarationError(f"agg({name}=…): windows have a column of that name", advice="Choose another.")
        source, operations = self._root
        spec = replace(self._spec, aggregates=tuple(aggregates.items()))
        value = next(iter(aggregates)) if len(aggregates) == 1 else None
        numbers = [name for name, one in aggregates.items() if one.kind not in ("unique", "first", "last")]
        declared = Declared(source.host, Windows(spec, self._time), source, operations)
        declared.value = value or (numbers[0] if len(numbers) == 1 else None)
        declared.by, declared.span_us = spec.by, spec.size_us
        declared.span_rows = -(-spec.rows // spec.every_rows) if spec.rows else 0
        source.host.add(declared)
        return self._stream_of(declared)

    def mean(self, column: str) -> Stream:
        """The mean of a column, under its own name."""
        return self.agg(**{column: metrics.mean(column)})

    def median(self, column: str) -> Stream:
        """The median of a column."""
        return self.agg(**{column: metrics.median(column)})

    def quantile(self, column: str, q: float) -> Stream:
        """A quantile of a column."""
        return self.agg(**{column: metrics.quantile(column, q)})

    def min(self, column: str) -> Stream:
        """The smallest value of a column."""
        return self.agg(**{column: metrics.min(column)})

    def max(self, column: str) -> Stream:
        """The largest value of a column."""
        return self.agg(**{column: metrics.max(column)})

    def sum(self, column: str) -> Stream:
        """The sum of a column."""
        return self.agg(**{column: metrics.sum(column)})

    def std(self, column: str) -> Stream:
        """The standard deviation of a column."""
        return self.agg(**{column: metrics.std(column)})

    def count(self) -> Stream:
        """How many rows there are, as ``count``."""
        return self.agg(count=metrics.count())


def window_spec(
    size: str | int | timedelta,
    *,
    every: str | int | timedelta | None,
    lateness: str | timedelta | None,
    by: str | Sequence[str],
    emit: str,
) -> WindowSpec:
    """Check what a user asks for.

    Raises:
        DeclarationError: it makes no sense.
    """
    groups = (by,) if isinstance(by, str) else tuple(by)
    if emit not in ("final", "changes"):
        raise DeclarationError(f"emit={emit!r}", advice='Give "final" or "changes".')
    late = 0 if lateness is None else microseconds(lateness, "lateness")
    more: dict[str, Any] = {"by": groups, "emit": emit, "lateness_us": late}
    if isinstance(size, int) and not isinstance(size, bool):
        step = 1 if every is None else every
        if not isinstance(step, int) or isinstance(step, bool) or step < 1 or size < 1:
            raise DeclarationError(f"window({size}, every={every!r})", advice="Give positive numbers of rows.")
        return WindowSpec(rows=size, every_rows=step, **more)
    if isinstance(every, int):
        raise DeclarationError(f"window({size!r}, every={every})", advice='Give a duration, such as "10 s".')
    span = microseconds(size, "window")
    hop = span if every is None else microseconds(every, "every")
    if hop > span:
        raise DeclarationError(f"window({size!r}, every={every!r}) leaves rows out", advice="Give a shorter every=.")
    return WindowSpec(size_us=span, every_us=hop, **more)
