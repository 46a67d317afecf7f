"""``headrace produce``: rows of a file, of labelled images or of standard input, appended to a topic."""

from __future__ import annotations

import json
import math
import os
import re
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from headrace.batch import Batch, is_meta
from headrace.cli.console import talk
from headrace.cli.log import JsonOption, LogOption, location
from headrace.engines.local.append_source import KIND, fingerprint, last_of
from headrace.engines.local.signals import Signals
from headrace.errors import DeclarationError, FormatError, HeadraceError, LogError, LogLocked, LogMissing
from headrace.formats.json_columns import ROW, Column
from headrace.formats.topic_formats import COLUMNS, Decision, TopicCodec, checked_format, codec_for
from headrace.inspect.messages import to_json
from headrace.kafka.settings import SCHEME, KafkaLocation
from headrace.log import open_log
from headrace.log.base import Log
from headrace.log.kafka import KafkaLog
from headrace.log.kafka_view import PRODUCERS, owners
from headrace.plan.plan import INTERNAL
from headrace.produce.row_files import Decided
from headrace.retry import Backoff

MOST_ROWS = 8192
MOST_BYTES = 8 << 20
COMMIT_SECONDS = 0.1
LOOK_SECONDS = 0.1
RETRY_SECONDS = 5.0
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:/\s*(s|sec|second|min|minute|h|hour))?\s*")
_UNIT_SECONDS = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600}


def produce(
    topic: Annotated[str, typer.Argument(help="The topic; made where it is not there.")],
    file: Annotated[Path | None, typer.Option("--file", help="JSON lines, CSV or Parquet, by its ending.")] = None,
    idx: Annotated[
        Path | None, typer.Option("--idx", help="A directory with IDX files: columns id, pixels and label.")
    ] = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="JSON lines from standard input, as they come.")] = False,
    rate: Annotated[str | None, typer.Option("--rate", help="At most so fast: 100/s, 6000/min.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=0, help="The first so many rows of the input only, earlier runs' included.")
    ] = None,
    key: Annotated[list[str] | None, typer.Option("--key", help="A column of the key; may be repeated.")] = None,
    time_column: Annotated[
        str | None, typer.Option("--time-column", help="The column with each row's event time; else it is now.")
    ] = None,
    producer_id: Annotated[
        str | None, typer.Option("--producer-id", help="Started again with it: goes on behind the rows written.")
    ] = None,
    column_major: Annotated[
        bool, typer.Option("--column-major", help="The IDX files hold images column by column, as EMNIST's.")
    ] = False,
    format_: Annotated[str, typer.Option("--format", help="How rows are written to a cluster.")] = "json",
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Write into the log of a pipeline on a cluster; it must be stopped.")
    ] = False,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Append rows to a topic, throttled. With --producer-id each row is there once, however often this is restarted.

    Example: headrace produce digits --idx data/mnist --rate 100/s --log mnist.headrace
    """
    if sum((file is not None, idx is not None, stdin)) != 1:
        raise typer.BadParameter("give one of --file, --idx and --stdin")
    if topic.startswith(INTERNAL):
        raise DeclarationError(f"«{topic}» is a name of Headrace's own", advice=f"Begin it without «{INTERNAL}».")
    pace = Pace(parse_rate(rate) if rate is not None else None)
    codec = TopicCodec(checked_format(format_), registry=codec_for().registry)
    source = Source(file, idx, column_major)
    where = location(log)
    total = source.total(limit)  # before a log is made: refuses an input that is not there
    since = time.monotonic()
    with closing(open_for(where, topic, codec, take_over=take_over)) as held, Signals() as signals:
        signals.stop = source.stopped.set
        told = Telling(tuple(key or ()), time_column)
        appender = Appender(held, topic, producer_id, told)
        source.column = appender.column
        with _progress(total, appender.done, show=not as_json) as advance:
            ended = append_all(source, appender, pace, limit, advance)
        place = held.location.url if isinstance(held, KafkaLog) else where
    result = {"topic": topic, "log": place, **appender.figures(), "ended": ended}
    if as_json:
        print(to_json({**result, "seconds": round(time.monotonic() - since, 3)}))
        return
    earlier = f" behind {appender.skipped} that were there" if appender.skipped else ""
    words = {"input": "the input ended", "limit": "the limit is reached", "stopped": "stopped"}[ended]
    talk.print(f"{topic}: {appender.written} rows written{earlier}; {words}", highlight=False, markup=False)


# -- the log ----------------------------------------------------------------------------------------------------------


def open_for(where: str, topic: str, codec: TopicCodec, *, take_over: bool = False) -> Log:
    """The log that a topic is appended to, open for writing.

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
    place = KafkaLocation.parse(where)
    name = place.name or f"{PRODUCERS}{topic}"
    place = KafkaLocation.parse(where, name=name)
    if not take_over:
        _refuse_a_pipelines(place, codec)
    opened = open_log(where, writer=True, name=name, codec=codec)
    try:
        assert isinstance(opened, KafkaLog)
        _refuse_anothers(opened, topic)
    except BaseException:
        opened.close()
        raise
    return opened


def _refuse_a_pipelines(place: KafkaLocation, codec: TopicCodec) -> None:
    """Opening a log on a cluster to write ends its other writer: look first."""
    try:
        seen = KafkaLog(place, writer=False, codec=codec)
    except LogMissing:
        return
    with closing(seen):
        if set(seen.kinds()) - {KIND, COLUMNS}:
            raise LogLocked(
                f"{place.url} is the log of a pipeline, and a second writer would end its run",
                advice=f"Give --log {SCHEME}{place.bootstrap} and let the pipeline read the topic; or stop the "
                "pipeline and add --take-over.",
            )


def _refuse_anothers(log: KafkaLog, topic: str) -> None:
    theirs = owners(log.location, log.cluster, [topic])
    for name in theirs:
        raise LogError(
            f"the topic «{topic}» on {log.location.bootstrap} belongs to the log of «{name}»",
            advice="Choose another topic, or write into that log.",
        )


# -- the input --------------------------------------------------------------------------------------------------------


@dataclass
class Source:
    """Where rows come from: a file, a directory of IDX files, or else standard input.

    Args:
        file, directory: one of them, or none.
        column_major: of the IDX files.
        column: what the topic's columns are so far, for JSON lines.
    """

    file: Path | None = None
    directory: Path | None = None
    column_major: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)
    column: Column = ROW

    @property
    def what(self) -> str:
        """As messages call it."""
        return str(self.file or self.directory or "standard input")

    def total(self, limit: int | None) -> int | None:
        """About how many rows there will be, where that can be known cheaply.

        Raises:
            FormatError: there is no such file or directory, or not with such names in it.
        """
        from headrace.produce import idx, row_files

        total = None
        if self.file is not None:
            total = row_files.count_rows(self.file)
        elif self.directory is not None:
            total = sum(len(idx.read_labels(labels)) for _, labels in idx.find_pairs(self.directory).values())
        return limit if total is None else min(total, total if limit is None else limit)

    def batches(self) -> Iterator[Decided]:
        """Its rows from the first one on, and what the topic's columns are after them.

        Raises:
            FormatError: it cannot be read, or a column has a name of Headrace's own.
        """
        for batch, column in self._read():
            for name in filter(is_meta, batch.schema.names):
                raise FormatError(f"{self.what} has a column «{name}», a name of Headrace's own", advice="Rename it.")
            yield batch, column

    def _read(self) -> Iterator[Decided]:
        from headrace.produce import idx, row_files

        if self.file is not None:
            yield from row_files.read_rows(self.file, self.column)
        elif self.directory is None:
            arriving = self._arriving(sys.stdin.fileno())
            yield from row_files.read_json_lines(arriving, where=self.what, column=self.column)
        else:
            first = 1
            for one in idx.read_sets(self.directory, column_major=self.column_major):
                for start in range(0, len(one), MOST_ROWS):
                    yield one.records(start, start + MOST_ROWS, first_id=first), None
                first += len(one)

    def _arriving(self, descriptor: int) -> Iterator[bytes]:
        """What comes, as it comes; ends with the input, or when stopped, where half a line is not taken."""
        half = b""
        while not self.stopped.is_set():
            if not select.select([descriptor], [], [], LOOK_SECONDS)[0]:
                continue
            piece = os.read(descriptor, 1 << 20)
            if not piece:
                yield half
                return
            lines, newline, tail = (half + piece).rpartition(b"\n")
            half = tail
            if newline:
                yield lines + newline


# -- appending --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Telling:
    """Which columns say what of a row.

    Args:
        key: those that identify it.
        time: the one with its event time.
    """

    key: tuple[str, ...] = ()
    time: str | None = None

    def batch(self, rows: pa.RecordBatch, first: int) -> Batch:
        """Events of rows: inserts with the row's number in the input as index, and its event time or else now.

        Raises:
            FormatError: a column is not there; a time is null or cannot be read.
        """
        for name in (*self.key, *((self.time,) if self.time else ())):
            if name not in rows.schema.names:
                raise FormatError(f"there is no column «{name}»", advice=f"There are {', '.join(rows.schema.names)}.")
        from headrace.produce.row_files import event_times

        ts_us: int | npt.NDArray[np.int64] = time.time_ns() // 1000
        if self.time is not None:
            ts_us = event_times(rows.column(self.time), self.time, first)
        index = np.arange(first, first + rows.num_rows, dtype=np.int64)
        return Batch.of(rows, index=index, ts_us=ts_us, key=self.key)


class Appender:
    """Appends rows, and writes down in the same transactions how far it is.

    Args:
        log: open for writing.
        topic: where to.
        producer_id: under which progress is kept; without one it is not.
        told: which columns say what.
    """

    def __init__(self, log: Log, topic: str, producer_id: str | None, told: Telling) -> None:
        self._log = log
        self._topic = topic
        self._told = told
        self._name = f"{topic}/{producer_id}" if producer_id else ""
        decided = log.records(COLUMNS, topic).get(topic)
        self._decided = Decision.load(decided) if decided else Decision()
        known = log.records(KIND, self._name).get(self._name) if self._name else None
        self._known: dict[str, Any] = json.loads(known) if known else {"rows": 0, "last": ""}
        self._last: list[pa.RecordBatch] = []
        self.skipped: int = self._known["rows"]
        self.done = self.skipped
        self.written = 0
        self._first_offset: int | None = None

    def figures(self) -> dict[str, Any]:
        """What was done: rows written now and by earlier runs, offsets of those written now."""
        return {
            "rows": self.written,
            "skipped": self.skipped,
            "first_offset": self._first_offset,
            "last_offset": None if self._first_offset is None else self._last_offset,
        }

    def skip(self, rows: pa.RecordBatch, at: int) -> pa.RecordBatch:
        """Rows that are not written yet, of some that begin at a place of the input.

        Raises:
            FormatError: the last of those that are written are not what the input has there.
        """
        behind = min(rows.num_rows, max(0, self.skipped - at))
        if not behind:
            return rows
        self._remember(rows.slice(0, behind))
        if at + behind == self.skipped and self._known["last"] != fingerprint(self._last):
            raise FormatError(
                f"row {self.skipped} of the input is not the one that was written to «{self._topic}»",
                advice="Go on with the same input, or choose another --producer-id.",
            )
        return rows.slice(behind)

    @property
    def column(self) -> Column:
        """What the topic's columns are, where rows without a schema decided it."""
        return self._decided.columns or ROW

    def append(self, rows: pa.RecordBatch, column: Column | None = None) -> None:
        """Write rows, the new progress and what the topic's columns are with them, all or nothing."""
        decided = self._decided if column is None else Decision(self._decided.format, column)
        batch = self._told.batch(rows, self.done)
        before = list(self._last)
        self._remember(rows)
        try:
            with self._log.transaction() as txn:
                offset = txn.append(self._topic, batch.records)
                if decided.columns is not self._decided.columns:
                    txn.put(COLUMNS, self._topic, decided.dump())
                if self._name:
                    progress = {"rows": self.done + rows.num_rows, "last": fingerprint(self._last)}
                    txn.put(KIND, self._name, json.dumps(progress).encode())
        except BaseException:
            self._last = before
            raise
        self._decided = decided
        self._first_offset = offset if self._first_offset is None else self._first_offset
        self._last_offset = offset + rows.num_rows - 1
        self.done += rows.num_rows
        self.written += rows.num_rows

    def _remember(self, rows: pa.RecordBatch) -> None:
        if not self._name:
            return
        self._last = last_of([*self._last, rows])


# -- the loop ---------------------------------------------------------------------------------------------------------


def parse_rate(text: str) -> float:
    """Rows per second.

    >>> parse_rate("100/s"), parse_rate("6000/min"), parse_rate("2.5")
    (100.0, 100.0, 2.5)
    """
    told = _RATE.fullmatch(text)
    if told is None or not float(told[1]):
        raise DeclarationError(f"«{text}» is no rate", advice="Write 100/s, 6000/min or 10/h.")
    return float(told[1]) / _UNIT_SECONDS[told[2] or "s"]


@dataclass
class Pace:
    """So many rows per second; as fast as it goes where that is None. What was missed is not caught up."""

    per_second: float | None = None
    _due: float = 0.0

    @property
    def rows(self) -> int:
        """How many to write at once: about ten commits a second."""
        if self.per_second is None:
            return MOST_ROWS
        return max(1, min(MOST_ROWS, math.ceil(self.per_second * COMMIT_SECONDS)))

    def wait(self, rows: int, stopped: threading.Event) -> None:
        """Until so many rows may be written, or it is stopped."""
        if self.per_second is None:
            return
        while not stopped.is_set() and (left := self._due - time.monotonic()) > 0:
            stopped.wait(left)
        self._due = max(self._due, time.monotonic()) + rows / self.per_second


def append_all(source: Source, appender: Appender, pace: Pace, limit: int | None, advance: Any) -> str:
    """Append what the source has; says why it ended: ``input``, ``limit`` or ``stopped``.

    Raises:
        FormatError: the input is shorter than what earlier runs wrote of it, is another, or cannot be read.
    """
    at = 0
    for batch, column in source.batches():
        rows = appender.skip(batch, at)
        at += batch.num_rows
        left = rows.num_rows if limit is None else min(rows.num_rows, limit - appender.done)
        for part in _parts(rows.slice(0, max(0, left)), pace.rows):
            pace.wait(part.num_rows, source.stopped)
            if source.stopped.is_set() or not _append(appender, part, column, source.stopped):
                return "stopped"
            advance(appender.done)
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


def _append(appender: Appender, rows: pa.RecordBatch, column: Column | None, stopped: threading.Event) -> bool:
    """Write rows, again and again while the log cannot take them; whether they were written."""
    backoff = Backoff(first=LOOK_SECONDS, most=RETRY_SECONDS)
    while True:
        try:
            appender.append(rows, column)
            return True
        except HeadraceError as error:
            if not error.retry:
                raise
            talk.print(f"{error.message}; trying again", highlight=False, markup=False)
        if stopped.wait(backoff.next()):
            return False


def _parts(rows: pa.RecordBatch, most: int) -> Iterator[pa.RecordBatch]:
    if not rows.num_rows:
        return
    step = min(most, max(1, MOST_BYTES * rows.num_rows // max(1, rows.nbytes)))
    for start in range(0, rows.num_rows, step):
        yield rows.slice(start, step)


@contextmanager
def _progress(total: int | None, done: int, *, show: bool) -> Iterator[Any]:
    """A bar on standard error, where that is a terminal."""
    columns = (TextColumn("producing"), BarColumn(), TextColumn("{task.completed} rows"), TimeRemainingColumn())
    with Progress(*columns, console=talk, transient=True, disable=not (show and talk.is_terminal)) as bar:
        task = bar.add_task("rows", total=total, completed=done)
        yield lambda now: bar.update(task, completed=now)
