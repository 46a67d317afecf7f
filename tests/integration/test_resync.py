"""`headrace capture resync`: a log whose slot was lost goes on, with exactly what it has missed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import headrace as hr
from headrace.cli.main import app as command
from headrace.errors import HeadraceError
from headrace.testing.servers import KafkaBroker, PostgresServer
from tests.crash.harness import verify
from tests.databases import Database, fresh_database

SCHEMA = """
CREATE TABLE orders (id int PRIMARY KEY, weight float8, took float8, note text);
CREATE TABLE visits (who text, at timestamptz, price numeric);
CREATE TABLE places (id int, lat numeric(5,2), PRIMARY KEY (id));
INSERT INTO orders SELECT i, i, 2 * i, repeat('n', i) FROM generate_series(1, 20) i;
INSERT INTO visits SELECT 'v' || i % 3, '2026-01-01', i % 2 FROM generate_series(1, 12) i;
INSERT INTO places VALUES (1, 1), (2, 'NaN'), (3, 'NaN');
ALTER TABLE visits REPLICA IDENTITY FULL
"""


def pipeline(database: Database, log: Path, name: str = "") -> hr.App:
    """Orders are predicted and learned; the other tables are captured only."""
    app = hr.App(name or database.name, log=log)
    db = app.postgres(database.dsn, tables=r"public\.(orders|visits|places)")
    days = app.model("days", hr.LinearRegression(), features=["weight"], target="took")
    days.learn(db["public.orders"])
    days.predict(db["public.orders"]).to("promised")
    return app


def run_script(database: Database, script: str) -> None:
    for statement in script.split(";"):
        database.execute(statement)


@pytest.fixture
def captured(database: Database, tmp_path: Path) -> hr.App:
    """A pipeline that has run and stopped, in a directory of its own."""
    run_script(database, SCHEMA)
    app = pipeline(database, tmp_path / "orders.headrace")
    app.run(until="caught-up")
    run_script(database, "UPDATE orders SET took = 0 WHERE id = 1; DELETE FROM orders WHERE id = 2")
    app.run(until="caught-up")
    return app


def resync(*arguments: str) -> dict[str, Any]:
    """What the command says it did."""
    done = CliRunner().invoke(command, ["capture", "resync", "--json", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (source,) = json.loads(done.stdout)["sources"]
    return dict(source)


def figures(source: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    names = ("known", "now", "equal", "inserted", "updated", "deleted", "dead_letters")
    return {row["table"]: tuple(row[name] for name in names) for row in source["tables"]}


def drop_slot(database: Database) -> None:
    database.execute("SELECT pg_drop_replication_slot(%s)", f"headrace_{database.name}")


def events(app: hr.App, topic: str, first: int = 0) -> list[dict[str, Any]]:
    return app.topic(topic).read().to_arrow().to_pylist()[first:]


def folded(app: hr.App, topic: str) -> dict[Any, Any]:
    """The rows that a topic's events leave, by id."""
    rows: dict[Any, Any] = {}
    for event in events(app, topic):
        rows.pop(event["id"], None)
        if event["op"] != "d":
            rows[event["id"]] = (event["weight"], event["took"], event["note"])
    return rows


def test_rows_of_a_partition_that_was_truncated_alone_are_taken_out(database: Database, tmp_path: Path) -> None:
    """No event has that. One that is attached with rows has its table join again, by itself."""
    run_script(
        database,
        """CREATE TABLE parts (id int, took float8, PRIMARY KEY (id)) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10); INSERT INTO parts VALUES (1, 1), (2, 2);
        CREATE TABLE other (took float8, id int PRIMARY KEY); INSERT INTO other VALUES (11, 11), (12, 12)""",
    )
    app = hr.App(database.name, log=tmp_path / "parts.headrace")
    app.postgres(database.dsn, tables=r"public\.parts.*")
    app.run(until="caught-up")
    run_script(
        database,
        "ALTER TABLE parts ATTACH PARTITION other FOR VALUES FROM (10) TO (20); INSERT INTO parts VALUES (13, 13)",
    )
    app.run(until="caught-up")
    topic = f"{database.name}.public.parts"
    found = [(event["op"], event["id"]) for event in events(app, topic)]
    assert found[:3] == [("r", 1), ("r", 2), ("t", None)]
    assert sorted(found[3:]) == [("r", number) for number in (1, 2, 11, 12, 13)]
    database.execute("TRUNCATE parts_1")
    app.run(until="caught-up")
    assert len(events(app, topic)) == 8
    assert figures(resync("--log", app.log, "--force"))["public.parts"][3:6] == (0, 0, 2)
    app.run(until="caught-up")
    assert {(event["op"], event["id"]) for event in events(app, topic)[8:]} == {("d", 1), ("d", 2)}


def test_a_log_whose_slot_was_dropped_goes_on(captured: hr.App, database: Database) -> None:
    topic, name = f"{database.name}.public.orders", database.name
    before, learned = events(captured, topic), len(events(captured, "promised"))
    drop_slot(database)
    run_script(
        database,
        """UPDATE orders SET took = 7, weight = 9 WHERE id = 3; UPDATE orders SET id = 100 WHERE id = 4;
        DELETE FROM orders WHERE id = 5; INSERT INTO orders VALUES (200, 1, NULL, NULL);
        UPDATE places SET lat = 2 WHERE id = 2; INSERT INTO places VALUES (4, 'NaN');
        DELETE FROM visits WHERE ctid = (SELECT min(ctid) FROM visits);
        INSERT INTO visits VALUES (NULL, NULL, 'NaN')""",
    )
    with pytest.raises(HeadraceError, match=f"headrace capture resync --log {captured.log}"):
        captured.run(until="caught-up")
    would = resync("--log", captured.log, "--dry-run")
    assert not database.execute("SELECT slot_name FROM pg_replication_slots WHERE database = %s", name)
    done = resync("--log", captured.log)
    assert done["needed"] and "is gone" in done["reason"]
    assert (figures(would), would["reason"]) == (figures(done), done["reason"])
    assert figures(done) == {
        "public.orders": (19, 19, 16, 2, 1, 2, 0),
        "public.places": (3, 2, 1, 0, 1, 0, 2),
        "public.visits": (12, 12, 11, 1, 0, 1, 0),
    }
    new = events(captured, topic)[len(before) :]
    assert [(event["op"], event["id"], event["took"]) for event in sorted(new, key=lambda e: e["id"])] == [
        ("u", 3, 7.0),
        ("d", 4, 8.0),
        ("d", 5, 10.0),
        ("c", 100, 8.0),
        ("c", 200, None),
    ]
    (updated,) = (event for event in new if event["op"] == "u")
    assert updated["__before"] == {"id": 3, "weight": 3.0, "took": 6.0, "note": "nnn"}
    assert {event["position"].split(":")[0] for event in new} == {done["position"]}
    # The pipeline goes on with what it has learned, and the new slot misses nothing.
    database.execute("UPDATE orders SET took = 1 WHERE id = 200")
    captured.run(until="caught-up")
    rows = database.execute("SELECT id, weight, took, note FROM orders")
    assert folded(captured, topic) == {key: tuple(rest) for key, *rest in rows}
    assert len(events(captured, "promised")) > learned
    verify(captured)
    assert resync("--log", captured.log)["needed"] is False
    again = resync("--log", captured.log, "--force")
    assert [row[3:] for row in figures(again).values()] == [(0, 0, 0, 0)] * 3
    captured.run(until="caught-up")
    slots = database.execute("SELECT slot_name FROM pg_replication_slots WHERE database = %s", name)
    assert slots == [(f"headrace_{name}",)]
    verify(captured)


def test_a_model_sees_what_it_would_have_seen(database: Database, tmp_path: Path) -> None:
    """One pipeline is resynced, another captures the same changes: both have learned and predicted the same."""
    run_script(database, SCHEMA + "; UPDATE orders SET took = NULL WHERE id > 10")
    resynced = pipeline(database, tmp_path / "resynced.headrace")
    whole = pipeline(database, tmp_path / "whole.headrace", f"{database.name}_whole")
    for app in (resynced, whole):
        app.run(until="caught-up")
    drop_slot(database)
    changes = """UPDATE orders SET took = 5 WHERE id = 11; UPDATE orders SET weight = 50 WHERE id = 12;
        DELETE FROM orders WHERE id = 13; UPDATE orders SET id = 99 WHERE id = 14;
        UPDATE orders SET note = '' WHERE id = 1;
        INSERT INTO orders VALUES (300, 3, 4, NULL), (301, 4, NULL, NULL)"""
    run_script(database, changes)
    assert figures(resync("--log", resynced.log))["public.orders"][3:6] == (3, 3, 2)
    for took in (6, 7):
        database.execute("UPDATE orders SET took = %s WHERE id = 301", took)
        for app in (resynced, whole):
            app.run(until="caught-up")
    one, other = (learned(app) for app in (resynced, whole))
    # The one has lost sight of order 14, which is order 99 now: a delete and an insert, which is predicted once more.
    assert one == (other[0], other[1], other[2] + 1)
    for app in (resynced, whole):
        verify(app)


def learned(app: hr.App) -> tuple[int, str | None, int]:
    """How many rows the model has learned, its hash, and how many predictions it made."""
    (row,) = (row for row in answered("models", "list", "--json", "--log", app.log) if row["model"] == "days")
    return row["rows"], row["hash"], row["predicted"]


def answered(*arguments: str) -> Any:
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_pipelines_file_brings_what_is_declared_now(captured: hr.App, database: Database, tmp_path: Path) -> None:
    run_script(database, "CREATE TABLE extra (id int PRIMARY KEY); INSERT INTO extra VALUES (1), (2)")
    run_script(database, "ALTER TABLE orders RENAME TO orders_then")
    file = tmp_path / "pipeline.py"
    file.write_text(
        f"""import headrace as hr
app = hr.App({database.name!r}, log={captured.log!r})
db = app.postgres({database.dsn!r}, tables=r"public\\.(orders.*|extra|visits)")
days = app.model("days", hr.LinearRegression(), features=["weight"], target="took")
days.learn(db["public.orders"])
days.predict(db["public.orders"]).to("promised")
"""
    )
    done = resync(str(file), "--force")  # without it nothing is to be done: tables leave and join by themselves
    assert figures(done) == {
        "public.extra": (0, 2, 0, 2, 0, 0, 0),
        "public.orders_then": (19, 19, 19, 0, 0, 0, 0),
        "public.visits": (12, 12, 12, 0, 0, 0, 0),
        "public.places": (0,) * 7,
    }
    assert [row["captured"] for row in done["tables"]] == [True, True, True, False]
    assert [row["op"] for row in events(captured, f"{database.name}.public.extra")] == ["r", "r"]
    database.execute("INSERT INTO extra VALUES (3)")
    again = CliRunner().invoke(command, ["run", str(file), "--until-caught-up"], catch_exceptions=False)
    assert again.exit_code == 0, again.output
    assert [row["op"] for row in events(captured, f"{database.name}.public.extra")] == ["r", "r", "c"]


def test_a_dry_run_changes_nothing_anywhere(captured: hr.App, database: Database, tmp_path: Path) -> None:
    """It says what a resync would find, also where the publication is to be made anew, and while the pipeline runs."""

    def everything() -> tuple[Any, ...]:
        slots = "SELECT slot_name, restart_lsn, confirmed_flush_lsn FROM pg_replication_slots WHERE database = %s"
        published = "SELECT * FROM pg_publication_tables WHERE pubname = %s"
        publication = "SELECT pubinsert, pubupdate, obj_description(oid) FROM pg_publication WHERE pubname = %s"
        names = (database.execute(text, f"headrace_{database.name}") for text in (published, publication))
        # A reader leaves SQLite's shared memory, and a write-ahead log without anything in it.
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if not path.name.endswith("-shm")}
        written = {name: data for name, data in files.items() if data or not name.endswith("-wal")}
        return (database.execute(slots, database.name), *names, written)

    run_script(database, "INSERT INTO orders VALUES (30, 1, 2, 'x'); UPDATE orders SET took = 9 WHERE id = 7")
    run_script(database, f"ALTER PUBLICATION headrace_{database.name} SET TABLE orders (id, took), places, visits")
    before = everything()
    would = resync("--log", captured.log, "--dry-run", "--force")
    assert figures(would)["public.orders"] == (19, 20, 18, 1, 1, 0, 0)
    assert everything() == before
    said = CliRunner().invoke(command, ["capture", "resync", "--log", captured.log, "--dry-run", "--force"])
    assert "public.orders" in said.stdout and "Nothing was changed" in said.output
    assert everything() == before
    done = resync("--log", captured.log, "--force")
    assert figures(done) == figures(would)
    with captured.start() as running:
        running.wait(60)
        assert figures(resync("--log", captured.log, "--dry-run", "--force"))["public.orders"] == (20,) * 3 + (0,) * 4
    assert resync("--log", captured.log, "--dry-run")["needed"] is False


def test_a_database_that_took_the_others_place(captured: hr.App, database: Database, server: PostgresServer) -> None:
    """Copied into another database: everything has other OIDs and another history, and keys are the same."""
    with fresh_database(server, "copy") as copy:
        run_script(copy, SCHEMA)
        copy.execute("DELETE FROM orders WHERE id IN (2, 20)")
        # Its slot would hold the name in the whole cluster.
        drop_slot(database)
        refused = CliRunner().invoke(command, ["capture", "resync", "--log", captured.log, "--dsn", copy.dsn])
        assert refused.exit_code == 1 or refused.exception is not None
        assert "--yes" in str(refused.exception)
        would = resync("--log", captured.log, "--dsn", copy.dsn, "--dry-run")
        done = resync("--log", captured.log, "--dsn", copy.dsn, "--yes")
        assert figures(would) == figures(done)
        assert figures(done)["public.orders"] == (19, 18, 17, 0, 1, 1, 0)
        moved = pipeline(copy, Path(captured.log), captured.name)
        copy.execute("INSERT INTO orders VALUES (21, 21, 42, NULL)")
        moved.run(until="caught-up")
        assert len(folded(moved, f"{database.name}.public.orders")) == 19
        verify(moved)


ODD = """
CREATE TABLE t (id int PRIMARY KEY, large text, x int);
ALTER TABLE t ALTER large SET STORAGE EXTERNAL;
INSERT INTO t VALUES (1, repeat('a', 20000), 0), (2, repeat('b', 20000), 0), (3, NULL, 0);
CREATE TABLE "we""ird tä ble" ("no""te" text, code text NOT NULL UNIQUE, id int PRIMARY KEY);
ALTER TABLE "we""ird tä ble" REPLICA IDENTITY USING INDEX "we""ird tä ble_code_key";
INSERT INTO "we""ird tä ble" VALUES ('x', 'a', 1), (NULL, 'b', 2), ('z', 'ç', 3)
"""


def test_odd_names_large_values_and_another_identity(database: Database, tmp_path: Path) -> None:
    run_script(database, ODD)
    app = hr.App(database.name, log=tmp_path / "odd.headrace")
    app.postgres(database.dsn, tables=[r"public\.t", r"public\.we.*"])
    app.run(until="caught-up")
    run_script(
        database,
        """UPDATE t SET x = 1; UPDATE "we""ird tä ble" SET id = 20 WHERE id = 2;
        UPDATE "we""ird tä ble" SET code = 'd' WHERE id = 1; DELETE FROM "we""ird tä ble" WHERE code = 'ç'""",
    )
    app.run(until="caught-up")
    drop_slot(database)
    # Not the log's: a table whose name differs in case only.
    run_script(database, """CREATE TABLE "T" (id int PRIMARY KEY); INSERT INTO "T" VALUES (1)""")
    run_script(
        database, """UPDATE t SET x = 2 WHERE id = 2; UPDATE "we""ird tä ble" SET "no""te" = '' WHERE code = 'b'"""
    )
    done = figures(resync("--log", app.log))
    assert done == {"public.t": (3, 3, 2, 0, 1, 0, 0), 'public.we"ird tä ble': (2, 2, 1, 0, 1, 0, 0)}
    last = events(app, f"{database.name}.public.t")[-1]
    assert last["__before"] == {"id": 2, "large": "b" * 20000, "x": 1} and last["large"] == "b" * 20000
    run_script(database, """UPDATE t SET x = 3 WHERE id = 2; DROP TABLE "T\"""")
    app.run(until="caught-up")
    assert resync("--log", app.log, "--force")["tables"][0]["equal"] == 3


def test_rows_that_the_log_may_have_had(database: Database, tmp_path: Path) -> None:
    run_script(database, SCHEMA)
    app = hr.App(database.name, log=tmp_path / "late.headrace")
    app.postgres(database.dsn, tables=r"public\.orders", snapshot="never")
    app.run(until="caught-up")
    database.execute("UPDATE orders SET took = 0 WHERE id = 1")
    app.run(until="caught-up")
    drop_slot(database)
    database.execute("UPDATE orders SET took = 1 WHERE id = 1")
    with pytest.raises(HeadraceError, match="--unknown-rows append"):
        resync("--log", app.log)
    assert figures(resync("--log", app.log, "--unknown-rows", "leave"))["public.orders"] == (1, 20, 0, 0, 1, 0, 0)
    with pytest.raises(HeadraceError, match="--unknown-rows append"):
        resync("--log", app.log, "--force")
    done = resync("--log", app.log, "--force", "--unknown-rows", "append")
    assert figures(done)["public.orders"] == (1, 20, 1, 19, 0, 0, 0)
    assert figures(resync("--log", app.log, "--force"))["public.orders"] == (20, 20, 20, 0, 0, 0, 0)


def test_what_cannot_be_resynced_says_why(captured: hr.App, database: Database, tmp_path: Path) -> None:
    for arguments, says in (
        (["--log", str(tmp_path / "nothing.headrace")], "nothing"),
        (["--log", captured.log, "--source", "other"], "no source «other»"),
        (["--log", "memory://"], "in memory"),
    ):
        with pytest.raises(HeadraceError, match=says):
            resync(*arguments)
    with captured.start(), pytest.raises(HeadraceError, match="is being written"):
        resync("--log", captured.log, "--force")
    empty = hr.App("empty", log=tmp_path / "empty.headrace")
    empty.topic("t", append=True)
    empty.run(until="caught-up")
    with pytest.raises(HeadraceError, match="has captured no database yet"):
        resync("--log", empty.log)


TYPES = """
CREATE TABLE kinds (id int8 PRIMARY KEY, a bool, b int2, c float4, d float8, e numeric(12, 3), f numeric, g date,
    h timestamp, i timestamptz, j bytea, k text, l jsonb, m int[], n uuid, o char(5), p time);
INSERT INTO kinds SELECT i, i % 2 = 0, i, i / 3.0, i / 3.0, i / 3.0, i / 7.0, date '0001-01-01' + 9000 * i,
    timestamp '1969-12-31 23:59:59.999999' + i * interval '1 day', '2026-01-01', decode(repeat('0f', i), 'hex'),
    repeat('ä', i), jsonb_build_object('a', i), array[i, null], gen_random_uuid(), 'ab', '12:00'
    FROM generate_series(1, 9) i;
INSERT INTO kinds (id, c, d, f) VALUES (9223372036854775807, 'NaN', '-0', 'NaN'), (-1, 'Infinity', '-Infinity', NULL)
"""


LONG_FORMS = [pytest.param(form, marks=pytest.mark.slow) for form in ("json+envelope", "arrow")]


@pytest.mark.parametrize("form", ["json", *LONG_FORMS])
def test_a_log_on_a_cluster(database: Database, broker: KafkaBroker, form: str) -> None:
    run_script(database, SCHEMA + ";" + TYPES)
    app = hr.App(database.name, log=f"kafka://{broker.bootstrap}", format=form)
    db = app.postgres(database.dsn, tables=r"public\.(orders|kinds|visits)")
    days = app.model("days", hr.LinearRegression(), features=["weight"], target="took")
    days.learn(db["public.orders"])
    days.predict(db["public.orders"]).to(f"promised-{database.name}")
    app.run(until="caught-up")
    database.execute("UPDATE orders SET took = 0 WHERE id = 1")
    app.run(until="caught-up")
    drop_slot(database)
    run_script(
        database,
        """UPDATE orders SET took = 7 WHERE id = 3; DELETE FROM orders WHERE id = 5; INSERT INTO orders VALUES (200, 1);
        UPDATE kinds SET k = 'other' WHERE id = 4; DELETE FROM visits WHERE who IS NULL""",
    )
    log = f"kafka://{broker.bootstrap}/{database.name}"
    with pytest.raises(HeadraceError, match=f"headrace capture resync --log {log}"):
        app.run(until="caught-up")
    would = resync("--log", log, "--dry-run")
    done = resync("--log", log)
    assert figures(would) == figures(done)
    assert figures(done) == {
        "public.kinds": (11, 11, 10, 0, 1, 0, 0),
        "public.orders": (20, 20, 18, 1, 1, 1, 0),
        "public.visits": (12, 12, 12, 0, 0, 0, 0),
    }
    app.run(until="caught-up")
    verify(app)
    assert resync("--log", log)["needed"] is False
