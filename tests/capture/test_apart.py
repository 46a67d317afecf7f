"""Tables have topics of their own, and what is captured depends on no setting of the role or the database."""

from __future__ import annotations

import re
from typing import Any

import pytest

import headrace as hr
from headrace.engines.local.sources import check_apart
from headrace.errors import DeclarationError
from headrace.log.memory import MemoryLog

from .conftest import Capture, CapturedDatabase

SHARED = [
    ('public."foo@bar"', 'public."foo$bar"'),
    ('a."b.c"', '"a.b".c'),
    ('public."x y"', 'public."x_y"'),
    ('public."tä"', 'public."tö"'),
    ("public.u", 'public."u.dlq"'),
]
APART = [('public."Case"', 'public."case"'), ("a.b", "public.b"), ('public."m.n"', "public.m_n")]


def test_tables_that_would_share_a_topic(database: CapturedDatabase) -> None:
    database.execute('CREATE SCHEMA a; CREATE SCHEMA "a.b"')
    for name in {name for pair in SHARED + APART for name in pair}:
        database.execute(f"CREATE TABLE {name} (id int PRIMARY KEY)")

    def sources(first: str, second: str, **options: Any) -> list[Any]:
        patterns = [re.escape(name.replace('"', "")) for name in (first, second)]
        found = [database.source(tables=patterns, **options)]
        found[0].check(MemoryLog())
        return found

    for first, second in SHARED:
        with pytest.raises(DeclarationError) as caught:
            check_apart(sources(first, second), on_kafka=False)
        for name in (first, second):
            schema, table = re.findall(r'"[^"]*"|\w+', name)
            assert f"«{schema.strip(chr(34))}».«{table.strip(chr(34))}»" in str(caught.value)
    for first, second in APART:
        check_apart(sources(first, second), on_kafka=False)
    with pytest.raises(DeclarationError, match="would share"):  # a broker refuses the second one
        check_apart(sources(*APART[-1]), on_kafka=True)
    check_apart(sources("public.t", "public.u", prefix="p" * 300), on_kafka=False)
    with pytest.raises(DeclarationError, match="shorter prefix"):
        check_apart(sources("public.t", "public.u", prefix="p" * 300), on_kafka=True)

    app = hr.App(database.name, log="memory://")  # and two databases
    app.postgres(database.dsn, tables=r"a\.b", prefix="p@")
    app.postgres(database.dsn, tables=r"a\.b", prefix="p$")
    with pytest.raises(DeclarationError, match="would share the topic"):
        app.start()


HOSTILE = {
    "datestyle": "'German, DMY'",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-10",
    "timezone": "'Pacific/Kiritimati'",
    "search_path": "evil, pg_catalog",
    "quote_all_identifiers": "on",
    "standard_conforming_strings": "off",
    "xmlbinary": "hex",
    "xmloption": "document",
    "client_encoding": "latin1",
    "client_min_messages": "error",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "row_security": "on",
    "statement_timeout": "'50ms'",
    "lock_timeout": "'50ms'",
    "idle_in_transaction_session_timeout": "'50ms'",
    "idle_session_timeout": "'50ms'",
    "transaction_timeout": "'50ms'",
    "transform_null_equals": "on",
    "array_nulls": "off",
    "backslash_quote": "on",
    "synchronize_seqscans": "on",
    "debug_parallel_query": "on",
    "enable_seqscan": "off",
    "application_name": "'not ours'",
}
COLUMNS = """id int PRIMARY KEY, f8 float8, f4 float4, d date, ts timestamp, tz timestamptz, i interval, b bytea,
    n numeric(20,5), m money, j jsonb, txt text, arr text[], dates date[], tr tstzrange, rc regclass,
    fa float8[], iv interval[], ba bytea[], tt timetz, u uuid, mood public.mood, ch char(5), nm name, bt bit(4),
    ip inet"""
VALUES = r"""f8 = 0.1 + 0.2, f4 = 1.1, d = '2024-02-01', ts = '2024-02-01 10:11:12.5', tz = '2024-02-01 10:11:12.5+00',
    i = '1 year 2 days -3 hours', b = '\x00ff5c', n = 12345.678, m = 1234.5, j = '{"a": 0.30000000000000004}',
    txt = E'é\\ "x" ''y''', arr = ARRAY['a,b', NULL, 'NULL', E'\\'], dates = ARRAY['2024-02-01'::date],
    tr = tstzrange('2024-02-01 00:00+00', NULL), rc = 'public.t'::regclass, fa = ARRAY[0.1 + 0.2]::float8[],
    iv = ARRAY['1 day 2 hours'::interval], ba = ARRAY['\x01'::bytea], tt = '10:00:00.5+02', u =
    'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', mood = 'so "so"', ch = 'ab', nm = 'n', bt = B'1010', ip = '10.0.0.1/8'"""


def test_settings_of_role_and_database_change_nothing(database: CapturedDatabase, capture: Capture) -> None:
    """Rows of the snapshot and of the stream, in binary and in text, beside those of a database with the defaults."""
    database.execute("CREATE TYPE mood AS ENUM ('so \"so\"')")
    database.execute(
        "CREATE SCHEMA evil; CREATE FUNCTION evil.quote_ident(text) RETURNS text LANGUAGE sql AS $$SELECT ''$$"
    )
    database.execute("CREATE FUNCTION evil.current_database() RETURNS name LANGUAGE sql AS $$SELECT 'x'::name$$")
    database.execute("CREATE TABLE evil.pg_class (oid int); CREATE TABLE evil.pg_publication (pubname text)")
    for table in ("t1", "t2"):
        database.execute(f"CREATE TABLE {table} ({COLUMNS})")
        database.execute(f"INSERT INTO {table} (id) VALUES (1); UPDATE {table} SET {VALUES}")

    def captured(table: str, **options: Any) -> list[dict[str, Any]]:
        engine = capture(tables=[rf"public\.{table}"], app=f"{database.name}_{table}", **options)
        # Committed by a session that the settings do not touch.
        database.execute(f"SET search_path = public; INSERT INTO {table} (id) VALUES (2); UPDATE {table} SET {VALUES}")
        engine.catch_up(60)
        engine.source.stop()
        entries = engine.log.read_topic(database.topic(table))
        return [
            {name: value for name, value in row.items() if name[:2] != "__"}
            for entry in entries
            for row in entry.records.to_pylist()
        ]

    before = captured("t1")
    version = int(database.execute("SHOW server_version_num")[0][0])
    role, plain = f"role_{database.name}", database.dsn
    database.execute(f"CREATE ROLE {role} SUPERUSER LOGIN REPLICATION")
    try:
        for name, value in HOSTILE.items():
            if name in {"transaction_timeout"} and version < 170000:
                continue
            database.server.execute(f"ALTER DATABASE {database.name} SET {name} = {value}")
            database.server.execute(f"ALTER ROLE {role} SET {name} = {value}")
        undo = "options=-c%20default_transaction_read_only%3Doff%20-c%20client_encoding%3Dutf8%20-c%20DateStyle%3DISO"
        plain, database.dsn = (
            database.dsn,
            f"{database.dsn}&{undo}%20-c%20standard_conforming_strings%3Don"
            + (
                "%20-c%20extra_float_digits%3D1%20-c%20transaction_timeout%3D0%20-c%20statement_timeout%3D0"
                "%20-c%20search_path%3Dpublic%20-c%20xmloption%3Dcontent%20-c%20timezone%3DUTC%20-c%20array_nulls%3Don"
            ),
        )
        after = captured("t2", dsn=plain.replace("postgres@", f"{role}@"))
        assert len(after) == len(before) >= 4
        assert after == before
    finally:
        database.server.execute(f"ALTER DATABASE {database.name} RESET ALL")
        database.dsn = plain
        database.execute(f"REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role}")
