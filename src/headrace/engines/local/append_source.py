"""Rows that the program itself appends while its pipeline runs, as a source.

A log in a file has one writing process: rows from Python reach a running pipeline through this queue. The engine takes
them as it takes what a database has committed: each append is a slice of its own, written in the log transaction that
also holds what the models made of it.

How far a producer is stands in the log as ``headrace produce --producer-id`` writes it (`produce.producer`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.batch import Batch, is_meta
from headrace.capture.base import Log as SourceLog
from headrace.capture.base import Piece, SourceState, SourceStatus, SourceTraits, Transaction, Waker
from headrace.errors import DeclarationError, HeadraceError, LogError, WaitTimeout
from headrace.formats.topic_formats import COLUMNS, Decision
from headrace.log.base import Log, rows_between
from headrace.produce.producer import KIND, REMEMBERED, ProducerProgress, fingerprint

NAME = "append"


@dataclass(frozen=True, slots=True)
class _Append:
    """One append: its piece, and the records (kind, name, value) that are written with it."""

    piece: Piece[int]
    records: tuple[tuple[str, str, bytes], ...]


class AppendSource:
    """The queue: a `headrace.capture.base.Source` whose positions count the appends.

    `append`, `wait` and `position` may be called by any thread.

    Args:
        log: the one that the engine writes.
        topics: those that may be appended to.
        served: topic -> the one that is appended to instead.
    """

    name = NAME
    traits: SourceTraits[int] = SourceTraits()

    def __init__(self, log: Log, topics: Sequence[str], served: Mapping[str, str] | None = None) -> None:
        self._log = log
        self.topics = tuple(topics)
        self._served = dict(served or {})
        self._changed = threading.Condition()
        self._queue: deque[_Append] = deque()
        self._polled: list[_Append] = []
        self._queued = self._position = self._storing = self._durable = 0
        self._ended = False
        self._producers: dict[str, ProducerProgress] = {}
        self._next: dict[str, int] = {}
        self._decided: dict[str, Decision] = {}

    # -- appending ------------------------------------------------------------------------------------------------

    def append(
        self,
        topic: str,
        rows: pa.RecordBatch | Sequence[Mapping[str, Any]],
        *,
        key: Sequence[str] = (),
        producer_id: str | None = None,
        sequence: int | None = None,
    ) -> tuple[int, int]:
        """Queue rows; returns how many are new, and the number to `wait` for.

        What types dictionaries have, the topic's rows decide (`formats.json_columns`).

        Raises:
            DeclarationError: the topic is not declared with ``append=True``; a column is missing or has a name of
                Headrace's own; or ``sequence`` is given without ``producer_id``; or a value is one that no column
                holds.
            LogError: rows before these are missing, or those that are there are others.
        """
        topic = self._served.get(topic, topic)
        names = (
            rows.schema.names if isinstance(rows, pa.RecordBatch) else list(dict.fromkeys(n for r in rows for n in r))
        )
        self._check(topic, names, key, producer_id, sequence)
        with self._changed:
            if self._ended:
                raise HeadraceError("the pipeline has ended: nothing was appended")
            parts, decided = self._typed(topic, rows)
            new: list[pa.RecordBatch] = []
            progress = None
            for part in parts:
                if producer_id is not None:
                    behind = part.num_rows
                    part, progress = self._after_what_is_there(topic, producer_id, part, sequence)
                    sequence = None if sequence is None else sequence + behind
                new += [part] if part.num_rows else []
            if new:
                self._enqueue(topic, new, key, progress, decided)
            return sum(part.num_rows for part in new), self._queued

    def _typed(
        self, topic: str, rows: pa.RecordBatch | Sequence[Mapping[str, Any]]
    ) -> tuple[list[pa.RecordBatch], Decision | None]:
        """Return the rows as batches, and the topic's columns with them, where they have no types of their own."""
        from headrace.formats.json_columns import ROW, Refused, of_python

        if isinstance(rows, pa.RecordBatch):
            return [rows], None
        if topic not in self._decided:
            known = self._log.records(COLUMNS, topic).get(topic)
            self._decided[topic] = Decision.load(known) if known else Decision()
        before = self._decided[topic]
        try:
            found = of_python(rows, before.columns or ROW)
        except (Refused, UnicodeError) as error:
            raise DeclarationError(f"append to «{topic}»: {error}", advice="Nothing was appended.") from None
        return [batch for batch, _ in found], replace(before, columns=found[-1][1]) if found else before

    def _enqueue(
        self,
        topic: str,
        parts: Sequence[pa.RecordBatch],
        key: Sequence[str],
        progress: tuple[str, bytes] | None,
        decided: Decision | None,
    ) -> None:
        now = time.time_ns() // 1000
        batches = []
        for part in parts:
            first = self._next.setdefault(topic, self._end(topic))
            self._next[topic] = first + part.num_rows
            index = np.arange(first, first + part.num_rows, dtype=np.int64)
            batches.append(Batch.of(part, index=index, ts_us=now, key=key))
        records = [] if progress is None else [(KIND, *progress)]
        if decided is not None and decided != self._decided.get(topic):
            self._decided[topic] = decided
            records.append((COLUMNS, topic, decided.dump()))
        self._queued += 1
        piece = Piece(tuple((topic, batch) for batch in batches), position=self._queued)
        self._queue.append(_Append(piece, tuple(records)))
        self._changed.notify_all()

    def wait(self, number: int, timeout: float | None) -> None:
        """Wait until that append is durable.

        Raises:
            WaitTimeout: not yet; it stays queued.
            HeadraceError: the pipeline has ended before, and nothing of it was written.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._durable >= number or self._ended, timeout)
            if self._durable >= number:
                return
            if self._ended:
                raise HeadraceError("the pipeline has ended before the rows were written")
        raise WaitTimeout(
            f"rows were not written within {timeout} s; they stay queued",
            advice="Append them again with the same producer_id and sequence: what is there already is skipped.",
        )

    def position(self, topic: str, producer_id: str) -> int:
        """Return rows of a producer that are in the log or queued."""
        with self._changed:
            return self._producer(self._served.get(topic, topic), producer_id).rows

    def _check(
        self, topic: str, names: Sequence[str], key: Sequence[str], producer_id: str | None, sequence: int | None
    ) -> None:
        if topic not in self.topics:
            raise DeclarationError(
                f"«{topic}» is not declared to be appended to", advice=f'Declare app.topic("{topic}", append=True).'
            )
        for name in filter(is_meta, names):
            raise DeclarationError(f"the rows have a column «{name}», a name of Headrace's own", advice="Rename it.")
        for name in key:
            if name not in names:
                raise DeclarationError(f"key={name!r}: there is no such column", advice=f"{list(names)}")
        if sequence is not None and (producer_id is None or sequence < 0):
            raise DeclarationError(
                f"sequence={sequence} counts the rows of a producer from 0", advice="Say producer_id=…."
            )

    def _after_what_is_there(
        self, topic: str, producer_id: str, rows: pa.RecordBatch, sequence: int | None
    ) -> tuple[pa.RecordBatch, tuple[str, bytes]]:
        """Return the rows that are new, and the producer's record when they are written. Remembers both."""
        name, producer = f"{topic}/{producer_id}", self._producer(topic, producer_id)
        at = producer.rows if sequence is None else sequence
        if at > producer.rows:
            raise LogError(
                f"rows {producer.rows} to {at - 1} of the producer «{name}» are missing",
                advice=f"Go on at sequence={producer.rows}.",
            )
        behind = min(rows.num_rows, producer.rows - at)
        if behind:
            producer.compare(name, rows.slice(0, behind), at)
            rows = rows.slice(behind)
        if rows.num_rows:
            producer.take(rows)
        return rows, (name, producer.record())

    def _producer(self, topic: str, producer_id: str) -> ProducerProgress:
        name = f"{topic}/{producer_id}"
        if name not in self._producers:
            known = self._log.records(KIND, name).get(name)
            self._producers[name] = ProducerProgress.load(known)
            self._remember(topic, self._producers[name])
        return self._producers[name]

    def _remember(self, topic: str, producer: ProducerProgress) -> None:
        """Give a producer its last rows, where they are the last ones of the topic too."""
        end = self._end(topic)
        wanted = min(REMEMBERED, producer.rows, end)
        if not wanted:
            return
        found = rows_between(self._log, topic, end - wanted, end)
        rows = [records.select([name for name in records.schema.names if not is_meta(name)]) for records in found]
        if fingerprint(rows) == producer.last:
            producer.kept = rows

    def _end(self, topic: str) -> int:
        info = self._log.topics().get(topic)
        return info.end if info else 0

    # -- the engine's side ----------------------------------------------------------------------------------------

    def start(self, log: SourceLog, waker: Waker | None = None) -> None:
        """Be woken by other threads; producers go on where the log has them."""
        del log
        if waker is not None:
            waker.on_wake(self._notify)

    def poll(self, timeout: float) -> list[Piece[int]]:
        """Return what is queued, waiting for the first."""
        with self._changed:
            if not self._queue and timeout > 0:
                self._changed.wait(timeout)
            taken = list(self._queue)
            self._queue.clear()
            self._polled += taken
            self._position += len(taken)
            return [append.piece for append in taken]

    def store(self, txn: Transaction, position: int) -> None:
        """Put the producers' records into the transaction that appends their rows."""
        records = {(kind, name): value for append in self._polled for kind, name, value in append.records}
        for (kind, name), value in records.items():
            txn.put(kind, name, value)
        self._storing = position

    def acknowledge(self) -> None:
        """Tell whoever waits that the rows are durable."""
        with self._changed:
            self._durable = self._storing
            self._polled = []
            self._changed.notify_all()

    def end(self, until: int | None = None) -> int:
        """Return the number of appends until now; whoever appends wakes the engine."""
        return self._queued if until is None else until

    @property
    def status(self) -> SourceStatus:
        """Connected, always."""
        return SourceStatus(SourceState.CONNECTED, "appending", self._position)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Tell whoever waits that the pipeline has ended; calling it twice is harmless."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
