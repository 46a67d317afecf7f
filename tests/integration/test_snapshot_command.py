"""`headrace snapshot`: rows of a table into a log whose pipeline runs, or does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import headrace as hr
from headrace.cli.main import app as command
from headrace.errors import DeclarationError, LogError
from tests.databases import Database


def ask(log: Path, *words: str) -> dict[str, Any]:
    done = CliRunner().invoke(command, ["snapshot", *words, "--log", str(log), "--json"], catch_exceptions=False)
    return {**json.loads(done.stdout), "exit": done.exit_code}


def declared(database: Database, log: Path, **more: Any) -> hr.App:
    app = hr.App(database.name, log=str(log))
    app.postgres(database.dsn, tables=r"public\.t.*", snapshot="never", allow_failing_updates=True, **more)
    return app


def ids(app: hr.App, table: str) -> list[tuple[str, int]]:
    return [(row["op"], row["id"]) for row in app.topic(f"{app.name}.public.{table}").read().to_arrow().to_pylist()]


def test_while_a_pipeline_runs(database: Database, tmp_path: Path) -> None:
    log = tmp_path / "shop.headrace"
    database.execute("CREATE TABLE t1 (id int PRIMARY KEY); INSERT INTO t1 SELECT generate_series(1, 5)")
    database.execute("CREATE TABLE tk (id int); INSERT INTO tk VALUES (7)")
    app = declared(database, log)
    with app.start() as running:
        done = ask(log, "public.t1", "--where", "id > 2")
        assert (done["running"], done["ended"], done["exit"]) == (True, {"public.t1": [3, ""]}, 0)
        assert ids(app, "t1") == [("r", 3), ("r", 4), ("r", 5)]
        done = ask(log, "public.t1", "--where", "no_such > 2")
        assert done["exit"] == 1 and "no_such" in done["ended"]["public.t1"][1]
        with pytest.raises(LogError, match=r"matches public\.t7"):
            ask(log, "public.t7")
        with pytest.raises(LogError, match="no primary key"):
            ask(log, "public.tk")
        assert ask(log, "public.tk", "--surrogate-key", "id")["ended"] == {"public.tk": [1, ""]}
        running.wait(30)


def test_when_none_runs(database: Database, tmp_path: Path) -> None:
    log = tmp_path / "shop.headrace"
    database.execute("CREATE TABLE t1 (id int PRIMARY KEY); INSERT INTO t1 SELECT generate_series(1, 5)")
    app = declared(database, log)
    with app.start() as running:
        running.wait(30)
    done = ask(log, "public[.]t.")
    assert (done["running"], done["tables"], done["ended"]) == (False, ["public.t1"], {})
    with pytest.raises(DeclarationError, match=r"matches public\.t2"):
        ask(log, "public.t2")
    with app.start() as running:
        running.wait(30)
    assert ids(app, "t1") == [("r", id_) for id_ in range(1, 6)]


def test_signals_stop_pause_and_resume(database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "shop.headrace"
    database.execute("CREATE TABLE t_signals (id text PRIMARY KEY, type text, data text)")
    for table in ("t1", "t2", "t3"):
        database.execute(f"CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)")

    def signal(kind: str, **data: Any) -> str:
        return f"INSERT INTO t_signals VALUES (gen_random_uuid(), '{kind}', '{json.dumps(data)}');"

    every = {"data-collections": ["public.t[0-9]"], "additional-condition": "id = 1"}
    app = declared(database, log, signals="public.t_signals")
    with app.start() as running:
        # Of one transaction: no chunk is read between them.
        database.execute(
            signal("execute-snapshot", **every)
            + signal("pause-snapshot")
            + signal("stop-snapshot", **{"data-collections": ["PUBLIC.T2"]})
        )
        running.wait(30)
        assert [ids(app, table) for table in ("t1", "t2", "t3")] == [[], [], []]
        database.execute("DELETE FROM t_signals;" + signal("resume-snapshot"))
        running.wait(30)
        assert (ids(app, "t1"), ids(app, "t3")) == ([("r", 1)], [("r", 1)])
        for wrong in (
            signal("execute-snapshot", **{"data-collections": [7]}),
            signal("execute-snapshot", **{"data-collections": ["public.none"]}),
            signal("execute-snapshot", **{"data-collections": ["public.t1"], "type": "quick"}),
            signal("execute-snapshot", **{"data-collections": ["(?a"]}),
            signal("no-such-signal"),
            "INSERT INTO t_signals VALUES ('x', 'log', 'no JSON'), ('y', NULL, NULL);",
        ):
            database.execute(wrong)
        database.execute(signal("log", message="all is well"))
        running.wait(30)
        assert (ids(app, "t1"), ids(app, "t3")) == ([("r", 1)], [("r", 1)])
    assert caplog.text.count("is left out: ") == 7
    with pytest.raises(DeclarationError, match="none of the tables"):
        declared(database, log, signals="public.other")
