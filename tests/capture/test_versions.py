"""Capture of PostgreSQL 14, 16 and 17: snapshot, stream, joins, types, a restart. 15 is in `test_debian`."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator

import pytest
from tests.capture.conftest import Capture, CapturedDatabase

import headrace as hr
from headrace.capture.postgres.client import Server
from headrace.capture.postgres.doctor import Examination, examine
from headrace.errors import SourceRefused
from headrace.testing.servers import PostgresServer, postgres
from headrace.testing.servers.jars import jars
from headrace.testing.servers.java import JavaMissing

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[14, 16, 17])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[int, PostgresServer]]:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("Maven Central has servers of this kind for Linux on x86-64 only")
    try:
        binaries = jars(f"postgres-{request.param}") / "bin"
    except JavaMissing as error:
        pytest.skip(error.message)
    with postgres(settings={"fsync": "off", "full_page_writes": "off"}, binaries=binaries) as running:
        yield request.param, running


@pytest.fixture
def database(server: tuple[int, PostgresServer]) -> Iterator[CapturedDatabase]:
    made = CapturedDatabase.create(server[1], "version")
    made.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    try:
        yield made
    finally:
        made.drop()


def test_it_is_the_version_that_was_asked_for(server: tuple[int, PostgresServer]) -> None:
    (row,) = server[1].execute("SELECT current_setting('server_version_num')::int / 10000")
    assert row == (server[0],)


def test_a_capture(database: CapturedDatabase, capture: Capture) -> None:
    columns = "id int PRIMARY KEY, n numeric, at date, ts timestamptz, y bytea, a int[], r int4range, j jsonb"
    database.execute(f"CREATE TABLE t_types ({columns})")
    values = "'NaN', '0044-03-15 BC', 'infinity', '\\x00ff', '{1,NULL}', '[1,5)', '{\"a\": 1}'"
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
    for name in ("n", "at", "ts", "y", "a", "r", "j"):
        assert str(read.column(name)) == str(streamed.column(name)), name
    engine = capture(engine.log)
    database.execute("INSERT INTO t VALUES (7, 7)")
    engine.catch_up()
    assert engine.ids(database.topic())[-1] == 7


def test_what_a_version_cannot_do_is_refused(
    server: tuple[int, PostgresServer], database: CapturedDatabase, capture: Capture
) -> None:
    version, _ = server
    if version < 17:
        with pytest.raises(SourceRefused, match=f"has version {version}, and standbys keep slots from version 17 on"):
            capture(failover=True)
    if version < 15:
        app = hr.App("version", log="memory://")
        app.postgres(database.dsn, tables=[r"public\.t"], where={"public.t": "id > 1"})
        with pytest.raises(SourceRefused, match="is of a version before 15"):
            app.run(until="caught-up")
    found = examine(Examination(Server(database.dsn), (r"public\.t",), "x", "y"))
    assert not [finding for finding in found if finding.check == "connection"]
