"""SQL over topics, by DuckDB: each topic that the query names becomes a table, its Arrow read in place.

DuckDB itself says which tables a statement needs: it is bound, and where a table is missing that is a topic, that one
is read and the statement is bound again. So every form of query works, a topic that is not named is not read, and
tables, views and common table expressions of the query's own come before topics.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import duckdb
import pyarrow as pa

from headrace.batch import present
from headrace.errors import LogError
from headrace.log.base import Log, newest_schema, walk
from headrace.log.sqlite import SqliteLog
from headrace.plain_values import texts, united

_MISSING = re.compile(r"Catalog Error: Table with name (.+?) does not exist!", re.DOTALL)
# DuckDB suggests tables of its own, which nobody means.
_SUGGESTION = re.compile(r"(Table with name .+? does not exist!)\nDid you mean [^\n]*", re.DOTALL)
# Statements that ask which tables there are.
_CATALOGUE = re.compile(
    r"\bshow\b|\bpragma\b|information_schema|duckdb_(tables|views|columns)|\bpg_|sqlite_master|^\s*(describe|desc)\s*;?\s*$",
    re.IGNORECASE,
)
_FILE_NAMES = re.compile(r"\.(csv|tsv|txt|parquet|json|jsonl|ndjson|gz|zst|db|duckdb|xlsx|arrow)$", re.IGNORECASE)
_SYSTEM_NAMES = re.compile(r"(pg|duckdb|sqlite|pragma)_", re.IGNORECASE)
_WRITES = re.compile(r"\s*(insert|update|delete|merge|alter|truncate)\b", re.IGNORECASE)
_TO_FILES = re.compile(r"\b(copy|export|attach)\b", re.IGNORECASE)
_CONSTANT = re.compile(r"'((?:[^']|'')*)'|\"((?:[^\"]|\"\")*)\"|\$\w*\$(.*?)\$\w*\$", re.DOTALL)
MOST_NAMES = 12
Read = Callable[[Any, str], pa.Table]


class HasTopics(Protocol):
    """A log or a cluster, as a query needs it: names."""

    def topics(self) -> Mapping[str, object]: ...


class Names:
    """The topics a query may name."""

    def __init__(self, names: set[str]) -> None:
        self._names = dict.fromkeys(sorted(names))

    def topics(self) -> Mapping[str, object]:
        return self._names


def query_topics(log: HasTopics, query: str, read: Read | None = None) -> pa.Table:
    """Run statements on the rows that are there now; returns what the last query among them gives.

    Args:
        log: a log, or a cluster.
        read: gives a topic's table; `topic_table`, of a log, by default.

    Raises:
        LogError: the SQL is wrong, or names a topic that is not there.
    """
    found = pa.table({})
    for found in query_results(log, query, read):  # noqa: B007 (the last one counts)
        pass
    return found


def query_results(
    log: HasTopics, query: str, read: Read | None = None, no_rows: Read | None = None
) -> Iterator[pa.Table]:
    """Run statements, one after the other, and yield what each query among them gives.

    Where none is a query, what the last statement says of itself (rows that were copied) is the only result.

    Args:
        log, read: as for `query_topics`.
        no_rows: gives a topic's columns, for statements that ask which tables there are; by default it is read.

    Raises:
        LogError: the SQL is wrong, or names a topic that is not there.
    """
    table_of: Read = read or topic_table
    shape_of: Read = no_rows or (topic_shape if read is None else table_of)
    with duckdb.connect(":memory:") as connection:
        # Nothing is fetched from anywhere: an extension that is not there is an error. Variables of ours are no tables.
        connection.execute("set autoinstall_known_extensions = false")
        connection.execute("set python_enable_replacements = false")
        connection.execute("set TimeZone = 'UTC'")
        session = _Session(
            connection,
            log,
            lambda topic: _for_duckdb(table_of(log, topic)),
            lambda topic: _for_duckdb(shape_of(log, topic)),
        )
        other, queries = None, 0
        for statement in session.statements(query):
            found = session.run(statement)
            if _is_query(statement):
                queries += 1
                yield found
            else:
                other = found
        if other is not None and not queries:
            yield other


def _is_query(statement: duckdb.Statement) -> bool:
    # PIVOT is several statements, of which the last is the query.
    several = statement.type == duckdb.StatementType.MULTI
    return bool(several or statement.expected_result_type == [duckdb.ExpectedResultType.QUERY_RESULT])


def _fetched(found: duckdb.DuckDBPyRelation | None) -> pa.Table:
    return pa.table({}) if found is None else found.to_arrow_table()


class _Session:
    """One connection, with the topics that were asked for as its tables."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        log: HasTopics,
        read: Callable[[str], pa.Table],
        no_rows: Callable[[str], pa.Table],
    ) -> None:
        self._connection = connection
        self._read = read
        self._no_rows = no_rows
        self._file = log.path if isinstance(log, SqliteLog) else None
        self._topics = list(log.topics())
        self._registered: set[str] = set()

    def statements(self, query: str) -> list[duckdb.Statement]:
        try:
            return list(self._connection.extract_statements(query))
        except duckdb.Error as error:
            raise self._refusal(error, query) from error

    def run(self, statement: duckdb.Statement) -> pa.Table:
        """Run a statement with the topics that it names.

        Raises:
            LogError: it is wrong, or would write to the log's own files.
        """
        text = statement.query
        self._refuse_own_files(text)
        for topic in self._topics:
            # DuckDB would take them for files, or for tables of its own.
            if (_FILE_NAMES.search(topic) or _SYSTEM_NAMES.match(topic)) and topic.lower() in text.lower():
                self._register(topic)
        try:
            if _CATALOGUE.search(text) is None:
                return _fetched(self._bound(statement))
            self._bound(statement)
            with self._all_listed():
                return _fetched(self._bound(statement))
        except duckdb.Error as error:
            raise self._refusal(error, text) from error

    def _bound(self, statement: duckdb.Statement) -> duckdb.DuckDBPyRelation | None:
        """Bind a statement, reading the topics that it turns out to need; what is no query is run thereby."""
        while True:
            try:
                return self._connection.sql(statement)
            except duckdb.CatalogException as error:
                missing = _MISSING.search(str(error))
                topic = None if missing is None else self._topic(missing[1])
                if topic is None or topic in self._registered:
                    raise
                self._register(topic)

    def _topic(self, name: str) -> str | None:
        """Return the topic of a table's name, which DuckDB compares whatever the case."""
        if name in self._topics:
            return name
        alike = [topic for topic in self._topics if topic.lower() == name.lower()]
        return alike[0] if len(alike) == 1 else None

    def _register(self, topic: str) -> None:
        if topic not in self._registered:
            self._connection.register(topic, self._read(topic))
            self._registered.add(topic)

    @contextmanager
    def _all_listed(self) -> Iterator[None]:
        """Let every topic be a table, without its rows: for statements that ask which there are."""
        listed = [topic for topic in self._topics if topic not in self._registered and not topic.startswith("__")]
        for topic in listed:
            self._connection.register(topic, self._no_rows(topic))
        try:
            yield
        finally:
            for topic in listed:
                self._connection.unregister(topic)

    def _refuse_own_files(self, text: str) -> None:
        """Refuse to write over the log itself.

        Raises:
            LogError: a statement that writes files names one of the log's.
        """
        if self._file is None or _TO_FILES.search(text) is None:
            return
        for groups in _CONSTANT.findall(text):
            path = Path(next(filter(None, groups), "").removeprefix("file://")).expanduser().resolve()
            around = path in self._file.parents and "overwrite" in text.lower()
            if around or path == self._file or path.name.startswith((f"{self._file.name}-", f"{self._file.name}.")):
                raise LogError(
                    f"the query failed: «{path}» is the log's own, which a query never writes or attaches",
                    advice="Name another file.",
                )

    def _refusal(self, error: duckdb.Error, text: str) -> LogError:
        message = _SUGGESTION.sub(r"\1", str(error)).strip()
        return LogError(f"the query failed: {message}", advice=self._advice(message, text))

    def _advice(self, message: str, text: str) -> str:
        names = [name for name in self._topics if not name.startswith("__")]
        for name in names:
            if not name.isidentifier() and f'"{name}"' not in text and name.lower() in text.lower():
                return f'Write "{name}", in double quotes.'
        if _WRITES.match(text):
            return "Topics are only read here; headrace produce and running.append add rows."
        missing = _MISSING.search(message)
        if missing is None:
            return ""
        near = difflib.get_close_matches(missing[1], names, n=1)
        if near:
            return f'Did you mean "{near[0]}"?'
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        listed = ", ".join(f'"{name}"' for name in names[:MOST_NAMES])
        return f"Topics: {listed or 'none'}{more}."


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


def topic_shape(log: Log, topic: str) -> pa.Table:
    """Return none of a topic's rows, with the columns of `topic_table` as its newest rows have them."""
    schema = newest_schema(log, topic)
    return empty_topic(None if schema is None else pa.RecordBatch.from_pylist([], schema))


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
