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

from headrace.arrays import Bytes, Ints
from headrace.errors import DecodeError
from headrace.position import format_lsn

Longs = npt.NDArray[np.uint64]

HEADER = 25
PAD = bytes(32)  # fields are gathered before they are checked: reads may run past the last message
UNIX_2000_US = 946_684_800_000_000
BEGIN, COMMIT, RELATION, INSERT, UPDATE, DELETE, TRUNCATE, MESSAGE, ORIGIN = b"BCRIUDTMO"
# Every kind of pgoutput's protocols 1 to 4. A server sends more than its documents allow with protocol 1:
# PostgreSQL 18.4 sends Stream Abort with streaming off, after a transaction whose nested savepoints did not fit into
# logical_decoding_work_mem was rolled back. Nothing of that transaction was sent, so there is nothing to undo.
# Decoded; decoded where it is asked for (Message, Origin); read over (Type); read over (Stream Abort, Stream Stop,
# Rollback Prepared): we are never inside a streamed transaction.
KINDS = b"BCRIUDT" + b"MO" + b"Y" + b"AEr"
# What these bring, or say of rows that came before, is not what COMMIT means: taking it would be wrong either way.
_REFUSED = {
    "S": "Stream Start: rows of a transaction that is not committed follow",
    "c": "Stream Commit: a transaction was committed whose rows did not come as one",
    "b": "Begin Prepare: rows of a prepared transaction follow, which may be rolled back",
    "P": "Prepare: the rows of a prepared transaction, which may be rolled back, have come",
    "K": "Commit Prepared: a transaction was committed whose rows have come before",
    "p": "Stream Prepare: a transaction was prepared whose rows did not come as one",
}
IS_ROW = np.isin(np.arange(256), list(b"IUDT"))
_NUMBERS = (">i2", ">u2", ">i4", ">u4", ">i8", ">u8", ">f4", ">f8")
_ADVICE = "Restart the capture: it resumes from the log. If it happens again, report it with this message."
_OFF = "Capture through a slot that was made with two_phase off (and streaming off, which we ask for)."


class Frame:
    """Consecutive messages in one padded buffer: where each starts and ends, and its kind byte.

    ``kinds`` has the kind bytes once more, as bytes: searching those costs next to nothing.

    >>> message = b"w" + bytes(24) + b"B" + bytes(20)
    >>> frame = Frame.of([message, message])
    >>> len(frame), frame.start.tolist(), frame.kinds
    (2, [0, 46], b'BB')
    """

    __slots__ = ("buffer", "data", "end", "kind", "kinds", "number", "start")

    def __init__(self, data: bytes, start: Ints, end: Ints, number: int, kind: Bytes) -> None:
        self.data = data
        self.buffer: Bytes = np.frombuffer(data, np.uint8)
        self.start, self.end, self.number = start, end, number
        self.kind, self.kinds = kind, kind.tobytes()

    @classmethod
    def of(cls, messages: Sequence[bytes | memoryview], number: int = 0) -> Frame:
        """Lay out messages; ``number`` is the first one's in the connection, for error messages."""
        length = np.fromiter(map(len, messages), np.int64, len(messages))
        end: Ints = length.cumsum()
        return cls.at(b"".join([*messages, PAD]), end - length, end, number)

    @classmethod
    def at(cls, data: bytes, start: Ints, end: Ints, number: int = 0) -> Frame:
        """Return messages that lie in a padded buffer already, anywhere but in their order."""
        bytes_of = np.frombuffer(data, np.uint8)
        frame = cls(data, start, end, number, bytes_of[start + HEADER])
        length = end - start
        if length.min() <= HEADER:
            raise frame.error(int(length.argmin()), 0, f"shorter than its header of {HEADER} bytes")
        first = bytes_of[start]
        if first.tobytes().count(b"w") != len(frame):
            other = int((first != ord("w")).argmax())
            raise frame.error(other, 0, f"not an XLogData message ('w') but of kind {chr(first[other])!r}")
        unknown = frame.kinds.translate(None, KINDS)
        if unknown:
            raise frame._unknown(unknown[0])
        return frame

    def _unknown(self, kind: int) -> DecodeError:
        refused = _REFUSED.get(chr(kind), "")
        what = f"unknown message kind {chr(kind)!r}{f' ({refused})' if refused else ''}"
        return self.error(self.kinds.index(kind), HEADER, what, advice=_OFF if refused else _ADVICE)

    @classmethod
    def join(cls, frames: Sequence[Frame]) -> Frame:
        """Return one frame of consecutive ones; nothing is copied when there is only one."""
        frames = [frame for frame in frames if len(frame)]
        if len(frames) == 1:
            return frames[0]
        parts = [memoryview(frame.data)[int(frame.start[0]) : int(frame.end[-1])] for frame in frames]
        shifts = np.cumsum([0, *map(len, parts)])[:-1] - [int(frame.start[0]) for frame in frames]
        start = np.concatenate([frame.start + by for frame, by in zip(frames, shifts, strict=True)])
        end = np.concatenate([frame.end + by for frame, by in zip(frames, shifts, strict=True)])
        kind = np.concatenate([frame.kind for frame in frames])
        return cls(b"".join([*parts, PAD]), start, end, frames[0].number, kind)

    def __len__(self) -> int:
        return self.start.size

    @property
    def size(self) -> int:
        """Bytes from the first message to the last."""
        return int(self.end[-1] - self.start[0]) if self.start.size else 0

    def part(self, first: int, stop: int) -> Frame:
        """Return messages ``first`` to ``stop`` (exclusive), on the same buffer."""
        if first == 0 and stop == self.start.size:
            return self
        where = slice(first, stop)
        return Frame(self.data, self.start[where], self.end[where], self.number + first, self.kind[where])

    def gather(self, at: Ints, dtype: str) -> npt.NDArray[Any]:
        """Return the big-endian numbers at these bytes of the buffer, in native order."""
        return gather(self.buffer, at, dtype)

    def error(self, message: int, at: int, what: str, *, advice: str = _ADVICE) -> DecodeError:
        """Return the error for one message; ``at`` is the byte in it (the payload's first byte is 0)."""
        start, end = int(self.start[message]), int(self.end[message])
        lsn = int.from_bytes(self.data[start + 1 : min(start + 9, end)], "big")
        kind = chr(self.kind[message]) if end - start > HEADER else "?"
        return DecodeError(
            f"replication message {self.number + message} (kind {kind!r}) at {format_lsn(lsn)}, byte {at}: {what}",
            advice=advice,
        )


_DTYPES = {code: (np.dtype(code), np.dtype(code).newbyteorder("=")) for code in ("u1", *_NUMBERS)}


def gather(buffer: Bytes, at: Ints, dtype: str) -> npt.NDArray[Any]:
    """Return the big-endian numbers at these bytes of a buffer, in native order.

    >>> gather(np.frombuffer(bytes([0, 1, 2, 3]), np.uint8), np.array([0, 2]), ">i2").tolist()
    [1, 515]
    """
    wire, native = _DTYPES[dtype]
    view: npt.NDArray[Any] = np.ndarray((buffer.size - wire.itemsize + 1,), wire, buffer, strides=(1,))
    return view[at].astype(native)


def strided(buffer: Bytes, first: int, stride: int, n: int, dtype: str) -> npt.NDArray[Any]:
    """Return the big-endian numbers at every so many bytes of a buffer, in native order."""
    wire, native = _DTYPES[dtype]
    view: npt.NDArray[Any] = np.ndarray((n,), wire, buffer, first, (stride,))
    return view.astype(native)


@dataclass(frozen=True, slots=True)
class Column:
    """A column as a Relation message describes it."""

    name: str
    type_oid: int
    typmod: int
    key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as a Relation message describes it."""

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
