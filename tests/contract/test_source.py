"""The contract of `headrace.capture.base.Source`, run against every source. Another one is one class here."""

from __future__ import annotations

import itertools
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import psycopg
import pyarrow as pa
import pytest

from headrace.capture.base import Piece, Source, SourceState, Waker
from headrace.capture.postgres.source import PostgresSource
from headrace.capture.topics.source import TopicSource
from headrace.capture.topics.transactions import TransactionOrder
from headrace.engines.local.append_source import AppendSource
from headrace.engines.local.pipeline_source import PipelineSource
from headrace.formats.topic_formats import ForeignFormats, TopicCodec, codec_for
from headrace.kafka.settings import KafkaLocation
from headrace.log.base import Log
from headrace.log.kafka import KafkaLog
from headrace.log.memory import MemoryLog
from headrace.testing.servers import KafkaBroker, PostgresServer
from headrace.testing.source import ScriptedSource

SECONDS = 60.0


class Origin(Protocol):
    """What a source reads from: it commits rows ``{"id": …}``, and makes sources that read it."""

    replays: bool

    def commit(self, *ids: int) -> None: ...
    def source(self, log: Log) -> Source[Any]: ...
    def close(self) -> None: ...


class Scripted:
    """The double of `headrace.testing`: the script is the origin, and stays."""

    replays = True

    def __init__(self, _request: pytest.FixtureRequest) -> None:
        self._source = ScriptedSource("db")

    def commit(self, *ids: int) -> None:
        self._source.commit({"db.public.t": [{"id": number} for number in ids]})

    def source(self, log: Log) -> Source[Any]:
        return self._source

    def close(self) -> None:
        pass


class Appended:
    """Rows of the program itself: those that were not stored are gone with the process, which was not told."""

    replays = False

    def __init__(self, _request: pytest.FixtureRequest) -> None:
        self._source: AppendSource | None = None

    def commit(self, *ids: int) -> None:
        assert self._source is not None
        self._source.append("t", pa.RecordBatch.from_pylist([{"id": number} for number in ids]))

    def source(self, log: Log) -> Source[Any]:
        self._source = AppendSource(log, ["t"])
        return self._source

    def close(self) -> None:
        pass


class Postgres:
    """A real database, captured from before its first row."""

    replays = True

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._server: PostgresServer = request.getfixturevalue("server")
        self._name = f"contract_{secrets.token_hex(4)}"
        self._server.execute(f"CREATE DATABASE {self._name}")
        self._dsn = self._server.dsn.replace("@/postgres?", f"@/{self._name}?")
        self._run("CREATE TABLE t (id int PRIMARY KEY)")

    def _run(self, sql: str) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(sql.encode())

    def commit(self, *ids: int) -> None:
        self._run(f"INSERT INTO t VALUES {', '.join(f'({number})' for number in ids)}")

    def source(self, log: Log) -> Source[Any]:
        source = PostgresSource(self._dsn, app=self._name, prefix="db", tables=[r"public\.t"])
        source.check(log)
        return source

    def close(self) -> None:
        query = "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = %s"
        for slot, pid in self._server.execute(query, self._name):
            if pid is not None:
                self._server.execute("SELECT pg_terminate_backend(%s, 5000)", pid)
            self._server.execute("SELECT pg_drop_replication_slot(%s)", slot)
        self._server.execute(f"DROP DATABASE {self._name} WITH (FORCE)")


class Topics:
    """A topic that others write, in the order of its arrival."""

    replays = True

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._broker: KafkaBroker = request.getfixturevalue("broker")
        self._prefix = f"contract{secrets.token_hex(4)}"
        self.topic = f"{self._prefix}.public.t"
        self._broker.create_topic(self.topic)
        self._numbers = itertools.count(1)

    def _produce(self, messages: Sequence[tuple[str, Any]]) -> None:
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self._broker.bootstrap})
        for topic, value in messages:
            producer.produce(topic, json.dumps(value).encode())
        assert producer.flush(SECONDS) == 0

    def commit(self, *ids: int) -> None:
        self._produce([(self.topic, {"id": number}) for number in ids])

    def source(self, log: Log) -> Source[Any]:
        place = KafkaLocation.parse(f"kafka://{self._broker.bootstrap}", name="contract")
        return TopicSource(
            place, name=self._prefix, topics=[self.topic], decode=ForeignFormats(TopicCodec()), order=self.order()
        )

    def order(self) -> TransactionOrder | None:
        """What orders the events."""
        return None

    def close(self) -> None:
        pass


class DebeziumTopics(Topics):
    """A topic of Debezium's, in the order that its transaction topic says."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        super().__init__(request)
        self._broker.create_topic(f"{self._prefix}.transaction")

    def order(self) -> TransactionOrder | None:
        return TransactionOrder(self._prefix, [self.topic])

    def commit(self, *ids: int) -> None:
        number = next(self._numbers)
        events = [
            {
                "before": None,
                "after": {"id": identifier},
                "source": {"lsn": 1000 * number + i, "sequence": json.dumps([str(number), str(i)]), "ts_ms": 5},
                "op": "c",
                "ts_ms": 5,
                "transaction": {"id": f"{number}:{i}", "total_order": i + 1, "data_collection_order": i + 1},
            }
            for i, identifier in enumerate(ids)
        ]
        counts = [{"data_collection": "public.t", "event_count": len(ids)}]
        end = {"status": "END", "id": f"{number}:9", "event_count": len(ids), "data_collections": counts}
        self._produce([*((self.topic, event) for event in events), (f"{self._prefix}.transaction", end)])


class Pipeline:
    """Another pipeline's log on a cluster."""

    replays = True

    def __init__(self, request: pytest.FixtureRequest) -> None:
        broker: KafkaBroker = request.getfixturevalue("broker")
        self._codec = codec_for()
        self._place = KafkaLocation.parse(f"kafka://{broker.bootstrap}", name=f"contract-{secrets.token_hex(4)}")
        self._topic = f"{self._place.name}.t"
        self._log = KafkaLog(self._place, writer=True, codec=self._codec)

    def commit(self, *ids: int) -> None:
        with self._log.transaction() as txn:
            txn.append(self._topic, pa.RecordBatch.from_pylist([{"id": number} for number in ids]))

    def source(self, log: Log) -> Source[Any]:
        return PipelineSource(KafkaLog(self._place, writer=False, codec=self._codec), [self._topic])

    def close(self) -> None:
        self._log.close()


KAFKA = pytest.mark.xdist_group("kafka")
ORIGINS = [
    Scripted,
    Appended,
    Postgres,
    pytest.param(Topics, marks=KAFKA),
    pytest.param(DebeziumTopics, marks=KAFKA),
    pytest.param(Pipeline, marks=KAFKA),
]


@dataclass
class Rounds:
    """An engine that does nothing but append, one round at a time."""

    source: Source[Any]
    log: Log
    waker: Waker = field(default_factory=Waker)
    ids: list[int] = field(default_factory=list)
    positions: list[Any] = field(default_factory=list)

    def poll(self) -> list[Piece[Any]]:
        """Pieces with rows; those without are stored at once."""
        deadline = time.monotonic() + SECONDS
        while True:
            pieces = [piece for piece in self.source.poll(0.05) if not piece.rewound]
            if any(piece.rows for piece in pieces):
                return pieces
            self.write(pieces)
            assert time.monotonic() < deadline, f"nothing comes: {self.source.status}"

    def write(self, pieces: Sequence[Piece[Any]], *, acknowledge: bool = True) -> None:
        """Store a round's pieces."""
        reached = [piece.position for piece in pieces if piece.position is not None]
        if not reached:
            return
        with self.log.transaction() as txn:
            for piece in pieces:
                if piece.rows:
                    txn.next_slice()
                for topic, batch in piece.batches:
                    txn.append(topic, batch.records)
            self.source.store(txn, reached[-1])
        self.positions += reached
        self.ids += ids_of(pieces)
        if acknowledge:
            self.source.acknowledge()

    def until(self, done: Callable[[], bool]) -> None:
        """Go on until something holds."""
        deadline = time.monotonic() + SECONDS
        while not done():
            assert time.monotonic() < deadline, f"still not: {self.source.status}"
            self.write([piece for piece in self.source.poll(0.05) if not piece.rewound])


def ids_of(pieces: Sequence[Piece[Any]]) -> list[int]:
    return [number for piece in pieces for _, batch in piece.batches for number in batch.column("id").to_pylist()]


@pytest.fixture(params=ORIGINS)
def origin(request: pytest.FixtureRequest) -> Iterator[Origin]:
    made = request.param(request)
    yield made
    made.close()


@pytest.fixture
def begin(origin: Origin) -> Iterator[Callable[..., Rounds]]:
    """Starts a source of the origin on a log; all are stopped at the end."""
    started: list[Rounds] = []

    def start(log: Log | None = None) -> Rounds:
        into = MemoryLog() if log is None else log
        rounds = Rounds(origin.source(into), into)
        started.append(rounds)
        rounds.source.start(into, rounds.waker)
        return rounds

    yield start
    for rounds in started:
        rounds.source.stop()


def test_every_row_once_and_in_order(origin: Origin, begin: Callable[..., Rounds]) -> None:
    rounds = begin()
    for first in range(0, 30, 3):
        origin.commit(first, first + 1, first + 2)
    end = rounds.source.end()
    assert rounds.source.end(end) == end, "a position that is given is given back"
    rounds.until(lambda: rounds.source.status.position >= end and len(rounds.ids) >= 30)
    assert rounds.ids == list(range(30))
    before: list[Any] = []
    for position in rounds.positions:
        assert position >= position and str(position)
        assert all(position >= earlier for earlier in before)
        before.append(position)
    assert rounds.source.status.state is SourceState.CONNECTED
    assert rounds.source.status.away_seconds == 0.0 and not rounds.source.status.troubled


def test_a_start_goes_on_behind_what_is_stored(origin: Origin, begin: Callable[..., Rounds]) -> None:
    if not origin.replays:
        pytest.skip("its rows are nowhere but in the process")
    first = begin()
    origin.commit(1, 2)
    first.until(lambda: first.ids == [1, 2])
    origin.commit(3, 4)
    pieces = first.poll()
    assert ids_of(pieces)[0] == 3  # handed out, and lost with the process
    first.source.stop()
    second = begin(first.log)
    second.until(lambda: second.ids == [3, 4])
    # Stored, and nobody was told: a crash between the two.
    origin.commit(5)
    second.write(second.poll(), acknowledge=False)
    assert second.ids == [3, 4, 5]
    second.source.stop()
    third = begin(first.log)
    origin.commit(6)
    third.until(lambda: bool(third.ids))
    assert third.ids == [6]


def test_a_round_that_was_undone_is_written_again(origin: Origin, begin: Callable[..., Rounds]) -> None:
    rounds = begin()
    origin.commit(1)
    pieces = rounds.poll()

    class Undone(Exception):
        pass

    with pytest.raises(Undone), rounds.log.transaction() as txn:
        rounds.source.store(txn, pieces[-1].position)
        raise Undone
    rounds.write(pieces)
    origin.commit(2)
    rounds.until(lambda: len(rounds.ids) == 2)
    assert rounds.ids == [1, 2]


def test_other_threads_end_its_waiting(origin: Origin, begin: Callable[..., Rounds]) -> None:
    rounds = begin()
    rounds.until(lambda: rounds.source.status.state is SourceState.CONNECTED)
    threading.Timer(0.1, rounds.waker.wake).start()
    begun = time.monotonic()
    rounds.source.poll(0.5)
    assert time.monotonic() - begun < SECONDS
    rounds.waker.interrupt()
    begun = time.monotonic()
    rounds.source.stop()
    rounds.source.stop()
    assert time.monotonic() - begun < SECONDS


def test_stop_before_start(origin: Origin) -> None:
    source = origin.source(MemoryLog())
    source.stop()
    source.stop()


def test_traits_are_true(origin: Origin, begin: Callable[..., Rounds]) -> None:
    rounds = begin()
    traits = rounds.source.traits
    origin.commit(1)
    pieces = rounds.poll()
    for piece in pieces:
        assert bool(traits.cluster) == bool(piece.origins)
        assert len(piece.origins) in (0, len(piece.batches))
        for topic, batch in piece.batches:
            assert topic not in traits.tables or traits.tables[topic] == batch.records.schema
    if traits.parse_position is not None:
        position = pieces[-1].position
        assert traits.parse_position(str(position)) == position == traits.parse_position(int(position))
    if traits.measure_lag is not None:
        rounds.write(pieces)
        assert {measured.name for measured in traits.measure_lag()} >= {"lag_bytes", "lag_seconds"}
