"""`headrace slots list`, `slots drop` and `headrace down`: what pipelines leave on a server, and how it goes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import headrace as hr
from headrace.capture.postgres import slots
from headrace.cli.arguments import load_app
from headrace.cli.main import app as command
from headrace.errors import HeadraceError
from tests.databases import Database


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


def answered(*arguments: str) -> Any:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def file(database: Database, tmp_path: Path) -> Path:
    """The file of a pipeline that has run, with a sink into a table."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    database.execute("INSERT INTO t VALUES (1, 1)")
    made = tmp_path / "pipeline.py"
    made.write_text(
        f"""import headrace as hr
app = hr.App({database.name!r}, log={str(tmp_path / "t.headrace")!r})
db = app.postgres({database.dsn!r}, tables=r"public\\.t")
db["public.t"].to_table({database.dsn!r}, "results", key="id")
"""
    )
    assert call("run", str(made), "--until-caught-up").exit_code == 0
    return made


def slot_of(database: Database) -> dict[str, Any]:
    found = {slot["name"]: slot for slot in answered("slots", "list", database.dsn)}
    return dict(found.get(f"headrace_{database.name}", {}))


def test_slots_are_listed_with_their_logs(file: Path, database: Database, tmp_path: Path) -> None:
    name, log = f"headrace_{database.name}", tmp_path / "t.headrace"
    known = slot_of(database)
    assert (known["app"], known["log"], known["log_state"]) == (database.name, str(log), "there")
    assert (known["active"], known["pid"], known["database"]) == (False, None, database.name)
    exact = "SELECT pg_current_wal_lsn() - restart_lsn FROM pg_replication_slots WHERE slot_name = %s"
    assert 0 <= known["retained_bytes"] <= int(database.execute(exact, name)[0][0])
    assert known["wal_status"] == "reserved"
    assert answered("slots", "list", str(file)) != []
    shown = call("slots", "list", database.dsn)
    assert "not there any more" not in shown.output
    # The log's file is deleted: the slot stays, and that is said, with the command.
    for path in tmp_path.glob("t.headrace*"):
        path.unlink()
    assert slot_of(database)["log_state"] == "gone"
    shown = call("slots", "list", database.dsn)
    assert f"The log of {name}, {log}, is not there any more" in shown.output
    assert f"headrace slots drop {name}" in shown.output
    with pytest.raises(HeadraceError, match="--yes"):
        call("slots", "drop", name, database.dsn)
    dropped = call("slots", "drop", name, database.dsn, "--yes")
    assert f"publication {name} of database {database.name} stays" in " ".join(dropped.output.split())
    assert slot_of(database) == {}
    with pytest.raises(HeadraceError, match="has no replication slot"):
        call("slots", "drop", name, database.dsn, "--yes")


def test_what_is_not_dropped(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    other = f"other_{database.name}"[:63]
    database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", other)
    assert other not in {slot["name"] for slot in answered("slots", "list", database.dsn)}
    with pytest.raises(HeadraceError, match="is not Headrace's"):
        call("slots", "drop", other, database.dsn, "--yes")
    assert call("slots", "drop", other, database.dsn, "--yes", "--force").exit_code == 0
    app = hr.App(database.name, log="memory://")
    app.postgres(database.dsn, tables=r"public\.t")
    with app.start():
        known = slot_of(database)
        assert known["active"] and known["log_state"] == "there"
        with pytest.raises(HeadraceError, match=f"server process {known['pid']}"):
            call("slots", "drop", known["name"], database.dsn, "--yes", "--force")
    with pytest.raises(HeadraceError, match="no connection string"):
        call("slots", "list")


def made_here(database: Database) -> tuple[list[Any], list[Any], list[Any]]:
    """Slots, publications, and positions of sinks in a database."""
    slots_there = database.execute("SELECT slot_name FROM pg_replication_slots WHERE database = %s", database.name)
    there = database.execute("SELECT to_regclass('headrace.sinks')")[0][0]
    positions = database.execute("SELECT sink FROM headrace.sinks") if there else []
    return slots_there, database.execute("SELECT pubname FROM pg_publication"), positions


def test_down_removes_what_a_pipeline_made(file: Path, database: Database, tmp_path: Path) -> None:
    assert [len(found) for found in made_here(database)] == [1, 1, 1]
    with pytest.raises(HeadraceError, match=r"would remove slot .*publication"):
        call("down", str(file))
    done = answered("down", str(file), "--yes")
    assert [left["kind"] for left in done["removed"]] == ["slot", "publication"]
    assert {left["kind"] for left in done["kept"]} == {"results", "positions", "log"}
    assert [len(found) for found in made_here(database)] == [0, 0, 1]
    # The log is as it was, and goes on when it is wanted again.
    with pytest.raises(HeadraceError, match="capture resync"):
        call("run", str(file), "--until-caught-up")
    database.execute("INSERT INTO t VALUES (2, 2)")
    assert call("capture", "resync", str(file)).exit_code == 0
    assert call("run", str(file), "--until-caught-up").exit_code == 0
    assert database.execute("SELECT id FROM results ORDER BY id") == [(1,), (2,)]
    done = answered("down", str(file), "--yes", "--log-too")
    assert [left["kind"] for left in done["removed"]] == ["slot", "publication", "positions", "log"]
    assert [len(found) for found in made_here(database)] == [0, 0, 0]
    assert list(tmp_path.glob("t.headrace*")) == []
    assert database.execute("SELECT count(*) FROM results") == [(2,)]
    assert "nothing of this pipeline is left" in call("down", str(file)).output


def test_down_leaves_what_is_anothers(file: Path, database: Database, tmp_path: Path) -> None:
    with load_app(str(file)).start(), pytest.raises(HeadraceError, match="is being written"):
        call("down", str(file), "--yes")
    elsewhere = str(tmp_path / "elsewhere.headrace")
    done = answered("down", str(file), "--yes", "--log", elsewhere)
    assert done["removed"] == []
    assert all("belongs to another log" in left["why"] for left in done["kept"] if left["kind"] == "slot")
    assert len(made_here(database)[0]) == 1


def test_a_start_warns_of_slots_that_nobody_reads(
    file: Path, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slots, "WARN_BYTES", 1)
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(10, 20) i")
    app = hr.App(f"{database.name}_two", log="memory://")
    app.postgres(database.dsn, tables=r"public\.t")
    with caplog.at_level(logging.WARNING), app.start():
        pass
    (line,) = (record.getMessage() for record in caplog.records if "that nobody reads" in record.getMessage())
    assert "of WAL" in line and "headrace slots list" in line
