"""Labels that come later in PostgreSQL: the same statements under three replica identities, through a restart."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import headrace as hr
from headrace.log import open_log
from headrace.replay.verify import verify
from tests.databases import Database
from tests.step.test_late_labels import Recorder

IDENTITIES = {
    "d": "alter table d replica identity default",
    "f": "alter table f replica identity full",
    "i": "create unique index i_k on i (k); alter table i replica identity using index i_k",
}
# The snapshot holds a row with a label and two without.
BEFORE = """
create table T (id int primary key, k text not null, u float8, y float8, note text);
insert into T values (91, 'a', 1, 1), (92, 'b', 2, null), (93, 'c', 3, null)
"""
FIRST = """
insert into T values (1, 'd', 10, null);
update T set id = 2 where id = 1;
update T set y = 1 where id = 2;
insert into T values (1, 'e', 20, 5);
update T set y = 6 where id = 1;
insert into T values (3, 'f', 30, null);
update T set y = 1 where id = 3;
update T set y = null where id = 3;
update T set y = 2 where id = 3;
insert into T values (4, 'g', 40, null), (5, 'h', 50, null);
begin; update T set id = -1 where id = 4; update T set id = 4 where id = 5; update T set id = 5 where id = -1; commit
"""
SECOND = """
update T set y = 7 where id = 4;
update T set y = 9 where id = 5;
update T set y = 8, note = 'moved at once', id = 94 where id = 92;
delete from T where id = 93;
insert into T values (93, 'i', 60, null);
update T set k = 'j' where id = 93;
update T set u = 61 where id = 93;
update T set u = 62, y = 3 where id = 93;
update T set note = repeat('x', 9000);
insert into T values (6, 'k', 70, null);
truncate T;
insert into T values (6, 'l', 71, null);
update T set y = 4 where id = 6
"""
LEARNED = [(1, 1), (10, 1), (20, 5), (30, 1), (50, 7), (40, 9), (2, 8), (61, 3), (71, 4)]
ANSWERED = [1, 2, 3, 10, 20, 30, 40, 50, 60, 61, 62, 70, 71]
GRADED = [
    *((1, "graded", 1), (10, "graded", 1), (20, "graded", 5), (20, "corrected", 6), (30, "graded", 1)),
    *((30, "corrected", 2), (50, "graded", 7), (40, "graded", 9), (2, "graded", 8)),
    *((60, "graded", 3), (61, "graded", 3), (62, "graded", 3), (71, "graded", 4)),
]


def declare(database: Database, log: Path) -> hr.App:
    app = hr.App("late", log=log)
    db = app.postgres(database.dsn, tables=r"public\..*", prefix="t")
    for name in IDENTITIES:
        table = db[f"public.{name}"]
        model = app.model(name, Recorder(), features=["u"], target="y")
        model.learn(table)
        graded = model.predict(table).to(f"answers-{name}")
        graded.grade(table, on="id", within="1 h", metric=hr.metrics.absolute_error).to(f"grades-{name}")
        model.evaluate(table, metrics=["mae"])
    large = app.model("large", Recorder(), features=[hr.vector("v", size=3000)], target="y")
    large.learn(db["public.large"])
    large.predict(db["public.large"]).to("answers-large")
    return app


def run(database: Database, statements: str) -> None:
    for name in IDENTITIES:
        for statement in statements.strip().split(";\n"):
            database.execute(statement.replace(" T ", f" {name} ").replace("truncate T", f"truncate {name}"))


def read(app: hr.App, topic: str) -> list[dict[str, Any]]:
    return list(app.topic(topic).read().to_arrow().to_pylist())


def learned(running: Any, model: str) -> list[tuple[float, float]]:
    return list(running[model]._runner.state.learner.rows)


def test_a_late_label_belongs_to_its_row_under_every_replica_identity(database: Database, tmp_path: Path) -> None:
    run(database, BEFORE)
    for statement in ";".join(IDENTITIES.values()).split(";"):
        database.execute(statement)
    database.execute("create table large (id int primary key, v float4[], y float8)")
    log = tmp_path / "late.headrace"
    app = declare(database, log)
    with app.start() as running:
        run(database, FIRST)
        # An array that is stored out of line is not sent with updates that leave it as it is.
        database.execute("insert into large select 1, array_agg(random()), null from generate_series(1, 3000)")
        database.execute("update large set y = 2 where id = 1")
        running.wait()
        assert len(learned(running, "large")) == 1
        assert [row["status"] for row in read(app, "answers-large")] == ["ok"]
    app = declare(database, log)
    with app.start() as running:
        run(database, SECOND)
        running.wait()
        for name in IDENTITIES:
            assert learned(running, name) == LEARNED, name
            assert sorted(row["u"] for row in read(app, f"answers-{name}")) == ANSWERED, name
            grades = [(row["u"], row["status"], row["y"]) for row in read(app, f"grades-{name}")]
            assert sorted(grades) == sorted(GRADED), name
            assert read(app, f"{name}-metrics")[-1]["rows"] == len(LEARNED), name
            assert running[name].counters["rejected"] == 0, name
    with contextlib.closing(open_log(str(log), writer=False)) as held:
        assert verify(app.plan(), held).result == "equal"
