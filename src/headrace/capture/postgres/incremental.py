"""Incremental snapshots: rows that are there already, chunk by chunk, while the stream goes on.

    request ──▶ chunk, in a snapshot of its own ──▶ the stream passes what it saw ──▶ rows, but for newer ones ──▶ log

1. From now on the rows of the table are noted that the stream hands out, with the number of their transaction.
2. A chunk is read, in a thread and over connections of its own (`chunks`). Which transactions its snapshot saw is known
   by their numbers, which the stream names, too.
3. The stream goes on until it has handed out all that the snapshot saw: of that nothing comes any more that is older
   than the chunk.
4. Rows of the chunk that a transaction changed or deleted which the snapshot did not see are left out: newer ones are
   in the log. A TRUNCATE leaves all of them out. The others are appended as reads (op ``r``), in the transaction that
   stores how far the snapshots are.

Nothing is written to the database, and no position of the stream is looked for: a commit that was streamed before it
became visible to others is known by its number (`_Unseen`), and a chunk that does not have it is read again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints, Mask
from headrace.batch import OPS, Batch
from headrace.capture.base import Log, Piece, Transaction
from headrace.capture.comparison import coded
from headrace.capture.postgres.catalog import SqlConnection, Table
from headrace.capture.postgres.chunks import Chunk, ChunkReader
from headrace.capture.postgres.decode import Seen, Transactions
from headrace.capture.postgres.signal_channels import SignalChannels
from headrace.capture.postgres.signals import Signal, matching, obeyed, signals_of
from headrace.capture.postgres.snapshot import Converter, SnapshotStale
from headrace.capture.postgres.snapshot_options import MARKER, SnapshotOptions
from headrace.capture.postgres.snapshot_progress import KIND, Progress, Wanted
from headrace.capture.postgres.startup import Declared
from headrace.capture.postgres.table import topic_of
from headrace.errors import SourceError, SourceRefused, near
from headrace.event_log import event
from headrace.faults import fault
from headrace.position import Lsn

logger = logging.getLogger("headrace")

_AGAIN_S = 0.02
_AWAY_S = 1.0
_Batches = Sequence[tuple[str, Batch]]
Reply = Callable[[dict[str, Any]], None]
# A session that waits for its next statement has not committed yet. Others may have, and not be seen by snapshots.
_AT_WORK = """
SELECT backend_xid::text::bigint FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() AND coalesce(state, '') NOT LIKE 'idle in transaction%%'
UNION SELECT transaction::text::bigint FROM pg_prepared_xacts
"""


@dataclass(frozen=True, slots=True)
class _Noted:
    """Rows of a table that came while a chunk of it was read; ``refused``: as dead letters, without their values."""

    topic: str
    numbers: Ints
    batch: Batch
    refused: bool


class _Unseen:
    """Numbers of transactions that were streamed and that nobody knows to be visible to others yet.

    A commit is streamed a moment before a snapshot can see it, or long before where it waits for a standby
    (``synchronous_commit``).
    """

    def __init__(self) -> None:
        self._numbers: list[Ints] = []
        self._visible: Seen | None = None

    def add(self, numbers: Ints) -> None:
        """Note transactions that were streamed."""
        self._numbers.append(numbers)
        if self._visible is not None:
            visible, self._visible = self._visible, None
            self._numbers = [self._left(visible)]

    def visible(self, text: str) -> None:
        """Take note of a snapshot that somebody took. From any thread."""
        self._visible = Seen(text, 0)

    def now(self) -> Ints:
        """Return the numbers."""
        return np.concatenate([np.zeros(0, np.int64), *self._numbers])

    def _left(self, visible: Seen) -> Ints:
        numbers = self.now()
        return numbers[~visible.saw(numbers)]


class IncrementalSnapshots:
    """The incremental snapshots of one source. All methods belong to the thread that polls, but for those that say so.

    Args:
        declared: the source.
        tables: returns the tables that are captured now.
        end: see `ChunkReader`; ``wake``: called from a thread when there is something to do.

    Attributes:
        progress: how far they are; ``asked_at``: where the stream was when rows were asked for that are pending.
        until: an LSN that the stream has to pass; 0 where none.
    """

    def __init__(
        self,
        declared: Declared,
        options: SnapshotOptions,
        *,
        tables: Callable[[], Sequence[Table]],
        end: Callable[[SqlConnection], int],
        wake: Callable[[], None],
    ) -> None:
        self.progress = self._stored = self._storing = Progress()
        self.asked_at = self.until = 0
        self.at = 0
        self._declared, self._options, self._tables, self._wake = declared, options, tables, wake
        self._reader = ChunkReader(declared, options.chunk_rows, self._window, end)
        self._channels = SignalChannels(options.channels, declared.name, wake)
        self._holding = False
        self._unseen = _Unseen()
        self._noting: frozenset[str] = frozenset()
        self._noted: list[_Noted] = []
        self._before: Ints = np.zeros(0, np.int64)
        self._base = self.progress
        self._thread: threading.Thread | None = None
        self._result: Chunk | Exception | None = None
        self._void = False
        self._chunk: Chunk | None = None
        self._not_before = 0.0
        self._asked: list[tuple[tuple[Wanted, ...], Reply]] = []
        self._said = ""
        self._log: Log = None  # type: ignore[assignment]  # set by `load`, before anything else
        self._scanned: dict[str, tuple[int, list[list[pa.Array] | None]]] = {}

    def load(self, log: Log, connection: SqlConnection, *, at: int) -> None:
        """Go on where the log, which ends at an LSN, says that snapshots are; note who is at work on the server."""
        self.asked_at = at
        self._log = log
        self.progress = self._stored = self._storing = Progress.load(log, self._declared.name)
        if any(wanted.first and wanted.since < 0 for wanted in self.progress.queue):
            self.progress = replace(self.progress, queue=tuple(map(self._resumed, self.progress.queue)))
        numbers = [number for (number,) in connection.execute(_AT_WORK).fetchall()]
        self._unseen.add(np.array(numbers, np.int64))

    def listen(self) -> None:
        """Look for signals that come by channels, from now on."""
        self._channels.start(self._stored.channels)

    def again(self) -> None:
        """Want all rows of all tables, from their beginning."""
        if self.progress.begins:
            return
        wanted = tuple(Wanted("start", table.oid, str(table)) for table in self._tables() if table.key)
        kept = tuple(entry for entry in self.progress.queue if entry.request != "start")
        self.progress = replace(self.progress, queue=(*kept, *wanted))

    @property
    def pending(self) -> bool:
        """Return whether rows will come that were asked for. From any thread."""
        return self.progress.due or self._chunk is not None or bool(self._asked) or self._channels.arrived

    @property
    def doing(self) -> str:
        """Return what they do, for people; "" for nothing. From any thread."""
        progress = self.progress
        if not progress.queue:
            return ""
        first, kind = progress.queue[0], "blocking" if progress.queue[0].blocking else "incremental"
        more = f", {len(progress.queue) - 1} more tables after it" if len(progress.queue) > 1 else ""
        about = f" of about {first.estimated:,}" if first.estimated >= first.rows > 0 and not first.where else ""
        paused = "paused " if progress.paused else ""
        return f"{paused}{kind} snapshot of {first.table}: {first.rows:,}{about} rows{more}"

    def _resumed(self, wanted: Wanted) -> Wanted:
        """Return a table of a first snapshot that was killed, as it goes on beside the stream, which has not begun."""
        if not wanted.first or wanted.since >= 0:
            return wanted
        table = next((table for table in self._tables() if table.oid == wanted.oid), None)
        held = self._log.topics().get(self._topic(table)) if table is not None else None
        return replace(wanted, since=held.end if held is not None else 0)

    # --- requests ---

    def request(
        self, patterns: Sequence[str], where: str, surrogate: str, request: str, reply: Reply, *, at: int = 0
    ) -> None:
        """Want the rows of tables, now that the stream is at an LSN; ``reply`` is called when that is in the log.

        Raises:
            SourceRefused: none of the tables is captured, or one cannot be read in chunks.
        """
        tables = self._tables()
        found = matching(patterns, tables)
        names = [str(table) for table in tables]
        if not found:
            raise SourceRefused(
                f"no table that is captured matches {', '.join(patterns)}{near(patterns[0], names)}",
                advice=f"Captured are {', '.join(names[:10])}{', …' if len(names) > 10 else ''}.",
            )
        for table in found:
            if not table.key and not surrogate:
                raise SourceRefused(
                    f"table {table} has no primary key, by which it would be read in chunks",
                    advice="Name a column to read it by: --surrogate-key COLUMN.",
                )
        wanted = tuple(Wanted(request, table.oid, str(table), where, surrogate) for table in found)
        if not self.pending:
            self.asked_at = at
        self.progress = self.progress.with_wanted(wanted)
        self._asked.append((wanted, reply))
        self._say("incremental snapshot of {} begins", wanted)

    def _say(self, text: str, wanted: Sequence[Wanted]) -> None:
        named = [f"{entry.table}{f' WHERE {entry.where}' if entry.where else ''}" for entry in wanted]
        about = event("snapshot_wanted", source=self._declared.name, tables=[entry.table for entry in wanted])
        logger.info("%s", text.format(", ".join(named)), extra=about)

    # --- what the stream hands out ---

    def streamed(self, found: Transactions, batches: _Batches, rejected: _Batches) -> None:
        """Note what the stream has handed out, and obey signals that are in it."""
        self._unseen.add(found.number)
        if self._noting:
            for refused, some in ((False, batches), (True, rejected)):
                for topic, batch in some:
                    if (topic.removesuffix(".dlq") if refused else topic) in self._noting:
                        numbers = found.number[found.lsn.searchsorted(batch.lsn)]
                        self._noted.append(_Noted(topic.removesuffix(".dlq"), numbers, batch, refused))
        if self._options.signals and self._options.obeys_table:
            self._obey_rows(batches)

    def _obey_rows(self, batches: _Batches) -> None:
        table = self._signal_table()
        topic = self._topic(table) if table is not None else ""
        for name, batch in batches:
            inserted = batch.op == OPS["c"]
            if name != topic or not inserted.any():
                continue
            rows = batch.rows.filter(pa.array(inserted))
            for signal, lsn in zip(signals_of(rows), batch.lsn[inserted].tolist(), strict=False):
                self._obey(signal, lsn)

    def _obey_channels(self, at: Lsn) -> None:
        for arrived in self._channels.take():
            for signal in arrived.signals:
                self._obey(signal, int(at))
            channels = {**self.progress.channels, arrived.channel: arrived.mark}
            self.progress = replace(self.progress, channels=channels)

    def _obey(self, signal: Signal, at: int) -> None:
        before, pending = self.progress, self.progress.due or self._chunk is not None or bool(self._asked)
        if not pending:
            self.asked_at = at
        self.progress = obeyed(before, signal, self._tables(), self._declared.name)
        if more := self.progress.queue[len(before.queue) :]:
            self._say("incremental snapshot of {} begins", more)

    def _signal_table(self) -> Table | None:
        return next((table for table in self._tables() if str(table) == self._options.signals), None)

    def _window(self) -> Table | None:
        return self._signal_table() if self._options.windows else None

    def _topic(self, table: Table) -> str:
        return topic_of(self._declared.name, table.label)

    def visible(self, connection: SqlConnection) -> None:
        """Look which transactions are visible by now. From any thread.

        Raises:
            psycopg.Error: the server cannot be asked.
        """
        (text,) = connection.execute("SELECT pg_current_snapshot()::text").fetchone() or ("1:1:",)
        self._unseen.visible(text)

    # --- chunks ---

    @property
    def due(self) -> bool:
        """Return whether `next` may have something."""
        if self.progress is not self._stored or self._chunk is not None or self._result is not None:
            return True
        if self._channels.arrived:
            return True
        return self.progress.due and self._thread is None

    @property
    def holds(self) -> bool:
        """Return whether the stream is held: rows of a blocking snapshot are handed out, and nothing between them."""
        return self._holding and self.progress.blocks

    def next(self, at: Lsn, after: int) -> list[Piece[Lsn]]:
        """Return the rows of a chunk, or a position with which new requests are stored; none where that has to wait.

        Args:
            at: everything committed before this LSN is in the log, or of no interest, and nothing else is in it.
            after: an LSN at which the log has rows that no transaction of the stream has.
        """
        self._take_result()
        self._obey_channels(at)
        if self._holding and not self.progress.blocks:
            self._hold(False)
        if self._chunk is not None:
            chunk = self._chunk
            again = chunk.seen.until <= after or not chunk.seen.saw(self._before).all()
            if not again and at < chunk.seen.until:
                return []
            pieces = [] if again else self._resolved(chunk, at)
            if not pieces:
                self._read_again(chunk)
            return pieces
        if self.progress.due and self._thread is None and time.monotonic() >= self._not_before:
            self._begin()
        return [Piece(position=at)] if self.progress is not self._stored else []

    def _begin(self) -> None:
        """Read the next chunk, in a thread."""
        tables = list(self._tables())
        wanted = {entry.oid for entry in self.progress.queue}
        self._noting = frozenset(self._topic(table) for table in tables if table.oid in wanted)
        self._base = self.progress
        if not self._holding:
            self._noted, self._before = [], self._unseen.now()
        given = (self._base, tables, not self._holding)
        self._thread = threading.Thread(target=self._read, args=given, name="headrace-chunks", daemon=True)
        self._thread.start()

    def _hold(self, holding: bool) -> None:
        """Hold the stream, or let it go on: what comes after that is read in another snapshot."""
        self._holding = holding
        if not holding:
            self._noted = []
            if self._thread is None:
                self._reader.close()

    def _read(self, base: Progress, tables: Sequence[Table], fresh: bool) -> None:
        try:
            self._result = self._reader.read(base, tables, fresh=fresh)
        except Exception as error:
            self._result = error
        self._wake()

    def _take_result(self) -> None:
        """Take what the thread has read; what it could not read is tried again, or left out."""
        result, thread = self._result, self._thread
        if result is None or thread is None:
            return
        thread.join()
        self._thread, self._result = None, None
        void, self._void = self._void, False
        if isinstance(result, Chunk):
            if void:
                self._read_again(result)
                return
            self._chunk = result
            self.until = result.seen.until
            return
        if not isinstance(result, SourceError):
            raise result
        self._holding = False
        stale = isinstance(result, SnapshotStale)
        self._not_before = time.monotonic() + (_AGAIN_S if stale else _AWAY_S)
        if isinstance(result, SourceRefused) and self.progress.queue:
            first = self.progress.queue[0]
            text = f"the snapshot of {first.table} ends: {result.message}"
            about = event("snapshot_skipped", source=self._declared.name, tables=[first.table])
            logger.warning("%s", text, extra=about)
            self.progress = replace(self.progress.done(result.message), window="")
        elif not stale and result.message != self._said:
            self._said = result.message
            text = f"the incremental snapshot is tried again: {result.message}"
            logger.warning("%s", text, extra=event("snapshot_waits", source=self._declared.name))

    def _read_again(self, chunk: Chunk) -> None:
        self._hold(False)
        self._forget()
        self._not_before = time.monotonic() + _AGAIN_S
        if chunk.progress.window != self.progress.window:
            self.progress = replace(self.progress, window=chunk.progress.window)

    def _forget(self) -> None:
        self._chunk, self._noting, self.until = None, frozenset(), 0
        if not self._holding:
            self._noted = []

    def _resolved(self, chunk: Chunk, at: Lsn) -> list[Piece[Lsn]]:
        """Return the rows that are the newest ones, as a piece; none where the chunk has to be read again."""
        progress = chunk.progress.since(self._base, self.progress)
        if progress is None:
            return []
        lsn = int(at) - 1  # behind all rows that are in the log: their commits' records are longer than a byte
        index = progress.index if progress.lsn == lsn else 0
        batches, letters = [], []
        if chunk.table is not None:
            converter = Converter(chunk.table, self._declared.name, lsn=lsn, ts_us=chunk.ts_us)
            rows = []
            for records in chunk.batches:
                converted, dead = converter.convert(records, index)
                index += records.num_rows
                rows.append(converted)
                letters += [(f"{converter.topic}.dlq", dead)] if dead is not None else []
            wanted = chunk.progress.queue[0]
            kept = self._newest(chunk, converter.topic, rows, wanted)
            if kept is None:
                return []
            shown = [Batch(some) if wanted.first else _marked(some, wanted) for some in kept if some.num_rows]
            batches = [(converter.topic, some) for some in shown]
        if chunk.progress.blocks and not progress.blocks:
            self._hold(False)
        self._holding = progress.blocks
        self._forget()
        self.progress = replace(progress, lsn=lsn, index=index)
        self.at = int(at) if batches or letters else self.at
        self._say_ended(chunk)
        return [Piece(batches=tuple(batches), rejected=tuple(letters), position=at)]

    def _say_ended(self, chunk: Chunk) -> None:
        for ended in chunk.ended:
            why = f", left out: {ended.reason}" if ended.reason else ""
            text = f"incremental snapshot of {ended.table} ended, {ended.rows:,} rows{why}"
            about = event("snapshot_ended", source=self._declared.name, tables=[ended.table], rows=ended.rows)
            logger.log(logging.WARNING if ended.reason else logging.INFO, "%s", text, extra=about)

    def _newest(
        self, chunk: Chunk, topic: str, rows: list[pa.RecordBatch], wanted: Wanted
    ) -> list[pa.RecordBatch] | None:
        """Return the rows without those that later transactions changed; None where that cannot be told."""
        later = []
        for noted in self._noted:
            unseen = ~chunk.seen.saw(noted.numbers)
            if noted.topic != topic or not unseen.any():
                continue
            if noted.refused:
                return None  # its values are not known; its next image is
            later.append((noted.batch, unseen))
        if any(int(batch.op[0]) == OPS["t"] for batch, _ in later):
            return []
        olds = [_old_rows(batch, unseen, chunk.identity) for batch, unseen in later]
        gone = _superseded(rows, chunk.identity, olds)
        if wanted.first and gone is not None:
            assert chunk.table is not None
            names = chunk.table.key or chunk.identity
            inserted = _superseded(rows, names, self._inserted(topic, wanted.since, names))
            gone = None if inserted is None else gone | inserted
        if gone is None:
            return None
        keep = ~gone
        starts = np.cumsum([0, *(some.num_rows for some in rows)])
        return [some.filter(pa.array(keep[starts[i] : starts[i + 1]])) for i, some in enumerate(rows)]

    def _inserted(self, topic: str, since: int, names: Sequence[str]) -> list[list[pa.Array] | None]:
        """Return the keys of rows that were inserted since a first snapshot began: the log has them."""
        offset, found = self._scanned.get(topic, (since, []))
        while topic in self._log.topics() and (entries := self._log.read_topic(topic, offset=offset)):
            for entry in entries:
                batch = Batch(entry.records)
                offset = entry.offset + batch.num_rows
                inserted = batch.op == OPS["c"]
                if inserted.any():
                    some = batch.records.filter(pa.array(inserted))
                    there = set(names) <= set(some.schema.names)
                    found.append([some.column(name) for name in names] if there else None)
        self._scanned[topic] = (offset, found)
        return found

    # --- storing ---

    def store(self, txn: Transaction) -> None:
        """Put how far they are into the transaction that appends what was handed out."""
        if self.progress is not self._stored:
            txn.put(KIND, self._declared.name, self.progress.to_json())
        self._storing = self.progress

    def stored(self) -> None:
        """Note that what was being stored is durable."""
        if self._storing is self._stored:
            return
        fault("chunk.stored")
        self._stored = self._storing
        self._channels.stored(self._stored.channels)
        asked, self._asked = self._asked, []
        for wanted, reply in asked:
            reply({"tables": [entry.table for entry in wanted], "request": wanted[0].request})

    def undo(self) -> None:
        """Forget what was handed out and not stored: it comes again."""
        self._holding = False
        self._forget()
        self._channels.undo()
        self._void = self._thread is not None
        self.progress = self._stored
        for wanted, _ in self._asked:
            self.progress = self.progress.with_wanted(wanted)

    def stop(self) -> None:
        """End what is being read."""
        self._channels.close()
        thread = self._thread
        if thread is not None:
            self._reader.cancel()
            thread.join(5.0)
        if thread is None or not thread.is_alive():
            self._reader.close()


def _old_rows(batch: Batch, chosen: Mask, names: Sequence[str]) -> list[pa.Array] | None:
    """Return the columns by which the old rows of updates and deletes are told; None where the batch has not all.

    Where an update does not say what its row was, it was what the new one is.
    """
    columns = set(batch.records.schema.names)
    if not set(names) <= columns:
        return None
    changed = chosen & ((batch.op == OPS["u"]) | (batch.op == OPS["d"]))
    some = batch.records.filter(pa.array(changed))
    found = [some.column(name) for name in names]
    if "__before" not in columns:
        return found
    before = some.column("__before")
    fields = {before.type.field(i).name: part for i, part in enumerate(before.flatten())}
    if not set(names) <= fields.keys():
        return None
    given = before.is_valid()
    return [old_or_new(given, fields[name], own) for name, own in zip(names, found, strict=True)]


def old_or_new(given: pa.Array, old: pa.Array, new: pa.Array) -> pa.Array:
    """Return the old value where it is given, else the new one."""
    n = len(new)
    at = np.where(np.asarray(given), np.arange(n), np.arange(n) + n)
    return pa.concat_arrays([old, new]).take(pa.array(at))


def _superseded(
    rows: Sequence[pa.RecordBatch], names: Sequence[str], olds: Sequence[list[pa.Array] | None]
) -> Mask | None:
    """Return which rows were changed later: as many of equal ones as there are old rows equal to them.

    None where they cannot be compared.

    >>> rows = pa.record_batch({"id": [1, 2, 2, 3]})
    >>> _superseded([rows], ["id"], [[pa.array([2, 7])]]).tolist()
    [False, True, False, False]
    """
    n = sum(some.num_rows for some in rows)
    own = [[some.column(name) for some in rows] for name in names]
    if not olds:
        return np.zeros(n, bool)
    if any(old is None or [c.type for c in old] != [c[0].type for c in own] for old in olds):
        return None
    together = [
        pa.concat_arrays([*part, *(old[place] for old in olds if old is not None)]) for place, part in enumerate(own)
    ]
    codes = coded(together)
    mine, theirs = codes[:n], codes[n:]
    times = np.bincount(theirs, minlength=int(codes.max(initial=-1)) + 1)
    order = np.argsort(mine, kind="stable")
    begins = np.flatnonzero(np.diff(mine[order], prepend=-1))
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n) - np.repeat(begins, np.diff([*begins, n]))
    found: Mask = rank < times[mine]
    return found


def _marked(rows: pa.RecordBatch, wanted: Wanted) -> Batch:
    metadata: Mapping[bytes, bytes] = rows.schema.metadata or {}
    marker = f"blocking {wanted.request}" if wanted.blocking else "incremental"
    return Batch(rows.replace_schema_metadata({**metadata, MARKER: marker.encode()}))
