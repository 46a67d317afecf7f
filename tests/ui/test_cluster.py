"""A cluster: all its topics, and one pipeline's log on it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import headrace as hr
from headrace.testing.servers import KafkaBroker
from tests.serve.client import Client

from .test_commands import PAGE, announced, begun


@pytest.mark.slow
def test_ui_shows_a_cluster_and_one_log_on_it(broker: KafkaBroker, topic_prefix: str, tmp_path: Path) -> None:
    app = hr.App(topic_prefix, log=f"kafka://{broker.bootstrap}")
    points = app.topic(topic_prefix, append=True)
    app.model("line", hr.LinearRegression(), features=["x"], target="y").learn(points)
    with app.start() as running:
        running.append(topic_prefix, [{"x": 1.0, "y": 2.0}, {"x": 2.0, "y": 4.0}, {"x": 3.0, "y": 6.0}])
        running.wait(60)
        for place in (f"kafka://{broker.bootstrap}", f"kafka://{broker.bootstrap}/{topic_prefix}"):
            with begun("ui", "--log", place, "--no-open", "--port", "0", cwd=tmp_path) as (process, lines):
                client = Client(announced(process, lines).removesuffix("/ui/"))
                for path, said in {"/ui/": topic_prefix, "/ui/topics": topic_prefix, "/ui/health": "line"}.items():
                    got = client.get(path, PAGE, pipeline=topic_prefix)
                    assert got.status == 200 and said in got.body.decode(), (place, path)
                then = client.get("/ui/topics", PAGE, at=f"{topic_prefix}:2", pipeline=topic_prefix)
                assert then.status == 200 and "As it was at" in then.body.decode()
                client.close()
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
