"""JSON objects read one by one: what Arrow's reader cannot take, and why a message is bad."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.plain_values import is_list, is_text

Row = tuple[int, dict[str, Any]]
Bad = list[tuple[int, str]]

MARKED_NUMBER = "\0#"
_SPECIAL = frozenset({"NaN", "Infinity", "-Infinity"})


class Number(str):
    """A number, as it was written."""

    __slots__ = ()


def load(values: Sequence[bytes]) -> tuple[list[int], Bad]:
    """Which values are JSON objects, and why the others are not."""
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
    if is_text(like) and not _are_arrays(kinds):
        return pa.array([_as_text(value) for value in values], pa.string())
    build: Callable[[Sequence[Any], pa.DataType], pa.Array | None] = _scalars
    if pa.types.is_map(like):
        build = _maps
    elif pa.types.is_struct(like) and kinds <= {dict}:
        build = _structs
    elif is_list(like) and kinds <= {list}:
        build = _lists
    built = build(values, like)
    return built if built is not None else pa.array([_as_text(value) for value in values], pa.string())


def marked(value: Any) -> str | None:
    r"""A text as it is; before the JSON of anything else a mark that no base64 has.

    >>> marked("BQ=="), marked(Number("5.0")), marked(True)
    ('BQ==', '\x00#5.0', '\x00!true')
    """
    if value is None or type(value) is str:
        return value
    return f"{MARKED_NUMBER}{value}" if isinstance(value, Number) else f"\0!{json_of(value)}"


def _are_arrays(kinds: set[type]) -> bool:
    return kinds == {list}


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json_of(value)


def json_of(value: Any) -> str:
    """A value as JSON, its numbers as they were written.

    >>> json_of({"a": [Number("1.50"), "x", True]})
    '{"a":[1.50,"x",true]}'
    """
    if isinstance(value, Number):
        return str(value) if value not in _SPECIAL else f'"{value}"'
    if isinstance(value, dict):
        return "{" + ",".join(f"{json_of(name)}:{json_of(one)}" for name, one in value.items()) + "}"
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
    mask = pa.array([value is None for value in values], pa.bool_())
    if not children:
        return pa.array(values, pa.struct([]))
    return pa.StructArray.from_arrays(children, names=[field.name for field in like], mask=mask)


def _lists(values: Sequence[Any], like: pa.DataType) -> pa.Array:
    items = array_of([one for value in values if value is not None for one in value], like.value_type)
    sizes = [0 if value is None else len(value) for value in values]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    mask = pa.array([value is None for value in values], pa.bool_())
    return pa.LargeListArray.from_arrays(pa.array(offsets), items, mask=mask)


def _maps(values: Sequence[Any], like: pa.MapType) -> pa.Array | None:
    pairs: list[list[Any] | None] = []
    for value in values:
        if value is None:
            pairs.append(None)
        elif isinstance(value, dict):
            pairs.append([list(one) for one in value.items()])
        elif isinstance(value, list) and all(isinstance(one, list) and len(one) == 2 for one in value):
            pairs.append(value)
        else:
            return None
    flat = [one for value in pairs if value is not None for one in value]
    keys, items = array_of([k for k, _ in flat], like.key_type), array_of([v for _, v in flat], like.item_type)
    offsets = np.concatenate([[0], np.cumsum([0 if value is None else len(value) for value in pairs])])
    mask = pa.array([value is None for value in pairs], pa.bool_())
    return pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), keys, items, mask=mask)


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
        built = natural_array([one for value in values if value is not None for one in value])
        if built is not None:
            sizes = [0 if value is None else len(value) for value in values]
            offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
            mask = pa.array([value is None for value in values], pa.bool_())
            return pa.ListArray.from_arrays(offsets, built[0], mask=mask)
        return pa.array([_as_text(value) for value in values], pa.string())
    names = list(dict.fromkeys(name for value in values if value is not None for name in value))
    children = [natural_array([None if value is None else value.get(name) for value in values]) for name in names]
    if any(child is None for child in children):
        return pa.array([_as_text(value) for value in values], pa.string())
    if not names:
        return pa.array(values, pa.struct([]))
    mask = pa.array([value is None for value in values], pa.bool_())
    arrays = [child[0] for child in children if child is not None]
    return pa.StructArray.from_arrays(arrays, names=names, mask=mask)


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
            arrays.append(natural[0] if natural else pa.array([_as_text(one) for one in column], pa.string()))
        where = np.array([i for i, _ in part], np.int64)
        if arrays:
            parts.append((pa.RecordBatch.from_arrays(arrays, names=names), where))
        else:
            empty = pa.array([{}] * len(part), pa.struct([]))
            parts.append((pa.RecordBatch.from_struct_array(empty), where))
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
    """What a value shows; nothing where it goes with several kinds: null, and "NaN" among numbers or texts."""
    if isinstance(value, Number):
        return "number"
    return "" if value is None or (isinstance(value, str) and value in _SPECIAL) else type(value).__name__
