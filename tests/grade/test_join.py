"""Predictions and labels: every status as a table of times, and the vectorised join against the plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.grade.interval_join import departed_keys
from headrace.grade.interval_join import join as module
from headrace.grade.interval_join.join import STATUSES, Arrivals, Join, Outcomes

from .automaton import Automaton, Row

ROWS = "one by one", "together"


@pytest.fixture(params=ROWS)
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to handle rows, whatever the size of the event."""
    monkeypatch.setattr(module, "FEW", 0 if request.param == "together" else 10**9)
    # Generations of keys that scenarios of a few rows fill too.
    monkeypatch.setattr(departed_keys, "_LEAST", 3)
    return str(request.param)


def event(rows: list[Row]) -> tuple[Arrivals, Arrivals]:
    """The rows as an event; each one's place is its index."""
    places = {side: [i for i, row in enumerate(rows) if row.side == side] for side in ("prediction", "label")}

    def arrivals(side: str) -> Arrivals:
        mine = [rows[i] for i in places[side]]
        return Arrivals(
            [row.key for row in mine],
            np.array([row.time for row in mine], np.int64),
            np.array(places[side], np.int64),
            update=np.array([row.update for row in mine], bool) if side == "label" else None,
            truth=pa.array([row.truth for row in mine], pa.float64()) if side == "label" else None,
        )

    return arrivals("prediction"), arrivals("label")


def records(arrivals: Arrivals, first: int) -> pa.RecordBatch:
    return pa.record_batch({"seq": np.arange(first, first + len(arrivals)), "t": arrivals.time_us})


def told(found: Outcomes, offset: int = 0) -> list[tuple[Any, ...]]:
    """Outcomes as the automaton tells them."""
    return [
        (place + offset, STATUSES[status], left, right, time, delay, number, supersedes, found.reasons[reason])
        for place, status, left, right, time, delay, number, supersedes, reason in zip(
            found.place.tolist(),
            found.status.tolist(),
            found.left.tolist(),
            found.right.tolist(),
            found.time_us.tolist(),
            found.delay_us.tolist(),
            found.number.tolist(),
            found.supersedes.tolist(),
            found.reason.tolist(),
            strict=True,
        )
    ]


# -- tables ---------------------------------------------------------------------------------------------------------

TABLES = {
    "graded, either side first": (
        """
        time  row    key  truth
        0     pred   a
        5     label  a    7
        6     label  b    8
        7     pred   b
        """,
        """
        graded  a5  delay 5
        graded  b7  delay -1
        """,
    ),
    "within is inclusive and in both directions": (
        """
        time  row    key  truth
        0     pred   a
        10    label  a    7
        20    label  b    8
        10    pred   b
        31    label  c    1
        20    pred   c
        """,
        """
        graded  a10  delay 10
        graded  b20  delay 10
        """,
    ),
    "one grade for each prediction": (
        """
        time  row    key  truth
        0     pred   a
        1     pred   a
        5     label  a    7
        6     pred   a
        """,
        """
        graded  a5  delay 5
        graded  a5  delay 4
        graded  a6  delay -1
        """,
    ),
    "a label that never comes": (
        """
        time  row    key  truth
        0     pred   a
        11    pred   b
        11    label  b    1
        """,
        """
        expired  a0   no label came in time
        graded   b11  delay 0
        """,
    ),
    "a prediction that never comes": (
        """
        time  row    key  truth
        0     label  a    1
        11    label  b    1
        11    pred   b
        """,
        """
        orphan  a0   no prediction came in time
        graded  b11  delay 0
        """,
    ),
    "a label that comes too late, its prediction still there": (
        """
        time  row    key  truth
        0     pred   a
        11    label  a    7
        """,
        """
        late  a11  delay 11
        """,
    ),
    "a label that comes too late, its prediction gone": (
        """
        time  row    key  truth
        0     pred   a
        11    label  b    1
        11    pred   b
        12    label  a    7
        """,
        """
        expired  a0   no label came in time
        graded   b11  delay 0
        late     a12  the label came when its prediction's time was over
        """,
    ),
    "a label out of order, its prediction gone": (
        """
        time  row    key  truth
        0     pred   a
        11    label  b    1
        11    pred   b
        3     label  a    7
        """,
        """
        expired  a0   no label came in time
        graded   b11  delay 0
        late     a3   the label came when its prediction's time was over
        """,
    ),
    "a key is forgotten in the end": (
        """
        time  row    key  truth
        0     pred   a
        111   label  b    1
        111   pred   b
        111   label  a    7
        122   pred   c
        122   label  c    1
        """,
        """
        expired  a0    no label came in time
        graded   b111  delay 0
        orphan   a111  no prediction came in time
        graded   c122  delay 0
        """,
    ),
    "a correction, by an update and by another value": (
        """
        time  row     key  truth
        0     pred    a
        5     label   a    7
        6     update  a    7
        7     label   a    8
        """,
        """
        graded     a5  delay 5
        corrected  a6  supersedes 0
        corrected  a7  supersedes 1
        """,
    ),
    "a label that comes again": (
        """
        time  row    key  truth
        0     pred   a
        5     label  a    7
        6     label  a    7
        7     pred   a
        """,
        """
        graded  a5  delay 5
        orphan  a6  the label came again
        graded  a7  delay -1
        """,
    ),
    "NULL keys": (
        """
        time  row    key  truth
        0     pred   -
        0     label  -    7
        """,
        """
        expired  -0  the key is NULL
        orphan   -0  the key is NULL
        """,
    ),
    "over when they come": (
        """
        time  row    key  truth
        50    pred   x
        50    label  x    1
        0     pred   a
        0     label  b    1
        """,
        """
        graded   x50  delay 0
        expired  a0   its time was over when it came
        orphan   b0   its time was over when it came
        """,
    ),
}


def table_rows(text: str) -> list[Row]:
    rows = []
    for line in text.strip().splitlines()[1:]:
        time, kind, key, *truth = line.split()
        side = "prediction" if kind == "pred" else "label"
        value = float(truth[0]) if truth else 0.0
        rows.append(Row(side, None if key == "-" else key, int(time), value, kind == "update"))
    return rows


@pytest.mark.parametrize("name", TABLES)
def test_every_status_as_a_table(name: str, few: str) -> None:
    text, expected = TABLES[name]
    rows = table_rows(text)
    # Numbers of a side's rows, to the keys they have.
    keys = {side: [row.key for row in rows if row.side == side] for side in ("prediction", "label")}
    join = Join(10)
    lines = []
    for _, status, left, right, time, delay, _, supersedes, reason in told(join.match(*event(rows), end=len(rows))):
        key = keys["prediction"][left] if left >= 0 else keys["label"][right]
        said = f"supersedes {supersedes}" if supersedes >= 0 else reason
        lines.append(
            f"{status} {key or '-'}{time} " + (f"delay {delay}" if left >= 0 <= right and supersedes < 0 else said)
        )
    assert lines == [" ".join(line.split()) for line in expected.strip().splitlines()]


def test_too_many_waiting(few: str) -> None:
    join = Join(10, limit=2)
    rows = [Row("prediction", key, time) for time, key in enumerate("abcd")]
    found = told(join.match(*event(rows), end=4))
    assert [(item[0], item[1], item[2], item[8]) for item in found] == [
        (2, "expired", 0, "more than 2 rows were waiting"),
        (3, "expired", 1, "more than 2 rows were waiting"),
    ]
    assert join.pending == (2, 0)
    assert [outcome[1] for outcome in told(join.match(*event([Row("label", "b", 3)]), end=1))] == ["late"]


def test_time_passes_without_rows(few: str) -> None:
    join = Join(10)
    join.match(*event([Row("prediction", "a", 5), Row("label", "b", 6)]), end=2)
    assert join.deadline_us == 16
    assert told(join.advance(16, 15)) == []
    assert [item[:5] for item in told(join.advance(16, 16))] == [(0, "expired", 0, -1, 5)]
    assert join.deadline_us == 17
    assert [item[:5] for item in told(join.advance(100, 90))] == [(0, "orphan", -1, 0, 6)]
    assert join.deadline_us is None
    assert (join.left.time_us, join.right.time_us) == (100, 90)
    assert join.counts == {"graded": 0, "corrected": 0, "late": 0, "expired": 1, "orphan": 1, "duplicate": 0}


def test_rows_leave_the_store_when_they_are_settled(few: str) -> None:
    join = Join(10)
    rows = [Row("prediction", "a", 0), Row("label", "a", 1), Row("prediction", None, 2), Row("label", "z", 30)]
    left, right = event(rows)
    found = join.match(left, right, end=4)
    assert join.left.rows.add(records(left, 0)) == join.right.rows.add(records(right, 0)) == 0
    assert join.left.rows.take(found.left).column("t").to_pylist() == [0, 2]
    join.settle()
    assert (len(join.left.rows), len(join.right.rows)) == (1, 2)
    join.advance(100, 100)
    join.settle()
    assert (len(join.left.rows), len(join.right.rows)) == (0, 0)


@pytest.mark.parametrize(
    ("places", "end"),
    [([1, 0], 2), ([0, 0], 2), ([0, 2], 2), ([-1, 0], 2)],
    ids=["falling", "twice", "beyond", "before"],
)
def test_wrong_places_are_refused(places: list[int], end: int) -> None:
    rows = Arrivals(["a", "b"], np.array([0, 0]), np.array(places))
    with pytest.raises(ValueError, match="ascending"):
        Join(10).match(rows, Arrivals.none(), end=end)


# -- against the plain automaton ------------------------------------------------------------------------------------

KEYS: dict[str, list[Any]] = {
    "numbers": [0, 1, 2, 2**70, None],
    "texts": ["a", "b", "", "ü", None],
    "tuples": [("a", 1), ("a", 2), ("b", 1), ("b", 2), None],
    "mixed": ["a", 7, b"a", 1.5, ("a", None)],
    "many": list(range(40)),
}


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    keys = KEYS[draw(st.sampled_from(sorted(KEYS)))]
    step = st.one_of(st.integers(0, 3), st.integers(-25, 12), st.just(0), st.integers(0, 120))
    one = st.tuples(
        st.booleans(), st.sampled_from(keys), step, st.sampled_from([0.0, 1.0]), st.integers(0, 5).map(lambda x: x == 0)
    )
    rows, time = [], 0
    for is_label, key, moved, truth, update in draw(st.lists(one, max_size=60)):
        rows.append(Row("label" if is_label else "prediction", key, time + moved, truth, update))
        time = max(time, time + moved)
    cuts = draw(st.lists(st.integers(0, len(rows)), max_size=6))
    return {
        "rows": rows,
        "cuts": sorted({0, *cuts, len(rows)}),
        "restored": draw(st.sets(st.sampled_from(sorted({0, *cuts})))),
        "ticked": draw(st.sets(st.sampled_from(sorted({0, *cuts})))),
        "within": draw(st.sampled_from([0, 3, 10, 30])),
        "lateness": draw(st.sampled_from([0, 0, 4])),
        "limit": draw(st.sampled_from([1, 2, 3, 5, 1000, 1000])),
        "remember": draw(st.sampled_from([0, 7, 100])),
    }


def fresh(rows: list[Row]) -> list[Row]:
    return [Row(row.side, row.key, row.time, row.truth, row.update) for row in rows]


def plain(scenario: dict[str, Any]) -> Automaton:
    """The outcomes that are right."""
    automaton = Automaton(*(scenario[name] for name in ("within", "lateness", "limit", "remember")))
    for i, row in enumerate([*fresh(scenario["rows"]), None]):
        if i in scenario["ticked"]:
            automaton.advance(automaton.times["prediction"] + 9, automaton.times["label"] + 9)
        if row is not None:
            automaton.handle(i, row)
    return automaton


def joined(scenario: dict[str, Any]) -> tuple[list[tuple[Any, ...]], Join]:
    """The outcomes of the join, in the scenario's events; what the rows hold is looked at on the way."""
    new: Callable[[], Join] = lambda: Join(  # noqa: E731
        scenario["within"],
        lateness_us=scenario["lateness"],
        limit=scenario["limit"],
        remember_us=scenario["remember"],
    )
    join, outcomes = new(), []
    rows, cuts = fresh(scenario["rows"]), scenario["cuts"]
    for start, stop in zip(cuts, [*cuts[1:], None], strict=True):
        if start in scenario["restored"]:
            state = join.snapshot()
            join = new()
            join.restore(state)
        if start in scenario["ticked"]:
            found = join.advance(join.left.time_us + 9, join.right.time_us + 9)
            outcomes += told(found)
            check_rows(join, found)
        if stop is not None:
            left, right = event(rows[start:stop])
            join.left.rows.add(records(left, join.left.next_seq))
            join.right.rows.add(records(right, join.right.next_seq))
            found = join.match(left, right, end=stop - start)
            outcomes += told(found, start)
            check_rows(join, found)
            join.settle()
    return outcomes, join


def check_rows(join: Join, found: Outcomes) -> None:
    """Every row that an outcome names is still there, and is the one."""
    for store, seqs in ((join.left.rows, found.left), (join.right.rows, found.right)):
        if len(store.schema):
            expected = [None if seq < 0 else seq for seq in seqs.tolist()]
            assert store.take(seqs).column("seq").to_pylist() == expected


@given(scenarios())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_join_is_the_automaton(few: str, scenario: dict[str, Any]) -> None:
    automaton = plain(scenario)
    outcomes, join = joined(scenario)
    # A tick has place 0 in its event, and a row of an event has its own: the automaton counts all rows.
    assert outcomes == automaton.outcomes
    assert join.pending == (len(automaton.predictions), len(automaton.labels))
    times = [row.time for row in (*automaton.predictions, *automaton.labels)]
    assert join.deadline_us == (min(times) + scenario["within"] + 1 if times else None)
    join.settle()
    assert [len(join.left.rows), len(join.right.rows)] == list(join.pending)


def busy(seed: int) -> dict[str, Any]:
    """A stream as streams are: most keys once on each side, labels some time later; some come twice, late or never."""
    random = np.random.default_rng(seed)
    n, within = int(random.integers(20, 250)), 30
    keys = np.arange(n) if random.random() < 0.5 else random.integers(0, max(2, n // 2), n)
    rows = []
    for i, key in enumerate(keys.tolist()):
        rows.append((i + int(random.integers(-3, 3)), Row("prediction", key, i + int(random.integers(-4, 4)))))
        for _ in range(int(random.choice([0, 1, 1, 1, 1, 1, 2, 3]))):
            when = i + int(random.choice([random.integers(-20, 45), 10]))
            label = Row("label", key, when, float(random.integers(0, 2)), bool(random.random() < 0.2))
            rows.append((when + int(random.choice([0, 0, 0, 25])), label))
    ordered = [row for _, row in sorted(rows, key=lambda one: one[0])]
    most = len(ordered)
    cuts = sorted({0, most, *random.integers(0, most, int(random.integers(0, 6))).tolist()})
    return {
        "rows": ordered,
        "cuts": cuts,
        "restored": set(random.choice(cuts, 1).tolist()),
        "ticked": set(random.choice(cuts[:-1], 1).tolist()) if random.random() < 0.3 else set(),
        "within": within,
        "lateness": int(random.choice([0, 5])),
        "limit": int(random.choice([7, 40, 60, 1000, 1000])),
        "remember": int(random.choice([0, 20, 300])),
    }


def test_a_busy_stream_is_the_automaton(few: str) -> None:
    seen: dict[str, int] = dict.fromkeys(STATUSES, 0)
    for seed in range(120):
        scenario = busy(seed)
        automaton = plain(scenario)
        outcomes, join = joined(scenario)
        assert outcomes == automaton.outcomes, f"seed {seed}"
        assert join.pending == (len(automaton.predictions), len(automaton.labels))
        for status, count in join.counts.items():
            if status in seen:
                seen[status] += count
    assert min(seen.values()) > 300, f"this test does not test much: {seen}"
