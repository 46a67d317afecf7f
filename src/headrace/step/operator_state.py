"""What the nodes of a task know between two events: waiting predictions, open windows, rows kept for a training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.batch import Batch, from_ipc, to_ipc
from headrace.errors import LogCorrupt
from headrace.grade.alarm import Alarm
from headrace.grade.drift import Drift
from headrace.grade.interval_join.join import Join
from headrace.grade.windows.window import Window
from headrace.learn.adapters.sealed import sealed, unsealed
from headrace.plain_values import united
from headrace.plan.operators import Alarms, Drifts, Grade, Node, Selection, Windows
from headrace.step.labels import Truths

KEPT_ROWS = 1_000_000
NEVER = -(2**62)

Running = Join | Window | Alarm | Drift | None


class TrainingRows:
    """The newest rows of a node: so many, or those of so long.

    Args:
        rows: how many; ``span_us``: how long, by their ``__ts``, at most 1,000,000 rows.
    """

    def __init__(self, *, rows: int = 0, span_us: int = 0) -> None:
        self._most = rows or KEPT_ROWS
        self._span_us = span_us
        self._batches: list[pa.RecordBatch] = []
        self._newest = NEVER

    def __len__(self) -> int:
        return sum(one.num_rows for one in self._batches)

    def add(self, batch: Batch) -> None:
        """Rows that follow; a corrected grade takes the place of the one that it supersedes."""
        records = batch.records
        if not records.num_rows:
            return
        self._batches.append(records)
        # Both may have come at once.
        if "supersedes" in records.schema.names and records.column("supersedes").null_count < records.num_rows:
            self._without(records.column("supersedes").drop_null())
        self._newest = max(self._newest, int(batch.ts_us.max()))
        self._trim()

    def _without(self, numbers: pa.Array) -> None:
        kept = [one.filter(pc.invert(pc.is_in(one.column("grade"), value_set=numbers))) for one in self._batches]
        self._batches = [one for one in kept if one.num_rows]

    def _trim(self) -> None:
        surplus = len(self) - self._most
        while surplus > 0 and surplus >= self._batches[0].num_rows:
            surplus -= self._batches.pop(0).num_rows
        if surplus > 0:
            self._batches[0] = self._batches[0].slice(surplus)
        if self._span_us:
            while self._batches and int(Batch(self._batches[0]).ts_us.max()) < self._newest - self._span_us:
                self._batches.pop(0)
        if len(self._batches) > 64:
            self._batches = list(_joined(self._batches))

    def table(self, *, since_us: int | None = None) -> pa.Table:
        """The rows, oldest first, of a moment on where one is given."""
        if not self._batches:
            return pa.table({})
        found = united([pa.Table.from_batches([one]) for one in self._batches])
        if since_us is not None:
            found = found.filter(pc.greater_equal(found.column("__ts").cast(pa.int64()), since_us))
        return found

    @property
    def newest_us(self) -> int:
        """The newest row's event time."""
        return self._newest

    def copy(self) -> TrainingRows:
        """Another that is changed by itself; the rows are shared."""
        other = TrainingRows(rows=self._most, span_us=self._span_us)
        other._batches, other._newest = list(self._batches), self._newest
        return other

    def state(self) -> dict[str, Any]:
        """As flat values."""
        return {"newest": self._newest, **{str(i): as_bytes(one) for i, one in enumerate(_joined(self._batches))}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self._newest = int(state["newest"])
        self._batches = [from_bytes(state[str(i)]) for i in range(len(state) - 1)]


def _joined(batches: Sequence[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of one schema that follow each other as one."""
    start = 0
    for i in range(1, len(batches) + 1):
        if i == len(batches) or not batches[i].schema.equals(batches[start].schema):
            yield batches[start] if i == start + 1 else pa.concat_batches(batches[start:i])
            start = i


def as_bytes(records: pa.RecordBatch) -> npt.NDArray[np.uint8]:
    """A record batch as a state holds it."""
    return np.frombuffer(to_ipc(records), np.uint8).copy()


def from_bytes(data: npt.NDArray[np.uint8]) -> pa.RecordBatch:
    """The inverse of `as_bytes`."""
    try:
        return from_ipc(np.ascontiguousarray(data))
    except pa.ArrowInvalid as error:
        raise LogCorrupt(f"rows in a stored state cannot be read: {error}") from error


@dataclass(slots=True)
class OperatorState:
    """What a task's nodes know.

    Attributes:
        running: by node.
        kept: rows to train on, where the newest ones of a node are.
        labels: by node, the newest label of each row of its truth (`headrace.step.labels`).
        seen: by node, the newest event times of its two sides as rows brought them; ticks count from there.
        at: position of the last row, where what a tick brings about stands.
        schemas: by node, of its grades so far.
        key_kinds: by node, for each of its two sides and each column of the key, what kinds of values were there.
        counts: what happened, by name.
    """

    running: list[Running]
    kept: TrainingRows | None = None
    labels: dict[int, Truths] = field(default_factory=dict)
    seen: dict[int, list[int]] = field(default_factory=dict)
    at: tuple[int, int] = (0, 0)
    schemas: dict[int, pa.Schema] = field(default_factory=dict)
    key_kinds: dict[int, list[list[list[str]]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, rows: int) -> None:
        if rows:
            self.counts[name] = self.counts.get(name, 0) + rows


def initial_operators(nodes: Sequence[Node], rows: Selection | None = None) -> OperatorState:
    """Before the first event.

    Args:
        rows: what a training takes, where rows of a node are kept for it.
    """
    kept = None
    if rows is not None and rows.kind in ("last", "since"):
        kept = TrainingRows(rows=rows.rows, span_us=rows.span_us)
    return OperatorState([_running(node) for node in nodes], kept)


def _running(node: Node) -> Running:
    what = node.what
    if isinstance(what, Grade):
        return Join(what.within_us, lateness_us=what.lateness_us, limit=what.limit)
    if isinstance(what, Windows):
        return Window(what.spec)
    if isinstance(what, Alarms):
        return Alarm(what.spec)
    if isinstance(what, Drifts):
        return Drift(what.spec, dump=sealed, load=unsealed)
    return None


def dump_operators(flow: OperatorState) -> dict[str, Any]:
    """As flat values for `headrace.learn.state`."""
    flat: dict[str, Any] = {}
    for i, one in enumerate(flow.running):
        if one is not None:
            flat.update({f"{i}.{key}": value for key, value in one.state().items()})
    if flow.kept is not None:
        flat.update({f"kept.{key}": value for key, value in flow.kept.state().items()})
    for i, truths in sorted(flow.labels.items()):
        flat.update({f"truths.{i}.{key}": value for key, value in truths.state().items()})
    for i, schema in sorted(flow.schemas.items()):
        flat[f"schemas.{i}"] = np.frombuffer(schema.serialize(), np.uint8).copy()
    seen = {str(i): times for i, times in sorted(flow.seen.items())}
    kinds = {str(i): sides for i, sides in sorted(flow.key_kinds.items())}
    flat["meta"] = json.dumps({"seen": seen, "at": flow.at, "counts": flow.counts, "key_kinds": kinds})
    return flat


def load_operators(nodes: Sequence[Node], rows: Selection | None, flat: Mapping[str, Any]) -> OperatorState:
    """The inverse of `dump_operators`."""
    flow = initial_operators(nodes, rows)
    for i, one in enumerate(flow.running):
        if one is not None:
            one.restore(below(f"{i}.", flat))
    if flow.kept is not None:
        flow.kept.restore(below("kept.", flat))
    for i in {int(key.split(".", 1)[0]) for key in below("truths.", flat)}:
        flow.labels.setdefault(i, Truths()).restore(below(f"truths.{i}.", flat))
    # States of versions that knew rows by their keys only.
    for number, keys in below("labels.", flat).items():
        flow.labels.setdefault(int(number), Truths()).hashes = set(keys.tolist())
    for number, data in below("schemas.", flat).items():
        flow.schemas[int(number)] = pa.ipc.read_schema(pa.py_buffer(np.ascontiguousarray(data)))
    meta = json.loads(flat["meta"])
    flow.seen = {int(i): list(times) for i, times in meta["seen"].items()}
    flow.at, flow.counts = (meta["at"][0], meta["at"][1]), meta["counts"]
    flow.key_kinds = {int(i): sides for i, sides in meta.get("key_kinds", {}).items()}
    return flow


def below(prefix: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """The values whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}
