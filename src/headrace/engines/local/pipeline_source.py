"""Topics of another pipeline on the same cluster, as a source: in the order of that pipeline's own log.

That pipeline wrote down, in the transactions that wrote the rows, which messages make up which slice. Whoever follows
those records sees the database's commit order across topics and partitions, whatever order the fetches come in.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa

from headrace.batch import Batch
from headrace.capture.topics.reader import Offsets
from headrace.capture.topics.source import Placed, TopicPiece
from headrace.log.kafka import FollowedEntry, KafkaLog

LOOK_S = 0.01


class _Puts(Protocol):
    def put(self, kind: str, name: str, value: bytes) -> None: ...


class _Records(Protocol):
    def records(self, kind: str, prefix: str = "") -> dict[str, bytes]: ...


class FollowedSource:
    """Follows another pipeline's log on a cluster. Called by the engine as a database's source is.

    Args:
        log: that pipeline's log, open for reading; closed with the source.
        topics: those of its topics that are wanted.
    """

    rewound = False

    def __init__(self, log: KafkaLog, topics: Sequence[str]) -> None:
        self.name = f"log:{log.location.name}"
        self.cluster = log.location.bootstrap
        self.topics = tuple(topics)
        self.warnings: list[str] = []
        self.status = f"following «{log.location.name}»"
        self._log = log
        self._slice = 0
        self._looked_at = 0.0

    def check(self, log: _Records) -> None:
        """Nothing: the other log was opened, so it is there."""

    def tables(self) -> dict[str, pa.Schema]:
        """Nothing is known of the columns before rows arrive."""
        return {}

    def start(self, log: _Records) -> None:
        """Go on after the last slice of the other log that this one has taken in."""
        record = log.records("source", self.name).get(self.name)
        self._slice = json.loads(record)["slice"] if record else 0

    def poll(self, timeout: float) -> list[TopicPiece]:
        """The next slices, waiting for the first."""
        deadline = time.monotonic() + timeout
        while True:
            found, last = self._log.follow(self.topics, self._slice)
            self._slice = last
            if found or time.monotonic() >= deadline:
                return _pieces(found)
            time.sleep(LOOK_S)

    def store(self, txn: _Puts, end_lsn: int) -> None:
        """Put the slice reached into the transaction that takes in the rows."""
        del end_lsn
        txn.put("source", self.name, json.dumps({"slice": self._slice}).encode())

    def acknowledge(self) -> None:
        """Nothing: the other pipeline does not ask."""

    def idle_lsn(self) -> int | None:
        """None: nothing has to be stored while nothing comes."""
        return None

    def received_lsn(self) -> Any:
        """The slice reached."""
        return Offsets({(self.name, 0): self._slice})

    def current_lsn(self) -> Any:
        """The newest slice there is."""
        return Offsets({(self.name, 0): self._log.newest_slice()})

    def request_progress(self, until: object = None) -> None:
        """Nothing: `poll` looks often."""

    def wake(self) -> None:
        """Nothing: `poll` never waits long."""

    def interrupt(self) -> None:
        """End waiting for a broker that is away; from any thread."""
        self._log.interrupt()

    def stop(self) -> None:
        """Close the other log; calling it twice is harmless."""
        self._log.close()


def _pieces(found: Sequence[FollowedEntry]) -> list[TopicPiece]:
    """A piece for each slice."""
    slices: dict[int, list[FollowedEntry]] = {}
    for one in found:
        slices.setdefault(one.stored.slice, []).append(one)
    return [
        TopicPiece(
            tuple((one.entry.topic, _events(one.entry.records)) for one in some),
            tuple(Placed(one.stored.ranges, one.format, one.stored.spread) for one in some),
            end_lsn=1,
            complete=some[-1].entry.complete,
        )
        for some in slices.values()
    ]


def _events(records: pa.RecordBatch) -> Batch:
    return Batch(records)
