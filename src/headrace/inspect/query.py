"""SQL over topics, by DuckDB: each topic that the query names becomes a table, its Arrow read in place.

DuckDB itself says which tables a statement needs: it is bound, and where a table is missing that is a topic, that one
is read and the statement is bound again. So every form of query works, a topic that is not named is not read, and
tables, views and common table expressions of the query's own come before topics.
"""

from __future__ import annotations

import difflib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
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
# Functions whose values DuckDB's limit of memory does not see, that run SQL from texts, or that change the process.
# Where such a name stands in a text it is refused, too: what is told apart less is not got around.
_UNBOUNDED = re.compile(
    r"\b(repeat|lpad|rpad|printf|format|list_resize|array_resize|query|query_table|json_execute_serialized_sql"
    r"|python_map_function|(?:force_)?checkpoint|\w+_external_resource\w*|\w+_grammar_extension"
    r"|\w+_logging|\w+_profiling|(?<!from )(?<!join )(?:range|generate_series))\"?\s*(?=\(|/\*|--)",
    re.IGNORECASE,
)
_READING = ("SELECT", "EXPLAIN", "CREATE", "MULTI", "RELATION")
Read = Callable[[Any, str], pa.Table]
WATCH_SECONDS = 0.05
READER_ROWS = 2048


class HasTopics(Protocol):
    """A log or a cluster, as a query needs it: names."""

    def topics(self) -> Mapping[str, object]: ...


class Names:
    """The topics a query may name."""

    def __init__(self, names: set[str]) -> None:
        self._names = dict.fromkeys(sorted(names))

    def topics(self) -> Mapping[str, object]:
        return self._names


@dataclass(slots=True)
class Bounds:
    """What a query may take that anybody wrote: it reads topics, and no files, network, extensions or settings.

    Args:
        memory: bytes that DuckDB may have; ``seconds`` that all statements may take.
        rows, bytes: of a result, before it is cut.

    Attributes:
        more: whether the last result was cut.
        read: bytes of topics that were read for the query, by whoever reads them.
    """

    memory: int = 512 << 20
    seconds: float = 30.0
    rows: int = 10_000
    bytes: int = 64 << 20
    more: bool = False
    read: int = 0
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _late: bool = False

    def cancel(self) -> None:
        """End the query soon, from any thread: nobody waits for it."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise what ended the query, where something has; for what is read around it.

        Raises:
            LogError: it was cancelled, or took too long.
        """
        if self._late:
            raise LogError(
                f"the query took longer than {self.seconds:g} s, and was ended",
                advice='Ask for less: fewer rows of a topic (where "offset" > …), or fewer topics.',
            )
        if self._cancelled.is_set():
            raise LogError("the query was cancelled")

    def too_much(self) -> LogError:
        """Return the refusal of more memory."""
        return LogError(
            f"the query failed: it needs more than {self.memory >> 20} MiB of memory (Out of Memory)",
            advice="Ask for less, or run headrace sql.",
        )

    @contextmanager
    def connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give a connection that keeps the bounds, and is watched in the block."""
        settings: dict[str, Any] = {"memory_limit": f"{self.memory}B", "threads": 2, "temp_directory": ""}
        with duckdb.connect(":memory:", config=settings) as connection:
            _settle(connection)
            for setting in ("autoload_known_extensions = false", "enable_external_access = false"):
                connection.execute(f"set {setting}")
            connection.execute("set lock_configuration = true")
            ended = threading.Event()
            watcher = threading.Thread(target=self._watch, args=(connection, ended), name="headrace-query", daemon=True)
            watcher.start()
            try:
                yield connection
            finally:
                ended.set()
                watcher.join()

    def _watch(self, connection: duckdb.DuckDBPyConnection, ended: threading.Event) -> None:
        """Interrupt what runs when it is to end; again and again, since a statement may just be beginning."""
        until = time.monotonic() + self.seconds
        while not ended.wait(WATCH_SECONDS):
            self._late = self._late or time.monotonic() > until
            if self._late or self._cancelled.is_set():
                connection.interrupt()

    def refuse(self, statement: duckdb.Statement) -> None:
        """Refuse a statement that is no query, or that no bound holds.

        Raises:
            LogError: it is one.
        """
        self.check()
        if statement.type.name not in _READING:
            raise LogError(
                f"only queries are run here, and this is {statement.type.name}: {statement.query.strip()[:80]}",
                advice="Write select …; headrace sql does more.",
            )
        unbounded = _UNBOUNDED.search(" ".join(statement.query.split()))
        if unbounded is not None:
            raise LogError(
                f"{unbounded[1]}(…) is not run here: its memory has no bound", advice="headrace sql knows it."
            )

    def fetch(self, found: duckdb.DuckDBPyRelation) -> pa.Table:
        """Return the first rows of a result."""
        rows = size = 0
        batches: list[pa.RecordBatch] = []
        self.more = False
        with closing(found.to_arrow_reader(READER_ROWS)) as reader:
            for batch in reader:
                self.check()
                if rows + batch.num_rows > self.rows or size > self.bytes:
                    batches.append(batch.slice(0, max(0, self.rows - rows) if size <= self.bytes else 0))
                    self.more = True
                    break
                batches.append(batch)
                rows, size = rows + batch.num_rows, size + batch.nbytes
            return pa.Table.from_batches(batches, reader.schema)


def _settle(connection: duckdb.DuckDBPyConnection) -> None:
    # Nothing is fetched from anywhere: an extension that is not there is an error. Variables of ours are no tables.
    connection.execute("set autoinstall_known_extensions = false")
    connection.execute("set python_enable_replacements = false")
    connection.execute("set TimeZone = 'UTC'")


@contextmanager
def _unbounded() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:") as connection:
        _settle(connection)
        yield connection


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
    log: HasTopics,
    query: str,
    read: Read | None = None,
    no_rows: Read | None = None,
    *,
    bounds: Bounds | None = None,
) -> Iterator[pa.Table]:
    """Run statements, one after the other, and yield what each query among them gives.

    Where none is a query, what the last statement says of itself (rows that were copied) is the only result.

    Args:
        log, read: as for `query_topics`.
        no_rows: gives a topic's columns, for statements that ask which tables there are; by default it is read.
        bounds: of a query that anybody wrote.

    Raises:
        LogError: the SQL is wrong, or names a topic that is not there.
    """
    table_of: Read = read or topic_table
    shape_of: Read = no_rows or (topic_shape if read is None else table_of)
    with _unbounded() if bounds is None else bounds.connection() as connection:
        session = _Session(
            connection,
            log,
            lambda topic: for_duckdb(table_of(log, topic)),
            lambda topic: for_duckdb(shape_of(log, topic)),
            bounds,
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


def _fetched(found: duckdb.DuckDBPyRelation | None, bounds: Bounds | None) -> pa.Table:
    if found is None:
        return pa.table({})
    return found.to_arrow_table() if bounds is None else bounds.fetch(found)


class _Session:
    """One connection, with the topics that were asked for as its tables."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        log: HasTopics,
        read: Callable[[str], pa.Table],
        no_rows: Callable[[str], pa.Table],
        bounds: Bounds | None,
    ) -> None:
        self._connection = connection
        self._bounds = bounds
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
        if self._bounds is not None:
            self._bounds.refuse(statement)
        self._refuse_own_files(text)
        for topic in self._topics:
            # DuckDB would take them for files, or for tables of its own.
            if (_FILE_NAMES.search(topic) or _SYSTEM_NAMES.match(topic)) and topic.lower() in text.lower():
                self._register(topic)
        try:
            if _CATALOGUE.search(text) is None:
                return _fetched(self._bound(statement), self._bounds)
            self._bound(statement)
            with self._all_listed():
                return _fetched(self._bound(statement), self._bounds)
        except duckdb.Error as error:
            if self._bounds is not None:
                self._bounds.check()
                if isinstance(error, duckdb.OutOfMemoryException):
                    raise self._bounds.too_much() from error
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


def for_duckdb(table: pa.Table) -> pa.Table:
    """Return a table whose columns DuckDB takes: what it has no type for is text, as PostgreSQL prints it."""
    for i, about in enumerate(table.schema):
        column = _known_to_duckdb(table.column(i), about.type)
        if column is not None:
            table = table.set_column(i, about.name, column)
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
