"""SQL in the dashboard: an editor, results as tables and pictures, files; and what a query may not do."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from headrace.batch import Batch
from headrace.log import open_log
from tests.serve.client import Client
from tests.waiting import wait_until

from .conftest import Opener, dashboard_of

FOR_EVER = "select count(*) from range(100000000000000) where hash(range) = 1"


@pytest.fixture(scope="module")
def client(fish_dashboard: str) -> Iterator[Client]:
    made = Client(fish_dashboard.removesuffix("/ui"))
    yield made
    made.close()


def ask(client: Client, query: str, part: str = "result", **more: str) -> tuple[int, str]:
    got = client.get(f"/ui/sql/{part}", q=query, **more)
    return got.status, got.body.decode()


def test_a_result_is_a_table(client: Client) -> None:
    status, text = ask(client, 'select Species, count(*) as fish from "machine-measurement" group by 1 order by 1')
    assert status == 200 and "<td>salmon</td><td>120</td>" in text and "2 rows" in text


def test_a_query_sees_the_moment(client: Client) -> None:
    assert "<td>10</td>" in ask(client, 'select count(*) from "machine-measurement"', at="machine-measurement:9")[1]


def test_a_mistake_is_shown_with_its_place(client: Client) -> None:
    status, text = ask(client, 'select Lenght from "machine-measurement"')
    assert status == 200 and "Length" in text and "The query failed" in text


@pytest.mark.parametrize(
    "query", ["copy (select 1) to '/tmp/x.csv'", "from read_csv('/etc/passwd')", "set threads = 9"]
)
def test_a_query_only_reads(client: Client, query: str) -> None:
    assert "The query failed" in ask(client, query)[1]


def test_a_result_is_exported(client: Client) -> None:
    query = 'select "offset", Length from "machine-measurement" order by 1 limit 3'
    found = {form: client.get("/ui/sql/export", q=query, form=form) for form in ("csv", "jsonl", "parquet", "xlsx")}
    assert csv.read_csv(io.BytesIO(found["csv"].body)).column("offset").to_pylist() == [0, 1, 2]
    assert [json.loads(line)["offset"] for line in found["jsonl"].body.splitlines()] == [0, 1, 2]
    assert parquet.read_table(io.BytesIO(found["parquet"].body)).column("Length").type == pa.float64()
    assert found["xlsx"].status == 400


def test_a_picture_has_numbers(client: Client) -> None:
    assert "data-chart=" in ask(client, 'select "offset", Length from "machine-measurement"', show="line")[1]
    assert "A picture needs" in ask(client, "select 'a' as x", show="line")[1]


def test_the_editor_completes_runs_and_draws(page: Any, fish_dashboard: str) -> None:
    page.goto(f"{fish_dashboard}/sql")
    page.locator("#q").press_sequentially("select Species, count(*) as n from machine-me")
    page.locator("#words button", has_text="machine-measurement").wait_for()
    page.keyboard.press("Tab")
    page.locator("#q").press_sequentially(" group by 1")
    page.locator("#show").select_option("bars")
    page.locator("#q").press("Control+Enter")
    page.wait_for_url("**/sql?q=*")
    page.locator("#result canvas").wait_for()
    assert page.locator("#result .rows tbody tr").count() == 2
    page.locator("#theme").click()
    page.locator("#result canvas").wait_for()
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_query_is_cancelled(opener: Opener, fish_dashboard: str) -> None:
    opener.expected += ["htmx:afterRequest", "htmx:sendAbort"]
    page = opener()
    page.goto(f"{fish_dashboard}/sql?q={quote(FOR_EVER)}")
    page.locator("#cancel").click()
    page.locator("#result", has_text="Cancelled").wait_for()
    wait_until(lambda: not any(thread.name == "headrace-query" for thread in threading.enumerate()))


def test_values_of_every_kind_are_text(tmp_path: Path) -> None:
    log = tmp_path / "odd.headrace"
    script = "<script>window.hurt=1</script>"
    held = open_log(str(log), writer=True)
    rows = {
        script: [script, None],
        "big": ["x" * 10_000_000, "\n\"'"],
        "number": [float("nan"), float("inf")],
        "raw": [b"\xff<b>", b""],
        "year": pa.array([-735160, 2**31 - 1], pa.int32()).cast(pa.date32()),
    }
    with held.transaction() as transaction:
        transaction.append(f"odd {script}", Batch.of(pa.RecordBatch.from_pydict(rows)).records)
    held.close()
    with dashboard_of(log) as url:
        client = Client(url.removesuffix("/ui"))
        for place in (f"/ui/sql?q={quote(script)}", "/ui/topics"):
            assert script not in client.get(place).body.decode()
        for show in ("table", "line"):
            text = ask(client, f'from "odd {script}"', show=show)[1]
            assert script not in text and "nan" in text and len(text) < 20_000
        for form in ("csv", "jsonl", "parquet"):
            assert client.get("/ui/sql/export", q=f'from "odd {script}"', form=form).status == 200
        client.close()


def test_queries_that_wait_hold_up_no_page(client: Client, fish_dashboard: str) -> None:
    held = [http.client.HTTPConnection(client.url.removeprefix("http://"), timeout=30) for _ in range(50)]
    for connection in held:
        connection.request("GET", f"/ui/sql/result?q={quote(FOR_EVER)}")
    assert client.get("/ui/topics").status == 200
    for connection in held:
        connection.close()
    wait_until(lambda: not any(thread.name == "headrace-query" for thread in threading.enumerate()))
