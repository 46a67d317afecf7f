"""The MNIST demo as a user runs it, on real digits: by replay from PostgreSQL, and online, killed and resumed."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import signal
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headrace.demos.mnist import pipeline
from headrace.demos.mnist.digits import Digits, read_data
from headrace.demos.mnist.recipes import CLASSES, recipe
from headrace.demos.mnist.show import half_blocks
from headrace.errors import DeclarationError
from headrace.learn.state import state_hash
from headrace.log import open_log
from headrace.testing.servers import KafkaBroker
from tests.databases import Database
from tests.processes import HEADRACE, Child, headrace

pytestmark = pytest.mark.timeout(300)
KEYS = ["mode", "model", "train_rows", "test_rows", "accuracy", "accuracy_curve", "digit3", "log", "seconds"]
PNG = b"\x89PNG\r\n\x1a\n"
needs_keras = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed")


def result(*arguments: str, cwd: Path) -> dict[str, Any]:
    """What the demo says in JSON, checked for what is true of every run."""
    out = headrace("demo", "mnist", "--json", *arguments, cwd=cwd)
    assert len(out.splitlines()) == 1
    found: dict[str, Any] = json.loads(out)
    assert list(found) == KEYS
    assert found["accuracy_curve"][-1][1] == found["accuracy"]
    assert all(0 <= accuracy <= 1 for _, accuracy in found["accuracy_curve"])
    counts = [rows for rows, _ in found["accuracy_curve"]]
    assert counts == sorted(set(counts))
    return found


@pytest.fixture(scope="module")
def digits() -> Digits:
    return read_data()


@pytest.fixture(scope="module")
def small(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST's four files, with few digits: 400 to learn, plain, and 150 to be tested, compressed."""
    folder = tmp_path_factory.mktemp("idx")
    write_idx(folder / "train-images-idx3-ubyte", digits.train.images[:400])
    write_idx(folder / "train-labels-idx1-ubyte", digits.train.labels[:400])
    write_idx(folder / "t10k-images-idx3-ubyte.gz", digits.test.images[:150])
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", digits.test.labels[:150])
    return folder


def write_idx(path: Path, values: npt.NDArray[np.uint8]) -> None:
    data = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


# -- data -------------------------------------------------------------------------------------------------------------


def test_the_shipped_digits_are_the_shared_ones_with_source_and_licence(shared_data: Path) -> None:
    folder = Path(pipeline.__file__).parent / "data"
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "digit3.json"):
        assert (folder / name).read_bytes() == (shared_data / "mnist" / name).read_bytes()
    source = (folder / "SOURCE.txt").read_text()
    assert "LeCun" in source and "Cortes" in source and "creativecommons.org/licenses/by-sa/3.0" in source


def test_the_pair_is_split_and_four_files_are_used_whole(digits: Digits, small: Path) -> None:
    assert (len(digits.train), len(digits.test)) == (9_000, 1_000)
    found = read_data(small)
    assert (len(found.train), len(found.test)) == (400, 150)
    assert (found.test.images == digits.test.images[:150]).all()


MISSING = {
    "nothing": ([], "t10k-images-idx3-ubyte, no t10k-labels-idx1-ubyte"),
    "labels": (["t10k-images-idx3-ubyte.gz"], "no t10k-labels-idx1-ubyte (plain"),
    "test set": (["train-images-idx3-ubyte", "train-labels-idx1-ubyte"], "no t10k-images-idx3-ubyte, no t10k-labels"),
    "training labels": (
        ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"],
        "no train-labels-idx1-ubyte (plain",
    ),
    "training set": (["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"], "150 digits, and 1000 are kept"),
}


@pytest.mark.parametrize("missing", MISSING)
def test_missing_files_are_named(missing: str, small: Path, tmp_path: Path) -> None:
    names, words = MISSING[missing]
    for name in names:
        (tmp_path / name).write_bytes((small / name).read_bytes())
    with pytest.raises(DeclarationError) as error:
        read_data(tmp_path)
    assert words in str(error.value)


def test_the_seeds_sql_files(database: Database, small: Path, tmp_path: Path) -> None:
    headrace("demo", "mnist", "--write-sql", "sql", "--idx", str(small), cwd=tmp_path)
    psql = [str(database.server.bin / "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-d", database.dsn, "-f"]
    for name in ("mnist_train", "mnist_test"):
        subprocess.run([*psql, str(tmp_path / "sql" / f"{name}.sql")], check=True, capture_output=True)
    # As the article does: head -5 mnist_test.sql | sed s/test/manual/
    lines = (tmp_path / "sql" / "mnist_test.sql").read_text().splitlines(keepends=True)[:5]
    (tmp_path / "manual.sql").write_text("".join(line.replace("test", "manual", 1) for line in lines))
    subprocess.run([*psql, str(tmp_path / "manual.sql")], check=True, capture_output=True)
    found = read_data(small)
    for name, images in (("train", found.train), ("test", found.test), ("manual", found.test)):
        rows = database.execute(f"select pixels, labels from mnist_{name}")
        assert len(rows) == {"train": 400, "test": 150, "manual": 4}[name]
        assert [label for _, label in rows] == images.labels[: len(rows)].tolist()
        assert b"".join(bytes(pixels) for pixels, _ in rows) == images.images[: len(rows)].tobytes()
    types = "select column_name, data_type from information_schema.columns where table_name = 'mnist_train' order by 1"
    assert database.execute(types) == [("labels", "smallint"), ("pixels", "bytea")]


# -- by replay --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_default_model_reads_94_of_100_digits_and_the_3(tmp_path: Path) -> None:
    found = result("--log", "mnist.headrace", cwd=tmp_path)
    assert (found["mode"], found["model"], found["train_rows"], found["test_rows"]) == ("batch", "mlp", 9_000, 1_000)
    assert found["accuracy"] >= 0.94
    assert found["digit3"] == 3
    assert found["seconds"] < 240
    assert [rows for rows, _ in found["accuracy_curve"]] == list(range(50, 1_001, 50))
    for picture in ("digit3.png", "accuracy.png"):
        assert (tmp_path / picture).read_bytes().startswith(PNG)
    log = open_log(found["log"], writer=False)
    topics = log.topics()
    log.close()
    counts = {name: topics[name].rows for name in topics if not name.startswith("__")}
    assert counts == {"tf.public.mnist_train": 9_000, "tf.public.mnist_test": 1_000, "mnist_predictions": 1_000}
    words = "select avg((prediction = labels)::int) from mnist_predictions"
    assert json.loads(headrace("sql", words, "--json", cwd=tmp_path))[0].popitem()[1] == found["accuracy"]


@needs_keras
@pytest.mark.slow
def test_the_convolutional_network_reads_96_of_100(tmp_path: Path) -> None:
    found = result("--model", "cnn", cwd=tmp_path)
    assert found["accuracy"] >= 0.96
    assert (found["digit3"], found["train_rows"]) == (3, 9_000)
    assert found["seconds"] < 240


@pytest.mark.parametrize(
    "model",
    [pytest.param("keras", marks=needs_keras), pytest.param("cnn", marks=[needs_keras, pytest.mark.slow]), "river"],
)
def test_other_models_learn_by_replay_too(model: str, database: Database, small: Path, tmp_path: Path) -> None:
    options = ["--postgres", database.dsn, "--idx", str(small), "--epochs", "5", "--png", "pictures"]
    found = result("--model", model, *options, cwd=tmp_path)
    assert (found["model"], found["train_rows"], found["test_rows"]) == (model, 400, 150)
    assert found["accuracy"] > 0.7
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["accuracy.png", "digit3.png"]


def test_people_see_accuracy_count_up_the_3_and_what_to_try_next(small: Path, tmp_path: Path, digits: Digits) -> None:
    out = headrace("demo", "mnist", "--idx", str(small), "--log", "m.headrace", cwd=tmp_path)
    assert "waiting for tf.public.mnist_test, which does not exist yet" in out
    assert out.count("% right") == 19  # 150 rows in twentieths
    assert half_blocks(digits.three).splitlines()[7] in out
    assert "The 3 drawn by hand is a" in out
    assert f"The log stays at {tmp_path / 'm.headrace'}" in out
    last = json.loads(headrace("topics", "cat", "mnist_predictions", "--limit", "1", cwd=tmp_path))
    assert (last["status"], last["model"]) == ("ok", "digits")
    assert "there already" in headrace("demo", "mnist", "--log", "m.headrace", cwd=tmp_path, code=2)


def test_a_server_that_is_there_is_left_as_it_was(database: Database, small: Path, tmp_path: Path) -> None:
    found = result("--postgres", database.dsn, "--idx", str(small), "--epochs", "1", cwd=tmp_path)
    assert found["test_rows"] == 150
    assert database.execute("select count(*) from mnist_train") == [(400,)]
    assert database.execute("select slot_name from pg_replication_slots where database = current_database()") == []
    assert database.execute("select pubname from pg_publication") == []


def test_on_kafka_the_same(broker: KafkaBroker, database: Database, small: Path, tmp_path: Path) -> None:
    where = ["--postgres", database.dsn, "--log", f"kafka://{broker.bootstrap}/mnist-demo"]
    options = [*where, "--idx", str(small), "--epochs", "1", "--png", "."]
    found = result(*options, cwd=tmp_path)
    assert (found["train_rows"], found["test_rows"]) == (400, 150)
    assert "already" in headrace("demo", "mnist", *options, cwd=tmp_path, code=2)


REFUSED = {
    "every": (["--every", "5"], "--every is for --online"),
    "delay": (["--delay-ms", "5"], "--delay-ms is for --online"),
    "epochs": (["--online", "--epochs", "2"], "--epochs is not for --online"),
    "postgres": (["--online", "--postgres", "x"], "--postgres is not for"),
    "idx": (["--idx", "nowhere"], "nowhere has no t10k-images-idx3-ubyte"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_wrong_options_are_refused_before_anything_runs(refused: str, tmp_path: Path) -> None:
    arguments, words = REFUSED[refused]
    said = headrace("demo", "mnist", *arguments, cwd=tmp_path, code=2)
    assert words in " ".join(said.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


# -- online -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_online_pass_reads_85_of_100(tmp_path: Path) -> None:
    found = result("--online", "--model", "mlp", "--delay-ms", "0", "--log", "o.headrace", cwd=tmp_path)
    assert (found["mode"], found["train_rows"], found["test_rows"]) == ("online", 9_000, 1_000)
    assert found["accuracy"] >= 0.85
    assert [rows for rows, _ in found["accuracy_curve"]] == list(range(20, 9_001, 20))
    assert (tmp_path / "accuracy.png").read_bytes().startswith(PNG)


@needs_keras
@pytest.mark.slow
def test_one_online_pass_of_the_convolutional_network(tmp_path: Path) -> None:
    found = result("--online", cwd=tmp_path)
    assert (found["model"], found["train_rows"], found["digit3"]) == ("cnn", 9_000, 3)
    assert found["accuracy"] >= 0.9
    assert 85 < found["seconds"] < 240


def learned(log: Path, model: str, data: Digits, every: int) -> tuple[str, list[int], int]:
    """What a log holds: a hash of the whole model, the digits appended, and how many the model has learned."""
    chosen = recipe(model)
    classes = CLASSES if model == "mlp" else None
    app = pipeline.online(log, chosen.learner(), chosen.features, classes, data.test.records(), every=every)
    with app.start() as running:
        state = running.engine.runners[0].state
        assert state.learner is not None
        found = state_hash(state.learner.state()), running["digits"].learned
    return found[0], app.topic("mnist").read().to_arrow().column("id").to_pylist(), found[1]


@pytest.mark.parametrize("model", ["mlp", pytest.param("cnn", marks=[needs_keras, pytest.mark.slow])])
def test_killed_and_started_again_it_is_as_if_it_had_never_been_killed(model: str, small: Path, tmp_path: Path) -> None:
    options = ["--online", "--model", model, "--idx", str(small), "--every", "8"]
    whole = result(*options, "--delay-ms", "0", "--log", "whole.headrace", cwd=tmp_path)
    log = tmp_path / "killed.headrace"
    for rows in (60, 230):
        kill_at(rows, log, [*options, "--delay-ms", "4", "--log", str(log)], cwd=tmp_path)
    resumed = result(*options, "--delay-ms", "0", "--log", str(log), cwd=tmp_path)
    assert resumed["accuracy_curve"] == whole["accuracy_curve"]
    assert {**resumed, "log": "", "seconds": 0} == {**whole, "log": "", "seconds": 0}
    data = read_data(small)
    expected = learned(tmp_path / "whole.headrace", model, data, 8)
    assert expected[1:] == (list(range(1, 401)), 400)
    assert learned(log, model, data, 8) == expected


def kill_at(rows: int, log: Path, options: list[str], *, cwd: Path) -> None:
    """Kill the demo when it has appended so many digits."""
    child = Child([HEADRACE, "demo", "mnist", *options], cwd=cwd, stdout=subprocess.DEVNULL)
    try:
        wait_for(rows, log, child)
    finally:
        child.kill()
        child.wait(30)
    assert appended(log) < 400, "it was killed too late"


def wait_for(rows: int, log: Path, child: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while appended(log) < rows:
        assert child.poll() is None, "it has ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def appended(log: Path) -> int:
    if not log.exists():
        return 0
    held = open_log(str(log), writer=False)
    try:
        topics = held.topics()
        return topics["mnist"].rows if "mnist" in topics else 0
    finally:
        held.close()


@pytest.mark.parametrize("how", ["SIGTERM", "Enter"])
def test_stopped_it_ends_cleanly_and_goes_on_later(how: str, small: Path, tmp_path: Path) -> None:
    log = tmp_path / "o.headrace"
    command = ["demo", "mnist", "--online", "--model", "mlp", "--idx", str(small), "--log", str(log), "--json"]
    master, slave = os.openpty()
    child = Child([HEADRACE, *command], cwd=tmp_path, stdin=slave, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(50, log, child)
        if how == "Enter":
            os.write(master, b"\n")
        else:
            child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=60)
    finally:
        child.kill()
        os.close(master)
        os.close(slave)
    assert child.returncode == (143 if how == "SIGTERM" else 0)
    first = json.loads(out)
    assert 50 <= first["train_rows"] < 400
    again = json.loads(headrace(*command, "--delay-ms", "0", cwd=tmp_path))
    assert again["train_rows"] == 400
    assert again["accuracy_curve"][: len(first["accuracy_curve"])] == first["accuracy_curve"]
    assert json.loads(headrace(*command, cwd=tmp_path))["accuracy_curve"] == again["accuracy_curve"]


def test_headrace_produce_and_the_demo_are_one_producer(small: Path, tmp_path: Path) -> None:
    """Both append the same rows under the same producer's name: each goes on where the other stopped."""
    produce = [
        "produce",
        "mnist",
        "--idx",
        str(small),
        "--producer-id",
        "demo",
        "--limit",
        "130",
        "--log",
        "o.headrace",
    ]
    headrace(*produce, cwd=tmp_path)
    options = ["--online", "--model", "mlp", "--idx", str(small), "--delay-ms", "0", "--log", "o.headrace"]
    assert result(*options, cwd=tmp_path)["train_rows"] == 400
    log = open_log(str(tmp_path / "o.headrace"), writer=False)
    ids = [i for entry in log.read_topic("mnist") for i in entry.records.column("id").to_pylist()]
    log.close()
    assert ids == list(range(1, 401))


def test_a_digit_in_the_terminal(digits: Digits) -> None:
    drawn = half_blocks(digits.three)
    assert len(drawn.splitlines()) == 14
    assert {len(line) for line in drawn.splitlines()} == {28}
    assert set(drawn) <= set(" ▀▄█\n")
    ink = np.frombuffer(digits.three, np.uint8) >= 96
    counted = sum({"█": 2, "▀": 1, "▄": 1}.get(character, 0) for character in drawn)
    assert counted == int(ink.sum())
