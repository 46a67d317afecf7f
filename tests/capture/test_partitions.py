"""Partitioned tables: a row is an event of the table that was named, once, whatever partition it is in."""

from __future__ import annotations

import json

import pytest
from tests.capture.conftest import Capture, CapturedDatabase, Engine

from headrace.batch import Batch
from headrace.capture.postgres import source as sources
from headrace.errors import SourceRefused
from headrace.inspect.debezium import event_lines
from headrace.log.memory import MemoryLog
from headrace.plain_values import rows
from headrace.testing.servers import PostgresServer

SCHEMA = """
CREATE TABLE tp (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE tp_2024 PARTITION OF tp FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE tp_2025 (v text, at date NOT NULL, id int NOT NULL, PRIMARY KEY (id, at));
ALTER TABLE tp ATTACH PARTITION tp_2025 FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE tp_later PARTITION OF tp FOR VALUES FROM ('2026-01-01') TO ('2030-01-01') PARTITION BY RANGE (id);
CREATE TABLE tp_later_few PARTITION OF tp_later FOR VALUES FROM (0) TO (100);
INSERT INTO tp VALUES (1, '2024-05-05', 'a'), (2, '2025-05-05', 'b'), (3, '2026-05-05', 'c')
"""


def run(database: CapturedDatabase, script: str) -> None:
    for statement in script.split(";"):
        database.execute(statement)


def events(engine: Engine, topic: str) -> list[tuple[object, ...]]:
    found = []
    for entry in engine.log.read_topic(topic):
        batch = Batch(entry.records)
        for op, row in zip(batch.op.tolist(), rows(batch.rows), strict=True):
            found.append((chr(op), row["id"], str(row["at"]), row["v"]))
    return found


@pytest.mark.parametrize("tables", [r"public\.tp.*", r"public\.tp"])
def test_rows_are_the_tables_whatever_partition_they_are_in(
    database: CapturedDatabase, capture: Capture, tables: str
) -> None:
    run(database, SCHEMA)
    engine = capture(tables=[tables])
    topic = database.topic("tp")
    read = [("r", 1, "2024-05-05", "a"), ("r", 2, "2025-05-05", "b"), ("r", 3, "2026-05-05", "c")]
    assert sorted(events(engine, topic)) == read
    run(
        database,
        """INSERT INTO tp VALUES (4, '2025-06-06', 'd'); UPDATE tp SET v = 'a2' WHERE id = 1;
        UPDATE tp SET at = '2024-07-07' WHERE id = 2; DELETE FROM tp WHERE id = 3;
        CREATE TABLE tp_2023 PARTITION OF tp FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
        INSERT INTO tp VALUES (5, '2023-01-01', 'new'); TRUNCATE tp;
        INSERT INTO tp_2024 VALUES (6, '2024-01-01', 'f')""",
    )
    engine.catch_up()
    assert events(engine, topic)[3:] == [
        ("c", 4, "2025-06-06", "d"),
        ("u", 1, "2024-05-05", "a2"),
        # A row that goes to another partition is a delete and an insert in the server's log.
        ("d", 2, "2025-05-05", None),
        ("c", 2, "2024-07-07", "b"),
        ("d", 3, "2026-05-05", None),
        ("c", 5, "2023-01-01", "new"),
        ("t", None, "None", None),
        ("c", 6, "2024-01-01", "f"),
    ]
    assert [name for name in engine.log.topics() if not name.startswith("__")] == [topic]


def test_a_capture_goes_on_after_a_restart_and_new_partitions(database: CapturedDatabase, capture: Capture) -> None:
    run(database, SCHEMA)
    engine = capture(tables=[r"public\.tp.*"])
    log = engine.log
    engine.source.stop()
    run(
        database,
        """CREATE TABLE tp_2023 PARTITION OF tp FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
        INSERT INTO tp VALUES (5, '2023-01-01', 'new'); ALTER TABLE tp DETACH PARTITION tp_2025;
        INSERT INTO tp_2025 (id, at, v) VALUES (7, '2025-01-01', 'not of tp any more')""",
    )
    engine = capture(log, tables=[r"public\.tp(|_20(23|24)|_later.*)"])
    engine.catch_up()
    assert events(engine, database.topic("tp"))[3:] == [("c", 5, "2023-01-01", "new")]


def test_partitions_alone_are_tables_of_their_own(database: CapturedDatabase, capture: Capture) -> None:
    run(database, SCHEMA)
    engine = capture(tables=[r"public\.tp_202."])
    assert events(engine, database.topic("tp_2024")) == [("r", 1, "2024-05-05", "a")]
    run(database, "INSERT INTO tp VALUES (4, '2025-06-06', 'd')")
    engine.catch_up()
    assert events(engine, database.topic("tp_2025"))[-1] == ("c", 4, "2025-06-06", "d")


def test_a_publication_of_the_users_must_publish_by_the_root(database: CapturedDatabase, capture: Capture) -> None:
    run(database, SCHEMA)
    database.execute("CREATE PUBLICATION theirs FOR TABLE tp")
    with pytest.raises(SourceRefused, match="under the names of partitions") as refused:
        database.source(tables=[r"public\.tp"], publication="theirs").check(MemoryLog())
    assert "publish_via_partition_root = true" in str(refused.value.advice)
    database.execute("ALTER PUBLICATION theirs SET (publish_via_partition_root = true)")
    engine = capture(tables=[r"public\.tp"], publication="theirs")
    database.execute("INSERT INTO tp VALUES (4, '2025-06-06', 'd')")
    engine.catch_up()
    assert events(engine, database.topic("tp"))[-1] == ("c", 4, "2025-06-06", "d")


def test_a_partition_whose_updates_would_fail_is_named(database: CapturedDatabase, server: PostgresServer) -> None:
    run(database, SCHEMA)
    database.execute("ALTER TABLE tp_2024 REPLICA IDENTITY NOTHING")
    with pytest.raises(SourceRefused, match=r"public.tp: partition public.tp_2024: its .* is NOTHING") as refused:
        database.source(tables=[r"public\.tp"]).check(MemoryLog())
    assert "ALTER TABLE public.tp_2024 REPLICA IDENTITY FULL" in str(refused.value.advice)


# --- partitioned tables that join, and partitions that come and go ---


def ids(engine: Engine, topic: str) -> list[tuple[str, object]]:
    return [(str(op), number) for op, number, *_ in events(engine, topic)]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the catalog more often than a user needs it."""
    monkeypatch.setattr(sources, "_LOOK_S", 0.05)


@pytest.mark.usefixtures("often")
def test_a_partitioned_table_joins(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    run(database, SCHEMA)
    engine.catch_up()
    topic = database.topic("tp")
    assert sorted(ids(engine, topic)) == [("r", 1), ("r", 2), ("r", 3)]
    run(
        database,
        """INSERT INTO tp VALUES (4, '2026-06-06', 'd'); UPDATE tp SET at = '2024-07-07' WHERE id = 2;
        CREATE TABLE tp_2023 PARTITION OF tp FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
        INSERT INTO tp VALUES (5, '2023-01-01', 'new')""",
    )
    engine.catch_up()
    assert ids(engine, topic)[3:] == [("c", 4), ("d", 2), ("c", 2), ("c", 5)]
    assert [name for name in engine.log.topics() if not name.startswith("__")] == [topic]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("stopped", [False, True])
def test_partitions_with_rows_are_attached_and_detached(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture, stopped: bool
) -> None:
    """Attached, their table joins again, as no event has those rows; detached, their rows stay where they are."""
    run(database, SCHEMA)
    database.execute("CREATE TABLE tq (v text, at date NOT NULL, id int NOT NULL, PRIMARY KEY (id, at))")
    database.execute("INSERT INTO tq VALUES ('q', '2023-01-01', 7)")
    engine = capture()
    topic = database.topic("tp")
    if stopped:
        engine.source.stop()
    run(
        database,
        """INSERT INTO tq VALUES ('q', '2023-01-02', 8);
        ALTER TABLE tp ATTACH PARTITION tq FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
        INSERT INTO tp VALUES (9, '2023-01-03', 'new')""",
    )
    if stopped:
        engine = capture(engine.log)
    engine.catch_up()
    assert "public.tq is a partition of another captured table now" in caplog.text
    assert "a partition was attached to table public.tp" in caplog.text
    found = ids(engine, topic)
    end = len(found) - 1 - found[::-1].index(("t", None))
    again = sorted(found[end + 1 :])
    assert [number for _, number in again] == [1, 2, 3, 7, 8, 9]
    assert ids(engine, database.topic("tq")) == [("r", 7), ("c", 8)]
    database.execute("ALTER TABLE tp DETACH PARTITION tq CONCURRENTLY")
    database.execute("INSERT INTO tq VALUES ('alone', '2023-05-05', 10)")
    database.execute("DROP TABLE tp_2024")
    engine.catch_up()
    engine.until(lambda: "a partition of table public.tp was detached or dropped" in caplog.text)
    assert ids(engine, database.topic("tq"))[2:] == [("t", None), ("r", 7), ("r", 8), ("r", 9), ("r", 10)]
    assert len(ids(engine, topic)) == len(found)
    engine.source.stop()
    engine = capture(engine.log)
    database.execute("INSERT INTO tp VALUES (11, '2025-01-03', 'x')")
    engine.catch_up()
    assert ids(engine, topic)[len(found) :] == [("c", 11)]


@pytest.mark.usefixtures("often")
def test_tables_that_inherit_are_tables_of_their_own(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    database.execute("CREATE TABLE tparent (id int PRIMARY KEY); INSERT INTO tparent VALUES (1)")
    database.execute(
        "CREATE TABLE tchild (LIKE tparent INCLUDING ALL) INHERITS (tparent); INSERT INTO tchild VALUES (2)"
    )
    engine.catch_up()
    database.execute("INSERT INTO tchild VALUES (3); UPDATE tparent SET id = id + 10; TRUNCATE ONLY tparent")
    engine.catch_up()
    assert engine.ids(database.topic("tparent")) == [1, 11, None]
    assert engine.ids(database.topic("tchild")) == [2, 3, 12, 13]


EVENTS = """
CREATE TABLE ev (id int, d date, v text, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
CREATE TABLE ev_2024 PARTITION OF ev FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE ev_2025 PARTITION OF ev FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY RANGE (id);
CREATE TABLE ev_2025_few PARTITION OF ev_2025 FOR VALUES FROM (0) TO (100);
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (LIKE parent INCLUDING ALL) INHERITS (parent);
CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY);
INSERT INTO ev VALUES (1, '2024-05-05', 'a'), (2, '2025-05-05', 'b');
INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2); INSERT INTO scratch VALUES (3)
"""
STREAM = """
INSERT INTO ev VALUES (3, '2024-06-06', 'c');
UPDATE ev SET d = '2025-07-07' WHERE id = 3;
CREATE TABLE ev_2026 PARTITION OF ev FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO ev VALUES (4, '2026-01-01', 'new');
INSERT INTO child VALUES (5); INSERT INTO scratch VALUES (6)
"""
READ = [
    *[("child", "r", 2), ("ev", "r", 1), ("ev", "r", 2), ("ev_2024", "r", 1), ("ev_2025", "r", 2)],
    *[("ev_2025_few", "r", 2), ("parent", "r", 1), ("parent", "r", 2), ("scratch", "r", 3)],
]


def lines(engine: Engine) -> list[tuple[str, str, int]]:
    """Return table, operation and id of Debezium's events."""
    found = []
    for line in event_lines(engine.log):
        event = json.loads(line)
        if value := event["value"]:
            found.append((value["source"]["table"], value["op"], event["key"]["id"]))
    return found


def test_as_debezium_by_leaf(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("DROP TABLE t")
    run(database, EVENTS)
    engine = capture(tables=[".*"], debezium={}, allow_failing_updates=True)
    run(database, STREAM)
    engine.catch_up()
    assert lines(engine) == [
        *READ,
        *[("ev_2024", "c", 3), ("ev_2024", "d", 3), ("ev_2025_few", "c", 3), ("ev_2026", "c", 4), ("child", "c", 5)],
    ]


def test_as_debezium_by_root(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("DROP TABLE t")
    run(database, EVENTS)
    properties = {"publish.via.partition.root": "true"}
    engine = capture(tables=[".*"], debezium=properties, allow_failing_updates=True)
    run(database, STREAM)
    engine.catch_up()
    assert lines(engine) == [
        *READ,
        *[("ev", "c", 3), ("ev", "d", 3), ("ev", "c", 3), ("ev", "c", 4), ("child", "c", 5)],
    ]


def test_as_debezium_partitions_that_do_not_match_are_told_of(database: CapturedDatabase) -> None:
    run(database, EVENTS)
    with pytest.raises(SourceRefused, match=r"ev_2024, public.ev_2025_few do not match") as refused:
        database.source(tables=[r"public\.ev"], debezium={}).check(MemoryLog())
    assert "publish.via.partition.root=true" in str(refused.value.advice)
