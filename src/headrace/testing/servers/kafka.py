"""A Kafka broker: one node, KRaft, broker and controller in one process."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from headrace.testing.servers.jars import jars
from headrace.testing.servers.java import JavaServer, ServerFailed, listens
from headrace.testing.servers.places import free_port

CLUSTER = "aGVhZHJhY2UtdGVzdHMuLg"  # any 16 bytes in base64

# One node, and no waiting: a group's first member is not kept for others, internal topics are small.
SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    # A killed broker is let in again when its session has ended; its attempts grow from 0.1 s to this.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    # An index file is allocated whole: 10 MB a partition by default.
    "log.index.size.max.bytes": "1048576",
}


class KafkaBroker(JavaServer):
    """One Kafka 4 on loopback. Topics are made with `create_topic`: it makes none by itself.

    Args:
        directory: where its data go. A temporary one by default.
        settings: further settings of a broker, over `SETTINGS` (https://kafka.apache.org/documentation/#brokerconfigs).
        heap: the most that Java's heap may take.
        port: where it listens; a free one by default.

    Raises:
        JavaMissing: there is no Java.

    >>> with KafkaBroker() as broker:  # doctest: +SKIP
    ...     broker.create_topic("flink.public.iris_train")
    ...     broker.kill()
    ...     broker.start()
    """

    name: ClassVar[str] = "kafka"

    def __init__(
        self,
        directory: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        heap: str | None = None,
        port: int | None = None,
    ) -> None:
        super().__init__(directory, heap=heap, port=port)
        self.settings = {**SETTINGS, **self._places(free_port()), **(settings or {})}

    @property
    def bootstrap(self) -> str:
        """The address that a client calls `bootstrap.servers`."""
        return f"127.0.0.1:{self.port}"

    def create_topic(self, name: str, partitions: int = 1, *, config: Mapping[str, str] | None = None) -> None:
        """Make a topic, and wait until it is there.

        Raises:
            confluent_kafka.KafkaException: there is one of that name.
        """
        from confluent_kafka.admin import NewTopic

        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=dict(config or {}))
        admin = self.admin()  # held: its futures fail when it is collected
        admin.create_topics([topic], operation_timeout=30)[name].result(30)

    def admin(self) -> Any:
        """A `confluent_kafka.admin.AdminClient` of this broker."""
        from confluent_kafka.admin import AdminClient

        # What librdkafka says about a broker that is not up yet is no news here.
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def _places(self, controller: int) -> dict[str, str]:
        return {
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://127.0.0.1:{controller}",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "log.dirs": str(self.directory / "data"),
        }

    def _prepare(self) -> None:
        (self.directory / "server.properties").write_text(properties(self.settings))
        if not (self.directory / "data").exists():
            self._format()

    def _format(self) -> None:
        """Give the data directory its identity, without which a KRaft broker does not start."""
        tool = ["-cp", f"{jars('kafka')}/*", "kafka.tools.StorageTool", "format", "-t", CLUSTER]
        command = [str(self.java), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", *tool, "-c", "server.properties"]
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise ServerFailed(f"{self.name} cannot format {self.directory / 'data'}:\n{done.stdout}{done.stderr}")

    def _arguments(self) -> list[str]:
        return ["-Dlog4j2.level=WARN", "-cp", f"{jars('kafka')}/*", "kafka.Kafka", "server.properties"]

    def _answers(self) -> bool:
        if not listens(self.port):
            return False
        from confluent_kafka import KafkaException

        with contextlib.suppress(KafkaException):
            return bool(self.admin().list_topics(timeout=2).brokers)
        return False


def properties(settings: Mapping[str, str]) -> str:
    """Settings as a Java properties file.

    >>> print(properties({"node.id": "1", "log.dirs": "C:\\\\data"}), end="")
    node.id=1
    log.dirs=C:\\\\data
    """
    return "".join(f"{name}={value}\n".replace("\\", "\\\\") for name, value in settings.items())


@contextlib.contextmanager
def kafka_broker(**options: Any) -> Iterator[str]:
    """A broker in a temporary directory, removed at the end: its `bootstrap.servers`.

    Takes what `KafkaBroker` takes; use that class itself to kill and restart it.

    >>> with kafka_broker() as bootstrap:  # doctest: +SKIP
    ...     print(bootstrap)
    127.0.0.1:40213
    """
    with KafkaBroker(**options) as broker:
        yield broker.bootstrap
