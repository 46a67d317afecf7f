"""Requests while versions come and go, and requests that come together: none fails, none is mixed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headrace as hr
from tests.waiting import wait_until

from .client import FISH, SEEDS, Client, serving

ROW = {"Length": 86.37, "Height": 18.74, "Species": "salmon"}
OTHER = {"Length": 57.0, "Height": 12.5, "Species": "walleye"}


def swapping(log: Path) -> hr.App:
    """A model that begins a new version with every second row."""
    app = hr.App("fish", log=log)
    features = ["Length", "Height", hr.category("Species")]
    model = app.model(
        "weight", hr.LinearRegression(), features=features, target="Weight", versions=2, keep_versions=999
    )
    model.learn(app.topic("measured", append=True)).serve()
    return app


def body(*rows: dict[str, Any]) -> dict[str, Any]:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    kinds = {name: "BYTES" if isinstance(values[0], str) else "FP64" for name, values in columns.items()}
    return {
        "inputs": [
            {"name": name, "shape": [len(rows)], "datatype": kinds[name], "data": values}
            for name, values in columns.items()
        ]
    }


def test_no_request_fails_and_no_answer_is_mixed_while_versions_change(tmp_path: Path) -> None:
    truth: dict[tuple[int, str], tuple[float, float]] = {}
    seen: list[tuple[int, str, list[float]]] = []
    ended = threading.Event()
    failed: list[Any] = []

    def ask(url: str, batch: bool) -> None:
        client = Client(url)
        while not ended.is_set():
            if batch:
                got = client.post("/v2/models/weight/infer", body(ROW, OTHER))
                values = got.json["outputs"][0]["data"] if got.status == 200 else []
            else:
                got = client.get("/prediction", **SEEDS)
                values = [got.json["Weight"]] if got.status == 200 else []
            if got.status != 200:
                failed.append(got)
            else:
                seen.append((int(got.headers["headrace-version"]), got.headers["headrace-position"], values))
        client.close()

    rng = np.random.default_rng(1)
    with serving(swapping(tmp_path / "fish.headrace"), FISH) as (running, client), ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, client.url, i % 2 == 0) for i in range(4)]
        for i in range(60):
            running.append("measured", [{**FISH[i % 6], "Weight": float(rng.normal(3, 1))}])
            made = running["weight"]
            a, b = made.predict([ROW, OTHER]).tolist()
            truth[made.version, str(made.position)] = (a, b)
            if i % 20 == 19:
                running.rollback("weight", made.version - 3)
                made = running["weight"]
                a, b = made.predict([ROW, OTHER]).tolist()
                truth[made.version, str(made.position)] = (a, b)
        ended.set()
        for future in asking:
            future.result(20)
    assert failed == []
    known = [(truth[version, position], values) for version, position, values in seen if (version, position) in truth]
    assert len({version for version, _, _ in seen}) > 5
    assert len(known) > len(seen) / 2
    for expected, values in known:
        assert values in ([expected[0]], list(expected))


@pytest.mark.parametrize("window", [0.0, 5.0])
def test_requests_that_come_together_get_their_own_answers(tmp_path: Path, window: float) -> None:
    with serving(swapping(tmp_path / "fish.headrace"), FISH, batch_window_ms=window) as (running, client):

        def ask(i: int) -> None:
            mine = Client(client.url)
            for j in range(15):
                row = {"Length": 50.0 + i, "Height": 10.0 + j, "Species": "salmon" if i % 2 else "walleye"}
                got = mine.get("/prediction", **{name.lower(): value for name, value in row.items()})
                if i == 3:
                    assert mine.get("/prediction", length="x").status == 422
                assert got.json["Weight"] == float(running["weight"].predict([row])[0])
            mine.close()

        with ThreadPoolExecutor(12) as threads:
            list(threads.map(ask, range(12)))


def test_who_leaves_takes_nobody_along(tmp_path: Path) -> None:
    """Connections that close before they are answered."""
    with serving(swapping(tmp_path / "fish.headrace"), FISH, batch_window_ms=100) as (_, client):
        import socket
        from urllib.parse import urlsplit

        where = urlsplit(client.url)
        for _ in range(5):
            with socket.create_connection((str(where.hostname), where.port or 0)) as leaving:
                query = "length=1&height=1&species=salmon"
                leaving.sendall(f"GET /prediction?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert client.get("/prediction", **SEEDS).status == 200
        wait_until(lambda: client.get("/v2/health/live").status == 200)
