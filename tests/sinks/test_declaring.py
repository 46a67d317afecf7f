"""What is declared wrongly is refused before anything runs, and no secret is said anywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.errors import DeclarationError, WaitTimeout
from headrace.testing.servers import PostgresServer, free_port

from .events import app_on, events, write

PG = "postgresql://me:hunter2@127.0.0.1/shop"

MISTAKES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a connection string": (lambda s: s.to_table("postgresql://me:hunter2@h:x y/db?a", "t"), "connection string"),
    "no table": (lambda s: s.to_table(PG, ""), "names no table"),
    "three parts": (lambda s: s.to_table(PG, "a.b.c"), "names no table"),
    "a long name": (lambda s: s.to_table(PG, "t" * 64), "cannot be a name in PostgreSQL"),
    "an empty key": (lambda s: s.to_table(PG, "t", key=[]), "names no column"),
    "an empty column": (lambda s: s.to_table(PG, "t", key=[""]), "not a column's name"),
    "a key twice": (lambda s: s.to_table(PG, "t", key=["a", "a"]), "named twice"),
    "an empty sink": (lambda s: s.to_table(PG, "t", name=" "), "cannot name a sink"),
    "another protocol": (lambda s: s.to_mongo("http://h", "a.b"), "does not begin with mongodb://"),
    "a bad URI": (lambda s: s.to_mongo("mongodb://me:hun/ter2@h:port/?x", "a.b"), "URI cannot be read"),
    "no collection": (lambda s: s.to_mongo("mongodb://h", "a"), "names no collection"),
    "a collection twice": (lambda s: s.to_mongo("mongodb://h", "a.b", database="a"), "named twice"),
    "a field": (lambda s: s.to_mongo("mongodb://h", "a.b", key="x.y"), "cannot be a field"),
    "a file": (lambda s: s.to_parquet(__file__), "not a directory"),
    "no rows": (lambda s: s.to_parquet("/tmp/x", rows_per_file=0), "rows_per_file=0"),
    "no time": (lambda s: s.to_parquet("/tmp/x", every="soon"), "is not a duration"),
    "a path": (lambda s: s.to_http("/hook"), "URL cannot be read"),
    "a port": (lambda s: s.to_http("http://h:port/"), "URL cannot be read"),
    "a header": (lambda s: s.to_http("http://h/", headers={"A": "b\r\nC: d"}), "cannot be sent"),
    "a method": (lambda s: s.to_http("http://h/", method="GET"), "method='GET'"),
    "an empty secret": (lambda s: s.to_http("http://h/", secret=""), "secret is empty"),
    "retries": (lambda s: s.to_http("http://h/", retries=-1), "retries=-1"),
    "a time-out": (lambda s: s.to_http("http://h/", timeout=0), "positive times"),
    "a format": (lambda s: s.to_console(format="xml"), "format='xml'"),
    "two of a name": (lambda s: s.to_table(PG, "t").filter(bool).to_table(PG, "t"), "two sinks are named «postgres:t»"),
    "a topic of ours": (lambda s: s.to_http("http://h/", success_topic="__headrace.x"), "Headrace's own"),
    "a topic that is written": (lambda s: s.to_http("http://h/", error_topic="copied"), "which «.*» writes"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str) -> None:
    declare, words = MISTAKES[mistake]
    app = hr.App("shop", log="memory://")
    stream = app.topic("in", append=True)
    stream.select("id").to("copied")
    with pytest.raises(DeclarationError, match=words) as caught:
        declare(stream)
        app.plan().check()
    assert "ter2" not in str(caught.value) and "ter2" not in repr(caught.value.__cause__)


def test_predictions_are_delivered_from_their_topic() -> None:
    app = hr.App("shop", log="memory://")
    stream = app.topic("in", append=True)
    model = app.model("m", hr.KMeans(k=2, seed=1), features=["x"])
    with pytest.raises(DeclarationError):
        model.predict(stream).to_table(PG, "t")


def test_a_topic_that_nobody_writes(tmp_path: Path) -> None:
    write(tmp_path / "log", events("op id\nc 1"))
    app, _ = app_on(tmp_path / "log")
    app.topic("inn").to_table(PG, "t")
    with pytest.raises(DeclarationError, match="did you mean «in»"):
        app.start()


def test_a_key_that_a_captured_table_does_not_have(server: PostgresServer, dsn: str, query: Any) -> None:
    query("create table orders (id int primary key, price int)")
    app = hr.App("shop", log="memory://")
    orders = app.postgres(dsn, tables="public.orders")["public.orders"]
    orders.filter(lambda b: b.column("id")).with_columns(double="price").to_table(dsn, "out", key=["double", "idd"])
    with pytest.raises(DeclarationError, match=r"wants the column «idd».*did you mean «id»"):
        app.start()


def test_no_secret_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    caplog.set_level(logging.DEBUG)
    write(tmp_path / "log", events("op id\nc 1"))
    app, stream = app_on(tmp_path / "log")
    stream.to_table(f"postgresql://me:hunter2@127.0.0.1:{port}/shop", "t")
    stream.to_table(f"host=127.0.0.1 port={port} password=hunter2 user=me", "u")
    stream.to_mongo(f"mongodb://me:hunter2@127.0.0.1:{port}/?authSource=admin", "a.b")
    stream.to_http(f"http://me:hunter2@127.0.0.1:{port}/?token=hunter2", headers={"Authorization": "hunter2"},
                   secret="hunter2")  # fmt: skip
    plan = app.plan()
    said = [str(plan), repr(plan), repr(plan.to_dict())]
    with app.start() as running:
        while not all(sink.waiting for sink in running.sinks.values()):
            running.join(0.02)
        with pytest.raises(WaitTimeout) as caught:
            running.wait(0.1)
        said += [str(caught.value), repr(running.sinks), caplog.text]
    assert all("hunter2" not in text for text in said)
