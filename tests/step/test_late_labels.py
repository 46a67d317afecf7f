"""Labels that come later, against an oracle that follows each row by itself, whatever its key is.

The same statements are played under three replica identities, in transactions of several, in events of any size, and
through a stored state after each. What is learned, answered, graded and scored must be what the oracle says.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import headrace as hr
from headrace.batch import Batch
from headrace.learn.state import dump_pieces
from headrace.learn.state import load_state as load_values
from headrace.log.memory import MemoryLog
from headrace.plan.operators import Grade, StreamPlan
from headrace.plan.task import ModelTask
from headrace.registry.models import Progress
from headrace.replay.verify import _recount
from headrace.step import labels, row_identity
from headrace.step.events import Part, Rows
from headrace.step.operator_state import TrainingRows
from headrace.step.retraining import rows_now
from headrace.step.state import State, dump_state, initial_state, load_state
from headrace.step.step import step

COLUMNS = {"id": pa.int64(), "k": pa.string(), "u": pa.float64(), "y": pa.float64(), "note": pa.string()}
# More of them: HEADRACE_SEEDS=1000 pytest tests/step/test_late_labels.py
SEEDS = int(os.environ.get("HEADRACE_SEEDS", "6"))
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
        self.rows = {key: value for key, value in self.rows.items() if value is not row}
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
        return swapped(table, row, rng.choice([item for item in rows if item is not row]), rng)
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
        state, outputs = play(task, changes, identity, sizes, stored=seed % 2 == 0)
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


# -- rows that the log does not know whole ----------------------------------------------------------------------------


def rows_of(changes: list[Change]) -> list[tuple[Change, int, int]]:
    """Changes of a transaction each."""
    return [(change, 100 + i, 0) for i, change in enumerate(changes)]


def row(key: int | None, u: float | None, y: float | None, **more: Any) -> dict[str, Any]:
    return {**dict.fromkeys(COLUMNS), "id": key, "u": u, "y": y, **more}


def learned(state: State) -> list[tuple[float, float]]:
    assert state.learner is not None
    return list(state.learner.rows)  # type: ignore[attr-defined]  # a recorder


def test_rows_that_are_older_than_the_log_are_known_by_their_old_image_only() -> None:
    task = declared()
    changes: list[Change] = [
        ("u", row(1, 10.0, None), row(1, 11.0, 5.0)),  # it had no label: learned as it was
        ("u", row(1, 11.0, 5.0), row(1, 11.0, 6.0)),
        ("u", row(2, 20.0, 1.0), row(2, 20.0, None)),  # it had one
        ("u", row(2, 20.0, None), row(2, 20.0, 2.0)),
        ("u", row(3, 30.0, None), row(3, 31.0, None)),
        ("u", row(3, 31.0, None), row(3, 31.0, 3.0)),
        ("u", row(4, 40.0, 1.0, note="a"), row(4, 40.0, 1.0)),
        ("d", None, row(4, 40.0, 1.0)),
    ]
    for sizes in ([1], [3], [100]):
        state, outputs = play(task, rows_of(changes), "full", sizes)
        assert learned(state) == [(10.0, 5.0), (31.0, 3.0)]
        assert [answer["u"] for answer in outputs["answers"]] == [11.0, 31.0]
        bare = [
            (op, None, {**new, **({} if op == "u" else row(new["id"], None, None))}) for op, _, new in changes if new
        ]
        state, outputs = play(task, rows_of(bare), "default", sizes)
        # Nobody knows whether rows 1 and 4 had a label before; of rows 2 and 3 an update without one was seen.
        assert learned(state) == [(20.0, 2.0), (31.0, 3.0)]
        assert [answer["u"] for answer in outputs["answers"]] == [11.0, 20.0, 31.0, 40.0]


def test_a_table_without_a_key_has_its_old_images_only() -> None:
    task = declared(graded=False)
    changes = [
        (("c", None, row(1, 10.0, None)), 100, 0),
        (("u", row(1, 10.0, None), row(1, 10.0, None, note="b")), 101, 0),
        (("u", row(1, 10.0, None, note="b"), row(1, 10.0, 5.0)), 102, 0),
        (("u", row(1, 10.0, 5.0), row(1, 10.0, 6.0)), 103, 0),
    ]
    batch = batch_of(changes, "full")
    keyless = Batch(batch.records.replace_schema_metadata({b"headrace.key": b"[]"}))
    state = initial_state(task)
    answers = []
    for i in range(4):
        part = Part("t", keyless.slice(i, 1), np.array([i]), i)
        answers += [topic for topic, _ in step(task, state, Rows((part,), True)) if topic == "answers"]
    assert learned(state) == [(10.0, 5.0)]
    assert len(answers) == 1 and next(iter(state.scores.values())).rows == 1


def test_a_value_that_was_not_sent_is_the_one_before() -> None:
    app = hr.App("shop", log="memory://")
    model = app.model("m", Recorder(), features=[hr.category("k", known=["a", "b"])], target="y")
    model.learn(app.topic("t")).predict(app.topic("t")).to("answers")
    (task,) = app.plan().tasks
    assert isinstance(task, ModelTask)
    kinds = {"id": pa.int64(), "k": pa.string(), "y": pa.float64()}

    def part(at: int, op: str, k: list[str | None], y: list[float | None], unsent: list[list[str]] | None) -> Rows:
        values = {"id": [1, 2], "k": k, "y": y}
        columns = {name: pa.array(values[name], kind) for name, kind in kinds.items()}
        unchanged = None if unsent is None else pa.array(unsent, pa.list_(pa.string()))
        batch = Batch.of(columns, op=op, lsn=at, key=["id"], unchanged=unchanged)
        return Rows((Part("t", batch, np.full(2, at), 2 * at),), True)

    state = initial_state(task)
    events = [
        part(1, "c", ["b", "a"], [None, None], None),
        part(2, "u", [None, "b"], [None, None], [["k"], []]),
        part(3, "u", [None, None], [5.0, 6.0], [["k"], ["k"]]),
    ]
    outputs = [item for event in events for item in step(task, state, event)]
    assert [(topic, batch.num_rows) for topic, batch in outputs] == [("answers", 2), ("answers", 1)]
    assert learned(state) == [(0.0, 5.0), (0.0, 6.0)]
    assert state.counters.rejected == 0


def test_a_stream_of_labelled_rows_alone_learns_each_when_it_enters() -> None:
    app = hr.App("shop", log="memory://")
    model = app.model("m", Recorder(), features=["u"], target="y")
    model.learn(app.topic("t").filter(pc.field("y").is_valid()))
    (task,) = app.plan().tasks
    assert isinstance(task, ModelTask)
    for identity in ("default", "full", "index"):
        table = Table(identity)
        changes = [table.insert(1, 10.0, None), table.insert(2, 20.0, 7.0)]
        one, two = table.rows[1], table.rows[2]
        changes += [table.update(one, id=3), table.update(one, y=1.0), table.update(two, y=None)]
        changes += [table.update(two, y=8.0), table.update(one, y=None), table.update(one, y=2.0)]
        for sizes in ([1], [2], [100]):
            state, _ = play(task, rows_of(changes), identity, sizes)
            assert learned(state) == [(20.0, 7.0), (10.0, 1.0)], identity


def test_only_what_a_function_makes_of_a_row_tells_a_change() -> None:
    app = hr.App("shop", log="memory://")
    model = app.model("m", Recorder(), features=lambda batch: np.asarray(batch.column("u")) // 10, target="y")
    model.learn(app.topic("t"))
    model.predict(app.topic("t")).to("answers")
    (task,) = app.plan().tasks
    assert isinstance(task, ModelTask)
    table = Table("default")
    changes = [table.insert(1, 10.0, None)]
    changes += [
        table.update(table.rows[1], u=11.0),
        table.update(table.rows[1], note="x"),
        table.update(table.rows[1], u=20.0),
    ]
    changes += [table.update(table.rows[1], u=39.0, y=4.0), table.delete(table.rows[1])]
    for sizes in ([1], [100]):
        state, outputs = play(task, rows_of(changes), "default", sizes)
        assert [answer["u"] for answer in outputs["answers"]] == [10.0, 20.0, 39.0]
        assert learned(state) == [(2.0, 4.0)]


def test_a_model_that_is_only_scored_is_scored_when_labels_come() -> None:
    app = hr.App("shop", log="memory://")
    model = app.model("m", Recorder(), features=["u"], target="y")
    model.evaluate(app.topic("t"), metrics=["mae"])
    (task,) = app.plan().tasks
    assert isinstance(task, ModelTask)
    changes: list[Change] = [("c", None, row(key, 1.0, None)) for key in (1, 2, 3)]
    changes += [("u", None, row(key, 1.0, float(key))) for key in (1, 2, 3, 3)]
    _, outputs = play(task, rows_of(changes), "default", [2])
    assert [(output["rows"], output["mae"]) for output in outputs["m-metrics"]] == [(1, 1.0), (2, 1.5), (3, 2.0)]


def test_a_state_that_knows_keys_only_goes_on() -> None:
    task = declared()
    table = Table("default")
    before = rows_of([table.insert(1, 10.0, None), table.insert(2, 20.0, 5.0), table.insert(3, 30.0, None)])
    state, _ = play(task, before, "default", [3])
    since = ("memory.", "operators.truths.")
    flat = {key: value for key, value in dump_state(state).items() if not key.startswith(since)}
    flat["meta"] = json.dumps({**json.loads(flat["meta"]), "unlabelled": ["t"]})
    flat["unlabelled.0"] = flat["operators.labels.0"] = np.array([labels._hash((key,)) for key in (1, 3)], np.int64)
    number = next(i for i, node in enumerate(task.nodes) if isinstance(node.operator, Grade))
    flat[f"operators.labels.{number}"] = flat.pop("operators.labels.0")
    state = load_state(task, flat)
    one, two, three = (table.rows[key] for key in (1, 2, 3))
    changes = [table.update(one, id=4), table.update(one, y=1.0), table.update(two, y=6.0), table.update(three, y=3.0)]
    changes += [table.update(three, y=4.0)]
    for i, change in enumerate(changes):
        part = Part("t", batch_of([(change, 200 + i, 0)], "default"), np.array([50 + i]), 10 + i)
        step(task, state, Rows((part,), True))
    assert learned(state) == [(20.0, 5.0), (10.0, 1.0), (30.0, 3.0)]
    assert learned(load_state(task, dump_state(state))) == learned(state)


def test_rows_that_wait_too_long_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_identity, "LIMIT", 5)
    monkeypatch.setattr(labels, "LIMIT", 5)
    task = declared(graded=False)
    table = Table("default")
    changes = [table.insert(key, float(key), None if key != 2 else 1.0) for key in (1, 2, 3, 4)]
    changes += [table.delete(table.rows[3])]
    changes += [table.insert(key, float(key), None) for key in (13, 14, 15, 16)]
    changes += [table.update(table.rows[1], y=9.0), table.update(table.rows[14], y=8.0)]
    found = []
    for sizes in ([1], [4], [100]):
        state, outputs = play(task, rows_of(changes), "default", sizes)
        assert learned(state) == [(2.0, 1.0), (14.0, 8.0)]
        found.append([(output["__lsn"], output["reason"], output["row"]) for output in outputs["t.dlq"]])
        assert len(outputs["answers"]) == 9  # a row that is not remembered is answered again
    assert found[0] == found[1] == found[2]
    assert [(lsn, json.loads(text)["u"]) for lsn, _, text in found[0]] == [(106, 1.0), (109, 4.0)]
    assert "newer rows of the table" in found[0][0][1]


def test_the_rows_of_a_table_now_are_followed_when_keys_move() -> None:
    for identity in ("default", "full", "index"):
        table = Table(identity)
        changes = [table.insert(key, float(key), None) for key in (1, 2, 3)]
        one, two, three = (table.rows[key] for key in (1, 2, 3))
        changes += [change for change, _ in swapped(table, one, two, random.Random(1))]
        changes += [table.update(one, y=7.0), table.update(three, id=9), table.delete(two), table.insert(1, 5.0, None)]
        batches = [batch_of(rows_of(changes)[i : i + 2], identity) for i in range(0, len(changes), 2)]
        now = rows_now(batches, StreamPlan("t")).rows.to_pylist()
        assert sorted((row["id"], row["u"], row["y"]) for row in now) == [(1, 5.0, None), (2, 1.0, 7.0), (9, 3.0, None)]
    whole = Batch.of({"id": [1, 2], "k": ["long", "b"]}, key=["id"])
    update = Batch.of(
        {"id": [3], "k": pa.array([None], pa.string())},
        op="u",
        key=["id"],
        unchanged=pa.array([["k"]]),
        before=pa.array([{"id": 1, "k": None}], pa.struct([("id", pa.int64()), ("k", pa.string())])),
    )
    now = rows_now([whole, update], StreamPlan("t")).rows.to_pylist()
    assert sorted(now, key=lambda row: row["id"]) == [{"id": 2, "k": "b"}, {"id": 3, "k": "long"}]


def test_a_correction_takes_the_place_of_a_grade_that_came_with_it() -> None:
    grades = {"grade": [1, 2, 3], "supersedes": [None, 1, None], "error": [1.0, 2.0, 3.0]}
    whole, apart = TrainingRows(rows=10), TrainingRows(rows=10)
    whole.push(Batch.of(grades))
    for i in range(3):
        apart.push(Batch.of(grades).slice(i, 1))
    assert whole.table()["grade"].to_pylist() == apart.table()["grade"].to_pylist() == [2, 3]


@pytest.mark.parametrize("identity", ["default", "full", "index"])
def test_verify_counts_first_labels_by_itself(identity: str) -> None:
    task = declared(graded=False)
    for seed in range(SEEDS):
        changes, oracle = history(seed, identity)
        log = MemoryLog()
        for at in range(0, len(changes), 7):
            with log.transaction() as txn:
                txn.append("t", batch_of(changes[at : at + 7], identity).records)
        learned = len(oracle.learned)
        for taken, told in ((learned, ""), (learned + 1, "were learned"), (learned - 1, "none was refused")):
            progress = Progress(offsets={"t": len(changes)}, counters={"learned": taken - 1}, pending=1)
            assert (told in _recount(log, task, progress)) if told else _recount(log, task, progress) == ""


@pytest.mark.parametrize("identity", ["default", "full", "index"])
def test_updates_and_deletes_count_where_the_row_was_learned(identity: str) -> None:
    """Of rows that wait, that were refused, or that were never seen as they came, there is nothing to unlearn."""
    task = declared(graded=False)
    table = Table(identity)
    changes = [
        table.insert(1, 10.0, 1.0),
        table.insert(2, 20.0, None),
        table.insert(3, None, 3.0),  # refused: no feature
        table.insert(4, 40.0, None),
        table.update(table.rows[2], u=21.0),
        table.update(table.rows[3], y=4.0),
        table.delete(table.rows[4]),
        table.update(table.rows[2], y=2.0),  # learned
        table.update(table.rows[3], note="x"),
    ]
    counted = [
        table.update(table.rows[1], note="x"),
        table.update(table.rows[2], y=2.5),
        table.update(table.rows[1], id=9, k="k9"),
        table.delete(table.rows[1]),
        table.delete(table.rows[2]),
    ]
    for sizes in ([1], [2], [5], [100]):
        for stored in (True, False):
            state, _ = play(task, rows_of(changes), identity, sizes, stored=stored)
            assert (state.counters.learned, state.counters.ignored) == (2, 0)
            state, _ = play(task, rows_of(changes + counted), identity, sizes, stored=stored)
            assert (state.counters.learned, state.counters.ignored) == (2, 5)


def test_rows_that_an_update_shows_with_a_label_were_not_learned() -> None:
    task = declared(graded=False)
    changes: list[Change] = [
        ("u", None, row(1, 10.0, 1.0)),
        ("u", None, row(1, 10.0, 2.0)),
        ("d", None, row(1, None, None)),
        ("d", None, row(2, None, None)),
        ("c", None, row(3, 30.0, 3.0)),
        ("t", None, None),
    ]
    for sizes in ([1], [100]):
        state, _ = play(task, rows_of(changes), "default", sizes)
        assert (learned(state), state.counters.ignored) == ([(30.0, 3.0)], 1)


def test_what_is_known_of_rows_does_not_grow_with_their_number() -> None:
    """Rows older than the newest million are forgotten, everywhere that they are remembered."""
    rows = row_identity.Identity(limit=1_000)
    late = labels.Late(partial=True)
    for start in range(0, 60_000, 500):
        made = Batch.of({"id": range(start, start + 500), "y": [1.0] * 500}, key=["id"])
        late.examples(labels.numbered(made, rows), "y", ["id"])
        rows.state()  # as a checkpoint does
        late.too_old(rows.forgotten)
    assert len(rows._index) <= 4_000
    assert late._done is not None and len(late._done.values) <= 4_000
    assert len(rows._keys.values) <= 4_000
