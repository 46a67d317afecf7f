"""Results as Parquet files: whole files only, each row in exactly one of them.

Files are written beside their place, and a **manifest** names them together with the position after them. Renaming the
manifest into place is the commit; then the files are moved to where readers find them, and a restart moves those that
were left. Names say topic and offsets: ``TOPIC-FIRST-LAST.parquet``, below ``column=value`` folders where rows are
partitioned.

::

    DIR/.headrace/SINK/manifest.json     {"log", "next", "moves": [[from, to], …]}
    DIR/.headrace/SINK/FIRST-0.tmp, …    files that are being written
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.batch import Batch
from headrace.clock import duration_us
from headrace.errors import DeclarationError, SinkError, SinkUnavailable
from headrace.faults import fault
from headrace.plain_values import cast_texts
from headrace.sinks.delivery import Journal, Part, check_names, other_log

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
HIDDEN = ".headrace"
_LETTERS = pa.array([chr(code) for code in range(128)])


@dataclass(frozen=True, slots=True)
class ParquetTarget:
    """A directory of Parquet files, as declared.

    Attributes:
        rows_per_file: a file is written when so many rows are there (partitions share them), or after ``linger``
            seconds, or when the pipeline is waited for or stops.
        label: begins the files' names, where several sinks write one topic into one directory.

    Raises:
        DeclarationError: the directory is a file, or a number is not positive.
    """

    directory: Path
    partition_by: tuple[str, ...] = ()
    rows_per_file: int = 250_000
    linger: float = 60.0
    label: str = ""
    kind = "parquet"
    key: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.directory.exists() and not self.directory.is_dir():
            raise DeclarationError(f"to_parquet: {self.directory} is not a directory")
        if self.rows_per_file < 1:
            raise DeclarationError(f"to_parquet: rows_per_file={self.rows_per_file}", advice="Give a positive number.")

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Target.columns`."""
        return self.partition_by

    @property
    def where(self) -> str:
        """The directory."""
        return str(self.directory)

    @property
    def writes(self) -> tuple[str, ...]:
        """None: see `Target.writes`."""
        return ()

    def sink(self, journal: Journal) -> ParquetSink:
        """See `Target.sink`."""
        return ParquetSink(self, journal)


def parquet_target(
    directory: str | Path,
    *,
    partition_by: str | Sequence[str] | None = None,
    rows_per_file: int = 250_000,
    every: str | timedelta = "1 min",
    label: str = "",
) -> ParquetTarget:
    """A directory as a user declares it."""
    try:
        linger = duration_us(every) / 1e6
    except ValueError as error:
        raise DeclarationError(f"to_parquet: every={every!r}: {error}") from error
    columns = () if partition_by is None else check_names(partition_by, "partition_by")
    return ParquetTarget(Path(directory).absolute(), columns, rows_per_file, linger, label)


class ParquetSink:
    """A directory, open; see `headrace.sinks.delivery.Sink`."""

    def __init__(self, target: ParquetTarget, journal: Journal) -> None:
        self.target = target
        self.journal = journal
        self.rows = target.rows_per_file
        self.linger = target.linger
        self._hidden = target.directory / HIDDEN / quote(f"{journal.app}-{journal.sink}-{journal.topic}", safe="")
        self._manifest = self._hidden / "manifest.json"

    def open(self) -> int:
        """See `Sink.open`: ends the moves of a run that was killed, removes what it had not committed."""
        with self._translated():
            self._hidden.mkdir(parents=True, exist_ok=True)
            position = 0
            if self._manifest.exists():
                manifest = json.loads(self._manifest.read_text())
                if manifest["log"] != self.journal.log_id:
                    raise other_log(
                        str(self.target.directory), self.journal, advice="Empty the directory, or name another one."
                    )
                self._move(manifest["moves"])
                position = int(manifest["next"])
            for left in self._hidden.glob("*.tmp"):
                left.unlink()
            return position

    def cancel(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""

    def deliver(self, part: Part) -> None:
        """See `Sink.deliver`: files beside their place, the manifest, the moves."""
        missing = [name for name in self.target.partition_by if name not in part.batch.column_names]
        if missing and part.batch.num_rows:
            reason = f"there is no column «{missing[0]}» to partition by"
            self.journal.refuse(part, [(row, reason) for row in range(part.batch.num_rows)])
            part = part.take(np.empty(0, np.int64))
        with self._translated():
            # Named for the part: an older manifest, whose moves a restart repeats, names none of these.
            moves = [
                [self._written(f"{part.first}-{number}.tmp", rows), str(place)]
                for number, (place, rows) in enumerate(self._files(part))
            ]
            fault("sink.written")
            self._commit(part.end, moves)
            fault("sink.committed")
            self._move(moves)

    def _files(self, part: Part) -> Iterator[tuple[Path, pa.Table]]:
        """Where each file goes, relative to the directory, and its rows."""
        if not part.batch.num_rows:
            return
        table = _events(part)
        first, last = int(part.offsets[0]), int(part.offsets[-1])
        label = f"{quote(self.target.label, safe='')}-" if self.target.label else ""
        name = f"{label}{quote(part.topic, safe='')}-{first:020d}-{last:020d}.parquet"
        for folder, rows in _partitions(table, self.target.partition_by):
            yield folder / name, rows

    def _written(self, name: str, rows: pa.Table) -> str:
        temporary = self._hidden / name
        with temporary.open("wb") as file:
            pq.write_table(rows, file)
            file.flush()
            os.fsync(file.fileno())
        return name

    def _commit(self, position: int, moves: list[list[str]]) -> None:
        draft = self._hidden / "manifest.draft"
        with draft.open("w") as file:
            json.dump({"log": self.journal.log_id, "next": position, "moves": moves}, file)
            file.flush()
            os.fsync(file.fileno())
        _sync(self._hidden)  # the files that it names are found again after a power cut
        draft.replace(self._manifest)
        _sync(self._hidden)

    def _move(self, moves: list[list[str]]) -> None:
        """Move files to where readers find them; those that are there already are done."""
        for temporary, place in moves:
            source, goal = self._hidden / temporary, self.target.directory / place
            if source.exists():
                goal.parent.mkdir(parents=True, exist_ok=True)
                source.replace(goal)
                _sync(goal.parent)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"{self.target.directory} cannot be written: {error.strerror or error}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE):
                raise SinkUnavailable(message) from error
            raise SinkError(message, advice="Check the directory and its rights; the sink tries again.") from error
        except pa.ArrowException as error:
            raise SinkError(
                f"{self.target.directory}: the rows of {self.journal.topic} cannot be written as Parquet: {error}",
                advice="Choose other columns with select(…).",
            ) from error


def _events(part: Part) -> pa.Table:
    """The rows, and of each what happened to it: ``__op`` (Debezium's letter), ``__ts``, ``__offset``."""
    batch: Batch = part.batch
    rows = batch.rows
    # Of what type such a column is, nobody knows yet; a file that lacks it reads as null with the others' columns.
    rows = rows.select([field.name for field in rows.schema if not pa.types.is_null(field.type)])
    more = {
        "__op": _LETTERS.take(pa.array(batch.op)),
        "__ts": batch.column("__ts"),
        "__offset": pa.array(part.offsets),
    }
    fields = [*rows.schema, *(pa.field(name, column.type) for name, column in more.items())]
    return pa.Table.from_arrays([*rows.columns, *more.values()], schema=pa.schema(fields))


def _partitions(table: pa.Table, columns: Sequence[str]) -> Iterator[tuple[Path, pa.Table]]:
    """Rows by the values of some columns, which the folders say and the files then do not."""
    if not columns:
        yield Path(), table
        return
    codes = np.zeros(table.num_rows, np.int64)
    for name in columns:
        encoded = table.column(name).combine_chunks().dictionary_encode("encode")
        codes = codes * (len(encoded.dictionary) + 1) + np.asarray(encoded.indices)
        codes = np.unique(codes, return_inverse=True)[1]
    rest = table.drop_columns(list(columns))
    for code in range(int(codes.max()) + 1):
        rows = pa.array(np.flatnonzero(codes == code))
        values = [table.column(name)[rows[0].as_py()] for name in columns]
        folder = Path(*(f"{quote(name, safe='')}={_folder(one)}" for name, one in zip(columns, values, strict=True)))
        yield folder, rest.take(rows)


def _folder(value: pa.Scalar) -> str:
    text = cast_texts(pa.array([value], value.type))[0].as_py() if value.is_valid else None
    return NULL_PARTITION if text is None else quote(text, safe="")


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
