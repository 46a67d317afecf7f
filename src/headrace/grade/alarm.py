"""Alarms: lines whose value lies outside its bounds, several in a row if asked, and none for a while after one.

Pure: lines come in, those that raise an alarm come out as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from headrace.arrays import Floats, Ints, Mask
from headrace.errors import DeclarationError
from headrace.grade.columns import Key, KeyedBy, exceeds, group_columns, grouped, numbers
from headrace.grade.operator_logic import START, Measure, OperatorLogic, Results

_WHO = "an alarm"


@dataclass(frozen=True, slots=True)
class AlarmSpec:
    """The condition for an alarm: a line's value is above ``above`` or below ``below``, both strictly.

    Attributes:
        column: whose value; a null or NaN is in no bounds and outside none.
        above, below: one, or both for "outside".
        consecutive: so many lines of a group in a row; the count begins anew after an alarm.
        cooldown_us: lines with event times up to so much after that of an alarm raise none, nor do they count as
            consecutive.
        cooldown_rows: likewise so many lines of the group after it.
        by: columns whose values tell groups apart; each has its own count and cooldown.

    Raises:
        DeclarationError: it cannot be; says why.
    """

    column: str
    above: float | None = None
    below: float | None = None
    consecutive: int = 1
    cooldown_us: int = 0
    cooldown_rows: int = 0
    by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.above, self.below) if bound is not None]
        if not bounds or any(bound != bound for bound in bounds):
            raise DeclarationError(f"an alarm on «{self.column}» without a bound", advice="Say above(x) or below(x).")
        if len(bounds) == 2 and bounds[0] < bounds[1]:
            raise DeclarationError(
                f"an alarm above {self.above} and below {self.below}: every value is one of them",
                advice="outside(a, b) takes the lower bound first.",
            )
        if self.consecutive < 1 or min(self.cooldown_us, self.cooldown_rows) < 0:
            raise DeclarationError(f"a count below its least in {self}", advice="Give positive counts and durations.")


class _Group(NamedTuple):
    """A group as an alarm remembers it; one that is as new is not remembered."""

    streak: int = 0  # lines in a row that satisfy the condition, up to the newest line
    rows: int = 0  # lines yet to come that are in the cooldown
    until_us: int = START  # and those up to this time


_NEW = _Group()


class Alarm(OperatorLogic):
    """The lines that raise an alarm.

    >>> alarm = Alarm(AlarmSpec("mean", above=0.15, cooldown_rows=1))
    >>> lines = pa.record_batch({"mean": [0.1, 0.7, 0.8, 0.9]})
    >>> alarm.push(lines, np.arange(4), np.arange(4)).records.column("mean").to_pylist()
    [0.7, 0.9]
    """

    def __init__(self, spec: AlarmSpec) -> None:
        self.spec = spec
        self.numbers = frozenset({spec.column})
        self._groups: dict[Key, _Group] = {}
        self._keyed = KeyedBy(spec.by)
        self._plain = spec.consecutive == 1 and not spec.cooldown_us and not spec.cooldown_rows

    def push(self, records: pa.RecordBatch, time_us: Ints, place: Ints) -> Results:
        """Return the lines that raise an alarm, with all their columns; shape (n, …), their times and places (n,).

        Raises:
            DeclarationError: a column is missing, or holds no numbers. Nothing has changed then.
            HeadraceError: a text is no number; nothing has changed either.
        """
        near = numbers(records, self.spec.column, _WHO)
        values = records.column(self.spec.column)
        by = group_columns(records, self.spec.by, _WHO)
        self._keyed.meet(by, _WHO)
        lines = Results(records, np.asarray(place, np.int64), np.asarray(time_us, np.int64))
        hits = self._satisfying(values, near)
        if not self._plain and len(lines.place):
            hits = self._raising(by, lines.time_us, hits)
        return lines.filter(hits)

    def _satisfying(self, values: pa.Array, near: Floats) -> Ints:
        found: Mask = np.zeros(len(values), np.bool_)
        if self.spec.above is not None:
            found |= exceeds(values, near, self.spec.above)
        if self.spec.below is not None:
            found |= exceeds(values, near, self.spec.below, under=True)
        return np.flatnonzero(found)

    def _raising(self, by: list[pa.Array], time_us: Ints, hits: Ints) -> Ints:
        """Return those of the hits that raise an alarm."""
        hit = np.zeros(len(time_us), np.bool_)
        hit[hits] = True
        raised: list[int] = []
        for key, rows in grouped(by, len(time_us)):
            group, number = self._groups.get(key, _NEW), np.flatnonzero(hit[rows])
            if len(number) or group is not _NEW:
                own = rows[number]
                moved = self._moved(group, len(rows), own, number, time_us[own], raised)
                if moved == _NEW:
                    self._groups.pop(key, None)
                else:
                    self._groups[key] = moved
        return np.sort(np.array(raised, np.int64))

    def _moved(self, group: _Group, size: int, hits: Ints, number: Ints, time_us: Ints, raised: list[int]) -> _Group:
        """Return a group after ``size`` of its lines; the alarms among the hits are added to ``raised``."""
        streak, cool, until, newest = group.streak, group.rows, group.until_us, -1
        for hit, at, time in zip(hits.tolist(), number.tolist(), time_us.tolist(), strict=True):
            if at != newest + 1:
                streak = 0
            newest = at
            if at < cool or time <= until:
                streak = 0
                continue
            streak += 1
            if streak == self.spec.consecutive:
                raised.append(hit)
                streak, cool = 0, at + 1 + self.spec.cooldown_rows
                if self.spec.cooldown_us:
                    until = time + self.spec.cooldown_us
        return _Group(streak if newest == size - 1 else 0, max(cool - size, 0), until)

    def copy(self) -> Alarm:
        made = copy.copy(self)
        made._groups, made._keyed = dict(self._groups), copy.copy(self._keyed)
        return made

    def snapshot(self) -> dict[str, Any]:
        """Return plain numbers and arrays, the groups as Arrow's IPC stream (uint8)."""
        groups = self._groups.values()
        return {
            "groups": self._keyed.dump(list(self._groups)),
            "streak": np.array([group.streak for group in groups], np.int64),
            "rows": np.array([group.rows for group in groups], np.int64),
            "until_us": np.array([group.until_us for group in groups], np.int64),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        counts = [np.asarray(state[name], np.int64).tolist() for name in ("streak", "rows", "until_us")]
        groups = [_Group(*numbers) for numbers in zip(*counts, strict=True)]
        keys = self._keyed.load(state["groups"], len(groups))
        self._groups = dict(zip(keys, groups, strict=True))

    @classmethod
    def measures_of(cls, newest: pa.Table, end: int) -> list[Measure]:
        return [Measure("alarms", "Alarms since the topic began", end)]
