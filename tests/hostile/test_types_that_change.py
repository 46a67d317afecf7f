"""Columns that change their type while their topic lives, in one round and between two: read, looked at, verified.

The same statements run in one transaction, so that the rows of all types come in one event, and one by one.
"""

from __future__ import annotations

import contextlib
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

import headrace as hr
from headrace.cli.main import app as command
from headrace.log import open_log
from headrace.replay.verify import verify
from tests.databases import Database

STATEMENTS = """
insert into t values (1,1,1,1,1),(2,2,2,2,2);
alter table t alter column note type text;
insert into t values (3,3,3,'three',3),(4,4,4,'4',4);
alter table t alter column x type numeric(10,2), alter column id type bigint;
insert into t values (9007199254740993,5,5,'x',5),(6,6.25,6,'y',6);
update t set y=y+1;
alter table t alter column n type float8;
insert into t values (7,7,7,'y',7.5);
alter table t drop column note;
insert into t values (8,8,8,8);
alter table t add column note timestamptz;
insert into t values (9,9,9,9,'9999-12-31 23:59:59-05');
alter table t alter column x type text;
insert into t values (10,'a',1,10,null);
alter table t alter column id type float8;
insert into t values (10.5,'b',1,11,null),(11.5,'b',1,12,'infinity');
alter table t alter column x type float8 using 11;
insert into t values (12,12,12,12,null)
"""


def declare(database: Database, folder: Path) -> hr.App:
    app = hr.App("changing", log=folder / "changing.headrace")
    t = app.postgres(database.dsn, tables=r"public\..*", prefix="s")["public.t"]
    model = app.model("m", hr.LinearRegression(), features=["x", hr.category("note")], target="y")
    model.learn(t)
    graded = model.predict(t).to("scored").grade(t, on="n", within="1 h").to("graded")
    graded.window(2, every=1, by="n").mean("error").to("windowed")
    other = app.model("other", hr.LinearRegression(), features=["n"], target="y")
    other.predict(t).to("others")
    other.retrain(rows=t.all())
    t.window(2, every=1, by="note").agg(n=hr.metrics.count(), seen=hr.metrics.unique("x")).to("spans")
    t.above(0, column="x", cooldown=1).to("above")
    t.to_parquet(folder / "lake")
    return app


@pytest.mark.parametrize("together", [True, False], ids=["in-one-transaction", "one-by-one"])
def test_a_topic_is_read_and_verified_whatever_its_columns_were(
    database: Database, tmp_path: Path, together: bool
) -> None:
    database.execute("create table t (id int primary key, x float8, y float8, note int, n int)")
    database.execute("alter table t replica identity full")
    app = declare(database, tmp_path)
    with app.start() as running:
        for statement in [STATEMENTS] if together else STATEMENTS.split(";"):
            database.execute(statement)
        running.wait()
        running.retrain("other")
        running.wait()
    with declare(database, tmp_path).start() as running:
        running.wait()
    rows = app.topic("s.public.t").read()
    table = rows.to_arrow()
    assert table.num_rows == 12 + 7
    assert repr(rows) and repr(rows.to_pandas())
    assert table.column("id").to_pylist()[4] == "9007199254740993"  # beside 10.5 no float is exact
    assert table.schema.field("n").type == pa.float64()
    assert "9999" not in str(table.column("note")) and "10000-01-01 04:59:59+00" in table.column("note").to_pylist()
    assert {"7", "three"} - set(table.column("note").to_pylist()) == {"7"}
    with contextlib.closing(open_log(str(tmp_path / "changing.headrace"), writer=False)) as held:
        assert verify(app.plan(), held).result == "equal"
    for arguments in (["topics", "cat", "--all"], ["sql", 'select "id", "note" from "s.public.t"'], ["topics", "list"]):
        found = CliRunner().invoke(command, [*arguments, "--log", str(tmp_path / "changing.headrace")])
        assert found.exit_code == 0, (arguments, found.output)
    (batch,) = app.topic("s.public.t").dataset(1000)
    assert batch.column("id").to_pylist()[-1] == "12"
    assert Decimal(batch.column("id").to_pylist()[4]) == 9007199254740993


@pytest.mark.parametrize("at_once", [True, False], ids=["in one event", "one by one"])
def test_one_value_of_another_kind_costs_no_other_row_its_grade_or_its_lesson(tmp_path: Path, at_once: bool) -> None:
    log = tmp_path / "mixed.headrace"
    app = hr.App("mixed", log=log)
    asked, told = app.topic("asked", append=True), app.topic("told", append=True)
    model = app.model("m", hr.LinearRegression(), features=["wait"], target="y")
    graded = model.predict(asked).to("said").grade(told, on="id", within="1 day").to("graded")
    model.learn(graded, every=1)
    values: list[object] = [1.5, "long", 2.5, 3.5, "4.5", 5.5]
    rows = [{"id": number, "wait": value} for number, value in enumerate(values)]
    labels = [{"id": number, "y": 2.0 * number} for number in range(len(values))]
    pieces = [(rows, labels)] if at_once else [([row], [label]) for row, label in zip(rows, labels, strict=True)]
    with app.start() as running:
        for some, truths in pieces:
            running.append("asked", some)
            running.wait(60)
            running.append("told", truths)
            running.wait(60)
        running.append("asked", [{"id": 6, "wait": 6.5}])
        running.append("told", [{"id": 6, "y": 12.0}])
        running.wait(60)
    with contextlib.closing(open_log(log, writer=False)) as held:
        waits = [row for entry in held.read_topic("graded") for row in entry.records.column("wait").to_pylist()]
        assert waits == [1.5, "long", 2.5, 3.5, "4.5", 5.5, 6.5]
        letters = [row for entry in held.read_topic("graded.dlq") for row in entry.records.column("reason").to_pylist()]
        assert letters == ["the feature «wait» is text, not a number"] * 2
        assert verify(app.plan(), held).result == "equal"
