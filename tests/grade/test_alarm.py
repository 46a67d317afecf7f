"""Alarms: which lines raise one, and that it does not depend on how lines were grouped."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DeclarationError
from headrace.grade.alarm import Alarm, AlarmSpec
from headrace.learn.state import dump_state, load_state


def seconds(value: float) -> int:
    return round(value * 1e6)


def lines(table: str) -> tuple[pa.RecordBatch, np.ndarray, list[str]]:
    """A table of times, groups, values, and where an alarm is expected: as records, times, and that last column."""
    rows = [line.split() for line in table.strip().splitlines()[1:]]
    values = [None if x == "null" else float(x) for _, _, x, *_ in rows]
    records = pa.record_batch(
        {"by": [by for _, by, *_ in rows], "mean": pa.array(values, pa.float64()), "row": np.arange(len(rows))}
    )
    marks = ["alarm" if row[3:] == ["alarm"] else "" for row in rows]
    return records, np.array([seconds(float(time)) for time, *_ in rows], np.int64), marks


CASES = {
    "above, strictly": (
        {"above": 0.15},
        """
        time  by  mean  expected
        60    a   0.1
        120   a   0.15
        180   a   0.7   alarm
        240   a   0.6   alarm
        300   a   null
        360   a   nan
        """,
    ),
    "below, strictly": (
        {"below": 1.0},
        """
        time  by  mean  expected
        60    a   1
        120   a   0.99  alarm
        180   a   -inf  alarm
        """,
    ),
    "outside": (
        {"below": 0.0, "above": 1.0},
        """
        time  by  mean  expected
        60    a   -0.1  alarm
        120   a   0
        180   a   1
        240   a   1.1   alarm
        """,
    ),
    "one window after an alarm raises none": (
        {"above": 0.15, "cooldown_us": seconds(60)},
        """
        time  by  mean  expected
        60    a   0.7   alarm
        120   a   0.7
        180   a   0.7   alarm
        240   a   0.1
        300   a   0.7   alarm
        """,
    ),
    "a cooldown of lines": (
        {"above": 0.15, "cooldown_rows": 2},
        """
        time  by  mean  expected
        60    a   0.7   alarm
        120   a   0.1
        120   a   0.7
        120   a   0.7   alarm
        """,
    ),
    "three in a row, counted anew after an alarm; null and what is within breaks them": (
        {"above": 0.15, "consecutive": 3},
        """
        time  by  mean  expected
        1     a   0.7
        2     a   0.7
        3     a   0.1
        4     a   0.7
        5     a   0.7
        6     a   null
        7     a   0.7
        8     a   0.7
        9     a   0.7   alarm
        10    a   0.7
        11    a   0.7
        12    a   0.7   alarm
        """,
    ),
    "lines in the cooldown do not count as consecutive": (
        {"above": 0.15, "consecutive": 2, "cooldown_us": seconds(2)},
        """
        time  by  mean  expected
        1     a   0.7
        2     a   0.7   alarm
        3     a   0.7
        4     a   0.7
        5     a   0.7
        6     a   0.7   alarm
        """,
    ),
    "each group has its own count and cooldown": (
        {"above": 0.15, "consecutive": 2, "cooldown_rows": 1, "by": ("by",)},
        """
        time  by  mean  expected
        1     a   0.7
        2     b   0.7
        3     a   0.7   alarm
        4     b   0.1
        5     a   0.7
        6     b   0.7
        7     a   0.7
        8     a   0.7   alarm
        9     b   0.7   alarm
        """,
    ),
    "a line behind in time is in the cooldown too": (
        {"above": 0.15, "cooldown_us": seconds(10)},
        """
        time  by  mean  expected
        50    a   0.7   alarm
        40    a   0.7
        61    a   0.7   alarm
        """,
    ),
}


@pytest.mark.parametrize("step", [1, 2, 100], ids=["one by one", "two by two", "at once"])
@pytest.mark.parametrize("case", CASES)
def test_lines_raise_alarms(case: str, step: int) -> None:
    given_spec, table = CASES[case]
    records, time, expected = lines(table)
    alarm, found = Alarm(AlarmSpec("mean", **given_spec)), [""] * len(expected)
    for i in range(0, len(time), step):
        raised = alarm.push(records.slice(i, step), time[i : i + step], np.arange(i, i + len(time[i : i + step])))
        assert raised.records.schema == records.schema
        for row in raised.records.column("row").to_pylist():
            found[row] = "alarm"
        assert raised.place.tolist() == raised.records.column("row").to_pylist()
        assert raised.time_us.tolist() == time[raised.place].tolist()
    assert found == expected


class LineByLine:
    """What an alarm is, as plainly as it can be said."""

    def __init__(self, spec: AlarmSpec) -> None:
        self.spec = spec
        self.groups: dict[Any, dict[str, int]] = {}

    def raises(self, by: Any, value: float | None, time: int) -> bool:
        spec = self.spec
        group = self.groups.setdefault(by if spec.by else None, {"streak": 0, "rows": 0, "until": -(10**18)})
        if group["rows"] > 0 or time <= group["until"]:
            group["rows"] = max(group["rows"] - 1, 0)
            group["streak"] = 0
            return False
        above = value is not None and spec.above is not None and value > spec.above
        below = value is not None and spec.below is not None and value < spec.below
        group["streak"] = group["streak"] + 1 if above or below else 0
        if group["streak"] < spec.consecutive:
            return False
        group["streak"], group["rows"] = 0, spec.cooldown_rows
        if spec.cooldown_us:
            group["until"] = max(group["until"], time + spec.cooldown_us)
        return True


specs = st.builds(
    AlarmSpec,
    st.just("mean"),
    above=st.just(1.0),
    below=st.sampled_from([None, 0.0]),
    consecutive=st.integers(1, 4),
    cooldown_us=st.integers(0, 6),
    cooldown_rows=st.integers(0, 4),
    by=st.sampled_from([(), ("by",)]),
)
rows = st.lists(
    st.tuples(
        st.sampled_from([1.5, 2.0, math.inf, 1.0, 0.5, -1.0, math.nan, None]),
        st.sampled_from(["a", "b", None]),
        st.integers(-2, 4),
    ),
    max_size=80,
)


@given(specs, rows, st.data())
def test_equal_to_line_by_line_however_lines_are_grouped(spec: AlarmSpec, drawn: Any, data: st.DataObject) -> None:
    time = np.cumsum([0, *(step for _, _, step in drawn)])[1:].astype(np.int64)
    oracle = LineByLine(spec)
    expected = [i for i, (x, by, _) in enumerate(drawn) if oracle.raises(by, x, int(time[i]))]
    records = pa.record_batch(
        {
            "mean": pa.array([x for x, *_ in drawn], pa.float64()),
            "by": pa.array([by for _, by, _ in drawn], pa.string()),
        }
    )
    alarm, found, at = Alarm(spec), [], 0
    while at < len(drawn):
        step = data.draw(st.integers(0, 12), label="step")
        part = slice(at, at + step)
        before, kept = alarm.copy(), dump_state(alarm.snapshot())
        found += alarm.push(records.slice(at, step), time[part], np.arange(len(time))[part]).place.tolist()
        assert dump_state(before.snapshot()) == kept, "lines of the original do not change a copy"
        if data.draw(st.booleans(), label="restore"):
            alarm, state = Alarm(spec), alarm.snapshot()
            alarm.restore(load_state(dump_state(state)))
        at += step
    assert found == expected


def test_a_plain_alarm_remembers_nothing_and_others_forget_calm_groups() -> None:
    alarm = Alarm(AlarmSpec("mean", above=1.0, consecutive=2, by=("by",)))
    records = pa.record_batch({"mean": [2.0, 2.0, 0.0], "by": ["a", "b", "b"]})
    alarm.push(records, np.arange(3), np.arange(3))
    assert alarm.snapshot()["streak"].tolist() == [1], "b is as it was in the beginning"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, 5, None], pa.int32()), [1]),
        (pa.array([True, False, None]), []),
        (pa.array([None, None, None]), []),
        (pa.array([1.5, 2.5, 3.5], pa.float32()), [1, 2]),
        (pa.array(["1", "2", "3"]).dictionary_encode().indices, []),
        (pa.array([1, 9, 1]).dictionary_encode(), [1]),
    ],
    ids=["int32", "bool", "null", "float32", "codes", "dictionary"],
)
def test_columns_of_numbers(values: pa.Array, expected: list[int]) -> None:
    raised = Alarm(AlarmSpec("x", above=2.0)).push(pa.record_batch({"x": values}), np.arange(3), np.arange(3))
    assert raised.place.tolist() == expected


def test_columns_that_are_not_there_or_no_numbers_are_refused() -> None:
    alarm = Alarm(AlarmSpec("mean", above=1.0, by=("tags",)))
    for records, message in (
        (pa.record_batch({"x": [1.0]}), "needs a column «mean», and its rows have none"),
        (pa.record_batch({"mean": [b"high"], "tags": ["a"]}), "on «mean», which is binary"),
        (pa.record_batch({"mean": [1.0], "tags": [["a"]]}), "by «tags», which is list"),
    ):
        with pytest.raises(DeclarationError, match=message):
            alarm.push(records, np.array([0]), np.array([0]))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"above": math.nan},
        {"above": 1.0, "below": 2.0},
        {"above": 1.0, "consecutive": 0},
        {"above": 1.0, "cooldown_us": -1},
        {"above": 1.0, "cooldown_rows": -1},
    ],
    ids=str,
)
def test_alarms_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError):
        AlarmSpec("mean", **wrong)
