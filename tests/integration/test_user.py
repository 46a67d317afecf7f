"""A user's own pipeline on a real PostgreSQL: running, reading, refusing, stopping."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.compute as pc
import pytest

import headrace as hr
from headrace.capture.postgres.source import PostgresSource
from headrace.errors import DeclarationError, FingerprintError, LogLocked, SourceRefused, SourceUnavailable, WaitTimeout
from tests.databases import Database
from tests.processes import HEADRACE, Child, headrace

PIPELINE = """
import headrace as hr

app = hr.App("shop", log="shop.headrace")
db = app.postgres({dsn!r}, tables=r"public\\.f_.*")
model = app.model("m", hr.KMeans(k=2, initial_centers=[[0, 0], [9, 9]]), features=["x", "y"])
model.learn(db["public.f_train"], every={every})
model.predict(db["public.f_test"]).to("answers")

if __name__ == "__main__":
    app.run()
"""


@pytest.fixture
def tables(database: Database) -> Database:
    for name in ("f_train", "f_test"):
        database.execute(f"create table {name} (id int primary key, x float8, y float8, note text)")
    return database


def app(tables: Database, tmp_path: Path, *, every: Any = 2, name: str = "shop") -> hr.App:
    made = hr.App(name, log=tmp_path / f"{name}.headrace")
    db = made.postgres(tables.dsn, tables=[r"public\.f_train", r"public\.f_test"])
    model = made.model("m", hr.KMeans(k=2, initial_centers=[[0, 0], [9, 9]], decay=1.0), features=["x", "y"])
    model.learn(db["public.f_train"], every=every)
    model.predict(db["public.f_test"]).to("answers")
    return made


def insert(tables: Database, table: str, *rows: tuple[Any, ...]) -> None:
    with psycopg.connect(tables.dsn) as connection:
        connection.cursor().executemany(f"insert into {table} values (%s, %s, %s, %s)", rows)  # type: ignore[arg-type]


def test_read_your_writes(tables: Database, tmp_path: Path) -> None:
    made = app(tables, tmp_path)
    insert(tables, "f_train", (1, 0, 1, "before"), (2, 8, 8, "the start"))
    with made.start() as running:
        for i in range(3):
            insert(tables, "f_test", (i, i * 4, i * 4, None))
            running.wait(timeout=20)
            assert len(made.topic("answers").read()) == i + 1
        assert running["m"].predict([[0.0, 0.0], [9.0, 9.0]]).tolist() == [0, 1]
        assert running["m"].predict([{"x": 9, "y": 8}]).tolist() == [1]
        assert (running["m"].learned, running["m"].version) == (2, 1)
        running.wait(timeout=20, lsn="0/1")
        with pytest.raises(WaitTimeout, match="not caught up"):
            running.wait(timeout=0.2, lsn="FFFF/0")
    frame = made.topic("answers").read().to_pandas()
    assert frame["prediction"].tolist() == [0, 0, 1]
    assert frame["model_position"].notna().all()
    shown = made.topic("shop.public.f_test").filter(pc.field("id") > 1).select("id").read()
    assert shown.to_arrow().column("id").to_pylist() == [2]
    assert "<table>" in shown._repr_html_()
    assert "id" in repr(shown)


def test_updates_and_deletes_are_counted_not_learned(tables: Database, tmp_path: Path) -> None:
    made = app(tables, tmp_path, every=1)
    with made.start() as running:
        insert(tables, "f_train", (1, 1, 1, "a"), (2, 8, 8, "b"), (3, None, 1, "c"))
        tables.execute("update f_train set x = 2 where id = 1")
        tables.execute("delete from f_train where id = 2")
        tables.execute("truncate f_train")
        running.wait(timeout=20)
        counters = running["m"].counters
        assert (counters["learned"], counters["ignored"], counters["rejected"]) == (2, 3, 1)
    rows = made.topic("shop.public.f_train").read().to_arrow().to_pylist()
    assert [row["op"] for row in rows] == ["c", "c", "c", "u", "d", "t"]
    assert rows[4]["id"] == 2
    dead = made.topic("shop.public.f_train.dlq").read().to_arrow().to_pylist()
    assert [(row["reason"], json.loads(row["row"])["id"]) for row in dead] == [("the feature «x» is NULL", 3)]
    assert dead[0]["position"] == rows[2]["position"]


def test_a_tick_from_the_users_side(tables: Database, tmp_path: Path) -> None:
    made = app(tables, tmp_path, every=100)
    with pytest.raises(DeclarationError, match="not running"):
        made.tick("m")
    with made.start() as running:
        insert(tables, "f_train", (1, 1, 1, "a"))
        running.wait(timeout=20)
        assert running["m"].learned == 0
        made.tick("m")
        assert running["m"].learned == 1
        insert(tables, "f_train", (2, 1, 1, "b"))
        running.wait(timeout=20)
        made.tick()
        assert running["m"].learned == 2
        with pytest.raises(DeclarationError, match="running already"):
            made.start()


def test_two_writers_on_one_log_are_refused(tables: Database, tmp_path: Path) -> None:
    first = app(tables, tmp_path)
    with first.start(), pytest.raises(LogLocked, match="is being written by process"):
        app(tables, tmp_path).start()


def test_a_changed_declaration_is_refused_naming_the_difference(tables: Database, tmp_path: Path) -> None:
    app(tables, tmp_path).run(until="caught-up")
    with pytest.raises(FingerprintError, match="every: 2 rows -> 3 rows") as refused:
        app(tables, tmp_path, every=3).run(until="caught-up")
    assert "headrace models reset m" in str(refused.value)
    headrace("models", "reset", "m", "--log", "shop.headrace", cwd=tmp_path)
    app(tables, tmp_path, every=3).run(until="caught-up")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, db: a.model("n", hr.KMeans(k=2), features=[]), "has no features"),
        (lambda a, db: a.model("m", hr.KMeans(k=2), features=["x"]), "two models are named"),
        (lambda a, db: a.model("n", object(), features=["x"]), "is not a learner"),
        (lambda a, db: a.model("n", hr.KMeans(k=2), features=["z"]).learn(db["public.f_test"]), "wants the column «z»"),
        (lambda a, db: a.model("n", hr.KMeans(k=2), features=["x"]).learn(a.topic("nobody")), "which nobody writes"),
        (lambda a, db: a.model("n", hr.KMeans(k=2), features=["x"]), "neither learns nor predicts"),
        (lambda a, db: a.model("n", hr.KMeans(k=2), features=["x"]).predict(db["public.f_test"]), "go nowhere"),
        (lambda a, db: db["public.other"], "no pattern of source"),
        (lambda a, db: db["public.f_test"].to("answers"), "is written twice"),
        (lambda a, db: a.model("n", hr.KMeans(k=2), features=["x"]).learn(db["public.f_test"], every=0), "every=0"),
        (lambda a, db: db["public.f_test"].to("__headrace.x"), "Headrace's own"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(tables: Database, tmp_path: Path, change: Any, message: str) -> None:
    made = hr.App("shop", log=tmp_path / "shop.headrace")
    db = made.postgres(tables.dsn, tables=r"public\.f_.*")
    model = made.model("m", hr.KMeans(k=2), features=["x", "y"])
    model.learn(db["public.f_train"])
    model.predict(db["public.f_test"]).to("answers")
    with pytest.raises(DeclarationError, match=message):
        change(made, db)
        made.run(until="caught-up")
    assert not (tmp_path / "shop.headrace").exists()
    assert tables.execute("select slot_name from pg_replication_slots where database = current_database()") == []


def test_a_start_looks_at_a_database_once(tables: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    check = PostgresSource.check
    monkeypatch.setattr(PostgresSource, "check", lambda self, log: (looked.append(log), check(self, log)))
    for starts in (1, 2):  # where no log is there yet, and where one is
        made = hr.App("shop", log=tmp_path / "shop.headrace")
        db = made.postgres(tables.dsn, tables=r"public\.f_.*")
        db["public.f_test"].to("copy")
        made.run(until="caught-up")
        assert len(looked) == starts


def test_databases_that_cannot_be_captured_are_refused(tables: Database, tmp_path: Path) -> None:
    for dsn, error in (
        ("postgresql://postgres:secret@127.0.0.1:1/x", SourceUnavailable),
        (tables.dsn.replace(tables.name, "no_such_database"), (SourceUnavailable, SourceRefused)),
    ):
        made = hr.App("shop", log=tmp_path / "shop.headrace")
        made.postgres(dsn, tables=r"public\.f_.*")
        with pytest.raises(error) as refused:
            made.run(until="caught-up")
        assert "secret" not in str(refused.value)
    assert not (tmp_path / "shop.headrace").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("by", ["python", "headrace"])
def test_a_signal_stops_it_cleanly(tables: Database, tmp_path: Path, number: int, by: str) -> None:
    (tmp_path / "shop.py").write_text(PIPELINE.format(dsn=tables.dsn, every=1))
    command = [sys.executable, "shop.py"] if by == "python" else [HEADRACE, "run", "shop.py"]
    child = Child(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not tables.execute("select 1 from pg_replication_slots where active and database = current_database()"):
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.05)
    os.kill(child.pid, number)
    _, words = child.communicate(timeout=30)
    assert child.returncode in (0, 128 + number), words  # the other where a busy machine took longer than it may
    assert "Traceback" not in words


def test_run_verify_and_look_by_the_command_line(tables: Database, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PIPELINE.format(dsn=tables.dsn, every=2))
    insert(tables, "f_train", (1, 0, 0, "ä"), (2, 9, 9, None), (3, 1, 1, ""))
    insert(tables, "f_test", (1, 8, 8, "x"))
    headrace("run", "shop.py", "--until-caught-up", cwd=tmp_path)
    ran = json.loads(headrace("run", "shop.py:app", "--until-caught-up", "--json", cwd=tmp_path))
    assert [ran["models"][0][name] for name in ("rows", "pending", "predicted")] == [2, 1, 1]
    assert json.loads(headrace("verify", "shop.py", "--json", cwd=tmp_path))["result"] == "equal"
    listed = json.loads(headrace("topics", "list", "--json", cwd=tmp_path))
    assert [(row["topic"], row["rows"], row["last_offset"]) for row in listed] == [
        ("answers", 1, 0),
        ("shop.public.f_test", 1, 0),
        ("shop.public.f_train", 3, 2),
    ]
    shown = json.loads(headrace("topics", "show", "shop.public.f_train", "--json", cwd=tmp_path))
    assert shown["key"] == ["id"]
    line = json.loads(
        headrace("topics", "cat", "shop.public.f_train", "--from", "1", "--limit", "1", "--json", cwd=tmp_path)
    )
    assert (line["topic"], line["partition"], line["offset"], line["key"]) == ("shop.public.f_train", 0, 1, {"id": 2})
    assert line["payload"]["note"] is None
    everything = headrace("topics", "cat", "--all", cwd=tmp_path).splitlines()
    assert [json.loads(item)["topic"] for item in everything] == [
        "shop.public.f_train",
        "shop.public.f_train",
        "shop.public.f_train",
        "shop.public.f_test",
        "answers",
    ]
    query = 'select note, count(*) n from "shop.public.f_train" group by 1 order by n, note'
    found = json.loads(headrace("sql", query, "--json", cwd=tmp_path))
    assert found == [{"note": "", "n": 1}, {"note": "ä", "n": 1}, {"note": None, "n": 1}]
    assert headrace("sql", 'select max("offset") m from answers', "--csv", cwd=tmp_path) == '"m"\n0\n'
    models = json.loads(headrace("models", "list", "--json", cwd=tmp_path))
    assert (models[0]["model"], models[0]["version"], models[0]["rows"]) == ("m", 1, 2)
    headrace("models", "show", "m", cwd=tmp_path)
    headrace("models", "show", "n", cwd=tmp_path, code=1)
    headrace("topics", "cat", "nothing", cwd=tmp_path, code=1)
    headrace("sql", "selec 1", cwd=tmp_path, code=1)
    headrace("run", "nofile.py", cwd=tmp_path, code=2)
    (tmp_path / "shop.py").write_text(PIPELINE.format(dsn=tables.dsn, every=3))
    headrace("run", "shop.py", "--until-caught-up", cwd=tmp_path, code=2)
    headrace("verify", "shop.py", cwd=tmp_path, code=3)


def test_following_a_topic_from_another_process(tables: Database, tmp_path: Path) -> None:
    made = app(tables, tmp_path)
    with made.start() as running:
        insert(tables, "f_test", (0, 0, 0, None))
        running.wait(timeout=20)
        command = [HEADRACE, "topics", "cat", "answers", "--follow", "--log", str(tmp_path / "shop.headrace")]
        tail = Child(command, stdout=subprocess.PIPE, text=True)
        assert tail.stdout is not None
        killer = threading.Timer(60, tail.kill)
        killer.start()
        try:
            assert json.loads(tail.stdout.readline())["id"] == 0
            insert(tables, "f_test", (1, 9, 9, None))
            assert json.loads(tail.stdout.readline())["id"] == 1
        finally:
            killer.cancel()
            tail.kill()
            tail.wait()


def test_a_model_added_later_starts_at_the_earliest_row(tables: Database, tmp_path: Path) -> None:
    insert(tables, "f_train", (1, 0, 0, None), (2, 9, 9, None))
    app(tables, tmp_path).run(until="caught-up")
    insert(tables, "f_train", (3, 1, 1, None), (4, 8, 8, None))
    made = app(tables, tmp_path)
    later = made.model("later", hr.KMeans(k=2, seed=1), features=["x"])
    later.learn(made.topic("shop.public.f_train"))
    with made.start() as running:
        running.wait(timeout=20)
        assert (running["m"].learned, running["later"].learned) == (4, 4)


def test_a_log_in_memory(tables: Database) -> None:
    made = hr.App("shop", log="memory://")
    db = made.postgres(tables.dsn, tables=r"public\.f_.*")
    db["public.f_test"].with_columns(say=hr.text("no {id}")).to("said")
    with made.start() as running:
        insert(tables, "f_test", (7, 1, 1, None))
        running.wait(timeout=20)
        assert made.topic("said").read().to_arrow().column("say").to_pylist() == ["no 7"]
