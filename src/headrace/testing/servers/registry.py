"""A schema registry: Apicurio, which speaks Confluent's interface."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from headrace.testing.servers.jars import jars
from headrace.testing.servers.java import JavaServer, responds


class SchemaRegistryServer(JavaServer):
    """One Apicurio Registry on loopback.

    Args:
        directory: where its log and its database go. A temporary one by default.
        keep: whether schemas outlive a restart and a kill, in an H2 file; otherwise they are in memory, which starts
            a little sooner.
        heap: the most that Java's heap may take.

    Raises:
        JavaMissing: there is no Java.

    >>> with SchemaRegistryServer(keep=True) as registry:  # doctest: +SKIP
    ...     registry.url
    'http://127.0.0.1:40213/apis/ccompat/v7'
    """

    name: ClassVar[str] = "registry"
    heap = "256m"

    def __init__(self, directory: Path | None = None, *, keep: bool = False, heap: str | None = None) -> None:
        super().__init__(directory, heap=heap)
        self.keep = keep

    @property
    def url(self) -> str:
        """The address that Confluent's clients call `url`, or `schema.registry.url`."""
        return f"http://127.0.0.1:{self.port}/apis/ccompat/v7"

    @property
    def _database(self) -> str:
        if self.keep:
            # By default H2 writes half a second after a commit.
            return f"jdbc:h2:file:{self.directory / 'schemas'};DB_CLOSE_DELAY=-1;WRITE_DELAY=0"
        return f"jdbc:h2:mem:registry{self.port};DB_CLOSE_DELAY=-1"

    def _prepare(self) -> None:
        jars("apicurio")

    def _arguments(self) -> list[str]:
        (runner,) = jars("apicurio").glob("*-runner.jar")
        settings = {
            "quarkus.http.host": "127.0.0.1",
            "quarkus.http.port": str(self.port),
            "quarkus.management.enabled": "false",
            "quarkus.log.level": "WARN",
            "quarkus.banner.enabled": "false",
            "apicurio.storage.kind": "sql",
            "apicurio.storage.sql.kind": "h2",
            "apicurio.datasource.url": self._database,
        }
        return [*(f"-D{name}={value}" for name, value in settings.items()), "-jar", str(runner)]

    def _answers(self) -> bool:
        return responds(f"{self.url}/subjects")


@contextlib.contextmanager
def schema_registry(**options: Any) -> Iterator[str]:
    """A schema registry in a temporary directory, removed at the end: its Confluent-compatible address.

    Takes what `SchemaRegistryServer` takes; use that class itself to kill and restart it.
    """
    with SchemaRegistryServer(**options) as registry:
        yield registry.url
