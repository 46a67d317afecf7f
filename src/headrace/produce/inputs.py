"""The input of ``headrace produce``: a file, a directory of IDX files, or standard input."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headrace.batch import is_meta
from headrace.errors import FormatError
from headrace.formats.json_columns import ROW, Column
from headrace.produce import files, idx
from headrace.produce.files import Decided

IMAGES_AT_ONCE = 8192
LOOK_SECONDS = 0.1


@dataclass
class Input:
    """Rows of a file, of a directory of IDX files, or else of standard input.

    Args:
        file, directory: one of them, or none.
        column_major: of the IDX files.
        column: the topic's columns so far, for JSON lines.
        stopped: ends the reading of standard input.
    """

    file: Path | None = None
    directory: Path | None = None
    column_major: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)
    column: Column = ROW

    @property
    def what(self) -> str:
        """The input's name in messages."""
        return str(self.file or self.directory or "standard input")

    def total(self, limit: int | None) -> int | None:
        """Estimate how many rows there will be, where that can be known cheaply.

        Raises:
            FormatError: there is no such file or directory, or not with such names in it.
        """

        total = None
        if self.file is not None:
            total = files.count_rows(self.file)
        elif self.directory is not None:
            total = sum(len(idx.read_labels(labels)) for _, labels in idx.find_pairs(self.directory).values())
        return limit if total is None else min(total, total if limit is None else limit)

    def batches(self) -> Iterator[Decided]:
        """Read the rows from the first one on, with the topic's columns after each batch.

        Raises:
            FormatError: it cannot be read, or a column has a name of Headrace's own.
        """
        for batch, column in self._read():
            for name in filter(is_meta, batch.schema.names):
                raise FormatError(f"{self.what} has a column «{name}», a name of Headrace's own", advice="Rename it.")
            yield batch, column

    def _read(self) -> Iterator[Decided]:

        if self.file is not None:
            yield from files.read_rows(self.file, self.column)
        elif self.directory is None:
            arriving = self._arriving(sys.stdin.fileno())
            yield from files.read_json_lines(arriving, where=self.what, column=self.column)
        else:
            first = 1
            for images in idx.read_sets(self.directory, column_major=self.column_major):
                for start in range(0, len(images), IMAGES_AT_ONCE):
                    yield images.records(start, start + IMAGES_AT_ONCE, first_id=first), None
                first += len(images)

    def _arriving(self, descriptor: int) -> Iterator[bytes]:
        """Yield whole lines as they arrive, until the input ends or `stopped` is set; then half a line is not taken."""
        half = b""
        while not self.stopped.is_set():
            if not select.select([descriptor], [], [], LOOK_SECONDS)[0]:
                continue
            piece = os.read(descriptor, 1 << 20)
            if not piece:
                yield half
                return
            lines, newline, tail = (half + piece).rpartition(b"\n")
            half = tail
            if newline:
                yield lines + newline
