"""JSON objects, one for each message, as Arrow columns of raw values: numbers, texts, booleans, lists, structs.

Arrow's reader parses whole runs natively. What it cannot take is told apart here: a message that is no JSON object is
`bad` with the byte where it ends being one, and of the rest a column that mixes kinds (numbers and "NaN", a type that
changed in the middle) is built from Python values.

What a column is when nothing declares it: int64 if all its numbers are written without point and exponent and fit;
decimal128(38, 0) if some are longer than 64 bits; float64 if any has a point or an exponent; else bool, string, list,
struct; null if it has nulls only. Where it changes its kind a new part begins.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.formats import json_rows
from headrace.formats.coerce import Reading, fitting
from headrace.formats.json_numbers import read_numbers
from headrace.formats.json_rows import Row

Bad = list[tuple[int, str]]

_BLOCK = 1 << 16  # bytes for each task of Arrow's reader: two threads already share a batch of 2,000 small rows
_MOST_BRACKETS = 500  # Arrow's reader recurses: a deeper message could overflow its stack


class Lines:
    """Messages joined by newlines, and where each begins.

    >>> lines = Lines([b'{"a":1}', b'{"a":2}'])
    >>> lines.single, lines.begin_with(b'{"a"'), lines.end_with(b"}")
    (True, True, True)
    """

    __slots__ = ("_bytes", "data", "longest", "single", "starts")

    def __init__(self, values: Sequence[bytes]) -> None:
        self.data = b"\n".join(values)
        self._bytes = np.frombuffer(self.data, np.uint8)
        self.single = self.data.count(b"\n") == len(values) - 1
        """Whether no message has a newline inside."""
        sizes = np.fromiter(map(len, values), np.int64, len(values))
        self.longest = int(sizes.max())
        self.starts: Ints = np.cumsum(sizes + 1) - sizes - 1

    def begin_with(self, prefix: bytes) -> bool:
        """Whether all lines do."""
        if not self.data.startswith(prefix) or int(self.starts[-1]) + len(prefix) > self._bytes.size:
            return False
        return all(bool((self._bytes[self.starts + i] == byte).all()) for i, byte in enumerate(prefix))

    def end_with(self, last: bytes) -> bool:
        """Whether all lines end with this byte."""
        return self.data.endswith(last) and bool((self._bytes[self.starts[1:] - 2] == last[0]).all())


@dataclass(slots=True)
class Parsed:
    """Raw columns of some messages, and which messages they are; ``after``: what the topic's columns are then."""

    columns: pa.RecordBatch
    rows: Ints
    after: Any = None


def parse(
    values: Sequence[bytes],
    types: pa.Schema | None,
    *,
    whole: bool = True,
    by_row: bool = False,
    full: pa.Schema | None = None,
    deep: Sequence[str] = (),
    lines: Lines | None = None,
    encoded: frozenset[str] = frozenset(),
) -> tuple[list[Parsed], Bad]:
    """Columns of JSON objects.

    Args:
        values: one JSON object each.
        types: types to read some columns as, where they are known. A column whose values are of another kind comes
            back as what they are.
        whole: ``types`` has all columns of interest; others are left out.
        by_row: a column has a form that Arrow's reader does not know (maps).
        full: ``types`` and what Arrow's reader is not told, for what is read row by row.
        lines: the values joined, where the caller has that already.
        deep: names of objects whose fields are columns (``before`` and ``after``).
        encoded: columns of base64: a value of another kind is marked (`json_rows.marked`).

    >>> parts, bad = parse([b'{"a":1}', b'{"a":', b'{"a":2}'], None)
    >>> parts[0].columns.to_pydict(), parts[0].rows.tolist(), bad
    ({'a': [1, 2]}, [0, 2], [(1, 'invalid JSON at byte 5: unexpected end of data')])
    """
    rows = np.arange(len(values))
    if not by_row:
        try:
            return [Parsed(_read(values, lines or Lines(values), types, whole), rows)], []
        except (pa.ArrowException, ValueError):
            pass
    good, bad = json_rows.load(values)
    if bad and good and not by_row:
        try:
            kept = [values[i] for i in good]
            return [Parsed(_read(kept, Lines(kept), types, whole), np.asarray(good))], bad
        except (pa.ArrowException, ValueError):
            pass
    if not good:
        return [], bad
    parts: list[Parsed] = []
    if types is not None and whole and not by_row:
        parts, good = _all_but_special(values, good, types)
    # Duplicated names pass the quick reader.
    exact, doubled = json_rows.load_exactly([(i, values[i]) for i in good])
    if exact:
        if encoded:
            exact = [(i, _marked(row, encoded, ("before", "after") if deep or "op" in row else ())) for i, row in exact]
        parts += _from_rows(exact, types if full is None else full, whole or full is not None, deep)
    return parts, sorted(bad + doubled)


def _all_but_special(values: Sequence[bytes], good: list[int], types: pa.Schema) -> tuple[list[Parsed], list[int]]:
    """Messages without "NaN" and "Infinity", which are mostly all that keeps Arrow's reader off; and the others."""
    special = [i for i in good if b'"NaN"' in values[i] or b'Infinity"' in values[i]]
    if not special or len(special) == len(good):
        return [], good
    found = set(special)
    usual = [i for i in good if i not in found]
    kept = [values[i] for i in usual]
    try:
        return [Parsed(_read(kept, Lines(kept), types, True), np.asarray(usual))], special
    except (pa.ArrowException, ValueError):
        return [], good


def _from_rows(kept: list[Row], types: pa.Schema | None, whole: bool, deep: Sequence[str]) -> list[Parsed]:
    if types is None or not whole:
        return [Parsed(columns, rows) for columns, rows in json_rows.natural_parts(kept, types, deep)]
    arrays = [json_rows.array_of([row.get(field.name) for _, row in kept], field.type) for field in types]
    rows = np.array([i for i, _ in kept], np.int64)
    if not arrays:
        return [Parsed(without_columns(len(kept)), rows)]
    return [Parsed(pa.RecordBatch.from_arrays(arrays, names=types.names), rows)]


def _marked(row: dict[str, Any], names: frozenset[str], deep: Sequence[str]) -> dict[str, Any]:
    inside = {name: _marked(row[name], names, ()) for name in deep if isinstance(row.get(name), dict)}
    return {**row, **{name: json_rows.marked(row[name]) for name in names & row.keys()}, **inside}


def without_columns(n: int) -> pa.RecordBatch:
    """Rows of no columns."""
    return pa.RecordBatch.from_struct_array(pa.array([{}] * n, pa.struct([])))


def read_natively(values: Sequence[bytes], lines: Lines, types: pa.Schema) -> pa.RecordBatch:
    """All values at once by Arrow's reader, known columns in these types, the others as they look.

    Floats may have been rounded: the caller looks at those that may.

    Raises:
        ValueError, ArrowInvalid: it cannot read some value so.
    """
    return _read(values, lines, types, False, decided=True)


def _read(
    values: Sequence[bytes], lines: Lines, types: pa.Schema | None, whole: bool, *, decided: bool = False
) -> pa.RecordBatch:
    """All values at once by Arrow's reader; raises where it cannot, or where its answer would not be exact."""
    data = lines.data
    if types is None and lines.single:
        numbers = read_numbers(data, lines.starts)
        if numbers is not None:
            return numbers
    _check(values, lines)
    # A block must hold the longest message; one that spans lines cannot be cut into blocks cheaply.
    block = max(_BLOCK, lines.longest + 1, min(len(data) // 8, 1 << 20)) if lines.single else len(data) + 1
    if types is not None and whole:
        table = _read_json(data, types, block, lines.single, whole=True)
    else:
        hints = _hints(values[0], types)
        table = _read_json(data, hints, block, lines.single, whole=False)
        plain = _without_guesses(table.schema)
        if not plain.equals(table.schema):
            table = _read_json(data, plain, block, lines.single, whole=False)
    if table.num_rows != len(values):
        raise ValueError("some message is not one object")
    if not data.isascii():
        data.decode()  # Arrow's reader does not check that texts are UTF-8
    if not table.num_columns:
        return without_columns(len(values))
    if any(_has_null_items(column.type) and not _is_empty(column) for column in table.columns):
        raise ValueError("lists of nulls: Arrow's reader gives them a wrong length")
    records = table.combine_chunks().to_batches()[0]
    if (types is None or not whole) and not decided:
        _refuse_long_integers(records)
    if any(map(_has_infinite, records.columns)):
        raise ValueError("JSON has no infinite number: one is too large")
    return records


def _check(values: Sequence[bytes], lines: Lines) -> None:
    """Raise where a message may not be one object, or be nested too deep.

    Every message begins with a brace and ends with one: then none can be completed by the next, since a newline in a
    string is an error, and as many rows as messages means one each.
    """
    quick = lines.single and lines.begin_with(b"{") and lines.end_with(b"}")
    if not quick and not all(value[:1] == b"{" and value[-1:] == b"}" for value in values):
        raise ValueError("not objects")
    if lines.longest > 2 * _MOST_BRACKETS:
        for value in values:
            if len(value) > 2 * _MOST_BRACKETS and value.count(b"{") + value.count(b"[") > _MOST_BRACKETS:
                raise ValueError("possibly nested too deep")


def _read_json(data: bytes, types: pa.Schema | None, block: int, single: bool, *, whole: bool) -> pa.Table:
    import pyarrow.json as reader

    parsing = reader.ParseOptions(
        explicit_schema=types,
        newlines_in_values=not single,
        unexpected_field_behavior="ignore" if whole else "infer",
    )
    return reader.read_json(pa.BufferReader(data), reader.ReadOptions(block_size=block), parsing)


def _hints(value: bytes, types: pa.Schema | None) -> pa.Schema | None:
    """Texts of the first message are declared, so that Arrow's reader does not take them for instants."""
    try:
        found = _texts_only(pa.array([json.loads(value)]).type)
    except (ValueError, pa.ArrowException, TypeError, RecursionError, OverflowError):
        return types
    if found is None:
        return types
    told = pa.struct([]) if types is None else pa.struct(list(types))
    return pa.schema(list(_with(told, found)))


def _with(known: pa.DataType, more: pa.DataType) -> pa.DataType:
    """A struct type with the fields of another that it has not."""
    if not (pa.types.is_struct(known) and pa.types.is_struct(more)):
        return known
    names = {field.name: field.type for field in more}
    own = [(field.name, _with(field.type, names[field.name]) if field.name in names else field.type) for field in known]
    told = {name for name, _ in own}
    return pa.struct([*own, *((name, kind) for name, kind in names.items() if name not in told)])


def _texts_only(kind: pa.DataType) -> pa.DataType | None:
    if pa.types.is_string(kind):
        return kind
    if pa.types.is_list(kind):
        item = _texts_only(kind.value_type)
        return pa.list_(item) if item is not None else None
    if pa.types.is_struct(kind):
        children = [(field.name, _texts_only(field.type)) for field in kind]
        kept = [(name, child) for name, child in children if child is not None]
        return pa.struct(kept) if kept else None
    return None


def _without_guesses(schema: pa.Schema) -> pa.Schema:
    """The schema with texts where Arrow's reader saw instants; the same object where it saw none."""
    if not any(_guessed(field.type) for field in schema):
        return schema
    return pa.schema([pa.field(field.name, _timeless(field.type)) for field in schema])


def _guessed(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) or any(_guessed(kind.field(i).type) for i in range(kind.num_fields))


def _timeless(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_timeless(kind.value_type))
    return pa.struct([(f.name, _timeless(f.type)) for f in kind]) if pa.types.is_struct(kind) else kind


def _has_null_items(kind: pa.DataType, *, inside: bool = False) -> bool:
    if pa.types.is_null(kind):
        return inside
    inside = inside or pa.types.is_list(kind)
    return any(_has_null_items(kind.field(i).type, inside=inside) for i in range(kind.num_fields))


def _is_empty(column: pa.ChunkedArray) -> bool:
    """Whether a list column has no items at all; columns of other types are said to have some."""
    return pa.types.is_list(column.type) and not (pc.max(pc.list_value_length(column)).as_py() or 0)


def _refuse_long_integers(records: pa.RecordBatch) -> None:
    """Arrow's reader makes floats of integers beyond 64 bits; they are read exactly elsewhere."""
    if any(_has_long(column) for column in records.columns):
        raise ValueError("integers beyond 64 bits")


def _has_long(array: pa.Array) -> bool:
    kind = array.type
    if pa.types.is_floating(kind):
        return bool((np.abs(np.asarray(array.drop_null())) >= 2.0**63).any())
    if pa.types.is_list(kind):
        return _has_long(array.flatten())
    return pa.types.is_struct(kind) and any(_has_long(child) for child in array.flatten())


def _has_infinite(array: pa.Array) -> bool:
    kind = array.type
    if pa.types.is_floating(kind):
        return bool(np.isinf(np.asarray(array.drop_null() if array.null_count else array)).any())
    if pa.types.is_list(kind):
        return _has_infinite(array.flatten())
    return pa.types.is_struct(kind) and any(_has_infinite(child) for child in array.flatten())


def object_names(value: bytes) -> list[str]:
    """Names of a JSON object in their order; none where it is no object.

    >>> object_names(b'{"a": 1, "b": null}'), object_names(b"7")
    (['a', 'b'], [])
    """
    try:
        parsed: Any = json.loads(value)
    except (ValueError, RecursionError):
        return []
    return list(parsed) if isinstance(parsed, dict) else []


# -- columns of known fields --


def raw_types(readings: Sequence[Reading] | None) -> tuple[pa.Schema | None, bool, bool]:
    """Return raw types for Arrow's reader, whether they are all columns, and whether it cannot read them at all."""
    if readings is None:
        return None, False, False
    known = [(column.field.name, column.wire) for column in readings if column.wire is not None]
    types = pa.schema(known)
    by_row = any(_has_map(column.field.type) for column in readings)
    if by_row:  # rows are read one by one, guided by the types that result
        types = pa.schema([(column.field.name, column.wire or column.field.type) for column in readings])
        return types, True, True
    return types, len(known) == len(readings) or not readings, False


def encoded_columns(readings: Sequence[Reading] | None) -> frozenset[str]:
    """Return the names of columns of base64."""
    return frozenset(column.field.name for column in readings or () if column.encoded)


def _has_map(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _has_map(kind.value_type)
    return pa.types.is_map(kind) or any(_has_map(kind.field(i).type) for i in range(kind.num_fields))


def columns_of(
    values: Sequence[bytes], readings: Sequence[Reading], *, whole: bool = False
) -> tuple[list[tuple[pa.StructArray, Ints]], dict[int, str]]:
    """Read JSON objects as structs: columns that are known converted, others as they look; and say what is bad.

    Args:
        whole: only the known ones.

    >>> as_int16 = Reading(pa.field("a", pa.int16()), pa.int16(), lambda array: array)
    >>> found, bad = columns_of([b'{"a": 1, "b": "x"}', b"?"], [as_int16])
    >>> found[0][0].to_pylist(), list(bad)
    ([{'a': 1, 'b': 'x'}], [1])
    """
    types = (
        pa.schema([(column.field.name, column.wire or column.field.type) for column in readings]) if readings else None
    )
    by_row = any(column.wire is None for column in readings)
    parts, bad = parse(values, types, whole=whole, by_row=by_row)
    reasons = dict(bad)
    found: list[tuple[pa.StructArray, Ints]] = []
    for part in parts:
        given = dict(zip(part.columns.schema.names, part.columns.columns, strict=True))
        n = part.columns.num_rows
        fields: list[pa.Field] = []
        arrays: list[pa.Array] = []
        good = np.ones(n, np.bool_)
        for column in readings:
            raw = given.pop(column.field.name, None)
            array, wrong = (pa.nulls(n, column.field.type), []) if raw is None else fitting(raw, column)
            for place, why in wrong:
                reasons.setdefault(int(part.rows[place]), why)
                good[place] = False
            fields.append(column.field)
            arrays.append(array)
        fields += [pa.field(name, array.type) for name, array in given.items()]
        arrays += list(given.values())
        struct = pa.StructArray.from_arrays(arrays, fields=fields) if fields else pa.array([{}] * n, pa.struct([]))
        found.append((struct, part.rows) if good.all() else (struct.filter(pa.array(good)), part.rows[good]))
    return found, reasons
