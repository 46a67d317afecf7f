"""Batches of Kafka messages as the JVM sends them (``java/headrace/flink/Batcher.java``), and what is added to them."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.capture.topics.reader import Where
from headrace.wire import Headers, WireMessages

_HEAD = struct.Struct(">iqi")
_INT = struct.Struct(">i")
_LENGTHS = np.dtype(">i4")
_LONGS = np.dtype(">i8")
Lengths: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Frame:
    """Messages that were batched together.

    Attributes:
        source: number of the job's source that they come from.
        number: counts the frames of a source from its start on.
        arrived: by partition, in the order of their first messages. None at all in a sign of life.
    """

    source: int
    number: int
    arrived: dict[Where, WireMessages]


def read_frame(data: bytes) -> Frame:
    """Return what the JVM has sent."""
    source, number, groups = _HEAD.unpack_from(data)
    at = _HEAD.size
    arrived: dict[Where, WireMessages] = {}
    for _ in range(groups):
        where, messages, at = _group(data, at)
        arrived[where] = messages
    return Frame(source, number, arrived)


def _group(data: bytes, at: int) -> tuple[Where, WireMessages, int]:
    name, at = _bytes(data, at)
    partition, count = struct.unpack_from(">ii", data, at)
    at += 8
    topic = name.decode()
    offsets = np.frombuffer(data, _LONGS, count, at).astype(np.int64)
    ts_ms = np.frombuffer(data, _LONGS, count, at + 8 * count).astype(np.int64)
    keys = np.frombuffer(data, _LENGTHS, count, at + 16 * count).astype(np.int32)
    values = np.frombuffer(data, _LENGTHS, count, at + 20 * count).astype(np.int32)
    at += 24 * count
    key_bytes, at = _bytes(data, at)
    value_bytes, at = _bytes(data, at)
    header_bytes, at = _bytes(data, at)
    messages = WireMessages(
        topic,
        _cut(value_bytes, values),
        offsets=offsets,
        partitions=np.full(count, partition, np.int64),
        ts_ms=ts_ms,
        keys=lambda: _cut(key_bytes, keys),
        headers=(lambda: _headers(header_bytes, count)) if header_bytes else None,
    )
    return (topic, partition), messages, at


def _bytes(data: bytes, at: int) -> tuple[bytes, int]:
    (length,) = _INT.unpack_from(data, at)
    return data[at + 4 : at + 4 + length], at + 4 + length


def _cut(data: bytes, lengths: Lengths) -> list[bytes | None]:
    """Return pieces of given lengths; None where a length is negative."""
    ends = np.cumsum(np.maximum(lengths, 0), dtype=np.int64).tolist()
    found: list[bytes | None] = [data[a:b] for a, b in itertools.pairwise([0, *ends])]
    for i in np.flatnonzero(lengths < 0).tolist():
        found[i] = None
    return found


def _headers(data: bytes, count: int) -> list[Headers]:
    found: list[Headers] = []
    at = 0
    for _ in range(count):
        (some,) = _INT.unpack_from(data, at)
        at += 4
        own: list[tuple[str, bytes | None]] = []
        for _ in range(some):
            name, at = _bytes(data, at)
            (length,) = _INT.unpack_from(data, at)
            at += 4
            own.append((name.decode(), data[at : at + length] if length >= 0 else None))
            at += max(0, length)
        found.append(own)
    return found
