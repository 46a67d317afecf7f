"""What tests of engines share: topics as Debezium writes them, and what a pipeline leaves behind."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.crash import harness

import headrace as hr
from headrace.formats.topic_formats import codec_for
from headrace.log import open_log
from headrace.log.base import Log
from headrace.registry.models import read_progress
from headrace.testing.servers import KafkaBroker

SECONDS = 240.0
# Commits lie ahead of the clock, so that no silence ends a cut.
LATER_MS = (int(time.time()) + 3600) * 1000

Row = dict[str, Any]
Options = dict[str, Any]
Declare = Callable[[hr.App, hr.Topics], None]
TABLES = {"train": 2, "test": 1, "asked": 1, "told": 1}


class Change(NamedTuple):
    """One row that a transaction writes."""

    table: str
    after: Row | None
    before: Row | None = None
    op: str = "c"


Transaction = Sequence[Change]


@dataclass
class Database:
    """Tables whose changes Debezium has written: a topic for each, and one that says where transactions end.

    Attributes:
        brokers: each gets the same topics.
        tables: partitions of their topics.
        schemas: whether each message has its schema.
    """

    brokers: Sequence[KafkaBroker]
    prefix: str
    tables: Mapping[str, int] = field(default_factory=lambda: TABLES)
    transactions: int = 0
    events: int = 0
    schemas: bool = False

    def __post_init__(self) -> None:
        for broker in self.brokers:
            for name, partitions in self.tables.items():
                broker.create_topic(f"{self.prefix}.public.{name}", partitions)
            broker.create_topic(f"{self.prefix}.transaction")

    def commit(self, transactions: Sequence[Transaction]) -> None:
        """Write some transactions: rows of tables, in order."""
        from confluent_kafka import Producer

        begun = self.transactions, self.events
        for broker in self.brokers:
            self.transactions, self.events = begun
            producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 5, "log_level": 0})
            for changes in transactions:
                self._commit(producer, changes)
            assert producer.flush(60) == 0

    def _commit(self, producer: Any, changes: Transaction) -> None:
        self.transactions += 1
        number = self.transactions
        for order, change in enumerate(changes, 1):
            self.events += 1
            ts_ms = LATER_MS + number * 300
            source = {"lsn": 10_000 + self.events, "ts_ms": ts_ms, "txId": number, "schema": "public"}
            source |= {"table": change.table, "sequence": json.dumps([str(number * 10), str(10_000 + self.events)])}
            about = {"id": f"{number}:{self.events}", "total_order": order, "data_collection_order": order}
            event = {"before": change.before, "after": change.after, "source": source, "op": change.op}
            event |= {"ts_ms": ts_ms, "transaction": about}
            row = change.after or change.before or {}
            key = json.dumps({"id": row["id"]}).encode() if "id" in row else None
            topic = f"{self.prefix}.public.{change.table}"
            if self.schemas:
                event = {"schema": schema_of(row), "payload": event}
            producer.produce(topic, json.dumps(event, default=encoded).encode(), key)
            if change.op == "d":
                producer.produce(topic, None, key)
        tables = [change.table for change in changes]
        counts = [
            {"data_collection": f"public.{table}", "event_count": tables.count(table)} for table in sorted(set(tables))
        ]
        end = {"status": "END", "id": f"{number}:9", "event_count": len(changes), "data_collections": counts}
        producer.produce(f"{self.prefix}.transaction", json.dumps(end).encode())


def encoded(value: bytes) -> str:
    """Return bytes as Kafka Connect's JSON has them."""
    return base64.b64encode(value).decode()


KINDS = {bool: "boolean", int: "int64", float: "double", str: "string", bytes: "bytes"}


def schema_of(row: Row) -> dict[str, Any]:
    """Return what Kafka Connect says of a message, of whose columns none is NULL."""
    columns = [{"field": name, "type": KINDS[type(value)], "optional": True} for name, value in row.items()]
    fields = [{"field": name, "type": "struct", "optional": True, "fields": columns} for name in ("before", "after")]
    source = {"lsn": "int64", "ts_ms": "int64", "txId": "int64", "schema": "string", "table": "string"}
    about = {"id": "string", "total_order": "int64", "data_collection_order": "int64"}
    for name, parts in {"source": {**source, "sequence": "string"}, "transaction": about}.items():
        found = [{"field": part, "type": kind, "optional": True} for part, kind in parts.items()]
        fields.append({"field": name, "type": "struct", "optional": True, "fields": found})
    fields += [{"field": name, "type": kind, "optional": True} for name, kind in (("op", "string"), ("ts_ms", "int64"))]
    return {"type": "struct", "optional": False, "fields": fields}


@dataclass
class Outcome:
    """What a pipeline leaves behind: rows by topic and position, and where its models are."""

    rows: dict[str, list[dict[str, Any]]]
    models: dict[str, Any]


def written(app: hr.App, log: Log) -> list[str]:
    """Return the topics that a pipeline has written, dead letters included."""
    own = {output.topic for task in app.plan().tasks for output in task.outputs}
    return [topic for topic in log.topics() if topic in own or topic.endswith(".dlq")]


def outcome(app: hr.App, log: Log) -> Outcome:
    """Read a log, at the end of a life."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for topic in written(app, log):
        found = [row for entry in log.read_topic(topic, limit=10**9) for row in entry.records.to_pylist()]
        # How rows were grouped into slices is an engine's: their order is that of their positions.
        rows[topic.removeprefix(app.name)] = sorted(found, key=lambda row: (row["__lsn"], row["__index"], str(row)))
    models = {}
    for model in app.plan().models:
        progress = read_progress(log, model.name)
        assert progress is not None
        models[model.name] = (progress.hash, progress.version, progress.position, progress.pending, progress.counters)
    return Outcome(rows, models)


@contextlib.contextmanager
def opened(app: hr.App) -> Iterator[Log]:
    log = open_log(app.log, writer=False, name=app.name, codec=codec_for(app.plan().formats))
    with contextlib.closing(log):
        yield log


def messages(broker: KafkaBroker, topic: str) -> list[tuple[Any, ...]]:
    """Return keys, values and headers of a topic's committed messages.

    Two tasks may write dead letters into one topic, each in its order, the two in any: there all are sorted.
    """
    found = harness.committed(
        broker.bootstrap, topic, at=lambda message: (message.key(), message.value(), message.headers())
    )
    return sorted(found, key=repr) if topic.endswith(".dlq") else found


@dataclass
class Comparison:
    """A pipeline that an engine runs on one broker, and `local` on another, on topics that are the same.

    Both have the same name, and so have their topics: nothing in what they write says where they ran.
    """

    build: Callable[[str], hr.App]
    database: Database
    engine: Options

    def check(self, transactions: Sequence[Transaction]) -> Outcome:
        """Run both; half of the rows are there when the engine begins. Return what came of it."""
        there, alone = self.database.brokers
        half = len(transactions) // 2
        self.database.commit(transactions[:half])
        app = self.build(f"kafka://{there.bootstrap}")
        with app.start(**self.engine) as running:
            running.wait(SECONDS)
            self.database.commit(transactions[half:])
            running.wait(SECONDS)
        harness.verify(app)
        with opened(app) as log:
            found, topics = outcome(app, log), written(app, log)
        other = self.build(f"kafka://{alone.bootstrap}")
        with other.start() as running:
            running.wait(SECONDS)
        with opened(other) as log:
            expected = outcome(other, log)
        assert found.models.keys() == expected.models.keys()
        for name, model in expected.models.items():
            assert found.models[name] == model, (name, found.models[name], model)
        assert found.rows.keys() == expected.rows.keys()
        for topic, rows in expected.rows.items():
            assert found.rows[topic] == rows, topic
        for topic in topics:
            assert messages(there, topic) == messages(alone, topic), topic
        return found
