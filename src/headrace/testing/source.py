"""A source whose transactions a test writes down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.batch import Batch
from headrace.log.base import Log, Transaction


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows as a source hands them out; see `headrace.engines.local.engine.CapturedPiece`."""

    batches: tuple[tuple[str, Batch], ...]
    continued: bool = False
    open: bool = False
    end_lsn: int = 0
    rejected: tuple[tuple[str, Batch], ...] = ()

    @property
    def rows(self) -> int:
        return sum(batch.num_rows for _, batch in self.batches)


class ScriptedSource:
    """A database that commits what `commit` was given, in that order, and resumes after what was stored.

    >>> source = ScriptedSource("db")
    >>> end_lsn = source.commit({"db.public.t": [{"id": 1}, {"id": 2}]})
    >>> [piece.rows for piece in source.poll(0)]
    [2]
    """

    status = "scripted"

    def __init__(self, name: str) -> None:
        self.name = name
        self.rewound = False
        self.acknowledged = 0
        self._stored = 0
        self._pieces: list[Piece] = []
        self._next = 0
        self._lsn = 0

    def commit(self, rows: dict[str, list[dict[str, Any]]], *, op: str = "c", ts_us: int = 0, pieces: int = 1) -> int:
        """Commit one transaction: its rows by topic; in several pieces it is a large one. Returns its end LSN."""
        self._lsn += 10
        index = 0
        batches: list[tuple[str, Batch]] = []
        for topic, found in rows.items():
            records = pa.RecordBatch.from_pylist(found)
            numbers = np.arange(index, index + len(found))
            batches.append(
                (topic, Batch.of(records, op=op, lsn=self._lsn, index=numbers, ts_us=ts_us, source=self.name))
            )
            index += len(found)
        if pieces == 1:
            self._pieces.append(Piece(tuple(batches), end_lsn=self._lsn + 5))
            return self._lsn + 5
        for i in range(pieces):
            last = i == pieces - 1
            part = tuple((topic, _share(batch, i, pieces)) for topic, batch in batches)
            kept = tuple((topic, batch) for topic, batch in part if batch.num_rows)
            self._pieces.append(Piece(kept, i > 0, not last, self._lsn + 5 if last else 0))
        return self._lsn + 5

    def lose_connection(self) -> None:
        """Give again what was received and not stored."""
        self.rewound = True
        pieces = self._pieces
        self._next = next((i for i in range(len(pieces)) if _end(pieces, i) > self._stored), len(pieces))

    def start(self, log: Log) -> None:
        """Resume after what the log has stored."""
        record = log.records("source", self.name).get(self.name)
        self._stored = json.loads(record)["acknowledged"] if record else 0
        self.lose_connection()

    def poll(self, timeout: float) -> Sequence[Piece]:
        del timeout
        taken = self._pieces[self._next : self._next + 1]
        self._next += len(taken)
        return taken

    def store(self, txn: Transaction, end_lsn: int) -> None:
        self._stored = end_lsn
        txn.put("source", self.name, json.dumps({"acknowledged": end_lsn}).encode())

    def acknowledge(self) -> None:
        self.acknowledged = self._stored

    def idle_lsn(self) -> int | None:
        return None

    def received_lsn(self) -> int:
        return max((piece.end_lsn for piece in self._pieces[: self._next]), default=0)

    def current_lsn(self) -> int:
        return max((piece.end_lsn for piece in self._pieces), default=0)

    def request_progress(self, until: int | None = None) -> None:
        del until

    def wake(self) -> None:
        return None

    def stop(self) -> None:
        return None


def _end(pieces: Sequence[Piece], i: int) -> int:
    return next(piece.end_lsn for piece in pieces[i:] if piece.end_lsn)


def _share(batch: Batch, i: int, pieces: int) -> Batch:
    size = -(-batch.num_rows // pieces)
    start = min(i * size, batch.num_rows)
    return batch.slice(start, min(size, batch.num_rows - start))
