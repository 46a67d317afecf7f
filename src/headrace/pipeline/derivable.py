"""The words of a stream that derive others from it: grades, windows, alarms, and rows to train on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from headrace.errors import DeclarationError
from headrace.grade.alarm import AlarmSpec
from headrace.grade.compare import CompareSpec
from headrace.grade.drift import DriftSpec, refuse_unrepeatable
from headrace.grade.metrics import Metric, absolute_error, as_metric, incorrect
from headrace.learn.base import scored_as
from headrace.pipeline.declared import Declared, Root
from headrace.pipeline.windows import Windowed, microseconds, window_spec
from headrace.plan.operators import Alarms, Drifts, Grade, Predicted, Read
from headrace.plan.task import StreamPlan, check_columns
from headrace.transform.expressions import Select, WithColumns

if TYPE_CHECKING:
    from headrace.pipeline.app import App
    from headrace.pipeline.model import Model
    from headrace.pipeline.stream import Stream


class Derivable:
    """What a stream inherits. Each method declares what is derived and returns its stream."""

    _app: App
    _plan: StreamPlan
    _predicted: tuple[Model, int] | None
    _node: Declared | None

    def grade(
        self,
        truth: Stream,
        *,
        on: str | Sequence[str] | tuple[str, str],
        within: str | timedelta,
        metric: Any = None,
        time: str | tuple[str | None, str | None] | None = None,
        lateness: str | timedelta | None = None,
        round: int | None = None,
        target: str | None = None,
        limit: int = 2_000_000,
    ) -> Stream:
        """Compare predictions with the truth, which comes later, or earlier: one row for each outcome.

        A prediction waits for the label of its key until ``within`` is over, by the event times of both streams. The
        column ``status`` says what came of it: ``graded``; ``corrected`` (the label was changed; ``supersedes`` names
        the earlier ``grade``); ``expired`` (no label came); of a label ``late`` (it came after that) and ``orphan``
        (nothing was predicted). An outcome has the columns of the prediction as the model made it, the truth under the
        target's name, the label's other columns, ``error``, ``label_delay`` in seconds, and the positions of both rows.

        Args:
            truth: the stream of labels: a table's, or a topic's.
            on: the column both sides share; several in a list. ``{"left": …, "right": …}`` where names differ.
            within: how far apart both may be, inclusive (ksqlDB's ``WITHIN``).
            metric: of `headrace.metrics`, or a function (prediction, truth) -> array. By default the absolute error,
                for classifiers whether the answer was incorrect.
            time: column of event times, or one for each side in a tuple; ``"arrival"``: when the log took the row in.
                By default when the row was committed.
            lateness: how long rows may come out of order.
            round: digits of ``error``.
            target: the label's column; the model's own by default.
            limit: how many rows may wait on each side; beyond that the oldest expire.
        """
        root = self._graded_root()
        source, operations = root
        model = getattr(source.host, "model", None)
        target = target or (model._target if model is not None else None)
        if target is None:
            raise DeclarationError("grade(…) does not know which column is the truth", advice='Say target="…".')
        if not isinstance(truth, Derivable) or truth._predicted is not None or truth._node is not None:
            raise DeclarationError("grade(…) wants a stream of labels", advice="Give a topic's or a table's stream.")
        if limit < 1:
            raise DeclarationError(f"limit={limit}", advice="Give a positive number of rows.")
        left, right = _sides(on)
        times = time if isinstance(time, tuple) else (time, time)
        compare = CompareSpec(
            target=target,
            on_left=left,
            on_right=right,
            metric=as_metric(metric) if metric is not None else _metric_of(model),
            round=round,
        )
        late = 0 if lateness is None else microseconds(lateness, "lateness")
        what = Grade(truth._plan, microseconds(within, "within"), compare, late, limit, times)
        declared = Declared(source.host, what, source, operations, value="error")
        return self._stream_of(source.host.add(declared))

    def window(
        self,
        size: str | int | timedelta,
        *,
        every: str | int | timedelta | None = None,
        lateness: str | timedelta | None = None,
        by: str | Sequence[str] = (),
        time: str | None = None,
        emit: Literal["final", "changes"] = "final",
    ) -> Windowed:
        """Windows of event time, aligned to 1970-01-01 UTC, or over the newest rows: ``window("1 min").mean("error")``.

        Args:
            size: a duration, or a number of rows.
            every: a duration between the starts of windows that overlap; of rows: how many between two lines.
            lateness: how long a window stays open for rows that come out of order.
            by: columns; each group has windows of its own.
            time: a column of event times; the rows' own by default, which of a grade is that of the later row.
            emit: ``"final"``: one line when a window is over, which is when a row past its end comes; ``"changes"``: a
                line whenever it changes, too.
        """
        spec = window_spec(size, every=every, lateness=lateness, by=by, emit=emit)
        return Windowed(self._root(), spec, time, self._stream_of)

    def above(self, x: float, *, column: str | None = None, consecutive: int = 1, cooldown: Any = None) -> Stream:
        """Rows whose value is above a limit: an alarm each.

        Args:
            x: the limit.
            column: of what; where a window has just one number, that one.
            consecutive: so many rows in a row must be above it.
            cooldown: after an alarm so many rows, or so long a time, raise none; 0: all may. By default the length of a
                window after an alarm of windows, since predictions of the old model are still being graded.
        """
        return self._alarm(column, consecutive, cooldown, above=x)

    def below(self, x: float, *, column: str | None = None, consecutive: int = 1, cooldown: Any = None) -> Stream:
        """Rows whose value is below a limit, as for `above`."""
        return self._alarm(column, consecutive, cooldown, below=x)

    def outside(
        self, a: float, b: float, *, column: str | None = None, consecutive: int = 1, cooldown: Any = None
    ) -> Stream:
        """Rows whose value is below ``a`` or above ``b``, as for `above`."""
        if a > b:
            raise DeclarationError(f"outside({a}, {b}): nothing is between", advice="Give the smaller one first.")
        return self._alarm(column, consecutive, cooldown, below=a, above=b)

    def drift(self, column: str, detector: Any, *, by: str | Sequence[str] = (), cooldown: Any = 0) -> Stream:
        """Rows at which a drift detector of River says that a column has changed: an alarm each.

        Args:
            column: of numbers.
            detector: such as ``river.drift.ADWIN()``; it is copied, never changed. KSWIN needs a seed.
            by: columns; each group has a detector of its own.
            cooldown: as for `above`.
        """
        groups = (by,) if isinstance(by, str) else tuple(by)
        rows, span = _cooldown(cooldown, None)
        try:
            refuse_unrepeatable(detector)
        except ValueError as error:
            raise DeclarationError(f"drift(«{column}»): {error}") from error
        source, operations = self._root()
        what = Drifts(DriftSpec(column, detector, groups, rows, span))
        return self._stream_of(source.host.add(Declared(source.host, what, source, operations)))

    def last(self, rows: int) -> Rowset:
        """The newest rows, to train on; of grades those that have a truth."""
        if rows < 1:
            raise DeclarationError(f"last({rows})", advice="Give a positive number of rows.")
        return Rowset(self, "last", rows=rows)

    def since(self, span: str | timedelta) -> Rowset:
        """The rows of so long before now, to train on."""
        return Rowset(self, "since", span_us=microseconds(span, "since"))

    def all(self) -> Rowset:
        """All rows of a table as they are now, to train on."""
        self._refuse_unwritten()
        return Rowset(self, "all")

    def _alarm(self, column: str | None, consecutive: int, cooldown: Any, **limits: float) -> Stream:
        source, operations = self._root()
        name = column or source.value
        if name is None:
            raise DeclarationError("an alarm on rows of many columns", advice='Say which: column="…".')
        if consecutive < 1:
            raise DeclarationError(f"consecutive={consecutive}", advice="Give a positive number of rows.")
        rows, span = _cooldown(cooldown, source)
        spec = AlarmSpec(name, consecutive=consecutive, cooldown_us=span, cooldown_rows=rows, by=source.by, **limits)
        declared = Declared(source.host, Alarms(spec), source, operations, value=name, by=source.by)
        return self._stream_of(source.host.add(declared))

    def _graded_root(self) -> Root:
        """What is compared: a model's answers as they were made, or predictions in a topic."""
        source, operations = self._root()
        if isinstance(source.what, Read):
            return source, operations
        if isinstance(source.what, Predicted):
            if any(not isinstance(one, Select | WithColumns) for one in operations):
                raise DeclarationError(
                    "predictions are filtered before they are graded",
                    advice="Filter the rows before predict, or grade all and filter the grades.",
                )
            return source, ()
        raise DeclarationError("grade(…) wants predictions", advice="Grade model.predict(stream), or its topic.")

    def _root(self) -> Root:
        """What the rows come from, and what is done to them after that."""
        raise NotImplementedError

    def _refuse_unwritten(self) -> Any:
        """Raises DeclarationError: the rows are in no topic."""
        raise NotImplementedError

    def _stream_of(self, node: Declared) -> Stream:
        """The stream of what was derived."""
        raise NotImplementedError


class Rowset:
    """Rows to train on, as they are when a training begins."""

    def __init__(self, stream: Any, kind: str, *, rows: int = 0, span_us: int = 0) -> None:
        self.stream, self.kind, self.rows, self.span_us = stream, kind, rows, span_us


def _sides(on: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if isinstance(on, dict):
        if set(on) != {"left", "right"}:
            raise DeclarationError(f"on={on!r}", advice='Give a column, or {"left": …, "right": …}.')
        left, right = check_columns(on["left"], "on"), check_columns(on["right"], "on")
        if len(left) != len(right):
            raise DeclarationError(f"on={on!r}: both sides need as many columns")
        return left, right
    names = check_columns(on, "on")
    if not names:
        raise DeclarationError("on=[] finds no label", advice="Name the column that both sides share.")
    return names, names


def _metric_of(model: Model | None) -> Metric:
    classifies = model is not None and scored_as(model._learner) == "classification"
    return incorrect if classifies else absolute_error


def _cooldown(given: Any, source: Declared | None) -> tuple[int, int]:
    """Rows, and microseconds."""
    if given is None:
        return (source.span_rows, source.span_us) if source is not None else (0, 0)
    if isinstance(given, int) and not isinstance(given, bool):
        if given < 0:
            raise DeclarationError(f"cooldown={given}", advice="Give a number of rows, or a duration.")
        return given, 0
    return 0, microseconds(given, "cooldown")
