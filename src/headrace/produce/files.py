"""Rows in files: JSON lines, CSV with a header, Parquet; as Arrow batches in constant memory. Event times of columns.

JSON lines have the types that `formats.json_columns` decides, row by row, and no number is rounded. A column of a CSV
has one type in the whole file, the first of these that all its fields are written as, exactly:

===========  ==========================================================================================
type         fields
===========  ==========================================================================================
int64        ``0``, ``-12``: no zeros in front, no ``+``, ``_``, ``0x``, spaces; what fits
decimal      such integers of up to 38 digits, else of up to 76
float64      those and fractions (``0.5``, ``1e5``) that a double holds exactly (`json_columns`); NaN, inf
decimal      … that none does, with up to 38 digits before the point and 38 behind
bool         ``true`` and ``false``, or True and False, or TRUE and FALSE
date32       ``2026-01-31``
time32       ``12:00:00``
timestamp    ``2026-01-31 12:00:00``, with T, decimals, or Z: with a zone in UTC
string       everything else, as it is written: ``01234`` stays what it is
===========  ==========================================================================================

An empty field is NULL where it is not quoted; so are NA, N/A, n/a, #N/A, NULL and null in a column that is not one of
texts. Parquet has its own types.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import FormatError
from headrace.formats import decimals, json_columns
from headrace.formats.json_columns import ROW, Column

BLOCK_BYTES = 32 << 20
PARQUET_ROWS = 8192
_JSON = (".jsonl", ".ndjson", ".json")
_CSV = (".csv",)
_PARQUET = (".parquet", ".pq")
_COMPRESSED = (".gz", ".bz2", ".zst")
_BOM = b"\xef\xbb\xbf"
_WIDE = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
# A batch, and what a topic's columns are after it where rows decide that.
Decided = tuple[pa.RecordBatch, Column | None]


def read_rows(path: Path | str, column: Column = ROW) -> Iterator[Decided]:
    """Rows of a file, by its name's ending: .jsonl, .ndjson, .json (JSON lines), .csv, .parquet; the texts also .gz.

    Args:
        column: what the topic's columns are so far, for JSON lines.

    Raises:
        FormatError: there is no such file, its ending says nothing, or it cannot be read; the message says where.
    """
    file = Path(path)
    kind = _kind(file)
    if not file.is_file():
        raise FormatError(f"there is no file {file}")
    try:
        if kind in _PARQUET:
            yield from ((batch, None) for batch in _parquet(file))
        elif kind in _CSV:
            yield from ((batch, None) for batch in _csv(file))
        else:
            with pa.input_stream(str(file), compression="detect") as stream:
                yield from read_json_lines(iter(lambda: stream.read(1 << 20), b""), where=str(file), column=column)
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


def read_json_lines(pieces: Iterable[bytes], *, where: str, column: Column = ROW) -> Iterator[Decided]:
    """Rows of JSON lines that come in pieces, cut anywhere, and the columns after them. Blank lines count as lines and
    are no rows.

    Args:
        where: what messages call them.
        column: what the columns are so far.

    Raises:
        FormatError: a line is no JSON object, or has a number that no column holds; the message names the line.

    >>> pieces = [b'{"a": 1}\\n{"a"', b': 2.5}\\n\\n', b'{"b": "x"}']
    >>> [batch.to_pylist() for batch, _ in read_json_lines(pieces, where="a test")]
    [[{'a': 1}], [{'a': 2.5}], [{'a': None, 'b': 'x'}]]
    """
    rest: list[bytes] = []
    before = 0
    begun = False
    for piece in pieces:
        if not begun and piece:
            piece, begun = _without_mark(b"".join([*rest, piece]), where), True
            rest = []
        head, newline, tail = piece.rpartition(b"\n")
        if not newline:
            rest.append(piece)
            continue
        lines = b"".join([*rest, head]).split(b"\n")
        rest = [tail]
        for batch, after in _json_rows(lines, before, column, where):
            column = after
            yield batch, column
        before += len(lines)
    yield from _json_rows([b"".join(rest)], before, column, where)


def _without_mark(data: bytes, where: str) -> bytes:
    """The beginning of a text without its byte order mark.

    Raises:
        FormatError: it is in another encoding than UTF-8.
    """
    for mark, name in _WIDE.items():
        if data.startswith(mark):
            raise FormatError(f"{where}, line 1, byte 0: the text is {name}", advice="Write it as UTF-8.")
    return data.removeprefix(_BOM)


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


def _json_rows(lines: list[bytes], before: int, column: Column, where: str) -> Iterator[tuple[pa.RecordBatch, Column]]:
    filled = [i for i, line in enumerate(lines) if line.strip()]
    if not filled:
        return
    values = [lines[i].strip() for i in filled]
    for i, value in zip(filled, values, strict=True):
        if not value.startswith(b"{"):
            try:
                value.decode()
            except UnicodeDecodeError as error:
                raise _no_text(where, before + i + 1, error.start, error) from None
            raise FormatError(f"{where}, line {before + i + 1}: no JSON object", advice="Write one object a line.")
    parts, bad, _ = json_columns.decode(values, column)
    if bad:
        at, why = bad[0]
        raise FormatError(f"{where}, line {before + filled[at] + 1}: {why}", advice="Correct it there.")
    for part in parts:
        yield part.columns, part.after


def _no_text(where: str, line: int, at: int, error: UnicodeDecodeError) -> FormatError:
    found = error.object[error.start : error.start + 1].hex()
    return FormatError(
        f"{where}, line {line}, byte {at}: 0x{found} is no UTF-8",
        advice="Write it as UTF-8; of Latin-1: iconv -f latin1 -t utf8.",
    )


# -- CSV: read as texts, once to see what the columns are and once for the rows --


def _csv(file: Path) -> Iterator[pa.RecordBatch]:
    _check_text(file)
    names: list[str] = []
    seen: list[_Fields] = []
    for texts in _csv_texts(file):
        if not names:
            names = _header(file, texts)
            seen = [_Fields() for _ in names]
            texts = texts.slice(1)
        for fields, array in zip(seen, texts.columns, strict=True):
            fields.see(array)
    types = [fields.type() for fields in seen]
    first = True
    for texts in _csv_texts(file):
        texts, first = texts.slice(1) if first else texts, False
        if texts.num_rows:
            arrays = [_typed(array, kind) for array, kind in zip(texts.columns, types, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, names=names)


def _check_text(file: Path) -> None:
    """Refuse what is no UTF-8, and a quote that is not closed, which would swallow the rest.

    Raises:
        FormatError: says the line, and the byte in it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines, quotes, tail = 0, 0, b""
    with pa.input_stream(str(file), compression="detect") as stream:
        while True:
            block = stream.read(1 << 20)
            if not lines and not tail:
                _without_mark(block, str(file))
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                whole = error.object[: error.start]
                text = tail + (whole if isinstance(whole, bytes) else bytes(whole))
                line = lines + text.count(b"\n") + 1
                at = len(text) - (text.rfind(b"\n") + 1)
                raise _no_text(str(file), line, at, error) from None
            if not block:
                break
            quotes += block.count(b'"')
            _, newline, rest = block.rpartition(b"\n")
            lines += block.count(b"\n")
            tail = rest if newline else tail + block
            tail = tail[: len(tail) - len(decoder.getstate()[0])] if decoder.getstate()[0] else tail
    if quotes % 2:
        raise FormatError(f"{file}: a quote is not closed", advice=_where_it_opens(file))


def _where_it_opens(file: Path) -> str:
    """The row that the open quote begins in: the last one that a reader sees."""
    try:
        rows = sum(texts.num_rows for texts in _csv_texts(file))
    except (FormatError, pa.ArrowException):
        return "Quotes stand around a field, and twice for one within."
    return f"It opens in row {rows}, the header counted; a quote within a field is written twice."


def _csv_texts(file: Path) -> Iterator[pa.RecordBatch]:
    """All rows as texts, the header first; NULL where a field is empty and not quoted.

    Raises:
        FormatError: the file is empty, or a row has more or fewer fields than the header.
    """
    from pyarrow import csv

    odd: list[Any] = []

    def keep(row: Any) -> str:
        odd.append(row)
        return "error"

    size = max(1, file.stat().st_size)
    block = BLOCK_BYTES if file.suffix in _COMPRESSED else min(BLOCK_BYTES, size + 1)
    reading = csv.ReadOptions(block_size=block, use_threads=False, autogenerate_column_names=True)
    parsing = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=keep)
    try:
        with csv.open_csv(str(file), read_options=reading, parse_options=parsing) as opened:
            names = opened.schema.names
        as_text = csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        )
        with csv.open_csv(str(file), read_options=reading, parse_options=parsing, convert_options=as_text) as opened:
            yield from (batch for batch in opened if batch.num_rows)
    except pa.ArrowInvalid as error:
        if odd:
            row = odd[0]
            where = "" if row.number is None else f", row {row.number}"
            raise FormatError(
                f"{file}{where}: {row.actual_columns} fields where {row.expected_columns} are expected: "
                f"{row.text[:60]}",
                advice="Rows are counted with the header; nothing was read of the file.",
            ) from None
        if "Empty CSV" in str(error):
            raise FormatError(f"{file} is empty", advice="A CSV begins with a line of its columns' names.") from None
        raise


def _header(file: Path, texts: pa.RecordBatch) -> list[str]:
    names = ["" if column_ is None else str(column_) for column_ in (array[0].as_py() for array in texts.columns)]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise FormatError(
                f"{file}: columns {names.index(name) + 1} and {i + 1} are both named «{name}»",
                advice="Give each column a name of its own.",
            )
    return names


_INTEGER = r"^-?(0|[1-9][0-9]*)$"
_NUMBER = r"^(-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|-?inf|-?Infinity|NaN|nan)$"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_CLOCK = r"^[0-9]{2}:[0-9]{2}:[0-9]{2}$"
_INSTANT = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?"
_ZONE = r"(Z|[+-][0-9]{2}(:?[0-9]{2})?)$"
_BOOLEANS = (("true", "false"), ("True", "False"), ("TRUE", "FALSE"))
# No values of a column that is not one of texts, as R, SQL and spreadsheets write them.
_NO_VALUES = pa.array(["NA", "N/A", "n/a", "#N/A", "NULL", "null"])


class _Fields:
    """The types that the fields of one column can have, so far."""

    def __init__(self) -> None:
        self.kinds: list[pa.DataType] | None = None

    def see(self, texts: pa.Array) -> None:
        """Leave out the types that do not hold all of these."""
        values = texts.drop_null()
        values = values.filter(pc.invert(pc.is_in(values, _NO_VALUES)))
        if not len(values):
            self.kinds = [pa.string()] if self.kinds is None and len(texts) > texts.null_count else self.kinds
            return
        known = _CANDIDATES if self.kinds is None else self.kinds
        self.kinds = [kind for kind in known if _all_are(values, kind)]

    def type(self) -> pa.DataType:
        """The first that holds all fields."""
        return pa.null() if self.kinds is None else (self.kinds or [pa.string()])[0]


def _candidates() -> list[pa.DataType]:
    numbers = [json_columns.NUMBERS[item] for item in ("int64", "int128", "int256", "float64", "decimal")]
    instants = [pa.timestamp(unit, zone) for zone in (None, "UTC") for unit in ("s", "ns")]
    return [*numbers, pa.bool_(), pa.date32(), pa.time32("s"), *instants]


_CANDIDATES = _candidates()


def _all_are(texts: pa.Array, kind: pa.DataType) -> bool:
    """Return whether each text is the way that a value of the type is written, and the type holds it exactly."""
    if pa.types.is_boolean(kind):
        spellings = set(pc.unique(texts).to_pylist())
        return any(spellings <= set(pair) for pair in _BOOLEANS)
    patterns = {
        pa.date32(): _DATE,
        pa.time32("s"): _CLOCK,
        **dict.fromkeys((json_columns.NUMBERS[item] for item in ("float64", "decimal")), _NUMBER),
    }
    pattern = patterns.get(kind, _INTEGER)
    if pa.types.is_timestamp(kind):
        pattern = _INSTANT + (_ZONE if kind.tz else "$")
    if not pc.all(pc.match_substring_regex(texts, pattern)).as_py():
        return False
    if pa.types.is_float64(kind) or kind.equals(json_columns.NUMBERS["decimal"]):
        return json_columns.all_hold(texts, kind)
    try:
        _typed(texts, kind)
    except (pa.ArrowException, ValueError):
        return False
    return True


def _typed(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        return texts
    if pa.types.is_null(kind):
        return pa.nulls(len(texts))
    values = pc.if_else(pc.fill_null(pc.is_in(texts, _NO_VALUES), False), pa.scalar(None, pa.string()), texts)
    return decimals.from_text(values, kind) if pa.types.is_decimal(kind) else values.cast(kind)


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
