"""SIGKILL of the driver at the edges of a commit, of executors, tasks that run twice, a driver that was replaced.

What is left is compared with one run that nobody killed, on the local engine: messages, their order, models, counters.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import Consumer, TopicPartition

from headrace.testing.servers import KafkaBroker, SparkCluster
from tests.processes import Child
from tests.waiting import wait_until

from . import pipelines
from .outcomes import outcome

pytestmark = pytest.mark.spark
EDGES = ("engine.captured", "engine.stepped", "log.delivered", "log.sent", "log.after-commit", "engine.committed")
POINTS, ROWS = 600, 5_000


def start(
    broker: KafkaBroker,
    name: str,
    prefix: str,
    *,
    master: str = "local[2]",
    fault: str = "",
    conf: dict[str, str] | None = None,
    program: str = pipelines.PROGRAM,
    **environment: str,
) -> subprocess.Popen[bytes]:
    """A pipeline on Spark in a process of its own."""
    words = [f"kafka://{broker.bootstrap}", name, prefix, "spark", master, json.dumps(conf or {})]
    variables = {**os.environ, "HEADRACE_FAULT": fault, **environment}
    return Child([sys.executable, "-c", program, *words], env=variables, stderr=subprocess.PIPE)


def finished(child: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Wait for its end: code and words."""
    _, words = child.communicate(timeout=180)
    return child.returncode, words.decode()


def local(broker: KafkaBroker, name: str, prefix: str) -> None:
    """Run the pipeline here, on the local engine, until it has caught up."""
    with pipelines.build(f"kafka://{broker.bootstrap}", name, prefix).start() as running:
        running.wait(120)


def more(broker: KafkaBroker, prefix: str, number: int, points: int = POINTS) -> None:
    """Send rows to both topics, once more."""
    pipelines.send(broker.bootstrap, f"{prefix}-points", 10 + number * points, points)
    pipelines.send(broker.bootstrap, f"{prefix}-test", 10 + number * ROWS, ROWS)


def same(broker: KafkaBroker, prefix: str) -> None:
    """The pipeline that was killed has left what one that was not has."""
    local(broker, f"{prefix}-l", prefix)
    killed, whole = outcome(broker, f"{prefix}-s", prefix), outcome(broker, f"{prefix}-l", prefix)
    for what in whole:
        assert killed[what] == whole[what], what


def stopped(child: subprocess.Popen[bytes]) -> bool:
    """Return whether a process stands still where its fault has stopped it; it must not have ended."""
    assert child.poll() is None, child.communicate()[1].decode()
    return psutil.Process(child.pid).status() == psutil.STATUS_STOPPED


def test_a_kill_of_the_driver_at_an_edge_changes_nothing(broker: KafkaBroker, prefix: str) -> None:
    # It declares the environment, in a commit of its own: from then on a run's first commit is of rows.
    code, words = finished(start(broker, f"{prefix}-s", prefix))
    assert code == 0, words
    for number, edge in enumerate(EDGES):
        more(broker, prefix, number)
        code, words = finished(start(broker, f"{prefix}-s", prefix, fault=f"{edge}:1"))
        assert code == -signal.SIGKILL, f"{edge} was not passed: {words}"
    code, words = finished(start(broker, f"{prefix}-s", prefix))
    assert code == 0, words
    same(broker, prefix)


def test_a_driver_that_was_stopped_and_replaced_writes_nothing(broker: KafkaBroker, prefix: str) -> None:
    more(broker, prefix, 0, points=5000)
    zombie = start(broker, f"{prefix}-s", prefix, fault="engine.stepped:2:stop")
    try:
        wait_until(lambda: stopped(zombie), "its stop", 120)
        local(broker, f"{prefix}-s", prefix)
        os.kill(zombie.pid, signal.SIGCONT)
        pipelines.send(broker.bootstrap, f"{prefix}-points", 5010, 100)
        code, words = finished(zombie)
    finally:
        if zombie.poll() is None:
            zombie.kill()
    assert (code != 0, "taken over" in words) == (True, True), words
    local(broker, f"{prefix}-s", prefix)
    same(broker, prefix)


def executors(cluster: SparkCluster) -> list[psutil.Process]:
    """The JVMs that the workers of a cluster have started."""
    found = [child for worker in cluster.workers for child in psutil.Process(worker.pid).children()]
    return [child for child in found if any("CoarseGrainedExecutorBackend" in word for word in child.cmdline())]


def test_an_executor_that_dies_is_replaced(broker: KafkaBroker, prefix: str, spark_cluster: SparkCluster) -> None:
    more(broker, prefix, 0, points=6000)
    driver = start(broker, f"{prefix}-s", prefix, master=spark_cluster.place, fault="engine.stepped:2:stop")
    try:
        wait_until(lambda: stopped(driver), "its stop", 120)
        wait_until(lambda: executors(spark_cluster), "an executor")
        executors(spark_cluster)[0].kill()
        os.kill(driver.pid, signal.SIGCONT)
        code, words = finished(driver)
    finally:
        if driver.poll() is None:
            driver.kill()
    assert code == 0, words
    same(broker, prefix)


def python_workers(cluster: SparkCluster) -> list[psutil.Process]:
    """The processes in which executors run Python."""
    found = [child for executor in executors(cluster) for child in executor.children(recursive=True)]
    return [child for child in found if any("pyspark" in word for word in child.cmdline())]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_at_random_while_rows_flow(spark_cluster: SparkCluster) -> None:
    """Of everything that a pipeline stands on, the broker too; each after progress since the kill before."""
    seed = int(os.environ.get("HEADRACE_SEED", "0")) or random.randrange(1, 2**31)
    print("HEADRACE_SEED", seed)
    chance = random.Random(seed)
    victims = ["driver", "executor", "python worker", "spark worker", "broker"]
    with KafkaBroker() as broker:
        prefix = pipelines.prepare(broker, "killed")
        driver = start(broker, f"{prefix}-s", prefix, master=spark_cluster.place)
        for number, victim in enumerate([*chance.sample(victims, len(victims)), *chance.choices(victims, k=2)]):
            more(broker, prefix, number, points=4_000)
            if driver.poll() is not None:
                code, words = finished(driver)
                assert code in (0, -signal.SIGKILL), words
                driver = start(broker, f"{prefix}-s", prefix, master=spark_cluster.place)
            reached = broker_end(broker, f"{prefix}-s-out") + chance.randrange(1, 3_000)
            wait_until(
                lambda: driver.poll() is not None or broker_end(broker, f"{prefix}-s-out") >= reached,  # noqa: B023
                f"progress before the kill of a {victim}",
                240,
            )
            print(victim, "the driver has ended" if driver.poll() is not None else "")
            with contextlib.suppress(psutil.NoSuchProcess):
                strike(victim, driver, broker, spark_cluster, chance)
        code, words = finished(driver)
        assert code in (0, -signal.SIGKILL), words
        code, words = finished(start(broker, f"{prefix}-s", prefix, master=spark_cluster.place))
        assert code == 0, words
        same(broker, prefix)


def strike(
    victim: str, driver: subprocess.Popen[bytes], broker: KafkaBroker, cluster: SparkCluster, chance: random.Random
) -> None:
    """Kill one of the victims, if there is one at the moment; servers are started again, as a supervisor would."""
    if victim == "driver":
        driver.kill()
    elif victim in ("executor", "python worker"):
        found = executors(cluster) if victim == "executor" else python_workers(cluster)
        if found:
            chance.choice(found).kill()
    else:
        server = broker if victim == "broker" else chance.choice(cluster.workers)
        server.kill()
        server.start()


def broker_end(broker: KafkaBroker, topic: str) -> int:
    """Where a topic's only partition ends, markers of transactions included."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "ends"})
    with contextlib.closing(consumer):
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=30)
    return int(end)


def test_a_task_that_runs_twice_counts_once(
    broker: KafkaBroker, prefix: str, spark_cluster: SparkCluster, tmp_path: Path
) -> None:
    more(broker, prefix, 0, points=3000)
    (tmp_path / "sleep").touch()
    (tmp_path / "events").mkdir()
    conf = {
        "spark.speculation": "true",
        "spark.speculation.interval": "100ms",
        "spark.speculation.quantile": "0.1",
        "spark.speculation.minTaskRuntime": "100ms",
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": (tmp_path / "events").as_uri(),
        "spark.eventLog.compress": "false",
    }
    strikes = {pipelines.STRIKES: str(tmp_path)}
    driver = start(broker, f"{prefix}-s", prefix, master=spark_cluster.place, conf=conf, **strikes)
    code, words = finished(driver)
    assert code == 0, words
    assert not (tmp_path / "sleep").exists(), "nobody was struck"
    logs: list[Any] = [path for path in (tmp_path / "events").rglob("*") if path.is_file()]
    assert any('"Speculative":true' in path.read_text() for path in logs), "no task ran twice"
    same(broker, prefix)


def test_a_cluster_without_executors_holds_nothing_up(broker: KafkaBroker, prefix: str) -> None:
    more(broker, prefix, 0)
    impatient = "from headrace.engines.spark import jobs; jobs.PATIENCE_S = 2; "
    with SparkCluster(0) as empty:
        driver = start(broker, f"{prefix}-s", prefix, master=empty.place, program=impatient + pipelines.PROGRAM)
        code, words = finished(driver)
    assert (code, "it is done here" in words) == (0, True), words
    same(broker, prefix)
