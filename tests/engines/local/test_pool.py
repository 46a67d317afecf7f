"""Workers: processes that predict and train beside the engine, and change nothing of what comes of it."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from tests.processes import HEADRACE, Child, headrace, run_python
from tests.waiting import wait_until

import headrace as hr
from headrace.engines import workers
from headrace.engines.local import pool as pool_module
from headrace.engines.local.engine import Engine
from headrace.engines.local.pool import MOST_LOSSES, ProcessPool
from headrace.formats.topic_formats import codec_for
from headrace.learn.base import pinned
from headrace.log import open_log
from headrace.log.base import Log
from headrace.log.memory import MemoryLog
from headrace.plan.task import Cut, ModelTask
from headrace.replay.verify import verify
from headrace.step.model_version import ModelVersion
from headrace.step.predictions import predict_rows
from headrace.testing.clock import SettableClock
from headrace.testing.servers import KafkaBroker
from headrace.testing.source import ScriptedSource


def long_form(cases: list[Any]) -> list[Any]:
    """Cases of the long form: each starts processes of its own."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


class Dear:
    """A model that computes long for each row; it fails on some rows, and has no finite number for others."""

    deterministic, classes = True, None

    def __init__(self, turns: int = 1000, weight: int = 0) -> None:
        self.turns, self.total, self.rows = turns, 0.0, 0
        self.weights = np.zeros(weight)  # what makes a state large

    @property
    def ready(self) -> bool:
        return self.rows > 0

    def learn(self, X: npt.NDArray[Any], y: npt.NDArray[Any] | None = None) -> None:
        self.total += float(X.sum() if y is None else y.sum())
        self.rows += len(X)
        self.weights += self.total

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if (X[:, 0] == 13).any():
            raise ValueError("thirteen")
        found = np.empty(len(X))
        for i, row in enumerate(X):
            value = float(row.sum())
            for _ in range(self.turns):
                value = math.sin(value + self.total)
            found[i] = math.nan if row[0] == 7 else value + self.weights[:3].sum()
        return found

    def parameters(self) -> dict[str, Any]:
        return {"turns": self.turns}

    def state(self) -> dict[str, Any]:
        return {"total": self.total, "rows": self.rows, "weights": self.weights.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        self.total, self.rows, self.weights = state["total"], state["rows"], state["weights"].copy()


@pytest.fixture(autouse=True)
def _nobody_is_left() -> Iterator[None]:
    """No process of a pool outlives its test."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    wait_until(lambda: not [pid for pid in worker_pids() if pid not in before], "the end of all workers")


def worker_pids(parent: int | None = None) -> list[int]:
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "popen_loky_posix" in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found


def rows(start: int, count: int, **more: Any) -> list[dict[str, Any]]:
    """Rows of which some cannot be predicted, and some have no features."""
    xs = [
        None if i % 97 == 5 else 13 if i % 101 == 7 else 7 if i % 103 == 9 else i % 50
        for i in range(start, start + count)
    ]
    return [{"id": i, "x": x, "z": i * 0.5, "color": "abcdefg"[i // 40 % 7], **more} for i, x in enumerate(xs, start)]


def with_labels(some: list[dict[str, Any]], y: float) -> list[dict[str, Any]]:
    return [{**row, "y": y + row["id"] % 3} for row in some]


def run(
    app: hr.App, processes: int, feed: Any, *, folder: list[Path] | None = None
) -> tuple[dict[str, Any], ProcessPool | None]:
    """Everything that a pipeline leaves behind, fed by a script, at a time that stands still."""
    log = MemoryLog()
    source, plan, clock = ScriptedSource("db"), app.plan(), SettableClock()
    pool = ProcessPool(processes, plan.models) if processes > 1 else None
    engine = Engine(plan, log, [source], clock=clock, workers=pool)
    if pool is not None:
        # They are there before the first row, so that it does not depend on the machine who predicts.
        pool.begin()
        if folder is not None and pool._folder is not None:
            folder.append(pool._folder)
    source.start(log)
    engine.recover()
    at_us = 0
    for transaction in feed:
        source.commit(transaction, ts_us=(at_us := at_us + 400_000))
        engine._round()
    for _ in range(4):
        engine._round()
    engine.stop()
    engine.run()
    return everything(log), pool


def everything(log: Log) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for topic in log.topics():
        found[topic] = [str(row) for entry in log.read_topic(topic, limit=10**9) for row in entry.records.to_pylist()]
    for kind in log.kinds():
        if kind not in ("environment",):
            found[f"records of {kind}"] = log.records(kind)
    return found


def model(cut: Any, learner: Any = None, **more: Any) -> hr.App:
    """Two models that read the same rows; one of them learns, the other one is evaluated too."""
    app = hr.App("a", log="memory://")
    test, train = app.topic("test"), app.topic("train")
    first = app.model("first", learner or Dear(), features=["x", "z", hr.category("color", capacity=8)], **more)
    first.learn(train, every=cut)
    first.predict(test).to("out")
    first.predict(train.filter(lambda batch: np.asarray(batch.column("id")) % 3 > 0)).to("odd")
    second = app.model("second", Dear(), features=["x"], target="y")
    second.learn(train, every=cut)
    second.evaluate(train, metrics=["mae"], every=100)
    return app


def transactions(count: int, size: int = 150) -> Iterator[dict[str, list[dict[str, Any]]]]:
    for number in range(count):
        yield {
            "train": with_labels(rows(number * size, size // 2), 1.0),
            "test": rows(number * size + size // 2, size),
        }


@pytest.mark.parametrize("cut", [32, *long_form(["transaction", 200, "1 s"])])
def test_everything_is_as_without_workers(cut: Any) -> None:
    alone, _ = run(model(cut), 1, transactions(6))
    beside, pool = run(model(cut), 2, transactions(6))
    assert pool is not None and pool.sent > 100  # the others were predicted while processes began
    assert alone == beside
    assert any("thirteen" in row for row in beside["test.dlq"])


def derived(tmp_path: Path, retrain: dict[str, Any]) -> hr.App:
    """Predictions that are graded, windows over the grades, an alarm that trains anew."""
    (tmp_path / "first.csv").write_text("x,z,y\n1,2,1.0\n2,1,1.0\n")
    app = hr.App("a", log=str(tmp_path / "t.headrace"))
    asked, told = app.topic("asked", append=True), app.topic("told", append=True)
    m = app.model("m", Dear(), features=["x", "z"], target="y", initial=hr.csv(tmp_path / "first.csv"))
    grades = m.predict(asked).to("out").grade(told, on="id", within="1 h").to("grades")
    alarm = grades.window(100, every=100).mean("error").above(2.0).to("alarms")
    m.retrain(on=alarm, rows=grades.last(150), **retrain)
    return app


def pool_of(running: Any) -> ProcessPool:
    """The pool of a running pipeline, whose processes are there."""
    pool = running.engine.workers
    assert isinstance(pool, ProcessPool)
    pool.begin()
    return pool


def ask(running: Any, start: int, count: int = 300) -> None:
    some = rows(start, count)
    running.append("asked", [{name: row[name] for name in ("id", "x", "z")} for row in some])
    running.append("told", [{"id": row["id"], "y": 3.0 + start} for row in some])


def is_as_alone(app: hr.App, log: str) -> bool:
    """Whether a replay, which has no workers, gives every row and every hash that was recorded."""
    with contextlib.closing(open_log(log, writer=False)) as held:
        report = verify(app.plan(), held)
    assert report.result == "equal", report.tasks
    return sum(task.rows for task in report.tasks) > 0


RETRAIN = {
    "barrier": {"swap": "barrier"},
    "shadow": {"swap": "barrier", "shadow": True, "promote": 120},
    "when_ready": {"swap": "when_ready"},
}


@pytest.mark.parametrize("how", ["when_ready", *long_form(["barrier", "shadow"])])
def test_what_is_derived_and_trained_is_as_without_workers(tmp_path: Path, how: str) -> None:
    app = derived(tmp_path, RETRAIN[how])
    with app.start(workers=2) as running:
        pool = pool_of(running)
        for start in range(0, 1200, 300):
            ask(running, start)
        running.wait()
        running.engine.wait_for(lambda _: running["m"].version > 1, 60)
        ask(running, 1200)
        running.wait()
        assert pool.sent > 300
        lines = app.topic("m-training").read().to_arrow().to_pylist()
    assert {"barrier": "trained", "shadow": "promoted", "when_ready": "trained"}[how] in {
        row["status"] for row in lines
    }
    assert is_as_alone(app, str(tmp_path / "t.headrace"))


def test_cheap_models_have_no_processes_and_dear_ones_hold_no_row_up() -> None:
    """Processes begin when a model has shown that it is dear; the engine goes on by itself until they are there."""
    cheap = hr.KMeans(k=2, initial_centers=[[0.0], [9.0]])
    for learner, dear in ((cheap, False), (Dear(turns=3000), True)):
        app = hr.App("a", log="memory://")
        app.model("m", learner, features=["x"]).learn(app.topic("train"), every=32).predict(app.topic("test")).to("out")
        source, plan = ScriptedSource("db"), app.plan()
        pool = ProcessPool(2, plan.models)
        engine = Engine(plan, log := MemoryLog(), [source], workers=pool)
        source.start(log)
        engine.recover()
        for transaction in transactions(2, 300):
            source.commit(transaction)
            engine._round()
        assert (pool._lives is not None) == dear
        engine.stop()
        engine.run()


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_its_work_is_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = derived(tmp_path, {"swap": "when_ready"})
    with app.start(workers=2) as running:
        pool = pool_of(running)
        for start in range(0, 1200, 300):
            sent, gather = pool.sent, pool._gathered

            def killing(*arguments: Any, gather: Any = gather) -> Any:
                for pid in worker_pids():
                    os.kill(pid, signal.SIGKILL)
                pool._gathered = gather  # type: ignore[method-assign]  # once
                return gather(*arguments)

            pool._gathered = killing  # type: ignore[method-assign]  # kills while work is under way
            ask(running, start)
            running.wait()
            assert pool.sent > sent
            pool_of(running)
        running.engine.wait_for(lambda _: running["m"].version > 1, 60)
    said = [record for record in caplog.records if getattr(record, "event", "") == "worker_lost"]
    assert 1 <= len(said) <= 4
    assert is_as_alone(app, str(tmp_path / "t.headrace"))


def test_large_states_go_by_files_that_go_with_them() -> None:
    """A state of 80 KB for each cut; what no job and no version needs is gone."""
    app = hr.App("a", log="memory://")
    m = app.model("m", Dear(turns=2000, weight=10_000), features=["x"])
    m.learn(app.topic("train"), every=200)
    m.predict(app.topic("test")).to("out")
    alone, _ = run(app, 1, transactions(5, 400))
    files: list[int] = []

    def feed(folder: list[Path]) -> Iterator[Any]:
        for transaction in transactions(5, 400):
            yield transaction
            files.append(len(list(folder[0].iterdir())))

    folder: list[Path] = []
    beside, pool = run(app, 2, feed(folder), folder=folder)
    assert pool is not None and pool.sent > 500
    assert alone == beside
    assert 0 < max(files) <= 2
    assert not folder[0].exists()


def test_a_learner_that_cannot_be_sent_is_predicted_here(caplog: pytest.LogCaptureFixture) -> None:
    held = Dear(turns=2000)
    held.lock = threading.Lock()  # type: ignore[attr-defined]  # no process can have it
    with pytest.raises(TypeError):
        workers.pickled(held)
    task = ModelTask("m", held, ("x",), None, Cut(rows=2), ())
    with contextlib.closing(ProcessPool(2, [task])) as pool:
        by = ModelVersion(held)
        X = np.arange(200.0).reshape(-1, 1)
        found = pool.predict(task, by, "predict", X)()
        assert pool.sent == 0 and pool._lives is None
        assert found[1].keys() == {7, 13}
    assert "cannot be sent" in caplog.text


@pytest.mark.slow
def test_processes_that_never_begin_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "settle_in", nothing_here)
    task = ModelTask("m", Dear(turns=3000), ("x",), None, Cut(rows=2), ())
    with contextlib.closing(ProcessPool(2, [task])) as pool:
        by = ModelVersion(task.learner)
        X = np.arange(100.0, 400.0).reshape(-1, 1)
        expected = predict_rows(task.learner.predict, X)[0]
        for _ in range(20):
            found = pool.predict(task, by, "predict", X)()
            assert found[0].tolist() == expected.tolist()
            if pool._losses >= MOST_LOSSES:
                break
            lives = pool._lives
            if lives is not None:
                lives._there.wait(60)
        assert pool._losses == MOST_LOSSES and pool.sent == 0


def nothing_here(*_: Any) -> None:
    raise ImportError("no such module")


SCRIPT = """
    import math, sys, threading, time
    import numpy as np
    import headrace as hr

    class Dear:
        deterministic, classes, ready = True, None, True
        total = 0.0
        def learn(self, X, y=None):
            self.total += float(X.sum())
        def predict(self, X):
            found = X.sum(axis=1) + self.total
            for i in range(len(found)):
                for _ in range(3000):
                    found[i] = math.sin(found[i])
            return found
        def parameters(self):
            return {}
        def state(self):
            return {"total": self.total}
        def restore(self, state):
            self.total = state["total"]

    app = hr.App("a", log="t.headrace")
    rows = app.topic("rows", append=True)
    m = app.model("m", Dear(), features=["x"])
    m.learn(rows, every=100)
    m.predict(rows).to("out")
"""
FEEDING = """
    def feed():
        while app.running is None:
            time.sleep(0.01)
        said = False
        for number in range(10**6):
            try:
                app.running.append("rows", [{"x": number + i / 7} for i in range(1000)])
            except hr.errors.HeadraceError:
                return
            if not said and app.running.engine.workers.sent:
                said = print("sent", flush=True) is None
    threading.Thread(target=feed, daemon=True).start()
    app.run(workers=2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, *long_form([signal.SIGTERM])])
def test_workers_end_with_the_pipeline(tmp_path: Path, number: signal.Signals) -> None:
    """However it ends; workers that get the signal of a terminal or a supervisor too leave it to the engine."""
    (tmp_path / "s.py").write_text(textwrap.dedent(SCRIPT + FEEDING))
    command = [sys.executable, tmp_path / "s.py"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with Child(command, cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)}, **pipes) as child:
        assert "sent" in child.stdout.readline()
        pids = worker_pids(child.pid)
        assert len(pids) == 2 and list(tmp_path.glob("headrace-states-*"))
        begun = time.monotonic()
        for pid in [child.pid, *(pids if number != signal.SIGKILL else [])]:
            os.kill(pid, number)
        child.stdout.close()
        said = child.stderr.read()
        child.wait(60)
        # Two seconds, where nothing else runs.
        assert number != signal.SIGINT or time.monotonic() - begun < 10
    assert "Traceback" not in said and "KeyboardInterrupt" not in said, said
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the end of the workers")
    wait_until(lambda: not list(tmp_path.glob("headrace-states-*")), "the end of the folder")


def test_a_users_own_class_in_the_file_that_headrace_runs(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "rows.csv").write_text("x\n" + "\n".join(str(i / 7) for i in range(2000)))
    headrace("produce", "rows", "--file", "rows.csv", "--log", "t.headrace", cwd=tmp_path)
    done = run_python(
        [HEADRACE, "run", "s.py", "--workers", "2", "--until-caught-up"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "predicted in this process" not in done.stderr, done.stderr
    assert "equal" in headrace("verify", "s.py", cwd=tmp_path)


def test_the_number_of_workers_is_checked() -> None:
    for wrong in (0, -1, True, 1.5, "2", None):
        with pytest.raises(hr.errors.DeclarationError, match="workers"):
            hr.App("a", log="memory://").start(workers=wrong)  # type: ignore[arg-type]  # what users may write


@pytest.mark.slow
@pytest.mark.parametrize("library", ["sklearn", "river", "keras"])
def test_learners_of_libraries_give_the_same_bits(library: str) -> None:
    """What splits sums among threads does it in the same way in both places, or on one thread in both."""
    chance = np.random.default_rng(4)
    X, labels = chance.normal(size=(700, 40)), [0, 1]
    y = (X[:, 0] > 0).astype(np.int64)
    if library == "sklearn":
        from sklearn.neural_network import MLPClassifier

        given: Any = MLPClassifier((200, 100), random_state=1)
    elif library == "river":
        from river.linear_model import LogisticRegression

        given = LogisticRegression()
    else:
        os.environ.setdefault("KERAS_BACKEND", "jax")  # read by Keras when it is first imported
        keras = pytest.importorskip("keras")
        given = keras.Sequential(
            [keras.Input((40,)), keras.layers.Dense(300, "relu"), keras.layers.Dense(2, "softmax")]
        )
        given.compile("sgd", "sparse_categorical_crossentropy")
    app = hr.App("a", log="memory://")
    model = app.model("m", given, features=[f"f{i}" for i in range(40)], target="y", classes=labels)
    model.learn(app.topic("t"), every=10)
    task = app.plan().models[0]
    learner = copy.deepcopy(task.learner)  # as in a pipeline: the declared one never learns
    learner.learn(X[:200], y[:200])
    by = ModelVersion(learner)
    with contextlib.closing(ProcessPool(2, [task])) as pool, pinned(learner):
        pool.begin()
        pool._worth = lambda by, cost, X, last: cost.row_s is not None  # type: ignore[method-assign]  # however cheap
        for method in ("predict", "predict_proba"):
            alone, _ = predict_rows(getattr(learner, method), X)
            for _ in range(2):
                found, _ = pool.predict(task, by, method, X)()  # type: ignore[arg-type]  # one of the two
                assert found is not None and alone is not None and found.tobytes() == alone.tobytes()
        assert pool.sent > 700


@pytest.mark.slow
def test_on_a_log_on_kafka(tmp_path: Path, broker: KafkaBroker, topic_prefix: str) -> None:
    app = hr.App(topic_prefix, log=f"kafka://{broker.bootstrap}")
    given = app.topic(f"{topic_prefix}-rows", append=True)
    m = app.model("m", Dear(), features=["x", "z"], target="y")
    m.learn(given, every=64)
    m.predict(given).to(f"{topic_prefix}-out")
    with app.start(workers=2) as running:
        pool = pool_of(running)
        for start in range(0, 1500, 300):
            running.append(f"{topic_prefix}-rows", with_labels(rows(start, 300), 1.0))
        running.wait()
        assert pool.sent > 300
    with contextlib.closing(open_log(app.log, writer=False, name=app.name, codec=codec_for())) as log:
        assert verify(app.plan(), log).result == "equal"
