"""Arrow columns as JSON text, a column at a time: what goes between the commas of every row at once.

=============================  ==========================================================================
Arrow                          JSON (the forms that Debezium gives the same values)
=============================  ==========================================================================
bool, integers                 as such
float16, float32, float64      shortest number that reads back as the same; "NaN", "Infinity", "-Infinity"
string, all widths and views   string
binary, all widths and views   string, base64
decimal                        string of plain digits (``decimals="base64"``: unscaled value, big-endian)
date32, date64                 days since 1970-01-01
time, timestamp without zone   integer in the type's unit (seconds as milliseconds)
timestamp with time zone       string in UTC, ``2024-02-29T12:34:56.789012Z``, decimals as the unit has
duration                       integer in the type's unit
list, all kinds                array
struct                         object
map                            object; array of [key, value] where keys are no strings
dictionary, run-end encoded    as their values
null                           null
=============================  ==========================================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import FormatError
from headrace.formats import base64_columns, decimals, timestamps
from headrace.plain_values import is_bytes, is_list, is_text, list_offsets

TEXT = pa.large_string()
Known = dict[str, pa.Array]
_NONE = pa.scalar(None, TEXT)
_MUST_ESCAPE = b'"\\' + bytes(range(32))
_SHORT = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r"}
_NO_EXPONENT = 1e10  # Arrow prints a float from here on with an exponent


def quoted(text: str) -> str:
    """One text as a JSON string.

    >>> quoted('é"')
    '"é\\\\""'
    """
    return json.dumps(text, ensure_ascii=False)


def fragments(array: pa.Array, *, binary_decimals: bool = False) -> pa.LargeStringArray:
    """JSON of every value; null where the value is null.

    Raises:
        FormatError: JSON has no form for the type, or a value is too large for its form.

    >>> fragments(pa.array([{"a": [1.0, None], "b": b"x"}, None])).to_pylist()
    ['{"a":[1.0,null],"b":"eA=="}', None]
    """
    kind = array.type
    for matches, write in _WRITERS:
        if matches(kind):
            return write(array)
    if pa.types.is_decimal(kind):
        if binary_decimals:
            return in_quotes(base64_columns.encode(decimals.to_bytes(array)))
        return in_quotes(decimals.to_text(array))
    if is_list(kind):
        return _list(array, binary_decimals)
    if pa.types.is_struct(kind):
        fields = [(field.name, child) for field, child in zip(kind, array.flatten(), strict=True)]
        return _valid(array, objects(fields, len(array), binary_decimals=binary_decimals))
    if pa.types.is_map(kind):
        return _map(array, binary_decimals)
    plain = unwrapped(array)
    if plain is array:
        raise FormatError(f"JSON has no form for {kind}", advice="Cast the column to a type that it has.")
    return fragments(plain, binary_decimals=binary_decimals)


def objects(
    columns: Sequence[tuple[str, pa.Array]], n: int, *, binary_decimals: bool = False, known: Known | None = None
) -> pa.LargeStringArray:
    """Each row as a JSON object of ``columns``.

    Args:
        columns: names and values.
        n: how many rows there are.
        binary_decimals: as for `fragments`.
        known: JSON of columns by name that is there already; what is made is added.

    >>> objects([("a", pa.array([1, None])), ('"', pa.array(["x", "y"]))], 2).to_pylist()
    ['{"a":1,"\\\\"":"x"}', '{"a":null,"\\\\"":"y"}']
    """
    parts: list[pa.Array | pa.Scalar | str] = []
    for i, (name, array) in enumerate(columns):
        parts.append(f"{',' if i else '{'}{quoted(name)}:")
        try:
            cells = known.get(name) if known is not None else None
            parts.append(fragments(array, binary_decimals=binary_decimals) if cells is None else cells)
        except FormatError as error:
            raise FormatError(f"column «{name}»: {error.message}", advice=error.advice) from None
        if known is not None:
            known[name] = parts[-1]
    return joined([*parts, "}" if columns else "{}"], n)


@dataclass(frozen=True, slots=True)
class Shared:
    """Texts each of which many rows have.

    Attributes:
        texts: each of them once.
        of: which one each row has.
    """

    texts: pa.Array
    of: pa.Array


Part: TypeAlias = pa.Array | Shared | str


def joined(parts: Sequence[Part], n: int) -> pa.LargeStringArray:
    """Texts of every row one behind the other; a text is the same for all rows, a null is ``null``.

    What stands between two texts of rows is one text before it is copied to the rows, so that a row costs what differs.

    Args:
        parts: shared ones are of the same rows: they have the same ``of``.

    >>> joined(["<", pa.array(["a", None], pa.large_string()), ">"], 2).to_pylist()
    ['<a>', '<null>']
    >>> shared = Shared(pa.array(["x", None], pa.large_string()), pa.array([1, 0, 0]))
    >>> joined(["<", shared, ">"], 3).to_pylist()
    ['<null>', '<x>', '<x>']
    """
    arguments: list[pa.Array | pa.Scalar] = []
    for own, group in groupby(parts, key=lambda part: isinstance(part, pa.Array)):
        some = list(group)
        arguments += some if own else [_shared(some)]
    if len(arguments) == 1 and isinstance(arguments[0], pa.Scalar):
        return pa.repeat(arguments[0], n)
    return pc.binary_join_element_wise(
        *arguments, pa.scalar("", TEXT), null_handling="replace", null_replacement="null"
    )


def _shared(parts: Sequence[Shared | str]) -> pa.Array | pa.Scalar:
    shared = next((part for part in parts if isinstance(part, Shared)), None)
    if shared is None:
        return pa.scalar("".join(str(part) for part in parts), TEXT)
    texts = joined([part.texts if isinstance(part, Shared) else part for part in parts], len(shared.texts))
    return texts.take(shared.of)


def unwrapped(array: pa.Array) -> pa.Array:
    """Values of a dictionary, run-end encoded or extension array; any other array itself."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return array.dictionary_decode()
    if pa.types.is_run_end_encoded(kind):
        return pc.run_end_decode(array)
    return array.storage if isinstance(kind, pa.BaseExtensionType) else array


def as_bytes(array: pa.Array) -> pa.Array:
    """Texts or bytes of any width as `large_binary`; large ones without a copy."""
    return array.view(pa.large_binary()) if pa.types.is_large_string(array.type) else array.cast(pa.large_binary())


def cells(texts: pa.Array) -> list[bytes | None]:
    """Return texts or bytes as what messages hold."""
    found: list[bytes | None] = as_bytes(texts).to_pylist()
    return found


def _valid(array: pa.Array, texts: pa.Array) -> pa.Array:
    return pc.if_else(array.is_valid(), texts, _NONE) if array.null_count else texts


def in_quotes(texts: pa.Array) -> pa.Array:
    """Return texts between quotes, as they are; null stays null."""
    quote = pa.scalar('"', TEXT)
    return pc.binary_join_element_wise(quote, texts.cast(TEXT), quote, pa.scalar("", TEXT))


def _text(array: pa.Array) -> pa.Array:
    return in_quotes(escaped(array.cast(TEXT)))


def escaped(texts: pa.LargeStringArray, digits: str = "04x") -> pa.LargeStringArray:
    """Return texts with backslashes before what JSON wants escaped; nothing is touched where nothing is found.

    Args:
        digits: how the number of a control character is written.

    >>> escaped(pa.array(['a"', "\\x1f", None], pa.large_string()), "04X").to_pylist()
    ['a\\\\"', '\\\\u001F', None]
    """
    data, _, _ = base64_columns.spans(texts)
    raw = data.tobytes()
    if len(raw.translate(None, _MUST_ESCAPE)) == len(raw):
        return texts
    found = np.flatnonzero(np.bincount(data, minlength=128)[:128])
    if ord("\\") in found:  # first, since the others bring backslashes of their own
        texts = pc.replace_substring(texts, "\\", "\\\\")
    for code in found.tolist():
        if code < 32 or code == ord('"'):
            texts = pc.replace_substring(
                texts, chr(code), _SHORT.get(code) or ('\\"' if code > 31 else f"\\u{code:{digits}}")
            )
    return texts


def _float(array: pa.Array) -> pa.Array:
    """Arrow prints the shortest text that reads back as the same; whole numbers get a decimal, to stay floats."""
    if pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    texts = array.cast(TEXT)
    numbers = np.asarray(array.fill_null(0.5) if array.null_count else array)
    whole = (numbers == np.trunc(numbers)) & (np.abs(numbers) < _NO_EXPONENT)
    if whole.any():
        texts = pc.if_else(
            pa.array(whole), pc.binary_join_element_wise(texts, pa.scalar(".0", TEXT), pa.scalar("", TEXT)), texts
        )
    odd = ~np.isfinite(numbers)
    if odd.any():
        names = np.where(np.isnan(numbers), '"NaN"', np.where(numbers > 0, '"Infinity"', '"-Infinity"'))
        texts = pc.replace_with_mask(texts, pa.array(odd), pa.array(names[odd].tolist(), TEXT))
    return texts


def _date(array: pa.Array) -> pa.Array:
    return array.cast(pa.date32()).view(pa.int32()).cast(TEXT)


def _count(array: pa.Array) -> pa.Array:
    """Times, durations and instants without a zone: a number of their units, milliseconds where those are seconds."""
    kind = array.type
    numbers = array.view(pa.int32() if pa.types.is_time32(kind) else pa.int64())
    if kind.unit == "s" and not pa.types.is_duration(kind):
        try:
            numbers = pc.multiply_checked(numbers.cast(pa.int64()), 1000)
        except pa.ArrowInvalid:
            raise FormatError(
                f"a value of {kind} is beyond what 64 bits of milliseconds hold", advice="Cast the column."
            ) from None
    return numbers.cast(TEXT)


def _instant(array: pa.Array) -> pa.Array:
    return in_quotes(timestamps.to_iso(array)) if array.type.tz else _count(array)


def _list(array: pa.Array, binary_decimals: bool) -> pa.Array:
    items = fragments(array.flatten(), binary_decimals=binary_decimals).fill_null("null")
    return enclosed("[", array, items, "]")


def enclosed(before: str, array: pa.Array, items: pa.Array, after: str) -> pa.Array:
    """Return the texts of lists from those of their items: commas between, a text before and behind; null stays null.

    >>> enclosed("<", pa.array([[1, 2], None]), pa.array(["a", "b"], TEXT), ">").to_pylist()
    ['<a,b>', None]
    """
    inside = pc.binary_join(pa.LargeListArray.from_arrays(pa.array(list_offsets(array)), items), pa.scalar(",", TEXT))
    return _valid(array, joined([before, inside, after], len(array)))


def _map(array: pa.MapArray, binary_decimals: bool) -> pa.Array:
    entries = pa.ListArray.from_arrays(array.offsets, pa.StructArray.from_arrays([array.keys, array.items], ["k", "v"]))
    if array.null_count:
        entries = pc.if_else(array.is_valid(), entries, pa.scalar(None, entries.type))
    keys, values = entries.flatten().flatten()
    named = is_text(unwrapped(keys).type)
    pair = ["", ":", ""] if named else ["[", ",", "]"]
    key, value = (fragments(item, binary_decimals=binary_decimals) for item in (keys, values))
    items = joined([pair[0], key, pair[1], value, pair[2]], len(keys))
    return enclosed("{" if named else "[", entries, items, "}" if named else "]")


_WRITERS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], pa.Array]], ...] = (
    (lambda kind: bool(pa.types.is_boolean(kind) or pa.types.is_integer(kind)), lambda array: array.cast(TEXT)),
    (pa.types.is_floating, _float),
    (is_text, _text),
    (is_bytes, lambda array: in_quotes(base64_columns.encode(array))),
    (pa.types.is_date, _date),
    (pa.types.is_timestamp, _instant),
    (pa.types.is_time, _count),
    (pa.types.is_duration, _count),
    (pa.types.is_null, lambda array: pa.nulls(len(array), TEXT)),
)
