"""Rows that learners cannot take, through a real database: refused by themselves, running and stopped, and verified."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest
from river import tree
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import headrace as hr
from headrace.errors import DeclarationError
from headrace.learn.kmeans import KMeans
from headrace.learn.linear import LinearRegression
from headrace.log import open_log
from headrace.replay.verify import verify
from tests.databases import Database

TYPES = {
    "born": ("date", "days since 1970"),
    "price": ("money", "store a number"),
    "took": ("interval", "store a number"),
    "age": ("age", 'cast("float64")'),
    "word": ("text", "hr.category"),
    "at": ("timestamptz", "microseconds since 1970"),
    "tags": ("integer[]", "hr.vector"),
    "picture": ("bytea", "hr.image"),
    "key": ("uuid", "hr.category"),
}


def test_what_no_row_could_give_is_refused_at_the_start(database: Database, tmp_path: Path) -> None:
    columns = ", ".join(f"{name} {kind}" for name, (kind, _) in TYPES.items())
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("CREATE DOMAIN age AS integer")
        connection.execute(f"CREATE TABLE facts (id bigint PRIMARY KEY, y numeric(10,2), {columns})")

    def refusal(**more: Any) -> str:
        app = hr.App("refused", log=tmp_path / "refused.headrace")
        db = app.postgres(database.dsn, tables=r"public\.facts", prefix="db")
        given = {"features": ["id"], "target": "y", **more}
        app.model("m", given.pop("learner", LinearRegression()), **given).learn(db["public.facts"])
        with pytest.raises(DeclarationError) as caught:
            app.start()
        return str(caught.value)

    for name, (_, advice) in TYPES.items():
        told = refusal(features=[name])
        assert f"«{name}» is" in told and advice in told, told
    told = refusal(learner=SGDClassifier(), classes=[1, 2], target="word")
    assert "the target" in told and "«word» is text" in told and "1, 2" in told
    assert "«born» is date" in refusal(target="born")
    assert "no array of numbers" in refusal(features=[hr.vector("born")])


MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "line": (LinearRegression(), {"target": "price"}),
    "sgd": (make_pipeline(StandardScaler(), SGDRegressor()), {"target": "price"}),
    "wide": (SGDRegressor(), {"target": "anything"}),
    "odd": (LinearRegression(), {"target": "y"}),
    "bayes": (MultinomialNB(), {"target": "kind", "classes": [0, 1, 2]}),
    "labels": (SGDClassifier(), {"target": "word", "classes": ["a", "b"]}),
    "tree": (tree.HoeffdingTreeRegressor(grace_period=2), {"target": "y"}),
    "means": (KMeans(2), {}),
    "vectors": (LinearRegression(), {"target": "price", "features": [hr.vector("v", size=2)]}),
    "sizes": (LinearRegression(), {"target": "price", "features": [hr.vector("v")]}),
    "kinds": (LinearRegression(), {"target": "price", "features": [hr.category("kind", capacity=4)]}),
}
ORDINARY = [
    (x, x * 2, x * 3, x / 2, int(x) % 3, "ab"[int(x) % 2], f"{{{x},{x * x % 7}}}") for x in (1.0, 2.0, 3.0, 5.0)
]
HOSTILE = [
    (-0.1, 1, 1, 1.0, 1, "a", "{}"),
    (1e200, 1, "NaN", float("nan"), 1, "c", "{{1,2},{3,4}}"),
    (1e308, 1, "Infinity", float("inf"), 7, "a", "[2:3]={5,6}"),
    (-1e308, 1, "1" + "0" * 400, -1e308, 2, "b", "{NULL,1}"),
    (5e-324, "NaN", "0." + "0" * 300 + "1", 1e200, 0, "", "{1,2,3}"),
    (float("nan"), 3, 3, 3.0, 1, "a", "{NaN,1}"),
    (None, None, None, None, None, None, None),
]


def _build(database: Database, log: Path) -> hr.App:
    app = hr.App("hostile", log=log)
    rows = app.postgres(database.dsn, tables=r"public\.rows", prefix="db")["public.rows"]
    for name, (learner, more) in MODELS.items():
        model = app.model(name, learner, **{"features": ["x"], **more})
        model.learn(rows, every=3 if name in ("sgd", "vectors") else "transaction")
        model.predict(rows).to(f"{name}_out")
        if "target" in more:
            model.evaluate(rows)
    return app


def _table(database: Database, name: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(database.dsn, autocommit=True)
    connection.execute(
        f"CREATE TABLE {name} (id bigserial PRIMARY KEY, x float8, price numeric(10,2), anything numeric, y float8, "
        "kind numeric(4,0), word text, v float8[])"
    )
    return connection


def _insert(connection: psycopg.Connection[Any], rows: list[tuple[Any, ...]]) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO rows (x, price, anything, y, kind, word, v) VALUES (%s, %s, %s, %s, %s, %s, %s)", rows
        )


def _counts(app: hr.App) -> dict[str, Any]:
    letters = app.topic("db.public.rows.dlq").read().to_arrow().to_pylist()
    refused = Counter((row["model"], row["stage"]) for row in letters)
    found: dict[str, Any] = {"refused": refused, "reasons": sorted(map(str, {row["reason"] for row in letters}))}
    for name in MODELS:
        answers = app.topic(f"{name}_out").read().to_arrow().to_pylist()
        assert all((row["status"] == "ok") == (row["prediction"] is not None) for row in answers), name
        assert all(row["prediction"] == row["prediction"] for row in answers), name
        found[name] = Counter(row["status"] for row in answers)
    return found


@pytest.mark.filterwarnings("ignore")
def test_hostile_rows_are_refused_by_themselves_running_and_stopped(database: Database, tmp_path: Path) -> None:
    """The same rows one by one while it runs, and all at once while it is stopped: the same are refused."""
    found = []
    for way in ("one by one", "at once"):
        log = tmp_path / f"{way}.headrace"
        with _table(database, "rows") as connection:
            _insert(connection, ORDINARY)
            batches = [*([row] for row in HOSTILE), ORDINARY, HOSTILE + ORDINARY]
            with _build(database, log).start() as running:
                running.wait(120)
                for batch in batches if way == "one by one" else ():
                    _insert(connection, batch)
                    running.wait(120)
            for batch in batches if way == "at once" else ():
                _insert(connection, batch)
            app = _build(database, log)
            with app.start() as running:
                running.wait(120)
                counters = {name: dict(running[name].counters) for name in MODELS}
            found.append((_counts(app), counters))
            assert verify(app.plan(), open_log(str(log), writer=False)).result == "equal"
            connection.execute("DROP TABLE rows")
            connection.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    (one, counters), (other, others) = found
    assert one == other and counters == others
    learned = {name: each["learned"] for name, each in counters.items()}
    assert learned["vectors"] == learned["sizes"] == 4 * 3, learned
    assert min(learned.values()) >= 12, learned
    assert not any("Traceback" in reason for reason in one["reasons"])
    for name in MODELS:
        assert one[name]["ok"] >= 8, (name, one[name])


def test_a_forest_is_trained_anew_stored_and_gone_on_with(database: Database, tmp_path: Path) -> None:
    def build() -> hr.App:
        app = hr.App("forest", log=tmp_path / "forest.headrace")
        rows = app.postgres(database.dsn, tables=r"public\.rows", prefix="db")["public.rows"]
        forest = RandomForestClassifier(n_estimators=5)
        model = app.model("forest", forest, features=["x"], target="kind", classes=[0, 1, 2])
        model.predict(rows).to("out")
        model.retrain(rows=rows.all())
        return app

    with _table(database, "rows") as connection:
        _insert(connection, ORDINARY + HOSTILE)
        with build().start() as running:
            running.wait(120)
            assert running.retrain("forest")["status"] == "trained"
        app = build()
        with app.start() as running:
            _insert(connection, ORDINARY)
            running.wait(120)
        answers = app.topic("out").read().to_arrow().to_pylist()[-4:]
        assert [row["status"] for row in answers] == ["ok"] * 4
        assert verify(app.plan(), open_log(str(tmp_path / "forest.headrace"), writer=False)).result == "equal"
