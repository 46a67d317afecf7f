"""SQL over topics, by DuckDB: each topic that the query names becomes a table, its Arrow read in place."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import duckdb
import pyarrow as pa

from headrace.batch import present
from headrace.errors import LogError
from headrace.log.base import Log, walk
from headrace.plain_values import texts, united


class HasTopics(Protocol):
    """A log or a cluster, as a query needs it: names."""

    def topics(self) -> Mapping[str, object]: ...


class Names:
    """The topics a query may name."""

    def __init__(self, names: set[str]) -> None:
        self._names = dict.fromkeys(sorted(names))

    def topics(self) -> Mapping[str, object]:
        return self._names


def query_topics(log: HasTopics, query: str, read: Callable[[Any, str], pa.Table] | None = None) -> pa.Table:
    """Run a query on the rows that are there now.

    Args:
        log: a log, or a cluster.
        read: gives a topic's table; `topic_table`, of a log, by default.

    Raises:
        LogError: the SQL is wrong, or names a topic that is not there.
    """
    table_of: Callable[[Any, str], pa.Table] = read or topic_table
    connection = duckdb.connect(":memory:")
    try:
        # Nothing is fetched from anywhere: an extension that is not there is an error.
        connection.execute("set autoinstall_known_extensions = false")
        connection.execute("set TimeZone = 'UTC'")
        for name in sorted(connection.get_table_names(query, qualified=False)):
            if name in log.topics():
                connection.register(name, _for_duckdb(table_of(log, name)))
        found = connection.sql(query)
        return pa.table({}) if found is None else found.to_arrow_table()
    except duckdb.Error as error:
        raise LogError(f"the query failed: {error}", advice=_advice(log, str(error))) from error
    finally:
        connection.close()


def topic_table(log: Log, topic: str) -> pa.Table:
    """Return a whole topic as people read it: the row's columns, then ``op``, ``position``, ``ts`` and ``offset``."""
    tables: list[pa.Table] = []
    for entry in walk(log, topic):
        numbers = range(entry.offset, entry.offset + entry.records.num_rows)
        tables.append(with_numbers(present(entry.records), offset=pa.array(numbers, pa.int64())))
    return joined(tables)


def empty_topic(records: pa.RecordBatch | None) -> pa.Table:
    """Return a topic without rows as `topic_table` does; None where nobody knows its columns."""
    return joined([] if records is None else [with_numbers(present(records), offset=pa.array([], pa.int64()))])


def with_numbers(table: pa.Table, **columns: pa.Array) -> pa.Table:
    """Return a table with further columns; where it has one of the name, the new one's begins with ``__``."""
    for name, numbers in columns.items():
        table = table.append_column(name if name not in table.column_names else f"__{name}", numbers)
    return table


def joined(tables: list[pa.Table]) -> pa.Table:
    """Join tables of one topic; see `united`."""
    return united(tables) if tables else pa.table({"offset": pa.array([], pa.int64())})


def _for_duckdb(table: pa.Table) -> pa.Table:
    """Return a table whose columns DuckDB takes: what it has no type for is text, as PostgreSQL prints it."""
    for i, field in enumerate(table.schema):
        column = _known_to_duckdb(table.column(i), field.type)
        if column is not None:
            table = table.set_column(i, field.name, column)
    return table


def _known_to_duckdb(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray | None:
    """Return another column for one that DuckDB does not take; None where it takes it."""
    if pa.types.is_float16(kind):
        return column.cast(pa.float32())
    finer = None
    if pa.types.is_timestamp(kind) and kind.tz and kind.unit != "us":
        finer = pa.timestamp("us", kind.tz)
    elif pa.types.is_duration(kind) and kind.unit != "us":
        finer = pa.duration("us")
    if finer is not None:
        try:
            return column.cast(finer)
        except pa.ArrowInvalid:
            return pa.array(texts(column), pa.string())
    return pa.array(texts(column), pa.string()) if _is_foreign_to_duckdb(kind) else None


def _is_foreign_to_duckdb(kind: pa.DataType) -> bool:
    if pa.types.is_decimal(kind):
        return bool(kind.precision > 38 or kind.scale < 0)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _is_foreign_to_duckdb(kind.value_type)
    if pa.types.is_union(kind):
        return True
    if pa.types.is_nested(kind):
        inner = [kind.field(i).type for i in range(kind.num_fields)]
        awkward = (pa.types.is_float16, pa.types.is_duration)
        return any(_is_foreign_to_duckdb(part) or any(matches(part) for matches in awkward) for part in inner)
    return False


def _advice(log: HasTopics, message: str) -> str:
    names = [name for name in log.topics() if not name.startswith("__")]
    quoted = ", ".join(f'"{name}"' for name in names) or "none"
    near = [name for name in names if any(difflib.get_close_matches(name, message.split(), n=1, cutoff=0.6))]
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f"Topics (quote names with dots): {quoted}.{hint}"
