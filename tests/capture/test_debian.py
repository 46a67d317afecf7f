"""Capture of PostgreSQL 15, as Debian installs it: snapshot, stream, types of contrib extensions, joins, the doctor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.capture.conftest import Capture, CapturedDatabase

from headrace.capture.postgres.client import Server
from headrace.capture.postgres.doctor import Examination, examine
from headrace.errors import SourceRefused
from headrace.testing.servers import PostgresServer

pytestmark = pytest.mark.slow


@pytest.fixture
def database(debian: PostgresServer) -> Iterator[CapturedDatabase]:
    made = CapturedDatabase.create(debian, "debian")
    made.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    try:
        yield made
    finally:
        made.drop()


def test_a_capture_of_version_15(database: CapturedDatabase, capture: Capture) -> None:
    for name in ("hstore", "citext", "ltree", "isn"):
        database.execute(f"CREATE EXTENSION {name}")
    database.execute(
        "CREATE TABLE t_types (id int PRIMARY KEY, h hstore, c citext, l ltree, i isbn, n numeric, at date)"
    )
    values = "'a=>1', 'Text', 'Top.Science', '978-0-393-04002-9', 'NaN', '0044-03-15 BC'"
    database.execute(f"INSERT INTO t_types VALUES (1, {values})")
    database.execute("INSERT INTO t VALUES (1, 'NaN'), (2, 'infinity')")
    engine = capture()
    database.execute(f"INSERT INTO t_types VALUES (2, {values})")
    database.execute("UPDATE t SET x = 1 WHERE id = 1")
    database.execute("DELETE FROM t WHERE id = 2")
    database.execute("CREATE TABLE t_late (id int PRIMARY KEY)")
    database.execute("INSERT INTO t_late VALUES (1), (2)")
    engine.catch_up()
    database.execute("TRUNCATE t")
    database.execute("INSERT INTO t_late VALUES (3)")
    engine.catch_up()
    engine.source.stop()
    assert engine.ids(database.topic())[:4] == [1, 2, 1, 2]
    assert engine.ids(database.topic("t_late")) == [1, 2, 3]
    read, streamed = (entry.records for entry in engine.log.read_topic(database.topic("t_types")))
    for name in ("h", "c", "l", "i", "n", "at"):  # as they print: NaN is no value's equal, and BC no date of Python's
        assert str(read.column(name)) == str(streamed.column(name)), name
    texts = [read.column(name)[0].as_py() for name in ("h", "c", "l", "i")]
    assert texts == ['"a"=>"1"', "Text", "Top.Science", "0-393-04002-X"]
    engine = capture(engine.log)
    database.execute("INSERT INTO t VALUES (7, 7)")
    engine.catch_up()
    assert engine.ids(database.topic())[-1] == 7


def test_what_version_15_cannot_do(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SourceRefused, match="has version 15, and standbys keep slots from version 17 on"):
        capture(failover=True)
    engine = capture(failover=True, debezium={})
    assert "is none of these" in caplog.text
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    assert engine.ids(database.topic()) == [1]
    found = examine(Examination(Server(database.dsn), (r"public\.t",), "x", "y", failover=True))
    assert {finding.check for finding in found} >= {"failover", "max_slot_wal_keep_size"}
    assert not [finding for finding in found if finding.check == "connection"]
