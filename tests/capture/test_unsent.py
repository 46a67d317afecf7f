"""Values that an update did not send (TOAST), read again from the table."""

from __future__ import annotations

import pytest

import headrace as hr
from headrace.errors import DeclarationError
from headrace.log.memory import MemoryLog

from .conftest import Capture, CapturedDatabase, Engine

LARGE_SQL = "repeat('0123456789', 1000)"
LARGE_BYTES = b"0123456789" * 1000


def each(database: CapturedDatabase, *statements: str) -> None:
    for statement in statements:
        database.execute(statement)


def table(database: CapturedDatabase, name: str, key: str, *, more: str = "") -> None:
    each(
        database,
        f"CREATE TABLE {name} ({key}, a text, b bytea, v int, PRIMARY KEY ({more or key.split()[0]}))",
        f"ALTER TABLE {name} ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL",
    )


def told(engine: Engine, topic: str) -> list[tuple[object, ...]]:
    """Each row's op, a, b, v and what was not sent."""
    found = []
    for entry in engine.log.read_topic(topic, limit=1_000_000):
        rows = entry.records
        unsent = rows.column("__unchanged").to_pylist() if "__unchanged" in rows.schema.names else [[]] * rows.num_rows
        columns = (rows.column(name).to_pylist() for name in ("__op", "a", "b", "v"))
        found += [(chr(op), a, b, v, names or []) for op, a, b, v, names in zip(*columns, unsent, strict=True)]
    return found


KEYS = [
    ("k int", "1"),
    ("k text", "'it''s \\ ä'"),
    ("k bytea", "'\\x00ff27'"),
    ("k timestamptz", "'12345-01-02 03:04:05.678901+02'"),
    ("k timestamp", "'1999-12-31 23:59:59.000001'"),
    ("k date", "'2024-02-29'"),
    ("k date", "'infinity'"),
    ("k date", "'0044-03-15 BC'"),
    ("k timestamptz", "'-infinity'"),
    ("k timestamp", "'0044-03-15 12:00:00.000001 BC'"),
    ("k numeric(30,5)", "-123456789012345678901234.50000"),
    ("k numeric", "1e30"),
    ("k uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    ("k float8", "0.1"),
    ("k bool", "true"),
    ("k int8", "9223372036854775807"),
    ("k time", "'24:00'"),
    ("k int[]", "'{1,2}'"),
    ("k interval", "'1 mon -2 days'"),
]


def test_by_a_key_of_any_type(database: CapturedDatabase, capture: Capture) -> None:
    names = [f"t{place}" for place in range(len(KEYS))]
    for name, (column, _) in zip(names, KEYS, strict=True):
        table(database, name, column)
    engine = capture(reselects=[".*"])
    for name, (_, key) in zip(names, KEYS, strict=True):
        insert = f"INSERT INTO {name} VALUES ({key}, repeat('x', 9000), NULL, 1)"
        each(database, insert, f"UPDATE {name} SET v = 2", f"UPDATE {name} SET v = 3")
    engine.catch_up()
    large = "x" * 9000
    expected = [("c", large, None, 1, []), *(("u", large, None, v, []) for v in (2, 3))]
    found = {key: told(engine, database.topic(name)) for name, key in zip(names, KEYS, strict=True)}
    assert found == dict.fromkeys(KEYS, expected)


def test_what_is_there_when_the_update_is_read(database: CapturedDatabase, capture: Capture) -> None:
    """Newer values, rows that are gone, rows whose key changed, columns that were sent, two columns of a key."""
    table(database, "tw", "k int, l text", more="l, k")
    each(database, f"INSERT INTO tw SELECT g, 'l', {LARGE_SQL}, {LARGE_SQL}::bytea, 1 FROM generate_series(1, 4) g")
    log = MemoryLog()
    engine = capture(log, reselects=[".*"])
    engine.source.stop()
    each(
        database,
        "UPDATE tw SET v = 2",
        "UPDATE tw SET a = 'newer' WHERE k = 1",
        "DELETE FROM tw WHERE k = 2",
        "UPDATE tw SET k = 33 WHERE k = 3",
    )
    engine = capture(log, reselects=[".*"])
    engine.catch_up()
    b = LARGE_BYTES
    a = b.decode()
    rows = told(engine, database.topic("tw"))[4:]
    assert rows == [
        ("u", "newer", b, 2, []),
        ("u", None, None, 2, ["a", "b"]),
        ("u", None, None, 2, ["a", "b"]),  # its key is another now
        ("u", a, b, 2, []),
        ("u", "newer", b, 2, []),
        ("d", None, None, None, []),
        ("u", a, b, 2, []),
    ]


def test_what_cannot_be_read_stays_marked(database: CapturedDatabase, capture: Capture) -> None:
    """A column that was dropped meanwhile, a row whose key is another; the capture goes on."""
    table(database, "tw", "k date")
    table(database, "tgone", "k int")
    log = MemoryLog()
    capture(log, reselects=[".*"]).source.stop()
    each(
        database,
        f"INSERT INTO tw VALUES ('infinity', {LARGE_SQL}, NULL, 1)",
        f"INSERT INTO tgone VALUES (1, {LARGE_SQL}, NULL, 1)",
        "UPDATE tw SET v = 2",
        "UPDATE tgone SET v = 2",
        "ALTER TABLE tgone DROP a",
        "UPDATE tw SET k = '2024-01-01'",
    )
    engine = capture(log, reselects=[".*"])
    engine.catch_up()
    large = LARGE_BYTES.decode()
    assert told(engine, database.topic("tgone"))[1] == ("u", None, None, 2, ["a"])
    first, *others = told(engine, database.topic("tw"))
    assert first == ("c", large, None, 1, [])
    assert others[0][4] == ["a"]  # its key is another by now
    each(database, "UPDATE tw SET v = 4")
    engine.catch_up()
    assert told(engine, database.topic("tw"))[-1] == ("u", large, None, 4, [])
    assert engine.rewinds == 0


def test_a_connection_that_is_lost_is_made_again(database: CapturedDatabase, capture: Capture) -> None:
    table(database, "tw", "k int")
    each(database, f"INSERT INTO tw VALUES (1, {LARGE_SQL}, NULL, 1)")
    engine = capture(reselects=[".*"])
    each(database, "UPDATE tw SET v = 2")
    engine.catch_up()
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    each(database, f"{others} AND pid <> pg_backend_pid()")
    each(database, "UPDATE tw SET v = 3")
    topic = database.topic("tw")
    engine.until(lambda: len(told(engine, topic)) == 3)
    assert [row[1:] for row in told(engine, topic)[1:]] == [(LARGE_BYTES.decode(), None, v, []) for v in (2, 3)]


def test_as_a_user_declares_it(database: CapturedDatabase) -> None:
    table(database, "tw", "k int")
    app = hr.App("unsent", log="memory://")
    with pytest.raises(DeclarationError, match="toast='newest'"):
        app.postgres(database.dsn, tables=r"public\.tw", toast="newest")  # type: ignore[arg-type]
    rows = app.postgres(database.dsn, tables=r"public\.tw", toast="reselect")["public.tw"]
    with app.start() as running:
        each(database, f"INSERT INTO tw VALUES (1, {LARGE_SQL}, NULL, 1)", "UPDATE tw SET v = 2")
        running.wait(60)
    assert rows.read().to_arrow().column("a").to_pylist() == [LARGE_BYTES.decode()] * 2


def test_as_a_connectors_configuration_declares_it(database: CapturedDatabase) -> None:
    table(database, "tw", "k int")
    configuration = {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "topic.prefix": "unsent",
        "database.hostname": "localhost",
        "database.user": "postgres",
        "database.dbname": "x",
        "table.include.list": "public.tw",
        "post.processors": "again",
        "again.type": "io.debezium.processors.reselect.ReselectColumnsPostProcessor",
        "again.reselect.columns.include.list": "PUBLIC.tw:a",
        "again.reselect.null.values": "false",
    }
    app = hr.App("unsent", log="memory://")
    with pytest.raises(DeclarationError, match=r"again\.reselect\.error\.handling\.mode"):
        app.debezium({**configuration, "again.reselect.error.handling.mode": "fail"}, dsn=database.dsn)
    rows = app.debezium(configuration, dsn=database.dsn)["public.tw"]
    with app.start() as running:
        each(database, f"INSERT INTO tw VALUES (1, {LARGE_SQL}, {LARGE_SQL}::bytea, 1)", "UPDATE tw SET v = 2")
        running.wait(60)
    found = rows.read().to_arrow()
    assert found.column("a").to_pylist() == [LARGE_BYTES.decode()] * 2
    assert found.column("b").to_pylist() == [LARGE_BYTES, None]
