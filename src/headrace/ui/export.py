"""Rows as files that a browser keeps: CSV, JSON lines and Parquet, written while they are read."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from urllib.parse import quote

import pyarrow as pa
from pyarrow import csv, parquet
from starlette.responses import StreamingResponse

from headrace.errors import DeclarationError
from headrace.inspect.messages import to_json
from headrace.plain_values import rows, texts, united

KINDS = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson", "parquet": "application/vnd.apache.parquet"}


def exported(tables: Iterable[pa.Table], shape: pa.Table, kind: str, name: str) -> StreamingResponse:
    """Return rows as a file.

    Args:
        shape: none of the rows, with all columns that any of them has.
        kind: one of `KINDS`.
        name: of the file, without its ending.

    Raises:
        DeclarationError: there is no such kind.
    """
    if kind not in KINDS:
        raise DeclarationError(f"rows are not exported as «{kind}»", advice=f"Give {', '.join(KINDS)}.")
    write = {"csv": _csv, "jsonl": _json_lines, "parquet": _parquet}[kind]
    headers = {"content-disposition": f"attachment; filename*=UTF-8''{quote(f'{name}.{kind}', safe='')}"}
    return StreamingResponse(write(tables, shape), media_type=KINDS[kind], headers=headers)


def _aligned(table: pa.Table, shape: pa.Table) -> pa.Table:
    """Return rows with all columns, those that a table has not as nulls; their types may still be their own."""
    columns = {name: table.column(name) if name in table.column_names else None for name in shape.column_names}
    nulls = pa.nulls(table.num_rows)
    return pa.table({name: nulls if column is None else column for name, column in columns.items()})


def _csv(tables: Iterable[pa.Table], shape: pa.Table) -> Iterator[bytes]:
    """Yield lines; every value as PostgreSQL prints it, an empty text in quotes and NULL as nothing."""
    sink = io.BytesIO()
    header = pa.table({name: pa.array([name]) for name in shape.column_names})
    csv.write_csv(header, sink, csv.WriteOptions(include_header=False))
    yield sink.getvalue()
    for table in tables:
        sink = io.BytesIO()
        aligned = _aligned(table, shape)
        printed = pa.table({name: pa.array(texts(column), pa.string()) for name, column in
                            zip(aligned.column_names, aligned.columns, strict=True)})  # fmt: skip
        csv.write_csv(printed, sink, csv.WriteOptions(include_header=False))
        yield sink.getvalue()


def _json_lines(tables: Iterable[pa.Table], shape: pa.Table) -> Iterator[bytes]:
    del shape
    for table in tables:
        yield "".join(f"{to_json(row)}\n" for row in rows(table)).encode()


def _parquet(tables: Iterable[pa.Table], shape: pa.Table) -> Iterator[bytes]:
    """Yield a file whose columns have the types that hold all of a topic's; text where there is no such one.

    Raises:
        DeclarationError: a value is lost in that type.
    """
    schema = pa.schema([field.with_type(_stored(field.type)) for field in shape.schema])
    sink = _Pipe()
    with parquet.ParquetWriter(sink, schema) as writer:
        for table in tables:
            known = united([schema.empty_table(), _aligned(table, shape)])
            columns = []
            for field in schema:
                column = known.column(field.name)
                if not column.type.equals(field.type):
                    if not pa.types.is_string(field.type):
                        raise DeclarationError(
                            f"a value of «{field.name}» does not fit {field.type}", advice="Export JSON lines."
                        )
                    column = pa.array(texts(column), pa.string())
                columns.append(column)
            writer.write_table(pa.table(columns, schema=schema))
            yield sink.taken()
    yield sink.taken()


def _stored(kind: pa.DataType) -> pa.DataType:
    """Return the type that a file has for a column."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _stored(kind.value_type)
    foreign = (pa.types.is_union, pa.types.is_interval, pa.types.is_null)
    return pa.string() if any(matches(kind) for matches in foreign) else kind


class _Pipe(io.RawIOBase):
    """A file that is read while it is written."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._place = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def write(self, data: object, /) -> int:
        part = bytes(memoryview(data))  # type: ignore[arg-type]  # whatever Arrow writes is a buffer
        self._parts.append(part)
        self._place += len(part)
        return len(part)

    def taken(self) -> bytes:
        """Return what was written since."""
        parts, self._parts = self._parts, []
        return b"".join(parts)
