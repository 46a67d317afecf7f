"""Partitioned tables: a row is an event of the table that was named, once, whatever partition it is in."""

from __future__ import annotations

import pytest
from tests.capture.conftest import Capture, CapturedDatabase, Engine

from headrace.batch import Batch
from headrace.errors import SourceRefused
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
