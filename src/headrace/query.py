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


class HasTopics(Protocol):
    """What a query needs: names."""

    def topics(self) -> Mapping[str, object]: ...


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
                connection.register(name, table_of(log, name))
        found = connection.sql(query)
        return pa.table({}) if found is None else found.to_arrow_table()
    except duckdb.Error as error:
        raise LogError(f"the query failed: {error}", advice=_advice(log, str(error))) from error
    finally:
        connection.close()


def topic_table(log: Log, topic: str) -> pa.Table:
    """A whole topic as people read it: the row's columns, then ``op``, ``position``, ``ts`` and ``offset``."""
    tables: list[pa.Table] = []
    for entry in walk(log, topic):
        numbers = range(entry.offset, entry.offset + entry.records.num_rows)
        tables.append(with_numbers(present(entry.records), offset=pa.array(numbers, pa.int64())))
    return joined(tables)


def with_numbers(table: pa.Table, **columns: pa.Array) -> pa.Table:
    """A table with further columns; where it has one of the name, the new one's begins with ``__``."""
    for name, numbers in columns.items():
        table = table.append_column(name if name not in table.column_names else f"__{name}", numbers)
    return table


def joined(tables: list[pa.Table]) -> pa.Table:
    """Tables of one topic as one: missing columns are null, numbers as wide as needed, else text."""
    if not tables:
        return pa.table({"offset": pa.array([], pa.int64())})
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowTypeError:
        kinds: dict[str, set[pa.DataType]] = {}
        for table in tables:
            for field in table.schema:
                kinds.setdefault(field.name, set()).add(field.type)
        return pa.concat_tables([_as_text(table, kinds) for table in tables], promote_options="permissive")


def _as_text(table: pa.Table, kinds: Mapping[str, set[pa.DataType]]) -> pa.Table:
    for i, field in enumerate(table.schema):
        if len(kinds[field.name]) > 1:
            texts = [None if one is None else str(one) for one in table.column(i).to_pylist()]
            table = table.set_column(i, field.name, pa.array(texts, pa.string()))
    return table


def _advice(log: HasTopics, message: str) -> str:
    names = [name for name in log.topics() if not name.startswith("__")]
    quoted = ", ".join(f'"{name}"' for name in names) or "none"
    near = [name for name in names if any(difflib.get_close_matches(name, message.split(), n=1, cutoff=0.6))]
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f"Topics (quote names with dots): {quoted}.{hint}"
