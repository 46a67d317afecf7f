"""What a pipeline on a cluster says of itself in its log: running, stopped, failed, not heard of."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from typer.testing import CliRunner

import headrace as hr
from headrace.cli.main import app as command
from headrace.engines.local.serving.health import IDLE_SECONDS
from headrace.errors import LogLocked
from headrace.formats.topic_formats import codec_for
from headrace.inspect.health import read_status
from headrace.kafka.cluster import Cluster
from headrace.kafka.settings import KafkaLocation
from headrace.log.kafka import KafkaLog
from headrace.log.topic_metadata import STATUS
from headrace.replay.verify import verify
from headrace.testing.servers import KafkaBroker
from headrace.ui.read.health import health_of
from headrace.ui.read.pipeline import Numbers, graph_of, look
from tests.waiting import wait_until


@pytest.fixture
def app(broker: KafkaBroker, topic_prefix: str) -> hr.App:
    return declared(broker, topic_prefix)


def declared(broker: KafkaBroker, name: str) -> hr.App:
    made = hr.App(name, log=f"kafka://{broker.bootstrap}")
    points = made.topic(name, append=True)
    made.model("line", hr.LinearRegression(), features=["x"], target="y").learn(points)
    return made


@pytest.fixture
def seen(broker: KafkaBroker, topic_prefix: str, app: hr.App) -> Iterator[KafkaLog]:
    """The pipeline's log, as another process looks at it."""
    with app.start():
        pass  # it is made
    with closing(log_of(broker, topic_prefix)) as log:
        yield log


def log_of(broker: KafkaBroker, name: str) -> KafkaLog:
    location = KafkaLocation.parse(f"kafka://{broker.bootstrap}/{name}")
    return KafkaLog(location, writer=False, codec=codec_for())


def state_of(log: KafkaLog) -> str:
    return Numbers(graph_of(log)).take(look(log))["log/state"]


def test_it_runs_and_is_stopped(app: hr.App, seen: KafkaLog, broker: KafkaBroker, topic_prefix: str) -> None:
    assert state_of(seen) == "stopped" and health_of(seen).stopped_us > 0
    with app.start() as running:
        wait_until(lambda: state_of(seen) == "running")
        running.append(topic_prefix, [{"x": 1.0, "y": 2.0}, {"x": 2.0, "y": 4.0}])
        running.wait(60)
        # A word goes with a commit; the next one with another, a second later at the earliest.
        first = read_status(seen)
        running.append(topic_prefix, [{"x": 3.0, "y": 6.0}])
        running.wait(60)
        changelog, cluster = seen.changelog_topic, Cluster(KafkaLocation.parse(f"kafka://{broker.bootstrap}"))
        end = cluster.ends(changelog)[0]
        rounds: list[int] = []
        running.engine.each_round.append(lambda: rounds.append(1))
        wait_until(lambda: len(rounds) > 2)  # idle ones: none of them takes a transaction
        assert cluster.ends(changelog)[0] == end
        health = health_of(seen)
        assert health.runs and [part.name for part in health.parts if part.kind == "engine"] == [topic_prefix]
        assert {"capture", "commit", "line"} >= {name for name, _ in health.busy} and health.figures["memory"] > 0
        assert any(name == "rounds" for name, *_ in health.gauges) and "process" in health.where
        assert first.within == IDLE_SECONDS and not health.findings
    assert state_of(seen) == "stopped" and not health_of(seen).findings and not health_of(seen).runs
    assert STATUS not in seen.kinds()  # a copy of the log says nothing of who ran the original
    assert verify(app.plan(), seen).exit_code == 0


def test_a_failure_is_said_and_a_stop_by_another_run_is_not(
    app: hr.App, seen: KafkaLog, broker: KafkaBroker, topic_prefix: str
) -> None:
    def fail() -> None:
        raise RuntimeError("no more")

    running = app.start()
    running.engine.each_round.append(fail)
    with pytest.raises(RuntimeError):
        running.join(60)
    with pytest.raises(RuntimeError):
        running.stop()
    assert state_of(seen) == "failed"
    assert any("no more" in finding.message for finding in health_of(seen).findings)
    first = app.start()
    wait_until(lambda: state_of(seen) == "running")
    with declared(broker, topic_prefix).start() as second:  # takes over
        with pytest.raises(LogLocked, match="another run"):
            first.append(topic_prefix, [{"x": 1.0, "y": 2.0}])
            first.wait(60)
        with pytest.raises(LogLocked, match="another run"):
            first.stop()
        second.append(topic_prefix, [{"x": 1.0, "y": 2.0}])
        assert state_of(seen) == "running"


def test_one_that_says_nothing_any_more(app: hr.App, seen: KafkaLog, broker: KafkaBroker, topic_prefix: str) -> None:
    with closing(KafkaLog(seen.location, writer=True)) as log, log.transaction() as txn:
        (value,) = log.records(STATUS).values()
        about = json.loads(value)
        parts = [{"kind": "engine", "name": topic_prefix, "seconds": 0.1, "status": "running"}]
        about |= {"state": "running", "ts": time.time() - 30, "parts": parts}
        txn.put(STATUS, topic_prefix, json.dumps(about).encode())
    assert state_of(seen) == "not heard of for 30 s"
    assert "it was killed, or hangs" in health_of(seen).findings[0].message and not health_of(seen).runs
    done = CliRunner().invoke(command, ["doctor", "--log", f"kafka://{broker.bootstrap}/{topic_prefix}", "--json"])
    (silent,) = [each for each in json.loads(done.stdout)["findings"] if topic_prefix in each["where"]]
    assert (done.exit_code, silent["check"], silent["severity"]) == (1, "silent", "error")
    with closing(KafkaLog(seen.location, writer=True)) as log, log.transaction() as txn:
        txn.put(STATUS, topic_prefix, b"{")
    assert state_of(seen) == "failed" and "cannot be read" in health_of(seen).findings[0].message
    # A log of an engine, or of a version of Headrace, that says nothing.
    with closing(KafkaLog(seen.location, writer=True)) as log, log.transaction() as txn:
        txn.delete(STATUS, topic_prefix)
    assert state_of(seen) == "quiet"
