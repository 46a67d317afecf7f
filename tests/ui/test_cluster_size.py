"""A cluster with many pipelines: the list opens none of their logs, a page opens that of the one that is chosen."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

import headrace as hr
from headrace.batch import Batch
from headrace.errors import LogMissing
from headrace.formats.topic_formats import codec_for
from headrace.kafka.settings import KafkaLocation
from headrace.log import kafka_view
from headrace.log.kafka import KafkaLog
from headrace.log.kafka_view import KafkaView
from headrace.serve.server import Server, open_socket
from headrace.serve.settings import ServeSettings
from headrace.testing.servers import KafkaBroker
from headrace.ui.application import Dashboard
from headrace.ui.subject import Subject
from tests.serve.client import Client
from tests.waiting import wait_until

MANY = 60
PAGE = {"Accept": "text/html"}


def threads() -> int:
    """Return the threads of this process, those of librdkafka's among them."""
    return int(psutil.Process().num_threads())


@pytest.fixture
def names(broker: KafkaBroker, topic_prefix: str) -> list[str]:
    """Pipelines, each with a log and a topic with a row of its own."""
    made = [f"{topic_prefix}.{number:02}" for number in range(MANY)]

    def make(name: str) -> None:
        log = KafkaLog(KafkaLocation.parse(f"kafka://{broker.bootstrap}/{name}"), writer=True, codec=codec_for())
        with log.transaction() as txn:
            txn.append(f"{name}.rows", Batch.of({"id": [1]}).records)
        log.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(make, made))
    return made


@pytest.fixture
def cluster(broker: KafkaBroker) -> Iterator[tuple[KafkaView, Client]]:
    where, settings = f"kafka://{broker.bootstrap}", ServeSettings(port=0)
    with KafkaView(KafkaLocation.parse(where), codec=codec_for()) as view:
        pages = Dashboard(Subject(view, where, where), settings, None)
        server = Server(pages, settings, listening=open_socket(settings), ending=pages.end)
        server.start()
        client = Client(server.url)
        yield view, client
        client.close()
        server.stop()


@pytest.mark.slow
def test_many_pipelines(names: list[str], cluster: tuple[KafkaView, Client], monkeypatch: pytest.MonkeyPatch) -> None:
    view, client = cluster
    before = threads()
    got = client.get("/ui/", PAGE)
    body = got.body.decode()
    assert got.status == 200 and all(f"pipeline={name}" in body for name in names) and "<svg" not in body
    listed = client.get("/ui/topics", PAGE).body.decode()
    assert all(f">{name}.rows</a>" in listed and f"<td>{name}</td>" in listed for name in names)
    for page in ("models", "alarms", "letters", "health"):
        shown = client.get(f"/ui/{page}", PAGE)
        assert shown.status == 200 and "pipelines have logs on this cluster" in shown.body.decode(), page
    assert "Which pipeline?" in client.get("/ui/topics", PAGE, at="2026-01-01T00:00:00Z").body.decode()
    assert not view._logs  # nothing of this has opened one
    begun = time.monotonic()
    client.get("/ui/", PAGE)
    client.get("/ui/topics", PAGE)
    assert time.monotonic() - begun < 10  # some 0.3 s on a machine that does nothing else
    monkeypatch.setattr(kafka_view, "REST_SECONDS", 0.5)
    for name in names[:12]:
        page = client.get(f"/ui/topics/{name}.rows", PAGE, pipeline=name).body.decode()
        assert f"pipeline={name}" in page and "offsets <b>0 to 0</b>" in page
    wait_until(lambda: threads() < before + 60, "logs that nobody looks at leaving the cluster")
    # They come back.
    again = client.get(f"/ui/topics/{names[0]}.rows", PAGE)
    assert again.status == 200 and "offsets <b>0 to 0</b>" in again.body.decode()
    assert client.get("/ui/health", PAGE, pipeline="nobody").status == 404
    assert threading.active_count() < 100


def test_a_log_that_rests_goes_on(broker: KafkaBroker, topic_prefix: str) -> None:
    location = KafkaLocation.parse(f"kafka://{broker.bootstrap}/{topic_prefix}")
    with pytest.raises(LogMissing):
        KafkaView(location, codec=codec_for())
    writer = KafkaLog(location, writer=True, codec=codec_for())
    with writer.transaction() as txn:
        txn.append(f"{topic_prefix}.rows", Batch.of({"id": [1]}).records)
    with KafkaView(location, codec=codec_for()) as view:
        log = view.log
        for count in (1, 2, 3):
            assert log.topics()[f"{topic_prefix}.rows"].rows == count
            assert sum(entry.records.num_rows for entry in log.read_topic(f"{topic_prefix}.rows")) == count
            log.rest()
            view._owners.rest()
            with writer.transaction() as txn:
                txn.append(f"{topic_prefix}.rows", Batch.of({"id": [1]}).records)
        assert log.newest_slice() == writer.newest_slice() and not view.warnings
    writer.close()


def test_pages_are_of_the_pipeline_that_is_chosen(
    broker: KafkaBroker, topic_prefix: str, cluster: tuple[KafkaView, Client]
) -> None:
    """Two pipelines have a model of the same name."""
    _, client = cluster
    for number in (1, 2):
        app = hr.App(f"{topic_prefix}_{number}", log=f"kafka://{broker.bootstrap}")
        rows = app.topic(f"{topic_prefix}_{number}_rows", append=True)
        app.model("line", hr.LinearRegression(), features=["x"], target="y").learn(rows)
        with app.start() as running:
            running.append(f"{topic_prefix}_{number}_rows", [{"x": 1.0, "y": 2.0}] * number)
            running.wait(60)
    for number in (1, 2):
        chosen = f"{topic_prefix}_{number}"
        body = client.get("/ui/models/line", PAGE, pipeline=chosen).body.decode()
        assert f"{number} rows" in body or f">{number}<" in body
        assert f'href="/ui/topics?pipeline={chosen}"' in body and f'name="pipeline" value="{chosen}"' in body
        assert f"/ui/models/line/tag?pipeline={chosen}" in body or "reset?pipeline=" in body
    # A row of the second one's topic is a place in time of the first, too; the first one's came before the second.
    for number, status in ((1, 200), (2, 404)):
        at = f"{topic_prefix}_{3 - number}_rows:0"
        got = client.get("/ui/models/line", PAGE, pipeline=f"{topic_prefix}_{number}", at=at)
        assert got.status == status and (status == 404 or "As it was at" in got.body.decode())
