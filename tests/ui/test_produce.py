"""Rows appended by hand, once for a click: a form, JSON, a file, a drawing; and the prediction beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.batch import Batch
from headrace.kafka.cluster import Cluster
from headrace.kafka.settings import KafkaLocation
from headrace.log import open_log
from headrace.serve.keys import KeyFile
from headrace.testing import KafkaBroker
from tests.serve.client import Client, Got, serving
from tests.waiting import wait_until

from .conftest import FORM, Opener, cluster_dashboard, dashboard_of

COLUMNS = {
    "id": pa.array([1], pa.int32()),
    "name": pa.array(["a"]),
    "price": pa.array(["1.50"]).cast(pa.decimal128(10, 2)),
    "ok": pa.array([True]),
    "at": pa.array([0], pa.timestamp("us", "UTC")),
    "raw": pa.array([b"\x00"]),
    "tags": pa.array([["x"]]),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log that no pipeline runs on."""
    place = tmp_path / "shop.headrace"
    log = open_log(str(place), writer=True)
    with log.transaction() as transaction:
        transaction.append("orders", Batch.of(pa.RecordBatch.from_pydict(COLUMNS), key=("id",)).records)
    log.close()
    return place


def post(client: Client, topic: str, **values: str) -> Got:
    given = {name.replace("column_", "column."): value for name, value in values.items()}
    return client.post(f"/ui/topics/{topic}/produce", urlencode(given).encode(), FORM)


def rows(path: Path, topic: str = "orders") -> list[dict[str, Any]]:
    log = open_log(str(path), writer=False)
    found = [row for entry in log.read_topic(topic) for row in entry.records.to_pylist()]
    log.close()
    return [{name: value for name, value in row.items() if not name.startswith("__")} for row in found]


def test_a_row_of_a_form_is_appended_once(client: Client, path: Path) -> None:
    page = client.get("/ui/topics/orders/produce").body.decode()
    token = re.search(r'id="token" name="token" value="(\w+)"', page)
    assert token is not None and page.count('<label for="column-') == len(COLUMNS)
    given = {
        "column_id": "7", "column_name": "<script>\n'\"", "column_price": "2.25", "column_ok": "true",
        "column_at": "2024-02-29 12:00:00Z", "column_raw": "AP8=", "column_tags": '["a", "b"]',
    }  # fmt: skip
    got = post(client, "orders", token=token[1], **given)
    assert "1</strong> row appended" in got.body.decode()
    again = post(client, "orders", token=token[1], **given)
    assert "Nothing new" in again.body.decode()
    assert len(rows(path)) == 2
    row = rows(path)[1]
    assert (row["id"], row["name"], str(row["price"]), row["raw"]) == (7, "<script>\n'\"", "2.25", b"\x00\xff")
    assert row["tags"] == ["a", "b"] and row["at"].year == 2024


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("id", "9999999999"),
        ("id", "x"),
        ("price", "1.234"),
        ("ok", "perhaps"),
        ("raw", "§"),
        ("tags", "["),
        ("at", "soon"),
    ],
)
def test_a_value_of_another_type_is_refused(client: Client, path: Path, column: str, value: str) -> None:
    got = post(client, "orders", token="t", **{"column_name": "a", f"column_{column}": value})
    assert got.status == 200 and f"«{column}»" in got.body.decode() and len(rows(path)) == 1


def test_json_and_files_are_appended(client: Client, path: Path) -> None:
    got = post(client, "clicks", token="a", json='[{"n": 1},\n {"n": 12345678901234567890}]')
    assert "2</strong> rows appended" in got.body.decode()
    assert post(client, "clicks", token="b", json="[1]").body.decode().count("wrong")
    assert "line 1" in post(client, "clicks", token="c", json='{"n": }').body.decode()
    to = "/ui/topics/clicks/produce/file"
    same = {"Sec-Fetch-Site": "same-origin"}
    for expected in ("3</strong> rows appended", "Nothing new"):
        got = client.post(f"{to}?name=x.csv&token=d", b"n,m\n1,a\n2,b\n3,c\n", same)
        assert expected in got.body.decode()
    assert "does not say" in client.post(f"{to}?name=x.exe&token=e", b"", same).body.decode()
    assert [int(row["n"]) for row in rows(path, "clicks")] == [1, 12345678901234567890, 1, 2, 3]


def test_topics_of_ours_take_no_rows(client: Client) -> None:
    for topic in ("__headrace.x.steps", "orders.dlq"):
        assert "written by Headrace alone" in post(client, topic, token="t", json='{"a": 1}').body.decode()


def test_it_needs_the_scope(path: Path, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys")
    _, reader = keys.create("reader", ["read"])
    _, writer = keys.create("writer", ["read", "produce"])
    with dashboard_of(path, keys=keys) as url:
        client = Client(url.removesuffix("/ui"))
        for key, status in ((reader, 403), (writer, 200)):
            client.headers = {"X-API-Key": key}
            assert client.get("/ui/topics/orders/produce").status == status
            assert post(client, "orders", token="t", json='{"id": 1}').status == status
            assert ("Produce</a>" in client.get("/ui/topics/orders").body.decode()) == (status == 200)
        assert client.post("/ui/topics/orders/produce", b"", {"Sec-Fetch-Site": "cross-site"}).status == 403
        client.close()
    assert len(rows(path)) == 2


def test_a_refusal_is_shown_where_the_outcome_stands(opener: Opener, path: Path, tmp_path: Path) -> None:
    # The stream of the page may connect behind the key's end, too.
    opener.expected += ["/produce", "htmx:", "401: ", "/ui/events"]
    keys = KeyFile(tmp_path / "keys")
    record, key = keys.create("writer", ["read", "produce"])
    with dashboard_of(path, keys=keys) as url:
        page = opener()
        page.goto(f"{url}/topics/orders/produce")
        page.locator("#key").fill(key)
        page.locator("form.stack button").click()
        page.locator("#json").wait_for()
        keys.revoke(record.id)
        client = Client(url.removesuffix("/ui"), **{"X-API-Key": key})
        wait_until(lambda: client.get("/ui/topics").status == 401)
        client.close()
        page.locator("#json").fill('{"id": 9}')
        page.get_by_role("button", name="Append").nth(1).click()
        page.locator("#outcome", has_text="no such key or token").wait_for()
        assert len(rows(path)) == 1


def test_a_file_that_a_pipeline_writes_is_refused(path: Path) -> None:
    log = open_log(str(path), writer=True)
    with dashboard_of(path) as url:
        client = Client(url.removesuffix("/ui"))
        text = post(client, "orders", token="t", json='{"id": 1}').body.decode()
        assert "one writer" in text and "stop the pipeline" in text
        client.close()
    log.close()


def shapes(log: Path | str, name: str = "shapes", before: str = "") -> hr.App:
    """A model that tells a drawing's side: much ink above, or below.

    Args:
        before: the beginning of its topics' names.
    """
    app = hr.App(name, log=log)
    drawn = app.topic(f"{before}drawn", append=True)
    model = app.model("ink", hr.LinearRegression(), features=[hr.image("pixels", shape=(6, 6))], target="ink")
    model.learn(app.topic(f"{before}taught", append=True), every=20)
    model.predict(drawn).to(f"{before}guessed")
    app.topic(f"{before}other", append=True)
    return app


def test_without_a_pipeline_it_says_so(tmp_path: Path) -> None:
    place = tmp_path / "shapes.headrace"
    with shapes(place).start() as running:
        running.append("drawn", [{"pixels": bytes(36)}])
    with dashboard_of(place) as url:
        client = Client(url.removesuffix("/ui"))
        text = post(client, "drawn", token="t", json='{"pixels": null}').body.decode()
        assert "/ui/topics/drawn/1/predicted" in text
        assert "No pipeline runs on this log" in client.get("/ui/topics/drawn/1/predicted").body.decode()
        client.close()
    with shapes(place).start() as running:
        running.wait(timeout=30)
    with dashboard_of(place) as url:
        client = Client(url.removesuffix("/ui"))
        assert "guessed 1" in client.get("/ui/topics/drawn/1/predicted").body.decode()
        client.close()


def draw(page: Any, address: str) -> None:
    """Draw a line, append it, and wait for the prediction beside it."""
    page.goto(address)
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 180, box["y"] + 180, steps=5)
    page.mouse.up()
    page.locator(".fields button.primary").click()
    page.locator("#outcome .answer").wait_for()


@pytest.mark.slow
def test_a_drawing_and_a_row_are_predicted_on_a_cluster(opener: Opener, broker: KafkaBroker, topic_prefix: str) -> None:
    """Beside the pipeline, into a topic of its own; on the cluster's dashboard, into one that it reads."""
    where, before = f"kafka://{broker.bootstrap}", f"{topic_prefix}."
    app = shapes(where, topic_prefix, before)
    line = app.model("line", hr.LinearRegression(), features=["x"], target="y")
    Cluster(KafkaLocation.parse(where)).create(f"{before}points", partitions=3, config={})
    points = app.topic(f"{before}points")
    line.learn(points)
    line.predict(points).to(f"{before}answers")
    with serving(app) as (running, client), cluster_dashboard(where) as cluster:
        blocks = np.random.default_rng(1).integers(0, 255, (40, 36), np.uint8)
        taught = [{"pixels": block.tobytes(), "ink": float(block.sum() / 255)} for block in blocks]
        running.append(f"{before}taught", taught)
        running.append(f"{before}drawn", [{"pixels": bytes(36)}])
        page = opener()
        draw(page, f"{client.url}/ui/topics/{before}drawn/produce")
        assert page.locator("#outcome a", has_text=f"{before}guessed 1").count() == 1
        # The cluster's dashboard, on the topic's own page: JSON first, then the form that its rows make.
        page.goto(f"{cluster}/topics/{before}points/produce")
        page.locator("#json").fill('{"x": 1.0, "y": 2.0}\n{"x": 2.0, "y": 4.0}\n{"x": 3.0, "y": 6.0}')
        page.get_by_role("button", name="Append").first.click()
        page.locator("#outcome .prediction").wait_for()
        page.goto(f"{cluster}/topics/{before}points/produce?pipeline={topic_prefix}")
        page.get_by_label("x", exact=False).first.fill("5")
        page.locator(".fields button.primary").click()
        page.locator("#outcome .answer", has_text="10").wait_for()
        page.locator("#outcome .prediction a").click()
        page.get_by_role("heading", name=f"{before}answers").wait_for()
        # And into the same topic beside the pipeline, which has offsets of its own for it.
        text = post(client, f"{before}points", token="t", json='{"x": 6.0}').body.decode()
        found = client.get(re.search(r'hx-get="([^"]+)"', text)[1].replace("&amp;", "&")).body.decode()  # type: ignore[index]
        assert '<p class="answer">12' in found
        page.goto("about:blank")


def test_a_drawing_is_predicted_beside_it(opener: Opener, tmp_path: Path) -> None:
    with serving(shapes(tmp_path / "shapes.headrace")) as (running, client):
        blocks = np.random.default_rng(1).integers(0, 255, (40, 36), np.uint8)
        running.append("taught", [{"pixels": block.tobytes(), "ink": float(block.sum() / 255)} for block in blocks])
        running.append("drawn", [{"pixels": bytes(36)}])
        page = opener()
        draw(page, f"{client.url}/ui/topics/drawn/produce")
        assert "1 row appended" in page.locator("#outcome").text_content()
        drawn = rows(tmp_path / "shapes.headrace", "drawn")
        assert len(drawn) == 2 and sum(drawn[1]["pixels"]) > 255
        token = page.locator("#token").input_value()
        page.locator(".fields button.primary").click()
        page.wait_for_function("before => document.querySelector('#token').value !== before", arg=token)
        page.locator("#outcome .answer").wait_for()
        assert len(rows(tmp_path / "shapes.headrace", "drawn")) == 3
        assert page.locator("#outcome a", has_text="guessed 2").count() == 1
        # A file, and a topic that the pipeline does not append to.
        page.locator("#file").set_input_files(
            {"name": "d.jsonl", "mimeType": "text/plain", "buffer": b'{"pixels": null}\n'}
        )
        page.locator("#file-form button").click()
        page.locator("#outcome", has_text="drawn 3").wait_for()
        text = post(client, "guessed", token="t", json='{"a": 1}').body.decode()
        assert "is not declared to be appended to" in text
        page.goto("about:blank")
