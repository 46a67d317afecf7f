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
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.batch import Batch, told_apart
from headrace.clock import duration_us
from headrace.errors import DeclarationError, SinkError, SinkUnavailable
from headrace.faults import fault
from headrace.plain_values import cast_texts
from headrace.sinks.base import (
    ROW_ERRORS,
    Reason,
    SinkBatch,
    SinkContext,
    SinkSpec,
    all_utf8,
    check_names,
    left_rows,
    other_log,
    refuse_values,
)

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
HIDDEN = ".headrace"
LONGEST_NAME = 255
LONGEST_PATH = 4095
_LETTERS = pa.array([chr(code) for code in range(128)])


@dataclass(frozen=True, slots=True)
class ParquetSpec(SinkSpec):
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
        """See `SinkSpec.columns`."""
        return self.partition_by

    @property
    def where(self) -> str:
        """The directory."""
        return str(self.directory)

    def sink(self, context: SinkContext) -> ParquetSink:
        """See `SinkSpec.sink`."""
        return ParquetSink(self, context)


def parquet_spec(
    directory: str | Path,
    *,
    partition_by: str | Sequence[str] | None = None,
    rows_per_file: int = 250_000,
    every: str | timedelta = "1 min",
    label: str = "",
) -> ParquetSpec:
    """A directory as a user declares it."""
    try:
        linger = duration_us(every) / 1e6
    except ValueError as error:
        raise DeclarationError(f"to_parquet: every={every!r}: {error}") from error
    if not str(directory).strip():
        raise DeclarationError("to_parquet: the directory has no name", advice='Such as .to_parquet("graded").')
    columns = () if partition_by is None else check_names(partition_by, "partition_by")
    return ParquetSpec(Path(directory).absolute(), columns, rows_per_file, linger, label)


class ParquetSink:
    """A directory, open; see `headrace.sinks.base.Sink`."""

    def __init__(self, spec: ParquetSpec, context: SinkContext) -> None:
        self.spec = spec
        self.context = context
        self.rows = spec.rows_per_file
        self.linger = spec.linger
        own = _shortened(quote(f"{context.app}-{context.sink}-{context.topic}", safe=""), LONGEST_NAME)
        self._hidden = spec.directory / HIDDEN / own
        self._manifest = self._hidden / "manifest.json"

    def open(self) -> int:
        """See `Sink.open`: ends the moves of a run that was killed, removes what it had not committed."""
        with self._translated():
            self._hidden.mkdir(parents=True, exist_ok=True)
            position = 0
            if self._manifest.exists():
                manifest = json.loads(self._manifest.read_text())
                if manifest["log"] != self.context.log_id:
                    raise other_log(
                        str(self.spec.directory), self.context, advice="Empty the directory, or name another one."
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

    def deliver(self, part: SinkBatch) -> None:
        """See `Sink.deliver`: files beside their place, the manifest, the moves."""
        files, refused = self._files(part)
        if refused:
            self.context.refuse(part, refused)
        with self._translated():
            # Named for the part: an older manifest, whose moves a restart repeats, names none of these.
            moves = [
                [self._written(f"{part.first}-{number}.tmp", rows), str(place)]
                for number, (place, rows) in enumerate(files)
            ]
            # What cannot be is found before the commit: after it the moves must succeed.
            for _, place in moves:
                (self.spec.directory / place).parent.mkdir(parents=True, exist_ok=True)
            fault("sink.written")
            self._commit(part.end, moves)
            fault("sink.committed")
            self._move(moves)

    def _files(self, part: SinkBatch) -> tuple[list[tuple[Path, pa.Table]], list[Reason]]:
        """Return each file's path, relative to the directory, and its rows; and the rows that can be in none."""
        refused = _unwritable(part.batch.rows)
        missing = [name for name in self.spec.partition_by if name not in part.batch.column_names]
        if missing:
            refused = dict.fromkeys(range(part.batch.num_rows), f"there is no column «{missing[0]}» to partition by")
        left = left_rows(part.batch.num_rows, refused)
        if not left.size:
            return [], sorted(refused.items())
        kept = part if left.size == part.batch.num_rows else part.take(left)
        table, columns = _events(kept, self.spec.partition_by)
        name = self._file_name(kept)
        folders, wrong = _partitions(table, columns, self._room(name))
        refused |= {int(left[row]): reason for row, reason in wrong.items()}
        rest = table.drop_columns(columns)
        seen: dict[str, int] = {}
        files = []
        for folder, rows in folders:
            # Where small and capital letters are the same, so would two files be.
            same = unicodedata.normalize("NFC", str(folder)).casefold()
            number = seen[same] = seen.get(same, 0) + 1
            again = f"-{number}" if number > 1 else ""
            files.append((folder / f"{name}{again}.parquet", rest if rows is None else rest.take(rows)))
        return files, sorted(refused.items())

    def _file_name(self, part: SinkBatch) -> str:
        label = f"{quote(self.spec.label, safe='')}-" if self.spec.label else ""
        end = f"-{int(part.offsets[0]):020d}-{int(part.offsets[-1]):020d}"
        # With room for a number, and for the ending.
        return _shortened(f"{label}{quote(part.topic, safe='')}", LONGEST_NAME - len(end) - 24) + end

    def _room(self, name: str) -> int:
        """Bytes that a path has left for folders."""
        return LONGEST_PATH - len(os.fsencode(self.spec.directory)) - len(name) - 26

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
            json.dump({"log": self.context.log_id, "next": position, "moves": moves}, file)
            file.flush()
            os.fsync(file.fileno())
        _sync(self._hidden)  # the files that it names are found again after a power cut
        draft.replace(self._manifest)
        _sync(self._hidden)

    def _move(self, moves: list[list[str]]) -> None:
        """Move files to where readers find them; those that are there already are done."""
        for temporary, place in moves:
            source = self._hidden / temporary
            if source.exists():
                # Earlier versions have committed places whose names are too long.
                goal = self.spec.directory.joinpath(*(_fitting(part) or part for part in Path(place).parts))
                goal.parent.mkdir(parents=True, exist_ok=True)
                source.replace(goal)
                _sync(goal.parent)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"{self.spec.directory} cannot be written: {error.strerror or error}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE):
                raise SinkUnavailable(message) from error
            raise SinkError(message, advice="Check the directory and its rights; the sink tries again.") from error


def _events(part: SinkBatch, partition_by: Sequence[str]) -> tuple[pa.Table, list[str]]:
    """The rows, and of each what happened to it: ``__op`` (Debezium's letter), ``__ts``, ``__offset``.

    Where the source did not send some values, ``__unchanged`` names their columns: that they are null says nothing.

    Returns:
        The table, and what the columns to partition by are called in it.
    """
    batch: Batch = part.batch
    rows = batch.rows
    # Of what type such a column is, nobody knows yet; a file that lacks it reads as null with the others' columns.
    known = [field.name for field in rows.schema if _writable(field.type) and not pa.types.is_null(field.type)]
    rows = rows.select([name for name in rows.schema.names if name in known or name in partition_by])
    more = {
        "__op": _LETTERS.take(pa.array(batch.op)),
        "__ts": batch.column("__ts"),
        "__offset": pa.array(part.offsets),
    }
    if batch.unchanged is not None:
        more["__unchanged"] = batch.unchanged
    names = told_apart(rows.schema.names, more)
    own = [field.with_name(name) for field, name in zip(rows.schema, names, strict=True)]
    fields = [*own, *(pa.field(name, column.type) for name, column in more.items())]
    table = pa.Table.from_arrays([*rows.columns, *more.values()], schema=pa.schema(fields))
    return table, [names[rows.schema.get_field_index(name)] for name in partition_by]


def _unwritable(rows: pa.RecordBatch) -> dict[int, str]:
    """Rows with a value of a type that Parquet does not have, with the reasons."""
    refused: dict[int, str] = {}
    for field, column in zip(rows.schema, rows.columns, strict=True):
        if not _writable(field.type):
            reason = f"Parquet has no type for «{field.name}», which is {field.type}"
            refused = refuse_values(column, reason) | refused
    return refused


@lru_cache(maxsize=1024)
def _writable(kind: pa.DataType) -> bool:
    try:
        pq.write_table(pa.schema([("x", kind)]).empty_table(), pa.BufferOutputStream())
    except ROW_ERRORS:
        return False
    return True


def _partitions(
    table: pa.Table, columns: Sequence[str], room: int
) -> tuple[list[tuple[Path, pa.Array | None]], dict[int, str]]:
    """Rows by the values of some columns, which the folders say and the files then do not.

    Returns:
        Each folder with the indexes of its rows (None: all), and rows whose values name no folder, with the reasons.
    """
    if not columns:
        return [(Path(), None)], {}
    codes = np.zeros(table.num_rows, np.int64)
    parts, refused = {name: table.column(name).combine_chunks() for name in columns}, dict[int, str]()
    for name, column in parts.items():
        try:
            encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode("encode")
        except pa.ArrowNotImplementedError:
            # Nothing but whether it is there counts.
            refused |= refuse_values(column, f"«{name}» names no folder: it is {column.type}")
            encoded = column.is_valid().dictionary_encode()
        indices = np.asarray(pc.fill_null(encoded.indices, len(encoded.dictionary)))
        codes = codes * (len(encoded.dictionary) + 1) + indices
        codes = np.unique(codes, return_inverse=True)[1]
    found: list[tuple[Path, pa.Array | None]] = []
    order = np.argsort(codes, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if int(rows[0]) in refused:
            continue
        try:
            names = [_folder(name, column.slice(int(rows[0]), 1)) for name, column in parts.items()]
            if sum(len(os.fsencode(name)) + 1 for name in names) > room:
                raise ValueError("the path of its folder is too long")
        except ROW_ERRORS as error:
            refused |= dict.fromkeys(rows.tolist(), str(error))
        else:
            found.append((Path(*names), pa.array(rows)))
    return found, refused


def _folder(name: str, value: pa.Array) -> str:
    """The folder of a column's value.

    Raises:
        ValueError: readers would see another value, or there is no name for it.
    """
    text = NULL_PARTITION if not value[0].is_valid else _text(name, value)
    found = _fitting(f"{quote(name, safe='')}={text if text is NULL_PARTITION else quote(text, safe='')}")
    if found is None:
        raise ValueError(f"«{name}» names no folder: the value is too long")
    return found


def _text(name: str, value: pa.Array) -> str:
    if not all_utf8(value):
        raise ValueError(f"«{name}» names no folder: the text is no UTF-8")
    try:
        text = str(cast_texts(value)[0].as_py())
    except ROW_ERRORS:
        raise ValueError(f"«{name}» names no folder: it is {value.type}, with no text of its own") from None
    if text == NULL_PARTITION:
        raise ValueError(f"«{name}» names no folder: readers take {NULL_PARTITION} for null")
    return text


def _fitting(name: str) -> str | None:
    """A folder's name, percent-encoded as far as a file system has room for; None where it has none.

    >>> len(_fitting("x=" + "%C3%A9" * 42)), _fitting("x=" + "%C3%A9" * 43) == "x=" + "é" * 43, _fitting("x" * 256)
    (254, True, None)
    """
    if len(name.encode()) <= LONGEST_NAME:
        return name
    # Only what is written in several bytes stands for itself.
    column, equals, value = name.partition("=")
    short = equals.join(
        "".join(letter if ord(letter) > 127 else quote(letter, safe="") for letter in unquote(part))
        for part in (column, value)
    )
    return short if len(short.encode()) <= LONGEST_NAME else None


def _shortened(name: str, most: int) -> str:
    """A name of at most so many bytes: the beginning, and a digest of the whole."""
    if len(name) <= most:
        return name
    return f"{name[: most - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
