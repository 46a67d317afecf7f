"""The page Health beside a real database: WAL that a slot keeps back, what the doctor finds, what topics keep."""

from __future__ import annotations

import html
import json
import re
import time
from pathlib import Path

import psycopg
import pytest

import headrace as hr
from headrace.inspect.health import Sample, read_history
from headrace.log import open_log
from headrace.serve.settings import ServeSettings
from headrace.ui.database_findings import DatabaseFindings
from headrace.ui.read.health import retention_of
from headrace.ui.read.history import history_of, recorded
from headrace.ui.stream import Hub
from tests.databases import Database
from tests.serve.client import Client
from tests.waiting import wait_until

KEPT = 20_000_000


@pytest.fixture
def app(database: Database, tmp_path: Path) -> hr.App:
    """A pipeline that captures a table and predicts its rows."""
    database.execute("CREATE TABLE points (id int PRIMARY KEY, x float8)")
    database.execute("INSERT INTO points SELECT i, i FROM generate_series(1, 40) i")
    made = hr.App(database.name, log=str(tmp_path / "points.headrace"), keep="7 days")
    db = made.postgres(database.dsn, tables=r"public\.points", prefix="shop")
    groups = made.model("groups", hr.KMeans(k=2), features=["x"])
    groups.learn(db["public.points"], every=4)
    groups.predict(db["public.points"]).to("grouped")
    return made


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_wal_that_a_slot_keeps_back(app: hr.App, database: Database, tmp_path: Path) -> None:
    """An open transaction keeps WAL from its beginning on: plan and health show how much, and whose slot idles."""
    with app.start(ui=ServeSettings(port=0)) as running, psycopg.connect(database.dsn) as writer:
        # Before the transaction: a new slot would wait for its end.
        database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", f"idle_{database.name}")
        writer.execute("INSERT INTO points VALUES (1000, 1)")
        database.execute("SELECT pg_logical_emit_message(false, 'x', repeat('y', %s))", KEPT)
        log = open_log(str(tmp_path / "points.headrace"), writer=False)
        hub = Hub(lambda _: {"": log})

        def noted() -> dict[str, str] | None:
            numbers = hub.look("", {}).numbers
            kept = re.fullmatch(r"([\d.]+) MB", numbers["log/kept"])
            return numbers if kept is not None and float(kept[1]) >= KEPT / 1e6 else None

        numbers = wait_until(noted, "a slot that keeps WAL back")
        assert numbers["source:shop/note"] == f"{numbers['log/kept']} of WAL kept"
        assert numbers["source:shop/status"] == "streaming from /tmp…", "what its box has room for"
        log.close()
        client = Client(running.page.removesuffix("/ui/"))
        plan = client.get("/ui/").body.decode()
        assert 'data-live="source:shop/note"' in plan
        assert 'data-live="log/kept"' in plan
        # The databases are asked beside the page, which never waits for them.
        page = wait_until(
            lambda: seen if f"idle_{database.name}" in (seen := text_of(client.get("/ui/health").body.decode())) else ""
        )
        assert f"SELECT pg_drop_replication_slot('idle_{database.name}');" in page
        assert "slot_retained_bytes" in page
        assert re.search(r"shop\.public\.points 7 days [\d.]+ k?B 40 0", page)
        client.close()
        writer.rollback()


def test_retention(app: hr.App, tmp_path: Path) -> None:
    app.run(until="caught-up")
    log = open_log(str(tmp_path / "points.headrace"), writer=False)
    kept = {topic.topic: topic for topic in retention_of(log)}
    assert {topic.keep for topic in kept.values()} == {"7 days"}
    assert kept["grouped"].rows == 40 and kept["grouped"].oldest_us > 0 and not kept["grouped"].dropped
    log.close()


def test_databases_that_are_away_hold_up_no_page(app: hr.App, database: Database, tmp_path: Path) -> None:
    app.run(until="caught-up")
    database.drop_slots()
    log = open_log(str(tmp_path / "points.headrace"), writer=False)
    databases = DatabaseFindings()
    assert databases.of({"": log}, "points.headrace") == {}, "they are asked in a thread"
    found = wait_until(lambda: databases.found)
    assert "is gone" in next(finding for finding in found[""] if finding.check == "log").message
    assert databases.of({"": log}, "points.headrace") is found, "they are not asked again at once"
    log.close()


def test_the_hour_before_somebody_looked(app: hr.App, database: Database, tmp_path: Path) -> None:
    """Strips begin before the page was opened: as the pipeline has said beside its log, else by the log's rows."""
    path = tmp_path / "points.headrace"
    app.run(until="caught-up")
    earlier = [Sample(time.time() - 60 + 5 * step, 2.0, 9.0, 1.0, 1) for step in range(4)]
    too_early = Sample(time.time() - 7200, 2.0, 9.0, 1.0, 1)
    path.with_name("points.headrace.history").write_text(json.dumps([too_early, *earlier]))  # of a run that was killed
    with app.start(ui=ServeSettings(port=0)) as running:
        running.wait(60)
        database.execute("INSERT INTO points SELECT i, i FROM generate_series(100, 140) i")
        running.wait(60)
        log = open_log(str(path), writer=False)
        said = wait_until(lambda: len(read := read_history(log)) > len(earlier) and read)
        assert said[: len(earlier)] == earlier
        client = Client(running.page.removesuffix("/ui/"))
        assert "From a commit in the database to its prediction" in client.get("/ui/health").body.decode()
        client.close()
    assert not read_history(log), "it goes when the pipeline ends"
    found = history_of(log)
    assert found and found == recorded(log)
    assert all(0 <= sample.p50_ms <= sample.p99_ms < 60_000 and sample.rounds_s for sample in found)
    log.close()
