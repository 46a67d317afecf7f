"""Where the cells of row messages are: TupleData walked column by column over all rows at once.

A tuple is an int16 number of columns, then for each a kind byte: ``n`` null, ``u`` unchanged TOAST, or ``t`` text and
``b`` binary followed by an int32 length and the value. Insert: int32 relation, ``N``, tuple. Update: int32 relation, an
old tuple after ``K`` or ``O`` where the replica identity gives it, ``N``, tuple. Delete: int32 relation, ``K`` or
``O``, tuple. (https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html)

Rows of one length whose kinds and lengths stand in the same places are a matrix of bytes, whose columns are strided
views (`_uniform`). Everything else is walked by a vector of cursors, one step for each column (`_walk`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.capture.postgres.messages import DELETE, HEADER, INSERT, UPDATE, Bytes, Frame, Ints, Mask

NULL, UNCHANGED, TEXT, BINARY = b"nutb"
_HAS_VALUE = np.isin(np.arange(256), list(b"tb"))
_IS_KIND = np.isin(np.arange(256), list(b"nutb"))
_TAG = HEADER + 5
_FEW = 64


class Cells:
    """One column's cells: kind, first byte and length of each value in ``buffer``.

    ``kind`` and ``length`` are numbers when all rows agree. The starts are ``base + stride * row``, or an array.
    """

    __slots__ = ("_start", "base", "buffer", "kind", "length", "n", "stride")

    def __init__(
        self,
        buffer: Bytes,
        n: int,
        kind: int | Bytes,
        length: int | Ints,
        *,
        start: Ints | None = None,
        base: int = 0,
        stride: int = 0,
    ) -> None:
        self.buffer, self.n, self.kind, self.length = buffer, n, kind, length
        self._start, self.base, self.stride = start, base, stride

    @property
    def start(self) -> Ints:
        if self._start is None:
            self._start = np.arange(self.base, self.base + self.n * self.stride, self.stride or 1)[: self.n]
        return self._start

    @property
    def lengths(self) -> Ints:
        return np.broadcast_to(np.asarray(self.length, np.int64), (self.n,))

    def numbers(self, dtype: str, offset: int = 0) -> npt.NDArray[Any]:
        """The big-endian number ``offset`` bytes into every value, in native order."""
        wire = np.dtype(dtype)
        if self._start is None:
            view: npt.NDArray[Any] = np.ndarray(
                (self.n,), wire, self.buffer, offset=self.base + offset, strides=(self.stride,)
            )
            return view.astype(wire.newbyteorder("="))
        view = np.ndarray((self.buffer.size - wire.itemsize + 1,), wire, self.buffer, strides=(1,))
        return view[self._start + offset if offset else self._start].astype(wire.newbyteorder("="))

    def of_kind(self, kind: int) -> Mask | bool:
        """Which cells have this kind; True or False when all or none."""
        if isinstance(self.kind, int):
            return self.kind == kind
        mask: Mask = self.kind == kind
        if mask.all():
            return True
        return mask if mask.any() else False

    def at(self, row: int) -> tuple[int, bytes]:
        """Kind and value of one cell."""
        kind = self.kind if isinstance(self.kind, int) else int(self.kind[row])
        start, length = int(self.start[row]), int(self.lengths[row])
        return kind, self.buffer[start : start + length].tobytes()


@dataclass(slots=True)
class Tuples:
    """Cells of the rows' tuples, and of the old ones of updates (``old_rows`` says whose; None: there are none)."""

    new: list[Cells]
    old: list[Cells]
    old_rows: Ints | None


def tuples(frame: Frame, messages: Ints, columns: int) -> Tuples:
    """Find all cells of these Insert, Update and Delete messages of one relation with so many columns."""
    return _uniform(frame, messages, columns) or _mixed(frame, messages, columns)


# --- rows that all look like the first one ---


def _uniform(frame: Frame, messages: Ints, columns: int) -> Tuples | None:
    start = frame.start[messages]
    length = frame.end[messages] - start
    size, n = int(length[0]), messages.size
    if n > 1 and not (length == size).all():
        return None
    first = frame.data[int(start[0]) : int(start[0]) + size]
    template = _template(first, columns)
    if template is None:
        return None
    buffer, base, stride = _matrix(frame, start, size)
    old, new = template
    if n > 1 and not _all_alike(buffer, base, stride, n, first, [*old, *new]):
        return None

    def cells(places: _Places) -> list[Cells]:
        return [Cells(buffer, n, kind, length, base=base + at, stride=stride) for at, kind, length in places]

    return Tuples(cells(new), cells(old), np.arange(n) if old else None)


_Places = list[tuple[int, int, int]]


def _template(message: bytes, columns: int) -> tuple[_Places, _Places] | None:
    """(offset, kind, length) of the first message's cells, old tuple and new; None when it is not well-formed."""
    kind, tag = message[HEADER], message[_TAG : _TAG + 1]
    old: _Places = []
    try:
        at = _TAG + 1
        if kind == UPDATE and tag in (b"K", b"O"):
            old, at = _template_tuple(message, at, columns)
            tag, at = message[at : at + 1], at + 1
        elif kind == DELETE:
            tag = b"N" if tag in (b"K", b"O") else b""
        new, at = _template_tuple(message, at, columns)
    except (struct.error, IndexError, ValueError):
        return None
    return (old, new) if tag == b"N" and at == len(message) and kind in (INSERT, UPDATE, DELETE) else None


def _template_tuple(message: bytes, at: int, columns: int) -> tuple[_Places, int]:
    (count,) = struct.unpack_from(">H", message, at)
    if count != columns:
        raise ValueError(count)
    at += 2
    places = []
    for _ in range(count):
        kind, length = message[at], 0
        at += 1
        if kind in (TEXT, BINARY):
            (length,) = struct.unpack_from(">I", message, at)
            at += 4
        elif kind not in (NULL, UNCHANGED):
            raise ValueError(kind)
        places.append((at, kind, length))
        at += length
    return places, at


def _matrix(frame: Frame, start: Ints, size: int) -> tuple[Bytes, int, int]:
    """Buffer, first byte and stride of rows of one size: in place when evenly spaced, else copied together."""
    first = int(start[0])
    if start.size == 1:
        return frame.buffer, first, size
    stride = int(start[1]) - first
    if int(start[-1]) - first == stride * (start.size - 1) and (np.diff(start) == stride).all():
        return frame.buffer, first, stride
    rows = np.ndarray((frame.buffer.size - size + 1,), np.dtype((np.void, size)), frame.data, strides=(1,))
    # The last row once more is the padding that reads past the end may need.
    return rows[np.append(start, start[-1])].view(np.uint8), 0, size


def _all_alike(buffer: Bytes, base: int, stride: int, n: int, first: bytes, places: _Places) -> bool:
    """Whether kinds and lengths stand in every row where they stand in the first."""
    fixed = [(HEADER, 1), (_TAG, 1), (_TAG + 1, 2)]
    for at, kind, _ in places:
        fixed += [(at - 5, 1), (at - 4, 4)] if kind in (TEXT, BINARY) else [(at - 1, 1)]
    if n <= _FEW:
        where = np.concatenate([np.arange(at, at + width) for at, width in fixed])
        matrix = np.ndarray((n, len(first)), np.uint8, buffer, offset=base, strides=(stride, 1))
        return bool((matrix[:, where] == np.frombuffer(first, np.uint8)[where]).all())
    for at, width in fixed:
        dtype = f">u{width}"
        view = np.ndarray((n,), dtype, buffer, offset=base + at, strides=(stride,))
        if not (view == int.from_bytes(first[at : at + width], "big")).all():
            return False
    return True


# --- rows of any shape ---


def _mixed(frame: Frame, messages: Ints, columns: int) -> Tuples:
    body = frame.start[messages] + HEADER
    tag = frame.buffer[body + 5]
    kind = frame.kind[messages]
    has_old = (kind == UPDATE) & (tag != ord("N"))
    old_tag = (tag == ord("K")) | (tag == ord("O"))
    wrong = np.where(kind == INSERT, tag != ord("N"), (has_old | (kind == DELETE)) & ~old_tag)
    if wrong.any():
        raise frame.error(int(messages[wrong.argmax()]), _TAG, "neither a new nor an old tuple follows")
    cursor = body + 6
    old: list[Cells] = []
    old_rows = np.flatnonzero(has_old) if has_old.any() else None
    if old_rows is not None:
        old, after = _walk(frame, messages[old_rows], cursor[old_rows], columns)
        wrong = frame.buffer[after] != ord("N")
        if wrong.any():
            row = int(wrong.argmax())
            message = int(messages[old_rows[row]])
            raise frame.error(message, int(after[row] - frame.start[message]), "no new tuple after the old one")
        cursor[old_rows] = after + 1
    new, cursor = _walk(frame, messages, cursor, columns)
    wrong = cursor != frame.end[messages]
    if wrong.any():
        row = int(wrong.argmax())
        raise frame.error(int(messages[row]), int(cursor[row] - frame.start[messages[row]]), "bytes after the tuple")
    return Tuples(new, old, old_rows)


def _walk(frame: Frame, messages: Ints, cursor: Ints, columns: int) -> tuple[list[Cells], Ints]:
    """Step over one tuple of every row, column by column; returns the cells and where the tuples end."""
    end = frame.end[messages]
    wrong = (frame.gather(cursor, ">u2") != columns) | (cursor + 2 > end)
    if wrong.any():
        row = int(wrong.argmax())
        message = int(messages[row])
        raise frame.error(message, int(cursor[row] - frame.start[message]), f"a tuple that has not {columns} columns")
    cells = []
    cursor = cursor + 2
    for column in range(columns):
        cell = _step(frame, cursor)
        after = cell.start + cell.length
        wrong = (after > end) if isinstance(cell.kind, int) else (after > end) | ~_IS_KIND[cell.kind]
        if wrong.any() or (isinstance(cell.kind, int) and not _IS_KIND[cell.kind]):
            row = int(wrong.argmax())
            message = int(messages[row])
            at = int(cursor[row] - frame.start[message])
            raise frame.error(message, at, f"column {column + 1} is of an unknown kind or longer than the message")
        cells.append(cell)
        cursor = after
    return cells, cursor


def _step(frame: Frame, cursor: Ints) -> Cells:
    """The cell at each cursor: kind byte and length come in one 8-byte read."""
    word = frame.gather(cursor, ">i8")
    kind = (word >> 56).astype(np.uint8)
    first = int(kind[0])
    n = cursor.size
    if (kind == first).all():
        if not _HAS_VALUE[first]:
            return Cells(frame.buffer, n, first, 0, start=cursor + 1)
        return Cells(frame.buffer, n, first, (word >> 24) & 0xFFFFFFFF, start=cursor + 5)
    has_value = _HAS_VALUE[kind]
    length = np.where(has_value, (word >> 24) & 0xFFFFFFFF, 0)
    return Cells(frame.buffer, n, kind, length, start=cursor + np.where(has_value, 5, 1))
