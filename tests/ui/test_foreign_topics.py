"""Topics of a cluster that others write: rows from anywhere, filters, files, the tail, and as they were."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer

from headrace.testing import KafkaBroker
from tests.serve.client import Client

from .conftest import cluster_dashboard

COUNT = 600
BEGAN_MS = 1_760_000_000_000  # 2025-10-09T08:53:20Z; a message a second
PAGE = {"Accept": "text/html"}


def send(broker: KafkaBroker, topic: str, first: int, end: int) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 1})
    for number in range(first, end):
        value = {"id": number, "who": "<script>window.hurt=1</script>", "price": number / 4}
        producer.produce(
            topic, json.dumps(value).encode(), f"k{number}".encode(), number % 3,
            timestamp=BEGAN_MS + 1000 * number, headers={"trace": b"\xff<b>"},
        )  # fmt: skip
        producer.poll(0)
    assert producer.flush(30) == 0


@pytest.fixture(scope="module")
def others(broker: KafkaBroker) -> str:
    """A topic of three partitions; in one of them lies what is no JSON. Tests do not change it."""
    topic = "others.clicks"
    broker.create_topic(topic, 3, config={"retention.ms": "-1"})  # what began in 2025 would go within minutes
    send(broker, topic, 0, COUNT)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "transactional.id": topic})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, b"{no json", partition=1, timestamp=BEGAN_MS + 1000 * COUNT)
    producer.commit_transaction(30)  # and the end of a transaction, which takes an offset
    return topic


@pytest.fixture(scope="module")
def cluster(broker: KafkaBroker) -> Iterator[Client]:
    with cluster_dashboard(f"kafka://{broker.bootstrap}") as url:
        made = Client(url.removesuffix("/ui"))
        yield made
        made.close()


def places(body: str) -> list[str]:
    return re.findall(r'<th scope="row" class="n"><a href="[^"]+">(\d+:\d+)</a>', body)


def next_of(body: str) -> str | None:
    found = re.search(r'<a rel="next" href="([^"]+)"', body)
    return None if found is None else html.unescape(found[1])


@pytest.mark.parametrize("order", ["", "oldest"])
def test_pages_show_each_row_once(cluster: Client, others: str, order: str) -> None:
    seen: list[str] = []
    address: str | None = f"/ui/topics/{others}?order={order}"
    while address:
        got = cluster.get(address, PAGE)
        assert got.status == 200
        body = got.body.decode()
        assert len(places(body)) <= 100 and "<script>window" not in body
        seen += places(body)
        address = next_of(body)
    assert len(seen) == COUNT == len(set(seen))
    numbers = [3 * int(place.partition(":")[2]) + int(place.partition(":")[0]) for place in seen]
    assert numbers == sorted(numbers, reverse=not order)  # in the order of their times
    first = cluster.get(f"/ui/topics/{others}", PAGE).body.decode()
    assert "written by others" in first and "partition 1 offset 200" in first and "Follow" in first


def test_a_page_begins_at_an_offset_or_a_time(cluster: Client, others: str) -> None:
    for offset in ("10", "0:10,1:10,2:10", "2025-10-09T08:53:50Z"):
        body = cluster.get(f"/ui/topics/{others}", PAGE, offset=offset, order="oldest").body.decode()
        assert places(body)[:3] == ["0:10", "1:10", "2:10"], offset
        newest = cluster.get(f"/ui/topics/{others}", PAGE, offset=offset).body.decode()
        assert places(newest)[:2] == ["2:9", "1:9"] and next_of(newest) is None
    for wrong in ("never", "0/1932A28", "0:1,"):
        assert cluster.get(f"/ui/topics/{others}", PAGE, offset=wrong).status == 400
    beyond = cluster.get(f"/ui/topics/{others}", PAGE, offset="999999", order="oldest")
    assert beyond.status == 200 and not places(beyond.body.decode())


def test_it_is_shown_as_it_was(cluster: Client, others: str) -> None:
    for at in ("2025-10-09T08:53:49Z", f"{others}:9"):
        body = cluster.get(f"/ui/topics/{others}", PAGE, at=at).body.decode()
        assert places(body)[:1] == ["2:9"] and len(places(body)) == 30 and "As it was at" in body
        assert "Follow" not in body and "Delete this topic" not in body
        found = cluster.get(f"/ui/topics/{others}/export", at=at, form="jsonl").body.decode().splitlines()
        assert len(found) == 30
        counted = cluster.get("/ui/sql/result", q=f'select count(*) as n, max("offset") from "{others}"', at=at)
        assert "<td>30</td>" in counted.body.decode() and "<td>9</td>" in counted.body.decode()
    assert cluster.get(f"/ui/topics/{others}", PAGE, at="0/1932A28").status == 400
    assert cluster.get(f"/ui/topics/{others}", PAGE, at=f"{others}:99999").status == 404


def events(body: bytes, kind: str) -> list[Any]:
    found = re.findall(rf"event: {kind}\ndata: (.*)\n", body.decode())
    return [json.loads(text) for text in found]


def test_a_filter_finds_all_of_them_a_page_at_a_time(cluster: Client, others: str) -> None:
    asked = {"filter": "id % 2 = 0 and partition < 2 and price >= 0", "columns": "id\nprice"}
    seen: list[list[str]] = []
    offset = ""
    while True:
        got = cluster.get(f"/ui/topics/{others}/search", offset=offset, **asked)
        rows = [row for some in events(got.body, "rows") for row in some]
        assert len(rows) <= 100 and not events(got.body, "wrong")
        seen += rows
        (done,) = events(got.body, "done")
        if done["after"] is None:
            break
        offset = done["after"]
    expected = [number for number in range(COUNT) if number % 2 == 0 and number % 3 < 2]
    assert [int(cells[0]) for _, cells in seen] == expected[::-1]
    wrong = cluster.get(f"/ui/topics/{others}/search", filter="nothing = 1")
    assert "the filter is wrong" in events(wrong.body, "wrong")[0]["message"]
    page = cluster.get(f"/ui/topics/{others}", PAGE, filter="id = 3").body.decode()
    assert "data-search-in" in page


def test_files_hold_all_of_it(cluster: Client, others: str) -> None:
    lines = cluster.get(f"/ui/topics/{others}/export", form="jsonl").body.decode().splitlines()
    assert {json.loads(line)["id"] for line in lines} == set(range(COUNT))
    assert set(json.loads(lines[0])) >= {"id", "who", "price", "partition", "offset"}
    table = pq.read_table(io.BytesIO(cluster.get(f"/ui/topics/{others}/export", form="parquet").body))
    assert table.num_rows == COUNT and {"partition", "offset", "price"} <= set(table.column_names)
    some = cluster.get(f"/ui/topics/{others}/export", form="csv", filter="id < 10").body.decode()
    assert sorted(int(row["id"]) for row in csv.DictReader(io.StringIO(some))) == list(range(10))


def test_a_message_in_full(cluster: Client, others: str) -> None:
    body = cluster.get(f"/ui/topics/{others}/1:0", PAGE).body.decode()
    assert "&lt;script&gt;" in body and "k1" in body and "header trace" in body and "<b>" not in body
    bad = cluster.get(f"/ui/topics/{others}/1:200", PAGE).body.decode()
    assert "cannot be decoded" in bad and "{no json" in bad
    for missing in ("1:201", "1:9999", "7:0"):
        assert cluster.get(f"/ui/topics/{others}/{missing}", PAGE).status == 404, missing


def test_the_tail_loses_nothing(cluster: Client, broker: KafkaBroker, topic_prefix: str) -> None:
    topic = f"{topic_prefix}.tail"
    broker.create_topic(topic, 3)
    send(broker, topic, 0, 3)
    body = cluster.get(f"/ui/topics/{topic}", PAGE).body.decode()
    after = re.search(r'data-after="([^"]+)"', body)
    assert after is not None and after[1] == "0:1,1:1,2:1"
    watching = Client(cluster.url)
    watching._connection.request("GET", f"/ui/topics/{topic}/tail?after={after[1]}&columns=id")
    stream = watching._connection.getresponse()
    send(broker, topic, 3, 5000)
    seen: list[int] = []
    last = ""
    while len(seen) < 4997:
        line = stream.readline().decode().strip()
        last = line.removeprefix("id: ") if line.startswith("id: ") else last
        if line.startswith("data: "):
            seen += [int(cells[0]) for _, cells in json.loads(line.removeprefix("data: "))]
    assert sorted(seen) == list(range(3, 5000))
    watching.close()
    # A browser that comes back says the last id.
    send(broker, topic, 5000, 5003)
    again = Client(cluster.url)
    again._connection.request(
        "GET", f"/ui/topics/{topic}/tail?after={after[1]}&columns=id", headers={"Last-Event-ID": last}
    )
    stream = again._connection.getresponse()
    more: list[int] = []
    while len(more) < 3:
        line = stream.readline().decode().strip()
        if line.startswith("data: "):
            more += [int(cells[0]) for _, cells in json.loads(line.removeprefix("data: "))]
    assert sorted(more) == [5000, 5001, 5002]
    again.close()
