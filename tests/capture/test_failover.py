"""A standby that is promoted: the capture goes on with it, each row once, where standbys keep its slot."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from tests.capture.conftest import CapturedDatabase, Engine
from tests.waiting import wait_until

from headrace.capture.postgres import checks
from headrace.capture.postgres.catalog import Slot
from headrace.capture.postgres.checks import Standbys
from headrace.capture.postgres.client import Server
from headrace.capture.postgres.doctor import Examination, examine
from headrace.capture.postgres.slot_binding import Stranded, known_sources
from headrace.errors import SourceRefused
from headrace.log.memory import MemoryLog
from headrace.testing.servers import PostgresServer, postgres
from headrace.testing.servers.places import free_directory


class Pair:
    """A primary with a standby that reads its slot «standby», and a capture that knows both."""

    def __init__(self, primary: PostgresServer, standby: PostgresServer) -> None:
        self.primary, self.standby = primary, standby
        self.database = CapturedDatabase(primary, "postgres")
        self.promoted = CapturedDatabase(standby, "postgres")
        hosts, ports = f"{primary.directory},{standby.directory}", f"{primary.port},{standby.port}"
        self.dsn = f"host={hosts} port={ports} user=postgres dbname=postgres target_session_attrs=read-write"
        self.log = MemoryLog()

    def capture(self, **options: Any) -> Engine:
        source = self.database.source(dsn=self.dsn, **options)
        source.check(self.log)
        engine = Engine(source, self.log)
        source.start(self.log, engine.waker)
        return engine

    def promote(self) -> None:
        self.standby._run("pg_ctl", "-D", str(self.standby.data), "-w", "promote")

    def received(self) -> bool:
        """Whether the standby has everything that the primary wrote until now."""
        (now,) = self.primary.execute("SELECT pg_current_wal_lsn()")[0]
        query = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        wait_until(lambda: self.standby.execute(query, now) == [(True,)], "the standby")
        return True


@contextlib.contextmanager
def pair() -> Iterator[Pair]:
    with postgres(settings={"wal_keep_size": "64MB"}) as primary:
        primary.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
        primary.execute("SELECT pg_create_physical_replication_slot('standby', true)")
        settings = {"hot_standby_feedback": "on", "sync_replication_slots": "on"}
        standby = PostgresServer(free_directory("headrace-pg-"), settings=settings, binaries=primary.bin)
        try:
            if os.geteuid() == 0:
                shutil.chown(standby.directory, "nobody")
            standby.directory.chmod(0o755)
            conninfo = f"host={primary.directory} port={primary.port} user=postgres dbname=postgres"
            primary._run("pg_basebackup", "-D", str(standby.data), "-d", conninfo, "-R", "-S", "standby", "-c", "fast")
            standby.start()
            made = Pair(primary, standby)
            yield made
            for source in (*made.database.sources, *made.promoted.sources):
                source.stop()
        finally:
            standby.remove()


@pytest.mark.slow
def test_the_capture_goes_on_with_the_one_that_is_promoted() -> None:
    with pair() as servers:
        primary, standby, database = servers.primary, servers.standby, servers.database
        primary.execute("ALTER SYSTEM SET synchronized_standby_slots = 'standby'")
        primary.execute("SELECT pg_reload_conf()")
        primary.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i")
        engine = servers.capture(failover=True)
        assert database.slot()["failover"] is True
        for number in range(11, 21):
            primary.execute("INSERT INTO t VALUES (%s, 0)", number)
        engine.catch_up()

        def kept() -> bool:
            # What keeps a slot waits for the standby's catalog to be old enough: that takes a record of it.
            primary.execute("SELECT pg_log_standby_snapshot()")
            engine.round()
            query = "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = %s"
            return standby.execute(query, f"headrace_{database.name}") == [(True,)]

        wait_until(kept, "the standby's copy of the slot", 60)
        for number in range(21, 31):
            primary.execute("INSERT INTO t VALUES (%s, 0)", number)
        servers.received()
        primary.kill()
        servers.promote()
        standby.execute("INSERT INTO t SELECT i, 0 FROM generate_series(31, 40) i")
        engine.catch_up()
        topic = database.topic()
        assert engine.ids(topic) == list(range(1, 41))
        # In the log, too: a start that comes later is of the new timeline.
        engine.source.stop()
        assert known_sources(servers.log)["postgres"].identity.timeline == 2
        standby.execute("INSERT INTO t VALUES (41, 0)")
        engine = servers.capture(failover=True)
        engine.catch_up()
        assert engine.ids(topic) == list(range(1, 42))


@pytest.mark.slow
def test_a_promoted_standby_without_the_slot_is_a_gap() -> None:
    with pair() as servers:
        primary, standby = servers.primary, servers.standby
        primary.execute("INSERT INTO t VALUES (1, 1)")
        engine = servers.capture()
        engine.catch_up()
        servers.received()
        found = examine(Examination(Server(standby.dsn)))
        assert "standby" in {finding.check for finding in found}
        engine.source.stop()
        # The standby has this one, and the log does not.
        primary.execute("INSERT INTO t VALUES (2, 2)")
        servers.received()
        primary.kill()
        servers.promote()
        with pytest.raises(Stranded, match=r"is gone.*Missing may be changes of public\.t"):
            servers.capture()
        engine = servers.capture(on_gap="snapshot")
        standby.execute("INSERT INTO t VALUES (3, 3)")
        engine.catch_up()
        assert engine.ids(servers.database.topic()) == [1, 2, 3]


@pytest.mark.slow
def test_a_promoted_standby_that_has_less_than_the_log_is_refused() -> None:
    with pair() as servers:
        primary, standby = servers.primary, servers.standby
        engine = servers.capture(failover=True)
        engine.catch_up()
        servers.received()
        standby.execute("SELECT pg_wal_replay_pause()")
        standby.stop("immediate")
        primary.execute("INSERT INTO t VALUES (1, 1)")
        engine.catch_up()
        engine.source.stop()
        primary.kill()
        standby.start()
        servers.promote()
        with pytest.raises(Stranded, match=r"is a standby, promoted at .*rows of the log may not be in the database"):
            servers.capture()
        engine = servers.capture(on_gap="snapshot")
        engine.catch_up()
        assert len(engine.ids(servers.database.topic())) == 2  # the insert, and the delete of what is not there


def test_what_the_doctor_finds_of_standbys() -> None:
    own = Slot("own", "pgoutput", "shop", None, 0, "")
    kept = Slot("own", "pgoutput", "shop", None, 0, "", failover=True)
    no, silent = Standbys({}), Standbys({"standby": False}, ("standby",))
    ready = Standbys({"standby": True}, ("standby",))

    def found(slot: Slot | None, standbys: Standbys, *, wanted: bool = True, version: int = 180000) -> list[str]:
        given = checks.failover(slot, wanted=wanted, version=version, standbys=standbys, where="db")
        return [f"{finding.check} {finding.severity.value}" for finding in given]

    assert found(own, ready, wanted=False) == []
    assert found(own, ready) == ["failover warning"]
    assert found(kept, ready, wanted=False) == []
    assert found(kept, no) == ["failover warning"]
    assert found(kept, silent) == ["synchronized_standby_slots error"]
    assert found(kept, Standbys({"standby": True})) == ["synchronized_standby_slots warning"]
    assert found(None, ready, version=160000) == ["failover error"]
    settings = {"sync_replication_slots": "off", "hot_standby_feedback": "on", "primary_slot_name": ""}
    assert len(checks.keeping_slots(settings, "db")) == 2
    assert checks.keeping_slots({}, "db") == []


def test_a_slot_that_is_there_becomes_one_that_standbys_keep(database: CapturedDatabase) -> None:
    log = MemoryLog()
    for failover in (False, True):
        source = database.source(failover=failover)
        source.check(log)
        source.start(log)
        source.stop()
        assert database.slot()["failover"] is failover
    with pytest.raises(SourceRefused, match="has version 16, and standbys keep slots from version 17 on"):
        checks.refuse(checks.failover_version(160004, "db"))
