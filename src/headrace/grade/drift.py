"""Drift: rows at which a detector of River says that a column's values have changed.

Pure: rows come in, those at which a drift shows come out with what the detector saw. Detectors are fed value by value:
their authors offer nothing else (https://riverml.xyz/latest/api/drift/ADWIN/, KSWIN, PageHinkley).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.errors import LearnError
from headrace.grade.columns import Key, KeyedBy, group_columns, grouped, numbers
from headrace.grade.operator_logic import START, Measure, OperatorLogic, Results

_WHO = "a drift detector"


@dataclass(frozen=True, slots=True)
class DriftSpec:
    """Values that a detector watches.

    Attributes:
        column: its values; nulls and NaN are skipped.
        detector: with ``update(x)`` and ``drift_detected``, such as ADWIN, KSWIN or PageHinkley of ``river.drift``. It
            is copied for each group, never changed.
        by: columns whose values tell groups apart; each has a detector and a cooldown of its own.
        cooldown_rows: so many rows of the group after a drift say none; the detector goes on watching.
        cooldown_us: likewise rows with event times up to so much after it.
    """

    column: str
    detector: Any
    by: tuple[str, ...] = ()
    cooldown_rows: int = 0
    cooldown_us: int = 0


def refuse_unrepeatable(detector: Any) -> None:
    """Refuse what is no detector, or one that would not find the same again.

    Raises:
        ValueError: it has no ``update`` or no ``drift_detected``, its seed is open, or a cooldown is negative.

    >>> from river.drift import KSWIN
    >>> refuse_unrepeatable(KSWIN(seed=1))
    >>> refuse_unrepeatable(KSWIN())
    Traceback (most recent call last):
    ValueError: KSWIN draws numbers, and its seed is open: say KSWIN(seed=…), so that a replay finds the same drifts
    """
    name = type(detector).__name__
    if isinstance(detector, type):
        raise ValueError(f"{detector.__name__} is a class: say {detector.__name__}(…)")
    if not callable(getattr(detector, "update", None)) or not hasattr(detector, "drift_detected"):
        raise ValueError(f"{name} is no drift detector: it needs update(x) and drift_detected, as those of river.drift")
    if getattr(detector, "seed", 0) is None:
        raise ValueError(
            f"{name} draws numbers, and its seed is open: say {name}(seed=…), so that a replay finds the same drifts"
        )


@dataclass(frozen=True, slots=True)
class _Group:
    """A group's detector, and what came since its last drift.

    ``total`` and ``count`` are of the values since then and of those that the detector kept at that drift.
    """

    detector: Any
    rows: int = 0
    total: float = 0.0
    count: int = 0
    cooldown: int = 0  # rows yet to come that are in it
    until_us: int = START


@dataclass(frozen=True, slots=True)
class _Seen:
    """A drift, as its row tells of it."""

    row: int
    rows: int
    before: float | None
    after: float | None


class Drift(OperatorLogic):
    """The rows that show a drift.

    Args:
        spec: whose values.
        dump, load: a detector as bytes and back; whoever gives them answers for reading no bytes of strangers.

    Raises:
        ValueError: as for `refuse_unrepeatable`.

    >>> import pickle
    >>> from river.drift import PageHinkley
    >>> spec = DriftSpec("error", PageHinkley(min_instances=3, threshold=1.0))
    >>> drift = Drift(spec, dump=pickle.dumps, load=pickle.loads)
    >>> rows = pa.record_batch({"error": [0.1, 0.1, 0.1, 0.1, 2.0]})
    >>> drift.push(rows, np.arange(5), np.arange(5)).records.select(["detector", "rows"]).to_pylist()
    [{'detector': 'PageHinkley', 'rows': 5}]
    """

    def __init__(self, spec: DriftSpec, *, dump: Callable[[Any], bytes], load: Callable[[bytes], Any]) -> None:
        refuse_unrepeatable(spec.detector)
        if min(spec.cooldown_rows, spec.cooldown_us) < 0:
            raise ValueError(f"a drift's cooldown is positive, not {min(spec.cooldown_rows, spec.cooldown_us)}")
        self.spec = replace(spec, detector=copy.deepcopy(spec.detector))
        self.numbers = frozenset({spec.column})
        self._dump, self._load = dump, load
        self._groups: dict[Key, _Group] = {}
        # Detectors that no copy of this drift shares, which alone may be changed.
        self._own: set[Key] = set()
        self._keyed = KeyedBy(spec.by)

    def push(self, records: pa.RecordBatch, time_us: Ints, place: Ints) -> Results:
        """Return the rows at which a drift shows, shape (n, …); their times and places (n,).

        They have the row's columns, then ``detector`` (its name), ``rows`` (values since the drift said last, this one
        included), ``mean_before`` and ``mean_after`` (float64): of the values before the change, the ones that the
        detector had kept at the drift before included, and of those that it keeps now; null where it does not say which
        those are (PageHinkley). A column of the row that has one of these names keeps it, and ours gets ``drift_``
        before it.

        Raises:
            DeclarationError: a column is missing, or holds no numbers. Nothing has changed then.
            LearnError: the detector failed; a copy made before is as it was, this one is not.
        """
        values = numbers(records, self.spec.column, _WHO)
        by = group_columns(records, self.spec.by, _WHO)
        self._keyed.meet(by, _WHO)
        time_us, place = np.asarray(time_us, np.int64), np.asarray(place, np.int64)
        seen: list[_Seen] = []
        for key, rows in grouped(by, len(values)):
            self._fed(key, rows, values[rows].tolist(), time_us[rows].tolist(), seen)
        seen.sort(key=lambda drift: drift.row)
        at = np.array([drift.row for drift in seen], np.int64)
        return Results(self._described(records.take(pa.array(at)), seen), place[at], time_us[at])

    def _fed(self, key: Key, rows: Ints, values: list[float], time_us: list[int], seen: list[_Seen]) -> None:
        """Feed one group's values to its detector; drifts are added to ``seen``."""
        group = self._groups.get(key) or _Group(self.spec.detector)
        detector = group.detector if key in self._own else copy.deepcopy(group.detector)
        since, total, count = group.rows, group.total, group.count
        cool, until = group.cooldown, group.until_us
        for i, (value, time) in enumerate(zip(values, time_us, strict=True)):
            cooling = i < cool or time <= until
            if value != value:
                continue
            try:
                detector.update(value)
            except Exception as error:  # whatever a detector of somebody's own raises
                name = type(detector).__name__
                raise LearnError(
                    f"{name} failed at {value!r}, row {rows[i]}: {type(error).__name__}: {error}"
                ) from error
            since, total, count = since + 1, total + value, count + 1
            if detector.drift_detected and not cooling:
                kept, after = _kept(detector)
                before = (total - kept * after) / (count - kept) if after is not None and count > kept else None
                seen.append(_Seen(int(rows[i]), since, before, after))
                since, total, count = 0, kept * (after or 0.0), kept
                cool = i + 1 + self.spec.cooldown_rows
                until = time + self.spec.cooldown_us if self.spec.cooldown_us else until
        self._groups[key] = _Group(detector, since, total, count, max(cool - len(values), 0), until)
        self._own.add(key)

    def _described(self, records: pa.RecordBatch, seen: list[_Seen]) -> pa.RecordBatch:
        name = type(self.spec.detector).__name__
        added = [
            pa.array([name] * len(seen), pa.string()),
            pa.array([drift.rows for drift in seen], pa.int64()),
            pa.array([drift.before for drift in seen], pa.float64()),
            pa.array([drift.after for drift in seen], pa.float64()),
        ]
        return pa.RecordBatch.from_arrays([*records.columns, *added], schema=with_drift_columns(records.schema))

    def copy(self) -> Drift:
        """Return another one in this state; neither sees the other's rows. Detectors are copied when fed."""
        made = copy.copy(self)
        made._groups, made._keyed = dict(self._groups), copy.copy(self._keyed)
        self._own, made._own = set(), set()
        return made

    def snapshot(self) -> dict[str, Any]:
        """Return plain numbers and arrays; detectors as ``dump`` gave them, one after the other (uint8)."""
        groups = self._groups.values()
        dumped = [self._dump(group.detector) for group in groups]
        return {
            "groups": self._keyed.dump(list(self._groups)),
            "detectors": np.frombuffer(b"".join(dumped), np.uint8),
            "ends": np.cumsum([len(data) for data in dumped], dtype=np.int64),
            "total": np.array([group.total for group in groups], np.float64),
            **{name: np.array([getattr(group, name) for group in groups], np.int64) for name in _COUNTS},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `snapshot` was taken of; the `DriftSpec` is the same. Raises what ``load`` raises."""
        data, ends = np.asarray(state["detectors"], np.uint8).tobytes(), np.asarray(state["ends"], np.int64).tolist()
        detectors = [self._load(data[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        counts = {name: np.asarray(state[name], np.int64).tolist() for name in _COUNTS}
        totals = np.asarray(state["total"], np.float64).tolist()
        keys = self._keyed.load(state["groups"], len(detectors))
        self._groups = {
            key: _Group(detectors[i], total=totals[i], **{name: numbers[i] for name, numbers in counts.items()})
            for i, key in enumerate(keys)
        }
        self._own = set(keys)

    @classmethod
    def measures_of(cls, newest: pa.Table, end: int) -> list[Measure]:
        return [Measure("alarms", "Alarms since the topic began", end)]


def with_drift_columns(schema: pa.Schema) -> pa.Schema:
    """Return the columns of rows that show a drift: theirs, and what was seen; ``drift_`` before a name that is taken.

    >>> with_drift_columns(pa.schema([("rows", pa.int64())])).names
    ['rows', 'detector', 'drift_rows', 'mean_before', 'mean_after']
    """
    fields, names = list(schema), list(schema.names)
    for column, kind in _SEEN:
        while column in names:
            column = f"drift_{column}"
        names.append(column)
        fields.append(pa.field(column, kind))
    return pa.schema(fields, metadata=schema.metadata)


_SEEN = (
    ("detector", pa.string()),
    ("rows", pa.int64()),
    ("mean_before", pa.float64()),
    ("mean_after", pa.float64()),
)
_COUNTS = ("rows", "count", "cooldown", "until_us")


def _kept(detector: Any) -> tuple[int, float | None]:
    """Return how many values a detector keeps after a drift, and their mean: ADWIN's own figures, KSWIN's window."""
    width, mean = getattr(detector, "width", None), getattr(detector, "estimation", None)
    if isinstance(width, int | float) and isinstance(mean, int | float) and width > 0:
        return int(width), float(mean)
    window = getattr(detector, "window", None)
    if window is None or not len(window):
        return 0, None
    return len(window), float(np.mean(list(window)))
