"""Models of other libraries in a running pipeline: images from BYTEA, probabilities, labels nobody knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psycopg
import pytest
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import headrace as hr
from headrace.errors import DeclarationError
from headrace.formats.topic_formats import codec_for
from headrace.log import open_log
from headrace.replay.verify import verify
from tests.databases import Database

RNG = np.random.default_rng(3)


def strokes(n: int) -> list[tuple[bytes, int]]:
    """Images of 4 x 4, bright above (0) or below (1)."""
    found = []
    for i in range(n):
        pixels = RNG.integers(0, 60, (4, 4))
        pixels[2 * (i % 2) + RNG.integers(2)] += 150
        found.append((pixels.astype(np.uint8).tobytes(), i % 2))
    return found


def build(dsn: str, log: Path, model: object) -> hr.App:
    app = hr.App("strokes", log=log)
    db = app.postgres(dsn, tables=r"public\.stroke.*", prefix="s")
    image = hr.image("pixels", shape=(4, 4), scale=1 / 255)
    learned = app.model("strokes", model, features=[image], target="label", classes=[0, 1])
    learned.learn(db["public.strokes"], every=16)
    learned.predict(db["public.strokes_asked"], proba=True).to("answered")
    return app


MODELS = {
    "a network": lambda: MLPClassifier((16,), learning_rate_init=0.02),
    "a pipeline": lambda: make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss")),
}


@pytest.mark.parametrize("name", MODELS)
def test_images_are_learned_and_answered_and_the_replay_is_equal(name: str, database: Database, tmp_path: Path) -> None:
    log = tmp_path / "strokes.headrace"
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        for table in ("strokes", "strokes_asked"):
            connection.execute(f"create table {table} (id serial primary key, pixels bytea, label smallint)")

        def insert(table: str, rows: list[tuple[bytes, int]]) -> None:
            with connection.cursor() as cursor:
                cursor.executemany(f"insert into {table} (pixels, label) values (%s, %s)", rows)

        insert("strokes", strokes(320))
        insert("strokes", [(b"short", 1), (bytes(16), 7)])
        with build(database.dsn, log, MODELS[name]()).start() as running:
            running.wait(60)
        # It goes on where it was.
        app = build(database.dsn, log, MODELS[name]())
        with app.start() as running:
            insert("strokes", strokes(320))
            asked = strokes(40)
            insert("strokes_asked", asked)
            running.wait(60)
            assert running["strokes"].counters["learned"] == 640
    answers = app.topic("answered").read().to_arrow().to_pylist()
    assert [row["status"] for row in answers] == ["ok"] * 40
    assert np.mean([row["prediction"] == row["label"] for row in answers]) > 0.9
    for row in answers:
        assert np.argmax(row["probability"]) == row["prediction"] and abs(sum(row["probability"]) - 1) < 1e-6
    letters = app.topic("s.public.strokes.dlq").read().to_arrow().to_pylist()
    assert [row["reason"] for row in letters] == [
        "the image «pixels» has 5 bytes, not 16",
        "the target «label» is 7, none of the classes",
    ]
    held = open_log(log, writer=False, codec=codec_for())
    report = verify(app.plan(), held)
    held.close()
    assert report.result == "equal", report


def test_probabilities_are_refused_where_there_are_none() -> None:
    app = hr.App("x", log="memory://")
    model = app.model("m", SGDClassifier(), features=["a"], target="b", classes=[0, 1])
    with pytest.raises(DeclarationError, match="no probabilities"):
        model.predict(app.topic("t"), proba=True)


@pytest.mark.parametrize("identity", ["default", "full", "nothing"])
def test_a_label_that_comes_later_is_learned_once(identity: str, database: Database, tmp_path: Path) -> None:
    """The first update that fills it; not a later one, not an update of a row that had its label from the start."""
    log = tmp_path / "late.headrace"

    def build() -> hr.App:
        app = hr.App("late", log=log)
        allowed = identity == "nothing"
        db = app.postgres(database.dsn, tables=r"public\.late", prefix="l", allow_failing_updates=allowed)
        rows = db["public.late"]
        app.model("m", SGDRegressor(), features=["x"], target="y").learn(rows)
        return app

    database.execute("create table late (id int primary key, x float8, y float8)")
    database.execute(f"alter table late replica identity {identity}")
    # Without an identity PostgreSQL refuses the updates of a published table.
    with build().start() as running:
        database.execute("insert into late select i, i, case when i <= 4 then i end from generate_series(1, 8) i")
        running.wait(60)
        assert running["m"].counters["learned"] == 4 and running["m"].counters["unlabelled"] == 4
    app = build()
    with app.start() as running:
        if identity == "nothing":
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
                database.execute("update late set y = 2 where id = 5")
            return
        database.execute("update late set y = 5 where id in (1, 5, 6)")
        database.execute("update late set y = 7 where id in (1, 5)")
        database.execute("delete from late where id = 7")
        database.execute("insert into late values (7, 1, 1), (9, 9, null)")
        database.execute("update late set x = 10 where id = 9")
        database.execute("update late set y = 10 where id = 9")
        running.wait(60)
        # Rows 5, 6, 7 and 9. Ignored are twice row 1, once row 5; the deleted row 7, and row 9 before it had a label,
        # had not been learned.
        assert running["m"].counters["learned"] == 8
        assert running["m"].counters["ignored"] == 3
    held = open_log(log, writer=False, codec=codec_for())
    report = verify(app.plan(), held)
    held.close()
    assert report.result == "equal", report


def test_a_pipeline_of_river_knows_features_by_their_names(database: Database, tmp_path: Path) -> None:
    """It drops a column by name, is stored signed, goes on where it was, and is replayed."""
    from river import compose, linear_model, preprocessing

    log = tmp_path / "river.headrace"
    database.execute("create table points (id serial primary key, x float8, noise float8, label text)")

    def build() -> hr.App:
        app = hr.App("river", log=log)
        points = app.postgres(database.dsn, tables=r"public\.points", prefix="p")["public.points"]
        model = compose.Discard("noise") | preprocessing.StandardScaler() | linear_model.LogisticRegression()
        learned = app.model("m", model, features=["x", "noise"], target="label", classes=["low", "high"])
        learned.learn(points, every=10).predict(points, proba=True).to("answered")
        return app

    rows = "select i % 10, i * 1e6, case when i % 10 > 4 then 'high' else 'low' end from generate_series(1, 100) i"
    for _ in range(2):
        app = build()
        with app.start() as running:
            database.execute(f"insert into points (x, noise, label) {rows}")
            running.wait(60)
    answers = app.topic("answered").read().to_arrow().to_pylist()[100:]
    assert len(answers) == 100 and np.mean([row["prediction"] == row["label"] for row in answers]) > 0.9
    assert all(row["probability"][0 if row["prediction"] == "high" else 1] >= 0.5 for row in answers)
    held = open_log(log, writer=False, codec=codec_for())
    report = verify(app.plan(), held)
    held.close()
    assert report.result == "equal", report


def catch(dsn: str, log: Path) -> hr.App:
    app = hr.App("catch", log=log)
    fish = app.postgres(dsn, tables=r"public\.fish", prefix="s")["public.fish"]
    weight = app.model(
        "weight",
        SGDRegressor(learning_rate="constant", eta0=0.05),
        features=[hr.category("species", coding="treatment"), hr.vector("shape"), "length"],
        target="weight",
        versions=50,
    )
    weight.learn(fish, every=10, sample_weight="trust")
    weight.predict(fish).to("weights")
    weight.evaluate(fish)
    return app


def test_words_vectors_of_pgvector_weights_and_scores(database: Database, tmp_path: Path) -> None:
    log = tmp_path / "catch.headrace"
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("create extension if not exists vector")
        connection.execute(
            "create table fish (id serial primary key, species text, shape vector(3), length float8, trust real,"
            " weight float8)"
        )

        def insert(n: int) -> None:
            for i in range(n):
                species = ("Bream", "Pike", "Roach")[i % 3]
                shape = RNG.normal(size=3).round(3)
                length = float(RNG.normal())
                weight = 1.0 + i % 3 + shape[0] + 0.5 * length
                connection.execute(
                    "insert into fish (species, shape, length, trust, weight) values (%s, %s, %s, %s, %s)",
                    [species, str(shape.tolist()), length, 1.0 + i % 2, weight],
                )

        insert(150)
        with catch(database.dsn, log).start() as running:
            running.wait(60)
        app = catch(database.dsn, log)
        with app.start() as running:
            insert(150)
            connection.execute("insert into fish (species, shape, length, weight) values ('Pike', '[1,2,3]', 1, 1)")
            running.wait(60)
            assert running["weight"].version == 7
            told = running["weight"].predict({"species": "Bream", "shape": "[0,0,0]", "length": 0.0})
    lines = app.topic("weight-metrics").read().to_arrow().to_pylist()
    assert lines[-1]["window_mae"] < lines[20]["mae"] and lines[-1]["r2"] > 0.8
    assert abs(told[0] - 1.0) < 0.3
    letters = app.topic("s.public.fish.dlq").read().to_arrow().to_pylist()
    assert [letter["reason"] for letter in letters] == ["the weight «trust» is None"]
    plan = app.plan()
    held = open_log(log, writer=False, name=plan.app, codec=codec_for(plan.formats))
    try:
        assert verify(plan, held).result == "equal"
    finally:
        held.close()
