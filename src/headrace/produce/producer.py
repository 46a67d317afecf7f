"""A producer: appends rows to a topic, throttled, and each once however often it is started.

How far a producer is stands in the log under its name (records of the kind `KIND`): rows until now, and a hash of the
last 16 of them. ``headrace produce --producer-id`` and ``producer_id=`` of a running pipeline write the same records:
each can go on where the other ended.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from headrace import plain_values
from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.errors import DeclarationError, FormatError, HeadraceError, LogError, LogLocked, LogMissing
from headrace.formats.json_columns import ROW, Column
from headrace.formats.topic_formats import COLUMNS, Decision, TopicCodec
from headrace.inspect.messages import to_json
from headrace.kafka.settings import SCHEME, KafkaLocation
from headrace.log import open_log
from headrace.log.base import Log
from headrace.log.kafka import KafkaLog
from headrace.log.kafka_view import PRODUCERS, owners
from headrace.produce.files import event_times
from headrace.produce.inputs import Input
from headrace.retry import Backoff

KIND = "producer"
REMEMBERED = 16
MOST_ROWS = 8192
MOST_BYTES = 8 << 20
COMMIT_SECONDS = 0.1
RETRY_SECONDS = 5.0
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:/\s*(s|sec|second|min|minute|h|hour))?\s*")
_UNIT_SECONDS = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600}


# -- the log --


def open_for(where: str, topic: str, codec: TopicCodec, *, take_over: bool = False) -> Log:
    """Open the log that a topic is appended to for writing.

    On a cluster without a pipeline's name it is a log of the topic's own, ``produce.TOPIC``: pipelines read it while it
    grows, and nobody's log gets a second writer.

    Raises:
        LogLocked: a pipeline that runs writes this file; or (cluster) the log is a pipeline's.
        LogError: the topic is another log's.
    """
    if where.startswith("memory:"):
        raise DeclarationError("rows in memory would be gone with this command", advice="Give --log PATH.")
    if not where.startswith(SCHEME):
        try:
            return open_log(where, writer=True)
        except LogLocked as error:
            raise LogLocked(
                error.message,
                advice="A file's log has one writer: stop the pipeline, append, and start it again; or give --log "
                "kafka://host:port, where rows are appended while pipelines run.",
            ) from error
    location = KafkaLocation.parse(where)
    name = location.name or f"{PRODUCERS}{topic}"
    location = KafkaLocation.parse(where, name=name)
    if not take_over:
        _refuse_a_pipelines(location, codec)
    opened = open_log(where, writer=True, name=name, codec=codec)
    try:
        assert isinstance(opened, KafkaLog)
        _refuse_anothers(opened, topic)
    except BaseException:
        opened.close()
        raise
    return opened


def _refuse_a_pipelines(location: KafkaLocation, codec: TopicCodec) -> None:
    """Refuse the log of a pipeline: opening it to write would end its other writer."""
    try:
        seen = KafkaLog(location, writer=False, codec=codec)
    except LogMissing:
        return
    with closing(seen):
        if set(seen.kinds()) - {KIND, COLUMNS}:
            raise LogLocked(
                f"{location.url} is the log of a pipeline, and a second writer would end its run",
                advice=f"Give --log {SCHEME}{location.bootstrap} and let the pipeline read the topic; or stop the "
                "pipeline and add --take-over.",
            )


def _refuse_anothers(log: KafkaLog, topic: str) -> None:
    for name in owners(log.location, log.cluster, [topic]):
        raise LogError(
            f"the topic «{topic}» on {log.location.bootstrap} belongs to the log of «{name}»",
            advice="Choose another topic, or write into that log.",
        )


# -- how far a producer is --


@dataclass(slots=True)
class ProducerProgress:
    """Rows written by one producer, and the last ones of them that are known."""

    rows: int = 0
    last: str = ""
    kept: list[pa.RecordBatch] = field(default_factory=list)
    again: list[pa.RecordBatch] = field(default_factory=list)
    again_at: int = -1

    def take(self, rows: pa.RecordBatch) -> None:
        """Count rows that follow."""
        self.kept = last_of([*self.kept, rows])
        self.rows += rows.num_rows
        self.last = fingerprint(self.kept)

    def compare(self, name: str, rows: pa.RecordBatch, at: int) -> None:
        """Compare rows that are given again with those that were written, once enough of them are known.

        Raises:
            LogError: they are others.
        """
        self.again = last_of([*(self.again if at == self.again_at else []), rows])
        self.again_at = at + rows.num_rows
        known = sum(batch.num_rows for batch in self.again)
        if self.again_at < self.rows or known < min(REMEMBERED, self.rows):
            return
        if fingerprint(self.again) != self.last:
            raise LogError(
                f"row {self.rows} of the producer «{name}» is not the one that was written",
                advice="Go on with the same rows, or choose another producer_id.",
            )
        self.kept = self.again

    def record(self) -> bytes:
        """Return the record for the log."""
        return json.dumps({"rows": self.rows, "last": self.last}).encode()

    @classmethod
    def load(cls, record: bytes | None) -> ProducerProgress:
        """Return the inverse of `record`; without a record, of a producer that has written nothing."""
        return cls(**json.loads(record)) if record else cls()


def last_of(batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Return the last 16 rows, or a few more."""
    kept = [batch.slice(max(0, batch.num_rows - REMEMBERED)) for batch in batches if batch.num_rows]
    while len(kept) > 1 and sum(batch.num_rows for batch in kept[1:]) >= REMEMBERED:
        kept.pop(0)
    return kept


def fingerprint(batches: Sequence[pa.RecordBatch]) -> str:
    """Hash the last 16 rows: the same however they were cut, and whether a column was still narrower or missing.

    >>> fingerprint([pa.RecordBatch.from_pylist([{"a": 1}])]) == fingerprint(
    ...     [pa.RecordBatch.from_pylist([{"a": 1.0, "b": None}])]
    ... )
    True
    """
    rows = [row for batch in batches for row in plain_values.rows(batch)][-REMEMBERED:]
    return hashlib.sha256(to_json([_settled(row) for row in rows]).encode()).hexdigest()


def _settled(value: Any) -> Any:
    """Return a value as it is printed whatever the width of its column."""
    if isinstance(value, dict):
        return {name: _settled(value[name]) for name in sorted(value) if value[name] is not None}
    if isinstance(value, list):
        return [_settled(item) for item in value]
    if isinstance(value, Decimal) and value.is_finite():
        # As it was before its column was widened; never as a float that is another number.
        value = int(value) if value == value.to_integral_value() else value
        return float(value) if isinstance(value, Decimal) and Decimal(repr(float(value))) == value else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


# -- appending --


@dataclass(frozen=True)
class EventColumns:
    """The columns that make events of rows.

    Args:
        key: those that identify a row.
        time: the one with its event time; None: it is now.
        first: number in the rows' positions of the input's first row.
    """

    key: tuple[str, ...] = ()
    time: str | None = None
    first: int = 0

    def batch(self, rows: pa.RecordBatch, first: int) -> Batch:
        """Return rows as events: inserts with the row's number in the input as index, and its event time or else now.

        Raises:
            FormatError: a column is not there; a time is null or cannot be read.
        """
        for name in (*self.key, *((self.time,) if self.time else ())):
            if name not in rows.schema.names:
                raise FormatError(f"there is no column «{name}»", advice=f"There are {', '.join(rows.schema.names)}.")
        ts_us: int | Ints = time.time_ns() // 1000
        if self.time is not None:
            ts_us = event_times(rows.column(self.time), self.time, first)
        index = np.arange(self.first + first, self.first + first + rows.num_rows, dtype=np.int64)
        return Batch.of(rows, index=index, ts_us=ts_us, key=self.key)


class Appender:
    """Appends rows, and records its progress in the same transactions.

    Args:
        log: open for writing.
        topic: where to.
        producer_id: under which progress is kept; without one it is not.
        columns: of the key and of the event time.
    """

    def __init__(self, log: Log, topic: str, producer_id: str | None, columns: EventColumns) -> None:
        self._log = log
        self._topic = topic
        self._columns = columns
        self._name = f"{topic}/{producer_id}" if producer_id else ""
        decided = log.records(COLUMNS, topic).get(topic)
        self._decided = Decision.load(decided) if decided else Decision()
        known = log.records(KIND, self._name).get(self._name) if self._name else None
        self._progress = ProducerProgress.load(known)
        self.skipped = self.done = self._progress.rows
        self.written = 0
        self._first_offset: int | None = None

    def figures(self) -> dict[str, Any]:
        """Return the rows written now and by earlier runs, and the offsets of those written now."""
        return {
            "rows": self.written,
            "skipped": self.skipped,
            "first_offset": self._first_offset,
            "last_offset": None if self._first_offset is None else self._last_offset,
        }

    def skip(self, rows: pa.RecordBatch, at: int) -> pa.RecordBatch:
        """Return the rows that are not written yet, of some that begin at a place of the input.

        Raises:
            FormatError: the last of those that are written are not what the input has there.
        """
        behind = min(rows.num_rows, max(0, self.skipped - at))
        if not behind:
            return rows
        self._progress.kept = last_of([*self._progress.kept, rows.slice(0, behind)])
        if at + behind == self.skipped and self._progress.last != fingerprint(self._progress.kept):
            raise FormatError(
                f"row {self.skipped} of the input is not the one that was written to «{self._topic}»",
                advice="Go on with the same input, or choose another --producer-id.",
            )
        return rows.slice(behind)

    @property
    def column(self) -> Column:
        """The topic's columns, where rows without a schema decided them."""
        return self._decided.columns or ROW

    def append(self, rows: pa.RecordBatch, column: Column | None = None) -> None:
        """Write rows, the new progress and the topic's columns with them, all or nothing."""
        decided = self._decided if column is None else replace(self._decided, columns=column)
        batch = self._columns.batch(rows, self.done)
        progress = replace(self._progress)
        if self._name:
            progress.take(rows)
        with self._log.transaction() as txn:
            offset = txn.append(self._topic, batch.records)
            if decided.columns is not self._decided.columns:
                txn.put(COLUMNS, self._topic, decided.dump())
            if self._name:
                txn.put(KIND, self._name, progress.record())
        self._progress = progress
        self._decided = decided
        self._first_offset = offset if self._first_offset is None else self._first_offset
        self._last_offset = offset + rows.num_rows - 1
        self.done += rows.num_rows
        self.written += rows.num_rows


def parse_rate(text: str) -> float:
    """Read a rate as rows per second.

    >>> parse_rate("100/s"), parse_rate("6000/min"), parse_rate("2.5")
    (100.0, 100.0, 2.5)
    """
    parts = _RATE.fullmatch(text)
    if parts is None or not float(parts[1]):
        raise DeclarationError(f"«{text}» is no rate", advice="Write 100/s, 6000/min or 10/h.")
    return float(parts[1]) / _UNIT_SECONDS[parts[2] or "s"]


@dataclass
class Throttle:
    """At most so many rows per second; None: no limit. What was missed is not caught up."""

    per_second: float | None = None
    _due: float = 0.0

    @property
    def rows(self) -> int:
        """The number to write at once: about ten commits a second."""
        if self.per_second is None:
            return MOST_ROWS
        return max(1, min(MOST_ROWS, math.ceil(self.per_second * COMMIT_SECONDS)))

    def wait(self, rows: int, stopped: threading.Event) -> None:
        """Wait until so many rows may be written, or it is stopped."""
        if self.per_second is None:
            return
        while not stopped.is_set() and (left := self._due - time.monotonic()) > 0:
            stopped.wait(left)
        self._due = max(self._due, time.monotonic()) + rows / self.per_second


class Reporter(Protocol):
    """Shows how far `append_all` is; called from its thread."""

    def advance(self, done: int) -> None:
        """Show the number of rows that are written."""
        ...

    def report(self, message: str) -> None:
        """Show why rows are not written at the moment."""
        ...


def append_all(source: Input, appender: Appender, throttle: Throttle, limit: int | None, reporter: Reporter) -> str:
    """Append the rows of an input; return why it ended: ``input``, ``limit`` or ``stopped``.

    Raises:
        FormatError: the input is shorter than what earlier runs wrote of it, is another, or cannot be read.
    """
    at = 0
    for batch, column in source.batches():
        rows = appender.skip(batch, at)
        at += batch.num_rows
        left = rows.num_rows if limit is None else min(rows.num_rows, limit - appender.done)
        for part in _parts(rows.slice(0, max(0, left)), throttle.rows):
            throttle.wait(part.num_rows, source.stopped)
            if source.stopped.is_set() or not _append(appender, part, column, source.stopped, reporter):
                return "stopped"
            reporter.advance(appender.done)
        if limit is not None and appender.done >= limit:
            return "limit"
    if source.stopped.is_set():
        return "stopped"
    if at < appender.skipped:
        raise FormatError(
            f"{source.what} has {at} rows, and {appender.skipped} were written of it by this producer",
            advice="Give the same input, or choose another --producer-id.",
        )
    return "input"


def _append(
    appender: Appender, rows: pa.RecordBatch, column: Column | None, stopped: threading.Event, reporter: Reporter
) -> bool:
    """Write rows, again and again while the log cannot take them; return whether they were written."""
    backoff = Backoff(most=RETRY_SECONDS)
    while True:
        try:
            appender.append(rows, column)
            return True
        except HeadraceError as error:
            if not error.retry:
                raise
            reporter.report(f"{error.message}; trying again")
        if stopped.wait(backoff.next()):
            return False


def _parts(rows: pa.RecordBatch, most: int) -> Iterator[pa.RecordBatch]:
    if not rows.num_rows:
        return
    step = min(most, max(1, MOST_BYTES * rows.num_rows // max(1, rows.nbytes)))
    for start in range(0, rows.num_rows, step):
        yield rows.slice(start, step)
