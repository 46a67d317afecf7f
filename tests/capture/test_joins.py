"""Tables that join a capture that runs: each row once, in a log that goes on."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from tests.capture.conftest import Capture, CapturedDatabase, Engine, Writer
from tests.waiting import wait_until

from headrace.batch import Batch
from headrace.capture.postgres import catalog, drift, joins
from headrace.capture.postgres import source as sources
from headrace.capture.postgres.catalog import Table
from headrace.capture.postgres.snapshot import Snapshot
from headrace.errors import SourceRefused
from headrace.log.memory import MemoryLog
from headrace.testing.servers import postgres


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the catalog more often than a user needs it."""
    monkeypatch.setattr(sources, "_LOOK_S", 0.05)


def joined(engine: Engine, topic: str) -> None:
    """Wait until a topic's table has joined."""
    table = topic.rpartition(".")[2]
    engine.until(lambda: any(t.name == table for t in engine.source._startup.began.tables))  # type: ignore[union-attr]
    engine.catch_up()


def ops(engine: Engine, topic: str) -> list[tuple[str, int]]:
    found = []
    for entry in engine.log.read_topic(topic, limit=10_000_000):
        batch = Batch(entry.records)
        ids = batch.records.column("id").to_pylist()
        found += [(chr(op), id_) for op, id_ in zip(batch.op.tolist(), ids, strict=True)]
    return found


def check_order(engine: Engine) -> None:
    """Positions rise over all topics, slice by slice, and none is there twice."""
    positions = []
    for entry in engine.log.read(limit=10_000_000):
        batch = Batch(entry.records)
        positions += [(entry.slice, at) for at in zip(batch.lsn.tolist(), batch.index.tolist(), strict=True)]
    last: dict[int, tuple[int, int]] = {}
    for number, at in positions:
        last[number] = max(last.get(number, (0, 0)), at)
    firsts: dict[int, tuple[int, int]] = {}
    for number, at in positions:
        firsts[number] = min(firsts.get(number, at), at)
    numbers = sorted(last)
    for before, after in itertools.pairwise(numbers):
        assert last[before] < firsts[after]
    assert len({at for _, at in positions}) == len(positions)


def test_a_table_that_is_made_later_joins_with_its_rows(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine = capture()
    database.execute("CREATE TABLE tn (id int PRIMARY KEY, v text); INSERT INTO tn VALUES (1, 'a'), (2, 'b')")
    joined(engine, database.topic("tn"))
    database.execute("INSERT INTO tn VALUES (3, 'c'); UPDATE tn SET v = 'x' WHERE id = 1; INSERT INTO t VALUES (2, 2)")
    engine.catch_up()
    assert ops(engine, database.topic("tn")) == [("r", 1), ("r", 2), ("c", 3), ("u", 1)]
    assert ops(engine, database.topic()) == [("r", 1), ("c", 2)]
    check_order(engine)


def test_it_joins_once_while_others_write_into_it(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    engine = capture()
    with psycopg.connect(database.dsn) as late:
        late.execute("INSERT INTO t VALUES (-1, 0)")  # has begun before the table is published
        database.execute("CREATE TABLE tn (id int PRIMARY KEY, x float8)")
        late.execute("INSERT INTO tn VALUES (-1, 0)")
        writer = Writer(database, "tn")
        with writer:
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline:
                engine.round()
            assert database.topic("tn") not in engine.log.topics(), "it waits for who was at work"
            engine.until(lambda: f"server process {late.info.backend_pid}" in caplog.text)
            late.execute("INSERT INTO tn VALUES (-2, 0)")
            late.commit()
            joined(engine, database.topic("tn"))
            at_least = writer.last + 50
            engine.until(lambda: writer.last >= at_least)
    engine.catch_up()
    found = Counter(id_ for _, id_ in ops(engine, database.topic("tn")))
    assert set(found) == {-1, -2, *range(1, writer.last + 1)} and set(found.values()) == {1}
    assert {op for op, _ in ops(engine, database.topic("tn"))} == {"r", "c"}
    check_order(engine)


def test_what_its_snapshot_saw_is_not_taken_from_a_stream_that_is_behind(
    database: CapturedDatabase, capture: Capture
) -> None:
    engine = capture()
    database.execute("CREATE TABLE tn (id int PRIMARY KEY, x float8); INSERT INTO tn VALUES (0, 0)")
    wait_until(lambda: engine.source._joins.due)  # nobody polls
    for number in range(1, 20):
        database.execute("INSERT INTO tn VALUES (%s, 0)", number)
        database.execute("UPDATE tn SET x = 1 WHERE id = %s", number - 1)
        database.execute("INSERT INTO t VALUES (%s, 0)", number)
    database.execute("DELETE FROM tn WHERE id = 3")
    with psycopg.connect(database.dsn) as late:
        late.execute("INSERT INTO tn VALUES (100, 0)")
        engine.until(lambda: database.topic("tn") in engine.log.topics())
        late.commit()
    joined(engine, database.topic("tn"))
    database.execute("INSERT INTO tn VALUES (101, 0)")
    engine.catch_up()
    read = [("r", number) for number in range(20) if number != 3]
    assert sorted(ops(engine, database.topic("tn"))[:19]) == read
    assert ops(engine, database.topic("tn"))[19:] == [("c", 100), ("c", 101)]
    check_order(engine)


def test_who_waits_for_the_end_waits_for_tables_that_join(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    database.execute("CREATE TABLE tn (id int PRIMARY KEY); INSERT INTO tn VALUES (1)")
    engine.catch_up()
    assert ops(engine, database.topic("tn")) == [("r", 1)]


def test_one_that_was_made_while_nothing_ran_joins_at_the_next_start(
    database: CapturedDatabase, capture: Capture
) -> None:
    engine = capture()
    log = engine.log
    engine.source.stop()
    database.execute("CREATE TABLE tn (id int PRIMARY KEY); INSERT INTO tn VALUES (1); CREATE TABLE to_ (id int)")
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine = capture(log)
    joined(engine, database.topic("tn"))
    assert ops(engine, database.topic("tn")) == [("r", 1)] and ops(engine, database.topic()) == [("c", 1)]
    engine.source.stop()
    database.execute("INSERT INTO tn VALUES (2)")
    engine = capture(log)
    engine.catch_up()
    assert ops(engine, database.topic("tn")) == [("r", 1), ("c", 2)]


def test_a_connection_that_breaks_begins_it_again(
    database: CapturedDatabase, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.capture.postgres.snapshot.PIECE_ROWS", 10)
    engine = capture()
    database.execute("CREATE TABLE tn (id int PRIMARY KEY); INSERT INTO tn SELECT generate_series(1, 100)")
    engine.until(lambda: engine.source._joins.running is not None)
    database.execute("INSERT INTO tn VALUES (101)")
    database.server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
        database.name,
    )
    joined(engine, database.topic("tn"))
    assert sorted(id_ for _, id_ in ops(engine, database.topic("tn"))) == list(range(1, 102))
    check_order(engine)


def test_one_that_cannot_join_is_told_of_and_the_others_go_on(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    engine = capture()
    database.execute("CREATE TABLE tnokey (id int); CREATE UNLOGGED TABLE tu (id int PRIMARY KEY)")
    database.execute("CREATE TABLE tn (id int PRIMARY KEY); INSERT INTO tn VALUES (1)")
    joined(engine, database.topic("tn"))
    engine.until(lambda: "public.tnokey matches" in caplog.text and "public.tu matches" in caplog.text)
    assert "UPDATE and DELETE on it would fail" in caplog.text
    assert ops(engine, database.topic("tn")) == [("r", 1)]
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    assert ops(engine, database.topic()) == [("c", 1)]


def test_a_name_that_begins_to_match(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)")
    engine = capture()
    database.execute("ALTER TABLE other RENAME TO told")
    joined(engine, database.topic("told"))
    assert ops(engine, database.topic("told")) == [("r", 1)]


def test_without_a_snapshot_it_joins_without_its_rows(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture(snapshot="never")
    database.execute("CREATE TABLE tn (id int PRIMARY KEY); INSERT INTO tn VALUES (1)")
    engine.catch_up()
    database.execute("INSERT INTO tn VALUES (2)")
    engine.catch_up()
    assert ops(engine, database.topic("tn")) == [("c", 2)]


def test_an_empty_table(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    database.execute("CREATE TABLE tn (id int PRIMARY KEY)")
    engine.until(lambda: not engine.source._joins.due and engine.source._joins.after > 0)
    database.execute("CREATE TABLE tm (id int PRIMARY KEY); INSERT INTO tm VALUES (5)")
    joined(engine, database.topic("tm"))
    database.execute("INSERT INTO tn VALUES (1)")
    engine.catch_up()
    assert ops(engine, database.topic("tn")) == [("c", 1)] and ops(engine, database.topic("tm")) == [("r", 5)]
    assert isinstance(engine.log, MemoryLog) and threading.active_count() > 0


# --- tables that leave, and come back ---


def test_one_that_is_dropped_and_made_again(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    """Its topic is kept, and ends with a truncate; also where the capture is far behind, or stopped."""
    engine = capture()
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO t VALUES (2, 1)")
        connection.execute("DROP TABLE t")
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, other text)")
        connection.execute("INSERT INTO t VALUES (1, 'a'), (7, 'b')")
    wait_until(lambda: engine.source._joins.pending)  # nobody polls
    database.execute("UPDATE t SET other = 'c' WHERE id = 7")
    engine.catch_up()
    assert "table public.t was dropped: its topic ends there, and is kept" in caplog.text
    before = [("c", 1), ("c", 2), ("t", None), ("r", 1), ("r", 7)]
    assert ops(engine, database.topic()) == before
    check_order(engine)
    engine.source.stop()
    database.execute("INSERT INTO t VALUES (8, 'd')")
    database.execute("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (3)")
    engine = capture(engine.log)
    engine.catch_up()
    database.execute("INSERT INTO t VALUES (4)")
    engine.catch_up()
    assert ops(engine, database.topic()) == [*before, ("c", 8), ("t", None), ("r", 3), ("c", 4)]
    check_order(engine)


def test_rows_of_one_that_was_dropped_keep_their_key(database: CapturedDatabase, capture: Capture) -> None:
    """With REPLICA IDENTITY FULL the stream marks all columns as key, and the catalog has none any more."""
    database.execute("CREATE TABLE t2 (id int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY FULL")
    engine = capture()
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    engine.source.stop()
    database.execute("ALTER TABLE t RENAME id TO number; UPDATE t SET x = 2; DROP TABLE t")
    engine = capture(engine.log)
    engine.catch_up()
    keys = [Batch(entry.records).key_columns for entry in engine.log.read_topic(database.topic())]
    assert keys == [("id",), ("number",)]


def test_it_is_dropped_again_and_again(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    for number in range(1, 5):
        database.execute(f"DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, c{number} int)")
        database.execute("INSERT INTO t VALUES (%s)", number)
        if number != 3:
            engine.catch_up()
    assert ops(engine, database.topic())[-2:] == [("t", None), ("r", 4)]
    began = engine.source._startup.began
    assert began is not None and len(began.tables) <= 2
    engine.source.stop()
    engine = capture(engine.log)
    database.execute("INSERT INTO t VALUES (5)")
    engine.catch_up()
    assert ops(engine, database.topic())[-3:] == [("t", None), ("r", 4), ("c", 5)]


def test_one_that_is_dropped_while_it_waits_to_join(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    with psycopg.connect(database.dsn) as late:
        late.execute("INSERT INTO t VALUES (1, 1)")
        database.execute("CREATE TABLE tn (id int PRIMARY KEY); CREATE TABLE tm (id int PRIMARY KEY)")
        wait_until(lambda: engine.source._joins.pending)
        database.execute("DROP TABLE tn")
        late.commit()
    database.execute("INSERT INTO tm VALUES (1)")
    engine.catch_up()
    joined(engine, database.topic("tm"))
    assert ops(engine, database.topic("tm")) == [("r", 1)] and ops(engine, database.topic()) == [("c", 1)]


def test_one_that_an_earlier_process_published_is_dropped_while_the_next_one_looks(
    database: CapturedDatabase, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = capture()
    publication = engine.source._startup.began.publication  # type: ignore[union-attr]
    engine.source.stop()
    database.execute("CREATE TABLE tn (id int PRIMARY KEY)")
    database.execute(f'ALTER PUBLICATION "{publication}" ADD TABLE ONLY tn')  # and was killed
    look = drift.look_again

    def dropped(*asked: Any) -> drift.Look:
        found = look(*asked)
        database.execute("DROP TABLE IF EXISTS tn")
        return found

    monkeypatch.setattr(drift, "look_again", dropped)
    engine = capture(engine.log)
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    assert ops(engine, database.topic()) == [("c", 1)]


def test_one_that_is_dropped_while_the_catalog_is_read(
    database: CapturedDatabase, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("CREATE TABLE tn (id int PRIMARY KEY)")
    with_columns = catalog.with_columns

    def dropped(*asked: Any, **how: Any) -> list[Table]:
        database.execute("DROP TABLE IF EXISTS tn")
        return with_columns(*asked, **how)

    monkeypatch.setattr(catalog, "with_columns", dropped)
    engine = capture()
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    assert ops(engine, database.topic()) == [("c", 1)]


def test_narrower_and_wider_again(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    database.execute("CREATE TABLE t2 (id int PRIMARY KEY); INSERT INTO t2 VALUES (1)")
    engine = capture()
    database.execute("INSERT INTO t2 VALUES (2)")
    engine.catch_up()
    engine.source.stop()
    database.execute("INSERT INTO t2 VALUES (3)")
    for number in (4, 5):
        engine = capture(engine.log, tables=[r"public\.t"])
        assert "table public.t2 does not match tables=… any more: its topic ends there, and is kept" in caplog.text
        database.execute(f"INSERT INTO t2 VALUES ({number}); INSERT INTO t VALUES ({number}, 0)")
        engine.catch_up()
        engine.source.stop()
    publications = "SELECT tablename FROM pg_publication_tables ORDER BY 1"
    assert database.execute(publications) == [("t",)]
    assert ops(engine, database.topic("t2")) == [("r", 1), ("c", 2)]
    database.execute("INSERT INTO t2 VALUES (6); DELETE FROM t2 WHERE id = 2")
    engine = capture(engine.log)
    engine.catch_up()
    database.execute("INSERT INTO t2 VALUES (7)")
    engine.catch_up()
    again = [("t", None), *(("r", number) for number in (1, 3, 4, 5, 6)), ("c", 7)]
    assert ops(engine, database.topic("t2")) == [("r", 1), ("c", 2), *again]
    assert ops(engine, database.topic()) == [("c", 4), ("c", 5)]
    check_order(engine)
    with pytest.raises(SourceRefused, match=r"no table of .* matches"):
        database.source(tables=["elsewhere"]).check(engine.log)


def test_names_that_would_share_a_topic(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    """The second one is told of; so is one whose topic is a dropped table's of another name."""
    engine = capture()
    database.execute('CREATE TABLE "t é" (id int PRIMARY KEY)')
    joined(engine, database.topic("t é"))
    database.execute('CREATE TABLE "t ö" (id int PRIMARY KEY); CREATE TABLE "T" (id int PRIMARY KEY)')
    engine.until(lambda: "its topic is that of public.t é" in caplog.text)
    database.execute('DROP TABLE "t é"; INSERT INTO "t ö" VALUES (1); INSERT INTO "T" VALUES (2)')
    engine.catch_up()
    assert ops(engine, database.topic("t__")) == [] and ops(engine, database.topic("T")) == [("r", 2)]
    strange = 't"quoted".dots and 🎈' + "x" * 39
    quoted = '"' + strange.replace('"', '""') + '"'
    database.execute(f"CREATE TABLE {quoted} (id int PRIMARY KEY); INSERT INTO {quoted} VALUES (1)")
    engine.catch_up()
    topic = f"{database.name}.public.t_quoted_.dots_and__" + "x" * 39
    assert ops(engine, topic) == [("r", 1)]


def test_a_large_table_is_read_while_others_go_on(
    database: CapturedDatabase, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are put aside by a thread that is held up here; what comes of it meanwhile lies behind them."""
    go_on = threading.Event()
    read = Snapshot.read

    def slowly(self: Snapshot, table: Table) -> Iterator[Any]:
        for records in read(self, table):
            assert go_on.wait(60)
            yield records

    engine = capture()
    monkeypatch.setattr(Snapshot, "read", slowly)
    database.execute("CREATE TABLE tn (id int PRIMARY KEY, v text)")
    database.execute("INSERT INTO tn SELECT i, repeat('x', 100) FROM generate_series(1, 200000) i")
    engine.until(lambda: engine.source._joins._join is not None)
    database.execute(
        "INSERT INTO tn VALUES (0, 'new'); UPDATE tn SET v = 'u' WHERE id = 5; INSERT INTO t VALUES (1, 1)"
    )
    with psycopg.connect(database.dsn) as both:
        both.execute("INSERT INTO t VALUES (2, 2)")
        both.execute("DELETE FROM tn WHERE id = 6")
    engine.until(lambda: ops(engine, database.topic()) == [("c", 1), ("c", 2)])
    assert database.topic("tn") not in engine.log.topics()
    go_on.set()
    joined(engine, database.topic("tn"))
    database.execute("INSERT INTO tn VALUES (-1, 'last')")
    engine.catch_up()
    found = ops(engine, database.topic("tn"))
    assert sorted(found[:200000]) == [("r", number) for number in range(1, 200001)]
    assert found[200000:] == [("c", 0), ("u", 5), ("d", 6), ("c", -1)]
    check_order(engine)
    engine.source.stop()
    engine = capture(engine.log)
    engine.catch_up()
    assert len(ops(engine, database.topic("tn"))) == 200004


def test_much_that_is_held_makes_the_stream_wait(
    database: CapturedDatabase, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joins, "_HELD_BYTES", 1)
    engine = capture()
    database.execute("CREATE TABLE tn (id int PRIMARY KEY, v text)")
    database.execute("INSERT INTO tn SELECT i, repeat('x', 100) FROM generate_series(1, 100000) i")
    with Writer(database, "tn", first=200_000) as writer:
        joined(engine, database.topic("tn"))
    engine.catch_up()
    found = Counter(id_ for _, id_ in ops(engine, database.topic("tn")))
    assert set(found) == {*range(1, 100_001), *range(200_000, writer.last + 1)} and set(found.values()) == {1}
    check_order(engine)


def test_one_that_is_locked_is_waited_for_and_the_others_go_on(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    database.execute("CREATE TABLE tn (id int PRIMARY KEY); INSERT INTO tn VALUES (1)")
    engine.until(lambda: engine.source._joins.due)
    with psycopg.connect(database.dsn) as holder:
        holder.execute("LOCK TABLE tn IN ACCESS EXCLUSIVE MODE")
        for number in range(3):
            database.execute("INSERT INTO t VALUES (%s, 1)", number)
            engine.until(lambda number=number: engine.ids(database.topic())[-1:] == [number])
        assert database.topic("tn") not in engine.log.topics()
    joined(engine, database.topic("tn"))
    assert ops(engine, database.topic("tn")) == [("r", 1)]


# --- what else may happen to a table ---

EVENTFUL = """
BEGIN; INSERT INTO t VALUES (1, 0); SAVEPOINT a; INSERT INTO t VALUES (2, 0); SAVEPOINT b; INSERT INTO t VALUES (3, 0);
ROLLBACK TO b; INSERT INTO t VALUES (4, 0); ROLLBACK TO a; INSERT INTO t VALUES (5, 0); RELEASE a; COMMIT;
BEGIN; INSERT INTO t VALUES (6, 0); PREPARE TRANSACTION '{name}_one'; INSERT INTO t VALUES (7, 0);
BEGIN; INSERT INTO t VALUES (8, 0); PREPARE TRANSACTION '{name}_two'; ROLLBACK PREPARED '{name}_two';
COMMIT PREPARED '{name}_one';
SELECT pg_replication_origin_create('{name}'); SELECT pg_replication_origin_session_setup('{name}');
INSERT INTO t VALUES (9, 0); SELECT pg_replication_origin_session_reset();
CREATE TABLE taudit (id int PRIMARY KEY);
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO taudit VALUES (new.id), (new.id + 100)|
RETURN new| END $$; CREATE TRIGGER g AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f(); INSERT INTO t VALUES (10, 0);
DROP TRIGGER g ON t; CREATE RULE r AS ON DELETE TO t WHERE old.id = 9 DO INSTEAD UPDATE t SET x = 9 WHERE id = 9;
DELETE FROM t WHERE id >= 9
"""


def test_savepoints_prepared_transactions_origins_triggers_and_rules() -> None:
    """Rows of a prepared transaction come when it is committed; those that are rolled back do not come."""
    settings = {"max_prepared_transactions": "5", "wal_level": "logical", "fsync": "off"}
    with postgres(settings=settings) as server:
        database = CapturedDatabase.create(server, "eventful")
        database.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
        log = MemoryLog()
        source = database.source()
        source.check(log)
        engine = Engine(source, log)
        source.start(log, engine.waker)
        with psycopg.connect(database.dsn, autocommit=True) as connection:
            for statement in EVENTFUL.format(name=database.name).split(";"):
                connection.execute(statement.replace("|", ";").encode())
        engine.catch_up()
        inserted = [("c", number) for number in (1, 5, 7, 6, 9, 10)]
        assert ops(engine, database.topic()) == [*inserted, ("u", 9), ("d", 10)]
        found = ops(engine, database.topic("taudit"))
        assert sorted(number for _, number in found) == [10, 110]
        database.drop()


def test_a_replica_identity_that_changes(database: CapturedDatabase, capture: Capture) -> None:
    """The old row of an update or delete has what the identity says at that moment; the key stays the table's."""
    database.execute("ALTER TABLE t ADD y int NOT NULL DEFAULT 0; CREATE UNIQUE INDEX u ON t (y)")
    engine = capture()
    for number, identity in enumerate(("DEFAULT", "FULL", "USING INDEX u", "NOTHING", "DEFAULT", "FULL"), 1):
        with psycopg.connect(database.dsn, autocommit=True) as connection:
            connection.execute(f"ALTER TABLE t REPLICA IDENTITY {identity}".encode())
            connection.execute("INSERT INTO t VALUES (%s, 1, %s)", [number, number])
            if identity != "NOTHING":
                connection.execute("UPDATE t SET x = 2 WHERE id = %s", [number])
                connection.execute("DELETE FROM t WHERE id = %s", [number])
    engine.catch_up()
    found = []
    for entry in engine.log.read_topic(database.topic(), limit=10_000):
        assert (entry.records.schema.metadata or {})[b"headrace.key"] == b'["id"]'
        found += [(chr(row["__op"]), row["id"], row["x"], row["y"]) for row in entry.records.to_pylist()]
    deleted = {
        "DEFAULT": lambda number: ("d", number, None, None),
        "FULL": lambda number: ("d", number, 2, number),
        "USING INDEX u": lambda number: ("d", None, None, number),
    }
    expected: list[tuple[Any, ...]] = []
    for number, identity in enumerate(("DEFAULT", "FULL", "USING INDEX u", "NOTHING", "DEFAULT", "FULL"), 1):
        expected.append(("c", number, 1, number))
        if identity != "NOTHING":
            expected += [("u", number, 2, number), deleted[identity](number)]
    assert found == expected


def test_several_changes_in_a_backlog_and_in_one_transaction(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    engine.source.stop()
    script = """INSERT INTO t VALUES (2, 2); ALTER TABLE t ALTER x TYPE text; INSERT INTO t VALUES (3, 'three');
        BEGIN; INSERT INTO t VALUES (4, 'four'); ALTER TABLE t ADD y date; INSERT INTO t VALUES (5, 'five', 'today');
        ALTER TABLE t DROP x; INSERT INTO t VALUES (6, 'infinity'); TRUNCATE t; INSERT INTO t VALUES (7, NULL); COMMIT;
        TRUNCATE t; ALTER TABLE t ALTER id TYPE numeric(30); INSERT INTO t VALUES (9223372036854775808, NULL)"""
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        for statement in script.split(";"):
            connection.execute(statement.encode())
    engine = capture(engine.log)
    engine.catch_up()
    expected = [("c", 1), ("c", 2), ("c", 3), ("c", 4), ("c", 5), ("c", 6), ("t", None), ("c", 7), ("t", None)]
    assert ops(engine, database.topic()) == [*expected, ("c", 9223372036854775808)]
    check_order(engine)
