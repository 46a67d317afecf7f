"""A log that cannot go on from its slot gets a new slot and a new snapshot, of which it takes what it does not know.

    pending record ──▶ publication ──▶ slot ──▶ snapshot, compared with the log ──▶ differences staged
                                                                     │ one log transaction
                                                                     ▼
                            rows visible, new record of slot and log, pending record gone

A kill before that transaction leaves the log as it was, but for the pending record, with which no start goes on: the
resync is done again, from its beginning. What was staged is dropped when the log is opened.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.batch import Batch
from headrace.capture.base import Log, Transaction
from headrace.capture.comparison import Comparison, Counts, Difference
from headrace.capture.postgres import catalog, checks, drift, gaps, slot_binding
from headrace.capture.postgres.catalog import Publication, SqlConnection, Table
from headrace.capture.postgres.drift import Began
from headrace.capture.postgres.gaps import Gap, PassedGap, with_gap
from headrace.capture.postgres.slot_binding import Claim, SourceRecord
from headrace.capture.postgres.snapshot import Converter, OnProgress, Snapshot, pieces, read_ahead
from headrace.capture.postgres.startup import (
    Declared,
    Startup,
    WaitReporter,
)
from headrace.capture.postgres.table import topic_of
from headrace.capture.postgres.types import Vectors
from headrace.errors import LogError, SourceRefused
from headrace.faults import fault

Unknown = Literal["append", "leave"]
_ROW_BYTES = 64  # of a table of which nothing is known but an estimated number of rows
_READ_ROWS = 65_536


@dataclass(slots=True)
class Compared:
    """What came of comparing one table with its topic.

    Attributes:
        gone: the topic's table is not captured any more.
    """

    table: str
    topic: str
    counts: Counts = field(default_factory=Counts)
    dead_letters: int = 0
    gone: bool = False


class Resync(Startup):
    """Gives a log's source a new slot, and the log what it has missed; see `headrace capture resync`.

    Args:
        declared: the source: its tables, its slot, its publication.
        known: what the log has of it.
        gap: what the log may not have, and why; the log keeps that.
        quiet: somebody else says what it waits for.
        unknown: what to do with rows that the log may have had and does not have now; None: refuse where there can be
            such rows.
        force: also where a slot that the user made is in order.
        directory: where rows lie while they are compared; the system's by default.

    Attributes:
        compared: what came of each table, after `open` or `compare`.
        elsewhere: in which way the database is another one than the log's; "" where it is not. After `check`.
    """

    def __init__(
        self,
        declared: Declared,
        known: SourceRecord,
        on_progress: OnProgress,
        *,
        gap: tuple[Gap, str] | None = None,
        unknown: Unknown | None = None,
        force: bool = False,
        directory: Path | None = None,
        quiet: bool = False,
    ) -> None:
        reporter = WaitReporter(
            declared.server, lambda: "" if self.reading else f"{declared.name}: {self.doing}" if self.doing else ""
        )
        # What has a derived name is ours to make anew, whether the pipeline's file names it or not.
        anew = replace(
            declared,
            server=declared.server if quiet else replace(declared.server, connected=reporter.connected),
            own_slot=True,
            own_publication=declared.own_publication or declared.publication.startswith(slot_binding.OURS),
            with_snapshot=True,
        )
        super().__init__(anew, on_progress)
        self._reporter = contextlib.nullcontext() if quiet else reporter
        self._gap = gap
        self._users_slot = not declared.own_slot and not declared.slot.startswith(slot_binding.OURS)
        self._known_before = known
        self._unknown: Unknown | None = unknown
        self._force = force
        self._directory = directory
        self._before: Began | None = None
        self._whole = True
        self._handled = "snapshot"
        self.compared: list[Compared] = []
        self.elsewhere = ""

    @property
    def declared(self) -> Declared:
        """Return what is resynced."""
        return self._declared

    # --- what is checked ---

    def _record(self, log: Log) -> SourceRecord | None:
        self._before = Began.load(log, self._declared.name)
        return None

    def check(self, log: Log) -> None:
        """See that the log can be given a new slot here. Writes nothing.

        Raises:
            SourceUnavailable: the server cannot be reached.
            SourceRefused: it cannot be captured as it is, the slot is another log's, or rows cannot be told apart.
        """
        super().check(log)
        if not self._same_database:
            self.elsewhere = f"the log was captured from {self._known_before.identity}; this is {self._identity}"
        self._check_unknown(log)

    @property
    def _same_database(self) -> bool:
        """Return whether the database is the log's, perhaps restored or promoted: relations have their numbers."""
        was, now = self._known_before.identity, self._identity
        return (was.system_identifier, was.database) == (now.system_identifier, now.database)

    def _check_unknown(self, log: Log) -> None:
        """Refuse where rows of the table may be missing in the log that the log has had, or was not to have.

        Raises:
            SourceRefused: naming the topics.
        """
        if self._unknown is not None:
            return
        if not Claim.load(log, self._declared.name).snapshot:
            why = 'it began with snapshot="never", without the rows that were there'
        else:
            topics = log.topics()
            pruned = [name for table in self.tables if (name := self._topic(table)) in topics and topics[name].first]
            if not pruned:
                return
            why = f"the oldest rows of {', '.join(pruned)} were dropped (keep=…)"
        raise SourceRefused(
            f"the log does not hold all rows of «{self._declared.name}»: {why}; so a row of the database that the log "
            "does not know may be new, or one that was there before",
            advice="headrace capture resync --unknown-rows append takes such rows in as inserts; --unknown-rows leave "
            "leaves them out, also those that were inserted while nothing was captured.",
        )

    def _topic(self, table: Table) -> str:
        return table.stream_table(self._declared.name).topic

    def _with_vectors(self, tables: Sequence[Table], vectors: Vectors) -> list[Table]:
        before = {table.label: table.vectors for table in self._before.tables} if self._before is not None else {}
        # In another database the same types have other numbers.
        return [replace(table, vectors=vectors if before.get(table.label, vectors) else ()) for table in tables]

    def _choose(self, connection: SqlConnection) -> list[Table]:
        """Return the tables that are meant; one that was renamed goes on under the name that its topic has."""
        declared, before = self._declared, self._before
        tables = [t for t in catalog.all_tables(connection) if (t.schema, t.name) not in declared.left_out]
        named = {(table.schema, table.name) for table in tables}
        labels: dict[int, tuple[str, str]] = {}
        if before is not None and self._same_database:
            labels = {table.oid: (table.schema, table.name) for table in before.tables}
        chosen = []
        for table in tables:
            name = (table.schema, table.name)
            label = labels.get(table.oid, name)
            label = name if label in named else label  # the name is another table's now
            if catalog.matches(".".join(label), declared.patterns) or catalog.matches(str(table), declared.patterns):
                checks.refuse(checks.kind(table, str(declared.server)))
                chosen.append(replace(table, captured_as=label if label != name else None))
        chosen = chosen if declared.debezium is not None else catalog.without_partitions(chosen)
        if not chosen:
            checks.refuse(checks.nothing_matches(tables, declared.patterns, str(declared.server)))
        return chosen

    def _check_new(self, connection: SqlConnection, publication: Publication | None) -> None:
        slot = catalog.replication_slot(connection, self._declared.slot)
        if slot is not None and self._users_slot and not slot.lost and not self._force:
            raise SourceRefused(
                f"slot «{slot.name}» was not made by Headrace, and is in order: it would be dropped and made anew",
                advice="--force does that; nobody else may need it.",
            )
        super()._check_new(connection, publication)

    # --- what is done ---

    def open(self, log: Log, cancelled: Callable[[], bool]) -> SourceRecord:
        """Make the slot anew and take what the log does not know; return the record with which the log goes on.

        Raises:
            SourceUnavailable, SourceRefused: as `check`; what was begun is to be done again.
            LogError: a topic's rows cannot be compared.
        """
        if not self.tables:
            self.check(log)
        with log.transaction() as transaction:
            # Once all rows of the database were taken in, the log has them, whatever it began with.
            self._whole = Claim.load(log, self._declared.name).snapshot or self._unknown == "append"
            begun = {"at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")}
            transaction.put(slot_binding.RESYNC, self._declared.name, json.dumps(begun).encode())
        fault("resync.begun")
        with self._reporter:
            return super().open(log, cancelled)

    def compare(self, log: Log) -> int:
        """Compare the tables as they are now with the log, and change nothing: neither the log nor the server.

        Returns:
            Where the server's log ended then.

        Raises:
            SourceUnavailable, SourceRefused: as `check`.
            LogError: a topic's rows cannot be compared.
        """
        if not self.tables:
            self.check(log)
        declared, server = self._declared, self._declared.server
        with (
            self._reporter,
            contextlib.closing(server.sql()) as connection,
            server.translated("to export a snapshot"),
        ):
            # Our own publication is made anew where it is not as wanted: its columns and filters count no more.
            now = drift.look(connection, declared.publication)
            stays = not declared.own_publication or self.right_shape(now)
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            (exported,) = connection.execute("SELECT pg_export_snapshot()").fetchone() or ("",)
            lsn = catalog.insert_lsn(connection)
            self.reading = True
            with Snapshot(server, exported, self.tables, declared.publication if stays else "") as snapshot:
                self.tables = snapshot.tables
                self._compare(snapshot, log, lsn, _Dropped)
        self.done()
        return lsn

    def _begin(self, connection: SqlConnection, log: Log, cancelled: Callable[[], bool]) -> SourceRecord:
        return self._begin_fresh(connection, log, cancelled)

    def _claim(self, slot: str) -> Claim:
        return replace(super()._claim(slot), snapshot=self._whole)

    def _put_more(self, transaction: Transaction, log: Log, new: SourceRecord) -> None:
        if self._gap is not None:
            gap, reason = self._gap
            passed = PassedGap.of(gap, reason=reason, until=new.acknowledged, handled=self._handled)
            transaction.put(gaps.KIND, self._declared.name, with_gap(log, self._declared.name, passed))

    def _stage(self, snapshot: Snapshot, log: Log, lsn: int, tables: Sequence[Table]) -> int:
        """Stage what differs, of all tables: one transaction of the source, at the snapshot's position."""
        self._compare(snapshot, log, lsn, _Staging)
        return 0

    def _large(self, snapshot: Snapshot) -> Sequence[Table]:
        """Return no tables: what differs is appended at once."""
        return ()

    def _compare(self, snapshot: Snapshot, log: Log, lsn: int, staging: type[_Staging]) -> None:
        self.compared = []
        index = 0
        for table in snapshot.tables:
            compared = Compared(str(table), self._topic(table))
            # A comparison sees values only, and takes NaN for NULL: by key a row with one is left as the log knows it;
            # without a key it would be taken for one that is gone.
            keyless = not (table.identity_columns or table.key)
            converter = Converter(table, self._declared.name, lsn=lsn, ts_us=snapshot.ts_us, with_nan=keyless)
            try:
                index = self._compare_table(snapshot, log, table, compared, staging(log, converter, index))
            except OSError as error:
                raise LogError(
                    f"rows of table {table} cannot be put aside in {self._directory or tempfile.gettempdir()}: {error}",
                    advice="What is compared lies there until it is: about as much as topic and table together.",
                ) from error
            self.compared.append(compared)
        captured = {".".join(table.label) for table in snapshot.tables}
        for name in self._known_before.tables:
            if name not in captured:
                topic = topic_of(self._declared.name, name.partition(".")[::2])
                self.compared.append(Compared(name, topic, gone=True))

    def _compare_table(self, snapshot: Snapshot, log: Log, table: Table, compared: Compared, staging: _Staging) -> int:
        converter, topics = staging.converter, log.topics()
        held = topics.get(converter.topic)
        size = max(held.bytes if held else 0, table.estimated_rows * _ROW_BYTES)
        key = table.identity_columns or table.key
        with contextlib.closing(
            Comparison(converter.rows_schema, key, size=size, directory=self._directory)
        ) as comparison:
            self._note(log, comparison, table, converter.topic)
            letters = self._meet(snapshot, log, comparison, table, converter)
            was_captured = ".".join(table.label) in self._known_before.tables
            leaves = self._unknown == "leave" and was_captured
            found = comparison.differences()
            staging.stage((rows for rows in found if not (leaves and rows.op == "c")), "c" if was_captured else "r")
            staging.stage_letters(letters)
            compared.counts, compared.dead_letters = comparison.counts, sum(batch.num_rows for batch in letters)
            compared.counts.inserted = 0 if leaves else compared.counts.inserted
        return staging.index

    def _note(self, log: Log, comparison: Comparison, table: Table, topic: str) -> None:
        held = log.topics().get(topic)
        rows = held.end - held.first if held else 0
        done = 0
        for records in events(log, topic):
            try:
                comparison.note(Batch(records))
            except LogError as error:
                raise LogError(
                    f"table {table} cannot be compared with its topic «{topic}»: {error.message}",
                    advice="Give the table that column back, or capture it under another prefix=….",
                ) from error
            done += records.num_rows
            self._report(f"{table} in the log", done, rows)

    def _meet(
        self, snapshot: Snapshot, log: Log, comparison: Comparison, table: Table, converter: Converter
    ) -> list[Batch]:
        """Take the table's rows in; return dead letters that the log does not have."""
        told: set[str] | None = None
        new, done = [], 0
        with contextlib.closing(read_ahead(snapshot, table)) as batches:
            for records in batches:
                rows, letters = converter.convert(records, 0)
                comparison.meet(rows.select(converter.rows_schema.names), converter.refused(records))
                if letters is not None:
                    told = known_letters(log, f"{converter.topic}.dlq") if told is None else told
                    unknown = [text not in told for text in canonical(letters.column("row"))]
                    new += [letters.filter(np.array(unknown))] if any(unknown) else []
                done += records.num_rows
                self._report(str(table), done, max(done, table.estimated_rows))
        return new


class Acceptance(Resync):
    """Goes on where the slot is, or with a new one where it is of no use: what lies between stays out of the log.

    The log's tables go on; one that was made meanwhile joins later, as any does.
    """

    def __init__(
        self,
        declared: Declared,
        known: SourceRecord,
        on_progress: OnProgress,
        *,
        gap: tuple[Gap, str],
    ) -> None:
        super().__init__(declared, known, on_progress, gap=gap, force=True, quiet=True)
        self._declared = replace(self._declared, with_snapshot=False)
        self._handled = "accept"

    def _check_unknown(self, log: Log) -> None:
        """Leave everything that the log does not know out of it."""

    def _choose(self, connection: SqlConnection) -> list[Table]:
        known = set(self._known_before.tables)
        tables = [table for table in super()._choose(connection) if ".".join(table.label) in known]
        if not tables:
            raise SourceRefused(
                f"{self._declared.server} has none of the tables that the log has: {', '.join(sorted(known))}",
                advice="Connect to the database that it was captured from.",
            )
        return tables

    def open(self, log: Log, cancelled: Callable[[], bool]) -> SourceRecord:
        """Go on behind the gap; return the record with which the log does.

        Raises:
            SourceUnavailable, SourceRefused: as `check`; nothing has changed then but the slot.
        """
        self._whole = Claim.load(log, self._declared.name).snapshot
        return Startup.open(self, log, cancelled)

    def _begin(self, connection: SqlConnection, log: Log, cancelled: Callable[[], bool]) -> SourceRecord:
        slot = catalog.replication_slot(connection, self._declared.slot)
        # One that stands before what the log has would send it once more.
        if slot is None or slot.lost or slot.confirmed_flush < self._known_before.acknowledged:
            return self._begin_fresh(connection, log, cancelled)
        self.owner = slot_binding.claim(log, self.owner, self._declared.name, self._claim(slot.name))
        return self._put(log, self._new_record(slot.confirmed_flush))


class _Staging:
    """Stages what differs, as events at the snapshot's position, numbered through."""

    def __init__(self, log: Log, converter: Converter, index: int) -> None:
        self._log, self.converter = log, converter
        self.index = index

    def stage(self, differences: Iterator[Difference], op_of_new: str) -> None:
        """Stage rows; new ones as inserts, or as rows that a snapshot read."""
        for piece in pieces(self._events(differences, op_of_new)):
            with self._log.transaction() as transaction:
                transaction.next_slice()
                for records in piece:
                    transaction.stage(self.converter.topic, records)
            fault("snapshot.piece-staged")

    def _events(self, differences: Iterator[Difference], op_of_new: str) -> Iterator[pa.RecordBatch]:
        for found in differences:
            op = op_of_new if found.op == "c" else found.op
            yield self.converter.batch(op, found.rows, found.before, self.index)
            self.index += found.rows.num_rows

    def stage_letters(self, letters: Sequence[Batch]) -> None:
        """Stage dead letters."""
        with self._log.transaction() as transaction:
            for batch in letters:
                transaction.next_slice()
                numbers = np.arange(self.index, self.index + batch.num_rows)
                rows, at = batch.rows, batch.ts_us
                numbered = Batch.of(rows, op=batch.op, lsn=batch.lsn, index=numbers, ts_us=at, source=batch.source)
                transaction.stage(f"{self.converter.topic}.dlq", numbered.records)
                self.index += batch.num_rows


class _Dropped(_Staging):
    """Takes what differs, and stages nothing."""

    def stage(self, differences: Iterator[Difference], op_of_new: str) -> None:
        """Let the comparison count what differs."""
        for _ in differences:
            pass

    def stage_letters(self, letters: Sequence[Batch]) -> None:
        """Leave dead letters out."""


def events(log: Log, topic: str) -> Iterator[pa.RecordBatch]:
    """Yield all that a topic holds, in its order; small entries of one schema together."""
    held = log.topics().get(topic)
    offset = held.first if held else 0
    while entries := log.read_topic(topic, offset=offset, limit=_READ_ROWS):
        run: list[pa.RecordBatch] = []
        for entry in entries:
            if run and not run[0].schema.equals(entry.records.schema, check_metadata=True):
                yield pa.concat_batches(run)
                run = []
            run.append(entry.records.slice(max(0, offset - entry.offset)))
            offset = entry.offset + entry.records.num_rows
        yield pa.concat_batches(run)


def known_letters(log: Log, topic: str) -> set[str]:
    """Return the rows of a table that the log has as dead letters, each as `canonical` JSON."""
    found: set[str] = set()
    for records in events(log, topic):
        captured = records.filter(pc.equal(records.column("stage"), "capture"))
        found.update(canonical(captured.column("row")))
    return found


def canonical(rows: pa.Array) -> list[str]:
    """Return JSON objects with their names in order.

    >>> canonical(pa.array(['{"b": 1, "a": null}']))
    ['{"a": null, "b": 1}']
    """
    return [json.dumps(json.loads(text), sort_keys=True) for text in rows.to_pylist() if text is not None]
