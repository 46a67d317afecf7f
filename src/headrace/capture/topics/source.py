"""Topics that others write, as a source: what arrives is decoded, and its order written down once, in the log.

A log on the same cluster *adopts* the messages: it notes which ones came in which order, and copies nothing. Any other
log gets copies of the rows. Either way the offsets reached are a record of the same transaction.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.capture.base import Log, Transaction
from headrace.capture.read_ahead import ReadAhead
from headrace.capture.topics.reader import Offsets, TopicsReader, Where
from headrace.errors import RegistryUnavailable
from headrace.kafka.cluster import Cluster
from headrace.kafka.fetch import wire_messages
from headrace.kafka.ranges import MessageRange, ranges_of
from headrace.kafka.settings import KafkaLocation
from headrace.wire import WireMessages

KIND = "source"
COLUMNS = "columns"  # records of what the topics are: `headrace.formats.topic_formats.Decision`
ROWS_AT_ONCE = 65_536
AHEAD_ROWS = 200_000
TELL_S = 1.0
RECEIVE_S = 0.1
POURING_ROWS = 5_000  # received at once
LINGER_SHARE = 4.0  # how long to gather for what the engine's work on the last rows took
LONGEST_LINGER_S = 0.2
REGISTRY_S = 0.2


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a batch's messages lie (`headrace.kafka.ranges`), and in which form they are to be read again."""

    places: tuple[MessageRange, ...]
    format: str
    spread: bytes = b""


class DecodedLike(Protocol):
    """What `headrace.formats` makes of messages; see `headrace.formats.base.Decoded`."""

    @property
    def parts(self) -> Sequence[tuple[Batch, Ints]]: ...
    @property
    def bad(self) -> Sequence[tuple[int, str]]: ...
    @property
    def formats(self) -> Sequence[str]: ...


class Decode(Protocol):
    """Makes rows of messages, and remembers what their topics are; see `ForeignFormats`."""

    def __call__(self, messages: WireMessages) -> tuple[str, DecodedLike]:
        """The format's name and the rows."""
        ...

    def records(self) -> dict[str, bytes]:
        """By topic, what its messages have decided so far."""
        ...

    def restore(self, records: Mapping[str, bytes]) -> None:
        """Go on with that."""
        ...


@dataclass(frozen=True, slots=True)
class TopicPiece:
    """Rows that arrived together: one slice of the log. Fields as those of a database's piece, and:

    Attributes:
        placed: for each of ``batches`` where it comes from.
        complete: whether a transaction of the source ends with it.
    """

    batches: tuple[tuple[str, Batch], ...]
    placed: tuple[Placed, ...]
    rejected: tuple[tuple[str, Batch], ...] = ()
    end_lsn: int = 0
    complete: bool = True
    continued: bool = False
    open: bool = False

    @property
    def rows(self) -> int:
        return sum(batch.num_rows for _, batch in self.batches)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What arrived together, decoded.

    Attributes:
        positions: where a start goes on after it.
        read: how far the topics have been read with it, markers of transactions included.
        decided: by topic, what its messages have decided with it.
    """

    pieces: list[TopicPiece]
    positions: dict[Where, int]
    read: Offsets
    decided: Mapping[str, bytes] = field(default_factory=dict)


class Order(Protocol):
    """Holds arrived events back until their turn; see `headrace.capture.topics.transactions`."""

    @property
    def topic(self) -> str: ...
    def take_ends(self, messages: WireMessages) -> None: ...
    def take(self, where: Where, messages: WireMessages, format_: str, decoded: DecodedLike) -> None: ...
    def pieces(self) -> Iterable[TopicPiece]: ...
    def pending(self, where: Where) -> int: ...
    def positions(self, read: Mapping[Where, int]) -> dict[Where, int]: ...


class TopicSource:
    """Reads topics in the order of their arrival, each partition in its own order; or in the order that a topic says.

    Called by the engine as a database's source is.

    Args:
        place: the cluster.
        name: names the source in the log.
        topics: what to read; those that are not there yet are waited for.
        decode: gives the format's name and the rows of messages.
        order: what orders the events; None: arrival.

    Attributes:
        name: as given.
        cluster: the cluster's address: a log on the same one adopts the messages.
        rewound: never; nothing is received twice.
        warnings: what the user should know about order.
    """

    rewound = False

    def __init__(
        self, place: KafkaLocation, *, name: str, topics: Sequence[str], decode: Decode, order: Order | None = None
    ) -> None:
        self.name = name
        self.cluster = place.bootstrap
        self.topics = tuple(topics)
        self.warnings: list[str] = []
        self._place = place
        self._decode = decode
        self._order = order
        self._cluster = Cluster(place)
        self._reader: TopicsReader | None = None
        self._ahead: ReadAhead[Loaded] | None = None
        self._loaded = Loaded([], {}, Offsets({}))
        self._stored: Mapping[str, bytes] = {}
        self._status = ""
        self._told_at = 0.0
        self._returned_at = time.monotonic()
        self._told: dict[Where, int] = {}
        self._committed: dict[Where, int] = {}

    def check(self, log: Log) -> None:
        """See that the cluster answers. Topics that are not there yet are waited for.

        Raises:
            LogUnavailable: it does not.
        """
        del log
        self._cluster.topics()

    def tables(self) -> dict[str, pa.Schema]:
        """Nothing is known of the columns before rows arrive."""
        return {}

    def start(self, log: Log) -> None:
        """Go on where this log ends."""
        record = log.records(KIND, self.name).get(self.name)
        known = json.loads(record) if record else {"offsets": {}, "topics": {}}
        positions = {(t, int(p)): o for t, some in known["offsets"].items() for p, o in some.items()}
        topics = self.topics if self._order is None else (*self.topics, self._order.topic)
        self._reader = TopicsReader(self._place, self._cluster, topics, positions, known["topics"])
        self._stored = {topic: found[topic] for topic in self.topics if topic in (found := log.records(COLUMNS, topic))}
        self._decode.restore(self._stored)
        self._loaded = Loaded([], positions, Offsets({}), self._stored)
        self._ahead = ReadAhead(self._load, f"headrace-{self.name}")

    def poll(self, timeout: float) -> list[TopicPiece]:
        """What has arrived, a piece for each partition; waits for the first of it.

        While messages pour in, they are gathered for four times as long as the caller was away, for 0.2 s at most: a
        Kafka transaction costs the same for one row and for ten thousand.

        Raises:
            LogTruncated: what should be read next was deleted.
        """
        assert self._ahead is not None
        now = time.monotonic()
        until = now + min(LONGEST_LINGER_S, LINGER_SHARE * (now - self._returned_at))
        pieces: list[TopicPiece] = []
        rows, pouring = 0, False
        while rows < ROWS_AT_ONCE:
            linger = max(0.0, until - time.monotonic()) if pouring else 0.0
            loaded = self._ahead.take(linger if pieces else timeout)
            if loaded is None:
                break
            pieces += loaded.pieces
            self._loaded = loaded
            if not loaded.pieces:
                break
            arrived = sum(piece.rows for piece in loaded.pieces)
            rows, pouring = rows + arrived, arrived >= POURING_ROWS
        self._returned_at = time.monotonic()
        return pieces

    def _load(self, waiting: threading.Event) -> Iterator[Loaded]:
        """Receive and decode, in the thread that reads ahead."""
        reader, order = self._reader, self._order
        assert reader is not None
        told = Offsets({})
        while True:
            arrived = reader.receive(RECEIVE_S)
            self._tell(reader)
            decided = self._decode.records()
            while True:
                try:
                    pieces = self._arrived(arrived) if order is None else self._ordered(order, arrived)
                    break
                except RegistryUnavailable as error:
                    # The same messages are decoded when the registry is back.
                    self._decode.restore(decided)
                    self._status = f"waiting for the schema registry: {error.message}; trying again"
                    if waiting.wait(REGISTRY_S):
                        return
            self._status = ""
            positions = reader.positions()
            read = reader.read()
            if order is not None:
                read = read.capped(order.positions({}))
                positions = order.positions(positions)
            if pieces or read != told:
                told = read
                yield Loaded(pieces, positions, read, self._decode.records())
            if waiting.is_set():
                return

    def _tell(self, reader: TopicsReader) -> None:
        """Tell the cluster now and then how far we are: information for its tools, never where a start goes on.

        By the thread that reads: the client makes a second thread wait while the first one polls.
        """
        committed, now = self._committed, time.monotonic()
        if committed and committed is not self._told and now - self._told_at >= TELL_S:
            reader.tell(committed)
            self._told, self._told_at = committed, now

    def _arrived(self, arrived: Mapping[Where, list[Any]]) -> list[TopicPiece]:
        return [self._piece(where, messages) for where, messages in arrived.items()]

    def _ordered(self, order: Order, arrived: Mapping[Where, list[Any]]) -> list[TopicPiece]:
        """What is whole now; partitions that are far ahead are not read on."""
        assert self._reader is not None
        wires = {where: wire_messages(where[0], some, partition=where[1]) for where, some in arrived.items()}
        # All are decoded before one is taken: what needs a registry that is away is decoded again.
        decoded = {where: self._decode(wire) for where, wire in wires.items() if where[0] != order.topic}
        for where, wire in wires.items():
            if where in decoded:
                order.take(where, wire, *decoded[where])
            else:
                order.take_ends(wire)
        pieces = list(order.pieces())
        ahead = {where for where in self._reader.positions() if order.pending(where) > AHEAD_ROWS}
        # The transaction that everything waits for may be larger than that: then all go on.
        self._reader.hold(ahead if len(ahead) < len(self._reader.positions()) - 1 else set())
        return pieces

    def _piece(self, where: Where, messages: list[Any]) -> TopicPiece:
        topic, partition = where
        wire = wire_messages(topic, messages, partition=partition)
        format_, decoded = self._decode(wire)
        batches, placed = [], []
        for i, (batch, rows) in enumerate(decoded.parts):
            batches.append((topic, batch))
            name = decoded.formats[i] if decoded.formats else format_
            placed.append(Placed(ranges_of(wire.offsets, partition, _distinct(rows)), name))
        rejected = ((f"{topic}.dlq", refused(wire, decoded.bad)),) if decoded.bad else ()
        return TopicPiece(tuple(batches), tuple(placed), rejected, end_lsn=1)

    def store(self, txn: Transaction, end_lsn: int) -> None:
        """Put the offsets reached into the transaction that takes in the rows."""
        del end_lsn
        assert self._reader is not None
        offsets: dict[str, dict[str, int]] = {}
        for (topic, number), offset in sorted(self._loaded.positions.items()):
            offsets.setdefault(topic, {})[str(number)] = offset
        record = {"offsets": offsets, "topics": self._reader.identities}
        txn.put(KIND, self.name, json.dumps(record).encode())
        for topic, decided in self._loaded.decided.items():
            if self._stored.get(topic) != decided:
                txn.put(COLUMNS, topic, decided)

    def acknowledge(self) -> None:
        """What the log holds now; the cluster is told by the thread that reads."""
        self._committed = self._loaded.positions
        self._stored = self._loaded.decided

    def idle_lsn(self) -> int | None:
        """None: nothing has to be stored while nothing comes."""
        return None

    def received_lsn(self) -> Any:
        """How far the topics have been read, as `Offsets`."""
        return self._loaded.read

    def current_lsn(self) -> Any:
        """Where the topics end now, as `Offsets`."""
        assert self._reader is not None
        return self._reader.ends()

    def request_progress(self, until: object = None) -> None:
        """Nothing: a consumer tells by itself when it has come to the end."""

    def wake(self) -> None:
        """Nothing: `poll` never waits long."""

    @property
    def status(self) -> str:
        """What is waited for, for people."""
        if self._reader is not None and self._reader.away:
            return f"waiting for {self._place.url}: {self._reader.away}; trying again"
        missing = self._reader.missing if self._reader is not None else ()
        if self._status or not missing:
            return self._status or "reading"
        return f"waiting for the topic{'s' if len(missing) > 1 else ''} {', '.join(missing)}"

    @property
    def away_seconds(self) -> float:
        """How long the brokers have been away; 0 while they are there."""
        reader = self._reader
        return time.monotonic() - reader.away_since if reader is not None and reader.away else 0.0

    def interrupt(self) -> None:
        """End waiting for a broker that is away; from any thread."""
        self._cluster.interrupt()

    def stop(self) -> None:
        """Leave the cluster; calling it twice is harmless."""
        self.interrupt()
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        if self._reader is not None:
            self._reader.close()


def _distinct(rows: Ints) -> Ints:
    """Each message once, in order; most often each is one row."""
    return rows if (np.diff(rows) > 0).all() else np.unique(rows)


def refused(messages: WireMessages, bad: Sequence[tuple[int, str]]) -> Batch:
    """Messages that cannot be decoded, for the dead-letter topic: with their bytes, and where they lie."""
    at = [index for index, _ in bad]
    some = messages.take(at)
    columns = {
        "reason": pa.array([reason for _, reason in bad], pa.string()),
        "stage": pa.array(["decode"] * len(bad), pa.string()),
        "model": pa.nulls(len(bad), pa.string()),
        "row": pa.array([_text(value) for value in some.values], pa.string()),
        "topic": pa.array([messages.topic] * len(bad), pa.string()),
        "partition": pa.array(some.partitions, pa.int64()),
        "offset": pa.array(some.offsets, pa.int64()),
        "key": pa.array(some.keys, pa.binary()),
        "value": pa.array(some.values, pa.binary()),
    }
    return Batch.of(columns, index=some.offsets, ts_us=some.ts_ms * 1000)


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None
