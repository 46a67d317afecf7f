"""The commands on a cluster, after a demo on it; topics of others; and a log that moves from a file to the cluster."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.testing.servers import JavaMissing, KafkaBroker
from tests.databases import Database
from tests.processes import HEADRACE, Child, headrace, run_python

pytestmark = pytest.mark.xdist_group("kafka")

APP = """
import headrace as hr
app = hr.App("shop", log="shop.headrace")
db = app.postgres({dsn!r}, tables=r"public\\.o.*", prefix="shop")
model = app.model("parts", hr.KMeans(k=2, initial_centers=[[0.0], [10.0]]), features=["x"])
model.learn(db["public.orders"])
model.predict(db["public.orders"]).to("answers")
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaBroker]:
    """A broker with one pipeline on it, the Iris demo's, and topics of others."""
    try:
        broker = KafkaBroker()
    except JavaMissing as error:
        pytest.skip(str(error))
    with broker:
        yield broker


@pytest.fixture(scope="module")
def log(cluster: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> str:
    where = f"kafka://{cluster.bootstrap}"
    headrace("demo", "iris", "--log", where, "--json", cwd=tmp_path_factory.mktemp("demo"))
    cluster.create_topic("orders", partitions=2, config={"retention.ms": "-1"})  # its times are old
    produced(cluster, "orders", 0, b'{"id": 1, "price": 2.5}', b"\xff not json", b'{"id": 2, "price": 3.5}')
    produced(cluster, "orders", 1, b'{"id": 3, "price": 4.5}')
    cluster.create_topic("empty")
    return where


def produced(broker: KafkaBroker, topic: str, partition: int, *values: bytes) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for value in values:
        producer.produce(
            topic, value, key=b"k", partition=partition, headers=[("trace", b"7")], timestamp=1_700_000_000_000
        )
    assert producer.flush(30) == 0


def command(*arguments: str, log: str, cwd: Path, code: int = 0) -> str:
    return headrace(*arguments, "--log", log, cwd=cwd, code=code)


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_list_and_show(log: str, tmp_path: Path) -> None:
    listed = {load["topic"]: load for load in json.loads(command("topics", "list", "--json", log=log, cwd=tmp_path))}
    assert list(listed) == sorted(["empty", "orders", *(t for t in listed if "iris" in t)])
    assert {name: (value["rows"], value["pipeline"]) for name, value in listed.items()} == {
        "empty": (0, None),
        "flink.public.iris_test": (33, "iris"),
        "flink.public.iris_train": (277, "iris"),
        "iris_predictions": (33, "iris"),
        "iris_sentences": (33, "iris"),
        "orders": (4, None),
    }
    assert listed["iris_predictions"]["last_offset"] == 32
    named = json.loads(command("topics", "list", "--json", log=f"{log}/iris", cwd=tmp_path))
    assert [row["topic"] for row in named] == [name for name in listed if "iris" in name]
    internal = json.loads(command("topics", "list", "--json", "--internal", log=log, cwd=tmp_path))
    assert "__headrace.iris.changelog" in [row["topic"] for row in internal]

    about = json.loads(command("topics", "show", "orders", "--json", log=log, cwd=tmp_path))
    assert (about["format"], about["partitions"], about["last_ts"][:10]) == ("json", 2, "2023-11-14")
    assert {"column": "price", "type": "double", "from": None, "to": None} in about["columns"]
    about = json.loads(command("topics", "show", "iris_predictions", "--json", log=log, cwd=tmp_path))
    assert (about["format"], about["pipeline"], about["key"]) == ("json", "iris", ["id"])
    command("topics", "show", "empty", log=log, cwd=tmp_path)
    command("topics", "show", "nothing", log=log, cwd=tmp_path, code=1)


def test_cat(log: str, cluster: KafkaBroker, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = rows(command("topics", "cat", "iris_predictions", "--from", "30", log=log, cwd=tmp_path))
    assert [row["id"] for row in found] == [31, 32, 33]
    first = rows(command("topics", "cat", "iris_predictions", "--json", "--limit", "1", log=log, cwd=tmp_path))[0]
    assert (first["topic"], first["partition"], first["offset"], first["key"]) == ("iris_predictions", 0, 0, {"id": 1})
    assert first["payload"]["status"] == "ok"
    assert "__position" in first["headers"]
    assert len(rows(command("topics", "cat", "iris_predictions", "--json", log=log, cwd=tmp_path))) == 33

    assert [row["id"] for row in rows(command("topics", "cat", "orders", log=log, cwd=tmp_path))] == [1, 2, 3]
    found = rows(command("topics", "cat", "orders", "--json", log=log, cwd=tmp_path))
    assert [(row["partition"], row["offset"]) for row in found] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert (found[0]["ts"], found[0]["headers"], found[0]["key"]) == (1_700_000_000_000, ["trace", "7"], "k")
    assert (found[0]["payload"], found[1]["encoding"]) == ({"id": 1, "price": 2.5}, "base64")
    assert command("topics", "cat", "empty", log=log, cwd=tmp_path) == ""
    everything = rows(command("topics", "cat", "--all", log=log, cwd=tmp_path))
    assert len(everything) == 33 * 3 + 277


def test_a_message_that_cannot_be_decoded_is_said(log: str, tmp_path: Path) -> None:
    done = run_python(
        [HEADRACE, "topics", "cat", "orders", "--log", log], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "orders partition 0 offset 1: " in done.stderr


def test_follow(log: str, cluster: KafkaBroker, tmp_path: Path) -> None:
    cluster.create_topic("followed")
    produced(cluster, "followed", 0, b'{"n": 1}')
    following = [HEADRACE, "topics", "cat", "followed", "--follow", "--limit", "2", "--log", log]
    with Child(following, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["n"] == 1
        produced(cluster, "followed", 0, b'{"n": 2}')
        assert json.loads(process.stdout.readline())["n"] == 2
        assert process.wait(30) == 0


def test_sql(log: str, tmp_path: Path) -> None:
    query = "select count(*) n, sum((prediction = 0)::int) zeros from iris_predictions"
    assert json.loads(command("sql", query, "--json", log=log, cwd=tmp_path))[0]["n"] == 33
    query = 'select "partition", "offset", id from orders order by id'
    assert json.loads(command("sql", query, "--json", log=log, cwd=tmp_path)) == [
        {"partition": 0, "offset": 0, "id": 1},
        {"partition": 0, "offset": 2, "id": 2},
        {"partition": 1, "offset": 0, "id": 3},
    ]
    command("sql", "select * from nothing", log=log, cwd=tmp_path, code=1)


def test_models(log: str, tmp_path: Path) -> None:
    (model,) = json.loads(command("models", "list", "--json", log=log, cwd=tmp_path))
    assert (model["model"], model["rows"], model["predicted"], model["pending"]) == ("species", 256, 33, 21)
    assert json.loads(command("models", "show", "species", "--json", log=f"{log}/iris", cwd=tmp_path))["rows"] == 256
    command("models", "list", log=f"{log}/other", cwd=tmp_path, code=1)


def test_a_laptops_log_goes_on_in_the_cluster(cluster: KafkaBroker, database: Database, tmp_path: Path) -> None:
    """Rows committed before, between and after the move are answered once; the model is the one of all of them."""
    database.execute("create table orders (id serial primary key, x float)")
    (tmp_path / "shop.py").write_text(APP.format(dsn=database.dsn))
    run = ("run", "shop.py", "--until-caught-up", "--json")

    def insert(rows: int) -> None:
        database.execute(f"insert into orders (x) select (i % 12)::float from generate_series(1, {rows}) i")

    insert(40)
    headrace(*run, cwd=tmp_path)
    insert(30)
    headrace(*run, cwd=tmp_path)
    before = json.loads(headrace("models", "list", "--json", cwd=tmp_path))
    insert(20)
    copied = headrace(
        "topics", "copy", "--from", "shop.headrace", "--to", f"kafka://{cluster.bootstrap}", "--json", cwd=tmp_path
    )
    log = json.loads(copied)["to"]
    assert log == f"kafka://{cluster.bootstrap}/shop"
    assert json.loads(command("models", "list", "--json", log=log, cwd=tmp_path)) == before
    assert json.loads(command("verify", "shop.py", "--json", log=log, cwd=tmp_path))["result"] == "equal"
    insert(10)
    result = json.loads(headrace(*run, "--log", log, cwd=tmp_path))
    assert result["models"][0]["rows"] == result["models"][0]["predicted"] == 100
    answers = rows(command("topics", "cat", "answers", log=log, cwd=tmp_path))
    assert [answer["id"] for answer in answers] == list(range(1, 101))
    assert json.loads(command("verify", "shop.py", "--json", log=log, cwd=tmp_path))["result"] == "equal"

    headrace("topics", "copy", "--from", log, "--to", "back.headrace", "--json", cwd=tmp_path)
    assert json.loads(command("verify", "shop.py", "--json", log="back.headrace", cwd=tmp_path))["result"] == "equal"
    insert(5)
    result = json.loads(headrace(*run, "--log", "back.headrace", cwd=tmp_path))
    assert result["models"][0]["rows"] == result["models"][0]["predicted"] == 105

    # Two pipelines now: whoever needs one of them must say which.
    where = f"kafka://{cluster.bootstrap}"
    command("models", "list", log=where, cwd=tmp_path, code=2 if _pipelines(where, tmp_path) > 1 else 0)


def _pipelines(log: str, cwd: Path) -> int:
    listed = json.loads(command("topics", "list", "--json", "--internal", log=log, cwd=cwd))
    return sum(row["topic"].endswith(".changelog") for row in listed)
