"""Whether it is ready and lives: sources, sinks and rounds, here and in processes that follow the log."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

import headrace as hr
from headrace.engines.local.serving.health import HealthWriter
from headrace.inspect.health import FILE, Status, read_health
from headrace.log import file_of, open_log
from headrace.serve.settings import ServeSettings
from headrace.testing.servers import postgres
from tests.waiting import wait_until

from .client import FISH, Client, fish, following, serving

QUICK = {"ready_source_seconds": 0.2, "ready_round_seconds": 30.0}


def ready(client: Client) -> tuple[int, Any]:
    got = client.get("/v2/health/ready")
    return got.status, got.json


def metric(client: Client, name: str, **labels: str) -> float | None:
    """The value of one gauge; None where it is not there."""
    wanted = "{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}" if labels else ""
    for line in client.get("/metrics").body.decode().splitlines():
        if line.startswith(f"headrace_{name}{wanted} "):
            return float(line.rsplit(" ", 1)[1])
    return None


def test_a_database_that_is_away_is_said(tmp_path: Path) -> None:
    with postgres() as server:
        dsn = server.dsn
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE points (id int PRIMARY KEY, x float8, y float8)")
            connection.execute("INSERT INTO points SELECT i, i, 2 * i FROM generate_series(1, 9) i")
        app = hr.App("away", log=tmp_path / "away.headrace")
        points = app.postgres(dsn, tables=r"public\.points", prefix="p")["public.points"]
        app.model("line", hr.LinearRegression(), features=["x"], target="y").learn(points)
        with app.start(serve=ServeSettings(port=0, **QUICK)) as running, following(app) as follower:
            assert running.server is not None
            client = Client(running.server.url)
            running.wait(60)
            assert wait_until(lambda: ready(client)[0] == 200, 60)
            assert metric(client, "source_connected", source="p") == 1.0
            assert metric(client, "source_lag_seconds", source="p") == 0.0
            retained = metric(client, "source_slot_retained_bytes", source="p")
            assert retained is not None and retained >= 0
            server.stop()
            status, said = wait_until(lambda: (found := ready(client))[0] == 503 and found, 60)
            assert (status, said["ready"]) == (503, False)
            assert "the source «p»" in said["reasons"][0] and "connecting" in said["reasons"][0]
            assert client.get("/v2/health/live").json["live"] is True
            assert metric(client, "source_connected", source="p") == 0.0
            assert (metric(client, "source_away_seconds", source="p") or 0) > 0.2
            assert wait_until(
                lambda: any(part.kind == "source" and part.seconds for part in read_health(running.log)), 60
            )
            assert follower.get("/v2/health/ready").json["parts"], "a process that follows knows of it too"
            server.start()
            wait_until(lambda: ready(client)[0] == 200, 60)
            assert metric(client, "source_reconnects", source="p") == 1.0
            client.close()


def test_a_sink_and_a_silent_engine_are_said(tmp_path: Path) -> None:
    app = fish(tmp_path / "fish.headrace")
    app.topic("measured", append=True).to_http("http://127.0.0.1:9/nobody", name="till")
    with serving(app, FISH, ready_sink_seconds=0.1) as (running, client):
        said = wait_until(lambda: (found := ready(client))[0] == 503 and found[1], 60)
        assert "the sink «till»" in said["reasons"][0]
        assert (metric(client, "sink_lag_rows", sink="till", topic="measured") or 0) == len(FISH)
        assert (metric(client, "rounds") or 0) >= len(FISH)
        path = file_of(running.log, FILE)
        assert path is not None
        wait_until(path.exists)
        # An engine whose rounds do not end, as others see it: what it wrote last grows old.
        engine = next(part for part in read_health(running.log) if part.kind == "engine")
        running.engine._round = lambda: time.sleep(0.05)  # type: ignore[method-assign]  # it does nothing any more
        wait_until(lambda: metric(client, "round_age_seconds"))
        wait_until(lambda: next(p for p in read_health(running.log) if p.kind == "engine").seconds > engine.seconds + 1)
    assert not path.exists()
    log = open_log(tmp_path / "fish.headrace", writer=False)
    assert read_health(log) == []
    path.write_text("{")
    (broken,) = read_health(log)
    assert broken.ended and "cannot be read" in broken.status
    log.close()


@pytest.mark.parametrize("limit", [None, 600.0])
def test_an_engine_that_has_ended_is_not_alive(tmp_path: Path, limit: float | None) -> None:
    with serving(fish(tmp_path / "fish.headrace"), FISH, live_round_seconds=limit) as (running, client):
        running.engine.stop()
        said = wait_until(lambda: (got := client.get("/v2/health/live")).status == 503 and got.json)
        assert said["live"] is False and "ended" in said["reasons"][0]


def test_a_round_after_the_end_says_nothing_more(tmp_path: Path) -> None:
    """The engine's thread may make its last round when the pipeline has said that it ends."""
    writer = HealthWriter(tmp_path / "t.headrace.health", Status)
    writer.remove()
    writer.write()
    assert list(tmp_path.iterdir()) == []
