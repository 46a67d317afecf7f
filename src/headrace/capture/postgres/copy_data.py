"""What a server answers to COPY … TO STDOUT (FORMAT binary), as Arrow batches: many rows at once.

A row is a CopyData message of its own (https://www.postgresql.org/docs/current/protocol-message-formats.html): a byte
``d``, an int32 length that counts itself, an int16 number of columns, then for each an int32 length, -1 for NULL, and
the value in its binary form. The first row's message begins with the format's header, the last message is its trailer
(https://www.postgresql.org/docs/current/sql-copy.html).

Rows that look like the first one are a matrix of bytes, whose columns are strided views; others are found and walked by
vectors of cursors, as `headrace.capture.postgres.cells` walks rows of the stream.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.arrays import Bytes, Ints
from headrace.capture.postgres import types, values
from headrace.capture.postgres.cells import BINARY, NULL, Cells
from headrace.capture.postgres.messages import PAD, gather
from headrace.errors import DecodeError

HEADROOM = 1 << 16
"""Bytes that a block has free before its first one, for the row that the block before it has not finished."""
_FRAME = 5
_ROW = _FRAME + 2
_LENGTH, _SIGNED, _COUNT = struct.Struct(">I"), struct.Struct(">i"), struct.Struct(">H")
_SIGNATURE = b"PGCOPY\n\xff\r\n\0"
_HEADER_BYTES = len(_SIGNATURE) + 8
_TRAILER = b"\xff\xff"
_DATA = ord("d")
_FEW = 8  # rows
_BLOCK_BYTES, _BLOCK_ROWS = 1 << 20, 2048  # decoded at once: what stays in the processor's cache


@dataclass(frozen=True, slots=True)
class CopyColumn:
    """A column of a query: its name and type."""

    name: str
    type_oid: int
    typmod: int


class CopyRows:
    """The rows of one answer. Use `feed` with all of it, block after block.

    Attributes:
        ended: the server is ready for the next command.
        refusal: the fields of its error; None where there was none.
    """

    def __init__(self, columns: Sequence[CopyColumn]) -> None:
        self.ended = False
        self.refusal: dict[str, str] | None = None
        self._oids = [column.type_oid for column in columns]
        types_of = [types.arrow_type(column.type_oid, column.typmod) for column in columns]
        self._schema = pa.schema([pa.field(c.name, kind) for c, kind in zip(columns, types_of, strict=True)])
        self._waiting: list[Bytes] = []
        self._begun = self._done = False
        self._rows = 0

    def feed(self, block: Bytes, start: int, stop: int) -> list[pa.RecordBatch]:
        """Return the rows that are whole now. A block may be written to, and is not used afterwards.

        Args:
            block: bytes from ``start`` to ``stop``; `HEADROOM` bytes before them and `PAD` ones behind them are ours.

        Raises:
            DecodeError: the bytes are none of such an answer.
        """
        held = sum(part.size for part in self._waiting)
        if held > HEADROOM:
            self._waiting.append(block[start:stop].copy())
            if held + stop - start < self._needed():
                return []
            block = np.concatenate([*self._waiting, np.frombuffer(PAD, np.uint8)])
            start, stop = 0, block.size - len(PAD)
        elif held:
            block[start - held : start] = np.concatenate(self._waiting)
            start -= held
        found, at = self._messages(block, start, stop)
        self._waiting = [block[at:stop].copy()] if at < stop else []
        return found

    def _needed(self) -> int:
        """Return the size of the message that has begun."""
        return 1 + int(_LENGTH.unpack(self._waiting[0][1:_FRAME].tobytes())[0])

    def _messages(self, block: Bytes, at: int, stop: int) -> tuple[list[pa.RecordBatch], int]:
        found: list[pa.RecordBatch] = []
        while at + _FRAME <= stop and not self.ended:
            length = _length_at(block, at)
            if length < 4:
                raise self._error(f"a message of {length} bytes")
            if block[at] == _DATA and self._begun and not self._done and length > 6:
                rows, after = self._data(block, at, stop)
                found += rows
                if after == at:
                    break
                at = after
            elif at + 1 + length > stop:
                break
            else:
                at = self._talk(block, at, at + 1 + length, found)
        return found, at

    def _data(self, block: Bytes, at: int, stop: int) -> tuple[list[pa.RecordBatch], int]:
        """Return whole rows from ``at`` on, and where they end."""
        found = []
        while at + _ROW <= stop and block[at] == _DATA and (size := 1 + _length_at(block, at)) > _ROW:
            until = min(stop, at + max(_BLOCK_BYTES, _BLOCK_ROWS * size))
            if at + size > stop:
                break
            if (count := int(_COUNT.unpack_from(block.data, at + _FRAME)[0])) != len(self._oids):
                raise self._error(f"a row of {count} columns where there are {len(self._oids)}")
            places, n, cells = self._alike(block, at, until, size)
            if not n:
                first, end = _rows(block, at, until, len(self._oids))
                n, cells = first.size, self._walked(block, first, end)
                places = int(end[-1]) - at
            found.append(self._batch(cells, n))
            self._rows += n
            at += places
        return found, at

    def _alike(self, block: Bytes, at: int, stop: int, size: int) -> tuple[int, int, list[Cells]]:
        """Return the cells of all rows up to ``stop`` where they have the first one's size, lengths and NULLs."""
        n = (stop - at) // size
        if n < _FEW or block[at + (n - 1) * size] != _DATA:
            return 0, 0, []
        cells, where = [], at + _ROW
        fixed = [at, at + 3]  # d, the length, the number of columns, and a byte
        for _ in self._oids:
            if where + 4 > at + size:
                return 0, 0, []
            length = _signed_at(block, where)
            fixed.append(where)
            where += 4
            cells.append(Cells(block, n, NULL if length < 0 else BINARY, max(length, 0), None, where, size))
            where += max(length, 0)
        if where != at + size:
            return 0, 0, []
        for place in fixed:
            column: npt.NDArray[np.uint32] = np.ndarray((n,), np.uint32, block, place, (size,))
            if not (column == column[0]).all():
                return 0, 0, []
        return n * size, n, cells

    def _walked(self, block: Bytes, first: Ints, end: Ints) -> list[Cells]:
        """Return the cells of rows of any shape, by one cursor for each."""
        cells, cursor = [], first + _ROW
        for _ in self._oids:
            if (cursor + 4 > end).any():
                raise self._error("a row that is shorter than its columns")
            length = gather(block, cursor, ">i4").astype(np.int64)
            null = length < 0
            start = cursor + 4
            if not null.any():
                same = int(length[0]) if (length == length[0]).all() else length
                cells.append(Cells(block, first.size, BINARY, same, start))
            else:
                if (length < -1).any():
                    raise self._error("a value with a negative length")
                length[null] = 0
                kind = np.where(null, np.uint8(NULL), np.uint8(BINARY))
                cells.append(Cells(block, first.size, kind, length, start))
            cursor = start + length
            if (cursor > end).any():
                raise self._error("a value that is longer than its row")
        if (cursor != end).any():
            raise self._error("a row that is longer than its columns")
        return cells

    def _batch(self, cells: Sequence[Cells], n: int) -> pa.RecordBatch:
        arrays = []
        for cell, type_oid, field in zip(cells, self._oids, self._schema, strict=True):
            valid = cell.of_kind(BINARY)
            if valid is False:
                arrays.append(pa.nulls(n, field.type))
                continue
            try:
                array, _ = values.binary(cell, None if valid is True else valid, type_oid, field.type)
            except values.Malformed as error:
                raise self._error(f"row {error.row} after it, column «{field.name}»: {error}") from error
            arrays.append(array)
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _talk(self, block: Bytes, at: int, end: int, found: list[pa.RecordBatch]) -> int:
        """Deal with one message that has no values; return where to go on."""
        kind, body = chr(block[at]), block[at + _FRAME : end].tobytes()
        if kind == "d" and not self._begun:
            return self._header(block, at, end, body)
        if kind == "d" and not self._done and body == _TRAILER:
            self._done = True
        elif kind == "d" and not self._done and body == b"\0\0" and not self._oids:
            found.append(pa.RecordBatch.from_struct_array(pa.array([{}], pa.struct([]))))
        elif kind == "E":
            self.refusal = fields_of(body)
        elif kind == "Z":
            if self.refusal is None and not self._done:
                raise self._error("the rows end before their trailer")
            self.ended = True
        elif kind not in "HcCNSA" or (kind in "cC" and not self._done):
            raise self._error(f"a message of the kind {kind!r}, of {len(body)} bytes")
        return end

    def _header(self, block: Bytes, at: int, end: int, body: bytes) -> int:
        """Pass the header; a row that follows it in the same message gets a message of its own."""
        extension = int(_LENGTH.unpack_from(body, _HEADER_BYTES - 4)[0]) if len(body) >= _HEADER_BYTES else -1
        if not body.startswith(_SIGNATURE) or extension:
            raise self._error("no header of COPY in binary")
        self._begun = True
        if len(body) == _HEADER_BYTES:
            return end
        at += _HEADER_BYTES
        block[at] = _DATA
        block[at + 1 : at + _FRAME] = np.frombuffer(_LENGTH.pack(end - at - 1), np.uint8)
        return at

    def _error(self, what: str) -> DecodeError:
        return DecodeError(
            f"the answer to COPY is not understood behind row {self._rows:,}: {what}",
            advice="Is that a PostgreSQL server, without anything between that changes what it says?",
        )


def _rows(block: Bytes, at: int, stop: int, columns: int) -> tuple[Ints, Ints]:
    """Return where whole rows begin and end, from the one at ``at``, which is whole, to the last that follows it.

    What looks like a row's beginning is searched everywhere at once. Usually each row ends where the next begins; what
    begins inside one is none.

    >>> row = b"d" + bytes([0, 0, 0, 12]) + bytes([0, 1]) + bytes([0, 0, 0, 2]) + b"xy"
    >>> first, end = _rows(np.frombuffer(row * 3 + PAD, np.uint8), 0, 39, 1)
    >>> first.tolist(), end.tolist()
    ([0, 13, 26], [13, 26, 39])
    """
    first = np.flatnonzero(block[at : stop - _ROW + 1] == _DATA) + at
    first = first[gather(block, first + _FRAME, ">u2") == columns]
    end = first + 1 + gather(block, first + 1, ">u4").astype(np.int64)
    broken = np.flatnonzero(end[:-1] != first[1:])
    if broken.size:
        kept, whole = np.zeros(first.size, bool), 0
        for place in broken.tolist():
            if place < whole:
                continue
            kept[whole : place + 1] = True
            whole = int(first.searchsorted(end[place]))
            if whole == first.size or first[whole] != end[place]:
                break
        else:
            kept[whole:] = True
        first, end = first[kept], end[kept]
    n = max(1, int(end.searchsorted(stop, "right")))
    return first[:n], end[:n]


def fields_of(body: bytes) -> dict[str, str]:
    """Return the fields of an ErrorResponse or NoticeResponse."""
    return {part[:1].decode(): part[1:].decode(errors="replace") for part in body.split(b"\0") if part}


def _length_at(block: Bytes, at: int) -> int:
    return int(_LENGTH.unpack_from(block.data, at + 1)[0])


def _signed_at(block: Bytes, at: int) -> int:
    return int(_SIGNED.unpack_from(block.data, at)[0])
