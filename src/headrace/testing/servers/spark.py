"""A standalone cluster of Spark, from what the wheel of pyspark brings."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from headrace.testing.servers.clusters import JavaCluster, asked, package_home
from headrace.testing.servers.java import JavaServer
from headrace.testing.servers.places import free_directory, free_port


class _SparkServer(JavaServer):
    """A daemon of Spark."""

    heap = "256m"

    def __init__(self, directory: Path, host: str = "127.0.0.1") -> None:
        self.host = host
        self.home = package_home("pyspark", "spark")
        super().__init__(directory)
        self.ui_port = free_port()

    @property
    def page(self) -> str:
        """Its page, for a browser."""
        return f"http://127.0.0.1:{self.ui_port}"

    def _prepare(self) -> None:
        pass

    def _environment(self) -> dict[str, str]:
        # The wheel has no launcher for daemons, which would set these: a worker starts executors by them.
        return {
            "SPARK_HOME": str(self.home),
            "SPARK_SCALA_VERSION": "2.13",
            "SPARK_LOCAL_IP": self.host,
            "PYSPARK_PYTHON": sys.executable,
        }

    def _daemon(self, main: str, *arguments: str) -> list[str]:
        ports = ["--host", self.host, "--port", str(self.port), "--webui-port", str(self.ui_port)]
        return ["-cp", f"{self.home / 'jars'}/*", main, *ports, *arguments]


class SparkMaster(_SparkServer):
    """The master of a `SparkCluster`."""

    name: ClassVar[str] = "spark-master"

    @property
    def url(self) -> str:
        """What Spark calls `master`."""
        return f"spark://127.0.0.1:{self.port}"

    def state(self) -> dict[str, Any]:
        """Ask it about its workers and applications; empty while it does not respond."""
        return asked(f"{self.page}/json/") or {}

    def _arguments(self) -> list[str]:
        return self._daemon("org.apache.spark.deploy.master.Master")

    def _answers(self) -> bool:
        return bool(self.state())


class SparkWorker(_SparkServer):
    """A worker of a `SparkCluster`. An executor that it has started ends with it."""

    name: ClassVar[str] = "spark-worker"

    def __init__(self, directory: Path, master: SparkMaster, *, host: str, cores: int, memory: str) -> None:
        super().__init__(directory, host)
        self.master = master
        self.cores = cores
        self.memory = memory

    def _arguments(self) -> list[str]:
        offered = ["--cores", str(self.cores), "--memory", self.memory, "--work-dir", str(self.directory / "work")]
        return self._daemon("org.apache.spark.deploy.worker.Worker", *offered, self.master.url)

    def _answers(self) -> bool:
        workers = self.master.state().get("workers", [])
        return any(known["port"] == self.port and known["state"] == "ALIVE" for known in workers)


class SparkCluster(JavaCluster):
    """A standalone master and workers on loopback.

    Executors run the Python of this process, unless an application says otherwise (``spark.pyspark.python``).

    Args:
        workers: how many; each is a process, and starts an executor for an application.
        cores: of each worker.
        memory: that each worker has for executors; one takes 1 GB where nothing else is said.
        directory: where data and logs go. A temporary one by default.

    Raises:
        MissingExtra: pyspark is not installed.
        JavaMissing: there is no Java.

    >>> with SparkCluster() as cluster:  # doctest: +SKIP
    ...     app.run(engine="spark", master=cluster.place)
    """

    def __init__(self, workers: int = 2, *, cores: int = 1, memory: str = "1g", directory: Path | None = None) -> None:
        directory = directory or free_directory("headrace-spark-")
        head = SparkMaster(directory / "master")
        # Workers have directories of their own: executors write there. And hosts, of which loopback has many: a slow
        # task is run once more on another host only.
        others = [
            SparkWorker(directory / f"worker{i}", head, host=f"127.0.0.{i}", cores=cores, memory=memory)
            for i in range(1, workers + 1)
        ]
        super().__init__(directory, head, others)

    @property
    def place(self) -> str:
        """What Spark calls `master`: ``spark://host:port``."""
        return f"spark://127.0.0.1:{self.head.port}"

    @property
    def page(self) -> str:
        """The master's page, for a browser: workers, and applications with a link to theirs."""
        assert isinstance(self.head, SparkMaster)
        return self.head.page


@contextlib.contextmanager
def spark_cluster(workers: int = 2, **options: Any) -> Iterator[str]:
    """A cluster in a temporary directory, removed at the end: its ``spark://host:port``.

    Takes what `SparkCluster` takes; use that class itself to kill and restart its servers.
    """
    with SparkCluster(workers, **options) as cluster:
        yield cluster.place
