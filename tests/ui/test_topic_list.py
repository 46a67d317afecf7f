"""The list of topics: what is hidden, consumer groups and their lag, topics of others, making and deleting one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode

import pyarrow as pa
import pytest

from headrace.batch import Batch
from headrace.formats.topic_formats import codec_for
from headrace.kafka.cluster import Cluster
from headrace.kafka.settings import KafkaLocation
from headrace.log import open_log
from headrace.log.kafka_view import KafkaView
from headrace.serve.keys import KeyFile
from headrace.serve.server import Server, open_socket
from headrace.serve.settings import ServeSettings
from headrace.testing.servers import KafkaBroker
from headrace.ui.application import Dashboard
from headrace.ui.subject import Subject
from tests.serve.client import Client, Got

from .conftest import FORM, dashboard_of


def post(client: Client, path: str, **values: str) -> Got:
    return client.post(path, urlencode(values).encode(), FORM)


def text_of(html: bytes) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.decode()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "shop.headrace"
    log = open_log(str(place), writer=True)
    for topic in ("orders", "__headrace.shop.other"):
        with log.transaction() as transaction:
            transaction.append(topic, Batch.of({"id": [1]}).records)
    log.close()
    return place


def test_what_is_hidden_is_remembered(client: Client) -> None:
    assert "__headrace" not in client.get("/ui/topics").body.decode()
    got = client.get("/ui/topics?internal=yes")
    assert "__headrace" in got.body.decode() and "Hide 1 internal" in got.body.decode()
    client.headers = {"Cookie": got.headers["set-cookie"].partition(";")[0]}
    assert "__headrace" in client.get("/ui/topics").body.decode()
    client.headers = {"Cookie": client.get("/ui/topics?internal=no").headers["set-cookie"].partition(";")[0]}
    assert "__headrace" not in client.get("/ui/topics").body.decode()


def test_a_topic_is_made_and_deleted(client: Client) -> None:
    assert post(client, "/ui/topics", topic="clicks").status == 303
    assert "clicks" in client.get("/ui/topics").body.decode()
    got = post(client, "/ui/topics", topic="clicks")
    assert got.status == 409 and "already" in text_of(got.body)
    assert "own" in text_of(post(client, "/ui/topics", topic="__mine").body)
    assert "has no partitions" in text_of(post(client, "/ui/topics", topic="x", partitions="3").body)
    assert "Type its name" in text_of(post(client, "/ui/topics/clicks/delete", confirm="click").body)
    assert post(client, "/ui/topics/clicks/delete", confirm="clicks").status == 303
    assert "clicks" not in client.get("/ui/topics").body.decode()
    assert "state of others" in text_of(
        post(client, "/ui/topics/__headrace.shop.other/delete", confirm="__headrace.shop.other").body
    )


def test_a_pipeline_that_runs_keeps_its_topics(path: Path, client: Client) -> None:
    with closing(open_log(str(path), writer=True)):
        got = post(client, "/ui/topics/orders/delete", confirm="orders")
        assert got.status == 409 and "orders" in client.get("/ui/topics").body.decode()
        assert post(client, "/ui/topics", topic="clicks").status == 409


def test_a_topic_that_is_used_stays(fish_log: Path, tmp_path: Path) -> None:
    with dashboard_of(Path(shutil.copy(fish_log, tmp_path / "fish.headrace"))) as url:
        client = Client(url.removesuffix("/ui"))
        topic = "weight-prediction"
        got = post(client, f"/ui/topics/{topic}/delete", confirm=topic)
        assert got.status == 409 and "is used by «weight»" in text_of(got.body) and "--force" not in text_of(got.body)
        assert post(client, f"/ui/topics/{topic}/delete", confirm=topic, force="yes").status == 303
        client.close()


def test_an_error_of_a_page_is_logged_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = ServeSettings(port=0)
    with closing(open_log(str(path), writer=False)) as log:
        subject = Subject(log, "shop", str(path))
        pages = Dashboard(subject, settings, None)
        server = Server(pages, settings, listening=open_socket(settings), ending=pages.end)
        server.start()
        subject.held = object()  # type: ignore[assignment]  # a defect
        client = Client(server.url)
        got = client.get("/ui/topics", {"Accept": "text/html"})
        assert got.status == 500 and "a defect of Headrace" in text_of(got.body)
        assert client.get("/ui/static/headrace.css").status == 200  # over the same connection
        client.close()
        server.stop()
    errors = [record.message for record in caplog.records if record.exc_info]
    assert errors == ["the page '/ui/topics' failed"]


def test_changes_need_the_scope(path: Path, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys")
    _, key = keys.create("writer", ["read", "produce", "train"])
    with dashboard_of(path, keys=keys) as url:
        client = Client(url.removesuffix("/ui"), **{"X-API-Key": key})
        assert post(client, "/ui/topics", topic="clicks").status == 403
        assert post(client, "/ui/topics/orders/delete", confirm="orders").status == 403
        assert "Delete this topic" not in client.get("/ui/topics/orders").body.decode()
        client.close()


@pytest.fixture
def cluster(broker: KafkaBroker) -> Iterator[Client]:
    """A dashboard of the whole cluster."""
    settings = ServeSettings(port=0)
    with KafkaView(KafkaLocation.parse(f"kafka://{broker.bootstrap}"), codec=codec_for()) as view:
        where = f"kafka://{broker.bootstrap}"
        pages = Dashboard(Subject(view, where, where), settings, None)
        server = Server(pages, settings, listening=open_socket(settings), ending=pages.end)
        server.start()
        made = Client(server.url)
        yield made
        made.close()
        server.stop()


def test_topics_of_others_with_groups_and_their_lag(cluster: Client, broker: KafkaBroker, topic_prefix: str) -> None:
    from confluent_kafka import Consumer, Producer, TopicPartition

    topic = f"{topic_prefix}_clicks"
    assert post(cluster, "/ui/topics", topic=topic, partitions="2").status == 303
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for number in range(10):
        producer.produce(topic, f'{{"id": {number}, "who": "<b>"}}'.encode(), partition=number % 2)
    producer.produce(topic, b"{no json", partition=0)
    producer.flush(30)
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": f"{topic}-readers"})
    consumer.commit(offsets=[TopicPartition(topic, 0, 4), TopicPartition(topic, 1, 5)], asynchronous=False)
    consumer.close()
    listed = text_of(cluster.get("/ui/topics").body)
    assert f"{topic}-readers 2" in listed
    page = cluster.get(f"/ui/topics/{topic}").body.decode()
    assert "written by others" in page and "&lt;b&gt;" in page and '<b>"' not in page and "offset 5" in page
    assert cluster.get(f"/ui/topics/{topic}?offset=4").status == 200
    found = cluster.get("/ui/sql/result", q=f'select count(*) as n from "{topic}"').body.decode()
    assert "<td>10</td>" in found
    got = post(cluster, f"/ui/topics/{topic_prefix}_new/produce", token="t", json='{"id": 1}')
    assert "1</strong> row appended" in got.body.decode()
    assert (
        "Nothing new"
        in post(cluster, f"/ui/topics/{topic_prefix}_new/produce", token="t", json='{"id": 1}').body.decode()
    )
    assert post(cluster, f"/ui/topics/{topic}/delete", confirm=topic).status == 303
    assert topic not in Cluster(KafkaLocation.parse(f"kafka://{broker.bootstrap}")).topics()


def test_the_scripts_of_names_are_text(tmp_path: Path) -> None:
    place = tmp_path / "odd.headrace"
    script = "<script>window.hurt=1<script>\"'"
    log = open_log(str(place), writer=True)
    with log.transaction() as transaction:
        transaction.append(script, Batch.of(pa.RecordBatch.from_pydict({script: [script]})).records)
    log.close()
    with dashboard_of(place) as url:
        client = Client(url.removesuffix("/ui"))
        name = "%3Cscript%3Ewindow.hurt%3D1%3Cscript%3E%22%27"
        for part in ("", f"/{name}", f"/{name}/0", f"/{name}/produce", f"/{name}?filter=1%3D1&columns=x"):
            got = client.get(f"/ui/topics{part}")
            assert got.status == 200 and b"<script>window" not in got.body, part
        assert post(client, f"/ui/topics/{name}/produce", token="t", json="{}").body.count(b"<script>window") == 0
        client.close()
