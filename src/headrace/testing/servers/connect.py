"""Kafka Connect with Debezium: one worker of the distributed mode, told what to do over REST."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from headrace.errors import HeadraceError
from headrace.testing.servers.jars import jars
from headrace.testing.servers.java import JavaServer, ServerFailed, responds
from headrace.testing.servers.kafka import properties
from headrace.testing.servers.postgres import PostgresServer

PLUGINS = ("debezium-postgres", "debezium-jdbc")
SETTINGS = {
    "key.converter": "org.apache.kafka.connect.json.JsonConverter",
    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
    "config.storage.topic": "connect-configs",
    "config.storage.replication.factor": "1",
    "offset.storage.topic": "connect-offsets",
    "offset.storage.replication.factor": "1",
    "offset.storage.partitions": "1",
    "status.storage.topic": "connect-status",
    "status.storage.replication.factor": "1",
    "status.storage.partitions": "1",
    # Plug-ins say in META-INF/services what they are: reading that takes 3 s, searching all classes 15 s.
    "plugin.discovery": "service_load",
    "scheduled.rebalance.max.delay.ms": "0",
}
# A connector's settings for the least delay between a commit and its message (the defaults poll every 500 ms).
LOW_LATENCY = {"poll.interval.ms": "1", "producer.override.linger.ms": "0"}


class KafkaConnect(JavaServer):
    """One Kafka Connect worker on loopback; its REST interface is at `url`.

    It keeps connectors and offsets in topics of the broker: after `stop` or `kill`, `start` goes on with them. Each
    start is a group of its own, so that it need not wait until the broker has given up the worker before it.

    Args:
        bootstrap: the broker's `host:port`.
        plugins: names of `headrace.testing.servers.jars.PINNED`: "debezium-postgres", "debezium-jdbc", "avro".
        directory: where its settings, plug-ins and log go. A temporary one by default.
        settings: further settings of the worker (https://kafka.apache.org/documentation/#connectconfigs), over
            `SETTINGS`. Two workers on one broker need other storage topics.
        heap: the most that Java's heap may take.

    Raises:
        JavaMissing: there is no Java.

    >>> with kafka_broker() as bootstrap, KafkaConnect(bootstrap) as connect:  # doctest: +SKIP
    ...     connect.create("iris", debezium_source(server, tables="public.iris_.*"))
    ...     connect.wait_running("iris")
    """

    name: ClassVar[str] = "connect"

    def __init__(
        self,
        bootstrap: str,
        plugins: Sequence[str] = PLUGINS,
        *,
        directory: Path | None = None,
        settings: Mapping[str, str] | None = None,
        heap: str | None = None,
    ) -> None:
        super().__init__(directory, heap=heap)
        self.bootstrap = bootstrap
        self.plugins = tuple(plugins)
        self.settings = {**SETTINGS, **(settings or {})}
        self._starts = 0

    @property
    def url(self) -> str:
        """The address of its REST interface."""
        return f"http://127.0.0.1:{self.port}"

    def create(self, name: str, config: Mapping[str, object]) -> None:
        """Make a connector, or give it other settings. It runs a moment later: see `wait_running`.

        Raises:
            HeadraceError: Connect refuses the settings; the message says which.
        """
        self._ask("PUT", f"connectors/{quote(name)}/config", {key: str(value) for key, value in config.items()})

    def status(self, name: str) -> dict[str, Any]:
        """Ask Connect about a connector: its state, and that of its tasks, with stack traces of failures."""
        found: dict[str, Any] = self._ask("GET", f"connectors/{quote(name)}/status")
        return found

    def wait_running(self, name: str, *, timeout: float = 60) -> None:
        """Wait until a connector and all of its tasks (one at least) run.

        Raises:
            ServerFailed: one of them failed, with its stack trace; or the time is up.
        """
        deadline = time.monotonic() + timeout
        while True:
            states = self._states(name)
            if len(states) > 1 and set(states) == {"RUNNING"}:
                return
            if "FAILED" in states:
                raise ServerFailed(f"connector «{name}» failed: {json.dumps(self.status(name), indent=1)}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"connector «{name}» does not run after {timeout:.0f} s: {states}\n{self.tail()}")
            time.sleep(0.05)

    def delete(self, name: str) -> None:
        """Forget a connector; Connect keeps its offsets. Its tasks end, and let go of their slot, a moment later."""
        self._ask("DELETE", f"connectors/{quote(name)}")

    def pause(self, name: str) -> None:
        """Let a connector's tasks rest, with what they hold."""
        self._ask("PUT", f"connectors/{quote(name)}/pause")

    def resume(self, name: str) -> None:
        """End a pause."""
        self._ask("PUT", f"connectors/{quote(name)}/resume")

    def _states(self, name: str) -> list[str]:
        """The states of a connector and its tasks; none when Connect does not know it yet."""
        try:
            status = self.status(name)
        except HeadraceError:
            return []
        return [part["state"] for part in (status["connector"], *status["tasks"])]

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        """Send a request; while the group of workers settles (409), send it again."""
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(
            f"{self.url}/{path}", data, {"Content-Type": "application/json"}, method=method
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                text = error.read().decode(errors="replace")
                if error.code != 409 or time.monotonic() > deadline:
                    raise HeadraceError(f"Connect answers {error.code} to {method} {path}: {text}") from error
            time.sleep(0.1)

    def _prepare(self) -> None:
        folder = self.directory / "plugins"
        folder.mkdir(exist_ok=True)
        for name in self.plugins:
            for plugin in _plugins(jars(name)):
                link = folder / (plugin.name if plugin.name != jars(name).name else name)
                if not link.exists():
                    link.symlink_to(plugin)
        self._starts += 1
        (self.directory / "worker.properties").write_text(
            properties(
                {
                    "bootstrap.servers": self.bootstrap,
                    "group.id": f"connect-{self.port}-{self._starts}",
                    "listeners": self.url,
                    "rest.advertised.host.name": "127.0.0.1",
                    "plugin.path": str(folder),
                    **self.settings,
                }
            )
        )

    def _arguments(self) -> list[str]:
        main = "org.apache.kafka.connect.cli.ConnectDistributed"
        return ["-Dlog4j2.level=WARN", "-cp", f"{jars('connect')}/*", main, "worker.properties"]

    def _answers(self) -> bool:
        # «/» answers before the worker has joined its group.
        return responds(f"{self.url}/connectors")


def _plugins(folder: Path) -> list[Path]:
    """The plug-ins in a folder: itself when it holds jars, otherwise the folders in it."""
    return [folder] if any(folder.glob("*.jar")) else [item for item in folder.iterdir() if item.is_dir()]


def debezium_source(
    server: PostgresServer, *, prefix: str = "flink", tables: str, slot: str = "debezium", **settings: object
) -> dict[str, str]:
    """The settings of a Debezium connector that captures tables of an embedded PostgreSQL.

    It uses `pgoutput`: Debezium's default, `decoderbufs`, is a plug-in of the server that this one has not. The slot
    is dropped when the connector stops.

    Args:
        server: the database.
        prefix: what names of topics begin with (`topic.prefix`).
        tables: regular expressions of the tables (`table.include.list`), separated by commas.
        slot: the replication slot's name; another for each connector.
        settings: more of the connector's settings, dots written as `__`.

    >>> config = debezium_source(server, tables="public.a", poll__interval__ms=10)  # doctest: +SKIP
    """
    return {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "tasks.max": "1",
        "database.hostname": "127.0.0.1",
        "database.port": str(server.port),
        "database.user": "postgres",
        "database.password": "postgres",
        "database.dbname": "postgres",
        "plugin.name": "pgoutput",
        "slot.name": slot,
        "slot.drop.on.stop": "true",
        "publication.name": slot,
        # The broker makes no topics by itself; with these two Connect does.
        "topic.creation.default.replication.factor": "1",
        "topic.creation.default.partitions": "1",
        "topic.prefix": prefix,
        "table.include.list": tables,
        **{name.replace("__", "."): str(value) for name, value in settings.items()},
    }


def avro_converters(registry: str) -> dict[str, str]:
    """A connector's settings for keys and values in Avro, as Confluent writes them; the plug-in is "avro".

    Args:
        registry: the Confluent-compatible address of a `SchemaRegistryServer`.
    """
    home = registry.partition("/apis/")[0]
    return {
        f"{part}.converter{name}": value
        for part in ("key", "value")
        for name, value in {
            "": "io.apicurio.registry.utils.converter.AvroConverter",
            ".apicurio.registry.url": f"{home}/apis/registry/v2",
            ".apicurio.registry.auto-register": "true",
            ".apicurio.registry.find-latest": "true",
            ".apicurio.registry.as-confluent": "true",
            ".apicurio.registry.use-id": "contentId",
            ".apicurio.registry.headers.enabled": "false",
        }.items()
    }


@contextlib.contextmanager
def kafka_connect(bootstrap: str, plugins: Sequence[str] = PLUGINS, **options: Any) -> Iterator[KafkaConnect]:
    """A Kafka Connect worker in a temporary directory, removed at the end. Takes what `KafkaConnect` takes."""
    with KafkaConnect(bootstrap, plugins, **options) as connect:
        yield connect
