"""Times that Python's datetime cannot hold, through every word of a pipeline: it goes on, also after a restart.

One pipeline on one table, with odd values as features, categories, keys of labels and grades, groups and aggregates of
windows, groups of alarms and drifts, rows to train on, and in every sink and every way of looking that needs no server.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

import headrace as hr
from headrace.cli.main import app as command
from headrace.log import open_log
from headrace.replay.verify import verify
from tests.databases import Database

TABLE = """
create table t (day date primary key, at timestamptz, local timestamp, clock time, x float8, y float8);
alter table t replica identity full;
insert into t values ('0100-01-01 BC', '0100-01-01 00:00+00 BC', '10000-01-01', '24:00', 1, 2);
insert into t values ('10100-01-01', '0100-01-01 00:00+00 BC', '10000-01-01', '24:00', 2, 4);
insert into t values ('10101-01-01', 'infinity', '10000-01-01', '24:00', 2, 4)
"""
ODD = [
    ("2024-02-29", "2024-02-29 12:00+00", "2024-02-29 12:00", "12:00", 1.0),
    ("0044-03-15 BC", "0044-03-15 12:00+00 BC", "4713-01-01 BC", "24:00", 2.0),
    ("4714-11-24 BC", "4714-11-24 00:00+00 BC", "9999-12-31 23:59:59.999999", "00:00", 3.0),
    ("10000-01-01", "9999-12-31 23:59:59-05", "10000-01-01", "23:59:60", None),
    ("5874897-12-31", "294246-12-31 23:59:59+00", "294246-01-01", "12:00", 5.0),
    ("infinity", "2024-01-01 00:00+00", "2024-01-01", "12:00", 6.0),
    ("2024-01-01", "-infinity", "infinity", "12:00", 7.0),
    ("2024-01-02", "0001-01-01 00:00+00", "0001-01-01", "12:00", 8.0),
]
HELD = 11  # with the three that were there


def declare(database: Database, folder: Path) -> hr.App:
    app = hr.App("odd", log=folder / "odd.headrace")
    t = app.postgres(database.dsn, tables=r"public\..*", prefix="s")["public.t"]
    features = ["x", hr.category("day"), hr.category("at"), hr.category("local")]
    model = app.model("m", hr.LinearRegression(), features=features, target="y", initial=t)
    scored = model.predict(t).to("scored")
    graded = scored.grade(t, on="day", within="1 h").to("graded")
    graded.window(2, every=1, by="at").mean("error").to("by_instant").above(-1.0, cooldown=3).to("alarms")
    many = hr.metrics
    seen = {f"{kind}_{name}": getattr(many, kind)(name) for name in ("day", "at", "local") for kind in KINDS}
    t.window(2, every=2, by="day").agg(rows_of=many.count(), **seen).to("by_day")
    t.window(3, every=3).agg(rows_of=many.count(), **seen).to("seen")
    t.window("1 min", by="local").agg(rows_of=many.count(), **seen).to("per_minute")
    t.filter(pc.is_valid(pc.field("x"))).select("day", "at", "local", "clock", "x").to("chosen")
    t.with_columns(two=pc.multiply(pc.field("x"), 2), said=hr.text("{day} {at} {local}")).to("doubled")
    t.filter(pc.is_valid(pc.field("x"))).above(0, column="x", cooldown=2).to("above")
    scored.to_parquet(folder / "lake")
    scored.to_console(format="lines")
    model.retrain(rows=t.all())
    return app


KINDS = ("min", "max", "first", "last", "unique", "count")


def read(app: hr.App, topic: str) -> list[dict[str, Any]]:
    rows = app.topic(topic).read()
    assert repr(rows) and rows._repr_html_()
    assert repr(rows.to_pandas())
    return list(rows.to_pandas().to_dict("records"))


def test_a_pipeline_goes_on_with_every_day_of_postgresql(database: Database, tmp_path: Path) -> None:
    for statement in TABLE.split(";"):
        database.execute(statement)
    log = tmp_path / "odd.headrace"
    app = declare(database, tmp_path)
    with app.start() as running:
        for day, at, local, clock, x in ODD:
            database.execute("insert into t values (%s, %s, %s, %s, %s)", day, at, local, clock, x)
        running.wait()
        database.execute("update t set y = coalesce(x, 0) * 2")
        running.wait()
        running.retrain("m")
        running.wait()
    with contextlib.closing(open_log(str(log), writer=False)) as held:
        assert "s.public.t.dlq" not in held.topics() or not [
            row for row in read(app, "s.public.t.dlq") if row["stage"] == "capture"
        ]
    topics = ["scored", "graded", "by_instant", "alarms", "by_day", "seen", "chosen", "doubled", "above"]
    with declare(database, tmp_path).start() as running:  # the same again
        database.execute("insert into t values ('0001-01-01 BC', '0001-12-31 BC', '10001-01-01', '1:00', 9, 18)")
        running.wait()
        lines = {name: read(app, name) for name in topics}
    days = {str(row["day"]) for row in lines["scored"]}
    assert days >= {"0044-03-15 BC", "4714-11-24 BC", "10000-01-01", "5874897-12-31", "0001-01-01 BC", "infinity"}
    assert len(days) == HELD + 1
    assert {str(row["day"]) for row in lines["graded"]} == days - {"0001-01-01 BC"} | (
        {str(row["day"]) for row in lines["graded"]} & {"0001-01-01 BC"}
    )
    assert "0044-03-15 12:00:00+00 BC" in {str(row["first_at"]) for row in lines["by_day"]}
    assert "4713-01-01 00:00:00 BC" in {str(item) for row in lines["seen"] for item in row["unique_local"]}
    with contextlib.closing(open_log(str(log), writer=False)) as held:
        report = verify(app.plan(), held)
        assert report.result == "equal", report
    for arguments in LOOKED_AT:
        found = CliRunner().invoke(command, [*arguments, "--log", str(log)])
        assert found.exit_code == 0, (arguments, found.output, found.exception)
        assert "0044-03-15 BC" in found.output or "-0043" in found.output or arguments[0] == "sql", arguments


LOOKED_AT = [
    ("topics", "cat", "--all"),
    ("topics", "cat", "scored", "--json"),
    ("sql", 'select * from "s.public.t"', "--json"),
    ("sql", 'select * from "s.public.t"', "--csv"),
    ("sql", 'select min("at"), max(day), [day], {\'a\': "at"} from scored group by day, "at"'),
    ("sql", "select 'infinity'::date, '-infinity'::timestamptz, time '24:00:00'"),
]


@pytest.mark.parametrize("identity", ["default", "full"])
def test_labels_come_later_to_rows_with_odd_keys(database: Database, tmp_path: Path, identity: str) -> None:
    database.execute("create table t (day date, at timestamptz, x float8, y float8, primary key (day, at))")
    database.execute(f"alter table t replica identity {identity}")
    app = hr.App("late", log=tmp_path / "late.headrace")
    t = app.postgres(database.dsn, tables=r"public\..*", prefix="s")["public.t"]
    model = app.model("m", hr.LinearRegression(), features=["x"], target="y")
    model.learn(t)
    model.predict(t).to("scored")
    with app.start() as running:
        for day in ("0044-03-15 BC", "10000-01-01", "2024-01-01", "5874897-12-31"):
            database.execute("insert into t values (%s, '9999-12-31 23:59:59-05', 1, null)", day)
        running.wait()
        database.execute("update t set y = 2")
        running.wait()
        assert running["m"].learned == 4
