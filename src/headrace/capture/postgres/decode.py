"""PostgreSQL's logical replication stream (`pgoutput`) as Arrow batches: pure, no socket, no SQL.

    messages ──▶ Frame ──▶ Transactions ──▶ rows by table ──▶ Cells ──▶ Arrow columns ──▶ Piece
    (messages.py)                (here)             (cells.py)   (values.py)      (table.py)

Everything is done for all messages of a chunk at once; Python loops run over columns, tables and pieces only.

Source: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html (proto_version 1, streaming
off, binary true or false)
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints, Mask
from headrace.batch import ORIGIN as ORIGIN_FIELD
from headrace.batch import Batch
from headrace.capture.base import Piece
from headrace.capture.postgres import logical_messages
from headrace.capture.postgres.logical_messages import LogicalMessages
from headrace.capture.postgres.messages import (
    BEGIN,
    COMMIT,
    HEADER,
    IS_ROW,
    MESSAGE,
    ORIGIN,
    RELATION,
    TRUNCATE,
    UNIX_2000_US,
    Frame,
    Longs,
    Relation,
    relation,
)
from headrace.capture.postgres.table import Events, NeedsTextMode, Table, rows, rows_of_alike, table, truncates
from headrace.capture.postgres.types import Vectors
from headrace.errors import DecodeError
from headrace.position import Lsn, format_lsn

__all__ = ["Decoder", "HistoryDiffers", "Known", "NeedsTextMode", "Resent", "Seen", "Stranger", "UnknownRelation"]

_NUMBERS = 1 << 32
_MESSAGES = 0  # no relation has this OID
_NONE: Ints = np.zeros(0, np.int64)
_SNAPSHOT = re.compile(r"(\d+):(\d+):((?:\d+,?)*)")
_History = list[tuple[int, Table]]
MAX_ROWS = 65_536
MAX_BYTES = 32 << 20
# Offsets of Arrow strings have 31 bits: a larger transaction is cut wherever this is reached.
_HARD_BYTES = 1 << 30
_ALONE = 1024  # rows of a table: so many cost much more than their batch


@dataclass(frozen=True, slots=True)
class Known:
    """A table that is captured, known by its OID.

    Attributes:
        label: schema and name that its topic has.
        key: its key's columns as the catalog has them, None to take those of the replica identity.
        columns: its columns as the catalog has them, by whose places a key is found again that is called otherwise.
        vectors: types whose values are lists.
    """

    label: tuple[str, str]
    key: tuple[str, ...] | None = None
    columns: tuple[str, ...] = ()
    vectors: Vectors = ()

    def key_of(self, relation: Relation, before: Table | None) -> tuple[str, ...] | None:
        """Return the key as this relation has it: a column may have been renamed before or after the catalog was read.

        Args:
            before: the same table as the last Relation message described it.
        """
        if self.key is None:
            return None
        flagged = tuple(column.name for column in relation.columns if column.key)
        if relation.identity == "d" and flagged:
            return self.key if set(flagged) == set(self.key) else flagged
        names = tuple(column.name for column in relation.columns)
        were = [(before.key, tuple(column.name for column in before.relation.columns))] if before else []
        for key, columns in [*were, (self.key, self.columns)]:
            found = tuple(name if name in names else _renamed(name, columns, names) for name in key)
            if "" not in found:
                return found
        return flagged  # all columns, with REPLICA IDENTITY FULL: no name of the key's is among them


def _renamed(name: str, columns: Sequence[str], names: Sequence[str]) -> str:
    """Return what a column is called among other columns of its table: it lies between the same ones; "" if not known.

    >>> _renamed("id", ("id", "x", "y"), ("number", "x", "y", "z"))
    'number'
    """
    if name not in columns:
        return ""
    place = columns.index(name)
    left = max((i for i in range(place) if columns[i] in names), default=-1)
    right = min((i for i in range(place, len(columns)) if columns[i] in names), default=len(columns))
    start = names.index(columns[left]) + 1 if left >= 0 else 0
    end = names.index(columns[right]) if right < len(columns) else len(names)
    return names[start + place - left - 1] if end - start == right - left - 1 else ""


class Stranger(Enum):
    """What is done with rows of a table that is not captured."""

    REFUSED = "refused"
    LEFT_OUT = "left out"
    AWAITED = "awaited"  # left out until it joins


class UnknownRelation(DecodeError):
    """Rows of a table came that is not captured, through a publication in which there should be no other."""

    def __init__(self, relation: Relation, lsn: int) -> None:
        super().__init__(
            f"rows of table {relation.schema}.{relation.table} (relation {relation.oid}), committed at "
            f"{format_lsn(lsn)}, came, and the log does not have this table"
        )
        self.relation = relation


class HistoryDiffers(DecodeError):
    """A server sends other things once more than it sent before: it is not the server that it was."""


@dataclass(slots=True)
class Resent:
    """Checks what a server sends once more, from where its slot stands to where the log ends, against the log.

    A server that was restored from an older copy has another history there: its slot stands where it stood in the
    copy, so the last transaction that the log has does not come again, or others come after it.

    Attributes:
        since: where the slot stood; transactions whose commit LSN is below are not sent.
        until: where the log ends.
        last: commit LSN and time of the log's last transaction with rows, (0, 0) when there was none.
        done: nothing below ``until`` will come any more, and the last transaction has come where it had to.

    >>> check = Resent(since=10, until=40, last=(20, 5))
    >>> check.transaction(20, 5); check.passed(40); check.done
    True
    """

    since: int
    until: int
    last: tuple[int, int]
    done: bool = False
    _awaits: bool = field(init=False)

    def __post_init__(self) -> None:
        self._awaits = self.last[0] >= self.since

    def transaction(self, lsn: int, ts_us: int) -> None:
        """Note that a transaction with rows of captured tables has come, which ends below ``until``.

        Raises:
            HistoryDiffers: the log should have it and does not.
        """
        if (lsn, ts_us) == self.last:
            self._awaits = False
        elif lsn >= self.last[0]:
            raise HistoryDiffers(
                f"a transaction committed at {format_lsn(lsn)} has rows, and the log, which has everything committed "
                f"before {format_lsn(self.until)}, does not have it"
            )

    def passed(self, lsn: int) -> None:
        """Note that everything committed below an LSN has come.

        Raises:
            HistoryDiffers: the log's last transaction should have come and has not.
        """
        if self._awaits and lsn > self.last[0]:
            raise HistoryDiffers(
                f"the log's last transaction, committed at {format_lsn(self.last[0])}, is not in the server's history "
                f"(its slot stood at {format_lsn(self.since)})"
            )
        self.done = self.done or lsn >= self.until


@dataclass(frozen=True, slots=True)
class Seen:
    """The transactions that a table's own snapshot saw.

    Attributes:
        text: the snapshot as ``pg_current_snapshot()`` prints it: first that was at work, first that had not begun,
            and those at work between.
        until: an LSN: of what committed there or later it saw nothing.
        since: an LSN: what committed before lies in the log already, behind its rows.
    """

    text: str
    until: int
    since: int = 0

    def saw(self, numbers: Ints) -> Mask:
        """Return which transactions it saw, by the 32 bits of their numbers that the stream has.

        >>> Seen("10:14:11,12", 0).saw(np.array([9, 10, 11, 13, 14])).tolist()
        [True, True, False, True, False]
        >>> Seen(f"{2**32 - 2}:{2**32 + 2}:", 0).saw(np.array([2**32 - 3, 1, 2])).tolist()
        [True, True, False]
        """
        match = _SNAPSHOT.fullmatch(self.text)
        assert match is not None, self.text
        limit = int(match[2])
        running = [int(number) for number in match[3].split(",") if number]
        # The nearest number with these 32 bits: what the stream sends is never half of all numbers away.
        away = (numbers.astype(np.int64) - limit % _NUMBERS + _NUMBERS // 2) % _NUMBERS - _NUMBERS // 2
        whole = limit + away
        return np.asarray((away < 0) & ~np.isin(whole, running))


@dataclass(frozen=True, slots=True)
class _Segment:
    """Consecutive events of one topic that make one batch."""

    table: Table | LogicalMessages
    rows: Ints
    truncate: bool


class Decoder:
    """Turns XLogData messages into pieces, keeping the raw tail of a transaction that has not ended.

    After a `DecodeError`, and whenever the connection is lost, call `reset` before feeding the new connection's
    messages.

    Args:
        prefix: first part of topic names, and the source's name in batches.
        known: the tables that are captured, by OID; None for all that come, each called as it is.
        meet: says what to do with a table that nobody knows, when its Relation message comes: with the LSN of its
            transaction's commit.
        describe: says what the catalog knows of a table beyond its Relation message, whenever one comes.
        seen: by OID, what the snapshots of tables saw that joined the capture.
        messages: what `pg_logical_emit_message` writes is captured; None to read over it.
        tells_changes: rows say where their change lies in the WAL, in which transaction, and where that came from.
        listener: told of all transactions, with the batches and dead letters that are made of them.
        skip_below: transactions whose commit LSN is below are stored already and are left out.
        max_open_rows, max_open_bytes: an unfinished transaction beyond these is handed out as an open piece; complete
            transactions are gathered in pieces of about this size. (A larger one that has come whole is one piece,
            up to 1 GB.)

    >>> decoder = Decoder("shop")
    >>> decoder.feed([])
    []
    """

    def __init__(
        self,
        prefix: str,
        *,
        known: dict[int, Known] | None = None,
        meet: Callable[[Relation, int], Known | Stranger] = lambda _relation, _lsn: Stranger.REFUSED,
        describe: Callable[[Relation], str] | None = None,
        seen: Mapping[int, Seen] | None = None,
        messages: LogicalMessages | None = None,
        tells_changes: bool = False,
        listener: Listener | None = None,
        skip_below: int = 0,
        max_open_rows: int = MAX_ROWS,
        max_open_bytes: int = MAX_BYTES,
    ) -> None:
        self.prefix = prefix
        self.known = known
        self.meet = meet
        self.describe = describe
        self.messages = messages
        self.tells_changes = tells_changes
        self.skip_below = skip_below
        self.resent: Resent | None = None
        self.max_open_rows, self.max_open_bytes = max_open_rows, max_open_bytes
        self.seen = dict(seen or {})
        self.listener = listener
        self._awaited: dict[int, set[int]] = {}
        self._prepared: dict[Relation, Table] = {}
        self.reset()

    def reset(self) -> None:
        """Forget an unfinished transaction and the relations: the next message is a new connection's first."""
        self._number = 0
        self._tail: list[Frame] = []
        self._tail_rows = self._tail_bytes = 0
        self._unfinished: Unfinished | None = None
        self._after = 0
        self._tables: dict[int, Table] = {}
        self._others: dict[int, Relation] = {}
        self._strange: set[int] = set()

    def resume(self, until: int, resent: Resent | None) -> None:
        """Begin where the slot stands: leave out what ends below ``until``, and check it."""
        self.skip_below = until
        self.resent = resent

    def feed(self, messages: Sequence[bytes | memoryview] | Frame) -> list[Piece[Lsn]]:
        """Decode whole transactions of what has come so far; see `Piece` for what is made of an unfinished one.

        Raises:
            DecodeError: the bytes are not what the protocol allows; nothing of this call was handed out.
            UnknownRelation: rows of a table came that is not captured and not left out.
            HistoryDiffers: the server sends another history than it sent before; see `resume`.
            NeedsTextMode: a type's binary form is not decoded.
        """
        if not len(messages):
            return []
        frame = messages if isinstance(messages, Frame) else Frame.of(messages, self._number)
        frame.number = self._number
        self._number += len(messages)
        stop = max(frame.kinds.rfind(b"C"), int(self._outside(frame).max(initial=-1))) + 1
        pieces: list[Piece[Lsn]] = []
        if stop:
            done = Frame.join([*self._tail, frame.part(0, stop)])
            self._tail, self._tail_rows, self._tail_bytes = [], 0, 0
            pieces = self._pieces(done)
            frame = frame.part(stop, len(frame))
        if len(frame):
            self._tail.append(frame)
            self._tail_rows += len(frame)
            self._tail_bytes += frame.size
            pieces += self._overflow()
        return pieces

    def _overflow(self) -> list[Piece[Lsn]]:
        """Hand out the tail when it is too large, or when it is no transaction's."""
        large = self._tail_rows > self.max_open_rows or self._tail_bytes > self.max_open_bytes
        if not large and (self._unfinished or any(b"B" in frame.kinds for frame in self._tail)):
            return []
        tail = Frame.join(self._tail)
        self._tail, self._tail_rows, self._tail_bytes = [], 0, 0
        return self._pieces(tail)

    def _pieces(self, frame: Frame) -> list[Piece[Lsn]]:
        made = (self._piece(frame.part(first, stop)) for first, stop in self._cuts(frame))
        return [piece for piece in made if piece is not None]

    def _cuts(self, frame: Frame) -> Iterator[tuple[int, int]]:
        """Yield where to cut a frame: at the COMMIT of a transaction begun before, then at COMMITs, not too far apart.

        Each cut is decoded before the next is asked for: whether a transaction is unfinished is known by then.
        """
        n = len(frame)
        if not self._unfinished and n <= self.max_open_rows and frame.size <= self.max_open_bytes:
            yield 0, n
            return
        commits = np.union1d(np.flatnonzero(frame.kind == COMMIT), self._outside(frame)) + 1
        rows_until = np.cumsum(IS_ROW[frame.kind])
        first = 0
        while first < n:
            at = int(frame.start[first])
            taken = int(rows_until[first - 1]) if first else 0
            fits = min(
                int(np.searchsorted(rows_until, taken + self.max_open_rows, "right")),
                int(np.searchsorted(frame.end, at + self.max_open_bytes, "right")),
            )
            following = int(np.searchsorted(commits, first, "right"))
            last = following if self._unfinished else max(int(np.searchsorted(commits, fits, "right")) - 1, following)
            stop = int(commits[last]) if last < commits.size else n
            if int(frame.end[stop - 1]) - at > _HARD_BYTES:
                stop = max(first + 1, int(np.searchsorted(frame.end, at + _HARD_BYTES, "right")))
            yield first, stop
            first = stop

    def _piece(self, frame: Frame) -> Piece[Lsn] | None:
        """Decode one cut; None when there is nothing to say of it."""
        before = self._unfinished
        found = transactions(frame, before, self._outside(frame))
        changes = self._relations(frame, found)
        message, relation_ids = _row_messages(frame, with_messages=self.messages is not None)
        counts = found.of_rows(frame, message)
        events = _events(found, message, counts)
        origins = Origins.of(frame, before) if self.tells_changes else _NO_ORIGINS
        if self.tells_changes:
            events = origins.told(found, self._with_changes(found, events, counts), counts)
        self._unfinished = None
        if len(found) > found.end_lsn.size:
            last = len(found) - 1
            next_index = int(found.base[last]) + int(counts[last])
            self._unfinished = Unfinished(
                int(found.lsn[last]),
                int(found.ts_us[last]),
                next_index,
                int(found.number[last]),
                origins.last(int(found.first[last])),
            )
        stored = int(found.lsn.searchsorted(np.uint64(self.skip_below))) if self.skip_below else 0
        taken_in = self._taken_in(found, counts, relation_ids)
        if self.resent:
            self._check_resent(found, counts, relation_ids, stored, taken_in)
        if stored == len(found):
            if self.listener is not None:
                self.listener(found, (), ())
            return None
        if taken_in is not None:
            taken_in[: int(counts[:stored].sum())] = True
            events, relation_ids = events.take(~taken_in), relation_ids[~taken_in]
        elif stored:
            first = int(counts[:stored].sum())
            events, relation_ids = events.take(slice(first, None)), relation_ids[first:]
        batches, rejected = self._batches(frame, events, relation_ids, changes)
        if self.listener is not None:
            self.listener(found, batches, rejected)
        ended = found.end_lsn.size
        return Piece(
            batches=batches,
            rejected=rejected,
            position=Lsn(found.end_lsn[-1]) if ended > stored else None,
            continued=before is not None,
            open=self._unfinished is not None,
        )

    def _outside(self, frame: Frame) -> Ints:
        """Return which messages are read as transactions of their own."""
        return _NONE if self.messages is None else logical_messages.outside(frame)

    def _with_changes(self, found: Transactions, events: Events, counts: Ints) -> Events:
        """Return events with their transactions' numbers, and where the commit before each transaction ended."""
        known = self._after or self.skip_below
        before = np.concatenate([np.array([known], np.uint64), found.end_lsn])
        if found.end_lsn.size:
            self._after = int(found.end_lsn[-1])
        after = before[: len(found)].repeat(counts)
        return dataclasses.replace(events, number=found.number.repeat(counts), after=after)

    def await_join(self, oid: int) -> None:
        """Leave out rows of a table that is being published, until it joins."""
        # From any thread: who goes through it keeps the old one.
        self._awaited = {oid: set(), **self._awaited}

    def leave_out(self, oid: int) -> None:
        """Leave out rows of a table that will not join. From any thread."""
        self._awaited = {other: numbers for other, numbers in self._awaited.items() if other != oid}

    def may_join(self, oid: int, seen: Seen) -> bool:
        """Return whether a snapshot saw all transactions whose rows of a table were left out."""
        numbers = np.fromiter(self._awaited.get(oid, ()), np.int64)
        return bool(seen.saw(numbers).all())

    def join(self, oid: int, known: Known, seen: Seen) -> None:
        """Take in rows of a table from now on, but for what its snapshot saw."""
        assert self.known is not None
        self.known[oid] = known
        self.seen[oid] = seen
        self._awaited = {other: numbers for other, numbers in self._awaited.items() if other != oid}
        described = self._others.pop(oid, None)
        if described is not None:
            self._tables[oid] = self._prepare(described)

    def unjoin(self, oid: int) -> None:
        """Forget a table whose rows did not come to be stored."""
        assert self.known is not None
        self.known.pop(oid, None)
        self.seen.pop(oid, None)
        self._tables.pop(oid, None)
        self.await_join(oid)

    def _taken_in(self, found: Transactions, counts: Ints, relation_ids: Longs) -> Mask | None:
        """Return which rows are left out, as their table's snapshot has them or will have them; None for none."""
        until = max((max(seen.until, seen.since) for seen in self.seen.values()), default=0)
        if not len(found) or (not self._awaited and (not until or int(found.lsn[0]) >= until)):
            return None
        numbers = found.number.repeat(counts)
        left_out = np.zeros(relation_ids.size, bool)
        lsn = found.lsn.repeat(counts)
        for oid, seen in self.seen.items():
            mine = relation_ids == oid
            left_out |= mine & (lsn < seen.since)
            if seen.until:
                left_out |= mine & (lsn < seen.until) & seen.saw(numbers)
        for oid, awaited in self._awaited.items():
            mine = relation_ids == oid
            awaited.update(numbers[mine].tolist())
            left_out |= mine
        return left_out if left_out.any() else None

    def _check_resent(
        self, found: Transactions, counts: Ints, relation_ids: Longs, stored: int, taken_in: Mask | None
    ) -> None:
        """See that transactions that the log has are those that it has."""
        assert self.resent is not None
        ours = np.ones(relation_ids.size, bool)
        if self.known is not None:
            ours = np.isin(relation_ids, np.fromiter(self.known, np.int64, len(self.known)))
        if taken_in is not None:
            ours &= ~taken_in
        ends = counts.cumsum()
        for number in range(stored):
            stop = int(ends[number])
            lsn, ts_us = int(found.lsn[number]), int(found.ts_us[number])
            self.resent.passed(lsn)
            if ours[stop - int(counts[number]) : stop].any():
                self.resent.transaction(lsn, ts_us)
        if stored < len(found):
            self.resent.passed(int(found.lsn[stored]))
            self.resent = None

    def passed(self, lsn: int) -> None:
        """Note that everything committed below an LSN has been fed.

        Raises:
            HistoryDiffers: see `resume`.
        """
        if self.resent:
            self.resent.passed(lsn)
            if self.resent.done:
                self.resent = None

    def _relations(self, frame: Frame, found: Transactions) -> dict[int, _History]:
        """Return for each relation that is described here its tables, and from which message on they hold."""
        changes: dict[int, _History] = {}
        if b"R" not in frame.kinds:
            return changes
        for message in (frame.kind == RELATION).nonzero()[0].tolist():
            described = relation(frame, message)
            oid = described.oid
            if self.known is not None and oid not in self.known:
                transaction = min(int(found.last.searchsorted(message)), len(found) - 1)
                if transaction < 0:
                    raise frame.error(message, HEADER, "a Relation message outside of a transaction")
                if not self._met(described, int(found.lsn[transaction])):
                    continue
            new = self._prepare(described)
            old = self._tables.get(oid)
            if old is not new:
                changes.setdefault(oid, [(-1, old)] if old else []).append((message, new))
                self._tables[oid] = new
        return changes

    def _met(self, described: Relation, lsn: int) -> bool:
        """Decide of a table that nobody knows; return whether it is captured from here on."""
        oid = described.oid
        self._others[oid] = described
        self._strange.discard(oid)
        if oid in self._awaited:
            return False
        what = self.meet(described, lsn)
        if isinstance(what, Known):
            assert self.known is not None
            self.known[oid] = what
            self._others.pop(oid)
            return True
        if what is Stranger.AWAITED:
            self.await_join(oid)
        elif what is Stranger.REFUSED:
            self._strange.add(oid)
        return False

    def _prepare(self, described: Relation) -> Table:
        facts = self.describe(described) if self.describe is not None else ""
        known = self._prepared.get(described)
        if known is None or known.facts != facts:
            if len(self._prepared) > 2 * len(self._tables) + 64:
                self._prepared = {known.relation: known for known in self._tables.values()}
            ours = self.known[described.oid] if self.known is not None else None
            key = ours.key_of(described, self._tables.get(described.oid)) if ours else None
            label, vectors = (ours.label, ours.vectors) if ours else (None, ())
            known = table(described, self.prefix, key, label, facts, vectors)
            self._prepared[described] = known
        return known

    def _batches(
        self, frame: Frame, events: Events, relation_ids: Longs, changes: dict[int, _History]
    ) -> tuple[tuple[tuple[str, Batch], ...], tuple[tuple[str, Batch], ...]]:
        """Return the batches of captured tables by topic, and the dead letters."""
        batches, rejected = [], []
        segments = self._segments(frame, events, relation_ids, changes)
        alike = _alike(frame, events, segments) if len(segments) > 1 else {}
        for number, segment in enumerate(segments):
            if number in alike:
                batches.append((segment.table.topic, alike[number]))
                continue
            own = events if segment.rows.size == events.message.size else events.take(segment.rows)
            if isinstance(segment.table, LogicalMessages):
                if (told := segment.table.batch(frame, own)) is not None:
                    batches.append((segment.table.topic, told))
                continue
            if segment.truncate:
                batches.append((segment.table.topic, truncates(frame, segment.table, own)))
                continue
            batch, letters = rows(frame, segment.table, own)
            if batch.num_rows:
                batches.append((segment.table.topic, batch))
            if letters is not None:
                rejected.append((f"{segment.table.topic}.dlq", letters))
        return tuple(batches), tuple(rejected)

    def _segments(
        self, frame: Frame, events: Events, relation_ids: Longs, changes: dict[int, _History]
    ) -> list[_Segment]:
        """Cut events by topic where the table's schema changes and around truncates; ordered by their first rows."""
        found: list[_Segment] = []
        message = events.message
        for own in _by_relation(relation_ids):
            oid = int(relation_ids[own[0]])
            if oid == _MESSAGES and self.messages is not None and frame.kind[message[own[0]]] == MESSAGE:
                found.append(_Segment(self.messages, own, False))
                continue
            if oid in self._others:
                if oid in self._strange:
                    raise UnknownRelation(self._others[oid], int(events.lsn[own[0]]))
                continue
            history = changes.get(oid) or ([(-1, self._tables[oid])] if oid in self._tables else [])
            if not history or message[own[0]] < history[0][0]:
                what = f"no Relation message came for relation {oid}"
                raise frame.error(int(message[own[0]]), HEADER + 1, what)
            since = [at for at, _ in history[1:]]
            stops = [*np.searchsorted(message[own], since).tolist(), own.size] if since else [own.size]
            first = 0
            for (_, described), stop in zip(history, stops, strict=True):
                found += _around_truncates(frame, message, described, own[first:stop])
                first = stop
        found.sort(key=lambda segment: int(segment.rows[0]))
        return _untangled(found)


def _row_messages(frame: Frame, *, with_messages: bool) -> tuple[Ints, Longs]:
    """Return message and relation id of every row event; a Truncate is one event for each of its relations.

    Args:
        with_messages: what `pg_logical_emit_message` wrote is an event too, of relation 0.
    """
    with_messages = with_messages and b"M" in frame.kinds
    is_row = IS_ROW[frame.kind]
    message = (is_row | (frame.kind == MESSAGE) if with_messages else is_row).nonzero()[0]
    ids = frame.gather(frame.start[message] + (HEADER + 1), ">u4")
    if with_messages:
        ids[frame.kind[message] == MESSAGE] = _MESSAGES
    if b"T" not in frame.kinds:
        return message, ids
    truncate = frame.kind[message] == TRUNCATE
    named = {int(at): _truncated(frame, int(message[at])) for at in np.flatnonzero(truncate)}
    repeats = np.ones(message.size, np.int64)
    repeats[list(named)] = [ids_of.size for ids_of in named.values()]
    ids = np.repeat(ids, repeats)
    message = np.repeat(message, repeats)
    ids[frame.kind[message] == TRUNCATE] = np.concatenate(list(named.values()))
    return message, ids


def _truncated(frame: Frame, message: int) -> Longs:
    """Return relations of a Truncate message: int32 count, int8 options, int32 for each."""
    start, end = int(frame.start[message]) + HEADER, int(frame.end[message])
    count = int.from_bytes(frame.data[start + 1 : start + 5], "big")
    if end - start != 6 + 4 * count:
        raise frame.error(message, HEADER + 1, f"a Truncate of {count} relations in {end - start} bytes")
    ids: Longs = np.frombuffer(frame.data, ">u4", count, start + 6).astype(np.uint32)
    return ids


def _events(found: Transactions, message: Ints, counts: Ints) -> Events:
    first = counts.cumsum() - counts
    index = np.arange(message.size) - (first - found.base).repeat(counts)
    return Events(message, found.lsn.repeat(counts), index, found.ts_us.repeat(counts))


def _by_relation(relation_ids: Longs) -> list[Ints]:
    """Return the rows of each relation, in the order of their first ones."""
    if not relation_ids.size:
        return []
    lowest = relation_ids.min()
    keys = relation_ids - lowest
    highest = int(keys.max())
    if not highest:
        return [np.arange(relation_ids.size)]
    # NumPy sorts 16 bits by radix, ten times as fast as more; OIDs of tables are seldom further apart.
    order = (keys.astype(np.uint16) if highest < 1 << 16 else keys).argsort(kind="stable")
    found = np.split(order, np.flatnonzero(np.diff(relation_ids[order])) + 1)
    found.sort(key=lambda own: int(own[0]))
    return found


def _alike(frame: Frame, events: Events, segments: Sequence[_Segment]) -> dict[int, Batch]:
    """Return batches of small segments whose tables have the same columns, by their numbers."""
    numbers: dict[object, list[int]] = {}
    parts: dict[object, list[tuple[Table, Ints]]] = {}
    for number, segment in enumerate(segments):
        if isinstance(segment.table, Table) and not segment.truncate and segment.rows.size < _ALONE:
            numbers.setdefault(segment.table.layout, []).append(number)
            parts.setdefault(segment.table.layout, []).append((segment.table, segment.rows))
    found: dict[int, Batch] = {}
    for layout, own in numbers.items():
        batches = rows_of_alike(frame, parts[layout], events) if len(own) > 1 else None
        found |= zip(own, batches or (), strict=batches is not None)
    return found


def _around_truncates(frame: Frame, message: Ints, described: Table, own: Ints) -> Iterator[_Segment]:
    if not own.size:
        return
    if b"T" not in frame.kinds:
        yield _Segment(described, own, False)
        return
    truncate = frame.kind[message[own]] == TRUNCATE
    for part in np.split(own, np.flatnonzero(np.diff(truncate)) + 1):
        yield _Segment(described, part, bool(frame.kind[message[part[0]]] == TRUNCATE))


def _untangled(segments: list[_Segment]) -> list[_Segment]:
    """Cut where two tables have one topic name («a b» and «a_b»), so that the topic stays in commit order."""
    if len(segments) <= 1:
        return segments
    by_topic: dict[str, list[_Segment]] = {}
    for segment in segments:
        by_topic.setdefault(segment.table.topic, []).append(segment)
    if len(by_topic) == len(segments):
        return segments
    result: list[_Segment] = []
    for own in by_topic.values():
        if all(segment.rows[-1] < following.rows[0] for segment, following in pairwise(own)):
            result += own
            continue
        rows_of = np.concatenate([segment.rows for segment in own])
        owner = np.repeat(np.arange(len(own)), [segment.rows.size for segment in own])
        order = np.argsort(rows_of, kind="stable")
        for run in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
            whose = own[int(owner[run[0]])]
            result.append(_Segment(whose.table, rows_of[run], whose.truncate))
    result.sort(key=lambda segment: int(segment.rows[0]))
    return result


# --- which transaction each row event belongs to: Begin and Commit, read as vectors ---
#
# Begin: int64 final LSN (the commit record's), int64 commit time, int32 xid. Commit: int8 flags, int64 commit LSN,
# int64 end LSN, int64 commit time. (https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html)

_BEGIN, _COMMIT = struct.Struct(">QqI"), struct.Struct(">QQ")
_BEGIN_BYTES, _COMMIT_BYTES = HEADER + 21, HEADER + 26


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A transaction whose first rows were handed out before its COMMIT came."""

    lsn: int
    ts_us: int
    next_index: int
    number: int
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Transactions:
    """Transactions of a frame in commit order; the last may lack its COMMIT.

    ``first`` and ``last`` are message indexes of BEGIN (-1 when it was in an earlier piece) and COMMIT (the frame's
    length when it is yet to come); ``base`` is the index of the first row here in its transaction; ``number`` is the
    transaction's, modulo 2^32.
    """

    first: Ints
    last: Ints
    lsn: Longs
    ts_us: Ints
    base: Ints
    end_lsn: Longs
    number: Ints

    def __len__(self) -> int:
        return self.first.size

    def of_rows(self, frame: Frame, rows: Ints) -> Ints:
        """Return how many of these row messages each transaction has; a row outside of them is an error."""
        counts: Ints = rows.searchsorted(self.last) - rows.searchsorted(self.first)
        if int(counts.sum()) != rows.size:
            inside = np.zeros(len(frame), bool)
            for first, last in zip(self.first, self.last, strict=True):
                inside[max(first, 0) : last] = True
            raise frame.error(int(rows[~inside[rows]][0]), HEADER, "a row outside of a transaction")
        return counts


# Origin: int64 LSN of the commit there, string name. It comes behind BEGIN, and the protocol allows several.

Origin = tuple[str, int]
_ORIGIN_BYTES = HEADER + 9  # and the name


@dataclass(frozen=True, slots=True)
class Origins:
    """The Origin messages of a frame, and before them the one that holds in the transaction that goes on in it.

    Attributes:
        message: their indexes in the frame; -1 for the one before.
        named: name and LSN of each.
    """

    message: Ints
    named: Sequence[Origin]

    @classmethod
    def of(cls, frame: Frame, unfinished: Unfinished | None) -> Origins:
        """Read the origins of a frame.

        Raises:
            DecodeError: one is not as the protocol has it.
        """
        carried = [unfinished.origin] if unfinished is not None and unfinished.origin is not None else []
        if b"O" not in frame.kinds:
            return cls(np.full(len(carried), -1), carried)
        message = np.flatnonzero(frame.kind == ORIGIN)
        named = [*carried, *(_origin(frame, at) for at in message.tolist())]
        return cls(np.concatenate([np.full(len(carried), -1), message]), named)

    def told(self, found: Transactions, events: Events, counts: Ints) -> Events:
        """Return events with the origin of each one's transaction: the last one behind its BEGIN."""
        if not self.named:
            return events
        at = self.message.searchsorted(events.message) - 1
        # A transaction that goes on in this frame has its BEGIN at -1, where what holds in it stands, too.
        inside = (at >= 0) & (self.message[at] >= found.first.repeat(counts))
        origins = pa.array([{"name": name, "lsn": lsn} for name, lsn in self.named], ORIGIN_FIELD.type)
        return dataclasses.replace(events, origin=np.where(inside, at, -1), origins=origins)

    def last(self, begin: int) -> Origin | None:
        """Return what holds at the end of the frame, in a transaction whose BEGIN is at an index."""
        return self.named[-1] if self.named and int(self.message[-1]) >= begin else None


_NO_ORIGINS = Origins(_NONE, ())


def _origin(frame: Frame, message: int) -> Origin:
    start, end = int(frame.start[message]) + HEADER, int(frame.end[message])
    name = frame.data[start + 9 : end]
    if end - start < _ORIGIN_BYTES - HEADER + 1 or name.find(0) != len(name) - 1:
        raise frame.error(message, _ORIGIN_BYTES, "an Origin whose name does not end where the message does")
    return name[:-1].decode(errors="replace"), int.from_bytes(frame.data[start + 1 : start + 9], "big")


Listener = Callable[[Transactions, Sequence[tuple[str, Batch]], Sequence[tuple[str, Batch]]], None]


def transactions(frame: Frame, unfinished: Unfinished | None, outside: Ints = _NONE) -> Transactions:
    """Read BEGIN and COMMIT of a frame that may go on with an unfinished transaction and end inside another.

    Args:
        outside: messages that are transactions of their own.
    """
    kinds = frame.kinds
    if outside.size:
        return _with_messages(frame, transactions(frame, unfinished), outside)
    if kinds.count(b"B") + (unfinished is not None) == 1 and kinds.count(b"C") <= 1:
        return _single(frame, unfinished)
    kind = frame.kind
    marks = ((kind == BEGIN) | (kind == COMMIT)).nonzero()[0]
    begins = kind[marks] == BEGIN
    _check_order(frame, marks, begins, unfinished is not None)
    first, last = marks[begins], marks[~begins]
    _check_length(frame, first, _BEGIN_BYTES)
    _check_length(frame, last, _COMMIT_BYTES)
    body = frame.start[first] + HEADER
    lsn, ts_us = frame.gather(body + 1, ">u8"), frame.gather(body + 9, ">i8") + UNIX_2000_US
    number = frame.gather(body + 17, ">u4").astype(np.int64)
    base = np.zeros(first.size, np.int64)
    if unfinished:
        first = np.concatenate([[-1], first])
        lsn = np.concatenate([np.array([unfinished.lsn], np.uint64), lsn])
        ts_us = np.concatenate([[unfinished.ts_us], ts_us])
        base = np.concatenate([[unfinished.next_index], base])
        number = np.concatenate([[unfinished.number], number])
    ends = frame.start[last] + HEADER
    _check_commits(frame, last, frame.gather(ends + 2, ">u8") != lsn[: last.size])
    end_lsn = frame.gather(ends + 10, ">u8")
    if first.size > last.size:
        last = np.append(last, len(frame))
    return Transactions(first, last, lsn, ts_us, base, end_lsn, number)


def _with_messages(frame: Frame, found: Transactions, outside: Ints) -> Transactions:
    """Return transactions with messages between them, each one of its own, without a number."""
    before = found.first.searchsorted(outside) - 1
    inside = (before >= 0) & (outside < np.append(found.last, -1)[before])
    if inside.any():
        message = int(outside[inside.argmax()])
        raise frame.error(message, HEADER + 1, "a message that belongs to no transaction, inside of one")
    lsn, end_lsn, ts_us = logical_messages.places(frame, outside)
    n, complete = outside.size, found.end_lsn.size
    order = np.argsort(np.concatenate([found.first, outside]), kind="stable")
    ends = np.argsort(np.concatenate([found.first[:complete], outside]), kind="stable")
    none: Ints = np.full(n, -1)
    return Transactions(
        np.concatenate([found.first, outside])[order],
        np.concatenate([found.last, outside + 1])[order],
        np.concatenate([found.lsn, lsn])[order],
        np.concatenate([found.ts_us, ts_us])[order],
        np.concatenate([found.base, np.zeros(n, np.int64)])[order],
        np.concatenate([found.end_lsn, end_lsn])[ends],
        np.concatenate([found.number, none])[order],
    )


def _single(frame: Frame, unfinished: Unfinished | None) -> Transactions:
    """Return the same for a frame with one transaction, without the overhead of vectors."""
    begin, commit = frame.kinds.find(b"B"), frame.kinds.find(b"C")
    if unfinished is None and -1 < commit < begin:
        raise frame.error(commit, HEADER, "COMMIT without BEGIN")
    if unfinished is None:
        _check_length(frame, np.array([begin]), _BEGIN_BYTES)
        lsn, micros, number = _BEGIN.unpack_from(frame.data, int(frame.start[begin]) + HEADER + 1)
        unfinished = Unfinished(lsn, int((np.array([micros]) + UNIX_2000_US)[0]), 0, number)
    ends = []
    if commit >= 0:
        _check_length(frame, np.array([commit]), _COMMIT_BYTES)
        lsn, end_lsn = _COMMIT.unpack_from(frame.data, int(frame.start[commit]) + HEADER + 2)
        ends = [end_lsn]
        _check_commits(frame, np.array([commit]), np.array([lsn != unfinished.lsn]))
    return Transactions(
        np.array([begin]),
        np.array([commit if ends else len(frame)]),
        np.array([unfinished.lsn], np.uint64),
        np.array([unfinished.ts_us]),
        np.array([unfinished.next_index]),
        np.array(ends, np.uint64),
        np.array([unfinished.number]),
    )


def _check_order(frame: Frame, marks: Ints, begins: Mask, inside: bool) -> None:
    expected = np.arange(marks.size) % 2 == int(inside)
    wrong = begins != expected
    if wrong.any():
        row = int(wrong.argmax())
        what = "BEGIN inside a transaction" if begins[row] else "COMMIT without BEGIN"
        raise frame.error(int(marks[row]), HEADER, what)


def _check_commits(frame: Frame, commits: Ints, differ: Mask) -> None:
    if differ.any():
        raise frame.error(int(commits[differ.argmax()]), HEADER + 2, "COMMIT's LSN is not the one of its BEGIN")


def _check_length(frame: Frame, messages: Ints, length: int) -> None:
    wrong = frame.end[messages] - frame.start[messages] != length
    if wrong.any():
        message = int(messages[wrong.argmax()])
        raise frame.error(message, int(frame.end[message] - frame.start[message]), f"has not its {length} bytes")
