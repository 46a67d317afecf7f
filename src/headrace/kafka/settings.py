"""Locations of logs on Kafka, and settings of their clients.

``kafka://host:port[,host:port][/NAME][?partitions=N&replication=N]``; everything else is librdkafka's own
(https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md), from two places that are never printed:

- a file of ``property=value`` lines, named by ``HEADRACE_KAFKA_CONFIG``, as Kafka's command line tools read it;
- the environment: ``HEADRACE_KAFKA_SASL_PASSWORD`` is ``sasl.password``, and so on; it wins over the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from headrace.errors import DeclarationError

SCHEME = "kafka://"
PREFIX = "HEADRACE_KAFKA_"
CONFIG = "HEADRACE_KAFKA_CONFIG"
_OPTIONS = ("partitions", "replication")
# What exactly-once depends on is not the user's to change.
_OURS = frozenset(
    {
        "auto.offset.reset",
        "bootstrap.servers",
        "enable.auto.commit",
        "enable.idempotence",
        "isolation.level",
        "partitioner",
        "transactional.id",
    }
)
# The names that Java's tools use for what librdkafka calls otherwise.
_JAVA = {"sasl.mechanism": "sasl.mechanisms", "ssl.truststore.certificates": "ssl.ca.pem"}


@dataclass(frozen=True, slots=True)
class KafkaLocation:
    """The location of a log on a cluster.

    Attributes:
        bootstrap: ``host:port[,host:port]``.
        name: the pipeline's, "" where none is given.
        partitions: of topics that are made.
        replication: of topics that are made; -1 is the broker's default.
        settings: librdkafka's properties; they may hold secrets and are in no ``repr``.
    """

    bootstrap: str
    name: str = ""
    partitions: int = 1
    replication: int = -1
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, location: str, *, name: str = "", environ: Mapping[str, str] | None = None) -> KafkaLocation:
        """Read a location as the user writes it, and the settings that the environment adds.

        Raises:
            DeclarationError: it is no such location, or a setting is not the user's to change.

        >>> KafkaLocation.parse("kafka://a:9092,b:9092/iris?partitions=4", environ={})
        KafkaLocation(bootstrap='a:9092,b:9092', name='iris', partitions=4, replication=-1)
        """
        rest, _, query = location.removeprefix(SCHEME).partition("?")
        bootstrap, _, path = rest.partition("/")
        if "@" in bootstrap:
            raise DeclarationError(
                "a Kafka location holds no user or password",
                advice=f"Set {PREFIX}SASL_USERNAME and {PREFIX}SASL_PASSWORD, or {CONFIG}=FILE.",
            )
        if not re.fullmatch(r"[^,\s:]+:\d+(,[^,\s:]+:\d+)*|\[[0-9a-fA-F:]+\]:\d+", bootstrap):
            raise DeclarationError(
                f"«{location}» names no broker", advice="Write kafka://host:port[,host:port][/NAME]."
            )
        options = _options(location, query)
        settings = read_settings(os.environ if environ is None else environ)
        return cls(bootstrap, path.strip("/") or name, settings=settings, **options)

    @property
    def url(self) -> str:
        """As the user would write it, without options."""
        return f"{SCHEME}{self.bootstrap}" + (f"/{self.name}" if self.name else "")

    def client(self, **properties: Any) -> dict[str, Any]:
        """Return the properties of a client: the user's, then ours."""
        return {
            "bootstrap.servers": self.bootstrap,
            "client.id": f"headrace-{self.name}" if self.name else "headrace",
            # What goes wrong comes as errors and status lines; librdkafka itself would write to standard error.
            "log_level": 0,
            "socket.keepalive.enable": True,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 2000,
            "topic.metadata.refresh.interval.ms": 30_000,
            **self.settings,
            **{name.replace("_", "."): value for name, value in properties.items()},
        }


def _options(location: str, query: str) -> dict[str, int]:
    options = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _OPTIONS or not re.fullmatch(r"-1|[1-9]\d*", value):
            raise DeclarationError(
                f"«{key}={value}» says nothing about a log at {location.partition('?')[0]}",
                advice=f"Options are {', '.join(_OPTIONS)}; client properties come from {PREFIX}… or {CONFIG}.",
            )
        options[key] = int(value)
    return options


def read_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Read librdkafka's properties from the file and the environment.

    Raises:
        DeclarationError: the file cannot be read, or names what exactly-once depends on.

    >>> read_settings({"HEADRACE_KAFKA_SASL_USERNAME": "ann", "HEADRACE_KAFKA_SECURITY_PROTOCOL": "SASL_SSL"})
    {'sasl.username': 'ann', 'security.protocol': 'SASL_SSL'}
    """
    found: dict[str, str] = {}
    if environ.get(CONFIG):
        found |= _read_file(Path(environ[CONFIG]))
    for name in sorted(environ):
        if name.startswith(PREFIX) and name != CONFIG:
            found[name.removeprefix(PREFIX).lower().replace("_", ".")] = environ[name]
    found = {_JAVA.get(name, name): value for name, value in found.items()}
    for name in sorted(found.keys() & _OURS):
        raise DeclarationError(
            f"the Kafka property «{name}» is set by Headrace", advice=f"Take it out of {CONFIG} and of the environment."
        )
    return found


def _read_file(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise DeclarationError(f"{CONFIG}={path}: {error.strerror}") from error
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith(("#", "!")):
            continue
        name, separator, value = text.partition("=")
        if not separator:
            # The line itself may hold a secret.
            raise DeclarationError(f"{path}:{number}: not a line of the form property=value")
        found[name.strip()] = value.strip()
    found.pop("bootstrap.servers", None)
    return found
