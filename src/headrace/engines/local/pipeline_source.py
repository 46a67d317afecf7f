"""Topics of another pipeline on the same cluster, as a source: in the order of that pipeline's own log.

That pipeline wrote down, in the transactions that wrote the rows, which messages make up which slice. Whoever follows
those records sees the database's commit order across topics and partitions, whatever order the fetches come in.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace

from headrace.batch import Batch
from headrace.capture.base import KIND, Log, Origin, Piece, SourceState, SourceStatus, SourceTraits, Transaction, Waker
from headrace.log.kafka import FollowedEntry, KafkaLog

LOOK_S = 0.01


class PipelineSource:
    """Follows another pipeline's log on a cluster: a `headrace.capture.base.Source` whose positions are its slices.

    Args:
        log: that pipeline's log, open for reading; closed with the source.
        topics: those of its topics that are wanted.
    """

    def __init__(self, log: KafkaLog, topics: Sequence[str]) -> None:
        self.name = f"log:{log.location.name}"
        self.topics = tuple(topics)
        self.traits: SourceTraits[int] = SourceTraits(cluster=log.location.bootstrap)
        self._log = log
        self._slice = 0

    def start(self, log: Log, waker: Waker | None = None) -> None:
        """Go on after the last slice of the other log that this one has taken in."""
        if waker is not None:
            waker.on_interrupt(self._log.interrupt)
        record = log.records(KIND, self.name).get(self.name)
        self._slice = json.loads(record)["slice"] if record else 0

    def poll(self, timeout: float) -> list[Piece[int]]:
        """Return the next slices, waiting for the first."""
        deadline = time.monotonic() + timeout
        while True:
            found, last = self._log.follow(self.topics, self._slice)
            self._slice = last
            if found or time.monotonic() >= deadline:
                return _pieces(found, last)
            time.sleep(LOOK_S)

    def store(self, txn: Transaction, position: int) -> None:
        """Put the slice reached into the transaction that takes in the rows."""
        txn.put(KIND, self.name, json.dumps({"slice": position}).encode())

    def acknowledge(self) -> None:
        """Do nothing: the other pipeline does not ask."""

    def end(self, until: int | None = None) -> int:
        """Return the newest slice there is; `poll` looks often."""
        return self._log.newest_slice() if until is None else until

    @property
    def status(self) -> SourceStatus:
        """Connected: while its broker is away, `poll` waits."""
        return SourceStatus(SourceState.CONNECTED, f"following «{self._log.location.name}»", self._slice)

    def stop(self) -> None:
        """Close the other log; calling it twice is harmless."""
        self._log.close()


def _pieces(entries: Sequence[FollowedEntry], last: int) -> list[Piece[int]]:
    """Return a piece for each slice; after them ``last`` is reached, where no rows of ours are."""
    slices: dict[int, list[FollowedEntry]] = {}
    for followed in entries:
        slices.setdefault(followed.stored.slice, []).append(followed)
    pieces = [
        Piece(
            tuple((followed.entry.topic, Batch(followed.entry.records)) for followed in own),
            position=number,
            complete=own[-1].entry.complete,
            origins=tuple(Origin(followed.stored.ranges, followed.format, followed.stored.spread) for followed in own),
        )
        for number, own in slices.items()
    ]
    return [*pieces[:-1], replace(pieces[-1], position=last)] if pieces else []
