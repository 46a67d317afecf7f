"""A topic's page: any place and order, a filter, chosen columns, images, files, and a tail that loses nothing."""

from __future__ import annotations

import http.client
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

import headrace as hr
from headrace.batch import Batch
from headrace.log import open_log
from headrace.log.base import Log
from headrace.ui.read.images import image_of
from tests.serve.client import Client

from .conftest import PATIENCE_MS, Opener, dashboard_of

ROWS, ENTRIES = 200_000, 10
BURST = 50_000
HOUR_US = 3_600_000_000


def append(log: Log, topic: str, columns: dict[str, Any], **about: Any) -> None:
    with log.transaction() as transaction:
        transaction.append(topic, Batch.of(pa.RecordBatch.from_pydict(columns), **about).records)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with a large topic whose columns change, and one of images."""
    path = tmp_path_factory.mktemp("topics") / "shop.headrace"
    log = open_log(str(path), writer=True)
    per = ROWS // ENTRIES
    for number in range(ENTRIES):
        ids = np.arange(number * per, (number + 1) * per)
        columns: dict[str, Any] = {"id": ids, "price": ids % 100, "name": [f"n{id_ % 7}" for id_ in ids]}
        if number == ENTRIES - 1:
            columns["note"] = ["late"] * per
        append(log, "orders", columns, lsn=number + 1, index=ids, key=("id",), ts_us=number * HOUR_US + 1)
    append(log, "wide", {f"column {number:03}": [number] for number in range(300)})
    append(log, "odd/topic ö?", {"offset": [7], "op": ["mine"], "id": [1]}, op="u")
    log.close()
    return path


@pytest.fixture(scope="module")
def url(place: Path) -> Iterator[str]:
    with dashboard_of(place) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    made = Client(url.removesuffix("/ui"))
    yield made
    made.close()


def offsets(text: str) -> list[int]:
    return [int(found) for found in re.findall(r'<th scope="row" class="n"><a [^>]*>(\d+)</a>', text)]


def page(client: Client, **query: Any) -> list[int]:
    got = client.get("/ui/topics/orders", **query)
    assert got.status == 200, got.body
    return offsets(got.body.decode())


def events(stream: bytes) -> list[tuple[str, Any]]:
    found = []
    for text in stream.decode().split("\n\n"):
        kind, data = re.search(r"^event: (.*)$", text, re.M), re.search(r"^data: (.*)$", text, re.M)
        if kind and data:
            found.append((kind[1], json.loads(data[1])))
    return found


def search(client: Client, condition: str, topic: str = "orders", **query: Any) -> tuple[list[int], dict[str, Any]]:
    """Return the offsets that a filter finds, and how it ended."""
    got = client.get(f"/ui/topics/{topic}/search", filter=condition, columns="id", **query)
    told = events(got.body)
    return [row[0] for kind, rows in told if kind == "rows" for row in rows], told[-1][1]


def test_rows_from_any_offset_in_both_orders(client: Client) -> None:
    assert page(client) == list(range(ROWS - 1, ROWS - 101, -1))
    assert page(client, offset=500) == list(range(500, 400, -1))
    assert page(client, order="oldest") == list(range(100))
    assert page(client, order="oldest", offset=500) == list(range(500, 600))
    assert page(client, order="oldest", offset=10**15) == []
    assert client.get("/ui/topics/orders", offset="soon").status == 400


def test_rows_from_a_time(place: Path, client: Client) -> None:
    log = open_log(str(place), writer=False)
    second = log.read_topic("orders", offset=ROWS // ENTRIES)[0]
    when = np.datetime64(second.ts_us, "us").item().isoformat() + "Z"
    assert page(client, offset=when, order="oldest")[0] == second.offset
    assert page(client, offset=when)[0] == second.offset - 1
    assert page(client, offset="2000-01-01T00:00:00Z", order="oldest")[0] == 0
    assert page(client, offset="2999-01-01T00:00:00Z")[0] == ROWS - 1
    assert page(client, offset="0/2", order="oldest")[0] == 2 * (ROWS // ENTRIES)
    log.close()


def test_a_filter_finds_rows_in_the_order_of_the_page(client: Client) -> None:
    found, ended = search(client, "id % 1000 = 7 -- every thousandth")
    assert found == list(range(ROWS - 1000 + 7, ROWS - 100_000, -1000)) and ended == {"after": found[-1] - 1}
    again, ended = search(client, "id % 1000 = 7", offset=ended["after"])
    assert again == [offset - 100_000 for offset in found]
    assert search(client, "id % 1000 = 7", order="oldest")[0][:2] == [7, 1007]
    assert search(client, "id = 5 or id = 150000", at="orders:199")[0] == [5]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("note = 'late' and id < 180002", [180_001, 180_000]),  # a column that earlier rows have not
        ("position = '0/3:40001'", [40_001]),
        ("key.id = 77 and op = 'c' and headers.op = 'c'", [77]),
        ('"offset" = 9 or "OFFSET" = 8', [9, 8]),
        ("ts >= '1970-01-01 09:00:00' and id = 180000", [180_000]),
        ("name = 'none'", []),
        ("columns(*) is null", []),
    ],
)
def test_a_filter_knows_columns_key_and_headers(client: Client, condition: str, expected: list[int]) -> None:
    found, ended = search(client, condition)
    assert found == expected, ended


def test_a_column_of_the_topic_comes_before_ours(client: Client) -> None:
    name = "odd%2Ftopic%20%C3%B6%3F"
    for part in ("", "/0", "/0/json", "/produce", "/export?form=csv"):
        assert client.get(f"/ui/topics/{name}{part}").status == 200, part
    assert b'href="/ui/topics/odd%2Ftopic%20%C3%B6%3F/0"' in client.get(f"/ui/topics/{name}").body
    assert search(client, "\"offset\" = 7 and op = 'mine' and __op = 'u'", name)[0] == [0]


@pytest.mark.parametrize(
    ("condition", "where"),
    [
        ("prise > 3", "prise"),
        ("price >> > 3", "^"),
        ("price = 1; drop table chunk", ";"),
        ("price", "BOOL"),
        ("exists (from read_csv('/etc/passwd'))", "disabled by configuration"),
        ("repeat(name, 1000000000) = 'x'", "repeat"),
        ("name::int = 3", "n"),
    ],
)
def test_a_wrong_filter_is_told_with_its_place(client: Client, condition: str, where: str) -> None:
    found, ended = search(client, condition)
    if condition != "price":
        assert not found and where in ended["message"], ended


def test_the_result_of_a_filter_is_exported(client: Client) -> None:
    where = {"filter": "id in (3, 190000)", "at": ""}
    found = {form: client.get("/ui/topics/orders/export", form=form, **where) for form in ("csv", "jsonl", "parquet")}
    assert [row["id"] for row in csv.read_csv(io.BytesIO(found["csv"].body)).to_pylist()] == [3, 190_000]
    assert [json.loads(line).get("note") for line in found["jsonl"].body.splitlines()] == [None, "late"]
    table = parquet.read_table(io.BytesIO(found["parquet"].body))
    assert table.column("note").to_pylist() == [None, "late"] and table.column("offset").to_pylist() == [3, 190_000]
    assert client.get("/ui/topics/orders/export", form="csv", filter="nothing > 1").status == 404


def test_a_whole_topic_is_exported_as_it_was(client: Client) -> None:
    found = client.get("/ui/topics/orders/export", form="parquet", at="orders:20000")
    assert parquet.read_table(io.BytesIO(found.body)).num_rows == 2 * ROWS // ENTRIES


def test_300_columns_stay_usable(client: Client) -> None:
    text = client.get("/ui/topics/wide").body.decode()
    assert "Columns (33 of 303)" in text and 'value="column 299"' in text
    text = client.get("/ui/topics/wide", columns="column 299\nop").body.decode()
    assert text.count('<th scope="col"') == 3 and "<td>299</td><td>c</td>" in text


def test_images_are_drawn(tmp_path: Path) -> None:
    assert image_of(b"\x89PNG\r\n\x1a\n...", None) == (b"\x89PNG\r\n\x1a\n...", "image/png")
    assert image_of(b"<svg onload='x'>", (4, 5)) is None and image_of("text", (2, 2)) is None
    app = hr.App("digits", log=tmp_path / "digits.headrace")
    model = app.model("digit", hr.KMeans(2), features=[hr.image("pixels", shape=(4, 5))])
    model.learn(app.topic("drawn", append=True))
    with app.start() as running:
        running.append("drawn", [{"pixels": bytes(range(20)), "other": b"x"}])
    with dashboard_of(tmp_path / "digits.headrace") as url:
        client = Client(url.removesuffix("/ui"))
        got = client.get("/ui/topics/drawn/0/image", column="pixels")
        assert got.status == 200 and got.headers["content-type"] == "image/png" and got.body.startswith(b"\x89PNG")
        assert client.get("/ui/topics/drawn/0/image", column="other").status == 404
        assert "/ui/topics/drawn/0/image?column=pixels" in client.get("/ui/topics/drawn/0").body.decode()
        assert client.get("/ui/topics/drawn/0/json").json["op"] == "c"
        client.close()


def test_a_row_of_10_megabytes_is_shown_short(tmp_path: Path) -> None:
    log = open_log(str(tmp_path / "large.headrace"), writer=True)
    append(log, "large", {"text": ["<script>" + "x" * 10_000_000], "number": [float("nan")], "raw": [b"\xff" * 1000]})
    log.close()
    with dashboard_of(tmp_path / "large.headrace") as url:
        client = Client(url.removesuffix("/ui"))
        for path in ("/ui/topics/large", "/ui/topics/large/0"):
            got = client.get(path)
            assert got.status == 200 and len(got.body) < 250_000 and b"<script>x" not in got.body
        assert len(client.get("/ui/topics/large/0/json").json["text"]) == 10_000_008
        client.close()


def tailed(url: str, topic: str, after: int, until: int, last: int | None = None) -> list[int]:
    """Read a tail until an offset has come; returns all that came."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    connection.request("GET", f"/ui/topics/{topic}/tail?{urlencode({'after': after, 'columns': 'id'})}", None, headers)
    got = connection.getresponse()
    found: list[int] = []
    while not found or found[-1] < until:
        text = got.readline().decode()
        if text.startswith("data: "):
            found += [row[0] for row in json.loads(text.removeprefix("data: "))]
    connection.close()
    return found


def test_a_tail_loses_nothing_in_a_burst(opener: Opener, tmp_path: Path) -> None:
    opener.expected.append("ERR_INCOMPLETE_CHUNKED_ENCODING")
    path = tmp_path / "burst.headrace"
    log = open_log(str(path), writer=True)
    append(log, "burst", {"id": [0]})
    with dashboard_of(path) as url:
        page = opener()
        page.goto(f"{url}/topics/burst")
        page.locator("#tail").click()
        append(log, "burst", {"id": [1]})
        page.locator("#rows tr.new", has_text="1").first.wait_for()
        page.locator("#tail").click()
        for start in range(2, BURST + 2, 5000):
            append(log, "burst", {"id": np.arange(start, start + 5000)})
        page.locator("#tail", has_text=f"({BURST} new)").wait_for(timeout=PATIENCE_MS)
        assert page.locator("#rows tbody tr").count() == 2
        page.locator("#tail").click()
        page.locator("#rows tbody tr", has_text=str(BURST + 1)).first.wait_for()
        assert page.locator("#rows tbody tr").count() == 1000
        assert tailed(url, "burst", 1, BURST + 1) == list(range(1, BURST + 2))
        assert tailed(url, "burst", 1, BURST + 1, last=40_000) == list(range(40_001, BURST + 2))
    log.close()


def test_a_filter_is_shown_as_it_goes_and_cancelled(opener: Opener, url: str) -> None:
    page = opener()
    page.goto(f"{url}/topics/orders")
    page.locator("#filter").fill("id % 1000 = 7")
    page.locator("#filter").press("Enter")
    page.locator("#search[data-ended]").wait_for()
    assert page.locator("#rows tbody tr").count() == 100
    page.locator("#pager a", has_text="look on").click()
    page.locator("#rows tbody tr:first-child a", has_text="99007").wait_for()
    page.locator("#filter").fill("(select count(*) from range(100000000000000) where hash(range) = id) = 1")
    page.locator("#filter").press("Enter")
    # Not that of the page before, which may still stand there.
    page.locator("#search:not([data-ended]) button").click()
    page.locator("#search", has_text="cancelled").wait_for()
    page.locator("#filter").fill("prise > 1")
    page.locator("#filter").press("Enter")
    page.locator("pre.wrong", has_text="price").wait_for()
