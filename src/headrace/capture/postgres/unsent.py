"""Values that an update did not send, because they are large and did not change (TOAST): read again from the table.

A row says which of its values were not sent (``__unchanged``). Where it is wanted, they are read by the row's key, on
connections of their own, when the update is read from the stream: as Debezium's ReselectColumns does. A value that has
changed once more by then is the newer one; a row that is gone by then stays marked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from headrace import plain_values
from headrace.batch import Batch
from headrace.capture.base import Piece
from headrace.capture.postgres import catalog
from headrace.capture.postgres.catalog import SqlConnection, Table, quote
from headrace.capture.postgres.chunk_key import Key, Unreadable
from headrace.capture.postgres.client import Server
from headrace.capture.postgres.snapshot import Connections, Converter, literal, select
from headrace.capture.postgres.snapshot_progress import Wanted
from headrace.capture.postgres.table import topic_of
from headrace.errors import SourceError, SourceRefused
from headrace.position import Lsn

Texts = tuple[str | None, ...]
_KEYS = 1_000  # in one query


class Reselect:
    """Reads values again that the stream did not send; from the thread that reads the stream.

    Args:
        publication: of the capture; it says which columns a table has.
        prefix: of the topics.
        tables: returns the captured tables.
        patterns: of which one matches the whole of ``schema.table:column``, whatever the case.
        say: warns once of what could not be read; the row stays marked.
    """

    def __init__(
        self,
        server: Server,
        publication: str,
        prefix: str,
        tables: Callable[[], Sequence[Table]],
        patterns: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        self._server, self._publication, self._prefix = server, publication, prefix
        self._tables, self._say = tables, say
        self._patterns = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
        self._connections = Connections(server)

    def fill(self, pieces: Sequence[Piece[Lsn]]) -> list[Piece[Lsn]]:
        """Return the pieces with the values that can be read.

        Raises:
            SourceUnavailable: the server is away.
        """
        if not any(batch.unchanged is not None for piece in pieces for _, batch in piece.batches):
            return list(pieces)
        return [
            replace(piece, batches=tuple((topic, self._filled(topic, batch)) for topic, batch in piece.batches))
            for piece in pieces
        ]

    def _filled(self, topic: str, batch: Batch) -> Batch:
        lists = batch.unchanged
        if lists is None or not batch.key_columns:
            return batch
        table = next((table for table in self._tables() if topic_of(self._prefix, table.label) == topic), None)
        if table is None:
            return batch
        label = ".".join(table.label)
        names = pc.unique(lists.flatten()).to_pylist()
        names = [name for name in names if any(some.fullmatch(f"{label}:{name}") for some in self._patterns)]
        if not names:
            return batch
        rows = np.flatnonzero(np.asarray(pc.fill_null(pc.list_value_length(lists), 0)) > 0)
        keys = key_texts([batch.records.column(name).take(pa.array(rows)) for name in batch.key_columns])
        try:
            found = self._read(table, batch, names, [key for key in dict.fromkeys(keys) if None not in key])
        except (SourceRefused, Unreadable) as error:
            text = " ".join(str(error).split())
            self._say(f"{label}: values that updates did not send stay unsent: {text}")
            return batch
        return filled(batch, rows, keys, found)

    def _read(self, table: Table, batch: Batch, names: Sequence[str], keys: Sequence[Texts]) -> pa.Table:
        """Return the rows that have these keys now: the key's columns, and those that are wanted and still there."""
        with self._server.translated("a value that an update did not send"):
            try:
                sql = self._connections.sql()
                named = catalog.as_named_now(sql, table)
                if named is None:
                    raise Unreadable("it was dropped")
                (table,) = catalog.with_columns(sql, [named], catalog.publication(sql, self._publication))
                chosen = {*names, *batch.key_columns}
                table = replace(table, columns=tuple(column for column in table.columns if column.name in chosen))
                return self._copied(sql, table, batch.key_columns, keys)
            except psycopg.OperationalError:
                self.close()
                raise

    def _copied(self, sql: SqlConnection, table: Table, key: Sequence[str], keys: Sequence[Texts]) -> pa.Table:
        by = Key.of(sql, replace(table, key=tuple(key), row_filter=None), Wanted("", table.oid, str(table)))
        converter = Converter(table, self._prefix, lsn=0, ts_us=0)
        batches = []
        for at in range(0, len(keys), _KEYS):
            query = select(replace(table, row_filter=_any_of(by, keys[at : at + _KEYS])))
            batches += [Batch(converter.convert(records, 0)[0]).rows for records in self._fetched(query)]
        return pa.Table.from_batches(batches, converter.rows_schema)

    def _fetched(self, query: str) -> list[pa.RecordBatch]:
        try:
            return list(self._connections.reader().read(query))
        except SourceError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections; they are opened again when they are needed."""
        self._connections.close()


def _any_of(by: Key, keys: Sequence[Texts]) -> str:
    """Return SQL that is true for the rows that have one of these keys."""
    bounds = [[text for text in key if text is not None] for key in keys]
    if len(by.columns) == 1 and set(by.schemas) == {"pg_catalog"}:
        return f"{quote(by.columns[0])} IN ({', '.join(literal(text) for (text,) in bounds)})"
    return " OR ".join(f"({by.compare('=', bound)})" for bound in bounds)


def key_texts(columns: Sequence[pa.Array]) -> list[Texts]:
    """Return each row's key as texts that PostgreSQL reads as the same values.

    >>> key_texts([pa.array([1, None]), pa.array([b"a", b"b"])])
    [('1', '\\\\x61'), (None, '\\\\x62')]
    """
    texts = []
    for column in columns:
        if pa.types.is_binary(column.type):
            texts.append([None if value is None else f"\\x{value.hex()}" for value in column.to_pylist()])
        elif pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            # Infinite ones, and those of long ago, as PostgreSQL prints them.
            texts.append([None if value is None else str(value) for value in plain_values.values(column)])
        else:
            texts.append(column.cast(pa.string()).to_pylist())
    return list(zip(*texts, strict=True))


def with_values(column: pa.Array, rows: npt.NDArray[np.bool_], values: pa.Array) -> pa.Array:
    """Return a column with other values for some of its rows, in their order; of any type, lists too.

    >>> lists = pa.array([None, [1.0]], pa.list_(pa.float32(), 1))
    >>> with_values(lists, np.array([True, False]), lists.slice(1)).to_pylist()
    [[1.0], [1.0]]
    """
    at = np.arange(len(column))
    at[rows] = len(column) + np.arange(len(values))
    return pa.concat_arrays([column, values]).take(pa.array(at))


def filled(batch: Batch, rows: npt.NDArray[np.int64], keys: Sequence[Texts], found: pa.Table) -> Batch:
    """Return a batch with the values that were found for some of its rows.

    Args:
        rows: those with values that were not sent.
        keys: theirs.
        found: rows with the key's columns and with such values, one of a key; columns of another type are left out.

    >>> told = pa.array([["t"], []], pa.list_(pa.string()))
    >>> sent = Batch.of({"id": [1, 2], "t": pa.array([None, "b"])}, key=["id"], unchanged=told)
    >>> found = pa.table({"id": [1], "t": ["a"]})
    >>> filled(sent, np.array([0]), key_texts([pa.array([1])]), found).rows.column("t").to_pylist()
    ['a', 'b']
    """
    assert batch.unchanged is not None
    place_of = {key: place for place, key in enumerate(key_texts([found.column(n) for n in batch.key_columns]))}
    place = np.array([place_of.get(key, -1) for key in keys])
    told = batch.unchanged.to_pylist()
    names = [set(told[row]) for row in rows.tolist()]
    records = batch.records
    for name in {name for some in names for name in some}:
        index, there = records.schema.get_field_index(name), found.schema.get_field_index(name)
        if index < 0 or there < 0 or found.schema.field(there).type != records.schema.field(index).type:
            continue
        has = np.array([at >= 0 and name in some for at, some in zip(place, names, strict=True)])
        if not has.any():
            continue
        mask = np.zeros(batch.num_rows, bool)
        mask[rows[has]] = True
        values = found.column(there).take(pa.array(place[has])).combine_chunks()
        column = with_values(records.column(index), mask, values)
        records = records.set_column(index, records.schema.field(index), column)
        for some in (names[i] for i in np.flatnonzero(has)):
            some.discard(name)
    for row, some in zip(rows.tolist(), names, strict=True):
        told[row] = [name for name in told[row] if name in some]
    index = records.schema.get_field_index("__unchanged")
    if not any(told):
        return Batch(records.remove_column(index))
    field = records.schema.field(index)
    return Batch(records.set_column(index, field, pa.array(told, field.type)))
