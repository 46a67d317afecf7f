"""Debezium's topics in commit order, by its transaction topic.

With ``provide.transaction.metadata=true`` Debezium writes to ``<prefix>.transaction`` when a transaction begins and
ends, and at its end how many events each table got. The ENDs stand in commit order: a transaction is handed out when
all its events have arrived, and none before its predecessors.

https://debezium.io/documentation/reference/stable/connectors/postgresql.html#postgresql-transaction-metadata
"""

from __future__ import annotations

import itertools
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.batch import OPS, Batch, undecodable
from headrace.capture.base import Origin, Piece
from headrace.capture.topics.reader import DecodedLike, Offsets, Where
from headrace.errors import DecodeError
from headrace.kafka.ranges import pack_spread, ranges_of
from headrace.plain_values import values
from headrace.wire import WireMessages

# In a JSON event the transaction's id is "txId:LSN of the event".
_ID = re.compile(rb'"transaction"\s*:\s*\{\s*"id"\s*:\s*"([^":]*)')


@dataclass(slots=True)
class _Chunk:
    """Events of one partition that are not handed out yet: rows, or one message that is none.

    Attributes:
        at: index of each row's message in ``wire``.
        ids: each one's transaction, where the message shows it.
    """

    wire: WireMessages
    partition: int
    format: str
    at: Ints
    ids: list[str | None]
    batch: Batch | None = None
    reason: str = ""


@dataclass(slots=True)
class _End:
    """A transaction that ended: its id, events by topic, and where the transaction topic says so."""

    id: str
    counts: dict[str, int]
    offset: int


@dataclass
class TransactionOrder:
    """Holds events back until their transaction is whole.

    Args:
        prefix: Debezium's ``topic.prefix``.
        topics: those that are read.
    """

    prefix: str
    topics: Sequence[str]
    _waiting: dict[Where, deque[_Chunk]] = field(default_factory=dict)
    _ends: deque[_End] = field(default_factory=deque)

    @property
    def topic(self) -> str:
        """Return the transaction topic."""
        return f"{self.prefix}.transaction"

    def take_ends(self, messages: WireMessages) -> None:
        """Take in messages of the transaction topic.

        Raises:
            DecodeError: one of them is none of Debezium's.
        """
        for i, value in enumerate(messages.values):
            if value is None:
                continue
            try:
                event = json.loads(value)
                event = event.get("payload", event) if "status" not in event else event
                if event["status"] == "END":
                    self._ends.append(_End(_bare(event["id"]), self._counts(event), int(messages.offsets[i])))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DecodeError(
                    f"«{messages.topic}» offset {messages.offsets[i]} is no transaction event of Debezium's: {error}",
                    advice="Say transactions=False to take the topics as they arrive.",
                ) from error

    def _counts(self, event: Mapping[str, Any]) -> dict[str, int]:
        found = {}
        for collection in event["data_collections"] or ():
            topic = f"{self.prefix}.{re.sub(r'[^A-Za-z0-9._-]', '_', collection['data_collection'])}"
            if topic in self.topics:
                found[topic] = int(collection["event_count"])
        return found

    def take(self, where: Where, messages: WireMessages, format_: str, decoded: DecodedLike) -> None:
        """Take in events of one partition."""
        formats = decoded.formats or [format_] * len(decoded.parts)
        chunks = [
            _Chunk(messages, where[1], form, rows, [_id_of(messages.values[i]) for i in rows.tolist()], batch)
            for form, (batch, rows) in zip(formats, decoded.parts, strict=True)
        ]
        for index, reason in decoded.bad:
            ids = [_id_of(messages.values[index])]
            chunks.append(_Chunk(messages, where[1], format_, np.array([index]), ids, None, reason))
        # A message that cannot be read stands among the rows where it arrived.
        self._waiting.setdefault(where, deque()).extend(_in_order(chunks))

    def pieces(self) -> Iterator[Piece[Offsets]]:
        """Return what can be handed out now: snapshot rows, and whole transactions in the order of their ends."""
        yield from self._snapshots()
        while self._ends and (taken := self._whole(self._ends[0])) is not None:
            self._ends.popleft()
            if taken:
                yield _piece(taken)
            yield from self._snapshots()

    def _snapshots(self) -> Iterator[Piece[Offsets]]:
        """Yield rows that were read before streaming began: of no transaction, they stand first in each partition."""
        for where, waiting in self._waiting.items():
            while waiting and waiting[0].batch is not None:
                reads = waiting[0].batch.op == OPS["r"]
                count = len(reads) if reads.all() else int(np.argmin(reads))
                if not count:
                    break
                yield _piece([(where[0], _split(waiting, count))])

    def _whole(self, end: _End) -> list[tuple[str, _Chunk]] | None:
        """Return a transaction's events, taken; None while some are missing."""
        found: list[tuple[Where, int]] = []
        for topic, count in end.counts.items():
            leading = {
                where: self._of(waiting, end.id, count) for where, waiting in self._waiting.items() if where[0] == topic
            }
            if sum(leading.values()) < count:
                return None
            found += [(where, some) for where, some in leading.items() if some]
        taken = []
        for where, some in found:
            while some:
                chunk = _split(self._waiting[where], some)
                taken.append((where[0], chunk))
                some -= len(chunk.at)
        return taken

    @staticmethod
    def _of(waiting: deque[_Chunk], transaction: str, most: int) -> int:
        """Return how many events at a partition's head belong to a transaction; those that do not show theirs do."""
        count = 0
        for chunk in waiting:
            for identity in chunk.ids:
                if count >= most or (identity is not None and identity != transaction):
                    return count
                count += 1
        return count

    def pending(self, where: Where) -> int:
        """Return events of a partition that wait."""
        return sum(len(chunk.at) for chunk in self._waiting.get(where, ()))

    def positions(self, read: Mapping[Where, int]) -> dict[Where, int]:
        """Return where a start has to go on: at the first event that was not handed out."""
        positions = dict(read)
        for where, waiting in self._waiting.items():
            if waiting:
                positions[where] = int(waiting[0].wire.offsets[waiting[0].at[0]])
        if self._ends:
            positions[self.topic, 0] = self._ends[0].offset
        return positions

    def dump(self) -> bytes:
        """Return what waits: the messages themselves, so that nothing depends on what they were decoded to.

        For whoever reads the topics and cannot go back to `positions`.
        """
        parts, left = [_MESSAGES.empty_table()], {}
        for where, waiting in self._waiting.items():
            if waiting:
                parts.append(_as_table(where, waiting))
                first = waiting[0].wire.offsets[waiting[0].at[0]]
                rows = sum(int((chunk.wire.offsets[chunk.at] == first).sum()) for chunk in waiting)
                left[json.dumps(where)] = rows
        ends = [(end.id, end.counts, end.offset) for end in self._ends]
        about = json.dumps({"ends": ends, "left": left}).encode()
        sink = pa.BufferOutputStream()
        table = pa.concat_tables(parts).replace_schema_metadata({"headrace.order": about})
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue())

    def load(self, data: bytes, decode: Callable[[WireMessages], tuple[str, DecodedLike]]) -> None:
        """Go on with what waited when it was dumped; what waits now is let go of.

        Args:
            decode: as it was after it had decoded these messages for the first time, or as it was before.
        """
        table = pa.ipc.open_stream(data).read_all()
        about = json.loads(table.schema.metadata[b"headrace.order"])
        self._waiting.clear()
        self._ends = deque(_End(*end) for end in about["ends"])
        for name, left in about["left"].items():
            topic, partition = where = cast(Where, tuple(json.loads(name)))
            mine = pc.and_(pc.equal(table.column("topic"), topic), pc.equal(table.column("partition"), partition))
            wire = _as_messages(topic, table.filter(mine))
            self.take(where, wire, *decode(wire))
            waiting = self._waiting[where]
            # Of one message there may be several events, and the first ones were handed out already.
            first = waiting[0].wire.offsets[waiting[0].at[0]]
            gone = sum(int((chunk.wire.offsets[chunk.at] == first).sum()) for chunk in waiting) - left
            while gone > 0:
                gone -= len(_split(waiting, gone).at)


_MESSAGES = pa.schema(
    [
        ("topic", pa.string()),
        ("partition", pa.int64()),
        ("offset", pa.int64()),
        ("ts_ms", pa.int64()),
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("headers", pa.list_(pa.struct([("name", pa.string()), ("value", pa.binary())]))),
    ]
)


def _as_table(where: Where, waiting: Iterable[_Chunk]) -> pa.Table:
    """Return the messages of events that wait, each once."""
    rows: dict[int, tuple[Any, ...]] = {}
    for chunk in waiting:
        wire = chunk.wire
        for i in dict.fromkeys(chunk.at.tolist()):
            headers = [{"name": name, "value": value} for name, value in wire.headers[i]]
            offset = int(wire.offsets[i])
            rows.setdefault(offset, (*where, offset, int(wire.ts_ms[i]), wire.key(i), wire.values[i], headers))
    columns = zip(*rows.values(), strict=True)
    return pa.table([pa.array(column, kind.type) for column, kind in zip(columns, _MESSAGES, strict=True)], _MESSAGES)


def _as_messages(topic: str, table: pa.Table) -> WireMessages:
    found = {name: values(table.column(name)) for name in ("key", "value", "headers")}
    numbers = {name: table.column(name).to_numpy() for name in ("offset", "partition", "ts_ms")}
    return WireMessages(
        topic,
        found["value"],
        offsets=numbers["offset"],
        partitions=numbers["partition"],
        ts_ms=numbers["ts_ms"],
        keys=found["key"],
        headers=[[(header["name"], header["value"]) for header in some] for some in found["headers"]],
    )


def _bare(identity: str) -> str:
    """Return the transaction's number: what follows the colon differs from event to event."""
    return identity.partition(":")[0]


def _id_of(value: bytes | None) -> str | None:
    found = _ID.search(value) if value else None
    return found[1].decode() if found else None


def _in_order(chunks: list[_Chunk]) -> list[_Chunk]:
    """Return chunks in the order of their messages, cut where another one's message lies between."""
    alone = sorted(int(chunk.at[0]) for chunk in chunks if chunk.batch is None)
    pieces: list[_Chunk] = []
    for chunk in chunks:
        if chunk.batch is None:
            pieces.append(chunk)
            continue
        cuts = [0, *np.unique(np.searchsorted(chunk.at, alone)).tolist(), len(chunk.at)]
        pieces += [_part(chunk, a, b) for a, b in itertools.pairwise(cuts) if b > a]
    return sorted(pieces, key=lambda chunk: int(chunk.at[0]))


def _part(chunk: _Chunk, start: int, stop: int) -> _Chunk:
    batch = None if chunk.batch is None else chunk.batch.slice(start, stop - start)
    return _Chunk(
        chunk.wire, chunk.partition, chunk.format, chunk.at[start:stop], chunk.ids[start:stop], batch, chunk.reason
    )


def _split(waiting: deque[_Chunk], most: int) -> _Chunk:
    """Take up to so many events of the first chunk."""
    first = waiting.popleft()
    if len(first.at) <= most:
        return first
    waiting.appendleft(_part(first, most, len(first.at)))
    return _part(first, 0, most)


def _piece(taken: Sequence[tuple[str, _Chunk]]) -> Piece[Offsets]:
    batches, origins, rejected = [], [], []
    for topic in dict.fromkeys(topic for topic, _ in taken):
        chunks = [chunk for name, chunk in taken if name == topic]
        for batch, origin in _in_commit_order([chunk for chunk in chunks if chunk.batch is not None]):
            batches.append((topic, batch))
            origins.append(origin)
        for chunk in chunks:
            if chunk.batch is None:
                rejected.append((f"{topic}.dlq", undecodable(chunk.wire, [(int(chunk.at[0]), chunk.reason)])))
    return Piece(tuple(batches), tuple(rejected), origins=tuple(origins))


def _in_commit_order(chunks: Sequence[_Chunk]) -> list[tuple[Batch, Origin]]:
    """Return a transaction's events of one topic, with where they lie.

    Those of several partitions become one batch in the order of their positions, where they are of one shape.
    """
    batches = [(chunk, chunk.batch) for chunk in chunks if chunk.batch is not None]
    ranges = [ranges_of(chunk.wire.offsets, chunk.partition, np.unique(chunk.at)) for chunk in chunks]
    shapes = {(chunk.format, batch.schema) for chunk, batch in batches} if len(batches) > 1 else set()
    index = np.concatenate([batch.index for _, batch in batches]) if batches else np.empty(0, np.int64)
    one_each = all(len(np.unique(chunk.at)) == len(chunk.at) for chunk in chunks)
    if len(shapes) != 1 or not one_each or (np.diff(index) > 0).all():
        return [(batch, Origin(lies, chunk.format)) for (chunk, batch), lies in zip(batches, ranges, strict=True)]
    order = np.argsort(index, kind="stable")
    records = pa.concat_batches([batch.records for _, batch in batches]).take(pa.array(order))
    partitions = np.concatenate([np.full(len(chunk.at), chunk.partition) for chunk in chunks])
    by_partition = sorted((lies for some in ranges for lies in some), key=lambda lies: (lies.partition, lies.first))
    spread = pack_spread(partitions[order]) if len(set(partitions.tolist())) > 1 else b""
    return [(Batch(records), Origin(tuple(by_partition), chunks[0].format, spread))]
