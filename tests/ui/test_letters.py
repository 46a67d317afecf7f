"""Dead letters in the dashboard: why and how often, the row and its bytes, and sending one again, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa
import pytest

import headrace as hr
from headrace.batch import Batch, dead_letters
from headrace.log import open_log
from headrace.serve.keys import KeyFile
from tests.serve.client import Client, Got

from .conftest import FORM, Opener, dashboard_of

SCRIPT = "<script>window.hurt=1</script>"


def app(log: Path) -> hr.App:
    made = hr.App("prices", log=log)
    orders = made.topic("orders", append=True)
    made.model("price", hr.LinearRegression(), features=["kg"], target="price").learn(orders).predict(orders).to(
        "promised"
    )
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "letters.headrace"
    with app(place).start() as running:
        running.append("orders", [{"id": 1, "kg": 1.5, "price": 3.0, "raw": b"\xff"}], key="id")
        running.append("orders", [{"id": 2, "kg": None, "price": 3.0, "raw": b"'\x00"}], key="id")
        running.append("orders", [{"id": 3, "kg": float("inf"), "price": 1.0, "raw": None}], key="id")
        running.wait()
    return place


def send(client: Client, offset: int, row: str, topic: str = "orders.dlq") -> Got:
    return client.post(f"/ui/letters/{topic}/{offset}/send", urlencode({"row": row}).encode(), FORM)


def orders(path: Path) -> list[dict[str, Any]]:
    log = open_log(str(path), writer=False)
    found = [row for entry in log.read_topic("orders") for row in entry.records.to_pylist()]
    log.close()
    return found


def letter_rows(path: Path) -> list[str]:
    log = open_log(str(path), writer=False)
    found = [row["row"] for entry in log.read_topic("orders.dlq") for row in entry.records.to_pylist()]
    log.close()
    return found


def test_letters_are_grouped_shown_and_sent_again_once(client: Client, path: Path) -> None:
    page = client.get("/ui/letters").body.decode()
    assert "/ui/letters?topic=orders.dlq" in page and "price" in page
    text = letter_rows(path)[0]
    shown = client.get("/ui/letters/orders.dlq/0").body.decode()
    assert "Send again" in shown and "&#34;id&#34;: 2" in shown
    repaired = text.replace("null", "2.5", 1)
    assert "1</strong> row appended" in send(client, 0, repaired).body.decode()
    for offset in (0, 0, 1):  # the model refused it to learn and to predict: two letters, one row
        assert "Nothing new" in send(client, offset, repaired.replace("2.5", "9.9")).body.decode()
    found = orders(path)
    assert len(found) == 4 and (found[3]["id"], found[3]["kg"], found[3]["raw"]) == (2, 2.5, b"'\x00")
    assert "was sent again" in client.get("/ui/letters/orders.dlq/0").body.decode()
    with app(path).start() as running:
        running.wait()
    assert client.get("/ui/topics/orders/3/predicted").body.decode().count("promised 3") == 1


@pytest.mark.parametrize(
    ("row", "why"), [("", "no JSON"), ("[1]", "no JSON object"), ('{"kg": "x"}', "«kg»"), ('{"__op": 1}', "own")]
)
def test_a_row_that_is_wrong_is_refused(client: Client, path: Path, row: str, why: str) -> None:
    assert why in send(client, 0, row).body.decode() and len(orders(path)) == 3


def test_it_needs_the_scope(path: Path, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys")
    _, reader = keys.create("reader", ["read"])
    with dashboard_of(path, keys=keys) as url:
        client = Client(url.removesuffix("/ui"), **{"X-API-Key": reader})
        assert send(client, 0, '{"kg": 1}').status == 403
        assert "needs a key" in client.get("/ui/letters/orders.dlq/0").body.decode()
        client.close()


def test_letters_of_every_kind_are_text(opener: Opener, tmp_path: Path) -> None:
    place = tmp_path / "odd.headrace"
    log = open_log(str(place), writer=True)
    topic = f"odd {SCRIPT.replace('/', '')}"
    rows = Batch.of({"id": [1, 2, 3]}, op=[ord("c"), ord("d"), ord("u")])
    reasons = [f"{SCRIPT} 1", f"{SCRIPT} 22", "\n\"' " + "x" * 1_000_000]
    letters = dead_letters(rows, reasons, stage=SCRIPT, model=SCRIPT, rows=[SCRIPT, '{"a": NaN}', "y" * 1_000_000])
    raw = pa.array([b"\xff\x00", SCRIPT.encode(), None], pa.binary())
    with log.transaction() as transaction:
        transaction.append(f"{topic}.dlq", letters.with_columns([("value", raw)]).records)
    log.close()
    with dashboard_of(place) as url:
        page = opener()
        page.goto(f"{url}/letters")
        assert page.locator("#letters tbody tr").count() == 2  # numbers make no groups
        with page.expect_navigation():
            page.locator("#letters a", has_text="#").click()
        assert page.locator(".rows tbody tr").count() == 2
        page.locator(".rows tbody a").first.click()
        page.locator("h1", has_text="window.hurt").wait_for()
        assert "there is no row to send again" in page.locator("main").text_content()
        page.go_back()
        page.locator(".rows tbody a").last.click()
        page.locator("pre", has_text="ff 00").wait_for()
        page.goto(f"{url}/letters?at=slice:1")
        assert page.evaluate("window.hurt") is None


def test_no_letters_are_no_worry(fish_dashboard: str) -> None:
    client = Client(fish_dashboard.removesuffix("/ui"))
    assert "No dead letters" in client.get("/ui/letters").body.decode()
    client.close()
