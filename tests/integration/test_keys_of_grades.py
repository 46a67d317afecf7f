"""A prediction meets its label by the value of its key, whatever the types of both columns are."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.log import open_log
from headrace.replay.verify import verify
from tests.databases import Database

# column: the type of the prediction's, the type of the label's, and values of each that match, row by row.
KEYS: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "whole": ("numeric(10,0)", "bigint", [("1", "1"), ("2", "2"), ("-3", "-3")]),
    "free": ("numeric", "numeric(12,4)", [("1.50", "1.5"), ("2", "2.0000"), ("0.1", "0.1")]),
    "both_free": ("numeric", "numeric", [("1.50", "1.5"), ("1e40", f"1{'0' * 40}"), ("NaN", "NaN")]),
    "float": ("float8", "numeric", [("1", "1.000"), ("0.5", "0.5"), ("-0.0", "0")]),
    "small": ("smallint", "float8", [("1", "1"), ("2", "2"), ("3", "3")]),
    "day": ("date", "timestamp", [(day, day) for day in ("2024-02-29", "20000-02-29", "0044-03-15 BC")]),
    "instant": (
        "timestamptz",
        "timestamptz",
        [
            ("2024-02-29 00:00+05", "2024-02-28 19:00+00"),
            ("0001-01-01 00:00+00 BC", "0001-01-01 05:00+05 BC"),
            ("20000-01-01", "20000-01-01"),
        ],
    ),
    "naive": (
        "timestamp",
        "timestamptz",
        [(at, f"{at}+00") for at in ("2024-02-29 12:00", "9999-12-31 23:59:59", "20000-02-29 12:00")],
    ),
    "clock": ("time", "time", [("12:00", "12:00"), ("24:00", "24:00"), ("00:00:00.5", "00:00:00.5")]),
    "word": ("text", "varchar", [("a", "a"), ("b ", "b "), ("", "")]),
    "padded": ("char(5)", "text", [("a", "a"), ("bcd", "bcd"), ("éé", "éé")]),
    "id": ("uuid", "uuid", [(f"{i:032x}", f"{{{i:032X}}}") for i in (1, 2, 10)]),
    "flag": ("boolean", "boolean", [("true", "t"), ("false", "f"), ("true", "t")]),
    "raw": ("bytea", "bytea", [("\\x00", "\\x00"), ("\\xff01", "\\xff01"), ("", "")]),
    "doc": ("jsonb", "jsonb", [('{"a": 1}', '{"a":1}'), ("[1]", "[1]"), ("1", "1")]),
    "mood": ("mood", "mood", [("sad", "sad"), ("ok", "ok"), ("happy", "happy")]),
    "span": ("interval", "interval", [("1 day", "1 day"), ("1 h", "60 min"), ("1 mon", "1 mon")]),
    "list": ("int[]", "int[]", [("{1,2}", "{1,2}"), ("{}", "{}"), ("{{1},{2}}", "{{1},{2}}")]),
}


class Echo:
    """Answers with its feature."""

    deterministic = True
    ready = True

    def learn(self, X: Any, y: Any = None) -> None:
        """Nothing to learn."""

    def predict(self, X: Any) -> Any:
        return X[:, 0]

    def parameters(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"nothing": 0}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def declare(database: Database, log: Path) -> hr.App:
    app = hr.App("keys", log=log)
    db = app.postgres(database.dsn, tables=r"public\.(p|l)", prefix="db")
    model = app.model("m", Echo(), features=["x"], target="y")
    predicted = model.predict(db["public.p"]).to("predictions")
    for name in KEYS:
        predicted.grade(db["public.l"], on=name, within="1 day").to(f"by-{name}")
    predicted.grade(db["public.l"], on=["day", "free", "raw"], within="1 day").to("by-several")
    predicted.grade(db["public.l"], on={"left": "x", "right": "y"}, within="1 day").to("by-value")
    return app


def insert(database: Database, table: str, rows: list[int]) -> None:
    side, value = ("pl".index(table), "x" if table == "p" else "y")
    names = ", ".join([value, *KEYS])
    for row in rows:
        values = [KEYS[name][2][row][side] for name in KEYS]
        marks = ", ".join(["%s", *(f"%s::{KEYS[name][side]}" for name in KEYS)])
        database.execute(f"insert into {table} ({names}) values ({marks})", row, *values)


def test_keys_of_every_type_match_by_value_over_a_restart(database: Database, tmp_path: Path) -> None:
    database.execute("create type mood as enum ('sad', 'ok', 'happy')")
    for side, table in enumerate("pl"):
        columns = ", ".join(f"{name} {kinds[side]}" for name, kinds in KEYS.items())
        value = "x" if table == "p" else "y"
        database.execute(f"create table {table} (n serial primary key, {value} float8, {columns})")
    log = tmp_path / "keys.headrace"
    app = declare(database, log)
    with app.start() as running:
        insert(database, "p", [0, 1, 2])
        database.execute("insert into p (x) values (7)")
        insert(database, "l", [0])
        running.wait(60)
    app = declare(database, log)
    with app.start() as running:
        insert(database, "l", [1, 2])
        database.execute("insert into l (y) values (7)")
        running.wait(60)
        for name in (*KEYS, "several", "value"):
            grades = app.topic(f"by-{name}").read().to_arrow()
            met = list(zip(*(grades.column(item).to_pylist() for item in ("status", "error")), strict=True))
            good = [item for item in met if item[0] in ("graded", "corrected")]
            # Of two equal truth values the labels meet both predictions.
            assert len(good) == (3 if name not in ("flag", "value") else len(good)) and len(good) >= 3, (name, met)
            assert name == "flag" or {batch[1] for batch in good} == {0.0}, (name, met)
        assert not [topic for topic in running.log.topics() if topic.endswith(".dlq")]
    with contextlib.closing(open_log(str(log), writer=False)) as held:
        assert verify(app.plan(), held).result == "equal"


@pytest.mark.parametrize(("mine", "theirs"), [("whole", "word"), ("id", "raw"), ("day", "clock"), ("flag", "small")])
def test_keys_of_captured_tables_that_never_match_are_refused_at_the_start(
    database: Database, mine: str, theirs: str
) -> None:
    database.execute(f"create table p (n serial primary key, k {KEYS[mine][0]}, x float8)")
    database.execute(f"create table l (n serial primary key, k {KEYS[theirs][1].replace('time', 'bigint')}, y float8)")
    app = hr.App("keys", log="memory://")
    db = app.postgres(database.dsn, tables=r"public\.(p|l)", prefix="db")
    model = app.model("m", Echo(), features=["x"], target="y")
    model.predict(db["public.p"]).to("s").grade(db["public.l"], on="k", within="1 day").to("g")
    with pytest.raises(hr.errors.DeclarationError, match="no label would ever be found"):
        app.start()
    other = hr.App("keys", log="memory://")
    db = other.postgres(database.dsn, tables=r"public\.(p|l)", prefix="db")
    model = other.model("m", Echo(), features=["x"], target="y")
    model.predict(db["public.p"]).to("s").grade(db["public.l"], on="kk", within="1 day").to("g")
    with pytest.raises(hr.errors.DeclarationError, match="«kk»"):
        other.start()


def test_keys_of_topics_that_never_match_go_to_the_dead_letters() -> None:
    app = hr.App("keys", log="memory://")
    model = app.model("m", Echo(), features=["x"], target="y")
    labels = app.topic("labels", append=True)
    model.predict(app.topic("rows", append=True)).to("s").grade(labels, on="k", within="1 day").to("g")
    with app.start() as running:
        running.append("rows", [{"k": 1, "x": 1.0}])
        running.wait(60)
        running.append("labels", [{"k": "1", "y": 1.0}, {"k": "2", "y": 1.0}])
        running.wait(60)
        running.append("rows", [{"k": "3", "x": 1.0}])
        running.wait(60)
        # The other side has shown text now.
        running.append("labels", [{"k": "3", "y": 1.0}, {"k": None, "y": 1.0}])
        running.wait(60)
        letters = app.topic("labels.dlq").read().to_arrow().to_pylist()
        assert [json.loads(letter["row"])["k"] for letter in letters] == ["1", "2"]
        assert {letter["reason"] for letter in letters} == {
            "the key «k» is text here, and a number in rows: no two would match"
        }
        grades = app.topic("g").read().to_arrow().to_pylist()
        assert [(grade["x"], grade["status"]) for grade in grades] == [(1.0, "graded"), (None, "orphan")]
        assert grades[1]["reason"] == "the key is NULL"
