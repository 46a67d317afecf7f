"""Doubles and servers for tests of pipelines, yours and ours.

=====================  ==================================================================================
`MemoryLog`            a log without a file
`SettableClock`        time that stands still until it is told
`ScriptedSource`       a database that commits what the test says, and can lose its connection
`fault`                named points at which a test kills the process (`headrace.faults`)
`postgres`             a real PostgreSQL on loopback, gone at the end (`headrace.testing.servers`)
`kafka_broker`         a real Kafka broker; needs Java 17, and Maven once
`kafka_connect`        Kafka Connect with Debezium
`schema_registry`      a schema registry with Confluent's interface
`check_learner`        the conformance suite of learners (`headrace.testing.learners`)
=====================  ==================================================================================

Each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "MemoryLog": "headrace.log.memory",
    "SettableClock": "headrace.testing.clock",
    "ScriptedSource": "headrace.testing.source",
    "fault": "headrace.faults",
    "postgres": "headrace.testing.servers",
    "PostgresServer": "headrace.testing.servers",
    "kafka_broker": "headrace.testing.servers",
    "KafkaBroker": "headrace.testing.servers",
    "kafka_connect": "headrace.testing.servers",
    "KafkaConnect": "headrace.testing.servers",
    "schema_registry": "headrace.testing.servers",
    "SchemaRegistryServer": "headrace.testing.servers",
    "check_learner": "headrace.testing.learners",
}

__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
