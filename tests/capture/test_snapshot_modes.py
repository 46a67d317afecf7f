"""What a first snapshot reads, and when there is one."""

from __future__ import annotations

import pytest
from tests.capture.conftest import Capture, CapturedDatabase
from tests.capture.test_incremental import events
from tests.capture.test_joins import check_order, ops

from headrace.capture.postgres.slot_binding import Stranded
from headrace.capture.postgres.snapshot_options import SnapshotOptions
from headrace.errors import SourceRefused


def test_rows_of_some_tables_by_a_query(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE t2 (id int PRIMARY KEY, v text); INSERT INTO t2 VALUES (1, 'a'), (2, 'b')")
    database.execute("INSERT INTO t VALUES (1, 1); CREATE TABLE t3 (id int PRIMARY KEY); INSERT INTO t3 VALUES (1)")
    query = "SELECT v || '!' AS v, id FROM public.t2 WHERE id > 1 -- not all;"
    options = SnapshotOptions(included=(r"public[.]t[23]",), selects=(("public.t2", query),), order="descending")
    engine = capture(snapshots=options)
    database.execute("INSERT INTO t2 VALUES (3, 'c'); INSERT INTO t VALUES (2, 2)")
    engine.catch_up()
    assert [(one["op"], one["id"], one["v"]) for one in events(engine.log, database.topic("t2"))] == [
        ("r", 2, "b!"),
        ("c", 3, "c"),
    ]
    assert ops(engine, database.topic()) == [("c", 2)] and ops(engine, database.topic("t3")) == [("r", 1)]


def test_a_query_that_lacks_a_column(database: CapturedDatabase, capture: Capture) -> None:
    with pytest.raises(SourceRefused, match='column "x" does not exist'):
        capture(snapshots=SnapshotOptions(selects=(("public.t", "SELECT 1 AS id"),)))


def test_initial_only(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine = capture(snapshots=SnapshotOptions(streams=False))
    database.execute("INSERT INTO t VALUES (2, 1)")
    engine.catch_up()
    engine.source.stop()
    assert engine.ids(database.topic()) == [1]
    again = capture(engine.log)  # goes on where that ended
    again.catch_up()
    assert again.ids(database.topic()) == [1, 2]


def test_when_needed(database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture) -> None:
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine = capture()
    engine.catch_up()
    engine.source.stop()
    database.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", database.name
    )
    database.execute("INSERT INTO t VALUES (2, 1)")
    with pytest.raises(Stranded):
        capture(engine.log)
    again = capture(engine.log, snapshots=SnapshotOptions(when_needed=True))
    database.execute("INSERT INTO t VALUES (3, 1)")
    again.catch_up()
    assert ops(again, database.topic()) == [("r", 1), ("r", 1), ("r", 2), ("c", 3)]
    assert "begins anew" in caplog.text
    check_order(again)
    again.source.stop()
    third = capture(engine.log, snapshots=SnapshotOptions(when_needed=True))
    third.catch_up()
    assert len(ops(third, database.topic())) == 4


def test_always(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine = capture(snapshots=SnapshotOptions(always=True))
    engine.catch_up()
    engine.source.stop()
    database.execute("INSERT INTO t VALUES (2, 1)")
    again = capture(engine.log, snapshots=SnapshotOptions(always=True))
    again.catch_up()
    assert ops(again, database.topic()) == [("r", 1), ("c", 2), ("r", 1), ("r", 2)]
    check_order(again)
