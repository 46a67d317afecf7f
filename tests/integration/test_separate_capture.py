"""``--only capture``: one process captures for the models of another, and what comes out is as of one process alone."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

import headrace as hr
from headrace.cli.main import app as cli
from headrace.errors import DeclarationError, HeadraceError
from headrace.formats.topic_formats import codec_for
from headrace.inspect.models import model_rows
from headrace.log import open_log
from headrace.replay.verify import verify
from headrace.testing.servers import KafkaBroker
from tests.databases import Database
from tests.waiting import wait_until

TRAIN, TEST = "public.s_train", "public.s_test"
FILE = """
import headrace as hr

app = hr.App({name!r}, log={log!r})
db = app.postgres({dsn!r}, tables=r"public\\.s_.*", prefix={prefix!r})
# Every transaction moves the centres: a row that is learned too early or too late changes what follows.
moving = app.model("moving", hr.KMeans(k=3, initial_centers=[[1, 1], [5, 5], [8, 2]], decay=0.3), features=["x", "y"])
moving.learn(db["public.s_train"])
moving.predict(db["public.s_test"]).to({name!r} + "-predictions")
"""


@pytest.fixture
def tables(database: Database) -> Database:
    """Two tables, one to learn and one to predict."""
    for table in (TRAIN, TEST):
        database.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, x float8, y float8)")
    return database


@pytest.fixture
def name() -> Iterator[str]:
    return f"sep{secrets.token_hex(3)}"


def declared(name: str, dsn: str, log: str) -> hr.App:
    """The pipeline of `FILE`."""
    made: dict[str, Any] = {}
    exec(FILE.format(name=name, log=log, dsn=dsn, prefix=name), made)
    app = made["app"]
    assert isinstance(app, hr.App)
    return app


def write(dsn: str, seed: int, transactions: int, first: int = 0) -> int:
    """Transactions of some rows of both tables in a random order; returns the next id."""
    chance = random.Random(seed)
    with psycopg.connect(dsn) as connection:
        for _ in range(transactions):
            for _ in range(chance.randint(1, 4)):
                table = chance.choice((TRAIN, TEST))
                values = (first, chance.uniform(0, 9), chance.uniform(0, 9))
                connection.execute(f"INSERT INTO {table} VALUES (%s, %s, %s)".encode(), values)
                first += 1
            connection.commit()
    return first


def predictions(app: hr.App, *columns: str) -> list[dict[str, Any]]:
    found = app.topic(f"{app.name}-predictions").read().to_arrow().to_pylist()
    return [{column: row[column] for column in columns} for row in found]


def reached(capturing: hr.Running, following: hr.Running, whole: hr.Running) -> None:
    """Wait until a pipeline has come as far as one that captures itself.

    What another process has committed is seen a moment later: a broker marks a transaction after taking its commit.
    """
    capturing.wait(60)
    whole.wait(60)
    wait_until(lambda: following["moving"].counters == whole["moving"].counters)
    following.wait(60)


def test_the_models_of_another_process_see_the_commit_order(
    tables: Database, broker: KafkaBroker, name: str, tmp_path: Path
) -> None:
    """Rows of a snapshot, then live ones, with either process stopped in between; equal to one process on a file."""
    log = f"kafka://{broker.bootstrap}"
    after = write(tables.dsn, seed=0, transactions=20)
    capture, pipeline = (declared(name, tables.dsn, f"{log}?partitions=3") for _ in range(2))
    alone = declared(name, tables.dsn, str(tmp_path / "alone.headrace"))
    with alone.start() as whole:
        with capture.start(only="capture") as capturing:
            with pipeline.start() as running:  # before the first row of some table has come
                reached(capturing, running, whole)
                after = write(tables.dsn, seed=1, transactions=40, first=after)
                reached(capturing, running, whole)
            after = write(tables.dsn, seed=2, transactions=30, first=after)
            capturing.wait(60)
        write(tables.dsn, seed=3, transactions=30, first=after)
        with pipeline.start() as running, capture.start(only="capture") as capturing:
            reached(capturing, running, whole)
    columns = ("id", "prediction", "status", "model_version")
    assert predictions(pipeline, *columns) == predictions(alone, *columns)
    assert len(predictions(pipeline, "id")) > 80
    hashes = []
    for app in (pipeline, alone):
        held = open_log(app.log, writer=False, name=name, codec=codec_for())
        try:
            assert verify(app.plan(), held).result == "equal"
            hashes += [model["hash"] for model in model_rows(held)]
        finally:
            held.close()
    assert len(hashes) == 2 and hashes[0] == hashes[1]


def test_the_two_are_fenced_apart(tables: Database, broker: KafkaBroker, name: str) -> None:
    """A second capture takes over from the first one, and the pipeline goes on; it leaves the database alone."""
    apps = [declared(name, tables.dsn, f"kafka://{broker.bootstrap}") for _ in range(3)]
    write(tables.dsn, seed=0, transactions=3)
    first = apps[0].start(only="capture")
    with apps[1].start() as running:

        def predicted_all() -> bool:
            rows = tables.execute(f"select count(*) from {TEST}")[0][0]
            return running["moving"].counters.get("predicted", 0) == rows

        wait_until(predicted_all)
        slots = tables.execute("select slot_name from pg_replication_slots where database = current_database()")
        assert len(slots) == 1 and "capture" in slots[0][0], slots
        with apps[2].start(only="capture"):
            write(tables.dsn, seed=1, transactions=20, first=100)
            wait_until(predicted_all)
            with pytest.raises(HeadraceError, match="another"):
                first.join(30)
            with pytest.raises(HeadraceError):
                first.stop()


def test_tables_that_one_process_has_captured_itself_are_not_captured_beside_it(
    tables: Database, broker: KafkaBroker, name: str
) -> None:
    app = declared(name, tables.dsn, f"kafka://{broker.bootstrap}")
    write(tables.dsn, seed=0, transactions=3)
    with app.start() as running:
        running.wait(60)
    with pytest.raises(DeclarationError, match=f"«{name}» has captured «{name}» itself"):
        app.start(only="capture")


def test_the_command(tables: Database, broker: KafkaBroker, name: str, tmp_path: Path) -> None:
    file = tmp_path / "moving.py"
    file.write_text(FILE.format(name=name, log=f"kafka://{broker.bootstrap}", dsn=tables.dsn, prefix=name))
    write(tables.dsn, seed=0, transactions=10)
    rows = tables.execute(f"select count(*) from {TEST}")[0][0]
    for options in (["--only", "capture"], []):
        done = CliRunner().invoke(cli, ["run", str(file), "--until-caught-up", "--json", *options])
        assert done.exit_code == 0, done.output
    assert len(predictions(declared(name, tables.dsn, f"kafka://{broker.bootstrap}"), "id")) == rows


def test_what_cannot_be_captured_apart(tmp_path: Path) -> None:
    app = hr.App("shop", log=tmp_path / "shop.headrace")
    app.topic("t").to("u")
    with pytest.raises(DeclarationError, match="captures no database"):
        app.start(only="capture")
    app.postgres("postgresql://localhost/shop", tables=r"public\.t")
    with pytest.raises(DeclarationError, match="needs a log on Kafka") as refused:
        app.run(only="capture")
    assert "--log kafka://host:9092" in refused.value.advice
    app.log = "kafka://127.0.0.1:1"
    with pytest.raises(DeclarationError, match="runs in this process"):
        app.start(only="capture", engine="spark")
    assert not list(tmp_path.iterdir())
