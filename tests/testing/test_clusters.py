"""Clusters of Spark and Flink: they start, do work, survive the loss of a member, and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from headrace.errors import MissingExtra
from headrace.testing.servers import FlinkCluster, JobManager, SparkCluster, SparkMaster
from tests.waiting import wait_until

SUM = """
from pyspark import SparkConf, SparkContext
import sys
context = SparkContext(master=sys.argv[1], appName="sum", conf=SparkConf().set("spark.ui.enabled", "false"))
context.setLogLevel("ERROR")
found = context.parallelize(range(1000), 4).map(lambda number: number * 2).sum()
print("sum", found, context.defaultParallelism)
context.stop()
"""


@pytest.mark.parametrize(
    ("cluster", "package", "extra"), [(SparkCluster, "pyspark", "spark"), (FlinkCluster, "pyflink", "flink")]
)
def test_a_cluster_without_its_package(
    cluster: type, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(MissingExtra, match=f"extra «{extra}»"):
        cluster()


@pytest.mark.spark
def test_spark_computes_on_its_workers(spark_cluster: SparkCluster) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SUM, spark_cluster.place], capture_output=True, text=True, timeout=180, check=True
    )
    assert "sum 999000 2" in done.stdout
    master = spark_cluster.head
    assert isinstance(master, SparkMaster)
    wait_until(lambda: "sum" in [app["name"] for app in master.state()["completedapps"]], "the application's end")


@pytest.mark.spark
def test_a_worker_of_spark_dies_and_comes_back(spark_cluster: SparkCluster) -> None:
    master, worker = spark_cluster.head, spark_cluster.workers[0]
    assert isinstance(master, SparkMaster)
    worker.kill()
    worker.start()
    alive = [known for known in master.state()["workers"] if known["state"] == "ALIVE"]
    assert {known["port"] for known in alive} >= {server.port for server in spark_cluster.workers}


@pytest.mark.flink
def test_a_flink_cluster_offers_its_slots(flink_cluster: FlinkCluster) -> None:
    head = flink_cluster.head
    assert isinstance(head, JobManager)
    flink_cluster.start()
    # One that another test has killed is missed after a while.
    overview = wait_until(lambda: (found := head.ask("overview")) and found["taskmanagers"] == 2 and found)
    assert overview["slots-total"] == 4
    assert overview["flink-version"].startswith("2.3")


@pytest.mark.flink
def test_a_task_manager_dies_and_comes_back(flink_cluster: FlinkCluster) -> None:
    head, member = flink_cluster.head, flink_cluster.workers[0]
    assert isinstance(head, JobManager)
    member.kill()
    member.start()
    wait_until(lambda: (head.ask("overview") or {}).get("taskmanagers") == 2, "the loss of the one before")


@pytest.mark.spark
def test_spark_leaves_nothing_behind() -> None:
    leaves_nothing(SparkCluster(1))


@pytest.mark.flink
def test_flink_leaves_nothing_behind() -> None:
    leaves_nothing(FlinkCluster(1, slots=1))


def leaves_nothing(cluster: SparkCluster | FlinkCluster) -> None:
    with cluster:
        pids = [server.pid for server in (cluster.head, *cluster.workers)]
        assert all(map(psutil.pid_exists, pids))
        listening = {
            entry.laddr.ip.removeprefix("::ffff:")
            for pid in pids
            for entry in psutil.Process(pid).net_connections(kind="tcp")
            if entry.status == psutil.CONN_LISTEN
        }
        assert listening <= {"127.0.0.1"}, "on loopback only"
    assert not any(map(psutil.pid_exists, pids))
    assert not Path(cluster.directory).exists()
