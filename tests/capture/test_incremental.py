"""Incremental snapshots: rows that are there already, while the stream goes on, and nothing older behind newer."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from tests.capture.conftest import Capture, CapturedDatabase, Engine
from tests.capture.test_joins import check_order
from tests.waiting import wait_until

from headrace.batch import Batch
from headrace.capture.postgres.decode import Seen
from headrace.capture.postgres.snapshot_options import SnapshotOptions
from headrace.capture.postgres.snapshot_progress import Progress
from headrace.capture.postgres.source import PostgresSource
from headrace.errors import SourceRefused
from headrace.log.base import Log

Event = dict[str, Any]


def events(log: Log, topic: str) -> list[Event]:
    """Every event of a topic, in order, with its op, and the old row's columns under ``before``."""
    found = []
    for entry in log.read_topic(topic, limit=10_000_000):
        batch = Batch(entry.records)
        before = batch.records.column("__before").to_pylist() if "__before" in batch.schema.names else None
        for place, row in enumerate(batch.rows.to_pylist()):
            found.append({**row, "op": chr(batch.op[place]), "before": before and before[place]})
    return found


def want(engine: Engine, table: str, where: str = "", surrogate: str = "") -> dict[str, Any]:
    """Ask for a table's rows, and wait until they are there."""
    source, replies = engine.source, []
    assert isinstance(source, PostgresSource)
    source.want_snapshot([table], where, surrogate, "r1", replies.append)
    engine.until(lambda: bool(replies) and not source._snapshots.pending)
    return dict(replies[0])


def replayed(found: list[Event], key: str = "id") -> dict[Any, Any]:
    rows: dict[Any, Any] = {}
    for event in found:
        if event["op"] == "t":
            rows.clear()
            continue
        rows.pop((event["before"] or {}).get(key), None)
        rows.pop(event[key], None)
        if event["op"] != "d":
            rows[event[key]] = {name: value for name, value in event.items() if name not in ("op", "before")}
    return rows


def small(**more: Any) -> dict[str, Any]:
    return {"snapshot": "never", "snapshots": SnapshotOptions(chunk_rows=more.pop("chunk_rows", 3), **more)}


def test_rows_come_in_chunks_in_the_order_of_the_key(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE t2 (a text, b int, v text, PRIMARY KEY (b, a))")
    database.execute("INSERT INTO t2 SELECT 'é''' || i, i % 4, 'v' FROM generate_series(1, 11) i")
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine = capture(**small())
    assert want(engine, "public.t2")["tables"] == ["public.t2"]
    found = events(engine.log, database.topic("t2"))
    expected = [row[0] for row in database.execute("SELECT a FROM t2 ORDER BY b, a")]
    assert [event["a"] for event in found] == expected and {event["op"] for event in found} == {"r"}
    assert database.topic() not in engine.log.topics()
    want(engine, "public.t2", "b = 3 AND v <> ''")
    assert [event["b"] for event in events(engine.log, database.topic("t2"))[11:]] == [3, 3, 3]
    want(engine, "public.t")
    check_order(engine)


@pytest.mark.parametrize(("identity", "name"), [("DEFAULT", "id"), ("FULL", "id"), ("USING INDEX t_other", "o")])
def test_newer_rows_win(database: CapturedDatabase, capture: Capture, identity: str, name: str) -> None:
    database.execute("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, o int NOT NULL, v int)")
    database.execute(f"CREATE UNIQUE INDEX t_other ON t (o); ALTER TABLE t REPLICA IDENTITY {identity}")
    database.execute("INSERT INTO t SELECT i, -i, 0 FROM generate_series(1, 60) i")
    engine = capture(**small(chunk_rows=4))
    stopped = threading.Event()

    def change() -> None:
        chance = random.Random(16)
        with psycopg.connect(database.dsn, autocommit=True) as connection:
            number = 100
            while not stopped.is_set():
                number += 1
                id_ = chance.randrange(1, 61)
                for statement in (
                    f"UPDATE t SET v = v + 1 WHERE id = {id_}",
                    f"UPDATE t SET v = v + 1, o = {number} WHERE id = {id_ % 60 + 1}",
                    f"UPDATE t SET id = {number}, v = v + 1 WHERE id = {61 - id_}" if number % 7 == 0 else "",
                    f"DELETE FROM t WHERE id = {chance.randrange(1, number)}" if number % 5 == 0 else "",
                    f"INSERT INTO t VALUES ({id_}, {-number}, {number}) ON CONFLICT DO NOTHING",
                ):
                    connection.execute(statement.encode())

    writer = threading.Thread(target=change)
    writer.start()
    try:
        for _ in range(3):
            want(engine, "public.t")
    finally:
        stopped.set()
        writer.join()
    engine.catch_up()
    found = events(engine.log, database.topic())
    rows = [dict(zip(("id", "o", "v"), row, strict=True)) for row in database.execute("SELECT * FROM t")]
    assert replayed(found, name) == {row[name]: row for row in rows}
    assert sum(event["op"] == "r" for event in found) > 60
    newest: dict[int, int] = {}
    for event in found:  # values of a row only grow, until it is deleted or gets another key
        key, before = event[name], event["before"] or {}
        if event["op"] == "d":
            newest.pop(key, None)
        elif event["op"] == "r":
            assert event["v"] >= newest.get(key, 0), event
        else:
            newest[key] = event["v"]
        if before.get(name) not in (None, key):
            newest.pop(before[name], None)
    check_order(engine)


def test_what_was_streamed_and_is_not_visible_yet(database: CapturedDatabase, capture: Capture) -> None:
    """A chunk whose snapshot does not see a commit that the log has already is read again."""
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine = capture(**small())
    snapshots, begun = engine.source._snapshots, []
    snapshots._unseen.visible = lambda _: None  # nobody has looked since
    database.execute("UPDATE t SET x = 2")
    engine.catch_up()
    begin = snapshots._reader._begin

    def blind_at_first(sql: Any) -> Any:
        seen, ts_us = begin(sql)
        begun.append(seen)
        xid = int(database.execute("SELECT xmin::text::bigint FROM t")[0][0])
        return (Seen(f"{xid}:{xid + 1}:{xid}", 0) if len(begun) == 1 else seen), ts_us

    snapshots._reader._begin = blind_at_first
    want(engine, "public.t")
    assert [event["op"] for event in events(engine.log, database.topic())] == ["u", "r"]
    assert len(begun) == 3, "the chunk, the chunk again, and that there are no more"


def test_a_stream_that_is_behind_comes_first(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("INSERT INTO t VALUES (1, 0), (2, 0)")
    engine = capture(**small())
    engine.catch_up()
    for _ in range(5):
        database.execute("UPDATE t SET x = x + 1 WHERE id = 1")
    snapshots = engine.source._snapshots
    snapshots.request(["public.t"], "", "", "r1", lambda _: None)
    snapshots._begin()
    wait_until(lambda: snapshots._result is not None)
    database.execute("DELETE FROM t WHERE id = 2")
    engine.until(lambda: not snapshots.pending)
    engine.catch_up()
    found = [(event["op"], event["id"], event["x"]) for event in events(engine.log, database.topic())]
    assert [one for one in found if one[1] == 1] == [*(("u", 1, float(x)) for x in range(1, 6)), ("r", 1, 5.0)]
    assert [op for op, id_, _ in found if id_ == 2] in (["d"], ["r", "d"])
    check_order(engine)


def test_a_connection_that_breaks(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 40) i")
    engine = capture(**small())
    engine.source.want_snapshot(["public.t"], "", "", "r1", lambda _: None)
    engine.until(lambda: len(engine.ids(database.topic())) > 6 if database.topic() in engine.log.topics() else False)
    database.server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
        database.name,
    )
    engine.until(lambda: not engine.source._snapshots.pending)
    assert engine.ids(database.topic()) == list(range(1, 41))
    check_order(engine)


def test_it_goes_on_in_another_process(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i")
    engine = capture(**small())
    engine.source.want_snapshot(["public.t"], "id > 2", "", "r1", lambda _: None)
    engine.until(lambda: database.topic() in engine.log.topics())
    engine.source.stop()
    again = capture(engine.log, **small())
    again.catch_up()
    assert again.ids(database.topic()) == list(range(3, 21))
    check_order(again)


def test_a_truncate_leaves_nothing_of_a_chunk(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 4) i")
    engine = capture(**small())
    end = engine.source._snapshots._reader._end

    def truncated(sql: Any) -> int:
        database.execute("TRUNCATE t")
        return end(sql)

    engine.source._snapshots._reader._end = truncated
    want(engine, "public.t")
    assert {event["op"] for event in events(engine.log, database.topic())} == {"t"}


def test_a_table_without_a_key(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE tk (n int, v text); ALTER TABLE tk REPLICA IDENTITY FULL")
    database.execute("INSERT INTO tk VALUES (1, 'a'), (1, 'a'), (2, 'b'), (2, 'b'), (2, 'c'), (NULL, 'n'), (3, 'd')")
    engine = capture(**small(chunk_rows=2))
    with pytest.raises(SourceRefused, match="no primary key"):
        want(engine, "public.tk")
    with pytest.raises(SourceRefused, match="no table that is captured matches"):
        want(engine, "public.nothing")
    want(engine, "public.tk", surrogate="n")
    found = [(event["n"], event["v"]) for event in events(engine.log, database.topic("tk"))]
    assert sorted(found, key=str) == sorted(map(tuple, database.execute("SELECT n, v FROM tk")), key=str)
    want(engine, "public.tk", surrogate="none")
    assert len(events(engine.log, database.topic("tk"))) == 7


def test_hostile_keys_conditions_and_names(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    database.execute("""CREATE TABLE "t'\"\" é" ("k'\"\"" text PRIMARY KEY, d date)""")
    database.execute("""INSERT INTO "t'\"\" é" VALUES ('', NULL), ('''', 'infinity'), ('\\', '0044-03-15 BC'),
        ('%s', '12345-01-01'), (E'a\\nb', '2026-01-01')""")
    engine = capture(**small(chunk_rows=2))
    topic = next(iter(t for (_, name), t in engine.source.captured.items() if name.startswith("t'")))
    want(engine, """public.t'" é""", "d IS NOT NULL OR true")
    assert len(engine.ids(topic, "k'\"")) == 5
    for where in ("no_such_column = 1", "true) ; DROP TABLE t; SELECT (1", "1 = 1) TO STDOUT; DROP TABLE t --"):
        want(engine, "public.t", where)
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    assert "no_such_column" in caplog.text and engine.ids(database.topic()) == [1]


def blocking(name: str, *tables: str, conditions: Sequence[dict[str, str]] = ()) -> str:
    data = {"type": "blocking", "data-collections": tables, "additional-conditions": conditions}
    return f"INSERT INTO t_signals VALUES ('{name}', 'execute-snapshot', '{json.dumps(data)}')"


def test_nothing_comes_between_rows_of_a_blocking_snapshot(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE t_signals (id text PRIMARY KEY, type text, data text)")
    database.execute("CREATE TABLE t_bare (a int)")
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 200) i; INSERT INTO t_bare VALUES (1), (2)")
    engine = capture(**small(signals="public.t_signals", chunk_rows=3), allow_failing_updates=True)
    stop, changes = threading.Event(), 0

    def change() -> None:
        nonlocal changes
        with psycopg.connect(database.dsn, autocommit=True) as connection:
            while not stop.is_set():
                changes += 1
                connection.execute("UPDATE t SET x = x + 1 WHERE id = %s", [changes % 40 + 1])

    thread = threading.Thread(target=change)
    thread.start()
    try:
        engine.until(lambda: changes > 20)
        database.execute(blocking("b1", "public.t", "public.t_bare"))
        engine.until(lambda: len(progress_of(engine).ended) == 2)
        before = changes
        engine.until(lambda: changes > before + 20)
    finally:
        stop.set()
        thread.join()
    engine.catch_up()
    topics = [topic for topic, _, _ in sequence(engine)]
    ops = [op for _, op, _ in sequence(engine)]
    first, last = ops.index("r"), len(ops) - 1 - ops[::-1].index("r")
    assert set(ops[first : last + 1]) == {"r"}
    assert topics[first : last + 1] == sorted(topics[first : last + 1])
    assert ops[last:].count("u") > 10
    final = {row[0]: row[1] for row in database.execute("SELECT id, x FROM t")}
    seen: dict[int, float] = {}
    for topic, op, row in sequence(engine):
        if topic == database.topic():
            assert op != "r" or row["x"] >= seen.get(row["id"], 0), "nothing older behind newer"
            seen[row["id"]] = row["x"]
    assert seen == final
    assert {row["a"] for topic, _, row in sequence(engine) if topic == database.topic("t_bare")} == {1, 2}


def progress_of(engine: Engine) -> Progress:
    assert isinstance(engine.source, PostgresSource)
    return engine.source._snapshots._stored


def sequence(engine: Engine) -> list[tuple[str, str, Event]]:
    """Every event of the log, in its order."""
    found = []
    for entry in engine.log.read(None, after=0, limit=10_000_000):
        batch = Batch(entry.records)
        found += [(entry.topic, chr(op), row) for op, row in zip(batch.op, batch.rows.to_pylist(), strict=True)]
    return found


def test_a_blocking_snapshot_that_is_paused_lets_the_stream_go_on(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE t_signals (id text PRIMARY KEY, type text, data text)")
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 9) i")
    engine = capture(**small(signals="public.t_signals"))
    source = engine.source
    assert isinstance(source, PostgresSource)
    database.execute(blocking("b1", "public.t"))
    engine.until(lambda: source._snapshots.holds)
    source._snapshots.progress = source._snapshots.progress.paused_now(True)
    database.execute("UPDATE t SET x = 7")
    engine.catch_up()
    source._snapshots.progress = source._snapshots.progress.paused_now(False)
    engine.until(lambda: len(progress_of(engine).ended) == 1)
    found = replayed(events(engine.log, database.topic()))
    assert [row["x"] for row in found.values()] == [7.0] * 9
    assert not source._snapshots.holds


def test_a_blocking_snapshot_goes_on_after_a_lost_connection(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE t_signals (id text PRIMARY KEY, type text, data text)")
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 30) i")
    engine = capture(**small(signals="public.t_signals"))
    database.execute(blocking("b1", "public.t"))
    engine.until(lambda: database.topic() in engine.log.topics())
    database.execute("UPDATE t SET x = 1")
    database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'headrace%'")
    engine.until(lambda: len(progress_of(engine).ended) == 1)
    engine.catch_up()
    found = replayed(events(engine.log, database.topic()))
    assert {key: row["x"] for key, row in found.items()} == dict.fromkeys(range(1, 31), 1.0)


def test_a_blocking_snapshot_of_a_query(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE t_signals (id text PRIMARY KEY, type text, data text)")
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 9) i")
    engine = capture(**small(signals="public.t_signals"))
    query = "SELECT * FROM public.t WHERE id > 6 ORDER BY id DESC"
    database.execute(blocking("b1", "public.t", conditions=[{"data-collection": "public.t", "filter": query}]))
    engine.until(lambda: len(progress_of(engine).ended) == 1)
    assert engine.ids(database.topic()) == [9, 8, 7]
    database.execute(blocking("b2", "public.t", conditions=[{"data-collection": "public.t", "filter": "id = 2"}]))
    engine.until(lambda: len(progress_of(engine).ended) == 2)
    assert engine.ids(database.topic()) == [9, 8, 7, 2]
