"""The page Health beside a real database: WAL that a slot keeps back, what the doctor finds, what topics keep."""

from __future__ import annotations

import html
import re
from pathlib import Path

import psycopg
import pytest

import headrace as hr
from headrace.log import open_log
from headrace.serve.settings import ServeSettings
from headrace.ui.database_findings import DatabaseFindings
from headrace.ui.read.health import retention_of
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
