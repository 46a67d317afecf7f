"""Pipelines that Flink runs: in a mini cluster of this process, and on a session cluster whose processes are killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tarfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.engines.flink.running import FlinkRunning
from headrace.errors import HeadraceError, LogLocked
from headrace.testing.servers import FlinkCluster, JobManager, KafkaBroker, SchemaRegistryServer
from tests.crash import harness
from tests.integration.test_registered_topics import sent

pytestmark = [pytest.mark.flink]

FEATURES = ["a", "b", "c", "d"]
CENTERS = [[-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
SECONDS = 240.0


class Pipeline:
    """K-means over a topic of its own; the same application may be started again and again."""

    def __init__(self, broker: KafkaBroker, partitions: int = 1) -> None:
        self.name = f"f{secrets.token_hex(6)}"
        self.broker = broker
        self.rows = 0
        broker.create_topic(self.topic, partitions)

    @property
    def topic(self) -> str:
        return f"{self.name}-rows"

    @property
    def answers(self) -> str:
        return f"{self.name}-answers"

    def app(self, name: str = "") -> hr.App:
        app = hr.App(name or self.name, log=f"kafka://{self.broker.bootstrap}")
        rows = app.topic(self.topic)
        species = app.model("species", hr.KMeans(k=3, initial_centers=CENTERS), features=FEATURES)
        species.learn(rows, every=32)
        species.predict(rows).to(f"{name or self.name}-answers")
        return app

    def produce(self, rows: int) -> None:
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.broker.bootstrap, "linger.ms": 5})
        values = np.random.default_rng(self.rows).normal(size=(rows, 4)).round(3).tolist()
        for number, row in enumerate(values, self.rows):
            value = json.dumps({"id": number, **dict(zip(FEATURES, row, strict=True))})
            producer.produce(self.topic, value.encode(), key=str(number).encode())
        assert producer.flush(60) == 0
        self.rows += rows

    def check(self) -> None:
        """Every row was predicted once, in order, and what the log says is what a replay of it gives."""
        app = self.app()
        ids = [row["id"] for row in app.topic(self.answers).read().to_arrow().select(["id"]).to_pylist()]
        assert sorted(ids) == list(range(self.rows))
        harness.verify(app)

    def hash_of_one_that_never_moved(self) -> str | None:
        with self.app(f"{self.name}-alone").start() as running:
            running.wait(120)
            return running["species"].hash


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_a_pipeline_moves_from_local_to_flink_and_back(broker: KafkaBroker) -> None:
    """In a mini cluster: the same rows, outputs and model as of one that never moved."""
    pipeline = Pipeline(broker)
    pipeline.produce(1_000)
    with pipeline.app().start() as running:
        running.wait(60)
    pipeline.produce(3_000)
    with pipeline.app().start(engine="flink") as running:
        running.wait(SECONDS)
        assert running["species"].learned == 4_000
        assert running.captured == {pipeline.topic: 3_000}
        pipeline.produce(500)
        running.wait(60)
        assert running["species"].counters["predicted"] == 4_500
    pipeline.produce(500)
    with pipeline.app().start() as running:
        running.wait(60)
        moved = running["species"].hash
    pipeline.check()
    assert moved == pipeline.hash_of_one_that_never_moved()


def test_an_older_checkpoint_is_restored_and_nothing_is_doubled(broker: KafkaBroker, tmp_path: Path) -> None:
    """What the log has is left out; and a checkpoint of after the log was begun anew: what it lacks is read again."""
    pipeline = Pipeline(broker)
    pipeline.produce(500)
    kept = {"execution.checkpointing.dir": f"file://{tmp_path}/all", "execution.checkpointing.interval": "200 ms"}
    kept["execution.checkpointing.num-retained"] = "1000"
    with pipeline.app().start(engine="flink", conf=kept) as running:
        running.wait(SECONDS)
        until(lambda: bool(checkpoints(tmp_path)), "a checkpoint")
        older = checkpoints(tmp_path)[-1]
        pipeline.produce(500)
        running.wait(SECONDS)
        count = len(checkpoints(tmp_path))
        until(lambda: len(checkpoints(tmp_path)) > count + 1, "a later checkpoint")
        newest = checkpoints(tmp_path)[-1]
    pipeline.produce(500)
    with pipeline.app().start(engine="flink", conf={"execution.state-recovery.path": f"file://{older}"}) as running:
        running.wait(SECONDS)
    pipeline.check()
    anew = pipeline.app(f"{pipeline.name}-anew")
    with anew.start(engine="flink", conf={"execution.state-recovery.path": f"file://{newest}"}) as running:
        running.wait(SECONDS)
        assert running["species"].counters["predicted"] == pipeline.rows


def checkpoints(folder: Path) -> list[Path]:
    """Completed checkpoints, the newest one last."""
    done = [path.parent for path in folder.glob("all/*/chk-*/_metadata")]
    return sorted(done, key=lambda path: int(path.name.removeprefix("chk-")))


def python_workers(cluster: FlinkCluster) -> list[int]:
    """Python processes that task managers have begun."""
    import psutil

    found = []
    for worker in cluster.workers:
        for child in psutil.Process(worker.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                if "pyflink.fn_execution" in " ".join(child.cmdline()):
                    found.append(child.pid)
    return found


def taskmanagers(cluster: FlinkCluster) -> int:
    """How many the job manager knows; those that have ended are started, as their supervisor would.

    One that loses its job manager may die of that: Beam wants a class of the job's, whose jars are closed by then.
    """
    cluster.start()
    return len((cluster.head.ask("taskmanagers") or {}).get("taskmanagers", []))


def test_kills_on_a_cluster_lose_and_double_nothing(broker: KafkaBroker, flink_cluster: FlinkCluster) -> None:
    """A Python worker, a task manager, the job manager; each after progress was made. Then a job of another width."""
    pipeline = Pipeline(broker, partitions=3)
    pipeline.produce(1_000)
    running = pipeline.app().start(engine="flink", jobmanager=flink_cluster.place, workers=2)
    try:
        running.wait(SECONDS)

        def go_on() -> None:
            pipeline.produce(1_000)
            running.wait(SECONDS)

        os.kill(python_workers(flink_cluster)[-1], signal.SIGKILL)
        go_on()
        orphans = python_workers(flink_cluster)
        for taskmanager in flink_cluster.workers:
            taskmanager.kill()
            taskmanager.start()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans), "workers of a dead JVM go on")
        go_on()
        running.stop()
        pipeline.produce(1_000)
        running = pipeline.app().start(engine="flink", jobmanager=flink_cluster.place)
        running.wait(SECONDS)
        flink_cluster.head.kill()
        flink_cluster.head.start()
        with contextlib.suppress(HeadraceError):
            running.stop()
        pipeline.produce(1_000)
        until(lambda: taskmanagers(flink_cluster) >= 2, "no task managers")
        running = pipeline.app().start(engine="flink", jobmanager=flink_cluster.place, workers=2)
        running.wait(SECONDS)
        moved = running["species"].hash
    finally:
        with contextlib.suppress(HeadraceError):
            running.stop()
    pipeline.check()
    assert moved is not None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_at_random_while_rows_flow(flink_cluster: FlinkCluster) -> None:
    """Of everything that a job stands on, the broker too; each after progress was committed since the kill before."""
    seed = int(os.environ.get("HEADRACE_SEED", "0")) or random.randrange(1, 2**31)
    print("HEADRACE_SEED", seed)
    chance = random.Random(seed)
    victims = ["python worker", "task manager", "job manager", "broker"]
    with KafkaBroker() as broker:
        pipeline = Pipeline(broker, partitions=3)

        def start() -> FlinkRunning:
            until(lambda: taskmanagers(flink_cluster) >= 2, "no task managers")
            workers = chance.choice([1, 2])
            running = pipeline.app().start(engine="flink", jobmanager=flink_cluster.place, workers=workers)
            assert isinstance(running, FlinkRunning)
            return running

        def predicted() -> int:
            with contextlib.suppress(HeadraceError):  # the broker is away
                return running["species"].counters.get("predicted", 0)
            return -1

        running = start()
        try:
            for victim in [*chance.sample(victims, len(victims)), *chance.choices(victims, k=2)]:
                before = pipeline.rows
                pipeline.produce(3_000)
                reached = before + chance.randrange(1, 2_000)
                until(lambda reached=reached: predicted() >= reached, f"no progress before the kill of a {victim}")
                if victim == "python worker":
                    os.kill(chance.choice(python_workers(flink_cluster)), signal.SIGKILL)
                elif victim == "broker":
                    broker.kill()
                    broker.start()
                else:
                    server = flink_cluster.head if victim == "job manager" else chance.choice(flink_cluster.workers)
                    server.kill()
                    server.start()
                if victim == "job manager":
                    with contextlib.suppress(HeadraceError):
                        running.stop()
                    running = start()
            running.wait(SECONDS)
        finally:
            with contextlib.suppress(HeadraceError):
                running.stop()
        pipeline.check()


def flink(cluster: FlinkCluster, logs: Path, *arguments: str) -> str:
    """Run a command of Flink's, as whoever operates the cluster does; return what it prints."""
    assert isinstance(cluster.head, JobManager)
    environment = {**os.environ, "FLINK_CONF_DIR": str(cluster.head.conf), "FLINK_LOG_DIR": str(logs)}
    command = ["/bin/bash", str(cluster.head.home / "bin" / "flink"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_job_is_stopped_with_a_savepoint_and_goes_on_wider_and_narrower(
    broker: KafkaBroker, flink_cluster: FlinkCluster, tmp_path: Path
) -> None:
    """By Flink's own commands, while rows come; each life begins with the savepoint of the one before."""
    pipeline = Pipeline(broker)
    conf: dict[str, str] = {}
    for workers in (1, 2, 1):
        pipeline.produce(1_000)
        with pipeline.app().start(
            engine="flink", jobmanager=flink_cluster.place, workers=workers, conf=conf
        ) as running:
            running.wait(SECONDS)
            pipeline.produce(1_000)
            assert "Savepoint completed" in flink(flink_cluster, tmp_path, "savepoint", running.job, str(tmp_path))
            assert running.alive
            pipeline.produce(1_000)
            printed = flink(flink_cluster, tmp_path, "stop", "--savepointPath", str(tmp_path), running.job)
            assert running.join(SECONDS), "the job has not ended"
        (savepoint,) = (line for line in printed.splitlines() if line.startswith("Savepoint completed. Path: "))
        conf = {"execution.state-recovery.path": savepoint.removeprefix("Savepoint completed. Path: ")}
    with pipeline.app().start(engine="flink", jobmanager=flink_cluster.place, conf=conf) as running:
        running.wait(SECONDS)
        assert running["species"].counters["predicted"] == pipeline.rows
        moved = running["species"].hash
    pipeline.check()
    assert moved == pipeline.hash_of_one_that_never_moved()


def test_a_second_run_takes_the_log_over_and_the_first_ends(broker: KafkaBroker, flink_cluster: FlinkCluster) -> None:
    """A job that was fenced does not fight back: Flink does not begin it again."""
    pipeline = Pipeline(broker)
    pipeline.produce(500)
    running = pipeline.app().start(engine="flink", jobmanager=flink_cluster.place)
    running.wait(SECONDS)
    with pipeline.app().start() as local:
        pipeline.produce(500)
        local.wait(60)
        with pytest.raises(LogLocked, match="taken over"):
            running.join(SECONDS)
        pipeline.produce(500)
        local.wait(60)
    with pytest.raises(LogLocked):
        running.stop()
    pipeline.check()


def test_a_packed_environment_travels_with_the_job(
    broker: KafkaBroker, flink_cluster: FlinkCluster, tmp_path: Path
) -> None:
    """Workers run the Python of the archive. It is a small one, which finds the packages of this process."""
    import psutil

    packed, archive = tmp_path / "packed", tmp_path / "environment.tar.gz"
    venv.create(packed, symlinks=True)
    (packages,) = packed.glob("lib/python*/site-packages")
    (packages / "ours.pth").write_text("\n".join(path for path in sys.path if path))
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(packed, ".")
    conf = {"python.archives": f"{archive}#environment", "python.executable": "environment/bin/python"}
    pipeline = Pipeline(broker)
    pipeline.produce(500)
    with pipeline.app().start(engine="flink", jobmanager=flink_cluster.place, conf=conf) as running:
        running.wait(SECONDS)
        lines = [" ".join(psutil.Process(pid).cmdline()) for pid in python_workers(flink_cluster)]
    assert any("environment/bin/python" in line for line in lines), lines
    pipeline.check()


@pytest.mark.parametrize("form", ["avro", "avro+envelope"])
def test_topics_whose_schemas_a_registry_has(
    broker: KafkaBroker, registry: SchemaRegistryServer, topic_prefix: str, form: str
) -> None:
    """Operators ask the registry; predictions are written as Avro too."""
    topic, predicted = f"{topic_prefix}-rows", f"{topic_prefix}-predicted"
    rows = pa.record_batch({"id": range(100), "a": [float(i % 7) for i in range(100)]})
    sent(broker, registry, topic, form, rows)
    app = hr.App(topic_prefix, log=f"kafka://{broker.bootstrap}", registry=registry.url)
    model = app.model("m", hr.KMeans(k=2, initial_centers=[[0.0], [5.0]]), features=["a"])
    model.learn(app.topic(topic), every=10)
    model.predict(app.topic(topic)).to(predicted, format="avro")
    with app.start(engine="flink") as running:
        running.wait(SECONDS)
        assert running["m"].counters["learned"] == running["m"].counters["predicted"] == 100
    found = app.topic(predicted).read().to_arrow().to_pylist()
    assert [row["id"] for row in found] == list(range(100))
    assert {row["prediction"] for row in found} == {0, 1}
    harness.verify(app)
