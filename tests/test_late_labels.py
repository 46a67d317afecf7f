"""Labels that come later, against an oracle that follows each row by itself, whatever its key is.

The same statements are played under three replica identities, in transactions of several, in events of any size, and
through a stored state after each. What is learned, answered, graded and scored must be what the oracle says.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

import headrace as hr
from headrace.batch import Batch
from headrace.events import Part, Rows
from headrace.learn.state import dump_pieces
from headrace.learn.state import load_state as load_values
from headrace.state import State, dump_state, initial_state, load_state
from headrace.step import step
from headrace.task import ModelTask

COLUMNS = {"id": pa.int64(), "k": pa.string(), "u": pa.float64(), "y": pa.float64(), "note": pa.string()}
# More of them: HEADRACE_SEEDS=1000 pytest tests/test_late_labels.py
SEEDS = int(os.environ.get("HEADRACE_SEEDS", "8"))
Change = tuple[str, dict[str, Any] | None, dict[str, Any] | None]


class Recorder:
    """Remembers what it learned; answers with the number of rows that it has learned."""

    deterministic = True
    prediction_type = pa.float64()
    ready = True

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []

    def learn(self, X: npt.NDArray[Any], y: npt.NDArray[Any] | None = None) -> None:
        assert y is not None
        self.rows += zip(X[:, 0].tolist(), y.tolist(), strict=True)

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.full(len(X), float(len(self.rows)))

    def parameters(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"rows": np.array(self.rows, np.float64).reshape(-1, 2)}

    def restore(self, state: dict[str, Any]) -> None:
        self.rows = [tuple(row) for row in np.asarray(state["rows"]).tolist()]


# -- a table ---------------------------------------------------------------------------------------------------------


@dataclass
class Table:
    """A table and what its server sends of each change under a replica identity: op, old tuple, new tuple."""

    identity: str
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    number: int = 0

    def insert(self, key: int, u: float | None, y: float | None) -> Change:
        self.number += 1
        row = {"id": key, "k": f"k{self.number}", "u": u, "y": y, "note": None}
        self.rows[key] = row
        return "c", None, dict(row)

    def update(self, row: dict[str, Any], **values: Any) -> Change:
        old = dict(row)
        row.update(values)
        return "u", self._told(old, row), dict(row)

    def delete(self, row: dict[str, Any]) -> Change:
        self.rows = {key: one for key, one in self.rows.items() if one is not row}
        return "d", None, self._named(row)

    def _named(self, row: dict[str, Any]) -> dict[str, Any]:
        names = {"default": ["id"], "index": ["k"], "full": list(COLUMNS)}[self.identity]
        return {name: row[name] if name in names else None for name in COLUMNS}

    def _told(self, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any] | None:
        names = {"default": ["id"], "index": ["k"], "full": []}[self.identity]
        changed = any(old[name] != new[name] for name in names)
        return self._named(old) if changed or self.identity == "full" else None

    def keyed(self) -> None:
        self.rows = {row["id"]: row for row in self.rows.values()}


def some_changes(table: Table, rng: random.Random) -> list[tuple[Change, dict[str, Any] | None]]:
    """One statement, and the row of each of its changes."""
    rows, free = list(table.rows.values()), [key for key in range(1, 7) if key not in table.rows]
    what = rng.random()
    value = rng.choice([None, 1.0, 2.0, 3.0])
    if what < 0.25 and free:
        change = table.insert(rng.choice(free), float(rng.randint(1, 9)), rng.choice([None, None, value]))
        return [(change, table.rows[change[2]["id"]])]  # type: ignore[index]  # an insert has a new row
    if what < 0.28:
        table.rows = {}
        return [(("t", None, None), None)]
    if not rows:
        return []
    row = rng.choice(rows)
    if what < 0.5:
        return [(table.update(row, y=value), row)]
    if what < 0.6:
        return [(table.update(row, u=float(rng.randint(1, 9)), y=rng.choice([row["y"], value])), row)]
    if what < 0.65:
        return [(table.update(row, note=str(rng.random())), row)]
    if what < 0.72:
        return [(table.update(row, k=f"m{rng.random()}"), row)]
    if what < 0.82 and free:
        change = table.update(row, id=rng.choice(free), y=rng.choice([row["y"], row["y"], value]))
        table.keyed()
        return [(change, row)]
    if what < 0.9 and len(rows) > 1:
        return swapped(table, row, rng.choice([one for one in rows if one is not row]), rng)
    if what < 0.97:
        found = [(table.delete(row), row)]
        if rng.random() < 0.6:
            again = table.insert(row["id"], float(rng.randint(1, 9)), rng.choice([None, value]))
            found.append((again, table.rows[row["id"]]))
        return found
    return []


def swapped(table: Table, a: dict[str, Any], b: dict[str, Any], rng: random.Random) -> list[Any]:
    """Two rows exchange their keys: through a third, or under a constraint that is checked at the commit."""
    one, other = a["id"], b["id"]
    if table.identity == "full" and rng.random() < 0.5:
        found = [(table.update(a, id=other), a), (table.update(b, id=one), b)]
    else:
        found = [(table.update(a, id=-1), a), (table.update(b, id=one), b), (table.update(a, id=other), a)]
    table.keyed()
    return found


# -- the oracle ------------------------------------------------------------------------------------------------------


@dataclass
class Oracle:
    """What must come of changes, row by row: each row is an object of its own."""

    learned: list[tuple[float, float]] = field(default_factory=list)
    answers: list[tuple[int, float]] = field(default_factory=list)
    grades: list[tuple[str, float, float]] = field(default_factory=list)
    scored: list[tuple[float, float]] = field(default_factory=list)
    known: dict[int, dict[str, Any]] = field(default_factory=dict)
    kept: list[dict[str, Any]] = field(default_factory=list)

    def transaction(self, changes: list[tuple[Change, dict[str, Any] | None]]) -> None:
        shown = float(len(self.learned))
        for (op, _, new), row in changes:
            if op == "c":
                assert new is not None and row is not None
                self.kept.append(row)
                self.known[id(row)] = {"learned": False, "truth": None, "answers": []}
            if op in "cu":
                assert new is not None
                self._row(self.known[id(row)], op, new, shown)

    def _row(self, about: dict[str, Any], op: str, new: dict[str, Any], shown: float) -> None:
        before = dict(about)
        if op == "c" or new["u"] != about["u"]:
            self.answers.append((new["id"], new["u"]))
            about["answers"].append(shown)
            about["u"] = new["u"]
            if about["truth"] is not None:
                # A label that waits: the newest truth is that of a prediction which comes later, too.
                self.grades.append(("graded", shown, about["truth"]))
        if new["y"] is None:
            about["as_predicted"], about["answer"] = about["u"], about["answers"][-1]
            return
        if not about["learned"]:
            about["learned"] = True
            first = op == "c"
            self.learned.append((about["u"] if first else before["as_predicted"], new["y"]))
            self.scored.append((about["answers"][-1] if first else before["answer"], new["y"]))
        if new["y"] != about["truth"]:
            status = "graded" if about["truth"] is None else "corrected"
            self.grades += [(status, answer, new["y"]) for answer in about["answers"]]
            about["truth"] = new["y"]


# -- the pipeline ----------------------------------------------------------------------------------------------------


def declared(**predicted: Any) -> ModelTask:
    app = hr.App("shop", log="memory://")
    model = app.model("m", Recorder(), features=["u"], target="y")
    stream = app.topic("t")
    model.learn(stream)
    model.evaluate(stream, metrics=["mae"])
    graded = model.predict(stream).to("answers")
    if predicted.get("graded", True):
        graded.grade(stream, on="id", within="10000 s", metric=hr.metrics.absolute_error).to("grades")
    (task,) = app.plan().tasks
    assert isinstance(task, ModelTask)
    return task


def batch_of(changes: list[tuple[Change, int, int]], identity: str) -> Batch:
    """Changes as capture gives them: (change, LSN, index)."""
    empty = dict.fromkeys(COLUMNS)
    rows = [new or empty for (_, _, new), _, _ in changes]
    olds = [old for (_, old, _), _, _ in changes]
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in COLUMNS.items()}
    before = pa.array(olds, pa.struct(list(COLUMNS.items()))) if any(olds) else None
    batch = Batch.of(
        columns,
        op=np.array([ord(op) for (op, _, _), _, _ in changes], np.uint8),
        lsn=np.array([lsn for _, lsn, _ in changes], np.uint64),
        index=np.array([index for _, _, index in changes]),
        ts_us=np.array([lsn * 1_000_000 for _, lsn, _ in changes]),
        key=["id"],
        before=before,
    )
    if identity == "index":
        metadata = {**batch.schema.metadata, b"headrace.identity": b'["k"]'}
        batch = Batch(batch.records.replace_schema_metadata(metadata))
    return batch


def play(
    task: ModelTask, changes: list[tuple[Change, int, int]], identity: str, sizes: list[int], *, stored: bool = True
) -> tuple[State, dict[str, list[dict[str, Any]]]]:
    state, outputs, at, turn = initial_state(task), {}, 0, 0
    while at < len(changes):
        end = min(len(changes), at + sizes[turn % len(sizes)])
        turn += 1
        some = changes[at:end]
        complete = end == len(changes) or changes[end][1] != some[-1][1]
        part = Part("t", batch_of(some, identity), np.full(len(some), turn), at)
        for topic, batch in step(task, state, Rows((part,), complete)):
            outputs.setdefault(topic, []).extend(batch.records.to_pylist())
        if stored:
            state = load_state(task, dict(load_values(b"".join(dump_pieces(dump_state(state))))))
        at = end
    return state, outputs


def history(seed: int, identity: str, *, statements: int = 40) -> tuple[list[tuple[Change, int, int]], Oracle]:
    rng = random.Random(seed)
    table, oracle, changes, lsn = Table(identity), Oracle(), [], 100
    for _ in range(statements):
        transaction: list[Any] = []
        for _ in range(rng.choice([1, 1, 2, 5])):
            transaction += some_changes(table, rng)
        lsn += 1
        changes += [(change, lsn, index) for index, (change, _) in enumerate(transaction)]
        oracle.transaction(transaction)
    return changes, oracle


@pytest.mark.parametrize("identity", ["default", "full", "index"])
def test_each_row_is_learned_once_as_it_was_predicted(identity: str) -> None:
    task = declared()
    for seed in range(SEEDS):
        changes, oracle = history(seed, identity)
        sizes = random.Random(seed).choice([[1], [3, 1, 7], [1000], [2]])
        state, outputs = play(task, changes, identity, sizes)
        assert state.learner is not None
        assert state.learner.rows == oracle.learned, seed  # type: ignore[attr-defined]  # a recorder
        assert [(row["id"], row["u"]) for row in outputs.get("answers", [])] == oracle.answers, seed
        scores = next(iter(state.scores.values()))
        assert scores.rows == len(oracle.scored), seed
        if oracle.scored:
            errors = [abs(answer - truth) for answer, truth in oracle.scored]
            assert scores.values()["mae"] == pytest.approx(np.mean(errors)), seed
        grades = [(row["status"], row["prediction"], row["y"]) for row in outputs.get("grades", [])]
        assert sorted(grades) == sorted(oracle.grades), seed
