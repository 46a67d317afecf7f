"""`headrace models …` and `headrace explain` as a user calls them, on pipelines that are stopped and that run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headrace as hr
from headrace.errors import HeadraceError
from headrace.learn.state import load_state, state_hash
from headrace.log import open_log
from headrace.testing.servers import KafkaBroker
from tests.processes import HEADRACE, run_python

CENTERS = [[0.0, 0.0], [5.0, 5.0], [9.0, 1.0]]


def rows(seed: int, count: int) -> list[dict[str, Any]]:
    chance = np.random.default_rng(seed)
    found = chance.normal(4, 3, (count, 2))
    return [{"x": x, "y": y, "label": int(x + y > 8)} for x, y in found.tolist()]


def command(*words: str, log: str, code: int = 0) -> Any:
    """A command's JSON; of one that fails, its words."""
    done = run_python(
        [HEADRACE, *words, "--log", log, "--json"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else " ".join(done.stderr.split())


def kmeans(log: str, *, versions: int | None = 20, keep: int = 10) -> hr.App:
    app = hr.App("shop", log=log)
    data = app.topic("rows", append=True)
    learner = hr.KMeans(k=3, initial_centers=CENTERS, decay=0.9)
    model = app.model("m", learner, features=["x", "y"], versions=versions, keep_versions=keep)
    model.learn(data, every=5)
    model.predict(data).to("answers")
    return app


def classifier(log: str) -> hr.App:
    from sklearn.linear_model import SGDClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    app = hr.App("shop", log=log)
    data = app.topic("rows", append=True)
    estimator = make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss"))
    model = app.model("m", estimator, features=["x", "y"], target="label", classes=[0, 1], versions=20)
    model.learn(data, every=5)
    model.predict(data).to("answers")
    model.evaluate(data)
    return app


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "shop.headrace")


def learned(app: hr.App, *seeds: int, count: int = 20) -> str:
    """Run the pipeline on some rows; the model's hash."""
    with app.start() as running:
        for seed in seeds:
            append(running, seed, count)
        running.wait()
        return str(running["m"].hash)


def append(running: Any, seed: int, count: int = 20) -> None:
    """Rows in transactions of four."""
    found = rows(seed, count)
    for i in range(0, count, 4):
        running.append("rows", found[i : i + 4])


def answers(app: hr.App) -> list[dict[str, Any]]:
    return list(app.topic("answers").read().to_arrow().to_pylist())


def test_versions_are_listed_and_shown(log: str) -> None:
    learned(kmeans(log), 1, 2, 3)
    (row,) = command("models", "list", log=log)
    assert (row["version"], row["versions"], row["tags"], row["rows"]) == (4, 4, {}, 60)
    shown = command("models", "show", "m", log=log)
    assert {"declared", "versions", "checkpoints"} <= shown.keys()
    assert [version["version"] for version in shown["versions"]] == [1, 2, 3, 4]
    assert [version["parent"] for version in shown["versions"]] == [None, 1, 2, 3]
    assert [version["rows"] for version in shown["versions"]] == [20, 40, 60, 60]
    assert [version["current"] for version in shown["versions"]] == [False, False, False, True]
    assert shown["versions"][2]["hash"] == shown["versions"][3]["hash"] == row["hash"]
    assert shown["versions"][0]["learned"] == {"rows": 20}
    assert shown["versions"][0]["libraries"]["numpy"] == np.__version__
    run_python([HEADRACE, "models", "show", "m", "--log", log], check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_a_pipeline_that_is_stopped_goes_on_from_the_version_when_it_starts(log: str, tmp_path: Path) -> None:
    app = kmeans(log)
    learned(app, 1, 2)
    done = command("models", "rollback", "m", "1", log=log)
    assert done == {"model": "m", "parent": 1, "position": "0/0:19", "begun": False}
    hashed = learned(app, 3)
    plain = kmeans(str(tmp_path / "plain.headrace"))
    assert hashed == learned(plain, 1, 3)
    shown = command("models", "show", "m", log=log)["versions"]
    assert (shown[3]["parent"], shown[3]["reason"]) == (1, "rollback to version 1")
    assert "@" in shown[3]["by"]
    assert shown[3]["began"]["offsets"] == {"rows": 40}
    assert (shown[3]["rows"], shown[4]["current"]) == (40, True)


def test_a_pipeline_that_runs_is_asked(log: str, tmp_path: Path) -> None:
    app = kmeans(log)
    with app.start() as running:
        for seed in (1, 2):
            append(running, seed)
        running.wait()
        tagged = command("models", "tag", "m", "1", "good", log=log)
        assert tagged == {"model": "m", "version": 1, "tags": ["good"]}
        done = command("models", "rollback", "m", "good", log=log)
        assert (done["version"], done["parent"], done["begun"]) == (4, 1, True)
        assert running["m"].version == 4
        assert "is the current one" in command("models", "rollback", "m", "4", log=log, code=1)
        assert "It has: 1 to 4, good (version 1)" in command("models", "rollback", "m", "9", log=log, code=1)
        assert "has no model" in command("models", "rollback", "other", "1", log=log, code=1)
        append(running, 3)
        running.wait()
        hashed = running["m"].hash
        assert running.rollback("m", 2) == 6
        assert running["m"].version == 6
        with pytest.raises(HeadraceError, match="no version «77»"):
            running.rollback("m", 77)
    assert hashed == learned(kmeans(str(tmp_path / "plain.headrace")), 1, 3)
    assert list(Path(f"{log}.requests").iterdir()) == []
    assert command("models", "list", log=log)[0]["tags"] == {"good": 1}


def test_a_tag_moves_and_goes(log: str) -> None:
    learned(kmeans(log, keep=1), 1, 2, 3)
    assert command("models", "show", "m", log=log)["versions"][0]["kept"] is False
    assert "not kept" in command("models", "rollback", "m", "1", log=log, code=1)
    command("models", "tag", "m", "4", "live", log=log)
    command("models", "tag", "m", "3", "live", log=log)
    assert command("models", "list", log=log)[0]["tags"] == {"live": 3}
    assert "no tag «other»" in command("models", "tag", "m", "3", "other", "--delete", log=log, code=1)
    command("models", "tag", "m", "3", "live", "--delete", log=log)
    assert command("models", "list", log=log)[0]["tags"] == {}
    assert "cannot be a tag" in command("models", "tag", "m", "3", "7", log=log, code=1)


def test_a_tag_on_the_current_version_keeps_its_state_when_it_ends(log: str) -> None:
    app = kmeans(log, keep=1)
    learned(app, 1)
    command("models", "tag", "m", "2", "here", log=log)
    learned(app, 2, 3, 4)
    kept = [version["version"] for version in command("models", "show", "m", log=log)["versions"] if version["kept"]]
    assert kept == [2, 4]
    assert command("models", "list", log=log)[0]["tags"] == {"here": 2}


def test_any_prediction_can_be_rebuilt_and_explained(log: str) -> None:
    app = kmeans(log)
    learned(app, 1, 2)
    command("models", "rollback", "m", "1", log=log)
    learned(app, 3, count=12)
    found = answers(app)
    for offset in (0, 7, 33, 41, 51):
        row = found[offset]
        said = command("explain", "answers", str(offset), log=log)
        assert (said["model"], said["version"], said["model_position"]) == (
            "m",
            row["model_version"],
            row["model_position"],
        )
        assert said["cut"] == "5 rows"
        if row["model_position"] is None:
            assert said["learned"] == []
            continue
        made = command("models", "rebuild", "m", "--at", row["model_position"], log=log)
        assert made["position"] == row["model_position"]
        assert said["hash"] in (None, made["hash"])
        assert sum(version["count"] for version in said["learned"]) == made["rows"]
    said = command("explain", "answers", "51", log=log)
    assert [(version["version"], version["first"], version["last"]) for version in said["learned"]] == [
        (1, 0, 19),
        (4, 40, 44),
    ]
    assert [version["version"] for version in said["lineage"]] == [1, 4]
    assert "no predictions" in command("explain", "rows", "0", log=log, code=1)
    assert "Its offsets: 0 to 51" in command("explain", "answers", "52", log=log, code=1)
    assert "has no topic" in command("explain", "nothing", "0", log=log, code=1)


@pytest.mark.parametrize("live", [False, True], ids=["stopped", "running"])
def test_going_back_to_any_place(log: str, live: bool) -> None:
    app = kmeans(log)
    learned(app, 1, 2)
    made = command("models", "rebuild", "m", "--at", "0/0:14", log=log)
    assert (made["version"], made["rows"], made["learned"]) == (1, 15, {"rows": 15})
    if live:
        with app.start() as running:
            done = command("models", "rollback", "m", "--at", "0/0:14", log=log)
            assert done["begun"]
            assert running["m"].hash == made["hash"]
            append(running, 3, 5)
            running.wait()
    else:
        command("models", "rollback", "m", "--at", "0/0:14", log=log)
        learned(app, 3, count=5)
    shown = command("models", "show", "m", log=log)["versions"]
    assert (shown[3]["parent"], shown[3]["reason"]) == (1, "rollback to version 1 at 0/0:14")
    assert shown[3]["rows"] == 20
    last = command("explain", "answers", "44", log=log)
    assert [(row["first"], row["last"]) for row in last["learned"]] == [(0, 14)]
    held = open_log(log, writer=False)
    state = held.records("artifact", "m/000001@")["m/000001@0/0:14"]
    held.close()
    assert state_hash(load_state(state)) == made["hash"]


def test_what_moved_between_two_versions(log: str) -> None:
    learned(classifier(log), 1, 2, 3)
    found = command("models", "diff", "m", "1", "4", log=log)
    assert (found["a"], found["b"], found["parameters"]) == (1, 4, [])
    assert found["positions"]["rows"] == {"a": 20, "b": 60}
    accuracy = found["metrics"]["rows"]["accuracy"]
    assert accuracy["change"] == accuracy["b"] - accuracy["a"]
    moved = [row for row in found["state"] if row["changed"] and row["norm"]]
    assert moved
    assert all(0 < row["max_abs"] <= row["norm"] for row in moved)
    assert [row for row in command("models", "diff", "m", "2", "2", log=log)["state"] if row["changed"]] == []
    run_python([HEADRACE, "models", "diff", "m", "1", "2", "--log", log], check=True, timeout=60)


def card_code(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "MODEL_CARD.md").read_text(), re.DOTALL)
    return str(code)


def run_card(folder: Path, more: str) -> str:
    """The card's own lines, in a process in which Headrace cannot be imported."""
    program = "import sys; sys.modules['headrace'] = None\n" + card_code(folder) + "\n" + textwrap.dedent(more)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


GRID = [[0.0, 0.0], [5.0, 4.0], [9.0, 1.0], [2.0, 7.5]]
PREDICT = f"""
import numpy as np
X = np.array({GRID})
answer = model.predict(X) if hasattr(model, "predict") else model(X)
print(np.asarray(answer).tolist())
"""


def test_k_means_is_exported(log: str, tmp_path: Path) -> None:
    app = kmeans(log)
    learned(app, 1, 2)
    done = command("models", "export", "m", "1", "--to", str(tmp_path / "m1"), log=log)
    assert {"MODEL_CARD.md", "centers.npz", "model.json", "state.npz"} <= set(done["files"])
    command("models", "export", "m", "--to", str(tmp_path / "m3"), log=log)
    with app.start() as running:
        now = running["m"].predict(GRID).tolist()
    assert json.loads(run_card(tmp_path / "m3", PREDICT)) == now
    assert json.loads((tmp_path / "m1" / "model.json").read_text())["hash"] == done["hash"]
    assert np.load(tmp_path / "m1" / "state.npz", allow_pickle=False)["centers"].shape == (3, 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "not empty" in command("models", "export", "m", "--to", str(tmp_path / "full"), log=log, code=1)


def test_an_estimator_is_exported(log: str, tmp_path: Path) -> None:
    app = classifier(log)
    learned(app, 1, 2, 3)
    folder = tmp_path / "out"
    done = command("models", "export", "m", "--to", str(folder), log=log)
    with app.start() as running:
        now = running["m"].predict([{"x": x, "y": y} for x, y in GRID]).tolist()
    assert json.loads(run_card(folder, PREDICT)) == now
    card = (folder / "MODEL_CARD.md").read_text()
    assert "accuracy" in card
    assert "Confusion (rows are the truth)" in card
    if "model.onnx" in done["files"]:
        onnx = pytest.importorskip("onnxruntime")
        session = onnx.InferenceSession(folder / "model.onnx")
        (name,) = [get_input.name for get_input in session.get_inputs()]
        assert session.run(None, {name: np.array(GRID, np.float32)})[0].tolist() == now
    else:
        assert "skl2onnx is not installed" in card


def test_a_river_model_is_exported_with_a_warning(log: str, tmp_path: Path) -> None:
    from river import linear_model

    app = hr.App("shop", log=log)
    data = app.topic("rows", append=True)
    model = app.model("m", linear_model.LogisticRegression(), features=["x", "y"], target="label", classes=[0, 1])
    model.learn(data, every=5)
    learned(app, 1)
    command("models", "export", "m", "--to", str(tmp_path / "river"), log=log)
    assert "is a pickle" in (tmp_path / "river" / "MODEL_CARD.md").read_text()
    said = run_card(tmp_path / "river", "print(model.predict_one({'x': 9.0, 'y': 9.0}))")
    assert said.strip() in ("True", "False")
    stranger = {**os.environ, "HEADRACE_KEY_FILE": str(tmp_path / "another" / "key")}
    words = [HEADRACE, "models", "export", "m", "--to", str(tmp_path / "x"), "--log", log]
    done = run_python(words, env=stranger, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "not written by this installation" in " ".join(done.stderr.split())


PIPELINE = """
    import headrace as hr

    app = hr.App("shop", log={log!r})
    data = app.topic("rows", append=True)
    model = app.model("m", hr.KMeans(k=2, decay=1.0), features=lambda rows: [[x] for x in rows.column("x").to_pylist()])
    model.learn(data)
    model.predict(data).to("answers")
"""


def test_what_the_log_does_not_say_the_pipelines_file_does(log: str, tmp_path: Path) -> None:
    file = tmp_path / "shop.py"
    file.write_text(textwrap.dedent(PIPELINE).format(log=log))
    from headrace.cli.arguments import load_app

    app = load_app(str(file))
    with app.start() as running:
        for seed in (1, 2):
            append(running, seed, 10)
        running.wait()
    position = answers(app)[-1]["model_position"]
    said = command("models", "rebuild", "m", "--at", position, log=log, code=2)
    assert "--file" in said
    made = command("models", "rebuild", "m", "--at", position, "--file", str(file), log=log)
    assert (made["position"], made["verified"]) == (position, True)
    to = str(tmp_path / "out")
    assert command("models", "rebuild", "m", "--at", position, "--file", str(file), "--to", to, log=log)["files"]
    other = tmp_path / "other.py"
    other.write_text(textwrap.dedent(PIPELINE).format(log=log).replace("decay=1.0", "decay=0.5"))
    words = command("models", "rebuild", "m", "--at", position, "--file", str(other), log=log, code=2)
    assert "KMeans decay: 1.0 -> 0.5" in words


@pytest.mark.slow
def test_a_keras_network_begins_ends_and_comes_back(log: str, tmp_path: Path) -> None:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")

    def network() -> hr.App:
        net = keras.Sequential(
            [
                keras.Input((2,)),
                keras.layers.Dense(64, activation="relu"),
                keras.layers.Dropout(0.2),
                keras.layers.Dense(2, activation="softmax"),
            ]
        )
        net.compile(optimizer=keras.optimizers.Adam(0.01), loss="sparse_categorical_crossentropy")
        app = hr.App("shop", log=log)
        data = app.topic("rows", append=True)
        model = app.model("m", net, features=["x", "y"], target="label", classes=[0, 1], versions=20)
        model.learn(data, every=10)
        model.predict(data, proba=True).to("answers")
        return app

    learned(network(), 1, 2)
    held = open_log(log, writer=False)
    assert "m/000000000000" in held.records("checkpoint", "m/")
    held.close()
    first = command("models", "show", "m", log=log)["versions"][0]
    with network().start() as running:
        running.rollback("m", 1)
        assert running["m"].hash == first["hash"]
        append(running, 3)
        running.wait()
        now = running["m"].predict(GRID).tolist()
    last = answers(network())[-1]
    made = command("models", "rebuild", "m", "--at", last["model_position"], log=log)
    assert (made["position"], made["version"]) == (last["model_position"], last["model_version"])
    done = command("models", "export", "m", "--to", str(tmp_path / "net"), log=log)
    assert {"model.keras", "weights.npz"} <= set(done["files"])
    said = run_card(
        tmp_path / "net", f"import numpy as np\nprint(model.predict(np.array({GRID}), verbose=0).argmax(1).tolist())"
    )
    assert json.loads(said) == now


def test_on_kafka_a_command_stops_no_pipeline(broker: KafkaBroker, topic_prefix: str) -> None:
    """A second writer of a cluster's log fences the first: what writes waits until the user says that none runs."""
    log = f"kafka://{broker.bootstrap}/{topic_prefix}"
    app = hr.App(topic_prefix, log=log)
    data = app.topic(f"{topic_prefix}-rows", append=True)
    model = app.model("m", hr.KMeans(k=3, initial_centers=CENTERS, decay=0.9), features=["x", "y"], versions=20)
    model.learn(data, every=5)
    model.predict(data).to(f"{topic_prefix}-answers")
    with app.start() as running:
        for seed in (1, 2):
            for i in range(0, 20, 4):
                running.append(f"{topic_prefix}-rows", rows(seed, 20)[i : i + 4])
        running.wait()
        for words in (("rollback", "m", "1"), ("tag", "m", "1", "good")):
            assert "--stopped" in command("models", *words, log=log, code=1)
        first = command("models", "show", "m", log=log)["versions"][0]
        assert running.rollback("m", 1) == 4
        assert running["m"].hash == first["hash"]
    done = command("models", "rollback", "m", "2", "--stopped", log=log)
    assert (done["parent"], done["begun"]) == (2, False)
    command("models", "tag", "m", "1", "good", "--stopped", log=log)
    with app.start() as running:
        for i in range(0, 8, 4):
            running.append(f"{topic_prefix}-rows", rows(3, 8)[i : i + 4])
        running.wait()
        assert running["m"].version == 5
    shown = command("models", "show", "m", log=log)["versions"]
    assert [row["parent"] for row in shown] == [None, 1, 2, 1, 2]
    last = answers_of(app, f"{topic_prefix}-answers")[-1]
    made = command("models", "rebuild", "m", "--at", last["model_position"], log=log)
    assert made["position"] == last["model_position"]
    said = command("explain", f"{topic_prefix}-answers", "47", log=log)
    assert [(row["version"], row["first"], row["last"]) for row in said["learned"]] == [(1, 0, 19), (2, 20, 39)]


def answers_of(app: hr.App, topic: str) -> list[dict[str, Any]]:
    return list(app.topic(topic).read().to_arrow().to_pylist())


CHANGED = """
    import headrace as hr

    app = hr.App("shop", log={log!r})
    data = app.topic("rows", append=True)
    model = app.model("m", hr.KMeans(k={k}, decay={decay}), features=["x", "y"], versions=20)
    model.learn(data, every=5)
    model.predict(data).to("answers")
"""


def test_a_model_that_is_declared_differently_goes_on_by_a_command(tmp_path: Path) -> None:
    log = str(tmp_path / "shop.headrace")

    def file(k: int, decay: float) -> str:
        (tmp_path / "shop.py").write_text(textwrap.dedent(CHANGED).format(log=log, k=k, decay=decay))
        return str(tmp_path / "shop.py")

    def run(path: str, code: int = 0) -> str:
        words = [HEADRACE, "run", path, "--until-caught-up"]
        done = run_python(words, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == code, done.stderr
        return done.stderr

    path = file(3, 0.9)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(1, 12)))
    command("produce", "rows", "--file", str(tmp_path / "rows.jsonl"), log=log)
    run(path)
    assert "and k=4 is declared" in command("models", "continue", "m", "--file", file(4, 0.9), log=log, code=1)
    assert f"headrace models continue m --log {log}" in run(file(3, 0.5), code=2)
    asked = command("models", "continue", "m", "--file", path, log=log)
    assert asked == {"model": "m", "changes": ["KMeans decay: 0.9 -> 0.5"]}
    assert "«m»: the model goes on: KMeans decay: 0.9 -> 0.5" in run(path)
    shown = command("models", "show", "m", log=log)
    assert [version["reason"] for version in shown["versions"]] == ["declared", "continues: KMeans decay: 0.9 -> 0.5"]
    assert [about["changes"] for about in shown["redeclared"]] == [["the model goes on: KMeans decay: 0.9 -> 0.5"]]
    # From the log alone, on either side of the change.
    for offset, version in ((2, 1), (11, 1)):
        position = command("explain", "answers", str(offset), log=log)["position"]
        assert command("models", "rebuild", "m", "--at", position, log=log)["version"] in (version, version + 1)
    assert command("models", "diff", "m", "1", "2", log=log)["parameters"] == ["parameters.decay: 0.9 → 0.5"]
    assert "has no model «n»" in command("models", "continue", "n", log=log, code=1)
