"""JSON objects, one for each message, as Arrow columns of raw values: numbers, texts, booleans, lists, structs.

Arrow's reader parses whole runs natively. What it cannot take is told apart here: a message that is no JSON object is
`bad` with the byte where it ends being one, and of the rest a column that mixes kinds (numbers and "NaN", a type that
changed in the middle) is built from Python values.

What a column is when nothing declares it: int64 if all its numbers are written without point and exponent and fit;
decimal128(38, 0) if some are longer than 64 bits; float64 if any has a point or an exponent; else bool, string, list,
struct; null if it has nulls only. Where it changes its kind a new part begins.

Rows that are numbers only, all written in one shape (the commonest messages of a stream of measurements,
``{"id":7,"x":1.25,…}``), need no parser: commas say where values are, and those of a column are cut out and converted
together, by the kernel that Arrow's JSON reader uses for one (`read_numbers`): a third of its time on one core for 17
digits, a quarter for few. What is not exactly so is left to that reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Bytes, Ints
from headrace.plain_values import is_list, is_text

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
        """Return whether no message has a newline inside."""
        sizes = np.fromiter(map(len, values), np.int64, len(values))
        self.longest = int(sizes.max())
        self.starts: Ints = np.cumsum(sizes + 1) - sizes - 1

    def begin_with(self, prefix: bytes) -> bool:
        """Return whether all lines do."""
        if not self.data.startswith(prefix) or int(self.starts[-1]) + len(prefix) > self._bytes.size:
            return False
        return all(bool((self._bytes[self.starts + i] == byte).all()) for i, byte in enumerate(prefix))

    def end_with(self, last: bytes) -> bool:
        """Return whether all lines end with this byte."""
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
        encoded: columns of base64: a value of another kind is marked (`marked`).

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
    good, bad = load(values)
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
    exact, doubled = load_exactly([(i, values[i]) for i in good])
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
        return [Parsed(columns, rows) for columns, rows in natural_parts(kept, types, deep)]
    arrays = [array_of([row.get(field.name) for _, row in kept], field.type) for field in types]
    rows = np.array([i for i, _ in kept], np.int64)
    return [Parsed(record_batch_of(arrays, types.names, len(kept)), rows)]


def _marked(row: dict[str, Any], names: frozenset[str], deep: Sequence[str]) -> dict[str, Any]:
    inside = {name: _marked(row[name], names, ()) for name in deep if isinstance(row.get(name), dict)}
    return {**row, **{name: marked(row[name]) for name in names & row.keys()}, **inside}


def without_columns(n: int) -> pa.RecordBatch:
    """Rows of no columns."""
    return pa.RecordBatch.from_struct_array(pa.array([{}] * n, pa.struct([])))


def record_batch_of(arrays: Sequence[pa.Array], names: Sequence[str], n: int) -> pa.RecordBatch:
    """Return columns as rows, of which there may be some without any column."""
    return pa.RecordBatch.from_arrays(list(arrays), names=list(names)) if arrays else without_columns(n)


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
    if (types is None or not whole) and not decided and any(has_float_from(a, 2.0**63) for a in records.columns):
        # Arrow's reader makes floats of integers beyond 64 bits; they are read exactly elsewhere.
        raise ValueError("integers beyond 64 bits")
    if any(has_float_from(array, np.inf) for array in records.columns):
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
        found = pruned(pa.array([json.loads(value)]).type, pa.types.is_string)
    except (ValueError, pa.ArrowException, TypeError, RecursionError, OverflowError):
        return types
    if found is None:
        return types
    known = pa.struct([]) if types is None else pa.struct(list(types))
    return pa.schema(list(_with(known, found)))


def _with(known: pa.DataType, more: pa.DataType) -> pa.DataType:
    """A struct type with the fields of another that it has not."""
    if not (pa.types.is_struct(known) and pa.types.is_struct(more)):
        return known
    names = {field.name: field.type for field in more}
    own = [(field.name, _with(field.type, names[field.name]) if field.name in names else field.type) for field in known]
    known = {name for name, _ in own}
    return pa.struct([*own, *((name, kind) for name, kind in names.items() if name not in known)])


def pruned(kind: pa.DataType, keep: Callable[[pa.DataType], bool]) -> pa.DataType | None:
    """Return a type without the lists and fields of which nothing is kept; None where nothing of it is.

    >>> pruned(pa.struct([("a", pa.null()), ("b", pa.string())]), pa.types.is_string)
    StructType(struct<b: string>)
    """
    if pa.types.is_list(kind):
        item = pruned(kind.value_type, keep)
        return pa.list_(item) if item is not None else None
    if pa.types.is_struct(kind):
        children = [(field.name, pruned(field.type, keep)) for field in kind]
        kept = [(name, child) for name, child in children if child is not None]
        return pa.struct(kept) if kept else None
    return kind if keep(kind) else None


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
    """Return whether a list column has no items at all; columns of other types are said to have some."""
    return pa.types.is_list(column.type) and not (pc.max(pc.list_value_length(column)).as_py() or 0)


def has_float_from(array: pa.Array, size: float) -> bool:
    """Return whether a float, at any depth, is of this size or more.

    >>> has_float_from(pa.array([[1.5], [-8.0]]), 8.0), has_float_from(pa.array([9]), 8.0)
    (True, False)
    """
    kind = array.type
    if pa.types.is_floating(kind):
        return bool((np.abs(np.asarray(array.drop_null() if array.null_count else array)) >= size).any())
    if pa.types.is_list(kind):
        return has_float_from(array.flatten(), size)
    return pa.types.is_struct(kind) and any(has_float_from(child, size) for child in array.flatten())


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


Words = npt.NDArray[np.unsignedinteger]

_COMMA, _BRACE, _MINUS, _ZERO = b",}-0"
_NULL = int.from_bytes(b"null", "little")
_PAIR = re.compile(rb'[{,]("(?:[^"\\,]|\\.)*"):(-?[0-9][0-9.eE+-]*|null)')
_AFTER_ZERO = np.isin(np.arange(256), list(b".eE"))


def read_numbers(data: bytes, starts: Ints) -> pa.RecordBatch | None:
    """Columns of the messages, None where they are not all of one such shape.

    Args:
        data: the messages, joined by newlines; none has one inside.
        starts: where each begins.

    >>> read_numbers(b'{"a":1,"b":-0.5}\\n{"a":20,"b":null}', np.array([0, 17])).to_pydict()
    {'a': [1, 20], 'b': [-0.5, None]}
    """
    shape = _shape(data[: int(starts[1]) - 1] if len(starts) > 1 else data)
    if shape is None:
        return None
    names, separators = shape
    codes = np.frombuffer(data + bytes(4), np.uint8)
    ends = np.append(starts[1:] - 1, len(data)) - 1
    places = _places(codes, starts, ends, separators)
    if places is None:
        return None
    arrays = []
    for begin, end in places:
        array = _column(data, codes, begin, end)
        if array is None:
            return None
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _shape(first: bytes) -> tuple[list[str], list[bytes]] | None:
    """Names of a message's members, and what stands before each value; None when it is not numbers only."""
    separators, at = [], 0
    for pair in _PAIR.finditer(first):
        if pair.start() != at:
            return None
        separators.append(first[pair.start() : pair.start(2)])
        at = pair.end()
    if not separators or first[at:] != b"}":
        return None
    try:
        names = [json.loads(separator[1:-1]) for separator in separators]
    except ValueError:
        return None
    return (names, separators) if len(set(names)) == len(names) else None


def _places(codes: Bytes, starts: Ints, ends: Ints, separators: list[bytes]) -> list[tuple[Ints, Ints]] | None:
    """Find where the values of each column begin and end; None where a message is of another shape."""
    n, k = len(starts), len(separators)
    commas = np.flatnonzero(codes == _COMMA)
    if len(commas) != n * (k - 1) or not (codes[ends] == _BRACE).all():
        return None
    # Column by column; a message with too few commas would take those of the next one, whose names do not fit then.
    marks = [starts, *commas.reshape(n, k - 1).T, ends]
    places = []
    for i, separator in enumerate(separators):
        begin = marks[i] + len(separator)
        if (begin >= marks[i + 1]).any():
            return None
        if not _stand_there(codes, marks[i], separator):
            return None
        places.append((begin, marks[i + 1]))
    return places


def _stand_there(codes: Bytes, at: Ints, text: bytes) -> bool:
    """Return whether the text stands at all these places; four bytes are compared at once."""
    done = 0
    while done < len(text):
        size = next(size for size in (4, 2, 1) if done + size <= len(text))
        wanted = int.from_bytes(text[done : done + size], "little")
        if not (_words(codes, size)[at + done] == wanted).all():
            return False
        done += size
    return True


def _words(codes: Bytes, size: int) -> Words:
    """The little-endian number of some bytes that begins at each byte."""
    return np.ndarray((codes.size - size + 1,), f"<u{size}", codes.data, strides=(1,))


def _column(data: bytes, codes: Bytes, begin: Ints, end: Ints) -> pa.Array | None:
    """Numbers and nulls between two places of each message, None where something else stands there."""
    start = _words(codes, 4)[begin]
    missing = (start == _NULL) & (end - begin == 4)
    some = bool(missing.any())
    if not (missing | _may_be_numbers(start, codes[end - 1], end - begin)).all():
        return None
    # Values and what stands between them alternate: every second element is a value.
    bounds = np.empty(2 * len(begin), np.int64)
    bounds[0::2], bounds[1::2] = begin, end
    pieces = pa.LargeStringArray.from_buffers(len(bounds) - 1, pa.py_buffer(bounds), pa.py_buffer(data))
    texts = pieces.take(pa.array(np.arange(0, len(bounds), 2), mask=missing if some else None))
    if texts.null_count == len(texts):
        return pa.nulls(len(texts))
    written = texts.buffers()[2].to_pybytes()
    if (b"e" in written and b".e" in written) or (b"E" in written and b".E" in written):
        return None
    whole = not any(mark in written for mark in (b".", b"e", b"E"))
    try:
        numbers = texts.cast(pa.int64() if whole else pa.float64())
    except pa.ArrowInvalid:
        return None
    if not whole and (np.abs(np.asarray(numbers.drop_null())) >= 2.0**63).any():
        return None  # one of them may be an integer that has no place in 64 bits
    return numbers


def _may_be_numbers(start: Words, last: Bytes, length: Ints) -> npt.NDArray[np.bool_]:
    """Return whether JSON lets a number begin and end so; what else the conversion takes begins otherwise.

    Args:
        start: the first four bytes of each text, what follows it included.
        last: its last byte.
    """
    negative = (start & 0xFF) == _MINUS
    start = np.where(negative, start >> 8, start)
    lead, second = (start & 0xFF) - _ZERO, (start >> 8) & 0xFF
    # Below zero they are unsigned and large. A zero is followed by no further digit.
    zero = (lead != 0) | (length - negative == 1) | _AFTER_ZERO[second]
    found: npt.NDArray[np.bool_] = (lead < 10) & (last - _ZERO < 10) & zero
    return found


Row = tuple[int, dict[str, Any]]

MARKED_NUMBER = "\0#"
_SPECIAL = frozenset({"NaN", "Infinity", "-Infinity"})


class Number(str):
    """A number, as it was written."""

    __slots__ = ()


def load(values: Sequence[bytes]) -> tuple[list[int], Bad]:
    """Find the values that are JSON objects, and why the others are not."""
    import orjson

    good: list[int] = []
    bad: Bad = []
    for i, value in enumerate(values):
        try:
            is_object = type(orjson.loads(value)) is dict
        except orjson.JSONDecodeError:
            # Python's reader also takes NaN and says more of what is wrong.
            one, why = _exactly(value)
            if one is None:
                bad.append((i, why))
            else:
                good.append(i)
            continue
        if is_object:
            good.append(i)
        else:
            bad.append((i, _not_an_object(value)))
    return good, bad


def load_exactly(values: Iterable[tuple[int, bytes]]) -> tuple[list[Row], Bad]:
    """Objects with every number as it was written; names that stand twice are refused.

    >>> load_exactly([(0, b'{"a": 1.50}'), (1, b'{"a": 1, "a": 2}')])
    ([(0, {'a': '1.50'})], [(1, 'the name «a» stands twice in one object')])
    """
    rows: list[Row] = []
    bad: Bad = []
    for i, value in values:
        row, why = _exactly(value)
        if row is None:
            bad.append((i, why))
        else:
            rows.append((i, row))
    return rows, bad


class _Twice(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return found


def _float(text: str) -> Number:
    if text not in _SPECIAL and abs(float(text)) == float("inf"):
        raise _TooLarge(text)
    return Number(text)


class _TooLarge(Exception):
    pass


def _exactly(value: bytes) -> tuple[dict[str, Any] | None, str]:
    try:
        text = value.decode()
        found = json.loads(text, parse_float=_float, parse_int=Number, parse_constant=Number, object_pairs_hook=_unique)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return None, f"invalid UTF-8 at byte {error.start}"
    except UnicodeEncodeError:
        return None, "a surrogate that stands alone in a string"
    except json.JSONDecodeError as error:
        at = len(text[: error.pos].encode())
        return None, f"invalid JSON at byte {at}: {_what(error, at >= len(value))}"
    except RecursionError:
        return None, "invalid JSON: nested too deep"
    except _Twice as error:
        return None, f"the name «{error}» stands twice in one object"
    except _TooLarge as error:
        return None, f"the number {error} is beyond 64-bit floats"
    return (found, "") if isinstance(found, dict) else (None, _not_an_object(value))


def _what(error: json.JSONDecodeError, at_end: bool) -> str:
    return "unexpected end of data" if at_end else error.msg[:1].lower() + error.msg[1:]


def _not_an_object(value: bytes) -> str:
    shown = value[:40].decode(errors="replace")
    return f"not a JSON object: {shown}{'…' if len(value) > 40 else ''}"


# --- columns of Python values ---


def array_of(values: Sequence[Any], like: pa.DataType) -> pa.Array:
    """A column of raw values to convert to ``like``: structs, lists and maps have its shape, scalars their own kind.

    >>> array_of([Number("1"), "NaN", None], pa.float64()).to_pylist()
    [1.0, nan, None]
    """
    if pa.types.is_dictionary(like):
        return array_of(values, like.value_type)
    kinds = {type(value) for value in values} - {type(None)}
    if is_text(like) and kinds != {list}:
        return _texts(values)
    build: Callable[[Sequence[Any], pa.DataType], pa.Array | None] = _scalars
    if pa.types.is_map(like):
        build = _maps
    elif pa.types.is_struct(like) and kinds <= {dict}:
        build = _structs
    elif is_list(like) and kinds <= {list}:
        build = _lists
    built = build(values, like)
    return built if built is not None else _texts(values)


def marked(value: Any) -> str | None:
    r"""A text as it is; before the JSON of anything else a mark that no base64 has.

    >>> marked("BQ=="), marked(Number("5.0")), marked(True)
    ('BQ==', '\x00#5.0', '\x00!true')
    """
    if value is None or type(value) is str:
        return value
    return f"{MARKED_NUMBER}{value}" if isinstance(value, Number) else f"\0!{json_of(value)}"


def _texts(values: Sequence[Any]) -> pa.Array:
    """Texts as they are, numbers as they were written, of anything else its JSON."""
    return pa.array(
        [value if value is None or isinstance(value, str) else json_of(value) for value in values], pa.string()
    )


def json_of(value: Any) -> str:
    """A value as JSON, its numbers as they were written.

    >>> json_of({"a": [Number("1.50"), "x", True]})
    '{"a":[1.50,"x",true]}'
    """
    if isinstance(value, Number):
        return str(value) if value not in _SPECIAL else f'"{value}"'
    if isinstance(value, dict):
        return "{" + ",".join(f"{json_of(name)}:{json_of(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(json_of, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _scalars(values: Sequence[Any], _: pa.DataType) -> pa.Array | None:
    natural = natural_array(values)
    return natural[0] if natural is not None else None


def _structs(values: Sequence[Any], like: pa.DataType) -> pa.Array:
    children = [
        array_of([None if value is None else value.get(field.name) for value in values], field.type) for field in like
    ]
    if not children:
        return pa.array(values, pa.struct([]))
    return pa.StructArray.from_arrays(children, names=[field.name for field in like], mask=_missing(values))


def _lists(values: Sequence[Any], like: pa.DataType) -> pa.Array:
    items = array_of([item for value in values for item in value or ()], like.value_type)
    return pa.LargeListArray.from_arrays(pa.array(_offsets(values), pa.int64()), items, mask=_missing(values))


def _offsets(values: Sequence[Any]) -> Ints:
    """Return where each list begins among the items of all."""
    return np.cumsum([0, *(len(value or ()) for value in values)])


def _missing(values: Sequence[Any]) -> pa.Array:
    return pa.array([value is None for value in values], pa.bool_())


def _maps(values: Sequence[Any], like: pa.MapType) -> pa.Array | None:
    pairs: list[list[Any] | None] = []
    for value in values:
        if value is None:
            pairs.append(None)
        elif isinstance(value, dict):
            pairs.append([list(entry) for entry in value.items()])
        elif isinstance(value, list) and all(isinstance(entry, list) and len(entry) == 2 for entry in value):
            pairs.append(value)
        else:
            return None
    flat = [item for value in pairs for item in value or ()]
    keys, items = array_of([k for k, _ in flat], like.key_type), array_of([v for _, v in flat], like.item_type)
    return pa.MapArray.from_arrays(pa.array(_offsets(pairs), pa.int32()), keys, items, mask=_missing(pairs))


def natural_array(values: Sequence[Any]) -> tuple[pa.Array, str] | None:
    """Values in the type that they show, and its kind; None where they are of several kinds.

    >>> natural_array([Number("1"), Number("2.5")])[0].type, natural_array([Number("1"), "x"])
    (DataType(double), None)
    """
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        return pa.nulls(len(values)), ""
    if kinds == {Number}:
        return _numbers(values), "number"
    if kinds == {Number, str} and all(type(value) is not str or value in _SPECIAL for value in values):
        return pa.array(values, pa.string()).cast(pa.float64()), "number"
    if len(kinds) > 1:
        return None
    (kind,) = kinds
    if kind in (str, bool):
        return pa.array(values), kind.__name__
    return _nested(values, kind), kind.__name__


def _numbers(values: Sequence[Any]) -> pa.Array:
    texts = pa.array(values, pa.string())
    if not pc.any(pc.match_substring_regex(texts, r"[.eENI]")).as_py():
        for kind in (pa.int64(), pa.decimal128(38, 0)):
            try:
                return texts.cast(kind)
            except pa.ArrowInvalid:
                continue
    return texts.cast(pa.float64())


def _nested(values: Sequence[Any], kind: type) -> pa.Array:
    """Lists and structs of one type; where their contents are of several kinds, their JSON as text."""
    if kind is list:
        built = natural_array([item for value in values for item in value or ()])
        if built is not None:
            return pa.ListArray.from_arrays(pa.array(_offsets(values), pa.int32()), built[0], mask=_missing(values))
        return _texts(values)
    names = list(dict.fromkeys(name for value in values if value is not None for name in value))
    children = [natural_array([None if value is None else value.get(name) for value in values]) for name in names]
    if any(child is None for child in children):
        return _texts(values)
    if not names:
        return pa.array(values, pa.struct([]))
    arrays = [child[0] for child in children if child is not None]
    return pa.StructArray.from_arrays(arrays, names=names, mask=_missing(values))


def natural_parts(
    rows: list[Row], types: pa.Schema | None, deep: Sequence[str] = ()
) -> list[tuple[pa.RecordBatch, Ints]]:
    """Rows as batches of the types they show; a new batch begins where a column changes its kind.

    ``deep`` are names of objects whose fields are such columns, the same ones in each (``before`` and ``after``).
    """
    known = {} if types is None else {field.name: field.type for field in types}
    parts = []
    for start, end in _alike(rows, set(known), deep):
        part = rows[start:end]
        names = list(dict.fromkeys(name for _, row in part for name in row))
        arrays = []
        for name in names:
            column = [row.get(name) for _, row in part]
            natural = natural_array(column) if name not in known else (array_of(column, known[name]), "")
            # Kinds are alike within a part, down to what the JSON of mixed lists hides.
            arrays.append(natural[0] if natural else _texts(column))
        where = np.array([i for i, _ in part], np.int64)
        parts.append((record_batch_of(arrays, names, len(part)), where))
    return parts


def _alike(rows: list[Row], known: set[str], deep: Sequence[str]) -> list[tuple[int, int]]:
    """Ranges of rows in which every column has one kind."""
    seen: dict[tuple[str, ...], str] = {}
    ranges: list[tuple[int, int]] = []
    start = 0
    for at, (_, row) in enumerate(rows):
        kinds: dict[tuple[str, ...], str] = {(n,): k for n, v in row.items() if n not in known and (k := _kind(v))}
        conflict = False
        for name in deep:
            inside = row.get(name)
            for column, value in inside.items() if isinstance(inside, dict) else ():
                if kind := _kind(value):
                    conflict |= kinds.setdefault((name, column), kind) != kind
                    conflict |= seen.get(("", column), kind) != kind
                    kinds["", column] = kind
        if start < at and (conflict or any(seen.get(name, kind) != kind for name, kind in kinds.items())):
            ranges.append((start, at))
            start, seen = at, {}
        seen.update(kinds)
    ranges.append((start, len(rows)))
    return ranges


def _kind(value: Any) -> str:
    """Return the kind that a value shows; "" where it goes with several: null, "NaN" among numbers or texts."""
    if isinstance(value, Number):
        return "number"
    return "" if value is None or (isinstance(value, str) and value in _SPECIAL) else type(value).__name__
