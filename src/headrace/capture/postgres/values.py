"""Cells in PostgreSQL's binary form (`typsend`) as Arrow arrays.

`binary(...)` decodes one column. Its second result says which rows hold what Arrow cannot (infinity, NaN in a
decimal, a time out of range); they are null in the array. A value that contradicts its type raises `Malformed`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.arrays import Ints, Mask
from headrace.capture.postgres import arrays, numerics, types
from headrace.capture.postgres.cells import Cells
from headrace.capture.postgres.messages import UNIX_2000_US

UNIX_2000_DAYS = 10_957
_INT64_MAX = np.iinfo(np.int64).max

Decoded = tuple[pa.Array, Mask | None]
_Decode = Callable[[Cells, Mask | None, pa.DataType], Decoded]


class Malformed(Exception):
    """A value that its type does not allow, by its row among the cells given."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(what)
        self.row = row


def binary(cells: Cells, valid: Mask | None, type_oid: int, arrow_type: pa.DataType) -> Decoded:
    """Decode the valid cells of a binary column; the others become null.

    >>> cells = Cells(np.frombuffer(bytes([0, 7, 0, 9]), np.uint8), 2, ord("b"), 2, stride=2)
    >>> binary(cells, None, 21, pa.int16())[0].to_pylist()
    [7, 9]
    """
    return _DECODERS[type_oid](cells, valid, arrow_type)


def check_length(cells: Cells, valid: Mask | None, width: int) -> None:
    """Every valid value has this many bytes."""
    if isinstance(cells.length, int):
        if cells.length != width:
            raise Malformed(0, f"a value of {cells.length} bytes where its type has {width}")
        return
    wrong = cells.length != width if valid is None else (cells.length != width) & valid
    if wrong.any():
        row = int(wrong.argmax())
        raise Malformed(row, f"a value of {cells.length[row]} bytes where its type has {width}")


def _fixed(dtype: str) -> _Decode:
    width = int(dtype[-1])

    def decode(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
        check_length(cells, valid, width)
        return arrays.of_numbers(cells.numbers(dtype), arrow_type, valid), None

    return decode


def _oid(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
    check_length(cells, valid, 4)
    return arrays.of_numbers(cells.numbers(">u4").astype(np.int64), arrow_type, valid), None


def _bool(cells: Cells, valid: Mask | None, _: pa.DataType) -> Decoded:
    check_length(cells, valid, 1)
    return arrays.of_bools(cells.numbers("u1") != 0, valid), None


def _date(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
    check_length(cells, valid, 4)
    days = cells.numbers(">i4")
    # The extremes are -infinity and infinity; PostgreSQL's last day is still below Arrow's.
    bad = (days == -(2**31)) | (days > 2**31 - 1 - UNIX_2000_DAYS)
    return _shifted(days, UNIX_2000_DAYS, bad, arrow_type, valid)


def _timestamp(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
    check_length(cells, valid, 8)
    micros = cells.numbers(">i8")
    bad = (micros == -(2**63)) | (micros > _INT64_MAX - UNIX_2000_US)
    return _shifted(micros, UNIX_2000_US, bad, arrow_type, valid)


def _shifted(
    values: npt.NDArray[np.signedinteger], by: int, bad: Mask, arrow_type: pa.DataType, valid: Mask | None
) -> Decoded:
    if bad.any():
        bad = bad if valid is None else bad & valid
        valid = ~bad if valid is None else valid & ~bad
        values = np.where(valid, values, 0)
        return arrays.of_numbers(values + values.dtype.type(by), arrow_type, valid), bad
    values += values.dtype.type(by)
    return arrays.of_numbers(values, arrow_type, valid), None


def _bytes(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
    return arrays.of_spans(cells.buffer, cells.start, cells.lengths, arrow_type, valid), None


def _jsonb(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
    """jsonb is a version byte, 1, and the text."""
    wrong = (cells.buffer[cells.start] != 1) | (cells.lengths < 1)
    if valid is not None:
        wrong &= valid
    if wrong.any():
        raise Malformed(int(wrong.argmax()), "a jsonb value that is not of version 1")
    skip = 1 if valid is None else valid.astype(np.int64)
    return arrays.of_spans(cells.buffer, cells.start + skip, cells.lengths - skip, arrow_type, valid), None


_CHARS = pa.array(["", *map(chr, range(1, 128)), *(f"\\{code:03o}" for code in range(128, 256))])


def _char(cells: Cells, valid: Mask | None, _: pa.DataType) -> Decoded:
    """One byte; PostgreSQL shows 0 as the empty string and bytes above 127 in octal (`charout`)."""
    check_length(cells, valid, 1)
    codes = cells.numbers("u1")
    return _CHARS.take(pa.array(codes, mask=None if valid is None else ~valid)), None


_HEX = np.frombuffer(bytes(range(256)).hex().encode(), np.uint16)
_UUID_GROUPS = ((8, 0, 0), (4, 8, 9), (4, 12, 14), (4, 16, 19), (12, 20, 24))  # width, from, to


def _uuid(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
    check_length(cells, valid, 16)
    start = cells.start if valid is None else cells.start[valid]
    n = start.size
    values = np.ndarray((cells.buffer.size - 15,), "V16", cells.buffer, strides=(1,))[start].view(np.uint8)
    digits = _HEX.take(values)
    text = np.full(36 * n, ord("-"), np.uint8)
    for width, source, target in _UUID_GROUPS:
        into: npt.NDArray[np.void] = np.ndarray((n,), f"V{width}", text, target, (36,))
        into[...] = np.ndarray((n,), f"V{width}", digits, source, (32,))
    length: Ints = np.full(cells.n, 36, np.int64) if valid is None else valid * np.int64(36)
    return arrays.of_text(text, length, arrow_type, valid), None


def _numeric(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
    rows = np.arange(cells.n) if valid is None else np.flatnonzero(valid)
    numbers, wrong = numerics.read(cells.buffer, cells.start[rows], cells.lengths[rows])
    if wrong.any():
        raise Malformed(int(rows[wrong.argmax()]), "a numeric value that contradicts its length or sign")
    if pa.types.is_string(arrow_type):
        return numerics.to_text(numbers, valid), None
    words, bad = numerics.to_decimals(numbers, arrow_type)
    if valid is None and not bad.any():
        return arrays.of_numbers(words, arrow_type, None), None
    every = np.zeros((cells.n, 2), np.uint64)
    every[rows[~bad]] = words[~bad]
    kept, lost = np.zeros(cells.n, bool), np.zeros(cells.n, bool)
    kept[rows[~bad]], lost[rows[bad]] = True, True
    return arrays.of_numbers(every, arrow_type, kept), lost if bad.any() else None


_DECODERS: dict[int, _Decode] = {
    types.BOOL: _bool,
    types.INT2: _fixed(">i2"),
    types.INT4: _fixed(">i4"),
    types.INT8: _fixed(">i8"),
    types.OID: _oid,
    types.FLOAT4: _fixed(">f4"),
    types.FLOAT8: _fixed(">f8"),
    types.DATE: _date,
    types.TIMESTAMP: _timestamp,
    types.TIMESTAMPTZ: _timestamp,
    types.NUMERIC: _numeric,
    types.CHAR: _char,
    types.UUID: _uuid,
    types.JSONB: _jsonb,
    types.BYTEA: _bytes,
    types.TEXT: _bytes,
    types.NAME: _bytes,
    types.BPCHAR: _bytes,
    types.VARCHAR: _bytes,
    types.JSON: _bytes,
}
