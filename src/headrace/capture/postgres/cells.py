"""The cells of row messages: TupleData walked column by column over all rows at once.

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

from headrace.arrays import Bytes, Ints, Mask
from headrace.capture.postgres.messages import DELETE, HEADER, INSERT, UPDATE, Frame, gather, strided

NULL, UNCHANGED, TEXT, BINARY = b"nutb"
_HEAD = np.full(256, 1 << 40)  # bytes before the value; a kind that is none leads beyond any message
_HEAD[list(b"nu")], _HEAD[list(b"tb")] = 1, 5
_LENGTH_BITS = np.where(_HEAD == 5, 0xFFFFFFFF, 0)
_TAG = HEADER + 5
_FEW = 64  # rows, checked in one gather
_MANY = 64  # templates
_WIDTHS: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype(">u2"), 4: np.dtype(">u4")}


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
        start: Ints | None = None,
        base: int = 0,
        stride: int = 0,
    ) -> None:
        self.buffer, self.n, self.kind, self.length = buffer, n, kind, length
        self._start, self.base, self.stride = start, base, stride

    @property
    def start(self) -> Ints:
        if self._start is None:
            self._start = np.arange(self.n) * self.stride + self.base
        return self._start

    @property
    def lengths(self) -> Ints:
        return np.full(self.n, self.length) if isinstance(self.length, int) else self.length

    @property
    def kinds(self) -> Bytes:
        return np.full(self.n, self.kind, np.uint8) if isinstance(self.kind, int) else self.kind

    def numbers(self, dtype: str) -> npt.NDArray[Any]:
        """Return the big-endian number at the start of every value, in native order."""
        if self._start is None:
            return strided(self.buffer, self.base, self.stride, self.n, dtype)
        return gather(self.buffer, self._start, dtype)

    def of_kind(self, kind: int) -> Mask | bool:
        """Return which cells have this kind; True or False when all or none."""
        if isinstance(self.kind, int):
            return self.kind == kind
        mask: Mask = self.kind == kind
        if mask.all():
            return True
        return mask if mask.any() else False

    def at(self, row: int) -> tuple[int, bytes]:
        """Return kind and value of one cell."""
        start, length = int(self.start[row]), int(self.lengths[row])
        return int(self.kinds[row]), self.buffer[start : start + length].tobytes()


@dataclass(slots=True)
class Tuples:
    """Cells of the rows' tuples, and of the old ones of updates (``old_rows`` says whose; None: there are none)."""

    new: list[Cells]
    old: list[Cells]
    old_rows: Ints | None


_Places = list[tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Template:
    """The cells of one message, as (offset, kind, length), and the bytes that put them there."""

    size: int
    new: _Places
    old: _Places
    fixed: tuple[tuple[int, int, int], ...]  # offset, width, value
    where: Ints
    bytes_there: bytes


Templates = dict[int, Template]


def tuples(frame: Frame, messages: Ints, columns: int, templates: Templates) -> Tuples:
    """Find all cells of these Insert, Update and Delete messages of one relation with so many columns.

    ``templates`` remembers the relation's usual shapes by their size.
    """
    return _uniform(frame, messages, columns, templates) or _mixed(frame, messages, columns)


# --- rows that all look like the first one ---


def _uniform(frame: Frame, messages: Ints, columns: int, templates: Templates) -> Tuples | None:
    start = frame.start[messages]
    length = frame.end[messages] - start
    size, n = int(length[0]), messages.size
    if n > 1 and not (length == size).all():
        return None
    buffer, base, stride = _matrix(frame, start, size)
    template = templates.get(size)
    if template is None or not _all_alike(buffer, base, stride, n, template):
        first = frame.data[int(start[0]) : int(start[0]) + size]
        template = _template(first, columns)
        if template is None or not _all_alike(buffer, base, stride, n, template):
            return None
        if len(templates) >= _MANY:
            templates.clear()
        templates[size] = template
    new = [Cells(buffer, n, kind, length, None, base + at, stride) for at, kind, length in template.new]
    old = [Cells(buffer, n, kind, length, None, base + at, stride) for at, kind, length in template.old]
    return Tuples(new, old, np.arange(n) if old else None)


def _template(message: bytes, columns: int) -> Template | None:
    """Return the template that a message makes; None when it is not well-formed."""
    kind, tag = message[HEADER], message[_TAG : _TAG + 1]
    old: _Places = []
    fixed = [(HEADER, 1), (_TAG, 1)]
    try:
        at = _TAG + 1
        if kind == UPDATE and tag in (b"K", b"O"):
            old, at = _template_tuple(message, at, columns, fixed)
            fixed.append((at, 1))
            tag, at = message[at : at + 1], at + 1
        elif kind == DELETE:
            tag = b"N" if tag in (b"K", b"O") else b""
        new, at = _template_tuple(message, at, columns, fixed)
    except (struct.error, IndexError, ValueError):
        return None
    if tag != b"N" or at != len(message) or kind not in (INSERT, UPDATE, DELETE):
        return None
    where = np.concatenate([np.arange(at, at + width) for at, width in fixed])
    values = tuple((at, width, int.from_bytes(message[at : at + width], "big")) for at, width in fixed)
    return Template(len(message), new, old, values, where, np.frombuffer(message, np.uint8)[where].tobytes())


def _template_tuple(message: bytes, at: int, columns: int, fixed: list[tuple[int, int]]) -> tuple[_Places, int]:
    (count,) = struct.unpack_from(">H", message, at)
    if count != columns:
        raise ValueError(count)
    fixed.append((at, 2))
    at += 2
    places = []
    for _ in range(count):
        kind, length = message[at], 0
        fixed.append((at, 1))
        at += 1
        if kind in (TEXT, BINARY):
            (length,) = struct.unpack_from(">I", message, at)
            fixed.append((at, 4))
            at += 4
        elif kind not in (NULL, UNCHANGED):
            raise ValueError(kind)
        places.append((at, kind, length))
        at += length
    return places, at


def _matrix(frame: Frame, start: Ints, size: int) -> tuple[Bytes, int, int]:
    """Return buffer, first byte and stride of rows of one size: in place when evenly spaced, else copied together."""
    n, first = start.size, int(start[0])
    if n == 1:
        return frame.buffer, first, size
    stride = int(start[1]) - first
    if int(start[-1]) - first == stride * (n - 1) and (n == 2 or (start[1:] - start[:-1] == stride).all()):
        return frame.buffer, first, stride
    rows = np.ndarray((frame.buffer.size - size + 1,), np.dtype((np.void, size)), frame.data, strides=(1,))
    # The last row once more is the padding that reads past the end may need.
    return rows[np.append(start, start[-1])].view(np.uint8), 0, size


def _all_alike(buffer: Bytes, base: int, stride: int, n: int, template: Template) -> bool:
    """Return whether kinds and lengths stand in every row where they stand in the template."""
    if n <= _FEW:
        matrix = np.ndarray((n, template.size), np.uint8, buffer, base, (stride, 1))
        return matrix[:, template.where].tobytes() == template.bytes_there * n
    for at, width, value in template.fixed:
        view = np.ndarray((n,), _WIDTHS[width], buffer, base + at, (stride,))
        if not (view == value).all():
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
        wrong = after > end
        if wrong.any():
            row = int(wrong.argmax())
            message = int(messages[row])
            at = int(cursor[row] - frame.start[message])
            raise frame.error(message, at, f"column {column + 1} is of an unknown kind or longer than the message")
        cells.append(cell)
        cursor = after
    return cells, cursor


def _step(frame: Frame, cursor: Ints) -> Cells:
    """Return the cell at each cursor: kind byte and length come in one 8-byte read."""
    word = frame.gather(cursor, ">i8")
    kind = (word >> 56).astype(np.uint8)
    first = int(kind[0])
    n = cursor.size
    word >>= 24
    if (kind == first).all():
        length = word & 0xFFFFFFFF if _LENGTH_BITS[first] else 0
        return Cells(frame.buffer, n, first, length, cursor + _HEAD[first])
    word &= _LENGTH_BITS.take(kind)
    return Cells(frame.buffer, n, kind, word, cursor + _HEAD.take(kind))
