"""Drift detectors over a column: where they say drift, and that it does not depend on how rows were grouped."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river.drift import ADWIN, KSWIN, PageHinkley

from headrace.errors import DeclarationError, LearnError
from headrace.grade.drift import Drift, DriftSpec, refuse_unrepeatable
from headrace.learn.state import dump_state, load_state

DETECTORS: dict[str, Any] = {
    "ADWIN": ADWIN(delta=0.01, clock=1),
    "KSWIN": KSWIN(alpha=0.001, window_size=40, stat_size=15, seed=7),
    "PageHinkley": PageHinkley(min_instances=10, threshold=3.0),
}


class Threshold:
    """Says drift at each value above 1: a detector whose answers can be read off a table."""

    def __init__(self) -> None:
        self.drift_detected = False
        self.values: list[float] = []

    def update(self, x: float) -> None:
        if x == 666:
            raise ArithmeticError("no such value")
        self.values.append(x)
        self.drift_detected = x > 1


def made(spec: DriftSpec) -> Drift:
    return Drift(spec, dump=pickle.dumps, load=pickle.loads)


def restored(drift: Drift) -> Drift:
    again = made(drift.spec)
    again.restore(load_state(dump_state(drift.snapshot())))
    return again


def steps(n: int = 900, seed: int = 3) -> np.ndarray:
    """Values around 0.1, then 0.9, then 0.4."""
    level = np.repeat([0.1, 0.9, 0.4], n // 3)
    return level + np.random.default_rng(seed).normal(0, 0.05, n)


CASES = {
    "each drift, and the values since the one before; null and NaN are no values": (
        {},
        """
        time  by  x     rows
        1     a   0.1
        2     a   null
        3     a   5     2
        4     a   nan
        5     a   6     1
        """,
    ),
    "a cooldown of rows": (
        {"cooldown_rows": 2},
        """
        time  by  x     rows
        1     a   5     1
        2     a   5
        3     a   null
        4     a   5     2
        5     a   5
        """,
    ),
    "a cooldown of time": (
        {"cooldown_us": 2},
        """
        time  by  x     rows
        1     a   5     1
        3     a   5
        2     a   5
        4     a   5     3
        """,
    ),
    "groups have detectors and cooldowns of their own": (
        {"cooldown_rows": 1, "by": ("by",)},
        """
        time  by  x     rows
        1     a   5     1
        2     b   0
        3     b   5     2
        4     a   5
        5     a   5     2
        6     b   5
        """,
    ),
}


@pytest.mark.parametrize("step", [1, 2, 100], ids=["one by one", "two by two", "at once"])
@pytest.mark.parametrize("case", CASES)
def test_rows_show_drifts(case: str, step: int) -> None:
    more, table = CASES[case]
    cells = [line.split() for line in table.strip().splitlines()[1:]]
    expected = [int(row[3]) if row[3:] else None for row in cells]
    values = pa.array([None if row[2] == "null" else float(row[2]) for row in cells], pa.float64())
    records = pa.record_batch({"by": [row[1] for row in cells], "x": values})
    time = np.array([int(row[0]) for row in cells], np.int64)
    drift, found = made(DriftSpec("x", Threshold(), **more)), [None] * len(cells)
    for i in range(0, len(cells), step):
        part = slice(i, i + step)
        shown = drift.push(records.slice(i, step), time[part], np.arange(len(cells))[part])
        assert shown.records.schema.names == ["by", "x", "detector", "rows", "mean_before", "mean_after"]
        for place, rows in zip(shown.place.tolist(), shown.records.column("rows").to_pylist(), strict=True):
            found[place] = rows
    assert found == expected


@pytest.mark.parametrize("name", DETECTORS)
def test_rivers_detectors_find_the_steps(name: str) -> None:
    values = steps()
    shown = made(DriftSpec("x", DETECTORS[name])).push(pa.record_batch({"x": values}), np.arange(900), np.arange(900))
    places, rows = shown.place.tolist(), shown.records.to_pylist()
    near = [min(place - at for place in places if place >= at) for at in (300, 600)]
    assert max(near) < 60, places
    assert {row["detector"] for row in rows} == {name}
    first = next(row for row, place in zip(rows, places, strict=True) if place >= 300)
    if name == "PageHinkley":
        assert first["mean_before"] is None and first["mean_after"] is None
    else:
        # ADWIN drops its oldest values first: what it keeps is of both levels.
        assert abs(first["mean_before"] - 0.1) < 0.1 and first["mean_after"] > first["mean_before"] + 0.02
    sums = np.diff([-1, *places])
    assert [row["rows"] for row in rows] == sums.tolist()


@pytest.mark.parametrize("name", DETECTORS)
def test_the_same_as_the_detector_alone(name: str) -> None:
    values, alone = steps(seed=5), pickle.loads(pickle.dumps(DETECTORS[name]))
    expected = []
    for i, value in enumerate(values.tolist()):
        alone.update(value)
        if alone.drift_detected:
            expected.append(i)
    shown = made(DriftSpec("x", DETECTORS[name])).push(pa.record_batch({"x": values}), np.arange(900), np.arange(900))
    assert shown.place.tolist() == expected and expected


@pytest.mark.parametrize("name", DETECTORS)
@settings(max_examples=25)
@given(data=st.data())
def test_the_same_however_rows_are_grouped(name: str, data: st.DataObject) -> None:
    values = steps(240, seed=data.draw(st.integers(0, 20), label="seed"))
    groups = np.where(np.arange(240) % 3 == 0, "a", "b")
    spec = DriftSpec(
        "x",
        DETECTORS[name],
        by=data.draw(st.sampled_from([(), ("by",)])),
        cooldown_rows=data.draw(st.sampled_from([0, 7])),
        cooldown_us=data.draw(st.sampled_from([0, 9])),
    )
    records, time = pa.record_batch({"x": values, "by": groups}), np.arange(240)
    once = made(spec).push(records, time, time)
    drift, parts, at = made(spec), [], 0
    while at < 240:
        step = data.draw(st.integers(1, 120), label="step")
        part = slice(at, at + step)
        before = drift.copy()
        first = before.copy().push(records.slice(at, step), time[part], time[part])
        shown = drift.push(records.slice(at, step), time[part], time[part])
        again = before.push(records.slice(at, step), time[part], time[part])
        assert first.records.equals(shown.records) and again.records.equals(shown.records)
        parts.append(shown)
        if data.draw(st.booleans(), label="restore"):
            drift = restored(drift)
        at += step
    assert pa.Table.from_batches([piece.records for piece in parts]).equals(pa.Table.from_batches([once.records]))
    assert np.concatenate([piece.place for piece in parts]).tolist() == once.place.tolist()


def test_the_detector_given_is_never_changed() -> None:
    given_one = Threshold()
    drift = made(DriftSpec("x", given_one))
    drift.push(pa.record_batch({"x": [5.0]}), np.array([0]), np.array([0]))
    assert given_one.values == []
    copy = drift.copy()
    copy.push(pa.record_batch({"x": [6.0]}), np.array([0]), np.array([0]))
    seen = [pickle.loads(item.snapshot()["detectors"].tobytes()).values for item in (drift, copy)]
    assert seen == [[5.0], [5.0, 6.0]]


def test_only_load_reads_a_states_detectors() -> None:
    def refuse(data: bytes) -> Any:
        raise LearnError("not written by this installation")

    drift = made(DriftSpec("x", Threshold()))
    drift.push(pa.record_batch({"x": [5.0]}), np.array([0]), np.array([0]))
    with pytest.raises(LearnError, match="not written by this installation"):
        Drift(drift.spec, dump=pickle.dumps, load=refuse).restore(drift.snapshot())


def test_a_column_of_the_row_keeps_its_name() -> None:
    records = pa.record_batch({"x": [5.0], "rows": ["mine"]})
    (row,) = made(DriftSpec("x", Threshold())).push(records, np.array([0]), np.array([0])).records.to_pylist()
    assert (row["rows"], row["drift_rows"], row["detector"]) == ("mine", 1, "Threshold")


def test_values_that_cannot_be_watched() -> None:
    drift = made(DriftSpec("x", Threshold()))
    with pytest.raises(DeclarationError, match="on «x», which is binary"):
        drift.push(pa.record_batch({"x": [b"a"]}), np.array([0]), np.array([0]))
    with pytest.raises(LearnError, match=r"Threshold failed at 666.0, row 1: ArithmeticError: no such value"):
        drift.push(pa.record_batch({"x": [1.0, 666.0]}), np.arange(2), np.arange(2))


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (KSWIN(), r"KSWIN draws numbers, and its seed is open: say KSWIN\(seed=…\)"),
        (ADWIN, r"ADWIN is a class: say ADWIN\(…\)"),
        (math, "module is no drift detector"),
    ],
    ids=["open seed", "class", "module"],
)
def test_detectors_that_are_refused(detector: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refuse_unrepeatable(detector)
    with pytest.raises(ValueError, match=message):
        made(DriftSpec("x", detector))
    with pytest.raises(ValueError, match="cooldown"):
        made(DriftSpec("x", Threshold(), cooldown_rows=-1))
