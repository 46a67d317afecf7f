"""Rows of outcomes: the prediction, the truth beside it, the error, and what became of both.

Columns, in order: the prediction's, with the truth where its target is (after them where it has none); the label's
others, with ``_right`` where the name is taken; then `TAIL`. Of the columns of ours (``__…``) none stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.batch import told_apart
from headrace.errors import HeadraceError
from headrace.grade.interval_join.outcomes import STATUSES, Outcomes
from headrace.grade.metrics import Metric
from headrace.halves import reason_of, tried_by_halves
from headrace.plain_values import at_rows, is_text, whole
from headrace.position import format_positions

TAIL = (
    "error",
    "status",
    "reason",
    "label_delay",
    "prediction_position",
    "label_position",
    "grade",
    "supersedes",
)
Columns = dict[str, pa.Array]


@dataclass(frozen=True, slots=True)
class CompareSpec:
    """Columns that are compared, and the metric.

    Attributes:
        target: column of the truth, as it is called in the label.
        on_left, on_right: columns of the key, in the prediction and in the label.
        metric: gives the error.
        round: decimal places of the error, halves upwards as ksqlDB's ROUND; None for none.
        prediction: column of the prediction.
    """

    target: str
    on_left: tuple[str, ...]
    on_right: tuple[str, ...]
    metric: Metric
    round: int | None = field(default=None, kw_only=True)
    prediction: str = field(default="prediction", kw_only=True)


def graded_rows(
    found: Outcomes, left: pa.Table, right: pa.Table, spec: CompareSpec, *, schema: pa.Schema | None = None
) -> pa.RecordBatch:
    """Return one row for each outcome.

    Args:
        found: the outcomes, n of them.
        left: their predictions, n rows; one of nulls where there is none.
        right: likewise their labels.
        schema: of rows made before. These then have its columns, in its order and of its types; what they have
            besides follows.

    Returns:
        The rows. ``error`` is null unless both values are there; ``label_delay`` is in seconds, positive where the
        label is the later one; ``grade`` is the outcome's number.

    Raises:
        HeadraceError: the metric cannot be computed, or a column has another type than ``schema`` says.
    """
    n = len(found)
    lefts, rights = _columns(left), _columns(right)
    truth = rights.get(spec.target, pa.nulls(n))
    columns = _of_predictions(found, lefts, rights, truth, spec)
    taken = {*columns, *TAIL}
    for name, values in rights.items():
        if name.startswith("__") or name == spec.target or name in spec.on_right:
            continue
        while name in taken:
            name += "_right"
        taken.add(name)
        columns[name] = values
    columns["error"] = _error(lefts.get(spec.prediction, pa.nulls(n)), truth, spec, schema)
    columns.update(_tail(found, lefts, rights))
    records = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    return records if schema is None else _conformed(records, schema)


def faults(left: pa.Table, right: pa.Table, spec: CompareSpec) -> dict[int, str]:
    """Return rows that the metric fails on by themselves, each with the reason."""
    n = left.num_rows
    prediction, truth = _columns(left).get(spec.prediction, pa.nulls(n)), _columns(right).get(spec.target, pa.nulls(n))

    def attempt(start: int, stop: int) -> None:
        _error(prediction.slice(start, stop - start), truth.slice(start, stop - start), spec, None)

    return {row: reason_of(error) for row, error in tried_by_halves(n, attempt).items()}


def _columns(table: pa.Table) -> Columns:
    return {name: whole(column) for name, column in zip(table.column_names, table.columns, strict=True)}


def _of_predictions(found: Outcomes, lefts: Columns, rights: Columns, truth: pa.Array, spec: CompareSpec) -> Columns:
    """Return the prediction's columns; its key is the label's where there is no prediction."""
    # Its features may have any name; those of the outcome are ours.
    own = [name for name in lefts if not name.startswith("__") and name != "status"]
    columns = {name: lefts[column] for column, name in zip(own, told_apart(own, TAIL, suffix="_left"), strict=True)}
    absent = found.left < 0
    for mine, theirs in zip(spec.on_left, spec.on_right, strict=True):
        if theirs not in rights:
            continue
        if mine not in columns:
            columns[mine] = rights[theirs]
        elif absent.any():
            columns[mine] = pc.if_else(pa.array(absent), _cast(rights[theirs], columns[mine].type), columns[mine])
    columns[spec.target] = truth
    return columns


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return a key in the type of the other side's; null where it cannot be (its row's position is there)."""
    try:
        return values.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.nulls(len(values), kind)


def _error(prediction: pa.Array, truth: pa.Array, spec: CompareSpec, schema: pa.Schema | None) -> pa.Array:
    n = len(truth)
    kind = schema.field("error").type if schema is not None and "error" in schema.names else pa.float64()
    both = np.asarray(prediction.is_valid()) & np.asarray(truth.is_valid())
    if not both.any():
        return pa.nulls(n, kind)
    if not both.all():
        prediction, truth = (side.filter(pa.array(both)) for side in (prediction, truth))
    values = spec.metric(_numpy(prediction), _numpy(truth))
    if spec.round is not None and values.dtype.kind == "f":
        values = rounded(values, spec.round)
    errors = pa.array(values)
    if pa.types.is_floating(errors.type):
        errors = errors.cast(pa.float64())
    if both.all():
        return errors
    return at_rows(errors, both)


def _numpy(values: pa.Array) -> npt.NDArray[Any]:
    """Return an array without nulls: lists of one length as a matrix, decimals as floats."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _numpy(values.dictionary_decode())
    if pa.types.is_decimal(kind):
        values = values.cast(pa.float64())
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        flat = values.flatten()
        if (
            len(flat) % len(values) == 0
            and pc.all(pc.equal(pc.list_value_length(values), len(flat) // len(values))).as_py()
        ):
            return _numpy(flat).reshape(len(values), -1) if len(flat) else np.empty((len(values), 0))
    found: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return found


def rounded(values: npt.NDArray[Any], places: int) -> npt.NDArray[Any]:
    """Values with so many decimal places, halves upwards, of the decimal form that a number is written in.

    That is ksqlDB's ROUND (https://docs.ksqldb.io/en/latest/developer-guide/ksqldb-reference/scalar-functions/#round):
    0.0005 is 0.001 with three places, though the float is a little less than it.

    >>> rounded(np.array([0.0005, 0.12345, -0.0005, np.inf]), 3).tolist()
    [0.001, 0.123, 0.0, inf]
    """
    scale = 10.0**places
    scaled = values * scale
    with np.errstate(invalid="ignore"):
        found = np.floor(scaled + 0.5) / scale
        # Floats as large as these have no decimal places to round.
        plain = ~(np.abs(scaled) < 2**52)
        near = ~plain & (np.abs(scaled - np.floor(scaled) - 0.5) < 1e-6 * (1 + np.abs(scaled)))
    found[plain] = values[plain]
    for i in np.flatnonzero(near).tolist():
        found[i] = _rounded(float(values[i]), places)
    return found + 0.0


def _rounded(value: float, places: int) -> float:
    step = Decimal(1).scaleb(-places)
    halves_up = (Decimal(repr(value)) / step + Decimal("0.5")).to_integral_value(ROUND_FLOOR)
    return float(halves_up * step)


def _tail(found: Outcomes, lefts: Columns, rights: Columns) -> Columns:
    left, right = found.left >= 0, found.right >= 0
    return {
        "status": _told(STATUSES, found.status),
        "reason": _told([text or None for text in found.reasons], found.reason),
        "label_delay": pa.array(found.delay_us / 1e6, mask=~(left & right)),
        "prediction_position": _positions(lefts, left),
        "label_position": _positions(rights, right),
        "grade": pa.array(found.number),
        "supersedes": pa.array(found.supersedes, mask=found.supersedes < 0),
    }


def _told(texts: Sequence[str | None], codes: npt.NDArray[Any]) -> pa.Array:
    """Return texts by their codes; usually all rows have one."""
    if len(codes) and (codes == codes[0]).all():
        return pa.repeat(pa.scalar(texts[int(codes[0])], pa.string()), len(codes))
    return pa.array(texts, pa.string()).take(pa.array(codes))


def _positions(columns: Columns, there: npt.NDArray[np.bool_]) -> pa.Array:
    """Return positions of the rows that are there and know theirs."""
    if "__lsn" not in columns or "__index" not in columns:
        return pa.nulls(len(there), pa.string())
    lsn, index = columns["__lsn"], columns["__index"]
    there = there & np.asarray(lsn.is_valid()) & np.asarray(index.is_valid())
    if there.all():
        return format_positions(lsn.to_numpy(), index.to_numpy())
    rows = pa.array(there)
    return at_rows(format_positions(lsn.filter(rows).to_numpy(), index.filter(rows).to_numpy()), there)


def _conformed(records: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the rows with a schema's columns, and what they have besides."""
    names = records.schema.names
    columns: Columns = {}
    for column in schema:
        values = records.column(column.name) if column.name in names else pa.nulls(records.num_rows)
        try:
            # Numbers are no text for one row that was one, and the other way round (decision 29).
            kinds = {is_text(kind) for kind in (values.type, column.type) if not pa.types.is_null(kind)}
            if len(kinds) > 1 and values.null_count < len(values):
                raise pa.ArrowInvalid("one of them is text")
            columns[column.name] = values.cast(column.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise HeadraceError(
                f"graded rows had «{column.name}» as {column.type}, and now it is {values.type}: {error}",
                advice="Give the column one type before it is graded: .with_columns(…).",
            ) from error
    columns.update({name: records.column(name) for name in names if name not in columns})
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
