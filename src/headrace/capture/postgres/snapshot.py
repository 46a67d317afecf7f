"""The rows that were there when the slot was made, read by COPY in binary in the slot's own exported snapshot.

Types that ADBC, one of the readers (`row_reader`), would give in another form than the stream's are selected as their
text (by the type's output function, which is what the stream sends) and cast in Arrow; the result has exactly the
schema that the stream's batches have. Values that Arrow cannot hold make dead letters.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TypeVar

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Mask
from headrace.batch import META_FIELDS, Batch, dead_letters
from headrace.capture.base import Log, Transaction
from headrace.capture.postgres import catalog, types, values
from headrace.capture.postgres.catalog import Column, SqlConnection, Table, quote
from headrace.capture.postgres.client import Server
from headrace.capture.postgres.facts import Types
from headrace.capture.postgres.row_reader import RowReader, connect_reader
from headrace.capture.postgres.snapshot_options import SnapshotOptions
from headrace.capture.postgres.table import misfit, nans, plain_json
from headrace.capture.read_ahead import ReadAhead
from headrace.errors import SourceRefused, SourceUnavailable
from headrace.faults import fault
from headrace.plain_values import INFINITE, infinities, is_list

PIECE_ROWS = 100_000
T = TypeVar("T")
_PAGES = "SELECT pg_relation_size(%s::oid) / current_setting('block_size')::bigint"
_CANCEL_S = 0.2
_RANGE_PAGES = 2048  # of a table, read by one of several connections at once: 16 MB
OnProgress = Callable[[str, int, int], None]  # table, rows until now, rows estimated
_DEAD = "__dead"
# Selected as they are; everything else by its output function. char(n) as such: a cast would strip its padding.
_NATIVE = frozenset(
    {types.BOOL, types.BYTEA, types.INT2, types.INT4, types.INT8, types.FLOAT4, types.FLOAT8}
    | {types.TEXT, types.VARCHAR, types.BPCHAR, types.DATE, types.TIMESTAMP, types.TIMESTAMPTZ}
)
# The last microsecond that 64 bits can count from 1970.
_LAST = "294247-01-10 04:00:54.775807"


class Snapshot:
    """An imported snapshot: the tables as they were, and the rows in them. Use as a context manager.

    Args:
        name: what CREATE_REPLICATION_SLOT returned; its connection must stay idle until this object is made.
        tables: what to read. They are locked in ACCESS SHARE mode, as pg_dump does, until the block ends.
        types: the tables are to have what the catalog says of them besides; types that are known by now.
        threads: connections that read.
        patience_ms: no longer than this a lock is waited for; 0: as long as it takes.

    Attributes:
        tables: the same with their columns as of the snapshot; for Debezium's events with generated ones too.
        streamed: the same with the columns that the stream has.
        ts_us: the server's time when it was imported.
        connection: one that has the snapshot.

    Raises:
        SnapshotStale: a table was rewritten or renamed between the slot's consistent point and the lock, or is locked.
    """

    def __init__(
        self,
        server: Server,
        name: str,
        tables: Sequence[Table],
        publication: str,
        *,
        types: Types | None = None,
        threads: int = 1,
        patience_ms: int = 0,
    ) -> None:
        self._server = server
        self._patience_ms = patience_ms
        self._types = types
        self._name = name
        self._stack = contextlib.ExitStack()
        try:
            connection = self.connection = self._stack.enter_context(contextlib.closing(server.sql()))
            with server.translated("to import the snapshot"):
                self.tables, self.streamed, self.ts_us = self._lock(connection, tables, publication)
            self._readers = [self._connect() for _ in range(threads)]
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the tables go."""
        self._stack.close()

    def _lock(
        self, connection: SqlConnection, tables: Sequence[Table], publication: str
    ) -> tuple[list[Table], list[Table], int]:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute(f"SET TRANSACTION SNAPSHOT '{self._name}'".encode())
        connection.execute(f"SET lock_timeout = {self._patience_ms}".encode())
        names = ", ".join(table.only_sql for table in tables)
        try:
            connection.execute(f"LOCK TABLE {names} IN ACCESS SHARE MODE".encode())
        except psycopg.errors.LockNotAvailable as error:
            raise SnapshotStale(f"somebody has locked one of {names}") from error
        # A name may be another table's by now, which the lock keeps it from becoming later.
        named = "SELECT to_regclass(name)::oid::bigint FROM unnest(%s::text[]) WITH ORDINALITY n(name, i) ORDER BY i"
        found_oids = [oid for (oid,) in connection.execute(named, [[table.sql for table in tables]])]
        for table, oid in zip(tables, found_oids, strict=True):
            if oid != table.oid:
                raise SnapshotStale(f"{table} is another table now")
        # In the snapshot pg_class is as it was; the function looks at the present.
        rewritten = """SELECT oid::regclass::text FROM pg_class WHERE relfilenode <> pg_relation_filenode(oid)
            AND (oid = ANY(%s) OR oid IN (SELECT p.relid FROM unnest(%s::oid[]) r, pg_partition_tree(r) p))"""
        roots = [table.oid for table in tables if table.partitioned]
        changed = connection.execute(rewritten, [[table.oid for table in tables], roots]).fetchall()
        if changed:
            raise SnapshotStale(f"table {changed[0][0]} was rewritten while the snapshot began")
        published = catalog.publication(connection, publication)
        found = streamed = catalog.with_columns(connection, tables, published)
        if self._types is not None:
            found = catalog.with_columns(connection, tables, published, generated=True)
            found = [table.with_facts(connection, self._types) for table in found]
        (ts_us,) = connection.execute("SELECT (extract(epoch FROM now()) * 1000000)::bigint").fetchone() or (0,)
        return found, streamed, ts_us

    def _connect(self) -> RowReader:
        reader = self._stack.enter_context(contextlib.closing(connect_reader(self._server)))
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        reader.execute(f"SET TRANSACTION SNAPSHOT '{self._name}'")
        return reader

    def read(self, table: Table, query: str = "") -> Iterator[pa.RecordBatch]:
        """Yield a table's rows as the columns of `select` give them, in batches of about a megabyte.

        Args:
            query: somebody's, read in the table's place.
        """
        if len(self._readers) == 1 or query or table.whole or table.partitioned:
            yield from self._readers[0].read(select(table, partitions=table.whole, query=query))
            return
        (size,) = self.connection.execute(_PAGES, [table.oid]).fetchone() or (0,)
        bounds = [*range(0, size, _RANGE_PAGES), 2**32 - 1]
        ranges = [f"ctid >= '({low},0)' AND ctid < '({high},0)'" for low, high in itertools.pairwise(bounds)]
        within = [f"({table.row_filter}) AND {part}" if table.row_filter else part for part in ranges]
        for _, batches in self.read_each((part, select(replace(table, row_filter=part))) for part in within):
            yield from batches

    def read_each(self, queries: Iterable[tuple[T, str]]) -> Iterator[tuple[T, Iterable[pa.RecordBatch]]]:
        """Yield the rows of each query with what stands beside it, in their order.

        As many are read at once as there are connections; of several connections each has its rows in memory.
        """
        if len(self._readers) == 1:
            for about, query in queries:
                yield about, self._readers[0].read(query)
            return
        free: queue.SimpleQueue[RowReader] = queue.SimpleQueue()
        for reader in self._readers:
            free.put(reader)

        def rows_of(query: str) -> list[pa.RecordBatch]:
            reader = free.get()
            try:
                return list(reader.read(query))
            finally:
                free.put(reader)

        waiting: deque[tuple[T, Future[list[pa.RecordBatch]]]] = deque()
        with ThreadPoolExecutor(len(self._readers), "headrace-snapshot") as pool:
            try:
                for about, query in queries:
                    waiting.append((about, pool.submit(rows_of, query)))
                    if len(waiting) > len(self._readers):
                        yield waiting[0][0], waiting.popleft()[1].result()
                while waiting:
                    yield waiting[0][0], waiting.popleft()[1].result()
            finally:
                running = [future for _, future in waiting if not future.cancel()]
                # A statement that has only just been sent may begin after it was cancelled.
                while wait(running, timeout=0).not_done:
                    for reader in self._readers:
                        reader.cancel()
                    wait(running, timeout=_CANCEL_S)


class SnapshotStale(SourceUnavailable):
    """A table was rewritten (TRUNCATE, ALTER TABLE) just after the snapshot: take a new one."""


class Connections:
    """Two connections to a server, opened when they are needed: one for SQL, one that reads Arrow batches."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._sql: SqlConnection | None = None
        self._reader: RowReader | None = None

    def sql(self) -> SqlConnection:
        """Return the one for SQL."""
        if self._sql is None or self._sql.closed:
            self._sql = self._server.sql()
        return self._sql

    def reader(self) -> RowReader:
        """Return the one that reads Arrow batches."""
        if self._reader is None:
            self._reader = connect_reader(self._server)
        return self._reader

    def cancel(self) -> None:
        """End the statements of both, with an error. From any thread."""
        sql, reader = self._sql, self._reader
        with contextlib.suppress(psycopg.Error):
            if sql is not None:
                sql.cancel()
        if reader is not None:
            reader.cancel()

    def close(self) -> None:
        """Close both; they are opened again when they are needed."""
        if self._reader is not None:
            self._reader.close()
        self._reader = None
        if self._sql is not None:
            with contextlib.suppress(psycopg.Error):
                self._sql.close()


def read_table(dsn: str, schema: str, name: str) -> pa.Table:
    """Return a table's rows as they are now, with the types of its events; without those that Arrow cannot hold.

    Raises:
        SourceError: the server cannot be reached, or the table cannot be read.
    """
    server = Server(dsn, "headrace initial")
    with contextlib.closing(server.sql()) as connection, server.translated(f"to read {schema}.{name}"):
        found = connection.execute("SELECT to_regclass(%s)::oid::bigint", [f"{quote(schema)}.{quote(name)}"]).fetchone()
        if found is None or found[0] is None:
            raise SourceRefused(f"there is no table {schema}.{name} in {server}")
        (table,) = catalog.with_columns(connection, [Table(found[0], schema, name, "r", "p", "d", 0)], None)
    converter = Converter(table, "", lsn=0, ts_us=0)
    with contextlib.closing(connect_reader(server)) as reader:
        batches = [converter.convert(records, 0)[0] for records in reader.read(select(table, partitions=True))]
    return pa.Table.from_batches([Batch(records).rows for records in batches], converter.rows_schema)


def select(table: Table, *, partitions: bool = False, query: str = "") -> str:
    """Return the query for a table's rows; a last column has the values that Arrow cannot hold, if there can be any.

    Args:
        partitions: those of its partitions, and of tables that inherit from it, too.
        query: read in the table's place; it has the table's columns.
    """
    fields = table.stream_table("").fields
    columns = [
        f"{_sent(column) if is_list(field.type) else _expression(column)} AS {quote(column.name)}"
        for column, field in zip(table.columns, fields, strict=True)
    ]
    refused = {column.name: test for column in table.columns if (test := _refusal(column))}
    if refused:
        outputs = {column.name: output(column) for column in table.columns}
        names = ", ".join(literal(name) for name in refused)
        texts = ", ".join(f"CASE WHEN {test} THEN {outputs[name]} END" for name, test in refused.items())
        tests = " OR ".join(refused.values())
        columns.append(f"CASE WHEN {tests} THEN json_object(ARRAY[{names}], ARRAY[{texts}])::text END AS {_DEAD}")
    where = f" WHERE {table.row_filter}" if table.row_filter else ""
    read = f"({query.strip().rstrip(';')}\n) AS q" if query else table.sql if partitions else table.only_sql
    return f"SELECT {', '.join(columns)} FROM {read}{where}"


def _expression(column: Column) -> str:
    if column.type_oid == types.OID:
        return f"{quote(column.name)}::int8"
    return quote(column.name) if column.type_oid in _NATIVE else output(column)


def _sent(column: Column) -> str:
    """Return SQL for the binary form of a vector, by pgvector's own function."""
    return f"{column.output.removesuffix('_out')}_send({quote(column.name)})"


def output(column: Column) -> str:
    """Return SQL for a column's text, by the output function of its type."""
    if column.output == "pg_catalog.enum_out" and column.declared.startswith("domain "):
        return f"{quote(column.name)}::text"  # a domain is no enum to a function of any enum
    return f"pg_catalog.textin({column.output}({quote(column.name)}))"


def _refusal(column: Column) -> str | None:
    """Return the SQL condition under which Arrow cannot hold the value."""
    name = quote(column.name)
    if column.type_oid == types.DATE:
        return f"NOT isfinite({name})"
    if column.type_oid == types.TIMESTAMP:
        return f"({name} > '{_LAST}' OR {name} = '-infinity')"
    if column.type_oid == types.TIMESTAMPTZ:
        return f"({name} > '{_LAST}+00' OR {name} = '-infinity')"
    if pa.types.is_decimal(types.arrow_type(column.type_oid, column.typmod)):
        return f"{name} = 'NaN'"
    return None


def literal(text: str) -> str:
    """Return an SQL string.

    >>> print(literal("it's"))
    'it''s'
    """
    escaped = text.replace("'", "''")
    if "\\" not in text:
        return f"'{escaped}'"
    return "E'" + escaped.replace("\\", "\\\\") + "'"


class Converter:
    """Turns batches of one table into the stream's: cast, described, numbered.

    Args:
        with_nan: rows with a NaN among their decimals say so; else they make dead letters.
    """

    def __init__(self, table: Table, prefix: str, *, lsn: int, ts_us: int, with_nan: bool = True) -> None:
        self._with_nan = with_nan
        described = self._described = table.stream_table(prefix)
        self.topic = described.topic
        self._schema = described.schema()
        self._fields = described.fields
        self._lsn, self._ts_us = lsn, ts_us

    @property
    def rows_schema(self) -> pa.Schema:
        """Of the table's own columns."""
        return pa.schema(self._fields)

    def convert(self, records: pa.RecordBatch, index: int) -> tuple[pa.RecordBatch, Batch | None]:
        """Return the rows from the snapshot's row ``index`` on, and dead letters for those that Arrow cannot hold."""
        meta = self._meta(records.num_rows, index)
        records = self._told(records)
        if records.num_columns == len(self._fields):
            return self._rows(records, meta), None
        records, dead, nan = self._with_infinities(records.drop_columns([_DEAD]), records.column(_DEAD))
        meta += [] if nan is None else [nan]
        if dead.null_count == records.num_rows:
            return self._rows(records, meta), None
        lost = dead.is_valid()
        letters = self._letters(records.filter(lost), dead.filter(lost), [column.filter(lost) for column in meta[:4]])
        kept = dead.is_null()
        return self._rows(records.filter(kept), [column.filter(kept) for column in meta]), letters

    def refused(self, records: pa.RecordBatch) -> pa.RecordBatch | None:
        """Return the rows for which `convert` makes dead letters; what does not fit in them is null."""
        records = self._told(records)
        if records.num_columns == len(self._fields):
            return None
        records, dead, _ = self._with_infinities(records.drop_columns([_DEAD]), records.column(_DEAD))
        if dead.null_count == records.num_rows:
            return None
        lost = records.filter(dead.is_valid())
        columns = [_fitting(lost.column(field.name), field.type) for field in self._fields]
        return pa.RecordBatch.from_arrays(columns, schema=self.rows_schema)

    def _told(self, records: pa.RecordBatch) -> pa.RecordBatch:
        """Return rows with the texts that are not UTF-8 where `select` has what Arrow cannot hold."""
        columns = dict(zip(records.schema.names, records.columns, strict=True))
        dead: dict[int, dict[str, str]] = {}
        for name, column in columns.items():
            lost = values.not_utf8(column) if pa.types.is_string(column.type) else None
            if lost is not None:
                strange = column.view(pa.binary()).filter(pa.array(lost)).to_pylist()
                for row, text in zip(np.flatnonzero(lost).tolist(), strange, strict=True):
                    dead.setdefault(row, {})[name] = text.decode(errors="backslashreplace")
                columns[name] = values.without(column, lost)
        if not dead:
            return records
        told = columns.pop(_DEAD, pa.nulls(records.num_rows, pa.string())).to_pylist()
        for row, texts in dead.items():
            told[row] = json.dumps({**json.loads(told[row] or "{}"), **texts})
        return pa.RecordBatch.from_pydict({**columns, _DEAD: pa.array(told, pa.string())})

    def _with_infinities(
        self, records: pa.RecordBatch, dead: pa.Array
    ) -> tuple[pa.RecordBatch, pa.Array, pa.ListArray | None]:
        """Return the rows with the infinite days and instants that they have, what else they cannot hold, and NaNs."""
        if dead.null_count == len(dead):
            return records, dead, None
        left = [None if texts is None else json.loads(texts) for texts in dead.to_pylist()]
        columns = records.columns
        for place, field in enumerate(self._fields):
            found = {
                row: texts.pop(field.name)
                for row, texts in enumerate(left)
                if texts and pa.types.is_temporal(field.type) and texts.get(field.name) in INFINITE
            }
            if found:
                mask = np.zeros(len(dead), bool)
                mask[list(found)] = True
                infinite = infinities(list(found.values()), field.type)
                columns[place] = pc.replace_with_mask(columns[place].cast(field.type), pa.array(mask), infinite)
        nan = self._take_nan(columns, left) if self._with_nan else []
        names = records.schema.names
        texts = [json.dumps(rest) if rest and any(v is not None for v in rest.values()) else None for rest in left]
        return pa.RecordBatch.from_arrays(columns, names=names), pa.array(texts, pa.string()), nans(nan, len(dead))

    def _take_nan(
        self, columns: list[pa.Array], left: Sequence[dict[str, str | None] | None]
    ) -> list[tuple[str, bool, Mask]]:
        """Have NULL for the NaNs of rows that can be held otherwise, and return where they were."""
        decimals = {field.name for field in self._fields if pa.types.is_decimal(field.type)}
        found: list[tuple[str, bool, Mask]] = []
        kept = [texts for texts in left if texts and all(v is None or name in decimals for name, v in texts.items())]
        whole = {id(texts) for texts in kept}
        for place, field in enumerate(self._fields):
            nan = np.array([id(texts) in whole and bool(texts and texts.get(field.name)) for texts in left])
            if nan.any():
                found.append((field.name, False, nan))
                columns[place] = pc.if_else(pa.array(nan), pa.scalar(None, columns[place].type), columns[place])
        for texts in kept:
            texts.clear()
        return found

    def batch(self, op: str, rows: pa.RecordBatch, before: pa.RecordBatch | None, index: int) -> pa.RecordBatch:
        """Return rows as events of one op, numbered from ``index`` on; ``before``: the old rows of updates."""
        meta, extra = self._meta(rows.num_rows, index, op), []
        if before is not None:
            extra = [pa.StructArray.from_arrays(before.columns, fields=self._fields)]
        schema = self._described.schema(before=before is not None)
        return pa.RecordBatch.from_arrays([*rows.columns, *meta, *extra], schema=schema)

    def _meta(self, n: int, index: int, op: str = "r") -> list[pa.Array]:
        ops = np.full(n, ord(op), np.uint8)
        lsn = np.full(n, self._lsn, np.uint64)
        ts = np.full(n, self._ts_us, np.int64)
        numbers = (ops, lsn, np.arange(index, index + n), ts)
        return [pa.array(column).view(field.type) for column, field in zip(numbers, META_FIELDS, strict=True)]

    def _rows(self, records: pa.RecordBatch, meta: list[pa.Array]) -> pa.RecordBatch:
        columns = zip(records.columns, self._fields, strict=True)
        cast = [_as(column, field.type) for column, field in columns]
        schema = self._schema if len(meta) == len(META_FIELDS) else self._described.schema(nan=True)
        return pa.RecordBatch.from_arrays([*cast, *meta], schema=schema)

    def _letters(self, records: pa.RecordBatch, dead: pa.Array, meta: list[pa.Array]) -> Batch:
        columns = [_as(c, f.type) if is_list(f.type) else c for c, f in zip(records.columns, self._fields, strict=True)]
        records = pa.RecordBatch.from_arrays(columns, names=records.schema.names)
        reasons, rows = [], []
        for row, texts in enumerate(dead.to_pylist()):
            refused = {name: text for name, text in json.loads(texts).items() if text is not None}
            reasons.append("; ".join(self._reason(name, text) for name, text in refused.items()))
            values = {name: plain_json(records.column(name)[row]) for name in records.schema.names}
            rows.append(json.dumps({**values, **refused}))
        schema = pa.schema([*records.schema, *META_FIELDS], metadata=self._schema.metadata)
        batch = Batch(pa.RecordBatch.from_arrays([*records.columns, *meta], schema=schema))
        return dead_letters(batch, reasons, stage="capture", rows=rows)

    def _reason(self, name: str, text: str) -> str:
        field = self._schema.field(name)
        return f"column «{name}»: {field.metadata[b'postgres.type'].decode()} «{text}» {misfit(field.type)}"


def _as(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return what was selected with the type that the stream's values have."""
    if column.type == kind:
        return column
    if not is_list(kind):
        return column.cast(kind)
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    held = None if not column.null_count else np.asarray(column.is_valid())
    return values.vectors_sent(np.frombuffer(data or b"", np.uint8), bounds[:-1], np.diff(bounds), held, kind)


def _fitting(column: pa.Array, kind: pa.DataType) -> pa.Array:
    try:
        return _as(column, kind)
    except pa.ArrowInvalid:
        return pa.nulls(len(column), kind)


def stage_snapshot(
    snapshot: Snapshot,
    log: Log,
    *,
    prefix: str,
    lsn: int,
    on_progress: OnProgress,
    options: SnapshotOptions | None = None,
    tables: Sequence[Table] | None = None,
) -> int:
    """Stage all rows into the log, in slices of 100,000 rows of one table; return how many there were.

    What is staged becomes visible when the caller publishes it, in the same transaction as the source's record.
    """
    index, options = 0, options or SnapshotOptions()
    queries = dict(options.selects)
    for table in snapshot.tables if tables is None else tables:
        if not options.reads(str(table)):
            continue
        converter = Converter(table, prefix, lsn=lsn, ts_us=snapshot.ts_us)
        begin = index
        with contextlib.closing(read_ahead(snapshot, table, queries.get(str(table), ""))) as batches:
            for piece in pieces(iter(batches)):
                with log.transaction() as transaction:
                    transaction.next_slice()
                    for records in piece:
                        stage(transaction, converter, records, index)
                        index += records.num_rows
                fault("snapshot.piece-staged")
                on_progress(str(table), index - begin, max(index - begin, table.estimated_rows))
        if index == begin:
            on_progress(str(table), 0, 0)
    return index


def read_ahead(snapshot: Snapshot, table: Table, query: str = "") -> ReadAhead[pa.RecordBatch]:
    """Read a table's rows, or a query's in its place, in a thread, some batches ahead."""
    return ReadAhead(lambda _: snapshot.read(table, query), "headrace-snapshot")


def stage(transaction: Transaction, converter: Converter, records: pa.RecordBatch, index: int) -> None:
    """Stage rows from the snapshot's row ``index`` on, and dead letters for those that Arrow cannot hold."""
    rows, letters = converter.convert(records, index)
    if rows.num_rows:
        transaction.stage(converter.topic, rows)
    if letters is not None:
        transaction.stage(f"{converter.topic}.dlq", letters.records)


def pieces(batches: Iterator[pa.RecordBatch], rows: int = PIECE_ROWS) -> Iterator[list[pa.RecordBatch]]:
    """Yield the batches regrouped into lists of exactly ``rows`` rows, but for the last.

    >>> batch = pa.record_batch({"id": [1, 2, 3]})
    >>> [[part.num_rows for part in piece] for piece in pieces(iter([batch, batch, batch]), rows=4)]
    [[3, 1], [2, 2], [1]]
    """
    gathered: list[pa.RecordBatch] = []
    free = rows
    for batch in batches:
        while batch.num_rows >= free:
            yield [*gathered, batch.slice(0, free)]
            batch = batch.slice(free)
            gathered, free = [], rows
        if batch.num_rows:
            gathered.append(batch)
            free -= batch.num_rows
    if gathered:
        yield gathered
