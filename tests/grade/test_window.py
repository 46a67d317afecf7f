"""Windows: what is in them, when they close, and that none of it depends on how rows were grouped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import BadRows, DeclarationError
from headrace.grade.metrics import Aggregate
from headrace.grade.operator_logic import Results
from headrace.grade.windows import count_windows, time_windows
from headrace.grade.windows.window import Window, WindowSpec
from headrace.learn.state import dump_state, load_state

MEAN = (("mean", Aggregate("mean", "x")),)
ALL = tuple(
    (kind, Aggregate(kind, "x", 0.3 if kind == "quantile" else None))
    for kind in ("mean", "median", "quantile", "count", "min", "max", "sum", "std", "unique", "first", "last")
)


def grid(text: str) -> list[list[str]]:
    """The cells of a table, without its head."""
    return [line.split() for line in text.strip().splitlines()[1:]]


def number(cell: str) -> float | None:
    return None if cell == "-" else float(cell)


def shown(lines: Results, columns: list[str]) -> list[list[str]]:
    """The lines as a table's cells: place, then columns, times in seconds."""
    taken = []
    for name in columns:
        column = lines.records.column(name)
        if pa.types.is_timestamp(column.type):
            taken.append([f"{value / 1e6:g}" for value in column.view(pa.int64()).to_pylist()])
        else:
            taken.append([cell(value) for value in column.to_pylist()])
    return [list(row) for row in zip(map(str, lines.place.tolist()), *taken, strict=True)]


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ",".join(map(cell, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def seconds(*values: float) -> np.ndarray:
    return np.array([round(value * 1e6) for value in values], np.int64)


# -- tables: rows (time in seconds, group, value), and the lines that they give -------------------------------------

CASES = {
    "tumbling: closed by the first row past it": (
        WindowSpec(size_us=10_000_000, aggregates=MEAN),
        """
        time  by  x
        0     a   1
        4     a   2
        9.9   a   6
        10    a   5
        20    a   7
        """,
        """
        place  window_start  window_end  rows  mean
        3      0             10          3     3
        4      10            20          1     5
        """,
    ),
    "a jump closes every window before it, empty ones give no line": (
        WindowSpec(size_us=10_000_000, aggregates=MEAN),
        """
        time  by  x
        3     a   1
        65    a   2
        """,
        """
        place  window_start  window_end  rows  mean
        1      0             10          1     1
        """,
    ),
    "before the epoch": (
        WindowSpec(size_us=10_000_000, aggregates=MEAN),
        """
        time  by  x
        -15   a   1
        -3    a   2
        0     a   3
        """,
        """
        place  window_start  window_end  rows  mean
        1      -20           -10         1     1
        2      -10           0           1     2
        """,
    ),
    "a late row changes nothing": (
        WindowSpec(size_us=10_000_000, aggregates=MEAN),
        """
        time  by  x
        9     a   1
        11    a   5
        8     a   100
        20    a   7
        """,
        """
        place  window_start  window_end  rows  mean
        1      0             10          1     1
        3      10            20          1     5
        """,
    ),
    "lateness: the window waits, and the row behind is counted": (
        WindowSpec(size_us=10_000_000, lateness_us=5_000_000, aggregates=MEAN),
        """
        time  by  x
        9     a   1
        14    a   5
        8     a   3
        15    a   7
        """,
        """
        place  window_start  window_end  rows  mean
        3      0             10          2     2
        """,
    ),
    "hopping: a row is in two windows; of a row behind only the open one counts it": (
        WindowSpec(size_us=10_000_000, every_us=5_000_000, aggregates=MEAN),
        """
        time  by  x
        2     a   1
        7     a   3
        12    a   5
        8     a   100
        15    a   7
        """,
        """
        place  window_start  window_end  rows  mean
        1      -5            5           1     1
        2      0             10          2     2
        4      5             15          3     36
        """,
    ),
    "groups: one watermark, in the order of first appearance in the window, null is one": (
        WindowSpec(size_us=10_000_000, by=("by",), aggregates=MEAN),
        """
        time  by  x
        1     b   1
        2     a   2
        3     -   3
        4     b   5
        12    a   7
        14    b   8
        20    c   9
        """,
        """
        place  window_start  window_end  by  rows  mean
        4      0             10          b   2     3
        4      0             10          a   1     2
        4      0             10          -   1     3
        6      10            20          a   1     7
        6      10            20          b   1     8
        """,
    ),
    "null values are rows without a value": (
        WindowSpec(size_us=10_000_000, aggregates=(*MEAN, ("count", Aggregate("count", "x")))),
        """
        time  by  x
        1     a   -
        2     a   4
        11    a   -
        20    a   1
        """,
        """
        place  window_start  window_end  rows  mean  count
        2      0             10          2     4     1
        3      10            20          1     -     0
        """,
    ),
    "the newest three rows, each second row": (
        WindowSpec(rows=3, every_rows=2, aggregates=MEAN),
        """
        time  by  x
        1     a   1
        2     a   2
        4     a   3
        3     a   4
        5     a   5
        6     a   9
        """,
        """
        place  window_start  window_end  rows  mean
        2      1             4           3     2
        4      4             5           3     4
        """,
    ),
    "the newest two rows of each group": (
        WindowSpec(rows=2, by=("by",), aggregates=MEAN),
        """
        time  by  x
        1     a   1
        2     b   2
        3     b   4
        4     a   5
        5     a   7
        """,
        """
        place  window_start  window_end  by  rows  mean
        2      2             3           b   2     3
        3      1             4           a   2     3
        4      4             5           a   2     6
        """,
    ),
    "changes: a line whenever a row came": (
        WindowSpec(size_us=10_000_000, by=("by",), aggregates=MEAN, emit="changes"),
        """
        time  by  x
        1     a   1
        2     b   2
        3     a   5
        11    a   7
        4     a   100
        """,
        """
        place  window_start  window_end  by  rows  mean  final
        0      0             10          a   1     1     False
        1      0             10          b   1     2     False
        2      0             10          a   2     3     False
        3      0             10          a   2     3     True
        3      0             10          b   1     2     True
        3      10            20          a   1     7     False
        """,
    ),
}


@pytest.mark.parametrize("pieces", ["at once", "one by one"])
@pytest.mark.parametrize("case", CASES)
def test_rows_give_lines(case: str, pieces: str) -> None:
    spec, given_rows, expected = CASES[case]
    rows = grid(given_rows)
    window = Window(spec)
    records = pa.record_batch(
        {
            "by": pa.array([None if by == "-" else by for _, by, _ in rows], pa.string()),
            "x": pa.array([number(x) for _, _, x in rows], pa.float64()),
        }
    )
    time, place = seconds(*(float(time) for time, _, _ in rows)), np.arange(len(rows))
    step = len(rows) if pieces == "at once" else 1
    lines = Results.joined(
        [
            window.push(records.slice(i, step), time[i : i + step], place[i : i + step])
            for i in range(0, len(rows), step)
        ]
    )
    columns = expected.strip().splitlines()[0].split()[1:]
    assert lines.records.schema.names == columns
    assert shown(lines, columns) == grid(expected)


CORRECTIONS = {
    "in an open window": (
        WindowSpec(size_us=10_000_000, aggregates=MEAN),
        """
        time  number  supersedes  x
        1     0       -1          1
        2     1       -1          50
        3     2       1           3
        10    3       -1          9
        """,
        """
        place  window_start  window_end  rows  mean
        3      0             10          2     2
        """,
    ),
    "its own time is in a later window, and closes the earlier one with the row in it": (
        WindowSpec(size_us=10_000_000, aggregates=MEAN),
        """
        time  number  supersedes  x
        1     0       -1          1
        12    1       0           3
        20    2       -1          9
        """,
        """
        place  window_start  window_end  rows  mean
        1      0             10          1     1
        2      10            20          1     3
        """,
    ),
    "the only row of a window that is still open": (
        WindowSpec(size_us=10_000_000, lateness_us=5_000_000, aggregates=MEAN),
        """
        time  number  supersedes  x
        1     0       -1          1
        12    1       0           3
        25    2       -1          9
        """,
        """
        place  window_start  window_end  rows  mean
        2      10            20          1     3
        """,
    ),
    "a late correction takes out, and is late itself": (
        WindowSpec(size_us=10_000_000, aggregates=MEAN),
        """
        time  number  supersedes  x
        12    0       -1          1
        13    1       -1          5
        3     2       0           100
        20    3       -1          9
        """,
        """
        place  window_start  window_end  rows  mean
        3      10            20          1     5
        """,
    ),
    "of the newest rows: full again before the next line": (
        WindowSpec(rows=2, aggregates=MEAN),
        """
        time  number  supersedes  x
        1     0       -1          1
        2     1       -1          3
        3     2       1           5
        4     3       99          7
        """,
        """
        place  window_start  window_end  rows  mean
        1      1             2           2     2
        2      1             3           2     3
        3      3             4           2     6
        """,
    ),
    "changes: what is left, also when nothing is": (
        WindowSpec(size_us=10_000_000, lateness_us=5_000_000, aggregates=MEAN, emit="changes"),
        """
        time  number  supersedes  x
        1     0       -1          1
        12    1       0           3
        13    2       1           5
        """,
        """
        place  window_start  window_end  rows  mean  final
        0      0             10          1     1     False
        1      0             10          0     -     False
        1      10            20          1     3     False
        2      10            20          1     5     False
        """,
    ),
}


@pytest.mark.parametrize("pieces", ["at once", "one by one"])
@pytest.mark.parametrize("case", CORRECTIONS)
def test_corrections_take_the_earlier_row_out(case: str, pieces: str) -> None:
    spec, given_rows, expected = CORRECTIONS[case]
    cells = np.array([[float(item) for item in row] for row in grid(given_rows)])
    window, parts = Window(spec), []
    step = len(cells) if pieces == "at once" else 1
    for i in range(0, len(cells), step):
        part = cells[i : i + step]
        parts.append(
            window.push(
                pa.record_batch({"x": part[:, 3]}),
                seconds(*part[:, 0]),
                np.arange(i, i + len(part)),
                number=part[:, 1].astype(np.int64),
                supersedes=part[:, 2].astype(np.int64),
            )
        )
    columns = expected.strip().splitlines()[0].split()[1:]
    assert shown(Results.joined(parts), columns) == grid(expected)


def test_rows_taken_out_one_by_one_stay_out_and_copies_keep_theirs() -> None:
    def corrected(window: Window, time: int, number: int, supersedes: int) -> Results:
        more = {"number": np.array([number]), "supersedes": np.array([supersedes])}
        return window.push(pa.record_batch({"x": [0.0]}), np.array([time]), np.array([5]), **more)

    window = Window(WindowSpec(size_us=100, aggregates=(("sum", Aggregate("sum", "x")),)))
    rows = pa.record_batch({"x": 2.0 ** np.arange(8)})
    window.push(rows, np.arange(8), np.arange(8), number=np.arange(8))
    corrected(window, 10, 8, 3)
    before = window.copy()
    corrected(window, 11, 9, 4)
    again = window.copy()
    columns = ["rows", "sum"]
    assert shown(before.advance(100), columns) == [["0", "8", "247"]]
    assert shown(again.advance(100), columns) == [["0", "8", "231"]]
    # The row that closes the window names one that is out already: it does not come back for that.
    assert shown(corrected(window, 100, 10, 3), columns) == [["5", "8", "231"]]


def test_ticks_close_the_last_window_without_rows() -> None:
    window = Window(WindowSpec(size_us=10_000_000, lateness_us=2_000_000, aggregates=MEAN))
    assert window.deadline_us is None and window.time_us == -(2**62)
    window.push(pa.record_batch({"x": [1.0]}), seconds(3), np.array([0]))
    assert window.deadline_us == 10_000_000 and window.time_us == 3_000_000
    assert len(window.advance(9_999_999).place) == 0
    assert shown(window.advance(10_000_000), ["window_end", "mean"]) == [["0", "10", "1"]]
    assert window.deadline_us is None and window.time_us == 3_000_000
    assert len(window.advance(5_000_000).place) == 0
    window.push(pa.record_batch({"x": [1.0]}), seconds(4), np.array([0]))
    assert (window.late, window.watermark_us) == (1, 10_000_000)


def test_late_rows_are_counted() -> None:
    window = Window(WindowSpec(size_us=10_000_000, every_us=5_000_000, aggregates=MEAN))
    window.push(pa.record_batch({"x": [1.0, 2.0, 3.0, 4.0]}), seconds(17, 6, 4, 9), np.arange(4))
    assert window.late == 3, "at 17 the windows up to [5, 15) have closed"


# -- the same, row by row -------------------------------------------------------------------------------------------


@dataclass
class Row:
    time: int
    place: int
    by: str | None
    x: float | None
    number: int
    supersedes: int


@dataclass
class RowByRow:
    """What a window is, as plainly as it can be said."""

    spec: WindowSpec
    watermark: int = -(2**62)
    newest: int = -(2**62)
    late: int = 0
    windows: dict[int, list[Row]] = field(default_factory=dict)
    rows: dict[Any, list[Row]] = field(default_factory=dict)
    since: dict[Any, int] = field(default_factory=dict)
    lines: list[tuple[Any, ...]] = field(default_factory=list)

    def key(self, row: Row) -> Any:
        return row.by if self.spec.by else None

    def tick(self, watermark: int, place: int = 0) -> None:
        self.watermark = max(self.watermark, watermark)
        for start in sorted(self.windows):
            if start + self.spec.size_us <= self.watermark:
                self.close(start, place, final=True)
                del self.windows[start]

    def close(self, start: int, place: int, *, final: bool, only: set[Any] | None = None) -> None:
        groups: dict[Any, list[Row]] = {}
        for row in self.windows[start]:
            groups.setdefault(self.key(row), []).append(row)
        for group, rows in groups.items():
            if only is None or group in only:
                self.line(start, start + self.spec.size_us, group, rows, place, final)

    def line(self, start: int, end: int, group: Any, rows: list[Row], place: int, final: bool) -> None:
        values = pa.array([row.x for row in rows], pa.float64())
        found = [aggregate.of(values) for _, aggregate in self.spec.aggregates]
        last = [final] if self.spec.emit == "changes" else []
        self.lines.append((place, start, end, *([group] if self.spec.by else []), len(rows), *found, *last))

    def push(self, row: Row) -> None:
        self.newest = max(self.newest, row.time)
        if self.spec.rows:
            self.push_count(row)
            return
        self.tick(self.newest - self.spec.lateness_us, row.place)
        if row.supersedes >= 0:
            for rows in self.windows.values():
                rows[:] = [item for item in rows if item.number != row.supersedes]
        joins = []
        start = row.time // self.spec.every_us * self.spec.every_us
        while start + self.spec.size_us > row.time:
            if start + self.spec.size_us > self.watermark:
                joins.append(start)
            start -= self.spec.every_us
        self.late += not joins
        for join in joins:
            self.windows.setdefault(join, []).append(row)
        if self.spec.emit == "changes":
            for join in sorted(joins):
                self.close(join, row.place, final=False, only={self.key(row)})

    def push_count(self, row: Row) -> None:
        if row.supersedes >= 0:
            for key, rows in list(self.rows.items()):
                rows[:] = [item for item in rows if item.number != row.supersedes]
                if not rows:
                    del self.rows[key], self.since[key]
        key = self.key(row)
        rows = self.rows.setdefault(key, [])
        rows.append(row)
        del rows[: -self.spec.rows]
        self.since[key] = self.since.get(key, self.spec.every_rows) + 1
        if len(rows) == self.spec.rows and self.since[key] >= self.spec.every_rows:
            self.since[key] = 0
            self.line(rows[0].time, rows[-1].time, key, rows, row.place, True)


specs = st.one_of(
    st.builds(
        lambda size, every, **rest: WindowSpec(size_us=size, every_us=min(every, size), aggregates=ALL, **rest),
        st.integers(1, 12),
        st.integers(1, 12),
        lateness_us=st.integers(0, 9),
        by=st.sampled_from([(), ("by",)]),
    ),
    st.builds(
        WindowSpec,
        rows=st.integers(1, 6),
        every_rows=st.integers(1, 9),
        by=st.sampled_from([(), ("by",)]),
        aggregates=st.just(ALL),
    ),
)
events = st.lists(
    st.one_of(
        st.tuples(
            st.integers(-6, 8),
            st.sampled_from(["a", "b", None]),
            st.one_of(st.none(), st.floats(-1e6, 1e6, width=64)),
            st.one_of(st.none(), st.integers(-1, 6)),
        ),
        st.integers(-10, 30),
    ),
    min_size=8,
    max_size=60,
)


def rows_of(drawn: list[Any]) -> list[Row | int]:
    """Rows whose times go on unevenly, and ticks.

    A correction is drawn as how many rows before it the corrected one is: it may be itself, or one yet to come.
    """
    made: list[Row | int] = []
    time = 0
    for i, item in enumerate(drawn):
        if isinstance(item, int):
            made.append(time + item)
            continue
        step, by, x, before = item
        made.append(Row(time + step, 3 * i, by, x, i, -1 if before is None else max(i - before, -1)))
        time += max(step, 0)
    return made


def batch(rows: list[Row]) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "other": pa.array([row.place for row in rows]),
            "by": pa.array([row.by for row in rows], pa.string()),
            "x": pa.array([row.x for row in rows], pa.float64()),
        }
    )


def pushed(window: Window, rows: list[Row]) -> Results:
    time, place, numbers, supersedes = (
        np.array([getattr(row, name) for row in rows], np.int64) for name in ("time", "place", "number", "supersedes")
    )
    return window.push(batch(rows), time, place, number=numbers, supersedes=supersedes)


def tuples(lines: Results) -> list[tuple[Any, ...]]:
    columns = [
        (column.view(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
        for column in lines.records.columns
    ]
    return list(zip(lines.place.tolist(), *columns, strict=True))


def restored(window: Window) -> Window:
    made = Window(window.spec)
    made.restore(load_state(dump_state(window.snapshot())))
    return made


@pytest.fixture(scope="module", params=["usual limits", "small limits"])
def limits(request: pytest.FixtureRequest) -> Iterator[None]:
    """Chunks that merge, and windows that are closed, only so many at a time."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "small limits":
            for module, name, value in (
                (time_windows, "_TAIL", 3),
                (time_windows, "_MERGED_ROWS", 8),
                (time_windows, "_PAIRS", 5),
                (count_windows, "_PIECES", 2),
            ):
                patch.setattr(module, name, value)
        yield


@given(specs, events, st.data())
def test_equal_to_row_by_row_however_rows_are_grouped(
    limits: None, spec: WindowSpec, drawn: list[Any], data: st.DataObject
) -> None:
    rows = rows_of(drawn)
    oracle, window = RowByRow(spec), Window(spec)
    found: list[tuple[Any, ...]] = []
    waiting: list[Row] = []
    copies: list[tuple[Window, dict[str, Any]]] = []

    def flush() -> None:
        nonlocal window
        if waiting:
            copies.append((window.copy(), window.snapshot()))
            found.extend(tuples(pushed(window, waiting)))
            waiting.clear()
            ends = [start + spec.size_us for start, members in oracle.windows.items() if members]
            assert window.deadline_us == min(ends, default=None)
            if data.draw(st.booleans(), label="restore"):
                window = restored(window)

    for row in rows:
        if isinstance(row, int):
            flush()
            oracle.tick(row) if not spec.rows else None
            found.extend(tuples(window.advance(row)))
        else:
            oracle.push(row)
            waiting.append(row)
            if data.draw(st.integers(0, 3), label="cut") == 0:
                flush()
    flush()
    assert found == oracle.lines
    assert (window.time_us, window.late) == (oracle.newest, oracle.late)
    for kept, state in copies:
        assert dump_state(kept.snapshot()) == dump_state(state), "pushes on the original do not change a copy"


@given(specs, events)
def test_a_copy_goes_on_by_itself(spec: WindowSpec, drawn: list[Any]) -> None:
    rows = [row for row in rows_of(drawn) if isinstance(row, Row)]
    half = len(rows) // 2
    window = Window(spec)
    if rows[:half]:
        pushed(window, rows[:half])
    other = window.copy()
    again = [tuples(pushed(item, rows[half:])) for item in (window, other) if rows[half:]]
    assert not again or again[0] == again[1]


@given(st.sampled_from([(), ("by",)]), st.integers(1, 12), st.integers(1, 12), st.integers(0, 9), events)
def test_changes_are_the_windows_of_that_moment(
    by: tuple[str, ...], size: int, every: int, lateness: int, drawn: list[Any]
) -> None:
    spec = WindowSpec(
        size_us=size, every_us=min(every, size), lateness_us=lateness, by=by, aggregates=ALL, emit="changes"
    )
    rows = [item for item in rows_of(drawn) if isinstance(item, Row)]
    for row in rows:
        row.supersedes = -1
    oracle, window = RowByRow(spec), Window(spec)
    for row in rows:
        oracle.push(row)
    assert (tuples(pushed(window, rows)) if rows else []) == oracle.lines


# -- many rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 700, 65_536], ids=["one by one", "700 rows", "65,536 rows"])
def test_many_rows_out_of_order_and_corrected(size: int) -> None:
    random = np.random.default_rng(7)
    n = 3_000 if size == 1 else 40_000
    time = np.arange(n) * 10 + random.integers(-400, 400, n)
    x, groups = random.normal(size=n), random.integers(0, 5, n).astype(str)
    supersedes = np.where(random.random(n) < 0.05, np.arange(n) - random.integers(1, 60, n), -1)
    spec = WindowSpec(size_us=1000, every_us=250, lateness_us=300, by=("by",), aggregates=MEAN)
    oracle, window, found = RowByRow(spec), Window(spec), []
    for i in range(n):
        oracle.push(Row(int(time[i]), i, groups[i], float(x[i]), i, int(supersedes[i])))
    for i in range(0, n, size):
        part = slice(i, i + size)
        records = pa.record_batch({"by": groups[part], "x": x[part]})
        places, numbers = np.arange(n)[part], np.arange(n)[part]
        found += tuples(window.push(records, time[part], places, number=numbers, supersedes=supersedes[part]))
    assert found == oracle.lines
    assert window.late == oracle.late


# -- schemas and refusals -------------------------------------------------------------------------------------------


def test_types_follow_the_rows() -> None:
    aggregates = (
        ("Species", Aggregate("unique", "species")),
        ("n", Aggregate("count")),
        ("last", Aggregate("last", "x")),
    )
    window = Window(WindowSpec(size_us=10, by=("version",), aggregates=aggregates))
    assert window.advance(0).records.schema.names == [
        "window_start",
        "window_end",
        "version",
        "rows",
        "Species",
        "n",
        "last",
    ]
    species = pa.array(["salmon", "walleye", "salmon"]).dictionary_encode()
    records = pa.record_batch({"x": [1, 2, 3], "version": pa.array([1, 1, 1], pa.int32()), "species": species})
    none = window.push(records.slice(0, 0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    lines = window.push(records, np.array([1, 2, 3]), np.arange(3))
    assert none.records.schema == lines.records.schema == window.copy().advance(0).records.schema
    assert lines.records.schema.field("Species").type == pa.list_(pa.string())
    wider = pa.record_batch({"x": [0.5], "version": pa.array([1], pa.int32()), "species": ["pike"]})
    assert window.push(wider, np.array([4]), np.arange(1)).records.schema.field("last").type == pa.float64()
    (line,) = restored(window).advance(10).records.to_pylist()
    assert (line["Species"], line["n"], line["last"], line["rows"]) == (["salmon", "walleye", "pike"], 4, 0.5, 4)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (pa.record_batch({"y": [1.0]}), "needs a column «x».*Their columns: y"),
        (pa.record_batch({"x": [b"a"]}), "the mean of «x» of a window is one of numbers, and the column is binary"),
        (pa.record_batch({"x": [2.0], "by": [["a"]]}), "a window by «by», which is list"),
        (pa.record_batch({"x": [2.0], "by": [1]}), "the column «by» of a window was string and is int64 now"),
    ],
    ids=["missing", "no number", "a list", "another type"],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_changes(records: pa.RecordBatch, message: str) -> None:
    window = Window(WindowSpec(size_us=10, by=("by",) if "by" in records.schema.names else (), aggregates=MEAN))
    good = pa.record_batch({"x": [1.0], "by": ["a"]})
    window.push(good, np.array([1]), np.array([0]))
    before = dump_state(window.snapshot())
    with pytest.raises(DeclarationError, match=f"(?s){message}"):
        window.push(records, np.array([50]), np.array([0]))
    with pytest.raises(BadRows, match="1 rows and 2 of time_us"):
        window.push(good, np.array([1, 2]), np.array([0]))
    assert dump_state(window.snapshot()) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"size_us": 10, "rows": 3},
        {"size_us": -1},
        {"size_us": 10, "every_us": 11},
        {"rows": 3, "every_rows": 0},
        {"size_us": 10, "lateness_us": -1},
        {"size_us": 10, "emit": "sometimes"},
        {"size_us": 10, "aggregates": (("rows", Aggregate("mean", "x")),)},
    ],
    ids=str,
)
def test_windows_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError):
        WindowSpec(**wrong)
