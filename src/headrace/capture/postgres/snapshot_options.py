"""The options of snapshots, as a source's declaration and a connector's configuration say them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

CHUNK_ROWS = 50_000
MARKER = b"headrace.snapshot"
"""In the metadata of rows of snapshots that were asked for: ``incremental``, or ``blocking`` and the request's id."""


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """Where signals come from besides the table.

    Attributes:
        file: its path; "" for none.
        topic: on the cluster at ``bootstrap``; "" for none.
        group: whose committed offset is where a log begins that has not read the topic, and is told of others.
        consumer: properties of Kafka's consumer; they may hold secrets.
        poll_s: they are looked at so often.
    """

    file: str = ""
    topic: str = ""
    bootstrap: str = ""
    group: str = "kafka-signal"
    consumer: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    poll_s: float = 5.0


@dataclass(frozen=True, slots=True)
class SnapshotOptions:
    """How rows that are there already are read.

    Attributes:
        chunk_rows: of an incremental snapshot: rows of a chunk (``incremental.snapshot.chunk.size``).
        signals: ``schema.table`` whose inserted rows are signals (``signal.data.collection``); "" for none.
        included: patterns of the tables whose rows a first snapshot reads; None for all.
        selects: (``schema.table``, query): read in place of the table by a first snapshot.
        streams: changes are captured after the first snapshot; without it the capture ends there.
        when_needed: a log that cannot go on from its slot begins with a new slot, and a new snapshot.
        always: rows are read at each start, by an incremental snapshot where the log goes on.
        delay_s: a first snapshot begins so much later.
        threads: connections over which a first snapshot reads (``snapshot.max.threads``).
        order: tables are read in the order of their rows: ``ascending`` or ``descending``; "": of their names.
        obeys_table: what is inserted there is obeyed; without it the table only encloses chunks.
        channels: where else signals come from.
        windows: each chunk is enclosed by two rows that are inserted into that table, as Debezium does.
    """

    chunk_rows: int = CHUNK_ROWS
    signals: str = ""
    obeys_table: bool = True
    channels: ChannelOptions = field(default_factory=ChannelOptions)
    windows: bool = False
    included: tuple[str, ...] | None = None
    selects: tuple[tuple[str, str], ...] = ()
    streams: bool = True
    when_needed: bool = False
    always: bool = False
    delay_s: float = 0.0
    order: str = ""
    threads: int = 1

    def reads(self, table: str) -> bool:
        """Return whether a first snapshot reads a table.

        >>> SnapshotOptions(included=("public[.]a.*",)).reads("public.b")
        False
        """
        return self.included is None or any(re.fullmatch(pattern, table, re.IGNORECASE) for pattern in self.included)
