"""Heartbeats: rows that say that the capture is there, and a query that has the database say so.

A topic ``__debezium-heartbeat.<prefix>`` gets a row in each interval, as Debezium's does, whether anything was captured
or not. The query runs in the same interval, in a thread and on a connection of its own; its failure is said, and ends
nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from dataclasses import dataclass, field

import numpy as np
import psycopg
import pyarrow as pa
from psycopg.conninfo import conninfo_to_dict

from headrace.batch import META_FIELDS, Batch
from headrace.capture.base import Piece
from headrace.capture.postgres.client import Server
from headrace.capture.postgres.table import FACTS
from headrace.clock import Clock
from headrace.errors import SourceError
from headrace.event_log import event
from headrace.position import Lsn

logger = logging.getLogger("headrace")

_BEFORE = 3  # no commit, no message and no table that joins has the LSN so many bytes before what was handed out
_FIELDS = [pa.field("serverName", pa.string()), pa.field("ts_ms", pa.int64())]


@dataclass(frozen=True, slots=True)
class HeartbeatOptions:
    """What beats, and how often.

    Attributes:
        interval_ms: 0 for never.
        topic: of the rows.
        query: what the database is asked to do each time; "" for nothing.
    """

    interval_ms: int = 0
    topic: str = ""
    query: str = field(default="", repr=False)


class Heartbeats:
    """The heartbeats of one source; `piece` is for the engine's thread."""

    def __init__(self, source: str, options: HeartbeatOptions, server: Server, clock: Clock) -> None:
        self._source, self._options, self._server, self._clock = source, options, server, clock
        self.topic = options.topic if options.interval_ms else ""
        self._interval_s = options.interval_ms / 1000
        self._due = clock.monotonic() + self._interval_s
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def schema(self) -> pa.Schema:
        """Return the schema of the rows."""
        metadata = {
            b"headrace.key": json.dumps(["serverName"]).encode(),
            b"headrace.source": self._source.encode(),
            FACTS: json.dumps({"heartbeats": self.topic}).encode(),
        }
        return pa.schema([*_FIELDS, *META_FIELDS], metadata=metadata)

    def until_due(self) -> float:
        """Return seconds until the next row; infinitely many where there are none."""
        return max(0.0, self._due - self._clock.monotonic()) if self.topic else float("inf")

    def piece(self, position: Lsn) -> Piece[Lsn]:
        """Return a row behind everything that was handed out; the next one is due an interval later."""
        self._due = self._clock.monotonic() + self._interval_s
        now = self._clock.now_us()
        ops, lsn = np.full(1, ord("c"), np.uint8), np.full(1, max(0, position - _BEFORE), np.uint64)
        # While nothing is captured they have one LSN: they are told apart by their time.
        meta = [pa.array(ops), pa.array(lsn), pa.array([now]), pa.array([now]).view(META_FIELDS[3].type)]
        columns = [pa.array([self._source]), pa.array([now // 1000])]
        rows = pa.RecordBatch.from_arrays([*columns, *meta], schema=self.schema)
        return Piece(batches=((self.topic, Batch(rows)),), position=position)

    def start(self) -> None:
        """Begin to run the query, where there is one."""
        if self.topic and self._options.query:
            self._thread = threading.Thread(target=self._run, name="headrace-heartbeat", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Run it no more; calling it twice is harmless."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(0.5)

    def _connected(self) -> psycopg.Connection[tuple[object, ...]]:
        """Return a connection on which the query means what it means to its author: with the role's own settings."""
        own = str(conninfo_to_dict(self._server.dsn).get("options") or "")
        return psycopg.connect(self._server.conninfo(options=own), autocommit=True)

    def _run(self) -> None:
        connection: psycopg.Connection[tuple[object, ...]] | None = None
        said = ""
        while not self._ending.wait(self._interval_s):
            try:
                if connection is None or connection.closed:
                    connection = self._connected()
                connection.execute(self._options.query.encode())
                said = ""
            except (psycopg.Error, SourceError) as error:
                why = " ".join(str(error).split())
                if why != said:
                    about = event("heartbeat_failed", source=self._source)
                    logger.error("%s: the heartbeat's query failed: %s", self._source, why, extra=about)
                said = why
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()
