"""Texts that are in no encoding: PostgreSQL keeps any bytes in a database with the encoding SQL_ASCII."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

import headrace as hr
from headrace.testing.servers import PostgresServer
from tests.databases import fresh_database


@pytest.mark.parametrize("more", ["", ", w interval"], ids=["binary", "text"])
def test_rows_that_are_not_utf8_are_dead_letters_and_the_others_go_on(
    server: PostgresServer, tmp_path: Path, more: str
) -> None:
    options = "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    with (
        fresh_database(server, "ascii", options) as database,
        psycopg.connect(database.dsn, autocommit=True) as connection,
    ):
        connection.execute(f"CREATE TABLE t (k text PRIMARY KEY, s varchar, j json, day date{more})".encode())
        connection.execute("ALTER TABLE t REPLICA IDENTITY FULL")
        connection.execute(b"INSERT INTO t VALUES ('a', 'ok'), ('b', 'caf\xe9'), ('c\xff', 'x')")
        connection.execute("UPDATE t SET day = 'infinity' WHERE k = 'b'")
        app = hr.App(database.name, log=str(tmp_path / "ascii.headrace"))
        app.postgres(database.dsn, tables=r"public\.t", prefix="s")
        with app.start() as running:
            running.wait(60)
            connection.execute(b"INSERT INTO t VALUES ('d', 'd\xc3\xa9j\xc3\xa0'), ('e', '\xff\xfe'), ('f', NULL)")
            connection.execute("UPDATE t SET day = '2024-01-01' WHERE k IN ('a', 'b')")
            connection.execute(b"UPDATE t SET s = 'mended' WHERE k = 'e'")
            running.wait(60)
    rows = app.topic("s.public.t").read().to_pandas()
    assert list(zip(rows.op, rows.k, rows.s.fillna("NULL"), strict=True)) == [
        ("r", "a", "ok"),
        ("c", "d", "déjà"),
        ("c", "f", "NULL"),
        ("u", "a", "ok"),
        ("u", "e", "mended"),
    ]
    letters = app.topic("s.public.t.dlq").read().to_pandas()
    assert [reason.split(":")[0] for reason in letters.reason] == [f"column «{name}»" for name in "ksss"]
    assert all("is not UTF-8" in reason for reason in letters.reason)
    assert r"caf\\xe9" in letters.row[1]
    assert letters.op.tolist() == ["r", "r", "c", "u"]
