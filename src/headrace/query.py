"""SQL over topics, by DuckDB: each topic that the query names becomes a table, its Arrow read in place."""

from __future__ import annotations

import difflib

import duckdb
import pyarrow as pa

from headrace.batch import present
from headrace.errors import LogError
from headrace.log.base import Log, walk


def query_topics(log: Log, query: str) -> pa.Table:
    """Run a query on the rows that the log holds now.

    A topic's table has the row's columns, then ``op``, ``position``, ``ts`` and ``offset``.

    Raises:
        LogError: the SQL is wrong, or names a topic that is not there.
    """
    connection = duckdb.connect(":memory:")
    try:
        # Nothing is fetched from anywhere: an extension that is not there is an error.
        connection.execute("set autoinstall_known_extensions = false")
        connection.execute("set TimeZone = 'UTC'")
        for name in sorted(connection.get_table_names(query, qualified=False)):
            if name in log.topics():
                connection.register(name, topic_table(log, name))
        found = connection.sql(query)
        return pa.table({}) if found is None else found.to_arrow_table()
    except duckdb.Error as error:
        raise LogError(f"the query failed: {error}", advice=_advice(log, str(error))) from error
    finally:
        connection.close()


def topic_table(log: Log, topic: str) -> pa.Table:
    """A whole topic as people read it, with its offsets."""
    tables: list[pa.Table] = []
    for entry in walk(log, topic):
        table = present(entry.records)
        name = "offset" if "offset" not in table.column_names else "__offset"
        numbers = pa.array(range(entry.offset, entry.offset + table.num_rows), pa.int64())
        tables.append(table.append_column(name, numbers))
    return pa.concat_tables(tables, promote_options="permissive")


def _advice(log: Log, message: str) -> str:
    names = [name for name in log.topics() if not name.startswith("__")]
    quoted = ", ".join(f'"{name}"' for name in names) or "none"
    near = [name for name in names if any(difflib.get_close_matches(name, message.split(), n=1, cutoff=0.6))]
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f"Topics (quote names with dots): {quoted}.{hint}"
