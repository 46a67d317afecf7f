"""The options of snapshots, as a source's declaration and a connector's configuration say them."""

from __future__ import annotations

from dataclasses import dataclass

CHUNK_ROWS = 50_000
MARKER = b"headrace.snapshot"
"""In the metadata of rows that an incremental snapshot read: ``incremental``."""


@dataclass(frozen=True, slots=True)
class SnapshotOptions:
    """How rows that are there already are read.

    Attributes:
        chunk_rows: of an incremental snapshot: rows of a chunk (``incremental.snapshot.chunk.size``).
        signals: ``schema.table`` whose inserted rows are signals (``signal.data.collection``); "" for none.
        windows: each chunk is enclosed by two rows that are inserted into that table, as Debezium does.
    """

    chunk_rows: int = CHUNK_ROWS
    signals: str = ""
    windows: bool = False
