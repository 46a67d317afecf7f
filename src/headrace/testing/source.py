"""A source whose transactions a test writes down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.batch import Batch
from headrace.capture.base import KIND, Log, Piece, SourceState, SourceStatus, SourceTraits, Transaction, Waker
from headrace.position import Lsn


class ScriptedSource:
    """A database that commits what `commit` was given, in that order, and resumes after what was stored.

    >>> source = ScriptedSource("db")
    >>> end_lsn = source.commit({"db.public.t": [{"id": 1}, {"id": 2}]})
    >>> [piece.rows for piece in source.poll(0)]
    [2]
    """

    traits: SourceTraits[Lsn] = SourceTraits(parse_position=Lsn.parse)

    def __init__(self, name: str) -> None:
        self.name = name
        self.acknowledged = Lsn(0)
        self._stored = Lsn(0)
        self._pieces: list[Piece[Lsn]] = []
        self._next = 0
        self._rewound = False
        self._lsn = 0

    def commit(self, rows: dict[str, list[dict[str, Any]]], *, op: str = "c", ts_us: int = 0, pieces: int = 1) -> Lsn:
        """Commit one transaction: its rows by topic; in several pieces it is a large one. Return its end LSN."""
        self._lsn += 10
        index, end = 0, Lsn(self._lsn + 5)
        batches: list[tuple[str, Batch]] = []
        for topic, given in rows.items():
            records = pa.RecordBatch.from_pylist(given)
            numbers = np.arange(index, index + len(given))
            batches.append(
                (topic, Batch.of(records, op=op, lsn=self._lsn, index=numbers, ts_us=ts_us, source=self.name))
            )
            index += len(given)
        shares = [[(topic, _share(batch, i, pieces)) for topic, batch in batches] for i in range(pieces)]
        parts = [
            Piece[Lsn](tuple((topic, batch) for topic, batch in share if batch.num_rows), continued=i > 0, open=True)
            for i, share in enumerate(shares)
        ]
        self._pieces += [*parts[:-1], replace(parts[-1], open=False, position=end)]
        return end

    def lose_connection(self) -> None:
        """Lose the connection: what was handed out and not stored comes again."""
        self._rewound = True
        pieces = self._pieces
        self._next = next((i for i in range(len(pieces)) if _end(pieces, i) > self._stored), len(pieces))

    def start(self, log: Log, waker: Waker | None = None) -> None:
        """Resume after what the log has stored."""
        record = log.records(KIND, self.name).get(self.name)
        self._stored = Lsn(json.loads(record)["acknowledged"] if record else 0)
        self.lose_connection()

    def poll(self, timeout: float) -> list[Piece[Lsn]]:
        """Return the next piece; it never waits."""
        rewound = [Piece[Lsn](rewound=True)] if self._rewound else []
        self._rewound = False
        taken = self._pieces[self._next : self._next + 1]
        self._next += len(taken)
        return [*rewound, *taken]

    def store(self, txn: Transaction, position: Lsn) -> None:
        """Put the position into the transaction."""
        self._stored = position
        txn.put(KIND, self.name, json.dumps({"acknowledged": position}).encode())

    def acknowledge(self) -> None:
        """Note in ``acknowledged`` what is stored."""
        self.acknowledged = self._stored

    def end(self, until: Lsn | None = None) -> Lsn:
        """Return the end of the last transaction that was committed."""
        return _last(self._pieces) if until is None else until

    @property
    def status(self) -> SourceStatus:
        """Connected, always."""
        return SourceStatus(SourceState.CONNECTED, "scripted", _last(self._pieces[: self._next]))

    def stop(self) -> None:
        """Do nothing."""


def _last(pieces: Sequence[Piece[Lsn]]) -> Lsn:
    return max((piece.position for piece in pieces if piece.position is not None), default=Lsn(0))


def _end(pieces: Sequence[Piece[Lsn]], i: int) -> Lsn:
    return next(piece.position for piece in pieces[i:] if piece.position is not None)


def _share(batch: Batch, i: int, pieces: int) -> Batch:
    size = -(-batch.num_rows // pieces)
    start = min(i * size, batch.num_rows)
    return batch.slice(start, min(size, batch.num_rows - start))
