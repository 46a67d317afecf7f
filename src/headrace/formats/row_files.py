"""Rows in files: JSON lines, CSV with a header, Parquet; as Arrow batches in constant memory. Event times of columns.

Read with Arrow's own readers: https://arrow.apache.org/docs/python/json.html, …/csv.html, …/parquet.html.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json

from headrace.errors import FormatError

BLOCK_BYTES = 32 << 20
PARQUET_ROWS = 8192
_JSON = (".jsonl", ".ndjson", ".json")
_CSV = (".csv",)
_PARQUET = (".parquet", ".pq")
_COMPRESSED = (".gz", ".bz2", ".zst")
_IN_ROW = re.compile(r"\s*in row (\d+)")


def read_rows(path: Path | str) -> Iterator[pa.RecordBatch]:
    """Rows of a file, by its name's ending: .jsonl, .ndjson, .json (JSON lines), .csv, .parquet; the texts also .gz.

    A CSV's types are those of its first 32 MB; those of JSON lines may widen later (a whole number to a fraction).

    Raises:
        FormatError: there is no such file, its ending says nothing, or it cannot be read; the message says where.
    """
    file = Path(path)
    kind = _kind(file)
    if not file.is_file():
        raise FormatError(f"there is no file {file}")
    try:
        if kind in _PARQUET:
            yield from _parquet(file)
        elif kind in _CSV:
            yield from _csv(file)
        else:
            with pa.input_stream(str(file), compression="detect") as stream:
                yield from read_json_lines(iter(lambda: stream.read(1 << 20), b""), where=str(file))
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{file} cannot be read: {error}", advice="Rows before that place were read.") from error


def count_rows(path: Path | str) -> int | None:
    """About how many rows a file has, for progress bars: lines of a text; None where counting means decompressing.

    Raises:
        FormatError: there is no such file, or its ending says nothing.
    """
    file = Path(path)
    kind = _kind(file)
    if not file.is_file():
        raise FormatError(f"there is no file {file}")
    if kind in _PARQUET:
        from pyarrow import parquet

        try:
            return int(parquet.read_metadata(file).num_rows)
        except (pa.ArrowException, OSError):
            return None
    if file.suffix in _COMPRESSED:
        return None
    with file.open("rb") as stream:
        lines = sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
    return max(0, lines - 1) if kind in _CSV else lines


def read_json_lines(pieces: Iterable[bytes], *, where: str) -> Iterator[pa.RecordBatch]:
    """Rows of JSON lines that come in pieces, cut anywhere; each piece's whole lines are one batch. Blank lines count
    as lines and are no rows.

    Later batches keep the earlier ones' columns and types, wider where they have to be.

    Args:
        where: what messages call them.

    Raises:
        FormatError: a line is no JSON object, or a column changes its type; the message names the line.

    >>> pieces = [b'{"a": 1}\\n{"a"', b': 2.5}\\n\\n', b'{"b": "x"}']
    >>> [batch.to_pylist() for batch in read_json_lines(pieces, where="a test")]
    [[{'a': 1}], [{'a': 2.5}], [{'a': None, 'b': 'x'}]]
    """
    known = pa.schema([])
    rest: list[bytes] = []
    before = 0
    for piece in pieces:
        head, newline, tail = piece.rpartition(b"\n")
        if not newline:
            rest.append(piece)
            continue
        lines = b"".join([*rest, head]).split(b"\n")
        rest = [tail]
        batch = _json_batch(lines, before, known, where)
        before += len(lines)
        if batch is not None:
            known = batch.schema
            yield batch
    last = _json_batch([b"".join(rest)], before, known, where)
    if last is not None:
        yield last


def event_times(column: pa.Array, name: str, first: int = 0) -> npt.NDArray[np.int64]:
    """Microseconds since 1970-01-01 UTC of timestamps, dates or ISO 8601 texts; without a zone they are UTC.

    >>> event_times(pa.array(["1970-01-01T00:00:01.5Z", "1970-01-01T02:00:00+02:00"]), "at").tolist()
    [1500000, 0]
    """
    if column.null_count:
        row = int(np.flatnonzero(np.asarray(column.is_null()))[0])
        raise FormatError(
            f"row {first + row + 1}: the time in «{name}» is null", advice="Fill it, or leave the row out."
        )
    kind = column.type
    readable = pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_string(kind)
    if not (readable or pa.types.is_large_string(kind)):
        raise FormatError(
            f"«{name}» is {kind}, and no time", advice="Give timestamps, or texts as 2026-01-31T12:00:00Z."
        )
    try:
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return _microseconds(column.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False))
        zoned = bool(pc.any(pc.match_substring_regex(column, r"(Z|[+-]\d\d:?\d\d)$")).as_py())
        return _microseconds(column.cast(pa.timestamp("us", "UTC" if zoned else None)))
    except pa.ArrowInvalid as error:
        raise FormatError(
            f"the time in «{name}» cannot be read: {error}", advice="Write 2026-01-31T12:00:00Z."
        ) from error


def _microseconds(array: pa.Array) -> npt.NDArray[np.int64]:
    return np.asarray(array.cast(pa.int64()))


def _json_batch(lines: list[bytes], before: int, known: pa.Schema, where: str) -> pa.RecordBatch | None:
    filled = [i for i, line in enumerate(lines) if line.strip()]
    if not filled:
        return None
    for i in filled:  # Arrow would take a bracketed or bare value for a broken block, without its place
        if not lines[i].lstrip().startswith(b"{"):
            raise FormatError(f"{where}, line {before + i + 1}: no JSON object", advice="Write one object a line.")
    text = b"\n".join(lines[i] for i in filled)
    try:
        table = _json_table(text, known)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        told = _IN_ROW.search(str(error))
        line = before + 1 + filled[int(told[1]) if told and int(told[1]) < len(filled) else 0]
        place = f"line {line}" if told or len(filled) == 1 else f"lines {line} to {before + filled[-1] + 1}"
        raise FormatError(f"{where}, {place}: {_IN_ROW.sub('', str(error))}", advice="Correct it there.") from error
    if table.num_rows != len(filled):
        raise FormatError(
            f"{where}, lines {before + 1} to {before + len(lines)}: {table.num_rows} objects in {len(filled)} lines",
            advice="Write one object a line.",
        )
    (batch,) = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    return batch


def _json_table(text: bytes, known: pa.Schema) -> pa.Table:
    """A block's rows with the columns known so far, widened where they do not hold its values."""
    try:
        return _parsed(text, known)
    except pa.ArrowInvalid:
        if not len(known):
            raise
        found = _parsed(text, pa.schema([])).schema
        return _parsed(text, pa.unify_schemas([known, found], promote_options="permissive"))


def _parsed(text: bytes, schema: pa.Schema) -> pa.Table:
    reading = json.ReadOptions(use_threads=False, block_size=len(text) + 2)
    parsing = json.ParseOptions(explicit_schema=schema if len(schema) else None)
    return json.read_json(io.BytesIO(text), read_options=reading, parse_options=parsing)


def _csv(file: Path) -> Iterator[pa.RecordBatch]:
    from pyarrow import csv

    size = max(1, file.stat().st_size)
    block = BLOCK_BYTES if file.suffix in _COMPRESSED else min(BLOCK_BYTES, size + 1)
    options = csv.ReadOptions(block_size=block, use_threads=False)
    parsing = csv.ParseOptions(newlines_in_values=True)
    with csv.open_csv(str(file), read_options=options, parse_options=parsing) as reader:
        yield from (batch for batch in reader if batch.num_rows)


def _parquet(file: Path) -> Iterator[pa.RecordBatch]:
    from pyarrow import parquet

    with parquet.ParquetFile(file) as opened:
        yield from (batch for batch in opened.iter_batches(PARQUET_ROWS) if batch.num_rows)


def _kind(file: Path) -> str:
    """The ending that says what is in a file, without that of a compression.

    >>> _kind(Path("a/rows.jsonl.gz"))
    '.jsonl'
    """
    name = file.with_suffix("") if file.suffix in _COMPRESSED else file
    kind = name.suffix.lower()
    if kind not in (*_JSON, *_CSV, *_PARQUET) or (kind in _PARQUET and name != file):
        raise FormatError(
            f"the name of {file} does not say what is in it",
            advice=f"Known endings: {', '.join((*_JSON, *_CSV, *_PARQUET))}.",
        )
    return kind
