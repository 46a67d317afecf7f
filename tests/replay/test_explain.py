"""`headrace explain` counts the rows that a model had learned: not those that lie between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.log import open_log
from headrace.log.base import Log
from headrace.position import Position
from headrace.replay.explain import explain, range_text
from headrace.replay.rebuild import Place, rebuild

BEFORE = """
INSERT INTO orders SELECT i, i, CASE WHEN i % 3 = 0 THEN NULL ELSE 2 * i END FROM generate_series(1, 12) i;
INSERT INTO orders VALUES (20, NULL, 5), (21, 'NaN', 5), (22, 1, 'Infinity'), (23, 7, NULL), (24, 8, NULL);
UPDATE orders SET y = 6 WHERE id = 3;
UPDATE orders SET y = 7 WHERE id = 3;
UPDATE orders SET y = 1 WHERE id = 1;
UPDATE orders SET x = 5 WHERE id = 2;
DELETE FROM orders WHERE id = 23;
UPDATE orders SET id = 40 WHERE id = 6;
UPDATE orders SET y = 12 WHERE id = 40;
INSERT INTO orders VALUES (50, 9, 1), (51, 9, NULL);
UPDATE orders SET y = 3 WHERE id IN (24, 51);
INSERT INTO orders VALUES (60, 9, 1);
"""


def declare(dsn: str, log: Path) -> hr.App:
    app = hr.App("shop", log=log)
    orders = app.postgres(dsn, tables=r"public\.orders")["public.orders"]
    days = app.model("days", hr.LinearRegression(), features=["x"], target="y", versions=5)
    days.learn(orders, every=3)
    days.predict(orders).to("promised")
    groups = app.model("groups", hr.KMeans(k=2), features=["x"])
    groups.learn(orders)
    groups.predict(orders).to("grouped")
    few = app.model("few", hr.KMeans(k=2), features=["x"])
    few.learn(orders.filter(lambda batch: [True] * batch.num_rows)).predict(orders).to("filtered")
    return app


def explained(held: Log, topic: str) -> list[dict[str, Any]]:
    info = held.topics()[topic]
    return [explain(held, topic, offset) for offset in range(info.first, info.end)]


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_what_is_counted_is_what_the_model_learned(
    dsn: str, query: Callable[..., Any], tmp_path: Path, identity: str
) -> None:
    query("CREATE TABLE orders (id int PRIMARY KEY, x float8, y float8)")
    query(f"ALTER TABLE orders REPLICA IDENTITY {identity}")
    app = declare(dsn, tmp_path / "shop.headrace")
    with app.start() as running:
        for statement in filter(None, BEFORE.strip().split("\n")):
            query(statement)
        running.wait()
        learned = {name: running[name].learned for name in running.models}
    plan = app.plan()
    held = open_log(str(tmp_path / "shop.headrace"), writer=False)
    try:
        compared = 0
        for topic, model in (("promised", "days"), ("grouped", "groups")):
            task = next(task for task in plan.models if task.name == model)
            for about in explained(held, topic):
                if about["model_position"] is None:
                    assert (about["learned"], about["rows"]) == ([], 0)
                    continue
                made = rebuild(plan, task, held, Place(position=Position.parse(about["model_position"])))
                assert about["rows"] == made.version.rows, about
                assert sum(part["count"] for part in about["learned"]) == made.version.rows
                compared += 1
        assert compared > 15
        last = explained(held, "promised")[-1]
        read = sum(part["last"] - part["first"] + 1 for part in last["learned"])
        assert last["rows"] <= learned["days"] and last["rows"] < read - 5
        (text,) = range_text(last["learned"])
        counted = f"({last['rows']} of {read} rows), version 1 to "
        assert text.startswith(f"shop.public.orders: offsets 0 to {read - 1} {counted}")
        filtered = explained(held, "filtered")[-1]
        assert filtered["rows"] is None and filtered["learned"][0]["count"] is None
        (text,) = range_text(filtered["learned"])
        assert text.endswith(" rows), version 1") and "(of " in text
    finally:
        held.close()
