"""Windows over rows: their aggregates, once a window is final or whenever it changes.

Pure: rows and times come in, lines come out, in the order in which a row for row reading would give them. How the rows
were split into pushes changes nothing, down to the bits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.errors import BadRows, DeclarationError, HeadraceError
from headrace.grade.columns import from_bytes, no_numbers, to_bytes
from headrace.grade.operator_logic import START, Measure, OperatorLogic, Results
from headrace.grade.windows.count_windows import CountWindows
from headrace.grade.windows.layout import NO_NUMBER, Chunk, Layout, WindowSpec
from headrace.grade.windows.time_windows import TimeWindows
from headrace.plain_values import value

__all__ = ["Window", "WindowSpec"]


class Window(OperatorLogic):
    """The open windows of one stream.

    **Over time.** The watermark is the newest event time less the lateness, and never runs backwards. A row moves it
    first; windows that end by it close at that row's place, in the order of their ends, each one's groups in the order
    of first appearance; then the row joins its windows that are still open. A row that finds none of them open is
    counted in ``late`` and changes nothing. A window or group without rows gives no line.

    **Over rows.** A group's newest rows in the order of arrival; event times close nothing and no row is late.

    A correction (``supersedes``) takes the row of that number out of all windows that are still open, at its own place,
    and then counts itself at its own event time; of rows that are gone it takes nothing. A window over rows that has
    lost one gives lines again when it is full again.

    With ``emit="changes"`` a place (rows of one push at one place belong together) also ends with a line, ``final``
    false, for each open window and group that it changed; ``rows`` is 0 where a correction took the last one.

    Example: a tumbling window of a minute, closed by the first row past it.

    >>> from headrace.grade.metrics import Aggregate
    >>> window = Window(WindowSpec(size_us=60_000_000, aggregates=(("mean", Aggregate("mean", "error")),)))
    >>> rows = pa.record_batch({"error": [0.1, 0.3, 0.9]})
    >>> lines = window.push(rows, np.array([0, 59_999_999, 60_000_000]), np.array([7, 8, 9]))
    >>> lines.records.column("mean").to_pylist(), lines.place.tolist(), window.deadline_us
    ([0.2], [9], 120000000)
    """

    keeps_rows = False
    looks_at = 1

    def __init__(self, spec: WindowSpec, time: str | None = None) -> None:
        self.spec, self.time = spec, time
        self._layout = Layout(spec)
        self.numbers = self._layout.of_numbers
        self._open: TimeWindows | CountWindows = (CountWindows if spec.rows else TimeWindows)(self._layout)

    def push(
        self,
        rows: pa.RecordBatch,
        time_us: Ints,
        place: Ints,
        *,
        number: Ints | None = None,
        supersedes: Ints | None = None,
    ) -> Results:
        """Take rows, and return the lines that came to be.

        Args:
            rows: with the columns of the groups and the aggregates, shape (n, …); the others are not looked at.
            time_us: event times, shape (n,).
            place: in the event's order, ascending, shape (n,).
            number: of rows that may be corrected: no two are equal, shape (n,). Of grades it is their own.
            supersedes: the number of the row that a row corrects, or below 0, shape (n,).

        Raises:
            DeclarationError: a column is missing, or its type does not go with that of the rows before.
            BadRows: arrays of other lengths. In both cases nothing has changed.
            HeadraceError: a text is no number. What has changed then is to be forgotten: push to a copy.
        """
        n = rows.num_rows
        if number is None and supersedes is None and is_graded(rows.schema):
            number, supersedes = (_numbers(rows.column(name)) for name in ("grade", "supersedes"))
        for name, array in (("time_us", time_us), ("place", place), ("number", number), ("supersedes", supersedes)):
            if array is not None and len(array) != n:
                raise BadRows(f"a window was given {n} rows and {len(array)} of {name}")
        types = self._layout.types
        columns = self._layout.select(rows)
        if self._layout.types != types:
            self._refuse_unlike(types)
        for name, column in zip(self._layout.names, columns, strict=True):
            for reason in no_numbers(column, name).values() if name in self._layout.of_numbers else ():
                raise HeadraceError(reason)
        if not n:
            return self._layout.none()
        numbers = np.full(n, NO_NUMBER) if number is None else np.asarray(number, np.int64)
        chunk = Chunk(np.asarray(time_us, np.int64), numbers, numbers, columns)
        return self._open.push(chunk, np.asarray(place, np.int64), supersedes)

    def _refuse_unlike(self, before: tuple[pa.DataType, ...]) -> None:
        """Refuse rows because of which those that are held would need a type that does not hold them exactly."""
        try:
            self._open.rows()
        except pa.ArrowException as error:
            raise DeclarationError(
                f"a column of a window was {', '.join(map(str, before))} before, and rows that wait do not fit the "
                f"type of these: {error}",
                advice="Cast the column before.",
            ) from error

    def advance(self, watermark_us: int) -> Results:
        return self._open.advance(watermark_us)

    def watermark_after(self, idle_us: int) -> int:
        """Return the newest row's time and the silence, less the lateness; `START` before the first row."""
        return START if self.time_us == START else self.time_us + idle_us - self.spec.lateness_us

    @property
    def deadline_us(self) -> int | None:
        """The smallest watermark at which a window would close; None when none is open."""
        return self._open.deadline_us

    @property
    def time_us(self) -> int:
        """The newest event time of its rows, -2**62 before the first."""
        return self._open.time_us

    @property
    def watermark_us(self) -> int:
        """The time that was reached: by rows, less the lateness, or by ticks."""
        return self._open.watermark_us

    @property
    def late(self) -> int:
        """Rows that came after their windows had closed."""
        return self._open.late

    def copy(self) -> Window:
        """Return another window in this state; neither sees the other's pushes. The rows held are shared."""
        made = copy.copy(self)
        made._layout = self._layout.copy()
        made._open = copy.copy(self._open)
        made._open.layout = made._layout
        if isinstance(made._open, CountWindows):
            made._open.copy_groups()
        return made

    def snapshot(self) -> dict[str, Any]:
        """Return all that a restored window needs: numbers and arrays, the rows as Arrow's IPC stream (uint8)."""
        rows = self._open.rows()
        found = {
            "time_us": self.time_us,
            "watermark_us": self.watermark_us,
            "late": self.late,
            "row_time_us": rows.time_us,
            "row_number": rows.number,
            "rows": to_bytes(rows.columns, self._layout.schema),
        }
        return found | ({"since": self._open.since()} if isinstance(self._open, CountWindows) else {})

    def restore(self, state: Mapping[str, Any]) -> None:
        batch = from_bytes(state["rows"])
        self._layout.remember(batch.schema)
        time_us, number = (np.asarray(state[name], np.int64) for name in ("row_time_us", "row_number"))
        rows = Chunk(time_us, np.arange(len(time_us)), number, batch.columns)
        made = self._open
        made.time_us, made.watermark_us = int(state["time_us"]), int(state["watermark_us"])
        if isinstance(made, CountWindows):
            made.restore(rows, np.asarray(state["since"], np.int64))
        else:
            made.late = int(state["late"])
            made.restore(rows)

    def measures(self) -> list[Measure]:
        return [Measure("window_late_rows", "Rows that came when their windows had closed", self.late)]

    @classmethod
    def measures_of(cls, newest: pa.Table, end: int) -> list[Measure]:
        own = [field.name for field in newest.schema if field.name[:2] != "__" and pa.types.is_floating(field.type)]
        values = {name: value(newest.column(name)[-1]) for name in own}
        return [
            Measure("window_value", "Of the newest window", number, {"column": name})
            for name, number in values.items()
            if number is not None
        ]


def is_graded(schema: pa.Schema) -> bool:
    """Return whether rows are grades, which a later one may correct: their numbers are whole ones."""
    names = [name for name in ("grade", "supersedes") if schema.get_field_index(name) >= 0]
    return len(names) == 2 and all(
        pa.types.is_integer(schema.field(name).type) or pa.types.is_null(schema.field(name).type) for name in names
    )


def _numbers(array: pa.Array) -> Ints:
    return np.asarray(pc.fill_null(array, -1).to_numpy(zero_copy_only=False), np.int64)
