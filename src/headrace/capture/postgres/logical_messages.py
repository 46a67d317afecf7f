"""What `pg_logical_emit_message` writes into the WAL, as rows: a topic of its own, beside those of tables.

Message: int8 flags (1: it belongs to its transaction), int64 LSN behind its record, string prefix, int32 length,
content.
(https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html)

One that belongs to no transaction comes between two of them, where its record lies in the WAL, whatever becomes of the
transaction that wrote it. It is read as a transaction of its own, which committed two bytes before the record's end: no
commit has that LSN, and no table joins there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.batch import META_FIELDS, ORIGIN, Batch
from headrace.capture.postgres import values
from headrace.capture.postgres.messages import HEADER, MESSAGE, UNIX_2000_US, Frame, Longs
from headrace.capture.postgres.table import CHANGE, FACTS, Events, meta_arrays

OURS = "headrace"  # prefix of the empty messages that only move the server's WAL on
_SENT = 17  # of XLogData's header: when it was sent
_BODY = HEADER + 10  # where the prefix begins
_BEFORE_END = 2
_FIELDS = [pa.field("prefix", pa.string()), pa.field("content", pa.binary()), pa.field("transactional", pa.bool_())]


def topic_of_messages(prefix: str) -> str:
    """Return the topic of a source's messages.

    >>> topic_of_messages("shop")
    'shop.message'
    """
    return f"{prefix}.message"


def outside(frame: Frame) -> Ints:
    """Return which messages of a frame are messages that belong to no transaction."""
    if b"M" not in frame.kinds:
        return np.zeros(0, np.int64)
    found = np.flatnonzero(frame.kind == MESSAGE)
    apart: Ints = found[frame.buffer[frame.start[found] + HEADER + 1] & 1 == 0]
    return apart


def places(frame: Frame, messages: Ints) -> tuple[Longs, Longs, Ints]:
    """Return commit LSN, end LSN and time of messages that belong to no transaction: when the server sent them."""
    end: Longs = frame.gather(frame.start[messages] + HEADER + 2, ">u8")
    sent = frame.gather(frame.start[messages] + _SENT, ">i8") + UNIX_2000_US
    return end - np.uint64(_BEFORE_END), end, sent


@dataclass
class LogicalMessages:
    """The topic of a source's messages.

    Args:
        wanted: tells which prefixes are captured.
        described: rows say what Debezium's events of them say besides.
    """

    prefix: str
    wanted: Callable[[str], bool] = lambda _prefix: True
    described: bool = False
    topic: str = field(init=False)

    def __post_init__(self) -> None:
        self.topic = topic_of_messages(self.prefix)

    @property
    def schema(self) -> pa.Schema:
        """Return the schema of the rows."""
        return self._schema([CHANGE] if self.described else [])

    def _schema(self, told: Sequence[pa.Field]) -> pa.Schema:
        metadata = {b"headrace.key": json.dumps(["prefix"]).encode(), b"headrace.source": self.prefix.encode()}
        if self.described:
            metadata[FACTS] = json.dumps({"messages": True}).encode()
        return pa.schema([*_FIELDS, *META_FIELDS, *told], metadata=metadata)

    def batch(self, frame: Frame, events: Events) -> Batch | None:
        """Return the wanted ones of these messages, in their order; None where there are none.

        Raises:
            DecodeError: one is not as long as it says.
        """
        start, end = frame.start[events.message], frame.end[events.message]
        flags, zero = frame.buffer[start + HEADER + 1], _ends_of_text(frame, start + _BODY)
        length = frame.gather(zero + 1, ">u4").astype(np.int64)
        wrong = (zero >= end) | (zero + 5 + length != end)
        if wrong.any():
            message = int(events.message[wrong.argmax()])
            raise frame.error(message, _BODY, "a message whose prefix and content are not as long as it says")
        prefix = values.of_spans(frame.buffer, start + _BODY, zero - start - _BODY, pa.string(), None)
        content = values.of_spans(frame.buffer, zero + 5, length, pa.binary(), None)
        transactional = values.of_bools((flags & 1) == 1, None)
        ops = np.full(events.message.size, ord("c"), np.uint8)
        told = events.told(frame) if self.described else {}
        arrays = [prefix, content, transactional, *meta_arrays(ops, events), *told.values()]
        schema = self._schema([{"change": CHANGE, "origin": ORIGIN}[name] for name in told])
        records = pa.RecordBatch.from_arrays(arrays, schema=schema)
        kept = records.filter(self._kept(prefix, length))
        return Batch(kept) if kept.num_rows else None

    def _kept(self, prefix: pa.Array, length: Ints) -> pa.Array:
        found = prefix.dictionary_encode()
        wanted = pa.array([self.wanted(name) for name in found.dictionary.to_pylist()], pa.bool_())
        ours = pc.and_(pc.equal(prefix, OURS), pa.array(length == 0))
        return pc.and_(wanted.take(found.indices), pc.invert(ours))


def _ends_of_text(frame: Frame, start: Ints) -> Ints:
    """Return where the first zero byte is from each of these places on; the padding has one."""
    first = int(start[0])
    zeros = np.flatnonzero(frame.buffer[first:] == 0) + first
    return np.asarray(zeros[np.searchsorted(zeros, start)])
