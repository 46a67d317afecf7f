"""A session cluster of Flink, by the scripts that the wheel of apache-flink brings."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from headrace.testing.servers.clusters import JavaCluster, asked, package_home
from headrace.testing.servers.java import JVM, JavaServer
from headrace.testing.servers.places import free_directory, free_port

# Packages of Java that Flink looks into, as its own configuration opens them.
_OPENED = ("lang", "net", "io", "nio", "math", "text", "time", "util", "lang.reflect", "util.concurrent")
_OPENED_DEEPER = ("java.util.concurrent.atomic", "java.util.concurrent.locks", "sun.nio.ch")
SETTINGS = {
    "jobmanager.memory.process.size": "800m",
    "taskmanager.memory.process.size": "1200m",
    "taskmanager.memory.managed.size": "64m",
    "taskmanager.memory.network.max": "64m",
    # A member that was killed is missed after seconds, not after a minute.
    "heartbeat.interval": "1000",
    "heartbeat.timeout": "5000",
    "cluster.io-pool.size": "4",
    "classloader.check-leaked-classloader": "false",
}


class _FlinkServer(JavaServer):
    """A daemon of Flink, by its script; ``config.yaml`` is the cluster's."""

    script: ClassVar[str]

    def __init__(self, directory: Path, conf: Path, *, port: int | None = None) -> None:
        self.home = package_home("pyflink", "flink")
        super().__init__(directory, port=port)
        self.conf = conf

    def _prepare(self) -> None:
        (self.directory / "log").mkdir(exist_ok=True)

    def _command(self) -> list[str]:
        return ["/bin/bash", str(self.home / "bin" / self.script), "start-foreground", *self._arguments()]

    def _arguments(self) -> list[str]:
        return []

    def _environment(self) -> dict[str, str]:
        return {
            "FLINK_HOME": str(self.home),
            "FLINK_CONF_DIR": str(self.conf),
            "FLINK_LOG_DIR": str(self.directory / "log"),
            "FLINK_PID_DIR": str(self.directory),
            "JAVA_HOME": str(self.java.resolve().parents[1]),
            # The script asks «python» where the distribution is.
            "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }


class JobManager(_FlinkServer):
    """The job manager of a `FlinkCluster`; jobs are given to its REST interface."""

    name: ClassVar[str] = "flink-jobmanager"
    script: ClassVar[str] = "jobmanager.sh"

    @property
    def page(self) -> str:
        """Its page, for a browser, and its REST interface."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str) -> Any:
        """Ask its REST interface (https://nightlies.apache.org/flink/flink-docs-stable/docs/ops/rest_api/).

        Returns:
            What it responds; None while it does not.
        """
        return asked(f"{self.page}/{path.lstrip('/')}")

    def _answers(self) -> bool:
        return self.ask("overview") is not None


class TaskManager(_FlinkServer):
    """A task manager of a `FlinkCluster`."""

    name: ClassVar[str] = "flink-taskmanager"
    script: ClassVar[str] = "taskmanager.sh"

    def __init__(self, directory: Path, conf: Path, jobmanager: JobManager) -> None:
        super().__init__(directory, conf)
        self.jobmanager = jobmanager
        self._starts = 0

    @property
    def id(self) -> str:
        """Its resource id: another one at each start, since one that was killed is known for seconds after."""
        return f"{self.directory.name}-{self._starts}"

    def _prepare(self) -> None:
        super()._prepare()
        self._starts += 1

    def _arguments(self) -> list[str]:
        return [f"-Dtaskmanager.resource-id={self.id}", f"-Dtaskmanager.rpc.port={free_port()}"]

    def _answers(self) -> bool:
        known = self.jobmanager.ask("taskmanagers") or {}
        return any(member["id"] == self.id for member in known.get("taskmanagers", []))


class FlinkCluster(JavaCluster):
    """A job manager and task managers on loopback: a session cluster, to which jobs are given.

    Args:
        taskmanagers: how many; each is a process.
        slots: of each task manager.
        settings: further options of Flink, over `SETTINGS`.
        directory: where configuration and logs go. A temporary one by default.

    Raises:
        MissingExtra: apache-flink is not installed.
        JavaMissing: there is no Java.

    >>> with FlinkCluster() as cluster:  # doctest: +SKIP
    ...     app.run(engine="flink", jobmanager=cluster.place)
    """

    def __init__(
        self,
        taskmanagers: int = 2,
        *,
        slots: int = 2,
        settings: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        directory = directory or free_directory("headrace-flink-")
        conf = directory / "conf"
        head = JobManager(directory / "jobmanager", conf)
        others = [TaskManager(directory / f"taskmanager{i}", conf, head) for i in range(1, taskmanagers + 1)]
        super().__init__(directory, head, others)
        self.settings = {**self._places(head.port), **SETTINGS, "taskmanager.numberOfTaskSlots": str(slots)}
        self.settings |= settings or {}

    @property
    def place(self) -> str:
        """``host:port`` of the job manager's REST interface."""
        return f"127.0.0.1:{self.head.port}"

    @property
    def page(self) -> str:
        """The job manager's page, for a browser."""
        return f"http://{self.place}"

    def start(self) -> None:
        """Start what does not run, and wait until every task manager is registered; see `JavaCluster.start`."""
        assert isinstance(self.head, JobManager)
        conf = self.head.conf
        if not conf.exists():
            shutil.copytree(self.head.home / "conf", conf)
        (conf / "config.yaml").write_text("".join(f"{name}: {value}\n" for name, value in self.settings.items()))
        super().start()

    def _places(self, rest: int) -> dict[str, str]:
        opened = [*(f"java.{package}" for package in _OPENED), *_OPENED_DEEPER]
        java = [*JVM, "--add-exports=java.rmi/sun.rmi.registry=ALL-UNNAMED"]
        java += [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in opened]
        return {
            "jobmanager.rpc.address": "127.0.0.1",
            "jobmanager.rpc.port": str(free_port()),
            "jobmanager.bind-host": "127.0.0.1",
            "taskmanager.host": "127.0.0.1",
            "taskmanager.bind-host": "127.0.0.1",
            "rest.address": "127.0.0.1",
            "rest.bind-address": "127.0.0.1",
            "rest.port": str(rest),
            "env.java.opts.all": " ".join(java),
        }


@contextlib.contextmanager
def flink_cluster(taskmanagers: int = 2, **options: Any) -> Iterator[str]:
    """A cluster in a temporary directory, removed at the end: ``host:port`` of its job manager.

    Takes what `FlinkCluster` takes; use that class itself to kill and restart its servers.
    """
    with FlinkCluster(taskmanagers, **options) as cluster:
        yield cluster.place
