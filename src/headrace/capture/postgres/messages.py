"""Replication messages laid end to end in one buffer, so that NumPy reads the same field of all of them at once.

A CopyData payload of kind ``w`` (XLogData) has 25 bytes of header (``w``, int64 WAL start, int64 WAL end, int64 send
time) and one pgoutput message. Integers are big-endian, strings end with a zero byte, times count microseconds
since 2000-01-01.

Sources: https://www.postgresql.org/docs/current/protocol-replication.html,
https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import DecodeError
from headrace.position import format_lsn

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Longs = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

HEADER = 25
PAD = bytes(32)  # fields are gathered before they are checked: reads may run past the last message
UNIX_2000_US = 946_684_800_000_000
BEGIN, COMMIT, RELATION, INSERT, UPDATE, DELETE, TRUNCATE = b"BCRIUDT"
ORIGIN, TYPE, MESSAGE = b"OYM"
KNOWN = np.isin(np.arange(256), list(b"BCRIUDTOYM"))
IS_ROW = np.isin(np.arange(256), list(b"IUDT"))
_ADVICE = "Restart the capture: it resumes from the log. If it happens again, report it with this message."


class Frame:
    """Consecutive messages in one padded buffer: where each starts and ends, and its kind byte.

    >>> keepalive_free = bytes(25).replace(bytes(1), b"w", 1) + b"B" + bytes(20)
    >>> frame = Frame.of([keepalive_free, keepalive_free])
    >>> len(frame), frame.start.tolist(), chr(frame.kind[1])
    (2, [0, 46], 'B')
    """

    __slots__ = ("buffer", "data", "end", "kind", "number", "start")

    def __init__(self, data: bytes, start: Ints, end: Ints, number: int, kind: Bytes | None = None) -> None:
        self.data = data
        self.buffer: Bytes = np.frombuffer(data, np.uint8)
        self.start, self.end, self.number = start, end, number
        self.kind: Bytes = self.buffer[start + HEADER] if kind is None else kind

    @classmethod
    def of(cls, messages: Sequence[bytes | memoryview], number: int = 0) -> Frame:
        """Lay out messages; ``number`` is the first one's in the connection, for error messages."""
        length = np.fromiter(map(len, messages), np.int64, len(messages))
        end = np.cumsum(length)
        start = end - length
        frame = cls(b"".join([*messages, PAD]), start, end, number)
        if int(length.min()) <= HEADER:
            raise frame.error(int(length.argmin()), 0, f"shorter than its header of {HEADER} bytes")
        wrong = frame.buffer[start] != ord("w")
        if wrong.any():
            raise frame.error(int(wrong.argmax()), 0, "not an XLogData message ('w')")
        if not KNOWN[frame.kind].all():
            row = int(KNOWN[frame.kind].argmin())
            raise frame.error(row, HEADER, f"unknown message kind {chr(frame.kind[row])!r} (streaming must be off)")
        return frame

    @classmethod
    def join(cls, frames: Sequence[Frame]) -> Frame:
        """One frame of consecutive ones; nothing is copied when there is only one."""
        if len(frames) == 1:
            return frames[0]
        parts = [memoryview(one.data)[int(one.start[0]) : int(one.end[-1])] for one in frames if len(one)]
        sizes = np.cumsum([0, *map(len, parts)])
        shifts = [at - int(one.start[0]) for at, one in zip(sizes, (f for f in frames if len(f)), strict=False)]
        starts = [one.start + by for one, by in zip((f for f in frames if len(f)), shifts, strict=True)]
        ends = [one.end + by for one, by in zip((f for f in frames if len(f)), shifts, strict=True)]
        kinds = [one.kind for one in frames if len(one)]
        data = b"".join([*parts, PAD])
        return cls(data, np.concatenate(starts), np.concatenate(ends), frames[0].number, np.concatenate(kinds))

    def __len__(self) -> int:
        return self.start.size

    @property
    def size(self) -> int:
        """Bytes from the first message to the last."""
        return int(self.end[-1] - self.start[0]) if self.start.size else 0

    def part(self, first: int, stop: int) -> Frame:
        """Messages ``first`` to ``stop`` (exclusive), on the same buffer."""
        if first == 0 and stop == self.start.size:
            return self
        where = slice(first, stop)
        return Frame(self.data, self.start[where], self.end[where], self.number + first, self.kind[where])

    def gather(self, at: Ints, dtype: str) -> npt.NDArray[Any]:
        """The big-endian numbers at these bytes of the buffer, in native order."""
        wire = np.dtype(dtype)
        size = self.buffer.size - wire.itemsize + 1
        view: npt.NDArray[Any] = np.ndarray((size,), wire, self.data, strides=(1,))
        return view[at].astype(wire.newbyteorder("="))

    def error(self, message: int, at: int, what: str) -> DecodeError:
        """The error for one message; ``at`` is the byte in it (the payload's first byte is 0)."""
        start, end = int(self.start[message]), int(self.end[message])
        lsn = int.from_bytes(self.data[start + 1 : min(start + 9, end)], "big")
        kind = chr(self.kind[message]) if end - start > HEADER else "?"
        return DecodeError(
            f"replication message {self.number + message} (kind {kind!r}) at {format_lsn(lsn)}, byte {at}: {what}",
            advice=_ADVICE,
        )


@dataclass(frozen=True, slots=True)
class Column:
    """A column as a Relation message describes it."""

    name: str
    type_oid: int
    typmod: int
    key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """What a Relation message says of a table."""

    oid: int
    schema: str
    table: str
    identity: str
    columns: tuple[Column, ...]


def relation(frame: Frame, message: int) -> Relation:
    """Parse the Relation message at an index of the frame."""
    start, end = int(frame.start[message]), int(frame.end[message])
    try:
        return parse_relation(frame.data[start + HEADER : end])
    except (ValueError, IndexError, struct.error) as error:
        raise frame.error(message, HEADER, f"malformed Relation message ({error})") from error


def parse_relation(body: bytes) -> Relation:
    """Parse one Relation message, from its kind byte ``R`` on.

    >>> parse_relation(b"R" + bytes.fromhex("00004001") + b"public\\0t\\0d" + bytes.fromhex("0001 01")
    ...     + b"id\\0" + bytes.fromhex("00000017 ffffffff")).columns
    (Column(name='id', type_oid=23, typmod=-1, key=True),)
    """
    (oid,) = struct.unpack_from(">I", body, 1)
    schema, at = _string(body, 5)
    table, at = _string(body, at)
    identity, count = struct.unpack_from(">cH", body, at)
    at += 3
    columns = []
    for _ in range(count):
        key = body[at] & 1
        name, at = _string(body, at + 1)
        type_oid, typmod = struct.unpack_from(">Ii", body, at)
        at += 8
        columns.append(Column(name, type_oid, typmod, bool(key)))
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes too many")
    return Relation(oid, schema or "pg_catalog", table, identity.decode("latin-1"), tuple(columns))


def _string(body: bytes, at: int) -> tuple[str, int]:
    stop = body.index(0, at)
    return body[at:stop].decode(), stop + 1
