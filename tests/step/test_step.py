"""What happens to rows: order, cuts, answers, refusals; and that none of it depends on how rows were grouped."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batch import Batch
from headrace.plan.task import Cut, ModelTask, OutputPlan, PredictPlan, StreamPlan, StreamTask
from headrace.position import Position
from headrace.step.events import Part, Rows, Tick
from headrace.step.learning import PIECE_ROWS
from headrace.step.state import State, dump_state, initial_state, load_state
from headrace.step.step import step
from headrace.transform.expressions import Filter, Select, Text


class Counting:
    """Answers every row with the number of rows learned; remembers the sizes of its cuts."""

    deterministic = True
    prediction_type = pa.int64()

    def __init__(self, ready: bool = True) -> None:
        self.rows = 0
        self.cuts: list[int] = []
        self.initially_ready = ready

    @property
    def ready(self) -> bool:
        return self.initially_ready or self.rows > 0

    def learn(self, X: npt.NDArray[Any], y: npt.NDArray[Any] | None = None) -> None:
        self.rows += len(X)
        self.cuts.append(len(X))

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.full(len(X), self.rows)

    def parameters(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"rows": self.rows, "cuts": np.array(self.cuts, np.int64)}

    def restore(self, state: dict[str, Any]) -> None:
        self.rows, self.cuts = state["rows"], state["cuts"].tolist()


def task(cut: Cut, *, ready: bool = True, same: bool = False, **more: Any) -> ModelTask:
    asked = StreamPlan("train" if same else "test")
    return ModelTask(
        name="m",
        learner=Counting(ready),
        features=("x",),
        cut=cut,
        learn=(StreamPlan("train"),),
        predict=(PredictPlan(asked, (OutputPlan("out"),)),),
        **more,
    )


def grid(text: str) -> list[tuple[str, Batch, int]]:
    """Rows from a table «topic lsn index x [op [ts]]»; each line is a batch of one row, in a slice of its own."""
    rows = []
    for number, line in enumerate(text.strip().splitlines(), 1):
        topic, lsn, index, x, *rest = line.split()
        value = None if x == "-" else float(x)
        batch = Batch.of(
            {"x": pa.array([value], pa.float64())},
            op=rest[0] if rest else "c",
            lsn=int(lsn),
            index=np.array([int(index)]),
            ts_us=int(float(rest[1]) * 1e6) if len(rest) > 1 else 0,
        )
        rows.append((topic, batch, number))
    return rows


def event(rows: list[tuple[str, Batch, int]], topics: tuple[str, ...], complete: bool) -> Rows:
    parts = []
    for topic in topics:
        mine = [(batch, number) for name, batch, number in rows if name == topic]
        if mine:
            records = pa.concat_batches([batch.records for batch, _ in mine])
            parts.append(Part(topic, Batch(records), np.array([number for _, number in mine]), 0))
    return Rows(tuple(parts), complete)


def play(one: ModelTask | StreamTask, rows: list[tuple[str, Batch, int]], sizes: list[int]) -> tuple[State, list[Any]]:
    """Run rows in events of the given sizes (repeated); ends of events are complete where a transaction ends."""
    rows = [row for row in rows if row[0] in one.topics]
    state, outputs, at, turn = initial_state(one), [], 0, 0
    while at < len(rows):
        end = min(len(rows), at + sizes[turn % len(sizes)])
        turn += 1
        lsn = rows[end - 1][1].lsn[0]
        complete = end == len(rows) or rows[end][1].lsn[0] != lsn
        for topic, batch in step(one, state, event(rows[at:end], one.topics, complete)):
            outputs += [(topic, row) for row in batch.records.to_pylist()]
        state = load_state(one, dump_state(state))
        at = end
    return state, outputs


def answers(outputs: list[Any]) -> list[tuple[int, int, Any]]:
    return sorted((row["__lsn"], row["__index"], row["prediction"]) for topic, row in outputs if topic == "out")


def test_a_row_sees_the_cuts_of_earlier_transactions_only() -> None:
    rows = grid("""
        train 10 0 1
        test  10 1 0
        train 20 0 1
        train 20 1 1
        test  20 2 0
        test  30 0 0
    """)
    for sizes in ([1], [2], [6], [1, 3]):
        state, outputs = play(task(Cut(transaction=True)), rows, sizes)
        assert answers(outputs) == [(10, 1, 0), (20, 2, 1), (30, 0, 3)]
        assert state.learner.cuts == [1, 2]  # type: ignore[union-attr]


def test_a_row_count_cuts_inside_a_transaction_but_is_seen_after_it() -> None:
    rows = grid("""
        train 10 0 1
        train 10 1 1
        test  10 2 0
        train 10 3 1
        test  20 0 0
        train 30 0 1
        test  30 1 0
        test  40 0 0
    """)
    for sizes in ([1], [3], [8], [5, 1]):
        state, outputs = play(task(Cut(rows=2)), rows, sizes)
        assert answers(outputs) == [(10, 2, 0), (20, 0, 2), (30, 1, 2), (40, 0, 4)]
        assert state.learner.cuts == [2, 2]  # type: ignore[union-attr]
        assert state.position == Position(30, 0)
        assert state.open_batch.rows == 0


def test_learning_and_answering_one_stream_is_test_then_train() -> None:
    rows = grid("train 10 0 1\ntrain 20 0 1\ntrain 20 1 1\ntrain 30 0 1")
    _, outputs = play(task(Cut(transaction=True), same=True), rows, [4])
    assert answers(outputs) == [(10, 0, 0), (20, 0, 1), (20, 1, 1), (30, 0, 3)]


def test_a_duration_is_cut_by_the_running_maximum_of_commit_times() -> None:
    rows = grid("""
        train 10 0 1 c 0.1
        train 20 0 1 c 0.9
        test  30 0 0 c 0.95
        train 40 0 1 c 1.2
        train 50 0 1 c 0.8
        test  60 0 0 c 1.9
        test  70 0 0 c 2.0
    """)
    for sizes in ([1], [7], [2]):
        state, outputs = play(task(Cut(duration_us=1_000_000)), rows, sizes)
        assert answers(outputs) == [(30, 0, 0), (60, 0, 2), (70, 0, 4)]
        assert state.learner.cuts == [2, 2]  # type: ignore[union-attr]


def test_ticks_close_idle_durations_and_explicit_ticks_any_cut() -> None:
    one = task(Cut(duration_us=1_000_000))
    state, _ = play(one, grid("train 10 0 1 c 0.1"), [1])
    step(one, state, Tick(500_000))
    assert state.learner.cuts == []  # type: ignore[union-attr]
    step(one, state, Tick(1_000_000))
    assert state.learner.cuts == [1]  # type: ignore[union-attr]
    step(one, state, Tick(5_000_000))
    assert state.learner.cuts == [1]  # type: ignore[union-attr]
    step(one, state, Tick(6_000_000, explicit=True))
    assert state.learner.cuts == [1, 0]  # type: ignore[union-attr]


def test_a_snapshot_is_cut_between_its_tables() -> None:
    rows = grid("train 10 0 1 r\ntrain 10 1 1 r\ntest 10 2 0 r\ntest 11 0 0")
    for sizes in ([1], [2], [4]):
        state, outputs = play(task(Cut(transaction=True)), rows, sizes)
        assert answers(outputs) == [(10, 2, 2), (11, 0, 2)]
        assert state.learner.cuts == [2]  # type: ignore[union-attr]


def test_a_long_cut_is_learned_in_pieces_and_seen_at_its_end() -> None:
    n = 2 * PIECE_ROWS + 5
    x = pa.array(np.ones(n))
    one = task(Cut(transaction=True))
    state = initial_state(one)
    outputs = []
    # One transaction in three slices, then a row that asks inside it, then one that asks after it.
    for start, stop in ((0, 70_000), (70_000, 190_000), (190_000, n)):
        index = np.arange(start, stop)
        batch = Batch.of({"x": x.slice(start, stop - start)}, lsn=10, index=index)
        outputs += step(one, state, Rows((Part("train", batch, np.full(stop - start, 1), start),), False))
    asks = Batch.of({"x": [0.0]}, lsn=10, index=np.array([n]))
    outputs += step(one, state, Rows((Part("test", asks, np.array([2]), 0),), True))
    later = Batch.of({"x": [0.0]}, lsn=20)
    outputs += step(one, state, Rows((Part("test", later, np.array([3]), 1),), True))
    assert [batch.column("prediction").to_pylist() for _, batch in outputs] == [[0], [n]]
    assert state.learner.cuts == [PIECE_ROWS, PIECE_ROWS, 5]  # type: ignore[union-attr]
    assert state.open_batch.learner is None
    assert state.visible is None


def test_every_asked_row_has_one_answer_with_its_status() -> None:
    rows = grid("""
        test  10 0 0
        train 20 0 1
        test  30 0 -
        test  40 0 7
        test  50 0 7 u
        test  60 0 7 d
    """)
    _, outputs = play(task(Cut(transaction=True), ready=False), rows, [6])
    out = [row for topic, row in outputs if topic == "out"]
    assert [(row["status"], row["prediction"]) for row in out] == [
        ("not_ready", None),
        ("invalid", None),
        ("ok", 1),
        ("ok", 1),
    ]
    assert [row["model_position"] for row in out] == [None, "0/14:0", "0/14:0", "0/14:0"]
    dead = [row for topic, row in outputs if topic == "test.dlq"]
    assert [(row["__lsn"], row["reason"], row["stage"]) for row in dead] == [(30, "the feature «x» is NULL", "predict")]


def test_what_cannot_be_learned_goes_to_dead_letters_and_is_not_counted() -> None:
    rows = grid("train 10 0 1\ntrain 10 1 -\ntrain 10 2 nan\ntrain 20 0 1\ntrain 20 1 1 u\ntrain 20 2 1 d")
    state, outputs = play(task(Cut(rows=2)), rows, [6])
    assert state.learner.cuts == [2]  # type: ignore[union-attr]
    assert [(t, r["__index"], r["reason"]) for t, r in outputs] == [
        ("train.dlq", 1, "the feature «x» is NULL"),
        ("train.dlq", 2, "the feature «x» is nan"),
    ]
    assert (state.counters.learned, state.counters.rejected, state.counters.ignored) == (2, 2, 2)


def test_text_where_a_number_belongs() -> None:
    one = task(Cut(transaction=True))
    batch = Batch.of({"x": ["1.5", None]}, lsn=10)
    outputs = step(one, initial_state(one), Rows((Part("train", batch, np.array([1, 1]), 0),), True))
    reasons = outputs[0][1].column("reason").to_pylist()
    assert reasons == ["the feature «x» is text, not a number", "the feature «x» is NULL"]


def test_an_update_that_changes_no_feature_asks_nothing() -> None:
    one = task(Cut(transaction=True))
    before = pa.StructArray.from_arrays([pa.array([1.0, 1.0])], ["x"])
    batch = Batch.of({"x": [1.0, 2.0]}, op="u", lsn=10, before=before)
    outputs = step(one, initial_state(one), Rows((Part("test", batch, np.array([1, 1]), 0),), True))
    assert [row["x"] for row in outputs[0][1].records.to_pylist()] == [2.0]


def test_columns_that_collide_with_answers_are_kept_beside_them() -> None:
    one = task(Cut(transaction=True))
    batch = Batch.of({"x": [1.0], "status": ["paid"]}, lsn=10)
    (_, out), *_ = step(one, initial_state(one), Rows((Part("test", batch, np.array([1]), 0),), True))
    assert out.records.to_pylist()[0] | {"x": 1.0} == out.records.to_pylist()[0]
    assert (out.column("status")[0].as_py(), out.column("status_input")[0].as_py()) == ("ok", "paid")


def test_operations_on_answers_and_rows_they_fail_on() -> None:
    def strict(batch: Batch) -> pa.Array:
        if 3.0 in batch.column("x").to_pylist():
            raise ValueError("no threes")
        return batch.column("x")

    stream = StreamPlan("in", (Filter(lambda batch: np.asarray(batch.column("x")) > 1),))
    one = StreamTask("copy", stream, (OutputPlan("out", (Select(("x",), {"y": strict, "say": Text("x={x}")}),)),))
    batch = Batch.of({"x": [1.0, 2.0, 3.0, 4.0]}, lsn=10)
    outputs = step(one, initial_state(one), Rows((Part("in", batch, np.ones(4), 0),), True))
    assert sorted(row["say"] for topic, b in outputs if topic == "out" for row in b.records.to_pylist()) == [
        "x=2.0",
        "x=4.0",
    ]
    (dead,) = [b for topic, b in outputs if topic == "out.dlq"]
    assert dead.column("reason").to_pylist() == ["ValueError: no threes"]


def test_prediction_changes_nothing_and_the_plan_is_never_touched() -> None:
    one = task(Cut(transaction=True))
    play(one, grid("train 10 0 1\ntest 20 0 1"), [2])
    assert one.learner.cuts == []  # type: ignore[attr-defined]
    assert copy.deepcopy(one.learner).rows == 0  # type: ignore[attr-defined]


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[str, Batch, int]]:
    """Transactions of rows of both tables, with commit times that may run backwards."""
    lines, lsn = [], 0
    for _ in range(draw(st.integers(1, 8))):
        lsn += draw(st.integers(1, 3))
        ts = draw(st.floats(0, 5))
        for index in range(draw(st.integers(1, 5))):
            topic = draw(st.sampled_from(["train", "test"]))
            op = draw(st.sampled_from(["c", "c", "c", "u", "d"]))
            x = draw(st.sampled_from(["1", "2", "-"]))
            lines.append(f"{topic} {lsn} {index} {x} {op} {ts:.3f}")
    return grid("\n".join(lines))


@given(
    streams(),
    st.sampled_from([Cut(transaction=True), Cut(rows=1), Cut(rows=3), Cut(duration_us=1_000_000)]),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.booleans(),
)
def test_grouping_changes_nothing(rows: list[tuple[str, Batch, int]], cut: Cut, sizes: list[int], same: bool) -> None:
    one = task(cut, ready=False, same=same)
    whole, expected = play(one, rows, [1000])
    state, outputs = play(one, rows, sizes)
    key = lambda pair: (pair[0], pair[1]["__lsn"], pair[1]["__index"], str(pair[1]))  # noqa: E731
    assert sorted(outputs, key=key) == sorted(expected, key=key)
    assert state.learner.cuts == whole.learner.cuts  # type: ignore[union-attr]
    assert (state.position, state.open_batch.rows, state.counters) == (
        whole.position,
        whole.open_batch.rows,
        whole.counters,
    )


@pytest.mark.parametrize("every", [Cut(rows=3), Cut(transaction=True)])
def test_a_state_survives_in_the_middle_of_a_transaction(every: Cut) -> None:
    rows = grid("train 10 0 1\ntrain 10 1 1\ntrain 10 2 1\ntrain 10 3 1\ntest 10 4 0\ntest 20 0 0")
    _, expected = play(task(every), rows, [6])
    _, outputs = play(task(every), rows, [4, 1, 1])
    assert answers(outputs) == answers(expected)
