"""`headrace topics create` and `delete`, on a file and on a cluster: what is there afterwards, and what is refused."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.testing.servers import KafkaBroker
from tests.databases import Database
from tests.processes import HEADRACE, headrace, run_python


def listed(log: str, cwd: Path) -> dict[str, Any]:
    found = json.loads(headrace("topics", "list", "--json", "--log", log, cwd=cwd))
    return {row["topic"]: row for row in found}


def test_on_a_file(tmp_path: Path) -> None:
    log = ("--log", "shop.headrace")
    made = json.loads(headrace("topics", "create", "clicks", "--json", *log, cwd=tmp_path))
    assert made == {"topic": "clicks", "log": "shop.headrace"}
    headrace("topics", "create", "clicks", *log, cwd=tmp_path, code=1)
    headrace("topics", "create", "two", "--partitions", "2", *log, cwd=tmp_path, code=2)
    for name in ("__headrace.shop.steps", "clicks.dlq", " clicks"):
        headrace("topics", "create", name, *log, cwd=tmp_path, code=2)
    assert listed("shop.headrace", tmp_path)["clicks"]["rows"] == 0
    assert json.loads(headrace("topics", "show", "clicks", "--json", *log, cwd=tmp_path))["rows"] == 0
    assert headrace("topics", "cat", "clicks", *log, cwd=tmp_path) == ""
    assert list(hr.App("shop", log=tmp_path / "shop.headrace").topic("clicks").dataset()) == []
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    headrace("produce", "clicks", "--file", "rows.jsonl", *log, cwd=tmp_path)
    assert listed("shop.headrace", tmp_path)["clicks"]["rows"] == 2
    gone = json.loads(headrace("topics", "delete", "clicks", "--json", *log, cwd=tmp_path))
    assert gone == {"topic": "clicks", "log": "shop.headrace", "rows": 2}
    assert listed("shop.headrace", tmp_path) == {}
    headrace("topics", "delete", "clicks", *log, cwd=tmp_path, code=1)
    headrace("topics", "delete", "__headrace.shop.steps", "--force", *log, cwd=tmp_path, code=2)
    headrace("topics", "delete", "clicks", "--log", "nothing.headrace", cwd=tmp_path, code=1)
    assert not (tmp_path / "nothing.headrace").exists()


def pipeline(database: Database, name: str, log: str) -> hr.App:
    """A captured table, learned and answered, and a stream of another."""
    app = hr.App(name, log=log)
    db = app.postgres(database.dsn, tables=r"public\.(train|test|idle)", prefix=name)
    model = app.model("m", hr.KMeans(k=2), features=["a"])
    model.learn(db["public.train"], every=2)
    model.predict(db["public.test"]).to(f"{name}.answers")
    return app


def run(database: Database, name: str, log: str) -> None:
    for table in ("train", "test", "idle"):
        database.execute(f"create table {table} (id serial primary key, a float)")
        database.execute(f"insert into {table} (a) select i from generate_series(1, 6) i")
    app = pipeline(database, name, log)
    app.run(until="caught-up")
    app.topic(f"{name}.answers").read()


USED = [("train", "«m», which reads it"), ("test", "«m», which reads it"), ("idle", "which writes it")]


def test_what_a_pipeline_uses_is_refused(database: Database, tmp_path: Path) -> None:
    run(database, "shop", str(tmp_path / "shop.headrace"))
    log = ("--log", "shop.headrace")
    for topic, said in [*((f"shop.public.{one}", said) for one, said in USED), ("shop.answers", "«m», which writes")]:
        command = [HEADRACE, "topics", "delete", topic, *log]
        done = run_python(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 1 and said in " ".join(done.stderr.split())
    headrace("topics", "create", "more", *log, cwd=tmp_path)
    headrace("topics", "delete", "more", *log, cwd=tmp_path)
    headrace("topics", "delete", "shop.public.idle", "--force", *log, cwd=tmp_path)
    assert "shop.public.idle" not in listed("shop.headrace", tmp_path)
    # The pipeline goes on; rows of the table that come later get offsets of their own.
    database.execute("insert into idle (a) values (7)")
    pipeline(database, "shop", str(tmp_path / "shop.headrace")).run(until="caught-up")
    about = listed("shop.headrace", tmp_path)["shop.public.idle"]
    assert (about["rows"], about["first_offset"], about["last_offset"]) == (1, 6, 6)


@pytest.fixture
def alone(broker: KafkaBroker) -> Iterator[KafkaBroker]:
    """A broker without the logs of other tests: whoever deletes a topic looks at every pipeline of the cluster."""
    with KafkaBroker() as own:
        yield own


def test_on_a_cluster(alone: KafkaBroker, database: Database, tmp_path: Path) -> None:
    name = f"shop{secrets.token_hex(4)}"
    log = f"kafka://{alone.bootstrap}"
    topic = f"{name}.clicks"
    made = json.loads(headrace("topics", "create", topic, "--partitions", "3", "--json", "--log", log, cwd=tmp_path))
    assert made == {"topic": topic, "log": log, "partitions": 3}
    headrace("topics", "create", topic, "--log", log, cwd=tmp_path, code=1)
    assert listed(log, tmp_path)[topic]["rows"] == 0
    headrace("topics", "show", topic, "--log", log, cwd=tmp_path)
    assert headrace("topics", "cat", topic, "--log", log, cwd=tmp_path) == ""
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    for _ in range(2):
        headrace("produce", topic, "--file", "rows.jsonl", "--log", log, cwd=tmp_path)
        assert listed(log, tmp_path)[topic]["rows"] == 2
        headrace("topics", "delete", topic, "--log", log, cwd=tmp_path)
        assert topic not in listed(log, tmp_path)
    headrace("topics", "delete", topic, "--log", log, cwd=tmp_path, code=1)
    headrace("topics", "delete", "__consumer_offsets", "--force", "--log", log, cwd=tmp_path, code=2)
    run(database, name, f"{log}/{name}")
    for used in (f"{name}.public.train", f"{name}.public.idle", f"{name}.answers"):
        headrace("topics", "delete", used, "--log", log, cwd=tmp_path, code=1)
    headrace("topics", "delete", f"{name}.public.idle", "--force", "--log", log, cwd=tmp_path)
    assert f"{name}.public.idle" not in listed(log, tmp_path)
    database.execute("insert into idle (a) values (7)")
    pipeline(database, name, f"{log}/{name}").run(until="caught-up")
    about = listed(log, tmp_path)[f"{name}.public.idle"]
    assert (about["rows"], about["first_offset"]) == (1, 6)
