"""The columns of a topic of JSON, where no schema says them: decided by its rows in their order, and recorded.

Every row goes on where the rows before it ended, whoever read them and however many at once. A column has a **kind**
(number, text, boolean, array, object), that of its last value that was not null, and numbers have a **type** that only
grows:

=============  ===========================  ===================================================================
type           Arrow                        holds
=============  ===========================  ===================================================================
``int64``      int64                        numbers written without point and exponent
``float64``    double                       … with them, and integers that a double has exactly
``int128``     decimal128(38, 0)            integers of up to 38 digits
``int256``     decimal256(76, 0)            … of up to 76
``decimal``    decimal256(76, 38)           what none of these holds exactly: 38 digits before the point and 38 behind
=============  ===========================  ===================================================================

A number that its column's type does not hold exactly makes it the next one that does: integers below 2^53 and then 0.5
make ``float64``, 2^53 + 1 and then 0.5 make ``decimal``. No number is rounded: one that no type holds (1e400, 77
digits, 1e300 among decimals) is refused, and its row with it. A double holds a number exactly that has at most 15
significant digits, or that it prints as, with as many digits as were written; below 2^49 also any other of 16 or 17
digits, which is what a double is written with.
A value of another kind changes nothing for the others: its row is stored with the type of its own kind, and readers of
the whole topic see texts. Rows that were stored keep the types they were stored with.

Arrow's reader parses whole runs with the types that were decided. Rows are looked at one by one where that fails:
the first row, the row that widens a column, the row of another kind. What follows is parsed natively again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.formats import debezium, decimals, json_parse
from headrace.formats.json_parse import (
    Bad,
    Lines,
    Number,
    Parsed,
    has_float_from,
    pruned,
    read_natively,
    read_numbers,
    without_columns,
)
from headrace.plain_values import with_items

NUMBERS = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "int128": pa.decimal128(38, 0),
    "int256": pa.decimal256(76, 0),
    "decimal": pa.decimal256(76, 38),
}
_INTEGERS = {"int64": 19, "int128": 38, "int256": 76}
_DIGITS = 38  # before and behind the point of ``decimal``
_SPECIAL = frozenset({"NaN", "Infinity", "-Infinity"})
_DEEPEST = 50  # what is nested deeper is kept as its JSON
_MOST_COLUMNS = 10_000
_SIDES = ("before", "after")
_FEWEST = 64  # rows that Arrow's reader is still worth calling for
_DOUBLE_DIGITS = 17
_LARGE = 2.0**49
_SMALLEST = 2.3e-308  # below, doubles have fewer digits
_SIGNIFICANT = re.compile(r"[-.]")
# Numbers that a double may have made 0: a search that begins with a letter is quick.
_TINY = {b"e-": re.compile(rb"e-[0-9]{3}"), b"E-": re.compile(rb"E-[0-9]{3}")}


class Refused(ValueError):
    """A value that no type of its column holds exactly."""


class Column:
    """One column so far, or all of them: the row itself is an object. Never changed, only followed by another.

    Args:
        kind: ``number``, ``text``, ``boolean``, ``array`` or ``object``; "" where there were nulls only.
        number: the type of its numbers, "" before the first.
        exact: whether all its integers so far are doubles too.
        item: of its arrays; ``fields``: of its objects.
    """

    __slots__ = ("exact", "fields", "item", "kind", "number", "type")

    def __init__(
        self,
        kind: str = "",
        number: str = "",
        exact: bool = True,
        item: Column | None = None,
        fields: Mapping[str, Column] | None = None,
    ) -> None:
        self.kind, self.number, self.exact, self.item = kind, number, exact, item
        self.fields: Mapping[str, Column] = fields or {}
        self.type = self._type()

    def _type(self) -> pa.DataType:
        if self.kind == "number":
            return NUMBERS[self.number]
        if self.kind == "array":
            return pa.list_((self.item or NOTHING).type)
        if self.kind == "object":
            return pa.struct([(name, field.type) for name, field in self.fields.items()])
        return {"text": pa.string(), "boolean": pa.bool_()}.get(self.kind, pa.null())

    def now(self, kind: str, **changes: Any) -> Column:
        """The same column, of this kind now."""
        known = {"number": self.number, "exact": self.exact, "item": self.item, "fields": self.fields}
        return Column(kind, **{**known, **changes})

    def dump(self) -> dict[str, Any]:
        """Return it as JSON values, for the record in the log."""
        found: dict[str, Any] = {"kind": self.kind}
        if self.number:
            found |= {"number": self.number, "exact": self.exact}
        if self.item is not None:
            found["item"] = self.item.dump()
        if self.fields:
            found["fields"] = {name: field.dump() for name, field in self.fields.items()}
        return found

    @classmethod
    def load(cls, found: Mapping[str, Any]) -> Column:
        """The inverse of `dump`.

        >>> before = seen(ROW, {"a": Number("1"), "b": ["x"]})
        >>> Column.load(before.dump()).type == before.type
        True
        """
        item = cls.load(found["item"]) if "item" in found else None
        fields = {name: cls.load(value) for name, value in found.get("fields", {}).items()}
        return cls(found["kind"], found.get("number", ""), found.get("exact", True), item, fields)

    @property
    def schema(self) -> pa.Schema:
        """The columns of a row."""
        return pa.schema(list(self.type))


NOTHING = Column()
ROW = Column("object")


# -- one row after another --------------------------------------------------------------------------------------------


def seen(column: Column, value: Any, depth: int = 0) -> Column:
    """The column after one more value: the same object where nothing changed.

    Args:
        value: as `json_parse.load_exactly` gives it: numbers as they were written.

    Raises:
        Refused: no type holds a number of it exactly.

    >>> [seen(seen(NOTHING, Number(text)), Number("0.5")).number for text in ("1", "9007199254740993")]
    ['float64', 'decimal']
    """
    if value is None:
        return column
    if isinstance(value, Number):
        return _number(column, value)
    if isinstance(value, str):
        if value in _SPECIAL and column.kind == "number" and column.number in ("int64", "float64") and column.exact:
            return _number(column, value)  # how floats that JSON has no number for are written
        return column if column.kind == "text" else column.now("text")
    if isinstance(value, bool):
        return column if column.kind == "boolean" else column.now("boolean")
    if depth >= _DEEPEST or (isinstance(value, list) and not _alike(value, {}, ())):
        return column if column.kind == "text" else column.now("text")
    return _array(column, value, depth) if isinstance(value, list) else _object(column, value, depth)


def _array(column: Column, value: list[Any], depth: int) -> Column:
    item = before = column.item or NOTHING
    for entry in value:
        item = seen(item, entry, depth + 1)
    if column.kind == "array" and item is before:
        return column
    return column.now("array", item=item)


def _object(column: Column, value: Mapping[str, Any], depth: int) -> Column:
    fields: dict[str, Column] | None = None
    for name, item in value.items():
        known = column.fields.get(name)
        new = seen(NOTHING if known is None else known, item, depth + 1)
        if new is not known:
            fields = dict(column.fields) if fields is None else fields
            fields[name] = new
    if fields is None:
        return column if column.kind == "object" else column.now("object")
    if len(fields) > _MOST_COLUMNS:
        raise Refused(f"it would be the {len(fields)}th column; at most {_MOST_COLUMNS} are kept")
    return column.now("object", fields=fields)


def _alike(values: Sequence[Any], kinds: dict[tuple[str, ...], str], path: tuple[str, ...]) -> bool:
    """Return whether values are of one kind, down to what they hold; ``kinds``: those found so far, by place."""
    for value in values:
        if value is None:
            continue
        kind = "number" if isinstance(value, Number) else type(value).__name__
        if kinds.setdefault(path, kind) != kind or len(path) > _DEEPEST:
            return False
        if isinstance(value, list) and not _alike(value, kinds, (*path, "")):
            return False
        if isinstance(value, dict) and not all(_alike([item], kinds, (*path, f".{n}")) for n, item in value.items()):
            return False
    return True


def _number(column: Column, text: str) -> Column:
    """The column after one more number, as it was written."""
    whole = text not in _SPECIAL and not any(mark in text for mark in ".eE")
    number, exact = (_after_integer if whole else _after_fraction)(column, text)
    if column.kind == "number" and column.number == number and column.exact == exact:
        return column
    return column.now("number", number=number, exact=exact)


def _after_integer(column: Column, text: str) -> tuple[str, bool]:
    digits = len(text.lstrip("-"))
    known = column.number or "int64"
    if known == "float64":
        if _is_double(text):
            return known, column.exact
        known = "decimal"
    if known == "decimal":
        if digits > _DIGITS:
            raise Refused(f"{_shown(text)} has {digits} digits among fractions; {_DIGITS} are kept")
        return known, column.exact
    if known == "int64" and (digits < 19 or (digits == 19 and -(2**63) <= int(text) < 2**63)):
        return known, column.exact and (digits < 16 or _is_double(text))
    for name, most in _INTEGERS.items():
        if name != "int64" and most >= max(_INTEGERS[known], digits):
            return name, column.exact and _is_double(text)
    raise Refused(f"{_shown(text)} has {digits} digits; 76 are kept")


def _after_fraction(column: Column, text: str) -> tuple[str, bool]:
    if column.number == "float64" or (column.number in ("", "int64") and column.exact):
        if text in _SPECIAL or _prints_alike(text):
            return "float64", column.exact
    elif text in _SPECIAL:
        raise Refused(f"{text} among numbers that 64-bit floats do not hold")
    if not _is_decimal(text):
        raise Refused(f"the number {_shown(text)} is held exactly neither by 64-bit floats nor by {_DIGITS} decimals")
    return "decimal", column.exact


def _is_double(text: str) -> bool:
    """Return whether an integer is a double exactly."""
    if len(text) > 310:
        return False
    try:
        return int(float(text)) == int(text)
    except OverflowError:
        return False


def _prints_alike(text: str) -> bool:
    """Return whether a double holds a number that is written with a point or an exponent.

    >>> [_prints_alike(text) for text in ("0.10000000000000001", "123456789012345678.9", "5e-324", "1e-400")]
    [True, False, True, False]
    """
    value = float(text)
    digits = len(_SIGNIFICANT.sub("", text.partition("e")[0].partition("E")[0]).strip("0")) or 1
    if not value or math.isinf(value):
        return not value and not text.strip("-0.").startswith(tuple("123456789"))
    if abs(value) >= _SMALLEST and (digits <= 15 or (digits <= _DOUBLE_DIGITS and abs(value) < _LARGE)):
        return True
    number = Decimal(text)
    return Decimal(repr(value)) == number or (digits < 800 and Decimal(f"{value:.{digits}g}") == number)


def all_hold(texts: pa.Array, kind: pa.DataType) -> bool:
    """Return whether a type of fractions, float64 or the decimal, holds each of these numbers exactly.

    >>> all_hold(pa.array(["0.5", "7"]), pa.float64()), all_hold(pa.array(["9007199254740993"]), pa.float64())
    (True, False)
    """
    if pa.types.is_float64(kind):
        long = texts.filter(pc.greater(pc.utf8_length(texts), 15))
        short = texts if not len(long) else texts.filter(pc.less_equal(pc.utf8_length(texts), 15))
        odd = short.filter(pc.match_substring_regex(short, "[eE]"))
        each = [*long.to_pylist(), *odd.to_pylist()]
        return all(item.lstrip("-")[:1] in "iIN" or item == "nan" or _holds(item) for item in each)
    return all(_is_decimal(text) for text in texts.to_pylist())


def _holds(text: str) -> bool:
    return _prints_alike(text) if any(mark in text for mark in ".eE") else _is_double(text)


def _is_decimal(text: str) -> bool:
    try:
        number = Decimal(text)
    except ArithmeticError:
        return False
    _, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int) or not number:
        return isinstance(exponent, int)
    trailing = len(digits) - len("".join(map(str, digits)).rstrip("0"))
    return number.adjusted() < _DIGITS and -(exponent + trailing) <= _DIGITS


def _shown(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"


# -- values of known columns ------------------------------------------------------------------------------------------


def array_of(values: Sequence[Any], column: Column) -> pa.Array:
    """Values that the column has seen as an array of its type.

    >>> array_of([Number("1"), None], Column("number", "decimal")).to_pylist()[0] == 1
    True
    """
    if column.kind == "":
        return pa.nulls(len(values))
    if column.kind == "number":
        return _numbers(values, column.number)
    if column.kind == "boolean":
        return pa.array(values, pa.bool_())
    if column.kind == "text":
        return pa.array([_text(value) for value in values], pa.string())
    mask = pa.array([value is None for value in values], pa.bool_())
    if column.kind == "array":
        items = array_of([item for value in values for item in value or ()], column.item or NOTHING)
        offsets = np.cumsum([0, *(len(value or ()) for value in values)])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items, mask=mask)
    if not column.fields:
        return pa.array([None if value is None else {} for value in values], pa.struct([]))
    children = [
        array_of([None if value is None else value.get(name) for value in values], field)
        for name, field in column.fields.items()
    ]
    return pa.StructArray.from_arrays(children, fields=list(column.type), mask=mask)


def _numbers(values: Sequence[Any], number: str) -> pa.Array:
    if number == "int64":
        return pa.array([None if value is None else int(value) for value in values], pa.int64())
    if number == "float64":
        return pa.array([None if item is None else float(item) for item in values], pa.float64())
    return decimals.from_text(pa.array(values, pa.string()), NUMBERS[number])


def _text(value: Any) -> str | None:
    return value if value is None or type(value) is str else json_parse.json_of(value)


# -- rows of Python's -------------------------------------------------------------------------------------------------


def of_python(rows: Sequence[Mapping[str, Any]], column: Column) -> list[tuple[pa.RecordBatch, Column]]:
    """Rows that a program has as dictionaries, in as many batches as they have types, each with the columns after it.

    Numbers, texts, booleans, lists and dictionaries are decided as those of JSON. A column in which something else
    stands (bytes, times, decimals, arrays) has the type that Arrow gives it.

    Raises:
        Refused: a row has a value that nothing holds; the message names the row and the column.

    >>> [batch.to_pylist() for batch, _ in of_python([{"id": 2**53 + 1}, {"id": 0.5, "at": b"x"}], ROW)]
    [[{'id': 9007199254740993, 'at': None}], [{'id': Decimal('0.50000000000000000000000000000000000000'), 'at': b'x'}]]
    """
    raw: list[dict[str, Any]] = []
    other: dict[str, None] = {}
    for row in rows:
        found = {}
        for name, value in row.items():
            try:
                found[name] = _raw(value)
            except _NotJson:
                other[name] = None
        raw.append(found)
    arrays = {name: _of_arrow(name, [row.get(name) for row in rows]) for name in other}
    batches = []
    start = 0
    for part, after in _decided([{k: v for k, v in row.items() if k not in other} for row in raw], column):
        kept = [name for name in part.schema.names if name not in other]
        columns = {name: part.column(name) for name in kept}
        columns |= {name: array.slice(start, part.num_rows) for name, array in arrays.items()}
        start += part.num_rows
        whole = pa.RecordBatch.from_pydict(columns) if columns else without_columns(part.num_rows)
        batches.append((whole, after))
    return batches


def _decided(rows: Sequence[dict[str, Any]], column: Column) -> list[tuple[pa.RecordBatch, Column]]:
    decoding = _Decoding([b""] * len(rows), column, False)
    run: list[json_parse.Row] = []
    for i, row in enumerate(rows):
        try:
            after = decoding._after(row)
        except (Refused, RecursionError) as error:
            why = "nested too deep" if isinstance(error, RecursionError) else str(error)
            raise Refused(f"row {i + 1}: {why}") from None
        if run and not after.type.equals(decoding.column.type):
            decoding._take(run)
            run = []
        decoding.column = after
        run.append((i, row))
    decoding._take(run)
    return [(part.columns, part.after) for part in decoding.parts]


class _NotJson(TypeError):
    pass


def _raw(value: Any) -> Any:
    """A value of Python's as `json_parse.load_exactly` gives one."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        value.encode()  # no surrogate alone: a ValueError
        return str(value)
    if isinstance(value, int):
        return Number(int(value) if abs(value) < 10**80 else "9" * 81)
    if isinstance(value, float):
        odd = {math.inf: "Infinity", -math.inf: "-Infinity"}
        return Number("NaN" if math.isnan(value) else odd.get(value, repr(float(value))))
    if isinstance(value, list | tuple):
        return [_raw(item) for item in value]
    if isinstance(value, dict) and all(type(name) is str for name in value):
        return {name: _raw(one) for name, one in value.items()}
    raise _NotJson


def _of_arrow(name: str, values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise Refused(f"column «{name}»: {error}") from None


# -- many rows at once ------------------------------------------------------------------------------------------------


def decode(
    values: Sequence[bytes], column: Column, *, enveloped: bool = False, lines: Lines | None = None
) -> tuple[list[Parsed], Bad, Column]:
    """Rows of messages, the messages that are none, and the columns after them.

    Args:
        values: one JSON object each.
        column: the row, as it is known so far.
        enveloped: the objects are Debezium's envelopes, whose rows are ``before`` and ``after``.
        lines: the values joined, where the caller has that already.

    >>> found = [b'{"id":9007199254740993}', b'{"id":0.5}', b'{"id":1e400}']
    >>> parts, bad, column = decode(found, ROW)
    >>> [str(part.columns.column("id").type) for part in parts], [row for row, _ in bad], column.fields["id"].number
    (['int64', 'decimal256(76, 38)'], [2], 'decimal')
    """
    return _Decoding(values, column, enveloped).run(lines)


class _Decoding:
    """The messages of one call."""

    def __init__(self, values: Sequence[bytes], column: Column, enveloped: bool) -> None:
        self.values, self.column, self.enveloped = values, column, enveloped
        self.parts: list[Parsed] = []
        self.bad: Bad = []

    def run(self, lines: Lines | None) -> tuple[list[Parsed], Bad, Column]:
        """Natively as far as that goes; where it does not, row by row for a while."""
        n = len(self.values)
        first = self._natively(np.arange(n), lines) if self.column.fields else 0
        if first == n:
            return self.parts, self.bad, self.column
        self._rest(first)
        return _joined(self.parts), sorted(self.bad), self.column

    def _rest(self, first: int) -> None:
        good, bad = json_parse.load(self.values[first:])
        self.bad = [(first + i, why) for i, why in bad]
        rows = first + np.asarray(good, np.int64)
        at, size, alone = 0, len(rows), 1
        while at < len(rows):
            most = min(size, len(rows) - at)
            done = self._natively(rows[at : at + most], None) if self.column.fields and most >= _FEWEST else 0
            at += done
            if done == most and done:
                size, alone = 4 * size, 1
                continue
            self._one_by_one(rows[at : at + alone])
            at += alone
            size, alone = max(_FEWEST, most // 2), min(2 * alone, 4_096)

    # -- row by row

    def _one_by_one(self, rows: Ints) -> None:
        found, bad = json_parse.load_exactly([(i, self.values[i]) for i in rows.tolist()])
        self.bad += bad
        run: list[json_parse.Row] = []
        for i, row in found:
            try:
                after = self._after(row)
            except Refused as error:
                self.bad.append((i, str(error)))
                continue
            except RecursionError:
                self.bad.append((i, "invalid JSON: nested too deep"))
                continue
            if run and after is not self.column and not after.type.equals(self.column.type):
                self._take(run)
                run = []
            self.column = after
            run.append((i, row))
        self._take(run)

    def _after(self, row: dict[str, Any]) -> Column:
        if not self.enveloped:
            return _holding(_named(self.column, row), self.column, [row])
        after = self.column
        for side in _SIDES:
            if isinstance(row.get(side), dict):
                after = _named(after, row[side])
        old = row.get("before")
        if (
            isinstance(old, dict)
            and isinstance(row.get("after"), dict)
            and not seen(after, old).type.equals(after.type)
        ):
            row["before"] = None  # an old row of other kinds than the new one's cannot stand beside it
        return _holding(after, self.column, [row[side] for side in _SIDES if isinstance(row.get(side), dict)])

    def _take(self, run: Sequence[json_parse.Row]) -> None:
        if not run:
            return
        rows = np.array([i for i, _ in run], np.int64)
        if not self.enveloped:
            struct = array_of([row for _, row in run], self.column)
            columns = pa.RecordBatch.from_struct_array(struct)
            self.parts.append(Parsed(columns, rows, self.column))
            return
        arrays, names = [], []
        for side in _SIDES:
            given = [row.get(side) if isinstance(row.get(side), dict) else None for _, row in run]
            arrays.append(array_of(given, self.column))
            names.append(side)
        for field in debezium.envelope_types(None):
            arrays.append(json_parse.array_of([row.get(field.name) for _, row in run], field.type))
            names.append(field.name)
        self.parts.append(Parsed(pa.RecordBatch.from_arrays(arrays, names=names), rows, self.column))

    # -- natively

    def _natively(self, rows: Ints, lines: Lines | None) -> int:
        """Parse rows with the columns that are known; how many from the first one on were so parsed."""
        whole = len(rows) == len(self.values)
        values = self.values if whole else [self.values[i] for i in rows.tolist()]
        if not whole or lines is None:
            lines = Lines(values)
        if any(mark in lines.data and tiny.search(lines.data) for mark, tiny in _TINY.items()):
            return 0
        try:
            records = self._records(values, lines)
        except (pa.ArrowException, ValueError):
            return 0
        if records is None:
            return 0
        end = len(rows)
        odd = self._doubtful(records, lines)
        if odd is None:
            return 0
        for at in odd.tolist():
            exactly, _ = json_parse.load_exactly([(at, values[at])])
            try:
                after = self._after(exactly[0][1]) if exactly else None
            except (Refused, RecursionError):
                after = None
            if after is None or not after.type.equals(self.column.type):
                end = at
                break
        if end:
            records = records.slice(0, end)
            self.column = self._flagged(records)
            self.parts.append(Parsed(records, rows[:end], self.column))
        return end

    def _records(self, values: Sequence[bytes], lines: Lines) -> pa.RecordBatch | None:
        # Among floats -0 has its sign, which an integer has not.
        quick = not self.enveloped and lines.single and b"-0," not in lines.data and b"-0}" not in lines.data
        if quick and (numbers := read_numbers(lines.data, lines.starts)) is not None:
            return _coerced(numbers, self.column)
        known = _readable(self.column, lines.data)
        if known is None:
            return None
        if not self.enveloped:
            return _coerced(read_natively(values, lines, pa.schema(list(known))), self.column)
        types = debezium.envelope_types(known if known.num_fields else None)
        found = read_natively(values, lines, types)
        arrays, names = [], []
        for side in _SIDES:
            given = found.column(side) if side in found.schema.names else pa.nulls(len(values))
            array = _as(given, self.column)
            if array is None:
                return None
            arrays.append(array)
            names.append(side)
        for field in debezium.envelope_types(None):
            arrays.append(found.column(field.name))
            names.append(field.name)
        return pa.RecordBatch.from_arrays(arrays, names=names)

    def _rows_of(self, records: pa.RecordBatch) -> list[pa.StructArray]:
        if self.enveloped:
            return [records.column(side) for side in _SIDES]
        return [records.to_struct_array()] if records.num_columns else []

    def _doubtful(self, records: pa.RecordBatch, lines: Lines) -> Ints | None:
        """Rows with a number that Arrow's reader may have rounded; None where their places are not told."""
        rows, digits = _long_fractions(lines)
        odd = rows[digits > _DOUBLE_DIGITS]
        for struct in self._rows_of(records):
            for array, column in zip(struct.flatten(), self.column.fields.values(), strict=True):
                if column.kind == "number" and column.number == "float64":
                    size = np.abs(np.asarray(array.fill_null(0.0) if array.null_count else array))
                    if size.max(initial=0.0) >= _LARGE:
                        odd = np.concatenate([odd, np.flatnonzero(size >= 2.0**53), rows[size[rows] >= _LARGE]])
                elif column.kind in ("array", "object") and has_float_from(array, _LARGE):
                    return None
        return np.unique(odd)

    def _flagged(self, records: pa.RecordBatch) -> Column:
        """The columns, where integers are there now that are no doubles."""
        column = self.column
        for struct in self._rows_of(records):
            column = _with_flags(column, struct)
        return column


def _joined(parts: Sequence[Parsed]) -> list[Parsed]:
    """Neighbours of the same columns in one."""
    found: list[list[Parsed]] = []
    for part in parts:
        if found and part.columns.num_columns and found[-1][-1].columns.schema.equals(part.columns.schema):
            found[-1].append(part)
        else:
            found.append([part])
    return [some[0] if len(some) == 1 else _one(some) for some in found]


def _one(parts: Sequence[Parsed]) -> Parsed:
    (columns,) = pa.Table.from_batches([part.columns for part in parts]).combine_chunks().to_batches()
    return Parsed(columns, np.concatenate([part.rows for part in parts]), parts[-1].after)


def _named(column: Column, row: Mapping[str, Any]) -> Column:
    """`seen` of a row, whose refusal names the column."""
    try:
        return seen(column, row)
    except Refused as error:
        for name, value in row.items():
            try:
                seen(column.fields.get(name, NOTHING), value)
            except Refused:
                raise Refused(f"column «{name}»: {error}") from None
        raise


def _holding(column: Column, before: Column, rows: Sequence[Mapping[str, Any]]) -> Column:
    """The column, if it was widened by these rows and holds all their numbers: 1e300 beside 2^53 + 1 in one array."""
    if column is not before and not column.type.equals(before.type):
        try:
            array_of(rows, column)
        except ValueError as error:
            raise Refused(f"numbers that no one type holds exactly: {error}") from None
    return column


def _readable(column: Column, data: bytes) -> pa.StructType | None:
    """The types of a row that Arrow's reader is told; None where it would take what is not so.

    It makes decimals of texts too: where one may stand for another, rows are read one by one.
    """
    for name, field in column.fields.items():
        if field.kind == "number" and field.number not in ("int64", "float64"):
            if re.search(re.escape(json.dumps(name, ensure_ascii=False).encode()) + rb"\s*:\s*\"", data):
                return None
        elif _has_decimal(field):
            return None
    return pruned(column.type, lambda kind: not pa.types.is_null(kind)) or pa.struct([])


def _has_decimal(column: Column) -> bool:
    inside = {"array": [column.item or NOTHING], "object": list(column.fields.values())}.get(column.kind, [])
    return any(_has_decimal(child) or child.number not in ("", "int64", "float64") for child in inside)


def _coerced(records: pa.RecordBatch, column: Column) -> pa.RecordBatch | None:
    """The records with exactly the columns that are known; None where they have more, or others."""
    if not set(records.schema.names) <= column.fields.keys():
        return None
    arrays = []
    for name, field in column.fields.items():
        given = records.column(name) if name in records.schema.names else None
        array = pa.nulls(records.num_rows, field.type) if given is None else _as(given, field)
        if array is None:
            return None
        arrays.append(array)
    if not arrays:
        return without_columns(records.num_rows)
    return pa.RecordBatch.from_arrays(arrays, schema=column.schema)


def _as(array: pa.Array, column: Column) -> pa.Array | None:
    """An array as the reader gives it, in the column's type; None where that says more, or something else."""
    kind = column.type
    if array.type.equals(kind):
        return array
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), kind)
    if column.kind == "number" and pa.types.is_int64(array.type):
        # Doubles of integers beyond 2^53 are looked at one by one, as those that the reader makes.
        return array.cast(kind, safe=False) if column.number == "float64" else array.cast(kind)
    if column.kind == "array" and pa.types.is_list(array.type):
        items = _as(array.flatten(), column.item or NOTHING)
        if items is None:
            return None
        return with_items(array, items)
    if column.kind == "object" and pa.types.is_struct(array.type):
        given = dict(zip([field.name for field in array.type], array.flatten(), strict=True))
        if not given.keys() <= column.fields.keys() or not column.fields:
            return None
        children = [
            pa.nulls(len(array), value.type) if name not in given else _as(given[name], value)
            for name, value in column.fields.items()
        ]
        if any(child is None for child in children):
            return None
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())
    return None


def _with_flags(column: Column, array: pa.Array) -> Column:
    """The column, no longer exact where some integer is no double."""
    if column.kind == "number" and column.number == "int64" and column.exact:
        numbers = np.asarray(array.drop_null() if array.null_count else array)
        large = numbers[(numbers > 2**53) | (numbers < -(2**53))]
        if large.size and not all(_is_double(str(entry)) for entry in large.tolist()):
            return column.now("number", exact=False)
    elif column.kind == "array" and column.item is not None:
        item = _with_flags(column.item, array.flatten())
        return column if item is column.item else column.now("array", item=item)
    elif column.kind == "object" and column.fields:
        new = {
            name: _with_flags(one, child)
            for (name, one), child in zip(column.fields.items(), array.flatten(), strict=True)
        }
        if any(value is not column.fields[name] for name, value in new.items()):
            return column.now("object", fields=new)
    return column


def _long_fractions(lines: Lines) -> tuple[Ints, Ints]:
    """Messages with a number of more than 15 significant digits and a point among them, and at most how many it has.

    >>> data = Lines([b'{"a":0.5}', b'{"a":0.00012345678901234567}', b'{"a":12345678901234567890}'])
    >>> [found.tolist() for found in _long_fractions(data)]
    [[1], [17]]
    """
    codes = np.frombuffer(lines.data, np.uint8)
    run = ((codes - ord("0")) < 10) | (codes == ord("."))
    for step in (1, 2, 4, 8, 1):  # both this byte and the one so far behind: runs of 2, 4, 8, 16, 17
        run = run[:-step] & run[step:] if len(run) > step else run[:0]
    at = np.flatnonzero(run)
    if not at.size:
        return at, at
    gaps = np.flatnonzero(np.diff(at) > 1)
    starts, ends = at[np.append(0, gaps + 1)], at[np.append(gaps, at.size - 1)] + 17
    points = np.flatnonzero(codes == ord("."))
    pointed = np.searchsorted(points, starts) < np.searchsorted(points, ends)
    starts, ends = starts[pointed], ends[pointed]
    digits = ends - starts - 1
    leading, at = codes[starts] == ord("0"), starts
    while leading.any():  # zeros before the first other digit, and the point among them
        digits -= leading & (codes[at] == ord("0"))
        at = np.minimum(at + 1, ends - 1)
        leading = leading & (at < ends - 1) & ((codes[at] == ord("0")) | (codes[at] == ord(".")))
    return np.searchsorted(lines.starts, starts, "right") - 1, digits
