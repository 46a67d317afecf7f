"""What Headrace writes to Kafka, sunk by Debezium's JDBC sink into another database: its tables equal the sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg
import pytest

import headrace as hr
from headrace.testing import KafkaBroker, KafkaConnect, PostgresServer, SchemaRegistryServer
from headrace.testing.servers import avro_converters
from tests.databases import Database
from tests.waiting import wait_until

from .test_debezium_topics import execute

pytestmark = pytest.mark.timeout(120)

SINK = {
    "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
    "tasks.max": "1",
    "connection.username": "postgres",
    "connection.password": "postgres",
    "insert.mode": "upsert",
    "delete.enabled": "true",
    "primary.key.mode": "record_key",
    "schema.evolution": "basic",
    "key.converter": "org.apache.kafka.connect.json.JsonConverter",
    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
    "consumer.override.isolation.level": "read_committed",
    # A table is named as its source is: by the end of the topic's name.
    "transforms": "table",
    "transforms.table.type": "org.apache.kafka.connect.transforms.RegexRouter",
    "transforms.table.regex": r".*\.(\w+)",
    "transforms.table.replacement": "$1",
}
FORMATS = ("json+schema", "json+envelope+schema", "avro", "avro+envelope")

# --- the types ---


@dataclass(frozen=True)
class Column:
    """A column of the source, and what becomes of it.

    Attributes:
        type: as PostgreSQL prints it.
        values: as SQL; row i of the table has the i-th, beginning again at the end.
        sunk: the type of the sink's column, where it is another.
        why: why it is.
        cast: what the sink's values are cast to before they are compared as text.
    """

    type: str
    values: Sequence[str]
    sunk: str = ""
    why: str = ""
    cast: str = "text"


TEXT = "Debezium, or Connect, has no type for it that keeps every value: a message holds PostgreSQL's text"
LENGTH = "lengths are not sent"
# Left out, since rows with them go to the dead-letter topic: infinite dates and timestamps, NaN in a numeric(p,s).
COLUMNS = {
    "flag": Column("boolean", ["true", "false"]),
    "small": Column("smallint", ["-32768", "32767"]),
    "whole": Column("integer", ["-2147483648", "2147483647"]),
    "big": Column("bigint", ["-9223372036854775808", "9223372036854775807"]),
    "an_oid": Column("oid", ["0", "4294967295"], "bigint", "Connect has no unsigned types: the next longer one"),
    "single": Column("real", ["0.1", "'NaN'", "'-Infinity'", "3.4028235e38", "1e-45"]),
    "double": Column("double precision", ["0.1", "'NaN'", "'Infinity'", "1.7976931348623157e308", "5e-324", "'-0'"]),
    "price": Column("numeric(10,2)", ["-12345678.90", "0", "99999999.99"]),
    "wide": Column("numeric(38,10)", ["1234567890123456789012345678.0123456789", "-0.0000000001"]),
    "wider": Column("numeric(50,2)", ["123456789012345678901234567890123456789012345678.90", "-0.10"], "text", TEXT),
    "free": Column("numeric", ["1.5", "-1234567890123456789012345678901234567890.000001", "1.500"], "text", TEXT),
    "words": Column("text", ["'žlutý kůň 🐎'", "''", r"E'a\nb\t\"c\"\\d'", "repeat('x', 5000)"]),
    "short": Column("character varying(20)", ["'é'", "'null'"], "text", LENGTH),
    "padded": Column("character(6)", ["'ab'", "'abcdef'"], "text", LENGTH, cast="character(6)"),
    "uid": Column("uuid", ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    "day": Column("date", ["'2024-02-29'", "'1582-10-14'", "'0001-01-01'", "'9999-12-31'"]),
    "at3": Column(
        "timestamp(3) without time zone",
        ["'2024-02-29 12:34:56.789'", "'1900-01-01 00:00:00.001'"],
        "timestamp(6) without time zone",
        "all timestamps are in microseconds",
    ),
    "at": Column("timestamp(6) without time zone", ["'2024-02-29 12:34:56.789012'", "'1969-12-31 23:59:59.999999'"]),
    "zoned": Column("timestamp(6) with time zone", ["'2024-02-29 12:34:56.789012+02'", "'9999-12-31 23:59:59.5+00'"]),
    "clock": Column("time without time zone", ["'12:34:56.789012'", "'00:00:00'", "'24:00:00'"], "text", TEXT),
    "clockz": Column("time with time zone", ["'12:34:56.789012+02'"], "text", TEXT),
    "span": Column("interval", ["'1 year 2 mons 3 days 04:05:06.789012'", "'-1 day'"], "text", TEXT),
    "raw": Column("bytea", [r"'\x00ff'", "''", "decode(repeat('ab', 300), 'hex')"]),
    "doc": Column("json", ["""'{"b": 1,  "a": [null, 1.0]}'""", "'null'"]),
    "docb": Column(
        "jsonb", ["""'{"b": 1, "a": [null, 1.0]}'""", "'\"x\"'"], "json", "both have one name of Debezium", cast="jsonb"
    ),
    "mood": Column("mood", ["'happy'", "'it''s, so'"], "text", TEXT),
    "ints": Column("integer[]", ["'{1,NULL,3}'", "'{}'"], "text", TEXT),
    "texts": Column("text[]", ["""'{a,NULL,"b c","NULL"}'"""], "text", TEXT),
    "net": Column("inet", ["'10.0.0.1/8'", "'::1'"], "text", TEXT, cast="inet"),
    "bits": Column("bit(5)", ["B'10110'"], "text", TEXT),
    "spot": Column("point", ["'(1.5,-2)'"], "text", TEXT),
    "cash": Column("money", ["'-12.34'", "0"], "text", TEXT),
    "later": Column("numeric(6,3)", ["1.5"]),
}
FIRST = {name: column for name, column in COLUMNS.items() if name != "later"}
NOTED = {"n": Column("integer", []), "note": Column("text", []), "essay": Column("text", [])}
NOTED |= {"rank": Column("integer", [])}

# (column, the source's value) -> what Connect's JsonConverter makes of any message that holds it, Debezium's too.
_NO_NUMBER = "it takes the text that stands for it for a number"
JSON_CONVERTER = {
    ("double", "-0"): ("0", "it reads numbers as BigDecimal, which has no negative zero"),
    ("double", "NaN"): ("0", _NO_NUMBER),
    ("double", "Infinity"): ("0", _NO_NUMBER),
    ("single", "NaN"): ("0", _NO_NUMBER),
    ("single", "-Infinity"): ("0", _NO_NUMBER),
}

# --- the SQL ---


def schema_sql() -> Iterator[str]:
    yield "CREATE TYPE mood AS ENUM ('happy', 'it''s, so')"
    columns = ", ".join(f'"{name}" {column.type}' for name, column in FIRST.items())
    yield f"CREATE TABLE typed (id int, part text, {columns}, PRIMARY KEY (part, id))"
    yield "CREATE TABLE noted (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), n int, note text, essay text)"
    yield "ALTER TABLE noted REPLICA IDENTITY FULL, ALTER essay SET STORAGE EXTERNAL"
    yield "CREATE TABLE far (id int PRIMARY KEY, n int, essay text)"
    yield "ALTER TABLE far ALTER essay SET STORAGE EXTERNAL"


def values(i: int | None) -> list[str]:
    return ["NULL" if i is None else item.values[i % len(item.values)] for item in FIRST.values()]


def insert(id_: int, i: int | None, part: str = "é") -> str:
    names = ", ".join(f'"{name}"' for name in FIRST)
    return f"INSERT INTO typed (id, part, {names}) VALUES ({id_}, '{part}', {', '.join(values(i))})"


def update(id_: int, i: int | None) -> str:
    changes = ", ".join(f'"{name}" = {value}' for name, value in zip(FIRST, values(i), strict=True))
    return f"UPDATE typed SET {changes} WHERE id = {id_}"


ROWS = max(len(column.values) for column in FIRST.values())
# Transactions that the snapshot reads; of the stream; and of a stream in which tables change.
SNAPSHOT = [
    [insert(100, 0), insert(101, None), insert(102, 1)],
    ["INSERT INTO noted (n, note, essay) SELECT i, 'note ' || i, repeat('long', 1000) FROM generate_series(1, 20) i"],
    ["INSERT INTO far SELECT i, 1, repeat('long', 1000) FROM generate_series(1, 2) i"],
]
STREAM = [
    [insert(i + 1, i) for i in range(ROWS)] + [insert(50, None)],
    [update(1, 1), update(2, None), update(50, 2)],
    ["DELETE FROM typed WHERE id IN (100, 3)", "DELETE FROM noted WHERE n % 5 = 0"],
    ["UPDATE noted SET note = note || '!' WHERE n < 4", insert(3, 2)],
    ["UPDATE typed SET id = 60 WHERE id = 102", "UPDATE typed SET part = 'moved' WHERE id = 4"],
    ["UPDATE noted SET id = gen_random_uuid(), note = 'new key' WHERE n = 6"],
    ["UPDATE far SET n = 2 WHERE id = 1", "INSERT INTO far VALUES (999)"],
]
EVOLUTION = [
    ["ALTER TABLE typed ADD COLUMN later numeric(6,3)", insert(70, 1), "UPDATE typed SET later = 1.5 WHERE id = 70"],
    ["ALTER TABLE noted ADD COLUMN rank int DEFAULT 7"],
    ["INSERT INTO noted (n, note) VALUES (30, 'by default')", "INSERT INTO noted (n, rank) VALUES (31, NULL)"],
    ["UPDATE noted SET note = 'touched' WHERE n = 7"],
    [insert(999, 0)],
    ["INSERT INTO noted (n) VALUES (999)"],
]
OPS = "rrr" + "c" * (ROWS + 1) + "uuu" + "dd" + "c" + "uu" + "cu" + "c"
TOUCHED = (7, 30, 31, 999)

# --- the sink ---


class Sink:
    """A JDBC sink and the database behind it."""

    def __init__(self, database: Database, connect: KafkaConnect) -> None:
        self.database = database
        self._connect = connect
        self._started = False

    def start(self, topics: Sequence[str], settings: dict[str, str]) -> None:
        url = f"jdbc:postgresql://127.0.0.1:{self.database.server.port}/{self.database.name}"
        own = {"connection.url": url, "topics": ",".join(topics)}
        self._connect.create(self.database.name, SINK | own | settings)
        self._started = True
        self._connect.wait_running(self.database.name)

    def wait_for(self, query: str) -> None:
        """Wait until a query gives true; a task that failed ends it, with its stack trace."""

        def holds() -> bool:
            for task in self._connect.status(self.database.name)["tasks"]:
                assert task["state"] != "FAILED", task["trace"]
            try:
                return bool(self.database.execute(query)[0][0])
            except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
                return False

        try:
            wait_until(holds, f"the sink: {query}", 30)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._connect.tail()}") from error

    def stop(self) -> None:
        """Delete the connector, and wait until it has left the database."""
        if self._started:
            self._connect.delete(self.database.name)
        query = "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = %s"
        server, name = self.database.server, self.database.name
        wait_until(lambda: server.execute(query, name)[0][0], f"the sink to leave {name}", 30)


@pytest.fixture
def sink(server: PostgresServer, database: Database, connect: KafkaConnect) -> Iterator[Sink]:
    """An empty database that a connector may fill."""
    name = f"sink_{database.name}"
    server.execute(f"CREATE DATABASE {name}")
    found = Sink(Database(server, name), connect)
    try:
        yield found
        found.stop()
    finally:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


# --- comparing ---

Row = dict[str, str | None]


def types(database: Database, table: str) -> dict[str, str]:
    query = "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = to_regclass(%s)"
    return dict(database.execute(f"{query} AND attnum > 0", table))


def rows(database: Database, table: str, columns: dict[str, str]) -> list[Row]:
    """All rows, in the order of their keys; columns as what they are cast to, and then as text."""
    wanted = ", ".join(f'"{name}"::{kind}::text' for name, kind in columns.items())
    found = database.execute(f"SELECT {wanted} FROM {table} ORDER BY id")
    return [dict(zip(columns, row, strict=True)) for row in found]


def as_converted(row: Row) -> Row:
    """A source's row as Connect's JsonConverter reads it."""
    return {name: JSON_CONVERTER.get((name, value), (value,))[0] for name, value in row.items()}


# --- the tests ---


@pytest.mark.parametrize("form", FORMATS)
def test_tables_equal_their_sources(
    form: str, database: Database, sink: Sink, broker: KafkaBroker, registry: SchemaRegistryServer, topic_prefix: str
) -> None:
    app = hr.App(topic_prefix, log=f"kafka://{broker.bootstrap}", registry=registry.url)
    db = app.postgres(database.dsn, tables=r"public\..*", prefix=topic_prefix, format=form)
    with psycopg.connect(database.dsn, autocommit=True) as source:
        for statement in schema_sql():
            source.execute(statement.encode())
        for transaction in SNAPSHOT:
            execute(source, transaction)
        with app.start() as running:
            running.wait(60)
            topics = [f"{topic_prefix}.public.{table}" for table in ("typed", "noted", "far")]
            sink.start(topics, avro_converters(registry.url) if form.startswith("avro") else {})
            sink.wait_for("SELECT count(*) = 20 FROM noted")
            for transaction in STREAM + EVOLUTION:
                execute(source, transaction)
            sink.wait_for("SELECT EXISTS (SELECT FROM noted WHERE n = 999)")
            check_rows_without_events(database, sink.database)
            check_values_that_were_not_sent(sink)
            execute(source, ["UPDATE noted SET rank = rank", "INSERT INTO noted (n) VALUES (1000)"])
            sink.wait_for("SELECT EXISTS (SELECT FROM noted WHERE n = 1000)")
            sink.wait_for("SELECT EXISTS (SELECT FROM typed WHERE id = 999)")
            running.wait(60)
            assert not [topic for topic in running.log.topics() if topic.endswith(".dlq")]
            # What stands in the topic for others, such as a null for a key that went, is no event of ours.
            assert "".join(db["public.typed"].read().to_arrow().column("op").to_pylist()) == OPS
    for table, keys, columns in (
        ("typed", {"id": "integer", "part": "text"}, COLUMNS),
        ("noted", {"id": "uuid"}, NOTED),
    ):
        kinds = keys | {name: column.type for name, column in columns.items()}
        assert types(database, table) == kinds
        assert types(sink.database, table) == kinds | {n: column.sunk for n, column in columns.items() if column.sunk}
        wanted = rows(database, table, dict.fromkeys(kinds, "text"))
        if form.startswith("json"):
            wanted = [as_converted(row) for row in wanted]
        elif table == "typed":
            assert set(JSON_CONVERTER) <= {cell for row in wanted for cell in row.items()}
        casts = {name: columns[name].cast if name in columns else "text" for name in kinds}
        found = rows(sink.database, table, casts)
        assert len(found) == len(wanted) > 9
        for got, want in zip(found, wanted, strict=True):
            assert got == want


def check_rows_without_events(source: Database, sink: Database) -> None:
    """A new column's default: PostgreSQL writes it into the old rows without an event for any of them.

    Nor do the messages' schemas hold defaults; with them Connect's converters would print each null as the default.
    """
    query = "SELECT n, rank FROM noted ORDER BY n"
    wanted = [(n, rank if n in TOUCHED else None) for n, rank in source.execute(query)]
    assert sink.execute(query) == wanted
    assert (1, 7) in source.execute(query) and (31, None) in wanted


def check_values_that_were_not_sent(sink: Sink) -> None:
    """An update says of what stands out of line and stays the same only that it does, and the sink puts null there.

    Under REPLICA IDENTITY FULL the old row has the value: see the table `noted`.
    """
    sink.wait_for("SELECT EXISTS (SELECT FROM far WHERE id = 999)")
    query = "SELECT id, n, length(essay) FROM far ORDER BY id"
    assert sink.database.execute(query) == [(1, 2, None), (2, 1, 4000), (999, None, None)]


ANSWERS = {
    "id": "integer",
    "x": "double precision",
    "y": "double precision",
    "prediction": "bigint",
    "status": "text",
    "model": "text",
    "model_version": "bigint",
    "model_position": "text",
}
# The sink takes no key that is not a struct.
KEY_FROM_VALUE = {
    "key.converter": "org.apache.kafka.connect.storage.StringConverter",
    "primary.key.mode": "record_value",
    "primary.key.fields": "id",
    "delete.enabled": "false",
}


@pytest.mark.parametrize(
    ("key_format", "settings"),
    [("json+schema", {}), ("string", KEY_FROM_VALUE)],
    ids=["key-json+schema", "key-string"],
)
def test_predictions_arrive(
    key_format: str, settings: dict[str, str], database: Database, sink: Sink, broker: KafkaBroker, topic_prefix: str
) -> None:
    database.execute("CREATE TABLE flowers (id int PRIMARY KEY, x float8, y float8)")
    app = hr.App(topic_prefix, log=f"kafka://{broker.bootstrap}")
    flowers = app.postgres(database.dsn, tables=r"public\.flowers", prefix=topic_prefix)["public.flowers"]
    near = app.model("near", hr.KMeans(k=2, initial_centers=[[0, 0], [9, 9]]), features=["x", "y"])
    near.learn(flowers, every=10)
    topic = f"{topic_prefix}.answers"
    near.predict(flowers).to(topic, format="json+schema", key_format=key_format)
    with app.start() as running:
        fill = "INSERT INTO flowers SELECT i, i % 10, (i * 7) % 10 FROM generate_series({}, {}) i"
        database.execute(fill.format(1, 50))
        running.wait(60)
        sink.start([topic], settings)
        database.execute(fill.format(51, 100))
        database.execute("UPDATE flowers SET x = 9 - x WHERE id <= 20")
        database.execute(fill.format(999, 999))
        running.wait(60)
    predicted = app.topic(topic).read().to_arrow().to_pylist()
    sink.wait_for("SELECT EXISTS (SELECT FROM answers WHERE id = 999)")
    # The last answer for each flower.
    wanted = {row["id"]: tuple(row[name] for name in ANSWERS) for row in predicted}
    assert len(predicted) == 121 and len(wanted) == 101 and {row[3] for row in wanted.values()} == {0, 1}
    assert types(sink.database, "answers") == ANSWERS
    found = sink.database.execute(f"SELECT {', '.join(ANSWERS)} FROM answers ORDER BY id")
    assert found == [wanted[id_] for id_ in sorted(wanted)]
