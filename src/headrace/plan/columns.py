"""Columns of rows as far as they are known before rows come, what operations make of them, and what lacks one.

Operations are applied to an empty batch: what Arrow says of its columns holds for every row. A user's function is given
one too, since it then names a column that is not there; what it returns is shown to people, and nothing is refused by
it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from headrace.batch import Batch, is_meta
from headrace.errors import DeclarationError, near
from headrace.transform.expressions import Filter, Operation, Select, Sql, Text, Transform, describe, evaluate

UNKNOWN = pa.null()
"""The type of a column of which nobody knows the type before rows come."""
Result = TypeVar("Result")
# What Arrow says of a column that is not there.
_NOT_THERE = (re.compile(r'Field "(.*?)" does not exist'), re.compile(r"No match for FieldRef\.Name\((.*?)\) in"))


class Doubt(DeclarationError):
    """A mistake by the rows that there were so far; others may come."""


class Absent(IntEnum):
    """What is to be said of a declaration that names a column which some columns do not have."""

    MISTAKE = 0
    DOUBT = 1
    NOTHING = 2


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of rows.

    Attributes:
        topic: where the rows are from, in words.
        schema: of the columns; a type is `UNKNOWN` where nobody knows it yet. Those that Headrace adds may be missing.
        fixed: whether rows to come have the same; False where they are only those of rows so far.
        absent: what a column is that is not there; `Absent.NOTHING` where nobody knows all columns before rows come.
        supposed: for people, who see that there are no rows: a type is what no rows suggest, and nothing is refused.
    """

    topic: str
    schema: pa.Schema
    fixed: bool = True
    absent: Absent = Absent.MISTAKE
    supposed: bool = False

    @property
    def names(self) -> list[str]:
        """The columns' names, without those that Headrace adds."""
        return [name for name in self.schema.names if not is_meta(name)]

    @property
    def open(self) -> bool:
        """True where nobody knows all columns before rows come."""
        return self.absent is Absent.NOTHING

    @property
    def known(self) -> bool:
        """True where each column is known, and its type."""
        return not self.open and all(_is_known(field.type) for field in self.schema)

    def field(self, name: str) -> pa.Field | None:
        """Return a column, the first of its name; None where there is none."""
        found = self.schema.get_all_field_indices(name)
        return self.schema.field(found[0]) if found else None

    def wanted(self, name: str, who: str) -> pa.Field:
        """Return a column that somebody needs.

        Raises:
            DeclarationError: there is none of that name.
        """
        found = self.field(name)
        if found is not None or self.open or is_meta(name):
            return found if found is not None else pa.field(name, UNKNOWN)
        raise replace(self, fixed=self.fixed and self.absent is Absent.MISTAKE).mistake(
            f"{who} wants the column «{name}», which {self.topic} does not have{near(name, self.names)}",
            f"Its columns are: {', '.join(self.names) or 'none'}.",
        )

    def mistake(self, message: str, advice: str) -> DeclarationError:
        """Return what is wrong with a declaration, by these columns; a `Doubt` where others may come."""
        return (DeclarationError if self.fixed else Doubt)(message, advice=advice)

    def batch(self, *wanted: str) -> Batch:
        """Return no rows, with these columns, those wanted that may come to be, and those that Headrace adds."""
        own = [field for field in self.schema if not is_meta(field.name)]
        own += [pa.field(name, UNKNOWN) for name in dict.fromkeys(wanted) if name not in self.schema.names]
        own = pa.schema(own)
        arrays = [column.combine_chunks() for column in own.empty_table().columns]
        return Batch.of(pa.RecordBatch.from_arrays(arrays, schema=own))

    def of(self, fields: Iterable[pa.Field], topic: str = "") -> Columns:
        """Return other columns, made of these."""
        return replace(self, topic=topic or self.topic, schema=pa.schema(list(fields)))


def _is_known(kind: pa.DataType) -> bool:
    return not pa.types.is_null(kind) and all(_is_known(kind.field(i).type) for i in range(kind.num_fields))


def unknown(topic: str, names: Iterable[str] = (), *, supposed: bool = False) -> Columns:
    """Return the columns of rows of which nobody knows them before rows come; some are named."""
    schema = pa.schema([pa.field(name, UNKNOWN) for name in names])
    return Columns(topic, schema, absent=Absent.NOTHING, supposed=supposed)


def after(columns: Columns, operations: Sequence[Operation], who: str) -> Columns:
    """Return the columns after some operations.

    Args:
        who: applies them, for people.

    Raises:
        DeclarationError: an operation wants a column that is not there, or of another type.

    >>> rows = Columns("orders", pa.schema([("id", pa.int64()), ("paid", pa.bool_())]))
    >>> after(rows, [Filter("paid"), Select(("id",), {"twice": "id"})], "«m»").names
    ['id', 'twice']
    >>> after(unknown("orders"), [Select(("id",), {"twice": "x"})], "«m»").names
    ['id', 'twice']
    """
    for operation in operations:
        try:
            columns = _after(columns, operation, who)
        except DeclarationError:
            if not columns.supposed:
                raise
    return columns


def _after(columns: Columns, operation: Operation, who: str) -> Columns:
    if isinstance(operation, Filter):
        kind = _computed(columns, operation.expression, f"{who}: filter({describe(operation.expression)})")
        if not (pa.types.is_boolean(kind) or pa.types.is_null(kind)):
            raise columns.mistake(
                f"{who}: filter({describe(operation.expression)}) of {columns.topic} is {kind}, neither true nor false",
                'Compare it with something: .filter(pc.field("paid") == "yes").',
            )
        return columns
    if isinstance(operation, Transform):
        found = probe(operation.apply, columns, f"{who}: transform({describe(operation.function)})")
        if columns.supposed:
            return columns if found is None else columns.of(found.rows.schema)
        return unknown(columns.topic)
    word = "select" if isinstance(operation, Select) else "with_columns"
    new = [
        pa.field(name, _computed(columns, given, f"{who}: {word}({name}={describe(given)})"))
        for name, given in operation.computed.items()
    ]
    if isinstance(operation, Select):
        chosen = [columns.wanted(name, f"{who}: select(…)") for name in operation.names]
        # Of unknown rows, too, these columns are left and no others.
        topic = f"what {operation} leaves" if columns.open else columns.topic
        return replace(columns.of([*chosen, *new], topic), absent=Absent.MISTAKE)
    return columns.of([*(field for field in columns.schema if field.name not in operation.computed), *new])


def _computed(columns: Columns, expression: Any, who: str) -> pa.DataType:
    """Return the type of an expression over rows with these columns."""
    if isinstance(expression, str):
        return columns.wanted(expression, who).type
    if isinstance(expression, Sql):
        return _condition(columns, expression, who)
    if isinstance(expression, Text):
        for name in expression.fields:
            if name != "features":
                columns.wanted(name, who)
        return pa.string()
    if not isinstance(expression, pc.Expression):
        values = probe(lambda batch: evaluate(expression, batch), columns, who)
        return values.type if values is not None and columns.supposed else UNKNOWN
    try:
        kind = evaluate(expression, columns.batch()).type
    except Exception as error:  # Arrow has an error for each thing that it cannot do
        if not _refuse_absent(error, columns, who) and columns.known:
            raise columns.mistake(
                f"{who} cannot be computed of {columns.topic}: {str(error).splitlines()[0]}",
                f"Its columns are: {_described(columns)}.",
            ) from error
        return UNKNOWN
    return kind if columns.known or columns.supposed else UNKNOWN


def _condition(columns: Columns, expression: Sql, who: str) -> pa.DataType:
    """Return the type of a condition in SQL, of which DuckDB says also without rows what it cannot do."""
    try:
        evaluate(expression, columns.batch())
    except KeyError as error:
        columns.wanted(str(error.args[0]), who)
    except ValueError as error:
        if columns.known:
            raise columns.mistake(f"{who}: {error}", f"Its columns are: {_described(columns)}.") from error
    return pa.bool_()


def probe(function: Callable[[Batch], Result], columns: Columns, who: str) -> Result | None:
    """Call a user's function with no rows, to see whether it asks for a column that is not there.

    Returns:
        What it returns; None where it fails.

    Raises:
        DeclarationError: it does. Whatever else it raises without rows says nothing of rows.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(columns.batch())
    except KeyError as error:
        _refuse_absent(error, columns, who)
    except Exception:  # a function may fail on no rows, as a mean does
        return None
    return None


def _refuse_absent(error: Exception, columns: Columns, who: str) -> bool:
    """Refuse a column that is not there; return whether it is one that Headrace adds to some rows only."""
    found = next((match for pattern in _NOT_THERE if (match := pattern.search(str(error)))), None)
    if found is not None:
        columns.wanted(found[1], who)
    return found is not None


def _described(columns: Columns) -> str:
    return ", ".join(f"{field.name} {_kind_of(field)}" for field in columns.schema if not is_meta(field.name))


def _kind_of(field: pa.Field) -> str:
    numeric = (field.metadata or {}).get(b"postgres.type", b"").startswith(b"numeric")
    return "numeric (held as text: cast it)" if numeric and pa.types.is_string(field.type) else str(field.type)


def told_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the columns of several schemas as one; the type of a column that has had several is `UNKNOWN`."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            known = fields.get(field.name)
            fields[field.name] = field if known is None else _either(known, field)
    return pa.schema(list(fields.values()))


def _either(known: pa.Field, now: pa.Field) -> pa.Field:
    if pa.types.is_null(known.type) or pa.types.is_null(now.type):
        return now if pa.types.is_null(known.type) else known
    if known.type == now.type and known.metadata == now.metadata:
        return known
    numbers = (pa.types.is_integer, pa.types.is_floating)
    if all(any(test(kind) for test in numbers) for kind in (known.type, now.type)):
        return pa.field(now.name, pa.float64())
    return pa.field(now.name, UNKNOWN)
