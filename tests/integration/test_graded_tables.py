"""The fish factory on tables: an initial model of one, labels filled in later, a table to train on."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.log import open_log
from headrace.replay.verify import verify
from tests.databases import Database

TABLES = """
create table training (id int primary key, length numeric(8,3), species text, weight float8);
insert into training values (1, 1, 'salmon', 2), (2, 2, 'salmon', 4), (3, 3, 'salmon', 6);
create table fish (id int primary key, length numeric(8,3), species text, weight float8);
alter table fish replica identity full
"""


def declare(database: Database, log: Path) -> hr.App:
    app = hr.App("tables", log=log)
    db = app.postgres(database.dsn, tables=r"public\..*", prefix="t")
    fish, training = db["public.fish"], db["public.training"]
    features = ["length", hr.category("species")]
    weight = app.model("weight", hr.LinearRegression(), features=features, target="weight", initial=training)
    graded = weight.predict(fish).to("predictions").grade(fish, on="id", within="1 h").to("grades")
    graded.window(3, every=3).mean("error").above(1.0).to("alarms")
    weight.retrain(rows=training.all())
    return app


def read(app: hr.App, topic: str) -> list[dict[str, Any]]:
    return list(app.topic(topic).read().to_arrow().to_pylist())


def test_a_model_of_a_table_is_graded_by_updates_and_trained_anew_on_the_table(
    database: Database, tmp_path: Path
) -> None:
    for statement in TABLES.split(";"):
        database.execute(statement)
    app = declare(database, tmp_path / "t.headrace")
    with app.start() as running:
        database.execute("insert into fish values (1, 4, 'salmon', null), (2, 5, 'walleye', null)")
        running.wait()
        database.execute("update fish set weight = length * 2 where id = 1")
        database.execute("update fish set weight = 100 where id = 2")
        database.execute("update fish set weight = 20 where id = 2")
        running.wait()
        grades = read(app, "grades")
        assert [(row["id"], row["status"], row["error"]) for row in grades] == [
            (1, "graded", pytest.approx(0.0)),
            (2, "graded", pytest.approx(90.0)),
            (2, "corrected", pytest.approx(10.0)),
        ]
        # The table as it is then: one row changed, one gone, two new.
        database.execute("update training set weight = 5 where id = 2")
        database.execute("delete from training where id = 3")
        database.execute("insert into training values (4, 1, 'walleye', 10), (5, 2, 'walleye', 13)")
        running.wait()
        told = running.retrain("weight")
        assert (told["status"], told["version"], told["rows"]) == ("trained", 2, 4)
        (answer,) = running["weight"].predict([{"length": 3.0, "species": "walleye"}])
        assert answer == pytest.approx(16.0)
    with contextlib.closing(open_log(str(tmp_path / "t.headrace"), writer=False)) as held:
        assert verify(app.plan(), held).result == "equal"
    again = declare(database, tmp_path / "t.headrace")
    with again.start() as running:
        assert running["weight"].version == 2
