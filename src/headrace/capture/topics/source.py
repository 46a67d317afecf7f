"""Topics that others write, as a source: what arrives is decoded, and its order written down once, in the log.

A log on the same cluster *adopts* the messages: it notes which ones came in which order, and copies nothing. Any other
log gets copies of the rows. Either way the offsets reached are a record of the same transaction.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from headrace.capture.base import (
    KIND,
    Log,
    Piece,
    SourceState,
    SourceStatus,
    SourceTraits,
    Transaction,
    Waker,
)
from headrace.capture.read_ahead import ReadAhead
from headrace.capture.topics.pieces import Decode, MessagePieces
from headrace.capture.topics.reader import MessageReader, Offsets, TopicsReader, Where
from headrace.capture.topics.transactions import TransactionOrder
from headrace.errors import RegistryUnavailable
from headrace.kafka.cluster import Cluster
from headrace.kafka.ranges import TopicRange
from headrace.kafka.settings import KafkaLocation
from headrace.wire import WireMessages

COLUMNS = "columns"  # records of what the topics are: `headrace.formats.topic_formats.Decision`
ROWS_AT_ONCE = 65_536
AHEAD_ROWS = 200_000
COMMIT_S = 1.0
RECEIVE_S = 0.1
POURING_ROWS = 5_000  # received at once
LINGER_SHARE = 4.0  # how long to gather for what the engine's work on the last rows took
LONGEST_LINGER_S = 0.2
REGISTRY_S = 0.2


MakeReader = Callable[[KafkaLocation, Cluster, Sequence[str], Mapping[Where, int], Mapping[str, str]], MessageReader]


class RangeDecoder(Protocol):
    """Whoever fetches and decodes ranges of messages elsewhere, where many are waiting.

    Attributes:
        least: messages from which on it is worth it; ``most``: those of one call.
    """

    least: int
    most: int

    def decode(self, ranges: Sequence[TopicRange], decided: Mapping[str, bytes]) -> list[Piece[Offsets]] | None:
        """Return the messages of ranges as pieces, in order; called by the thread that reads ahead.

        Args:
            ranges: the last offset of each may be a marker's.
            decided: by topic, what its messages have decided so far.

        Returns:
            None where they are to be read here: they decide something new, or nobody came to it.
        """
        ...

    def release(self, calls: int) -> None:
        """Let the messages of the oldest calls go: the log holds what came of them."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """Messages that arrived together, decoded.

    Attributes:
        position: where a start goes on after it.
        read: how far the topics have been read with it, markers of transactions included.
        decided: by topic, what its messages have decided with it.
        elsewhere: whether they were decoded elsewhere.
    """

    pieces: list[Piece[Offsets]]
    position: Offsets
    read: Offsets
    decided: Mapping[str, bytes] = field(default_factory=dict)
    elsewhere: bool = False


class TopicSource:
    """Reads topics in the order of their arrival, each partition in its own order; or in the order that a topic says.

    A `headrace.capture.base.Source` whose positions are offsets.

    Args:
        location: the cluster.
        name: names the source in the log.
        topics: what to read; those that are not there yet are waited for.
        decode: gives the format's name and the rows of messages.
        order: what orders the events; None: arrival.
        reader: makes what reads the topics: (location, cluster, topics, next offsets, ids of topics read before).
        elsewhere: decodes where many messages are waiting; of topics in the order of their arrival only.
    """

    def __init__(
        self,
        location: KafkaLocation,
        *,
        name: str,
        topics: Sequence[str],
        decode: Decode,
        order: TransactionOrder | None = None,
        reader: MakeReader = TopicsReader,
        elsewhere: RangeDecoder | None = None,
    ) -> None:
        self.name = name
        self.topics = tuple(topics)
        self.traits: SourceTraits[Offsets] = SourceTraits(cluster=location.bootstrap)
        self.location = location
        self._make_reader = reader
        self.decode = decode
        self._made = MessagePieces(decode, order)
        self.elsewhere = elsewhere
        self._cluster = Cluster(location)
        self._reader: MessageReader | None = None
        self._ahead: ReadAhead[Loaded] | None = None
        self._loaded = Loaded([], Offsets({}), Offsets({}))
        self._decided: Mapping[str, bytes] = {}
        self._registry_away = ""
        self._returned_at = time.monotonic()
        self._storing = self._stored = self._committed = Offsets({})
        self._committed_at = 0.0
        self._calls = 0  # of `elsewhere`, whose messages are not in the log yet

    def check(self) -> None:
        """See that the cluster answers. Topics that are not there yet are waited for.

        Raises:
            LogUnavailable: it does not.
        """
        self._cluster.topics()

    @property
    def read_topics(self) -> tuple[str, ...]:
        """Return the topics that are read: with them the one that orders them."""
        order = self._made.order
        return self.topics if order is None else (*self.topics, order.topic)

    def start(self, log: Log, waker: Waker | None = None) -> None:
        """Go on where this log ends; see `headrace.capture.base.Source`."""
        if waker is not None:
            waker.on_interrupt(self._cluster.interrupt)
        record = log.records(KIND, self.name).get(self.name)
        known = json.loads(record) if record else {"offsets": {}, "topics": {}}
        positions = {(t, int(p)): o for t, some in known["offsets"].items() for p, o in some.items()}
        self._reader = self._make_reader(self.location, self._cluster, self.read_topics, positions, known["topics"])
        self._decided = {
            topic: found[topic] for topic in self.topics if topic in (found := log.records(COLUMNS, topic))
        }
        self.decode.restore(self._decided)
        self._loaded = Loaded([], Offsets(positions), Offsets({}), self._decided)
        self._ahead = ReadAhead(self._load, f"headrace-{self.name}")

    def poll(self, timeout: float) -> list[Piece[Offsets]]:
        """Return what has arrived, a piece for each partition; see `headrace.capture.base.Source.poll`.

        While messages pour in, they are gathered for four times as long as the caller was away, for 0.2 s at most: a
        Kafka transaction costs the same for one row and for ten thousand.

        Raises:
            LogTruncated: what should be read next was deleted.
        """
        assert self._ahead is not None
        now = time.monotonic()
        until = now + min(LONGEST_LINGER_S, LINGER_SHARE * (now - self._returned_at))
        pieces: list[Piece[Offsets]] = []
        rows, pouring = 0, False
        # A step is to take all rows that lie elsewhere: then at most so many more come.
        room = ROWS_AT_ONCE - (0 if self.elsewhere is None else self.elsewhere.most - 1)
        while rows < room:
            linger = max(0.0, until - time.monotonic()) if pouring else 0.0
            loaded = self._ahead.take(linger if pieces else timeout)
            if loaded is None:
                break
            pieces += loaded.pieces
            self._loaded = loaded
            self._calls += loaded.elsewhere
            if not loaded.pieces:
                break
            arrived = sum(piece.rows for piece in loaded.pieces)
            rows, pouring = rows + arrived, arrived >= POURING_ROWS
        self._returned_at = time.monotonic()
        if pieces:
            pieces[-1] = replace(pieces[-1], position=self._loaded.position)
        return pieces

    def _load(self, waiting: threading.Event) -> Iterator[Loaded]:
        """Receive and decode, in the thread that reads ahead."""
        reader, order = self._reader, self._made.order
        assert reader is not None
        given = Offsets({})
        while True:
            if (far := self._decoded_elsewhere(reader)) is not None:
                given = far.read
                yield far
                if waiting.is_set():
                    return
                continue
            arrived = reader.receive(RECEIVE_S)
            self._commit(reader)
            decided = self.decode.records()
            while True:
                try:
                    pieces = self._pieces(arrived)
                    break
                except RegistryUnavailable as error:
                    # The same messages are decoded when the registry is back.
                    self.decode.restore(decided)
                    self._registry_away = f"waiting for the schema registry: {error.message}; trying again"
                    if waiting.wait(REGISTRY_S):
                        return
            self._registry_away = ""
            positions = self._made.positions(reader.positions())
            read = reader.read()
            if order is not None:
                read = read.capped(order.positions({}))
            if pieces or read != given:
                given = read
                yield Loaded(pieces, Offsets(positions), read, self.decode.records())
            if waiting.is_set():
                return

    def _decoded_elsewhere(self, reader: MessageReader) -> Loaded | None:
        """Return what is waiting, decoded elsewhere; None where little is, or where it is to be read here."""
        elsewhere = self.elsewhere
        if (
            elsewhere is None
            or not isinstance(reader, TopicsReader)
            or self._made.order is not None
            or not reader.behind
        ):
            return None
        ranges = reader.waiting_ranges(elsewhere.most)
        decided = self.decode.records()
        if sum(range_.last - range_.first + 1 for range_ in ranges) < elsewhere.least:
            reader.caught_up()
            return None
        pieces = None
        if all(range_.topic in decided for range_ in ranges):
            pieces = elsewhere.decode(ranges, decided)
        else:  # its first message decides
            ranges = [range_._replace(last=range_.first) for range_ in ranges]
        if pieces is None:
            reader.read_here(ranges)
            return None
        reader.pass_over(ranges)
        self._commit(reader)
        return Loaded(pieces, Offsets(reader.positions()), reader.read(), decided, elsewhere=True)

    def _commit(self, reader: MessageReader) -> None:
        """Commit the group's offsets now and then: information for the cluster's tools, never where a start goes on.

        By the thread that reads: the client makes a second thread wait while the first one polls.
        """
        stored, now = self._stored, time.monotonic()
        if stored != self._committed and now - self._committed_at >= COMMIT_S:
            reader.commit(stored)
            self._committed, self._committed_at = stored, now

    def _pieces(self, arrived: Mapping[Where, WireMessages]) -> list[Piece[Offsets]]:
        """Return what can be handed out; partitions that are far ahead of others' transactions are not read on."""
        pieces = self._made.of(arrived)
        order, reader = self._made.order, self._reader
        if order is not None and reader is not None:
            ahead = {where for where in reader.positions() if order.pending(where) > AHEAD_ROWS}
            # The transaction that everything waits for may be larger than that: then all go on.
            reader.hold(ahead if len(ahead) < len(reader.positions()) - 1 else set())
        return pieces

    def store(self, txn: Transaction, position: Offsets) -> None:
        """Put the offsets reached into the transaction that takes in the rows."""
        assert self._reader is not None
        record = {"offsets": position.by_topic(), "topics": self._reader.identities}
        txn.put(KIND, self.name, json.dumps(record).encode())
        for topic, decided in self._loaded.decided.items():
            if self._decided.get(topic) != decided:
                txn.put(COLUMNS, topic, decided)
        self._storing = position

    def acknowledge(self) -> None:
        """Note what the log holds now; the thread that reads commits it."""
        self._stored = self._storing
        if self.elsewhere is not None:
            self.elsewhere.release(self._calls)
            self._calls = 0
        self._decided = self._loaded.decided

    def end(self, until: Offsets | None = None) -> Offsets:
        """Return where the topics end now; a consumer says by itself when it has come there."""
        assert self._reader is not None
        return self._reader.ends() if until is None else until

    @property
    def status(self) -> SourceStatus:
        """Return what is waited for."""
        reader, read = self._reader, self._loaded.read
        if reader is not None and reader.away:
            text = f"waiting for {self.location.url}: {reader.away}; trying again"
            return SourceStatus(SourceState.RETRYING, text, read, reader.away_since)
        if self._registry_away:
            return SourceStatus(SourceState.WAITING, self._registry_away, read)
        missing = reader.missing if reader is not None else ()
        if missing:
            text = f"waiting for the topic{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
            return SourceStatus(SourceState.WAITING, text, read)
        return SourceStatus(SourceState.CONNECTED, "reading", read)

    def stop(self) -> None:
        """Leave the cluster; calling it twice is harmless."""
        self._cluster.interrupt()
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        if self._reader is not None:
            self._reader.close()
