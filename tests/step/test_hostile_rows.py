"""Rows that a window, an alarm, a detector, a metric or an operation cannot take: only they go to the dead letters."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.batch import Batch
from headrace.plain_values import values
from headrace.plan.task import Task
from headrace.step.events import Part, Rows
from headrace.step.state import dump_state, initial_state, load_state
from headrace.step.step import step

NUMERIC = {"postgres.type": "numeric"}


def event(columns: dict[str, Any], first: int = 0, *, ts_us: Any = None, numeric: str = "") -> Rows:
    """Rows of the topic «r», each a slice of its own; ``numeric`` names a column that is one without a scale."""
    rows = pa.RecordBatch.from_pydict(columns)
    fields = [field.with_metadata(NUMERIC) if field.name == numeric else field for field in rows.schema]
    rows = pa.RecordBatch.from_arrays(rows.columns, schema=pa.schema(fields))
    place = np.arange(first, first + rows.num_rows)
    times = place * 1_000_000 if ts_us is None else np.asarray(ts_us)
    batch = Batch.of(rows, lsn=(100 + place).astype(np.uint64), index=np.zeros(len(place), np.int64), ts_us=times)
    return Rows((Part("r", batch, place + 1, first),), True)


def run(task: Task, given: list[Rows], *, saved: bool = False) -> dict[str, list[dict[str, Any]]]:
    state, found = initial_state(task), {}
    for item in given:
        for topic, batch in step(task, state, item):
            columns = [values(batch.column(name)) for name in batch.column_names]
            rows = [dict(zip(batch.column_names, row, strict=True)) for row in zip(*columns, strict=True)]
            found.setdefault(topic, []).extend(rows)
        if saved:
            state = load_state(task, {**dump_state(state)})
    found["rejected"] = [{"rows": state.counters.rejected}]
    return found


def flow(declare: Any) -> Task:
    app = hr.App("hostile", log="memory://")
    declare(app.topic("r"))
    (task,) = app.plan().tasks
    return task


def refused(found: dict[str, list[dict[str, Any]]], topic: str = "r") -> list[str]:
    return [row["reason"] for row in found.get(f"{topic}.dlq", [])]


TIMES: dict[str, tuple[pa.Array, int]] = {
    "texts": (
        pa.array(
            [
                "2024-01-01T00:00:00Z", None, "yesterday", "2024-01-01 00:00:30", "infinity", "", "2024-02-30",
                "2024-01-01 05:00:40+05", "1700000000000", "2024-01-01T00:00:50.123456789Z",
            ]
        ),
        6,
    ),
    "far": (
        pa.array(["0044-03-15 BC", "infinity", "20000-02-29 12:00:00+00", "-infinity", "9999-12-31 23:59:59-05"]),
        2,
    ),
    "milliseconds": (pa.array([0, 1_700_000_000_000, 1_700_000_000_000_000, None, -(2**63), 2**63 - 1]), 4),
    "unsigned": (pa.array([2**64 - 1, 1_000, 2_000], pa.uint64()), 1),
    "floats": (pa.array([1.7e12, float("nan"), float("inf"), 0.5, None, 1.700000000001e12]), 4),
    "decimals": (pa.array([Decimal("1700000000000.0"), Decimal("0.5"), None]), 2),
    "days": (pa.array([2**31 - 1, -(2**31), -735_160, 19_000, 2_932_897], pa.int32()).cast(pa.date32()), 2),
    "instants": (pa.array([2**63 - 1, -(2**63), 2**62, 0, 61_000_000, -1]).view(pa.timestamp("us", "UTC")), 3),
    "seconds": (pa.array([2**60, 0, 61]).view(pa.timestamp("s")), 1),
    "nanoseconds": (pa.array([2**63 - 1, 0, 61_000_000_000]).view(pa.timestamp("ns", "UTC")), 1),
    "truth values": (pa.array([True, None]), 2),
    "clocks": (pa.array([1, 2]).view(pa.time64("us")), 2),
    "lists": (pa.array([["2024-01-01"], None]), 2),
    "bytes": (pa.array([b"2024-01-01"]), 1),
    "words": (pa.array(["2024-01-01", "soon"]).dictionary_encode(), 1),
    "nothing": (pa.nulls(2), 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", TIMES)
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_rows_without_a_readable_time_are_dead_letters_and_the_others_are_in_windows(kind: str, apart: bool) -> None:
    at, bad = TIMES[kind]
    order = np.arange(len(at))
    task = flow(lambda r: r.window("1 min", time="at", lateness="800000 d").count().to("w"))
    rows = {"id": order, "at": at}
    given = [event({name: row[i : i + 1] for name, row in rows.items()}, i) for i in order] if apart else [event(rows)]
    found = run(task, given, saved=apart)
    assert len(refused(found)) == bad == found["rejected"][0]["rows"]
    assert all(reason.startswith("the time «at» is ") for reason in refused(found))
    plain = flow(lambda r: r.window("1 min", time="at").count().to("w"))
    lines = run(plain, given).get("w", [])
    # What can be placed is in a window that can be printed.
    assert all(isinstance(line["window_start"], object) and json.dumps(line, default=str) for line in lines)


def hostile(n: int) -> dict[str, pa.Array]:
    x = ["1.5", "many", None, "NaN", "0.50000000000000000000000001", "-Infinity", "1e400", "1_0", "", "2"]
    at = ["2024-01-01T00:00:00Z", "soon", "2024-01-01 00:00:10", None, "20000-01-01 00:00:00+00"]
    return {
        "id": pa.array(np.arange(n)),
        "x": pa.array([x[i % len(x)] for i in range(n)]),
        "at": pa.array([at[i % 7] if i % 7 < len(at) else f"2024-01-01 00:{i % 60:02d}:00Z" for i in range(n)]),
        "g": pa.array([["a", None, "b"][i % 3] for i in range(n)]),
    }


class Picky:
    """A detector that takes no 2, and says drift at 1.5."""

    def __init__(self) -> None:
        self.drift_detected, self.seen = False, 0

    def update(self, x: float) -> None:
        if x == 2.0:
            raise ArithmeticError("no 2")
        self.seen += 1
        self.drift_detected = x == 1.5


def everything(r: Any) -> None:
    def doubled(batch: Batch) -> list[float]:
        return [float(value) * 2 for value in batch.column("x").to_pylist()]

    r.window("1 min", time="at", by="g").mean("x").to("means")
    r.window(3, by="g").agg(a=hr.metrics.sum("x"), b=hr.metrics.max("x"), c=hr.metrics.std("x")).to("sums")
    r.above(0.5, column="x", cooldown=0).to("above")
    r.outside(0.0, 1.0, column="x", consecutive=2).to("outside")
    r.drift("x", Picky(), by="g").to("drift")
    r.with_columns(y=doubled).filter(lambda batch: np.asarray(batch.column("y")) > 1).above(2.0, column="y").to("y")


@settings(max_examples=4)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_the_same_rows_are_refused_however_they_come(sizes: list[int]) -> None:
    app = hr.App("hostile", log="memory://")
    everything(app.topic("r"))
    rows, n = hostile(60), 60
    for task in app.plan().tasks:
        whole = run(task, [event(rows)])
        given, start = [], 0
        for size in [*sizes, n]:
            part = {name: row.slice(start, size) for name, row in rows.items()}
            given += [event(part, start)] if len(part["id"]) else []
            start = min(start + size, n)
        # As text: NaN equals itself there.
        assert repr(sorted(run(task, given, saved=True).items())) == repr(sorted(whole.items()))
    assert len(app.plan().tasks) == 6


def test_numbers_that_are_held_as_text_are_exact() -> None:
    x = ["0.5", "0.50000000000000000000000001", "0.1", "0.2", "1e30", "1"]
    task = flow(lambda r: r.above(0.5, column="x", cooldown=0).to("a"))
    assert [row["x"] for row in run(task, [event({"x": x})])["a"]] == [x[1], "1e30", "1"]
    spec = {name: getattr(hr.metrics, name)("x") for name in ("sum", "mean", "min", "max", "unique")}
    task = flow(lambda r: r.window(6).agg(**spec).to("w"))
    numbers = ["0.1", "0.20", "10", "9", "1e30", "10.0"]
    (line,) = run(task, [event({"x": numbers}, numeric="x")])["w"]
    assert Decimal(line["sum"]) == Decimal("1000000000000000000000000000029.30")
    assert (line["min"], line["max"], line["unique"]) == ("0.1", "1e30", ["0.1", "0.20", "10", "9", "1e30"])
    assert line["mean"] == float(Decimal("1000000000000000000000000000029.30") / 6)
    # Of a text column that is no numeric, the largest is that of the alphabet.
    (line,) = run(task, [event({"x": numbers})])["w"]
    assert (line["max"], line["mean"]) == ("9", line["mean"])


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([2**53, 2**53 + 1, 2**53 - 1]), [2**53 + 1]),
        (pa.array([Decimal("9007199254740992.0000000001"), Decimal(1)]), [Decimal("9007199254740992.0000000001")]),
        (pa.array([True, False, None]), []),
        (pa.array([float("nan"), float("inf"), None]), [float("inf")]),
    ],
    ids=["whole", "decimals", "truth values", "floats"],
)
def test_a_bound_is_compared_to_the_last_digit(array: pa.Array, expected: list[Any]) -> None:
    task = flow(lambda r: r.above(float(2**53), column="x", cooldown=0).to("a"))
    assert [row["x"] for row in run(task, [event({"x": array})]).get("a", [])] == expected


def test_a_line_whose_value_does_not_fit_is_a_dead_letter_and_the_window_goes_on() -> None:
    task = flow(lambda r: r.window(2, every=2).sum("x").to("w"))
    found = run(task, [event({"x": [2**62, 2**62, 1, 2]})])
    assert [row["x"] for row in found["w"]] == [3]
    assert refused(found, "w") and "the sum of «x»" in refused(found, "w")[0]


def test_a_column_that_becomes_a_float_refuses_what_it_cannot_hold() -> None:
    task = flow(lambda r: r.window(2, every=2).max("x").to("w"))
    given = [event({"x": [2**53 + 1]}), event({"x": [0.5]}, 1), event({"x": [7]}, 2), event({"x": [8]}, 3)]
    found = run(task, given, saved=True)
    assert [row["x"] for row in found["w"]] == [2**53 + 1]
    assert len(refused(found)) == 1
    given = [event({"x": [0.5]}), event({"x": [2**53 + 1, 3]}, 1)]
    found = run(task, given)
    assert ([row["x"] for row in found["w"]], len(refused(found))) == ([3.0], 1)


def test_a_users_rows_with_the_columns_of_a_grade_are_no_grades() -> None:
    task = flow(lambda r: r.window(2).count().to("w"))
    found = run(task, [event({"grade": ["A", "B"], "supersedes": ["x", None], "status": ["new", "old"]})])
    assert [row["count"] for row in found["w"]] == [2]


# -- metrics and operations of the user's own ------------------------------------------------------------------------


def graded(metric: Any, truths: list[Any]) -> dict[str, list[dict[str, Any]]]:
    app = hr.App("hostile", log="memory://")
    app.topic("r").grade(app.topic("t"), on="id", within="1 h", metric=metric, target="y").to("g")
    (task,) = app.plan().tasks
    n = len(truths)
    first = event({"id": np.arange(n), "prediction": np.arange(n, dtype=np.float64)})
    (part,) = event({"id": np.arange(n), "y": truths}, n).parts
    return run(task, [first, Rows((Part("t", part.batch, part.slices, 0),), True)])


def fails_at_three(prediction: Any, truth: Any) -> Any:
    if (np.asarray(truth, np.float64) == 3).any():
        raise ZeroDivisionError("three")
    return np.abs(prediction - truth)


def too_few(prediction: Any, truth: Any) -> Any:
    return np.abs(prediction - truth)[truth != 3]


@pytest.mark.parametrize(
    ("metric", "truths", "good"),
    [
        (fails_at_three, [0.0, 1.0, 3.0, 3.0, 4.0], [0, 1, 4]),
        (too_few, [0.0, 1.0, 3.0, 3.0, 4.0], [0, 1, 4]),
        (lambda prediction, truth: None, [0.0, 1.0], []),
        (lambda prediction, truth: float(np.mean(prediction - truth)), [0.0, 1.0], []),
        (lambda prediction, truth: np.array([object()] * len(truth)), [0.0], []),
        (hr.metrics.absolute_error, ["0", "many", "2", None], [0, 2, 3]),
        (hr.metrics.relative_error, [Decimal("0.5"), None, Decimal("2.0")], [0, 1, 2]),
        (hr.metrics.absolute_error, [float("nan"), float("inf")], [0, 1]),
    ],
    ids=["raises", "too few", "None", "one for all", "objects", "texts", "decimals", "infinite"],
)
def test_a_metric_that_fails_refuses_only_the_rows_at_fault(metric: Any, truths: list[Any], good: list[int]) -> None:
    found = graded(metric, truths)
    some = [row["id"] for row in found.get("g", [])]
    labelled = [i for i in good if truths[i] is not None]
    assert [item for item in some if truths[item] is not None] == labelled
    assert len(refused(found, "g")) == sum(truth is not None for truth in truths) - len(labelled)


def unevenly(batch: Batch) -> Any:
    if 3 in batch.column("id").to_pylist():
        raise hr.errors.HeadraceError("three is not taken")
    return batch


def reversed_rows(batch: Batch) -> Batch:
    return batch.take(np.arange(batch.num_rows)[::-1].copy())


@pytest.mark.parametrize(
    ("function", "good", "reason"),
    [
        (unevenly, [0, 1, 2, 4], "three is not taken"),
        (lambda batch: None, [], "returned NoneType"),
        (lambda batch: batch.records, [], "returned RecordBatch"),
        (lambda batch: Batch(batch.rows), [], "dropped the column __op"),
        (lambda batch: Batch.of({"id": batch.column("id")}), [], "dropped the column __order"),
        (lambda batch: batch.column("none"), [], "does not exist"),
        (reversed_rows, [0, 1, 2, 3, 4], ""),
    ],
    ids=["raises", "None", "records", "no event", "made anew", "no column", "reversed"],
)
@pytest.mark.parametrize("predicted", [False, True], ids=["window", "predict"])
def test_a_transform_that_fails_refuses_only_the_rows_at_fault(
    function: Any, good: list[int], reason: str, predicted: bool
) -> None:
    app = hr.App("hostile", log="memory://")
    stream = app.topic("r").transform(function)
    if predicted:
        model = app.model("m", hr.KMeans(2), features=["id"])
        model.predict(stream).to("w")
        (task,) = app.plan().models
    else:
        stream.window(1).agg(id=hr.metrics.last("id")).to("w")
        (task,) = app.plan().tasks
    found = run(task, [event({"id": np.arange(5)})])
    assert [row["id"] for row in found.get("w", [])] == good
    assert len(refused(found)) == 5 - len(good)
    assert all(reason in item for item in refused(found))


@pytest.mark.parametrize(
    ("expression", "good"),
    [
        (lambda batch: "abcde", 0),
        (lambda batch: None, 0),
        (lambda batch: [1], 5),
        (lambda batch: [1] * 7, 0),
        (lambda batch: {"a": 1}, 0),
        (lambda batch: 1 // 0, 0),
        (lambda batch: batch.column("id").to_pylist(), 5),
    ],
    ids=["text", "None", "one", "too many", "dict", "raises", "list"],
)
def test_an_expression_that_gives_no_value_for_each_row_is_said(expression: Any, good: int) -> None:
    task = flow(lambda r: r.with_columns(y=expression).window(1).count().to("w"))
    found = run(task, [event({"id": np.arange(5)})])
    assert (len(found.get("w", [])), len(refused(found))) == (good, 5 - good)
