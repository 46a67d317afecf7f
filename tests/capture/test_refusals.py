"""Everything that a capture refuses before it runs, with the ways on; nothing is written by then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.capture.base import KIND
from headrace.capture.postgres.resync import Resync
from headrace.capture.postgres.slot_binding import Claim, Owner, SourceRecord, claim
from headrace.errors import LogCorrupt, SourceRefused, SourceUnavailable
from headrace.log.base import Log
from headrace.log.memory import MemoryLog
from headrace.testing.servers import PostgresServer, free_port, postgres

from .conftest import Capture, CapturedDatabase


def refusal(database: CapturedDatabase, log: Log | None = None, **options: Any) -> str:
    """What `check` says."""
    with pytest.raises(SourceRefused) as caught:
        database.source(**options).check(MemoryLog() if log is None else log)
    assert caught.value.advice
    return str(caught.value)


@pytest.fixture
def stopped(database: CapturedDatabase, capture: Capture) -> Log:
    """The log of a capture that has run and was stopped."""
    engine = capture()
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    engine.source.stop()
    return engine.log


@pytest.fixture(scope="module")
def plain_server() -> Iterator[PostgresServer]:
    """A second system, with wal_level=replica and little room for WAL."""
    with postgres(settings={"wal_level": "replica"}) as server:
        yield server


# --- the server and its tables ---


def test_unreachable(database: CapturedDatabase) -> None:
    port = free_port()
    source = database.source(dsn=f"postgresql://me:secret@127.0.0.1:{port}/shop")
    with pytest.raises(SourceUnavailable, match=f"127.0.0.1:{port}/shop") as caught:
        source.check(MemoryLog())
    assert "secret" not in str(caught.value)


def test_connection_string_that_cannot_be_read(database: CapturedDatabase) -> None:
    assert "secret" not in refusal(database, dsn="postgres//me:secret@host")


def test_unknown_database_and_role(database: CapturedDatabase) -> None:
    server = database.server
    assert "does not exist" in refusal(database, dsn=f"postgresql://postgres@127.0.0.1:{server.port}/nowhere")
    assert "does not exist" in refusal(database, dsn=f"postgresql://nobody@127.0.0.1:{server.port}/postgres")


def test_wal_level(database: CapturedDatabase, plain_server: PostgresServer) -> None:
    plain_server.execute("CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY)")
    text = refusal(database, dsn=plain_server.dsn)
    assert "wal_level «replica»" in text
    assert "ALTER SYSTEM SET wal_level = logical" in text


def test_role_without_replication(database: CapturedDatabase) -> None:
    role = f"weak_{database.name}"
    database.execute(f"CREATE ROLE {role} LOGIN")
    text = refusal(database, dsn=database.dsn.replace("postgres@", f"{role}@"))
    assert "REPLICATION" in text
    database.execute(f"DROP ROLE {role}")


def test_role_without_rights_on_the_tables(database: CapturedDatabase) -> None:
    role = f"some_{database.name}"
    dsn = database.dsn.replace("postgres@", f"{role}@")
    database.execute(f"CREATE ROLE {role} LOGIN REPLICATION")
    try:
        assert f'GRANT SELECT ON "public"."t" TO "{role}"' in refusal(database, dsn=dsn)
        database.execute(f"GRANT SELECT ON t TO {role}")
        assert "does not own public.t" in refusal(database, dsn=dsn)
        database.execute("CREATE PUBLICATION mine FOR TABLE t")
        database.source(dsn=dsn, publication="mine").check(MemoryLog())
        database.execute(f"ALTER TABLE t OWNER TO {role}")
        assert "GRANT CREATE ON DATABASE" in refusal(database, dsn=dsn)
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_no_table_matches(database: CapturedDatabase) -> None:
    database.execute("CREATE TABLE iris_train (id int)")
    text = refusal(database, tables=[r"public\.iris_trian", r"x\.y"])
    assert "«public\\.iris_trian», «x\\.y»" in text
    assert "public.iris_train" in text
    database.execute("DROP TABLE iris_train, t")
    assert "no tables at all" in refusal(database)


def test_patterns_are_anchored_and_ignore_case(database: CapturedDatabase) -> None:
    assert "no table" in refusal(database, tables=["ublic.t"])
    source = database.source(tables=["PUBLIC.T"])
    source.check(MemoryLog())
    assert list(source.traits.tables) == [database.topic()]


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("CREATE TABLE tm (id int, __op int)", "«__op»"),
        ("CREATE TABLE tn ()", "no columns"),
    ],
)
def test_tables_that_cannot_be_captured(database: CapturedDatabase, statement: str, says: str) -> None:
    database.execute(statement)
    assert says in refusal(database)


def test_views_and_foreign_tables_are_not_tables(database: CapturedDatabase) -> None:
    database.execute("CREATE VIEW tv AS SELECT * FROM t; CREATE MATERIALIZED VIEW tw AS SELECT * FROM t")
    source = database.source()
    source.check(MemoryLog())
    assert list(source.traits.tables) == [database.topic()]


# --- slots and publications that are not ours ---


def test_a_named_slot_that_is_there_needs_never(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("SELECT pg_create_logical_replication_slot('mine', 'pgoutput')")
    assert 'snapshot="never"' in refusal(database, slot="mine")
    database.execute(f"CREATE PUBLICATION headrace_{database.name} FOR TABLE ONLY t")
    database.execute("SELECT pg_replication_slot_advance('mine', pg_current_wal_lsn())")
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine = capture(slot="mine", snapshot="never")
    engine.catch_up()
    assert engine.ids(database.topic()) == [1]


def test_a_named_slot_is_made_with_the_snapshot(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("INSERT INTO t VALUES (1, 1)")
    name = f"own_{database.name}"
    engine = capture(slot=name, publication=name)
    database.execute("INSERT INTO t VALUES (2, 2)")
    engine.catch_up()
    assert engine.ids(database.topic()) == [1, 2]
    assert database.slot(name)["plugin"] == "pgoutput"
    assert 'snapshot="never"' in refusal(database, slot=name, publication=name)  # another log's


def test_a_named_slot_whose_snapshot_was_cut_off(database: CapturedDatabase) -> None:
    database.execute("INSERT INTO t VALUES (1, 1)")
    name, log = f"own_{database.name}", MemoryLog()
    claim(log, Owner.here(log, place="", app=database.name), database.name, Claim(name))
    database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", name)
    again = database.source(slot=name)
    again.check(log)
    again.start(log)
    assert log.topics()[database.topic()].rows == 1


def test_a_publication_that_has_to_be_there(database: CapturedDatabase) -> None:
    said = refusal(database, publication="theirs", makes_publication=False)
    assert 'CREATE PUBLICATION "theirs" FOR TABLE "public"."t";' in said
    database.execute("CREATE PUBLICATION theirs FOR TABLE t")
    database.source(publication="theirs", makes_publication=False).check(MemoryLog())


def test_slots_of_others(database: CapturedDatabase, server: PostgresServer) -> None:
    slot = f"headrace_{database.name}"
    database.execute("SELECT pg_create_physical_replication_slot(%s)", slot)
    assert "physical" in refusal(database)
    database.execute("SELECT pg_drop_replication_slot(%s)", slot)
    server.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
    assert "database «postgres»" in refusal(database)
    server.execute("SELECT pg_drop_replication_slot(%s)", slot)


def test_no_free_slot(tmp_path: Path) -> None:
    with postgres(settings={"max_replication_slots": "1"}) as server:
        server.execute("CREATE TABLE t (id int PRIMARY KEY)")
        server.execute("SELECT pg_create_logical_replication_slot('one', 'pgoutput')")
        assert "max_replication_slots" in refusal(CapturedDatabase(server, "postgres"))


def test_publication_of_the_users(database: CapturedDatabase) -> None:
    database.execute("CREATE TABLE t2 (id int)")
    database.execute("CREATE PUBLICATION mine FOR TABLE t WITH (publish = 'update')")
    text = refusal(database, publication="mine")
    assert 'ALTER PUBLICATION "mine" ADD TABLE "public"."t2"' in text
    assert "does not publish inserts" in refusal(database, publication="mine", tables=[r"public\.t"])


# --- a log and a slot that do not belong together any more ---


def test_slot_is_gone(database: CapturedDatabase, stopped: Log) -> None:
    database.drop_slots()
    text = refusal(database, stopped)
    assert f"«headrace_{database.name}»" in text
    assert "is gone" in text


def test_slot_was_made_anew(database: CapturedDatabase, stopped: Log) -> None:
    database.drop_slots()
    database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", f"headrace_{database.name}")
    assert "the log ends at" in refusal(database, stopped)


def test_log_is_an_old_copy(database: CapturedDatabase, capture: Capture, stopped: Log) -> None:
    (old,) = stopped.records(KIND).values()
    engine = capture(stopped)
    database.execute("INSERT INTO t VALUES (2, 2)")
    engine.catch_up()
    engine.source.stop()
    with stopped.transaction() as transaction:
        transaction.put(KIND, database.name, old)
    assert "the log is an old copy" in refusal(database, stopped)


def test_log_of_another_database(database: CapturedDatabase, stopped: Log, server: PostgresServer) -> None:
    server.execute("CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY)")
    text = refusal(database, stopped, dsn=server.dsn)
    assert f"database «{database.name}»" in text
    assert "database «postgres»" in text


def test_log_of_another_system(database: CapturedDatabase, stopped: Log) -> None:
    with postgres() as other:
        other.execute(f"CREATE DATABASE {database.name}")
        foreign = CapturedDatabase(other, database.name)
        foreign.execute("CREATE TABLE t (id int PRIMARY KEY)")
        assert "another database" in refusal(foreign, stopped)


def test_publication_is_gone(database: CapturedDatabase, stopped: Log) -> None:
    database.execute(f"DROP PUBLICATION headrace_{database.name}")
    assert "is gone" in refusal(database, stopped)


def test_other_names_than_the_logs(database: CapturedDatabase, stopped: Log) -> None:
    assert f"slot «headrace_{database.name}»" in refusal(database, stopped, slot="other", snapshot="never")
    assert "publication" in refusal(database, stopped, publication="other")


def test_record_that_cannot_be_read(database: CapturedDatabase, stopped: Log) -> None:
    with stopped.transaction() as transaction:
        transaction.put(KIND, database.name, b"{}")
    with pytest.raises(LogCorrupt, match="cannot be read"):
        database.source().check(stopped)


def test_slot_was_invalidated() -> None:
    settings = {"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    with postgres(settings=settings) as server:
        database = CapturedDatabase(server, "postgres")
        database.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
        log = MemoryLog()
        source = database.source()
        source.start(log)
        source.stop()
        for _ in range(4):
            server.execute("SELECT pg_logical_emit_message(false, 'x', 'x', true)")
            server.execute("SELECT pg_switch_wal()")
        server.execute("CHECKPOINT")
        text = refusal(database, log)
        assert "invalidated" in text
        assert "max_slot_wal_keep_size" in text
        database.execute("INSERT INTO t VALUES (1, 1)")
        known = SourceRecord.load(log, "postgres")
        assert known is not None
        resync = Resync(database.source().declared, known, lambda *_: None)
        resync.open(log, lambda: False)
        assert [compared.counts.inserted for compared in resync.compared] == [1]
        database.source().check(log)


def test_check_writes_nothing(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.source().check(log)
    assert log.records(KIND) == {}
    assert database.slot() == {}
    assert database.execute("SELECT pubname FROM pg_publication") == []
