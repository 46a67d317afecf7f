"""A log's captured rows as the events that Debezium's connector would have emitted, a line for each, in log order."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.capture.postgres.snapshot_options import MARKER
from headrace.capture.postgres.table import topic_of
from headrace.errors import LogError
from headrace.formats.base64_columns import spans
from headrace.formats.debezium_types import java_string
from headrace.formats.debezium_writer import (
    FACTS,
    EventOptions,
    EventWriter,
    Place,
    TransactionMetadata,
    places,
    transformed,
)
from headrace.formats.json_text import TEXT
from headrace.formats.transforms.chain import Chain, Refusal
from headrace.inspect.messages import rows, to_json
from headrace.inspect.rows import no_topic
from headrace.inspect.topics import FOLLOW_SECONDS, READ_ROWS
from headrace.log.base import Entry, Log
from headrace.plan.plan import INTERNAL

OnRefusal = Callable[[Refusal, bool], None]


def event_lines(
    log: Log,
    topic: str | None = None,
    *,
    schemas: bool = False,
    follow: bool = False,
    options: EventOptions | None = None,
    on_refusal: OnRefusal = lambda refusal, tolerated: None,
) -> Iterator[str]:
    """Yield what `event_blocks` yields a line at a time, without the line's end."""
    blocks = event_blocks(log, topic, schemas=schemas, follow=follow, options=options, on_refusal=on_refusal)
    for block in blocks:
        yield from str(block, "utf-8").split("\n")[:-1]


def event_blocks(
    log: Log,
    topic: str | None = None,
    *,
    schemas: bool = False,
    follow: bool = False,
    options: EventOptions | None = None,
    on_refusal: OnRefusal = lambda refusal, tolerated: None,
) -> Iterator[memoryview]:
    """Yield events as lines of JSON, thousands at once; rows that no source captured as a key and a value.

    Args:
        topic: None: every topic. Of events that transforms send elsewhere it is the topic that they come to.
        schemas: with the schemas of keys and values, as Kafka's JsonConverter writes them.
        follow: go on as rows arrive.
        options: in place of what the log says of its connector.
        on_refusal: is told which events a transform could not take, and whether the connector leaves them out.

    Raises:
        LogError: there is no such topic, or the log was not captured in a way that events can be made of it.
    """
    writers = _writers(log, options, schemas=schemas)
    routed = any(connector.chain is not None for connector in writers.values())
    if topic is not None and topic not in log.topics() and not routed:
        raise no_topic(log, topic)
    if not writers:
        raise LogError(
            "the log does not say what Debezium's events say beside the rows",
            advice='Capture with compat="debezium", or with headrace capture --config, into a new log.',
        )
    beginning = None if topic is None or not routed else f'{{"topic":{java_string(topic)},'
    for texts in _events(log, writers, None if routed else topic, follow=follow, on_refusal=on_refusal):
        wanted = texts if beginning is None else texts.filter(pc.starts_with(texts, beginning))
        data, _, _ = spans(wanted)
        yield data.data


def _events(
    log: Log, writers: dict[str, _Connector], topic: str | None, *, follow: bool, on_refusal: OnRefusal
) -> Iterator[pa.Array]:
    """Yield lines with their ends, in the order of the log."""
    for slice_, following in _with_next(_slices(log, topic, follow=follow)):
        found = [_written(writers, entry, following, on_refusal) for entry in slice_]
        if any(events.transactions is not None for events in found):
            lines = sorted((line for events in found for line in events.each()), key=lambda line: line.place)
            for connector, own in groupby(lines, key=lambda line: line.connector):
                texts = [text for line in own for text in line.with_transaction()]
                yield pa.array(texts if connector is None else connector.finished(texts, on_refusal), TEXT)
        elif found:
            yield _in_order(found)
        if all(entry.complete for entry in slice_):
            for connector in writers.values():
                if connector.transactions is not None:
                    yield pa.array(connector.finished(connector.transactions.end(), on_refusal), TEXT)


def _in_order(found: Sequence[_Written]) -> pa.Array:
    """Return the lines of a slice's entries by their places."""
    lsn = np.concatenate([events.lsn for events in found])
    index = np.concatenate([events.index for events in found])
    texts = found[0].texts if len(found) == 1 else pa.concat_arrays([events.texts for events in found])
    if ((lsn[1:] > lsn[:-1]) | ((lsn[1:] == lsn[:-1]) & (index[1:] >= index[:-1]))).all():
        return texts
    number = np.concatenate([np.arange(len(events.texts)) for events in found])
    return texts.take(pa.array(np.lexsort((number, index, lsn))))


_Reading = tuple[str, bytes]  # a topic, and how rows of a blocking snapshot are marked


@dataclass
class _Connector:
    """One source's events: how they are written, and how far its snapshot is.

    Attributes:
        first, last: topic of the snapshot's first table, and of its last table that had rows.
        transactions: writes the topic of transactions; None where it is not wanted.
        reading: the topic of the last rows, and of which blocking snapshot, where these were of a snapshot.
        wanted: how events are written in the end. Where transactions are told, transforms come behind: what they are
            given says of each event where it stands in its transaction.
    """

    writer: EventWriter
    first: str
    last: str
    transactions: TransactionMetadata | None
    wanted: EventOptions
    reading: _Reading = ("", b"")

    @property
    def chain(self) -> Chain | None:
        return self.wanted.chain

    def finished(self, texts: list[str], on_refusal: OnRefusal) -> list[str]:
        """Return lines as transforms leave them, where these come behind."""
        if self.chain is None or self.transactions is None or not texts:
            return texts
        found, refusals = transformed(self.chain, texts, self.wanted)
        for refusal in refusals:
            on_refusal(refusal, self.wanted.tolerant)
        return [text for _, text in found]


@dataclass(frozen=True)
class _Written:
    """The events of an entry, with what orders them inside their slice.

    Attributes:
        texts: lines with their ends.
        places: what the transaction of each is known by, where transactions are told.
    """

    lsn: npt.NDArray[np.uint64]
    index: Ints
    texts: pa.Array
    connector: _Connector | None = None
    places: Sequence[Place] = ()

    @property
    def transactions(self) -> TransactionMetadata | None:
        return None if self.connector is None else self.connector.transactions

    def each(self) -> Iterator[_Line]:
        """Yield the events by themselves."""
        order = zip(self.lsn.tolist(), self.index.tolist(), range(len(self.texts)), strict=True)
        for place, text, of in zip_longest(order, self.texts.to_pylist(), self.places):
            yield _Line(place, text, of, self.connector)


@dataclass(frozen=True)
class _Line:
    """An event, with what orders it inside its slice."""

    place: tuple[int, int, int]
    text: str | None
    of: Place | None
    connector: _Connector | None

    def with_transaction(self) -> list[str]:
        """Return it with what the topic of transactions has before it."""
        if self.of is None or self.connector is None or self.connector.transactions is None:
            return [] if self.text is None else [self.text]
        return self.connector.transactions.event(self.of, self.text)


def _writers(log: Log, options: EventOptions | None, *, schemas: bool) -> dict[str, _Connector]:
    found = {}
    sources, captured = log.records("source"), log.records("captured")
    for name, raw in log.records("debezium").items():
        properties, source = json.loads(raw), json.loads(sources[name])
        wanted = options or EventOptions.of(properties, schemas=schemas)
        behind = wanted.transactions and wanted.chain is not None
        given = replace(wanted, chain=None, schemas=True) if behind else wanted
        writer = EventWriter(name, source["database"], given)
        topic = wanted.delimiter.join([name, wanted.transaction_topic])
        transactions = TransactionMetadata(topic, given.schemas) if wanted.transactions else None
        tables = [topic_of(name, (t["schema"], t["name"])) for t in json.loads(captured[name])["tables"]]
        # Unlogged ones were read, and are no tables that stream.
        others = {topic for topic in log.topics() if topic.startswith(f"{name}.")} - set(tables)
        unlogged = [topic for topic in others if not topic.endswith(".dlq") and _was_read(log, topic)]
        tables = sorted([*tables, *unlogged]) if unlogged else tables
        last = next((topic for topic in reversed(tables) if _was_read(log, topic)), "")
        found[name] = _Connector(writer, tables[0] if tables else "", last, transactions, wanted)
    return found


def _was_read(log: Log, topic: str) -> bool:
    """Return whether a topic begins with rows of a snapshot."""
    info = log.topics().get(topic)
    entries = log.read_topic(topic, offset=info.first, limit=1) if info is not None and info.rows else []
    return bool(entries and _read_topic(entries)[0])


def _slices(log: Log, topic: str | None, *, follow: bool) -> Iterator[list[Entry] | None]:
    """Yield the entries of each slice; None where nothing more has come yet."""
    after = 0
    while True:
        read = log.read(None if topic is None else [topic], after=after, limit=READ_ROWS)
        for number, entries in groupby(read, key=lambda entry: entry.slice):
            after = number
            yield [entry for entry in entries if topic is not None or not entry.topic.startswith(INTERNAL)]
        if not read:
            yield None
            if not follow:
                return
            time.sleep(FOLLOW_SECONDS)


def _with_next(slices: Iterator[list[Entry] | None]) -> Iterator[tuple[list[Entry], _Reading]]:
    """Yield each slice with the topic whose snapshot goes on behind it, which may be none: a snapshot comes at once."""
    held: list[Entry] | None = None
    for slice_ in slices:
        if held is not None:
            yield held, _read_topic(slice_ or [])
        held = slice_ or None


def _read_topic(entries: Sequence[Entry]) -> _Reading:
    read = (entry for entry in entries if Batch(entry.records).op[0] == ord("r") and not _later(entry))
    return next(((entry.topic, _marker(entry)) for entry in read), ("", b""))


def _marker(entry: Entry) -> bytes:
    return bytes((entry.records.schema.metadata or {}).get(MARKER, b""))


def _later(entry: Entry) -> bool:
    """Return whether rows were read by an incremental snapshot."""
    return _marker(entry) == b"incremental"


def _written(writers: dict[str, _Connector], entry: Entry, following: _Reading, on_refusal: OnRefusal) -> _Written:
    batch = Batch(entry.records)
    connector = writers.get(batch.source)
    if connector is None or FACTS not in (entry.records.schema.metadata or {}):
        return _Written(batch.lsn, batch.index, _plain(entry, batch))
    if _later(entry):
        markers = pa.array(["incremental"] * batch.num_rows, TEXT)
    else:
        markers = _markers(connector, (entry.topic, _marker(entry)), batch, following)
    lines = connector.writer.lines(entry.records, markers)
    for refusal in lines.refusals:
        on_refusal(refusal, connector.wanted.tolerant)
    told = markers is None and connector.transactions is not None
    of = places(batch, lines) if told else ()
    return _Written(batch.lsn[lines.rows], batch.index[lines.rows], lines.texts, connector, of)


def _markers(connector: _Connector, own: _Reading, batch: Batch, following: _Reading) -> pa.Array | None:
    """Return ``source.snapshot`` of the rows of a snapshot, as Debezium marks first and last ones."""
    if batch.op[0] != ord("r"):
        return None
    begins, ends, before = connector.reading != own, following != own, connector.reading
    connector.reading = own
    markers = np.full(batch.num_rows, "true", object)
    if begins:
        markers[0] = "first_in_data_collection"
    if ends:
        markers[-1] = "last_in_data_collection"
    topic, blocking = own
    if begins and (before[1] != blocking if blocking else connector.first == topic):
        markers[0] = "first"
    if ends and (following[1] != blocking if blocking else connector.last == topic):
        markers[-1] = "last"
    return pa.array(markers, TEXT)


def _plain(entry: Entry, batch: Batch) -> pa.Array:
    key = batch.key_columns
    shown = rows(entry, entry.offset, entry.offset + batch.num_rows)
    lines = [
        {"topic": entry.topic, "key": {name: row.get(name) for name in key} or None, "value": row} for row in shown
    ]
    return pa.array([to_json(line) + "\n" for line in lines], TEXT)
