"""What Headrace writes to Kafka, read by clients that know nothing of it: kcat, librdkafka, Confluent's."""

from __future__ import annotations

import datetime
import json
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest

import headrace as hr
from headrace.errors import DeclarationError
from headrace.formats.topic_formats import codec_for
from headrace.log import open_log
from headrace.testing import KafkaBroker, SchemaRegistryServer
from tests.databases import Database
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(90)

# --- the source: a column, its type, and each row's value as SQL and as Debezium's schemaless JSON has it ---

UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
COLUMNS = [
    ("id", "int primary key", ("7", "7"), ("8", "8")),
    ("small", "smallint", ("-5", "-5"), ("null", "null")),
    ("big", "bigint", ("9223372036854775807", "9223372036854775807"), ("null", "null")),
    ("ratio", "float8", ("0.1", "0.1"), ("5", "5.0")),
    ("single", "float4", ("0.1", "0.1"), ("'NaN'", '"NaN"')),
    ("price", "numeric(10,2)", ("-12.30", '"-12.30"'), ("99999999.99", '"99999999.99"')),
    ("day", "date", ("'2024-02-29'", "19782"), ("'1969-12-31'", "-1")),
    # A time may be 24:00, which is none of Arrow's, and arrays have as many dimensions as they like: PostgreSQL's text.
    ("hour", "time", ("'01:02:03.000456'", '"01:02:03.000456"'), ("'24:00'", '"24:00:00"')),
    ("tags", "text[]", ("array['a', null]", '"{a,NULL}"'), ("null", "null")),
    ("at", "timestamp", ("'2024-02-29 01:02:03.000456'", "1709168523000456"), ("'1969-12-31 23:59:59'", "-1000000")),
    ("zoned", "timestamptz", ("'2024-02-29 03:02:03.000456+02'", '"2024-02-29T01:02:03.000456Z"'), ("null", "null")),
    ("raw", "bytea", (r"'\x0078'", '"AHg="'), ("''", '""')),
    ("name", "text", (r"E'hé \"q\"\n\\'", r'"hé \"q\"\n\\"'), ("''", '""')),
    ("doc", "jsonb", ("""'{"a": 1}'""", r'"{\"a\": 1}"'), ("null", "null")),
    ("yes", "boolean", ("true", "true"), ("false", "false")),
    ("uid", "uuid", (f"'{UUID}'", f'"{UUID}"'), ("null", "null")),
]
CREATE = f"create table everything ({', '.join(f'{name} {kind}' for name, kind, *_ in COLUMNS)})"
JSON_ROWS = ["{" + ",".join(f'"{name}":{row[at][1]}' for name, _, *row in COLUMNS) + "}" for at in range(2)]
INSERT = "insert into everything values " + ", ".join(
    f"({', '.join(row[at][0] for _, _, *row in COLUMNS)})" for at in range(2)
)


@pytest.fixture
def everything(database: Database) -> Database:
    """A table with a column of every type that has a form of its own in messages."""
    database.execute(CREATE)
    return database


def log_of(broker: KafkaBroker, options: str = "") -> str:
    return f"kafka://{broker.bootstrap}{options}"


def capture(app: hr.App, database: Database, **options: Any) -> hr.app.Database:
    return app.postgres(database.dsn, tables=r"public\..*", **options)


# --- reading, as others do ---


def consumed(broker: KafkaBroker, topic: str, *, isolation: str = "read_committed") -> list[Any]:
    """Every message of a topic, a partition after the other, by a plain consumer."""
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    settings = {
        "bootstrap.servers": broker.bootstrap,
        "group.id": "somebody",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
    }
    consumer = Consumer({**settings, "isolation.level": isolation, "fetch.wait.max.ms": 10})
    partitions = sorted(consumer.list_topics(topic, 30).topics[topic].partitions)
    found: dict[int, list[Any]] = {number: [] for number in partitions}
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    open_ones, deadline = set(partitions), time.monotonic() + 30
    while open_ones:
        assert time.monotonic() < deadline, f"«{topic}»: no end of the partitions {sorted(open_ones)}"
        for message in consumer.consume(1000, 0.1):
            if message.error() is None:
                found[message.partition()].append(message)
            else:
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                open_ones.discard(message.partition())
    consumer.close()
    return [message for number in partitions for message in found[number]]


def headers(message: Any) -> dict[str, str]:
    told = message.headers() or []
    assert len(dict(told)) == len(told), "a header twice"
    return {name: value.decode() for name, value in told}


def kcat(broker: KafkaBroker, topic: str) -> list[tuple[str, str]]:
    """Keys and values as kcat prints them; NULL where there is none."""
    command = ["kcat", "-C", "-b", broker.bootstrap, "-t", topic, "-e", "-q", "-Z", "-f", "%k %s\n"]
    isolation = ["-X", "isolation.level=read_committed"]
    done = subprocess.run([*command, *isolation], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [(key, value) for key, _, value in (line.partition(" ") for line in done.stdout.split("\n")[:-1])]


# --- kcat ---

needs_kcat = pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed")


@needs_kcat
def test_kcat_prints_debeziums_json(broker: KafkaBroker, everything: Database, topic_prefix: str) -> None:
    """Snapshot and stream, every type; a delete is a key and nothing."""
    app = hr.App(topic_prefix, log=log_of(broker))
    capture(app, everything)
    everything.execute(INSERT)
    with app.start() as running:
        everything.execute("update everything set id = id + 2")
        everything.execute("delete from everything where id = 9")
        running.wait(60)
    keys = ['{"id":7}', '{"id":8}']
    again = [row.replace(f'"id":{id_}', f'"id":{id_ + 2}') for row, id_ in zip(JSON_ROWS, (7, 8), strict=True)]
    moved = [('{"id":7}', "NULL"), ('{"id":9}', again[0]), ('{"id":8}', "NULL"), ('{"id":10}', again[1])]
    assert kcat(broker, f"{topic_prefix}.public.everything") == [
        *zip(keys, JSON_ROWS, strict=True),
        *moved,
        ('{"id":9}', "NULL"),
    ]


@needs_kcat
def test_kcat_prints_a_row_and_a_prediction_for_each_row(
    broker: KafkaBroker, database: Database, topic_prefix: str
) -> None:
    database.execute("create table points (id int primary key, x float8, y float8, word text)")
    app = hr.App(topic_prefix, log=log_of(broker))
    points = capture(app, database)["public.points"]
    near = app.model("near", hr.KMeans(k=2, initial_centers=[[-1, 0], [1, 0]]), features=["x", "y"])
    near.predict(points).to(f"{topic_prefix}-answers")
    fill = "insert into points select i, sin(i), i / 7.0, 'wörd ' || i from generate_series({}, {}) i"
    database.execute(fill.format(1, 100))
    with app.start() as running:
        for first in range(101, 301, 20):
            database.execute(fill.format(first, first + 19))
        running.wait(60)
    rows = [dict(zip(("id", "x", "y", "word"), row, strict=True)) for row in database.execute("table points")]
    keys = [f'{{"id":{i}}}' for i in range(1, 301)]
    texts = [json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in rows]
    assert kcat(broker, f"{topic_prefix}.public.points") == list(zip(keys, texts, strict=True))
    answers = kcat(broker, f"{topic_prefix}-answers")
    assert [key for key, _ in answers] == keys
    values = [json.loads(value) for _, value in answers]
    assert [{name: value[name] for name in rows[0]} for value in values] == rows
    assert [value["prediction"] for value in values] == [int(row["x"] > 0) for row in rows]
    assert {(value["status"], value["model"]) for value in values} == {("ok", "near")}


# --- headers, timestamps, transactions ---


def test_headers_say_what_an_event_was(broker: KafkaBroker, database: Database, topic_prefix: str) -> None:
    """`headrace.formats.headers` has the table."""
    database.execute("create table t (id int primary key, v text)")
    database.execute("alter table t replica identity full")
    database.execute("insert into t values (1, 'old')")
    app = hr.App(topic_prefix, log=log_of(broker))
    capture(app, database)
    with app.start() as running:
        running.wait(60)
        before = database.execute("select pg_current_wal_insert_lsn(), clock_timestamp()")[0]
        with psycopg.connect(database.dsn) as connection:
            connection.execute("insert into t values (2, 'new')")
            connection.execute("update t set v = 'newer' where id = 1")
            connection.execute("update t set id = 3 where id = 2")
            connection.execute("delete from t where id = 1")
        after = database.execute("select pg_current_wal_insert_lsn(), clock_timestamp()")[0]
        database.execute("truncate t")
        running.wait(60)
    messages = consumed(broker, f"{topic_prefix}.public.t")
    told = [headers(message) for message in messages]
    events = [
        (message.key(), message.value(), one.pop("__op", None)) for message, one in zip(messages, told, strict=True)
    ]
    assert events == [
        (b'{"id":1}', b'{"id":1,"v":"old"}', "r"),
        (b'{"id":2}', b'{"id":2,"v":"new"}', "c"),
        (b'{"id":1}', b'{"id":1,"v":"newer"}', "u"),
        (b'{"id":2}', None, None),
        (b'{"id":3}', b'{"id":3,"v":"new"}', "u"),
        (b'{"id":1}', None, "d"),
        (None, None, "t"),
    ]
    positions = [item.pop("__position", None) for item in told]
    times = [int(item.pop("__ts_us", 0)) for item in told]
    old = {2: '{"id":1,"v":"old"}', 4: '{"id":2,"v":"new"}'}
    for i, item in enumerate(told):
        extra = {"__before": f"json:{old[i]}"} if i in old else {}
        extra |= {"__row": 'json:{"id":1,"v":"newer"}'} if i == 5 else {}
        assert item == (extra if i != 3 else {"__tombstone": "1"}), f"message {i}"
    # One transaction: one commit LSN, numbered inside, one commit time.
    at = [i for i in range(1, 6) if i != 3]
    (commit,) = {str(positions[i]).partition(":")[0] for i in at}
    assert [positions[i] for i in at] == [f"{commit}:{number}" for number in range(4)]
    assert lsn(before[0]) <= lsn(commit) <= lsn(after[0]) < lsn(str(positions[6]).partition(":")[0])
    (committed,) = {times[i] for i in at}
    assert micros(before[1]) <= committed <= micros(after[1]) <= times[6]
    check_timestamps(messages, times)


def lsn(text: str) -> int:
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def micros(moment: datetime.datetime) -> int:
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


def check_timestamps(messages: list[Any], times: list[int]) -> None:
    """Kafka's own timestamp is the one of the writing, as with Debezium: after the commit, and never falling."""
    from confluent_kafka import TIMESTAMP_CREATE_TIME

    kinds, written = zip(*(message.timestamp() for message in messages), strict=True)
    assert set(kinds) == {TIMESTAMP_CREATE_TIME}
    assert list(written) == sorted(written) and written[-1] <= time.time() * 1000
    assert all(commit // 1000 <= at for commit, at in zip(times, written, strict=True))


class Undo(Exception):
    pass


def test_what_was_undone_is_not_there(broker: KafkaBroker, topic_prefix: str) -> None:
    """Aborted rows lie in the topic, as a reader of uncommitted messages sees; nobody else does."""
    topic = f"{topic_prefix}-rows"
    log = open_log(log_of(broker), writer=True, name=topic_prefix, codec=codec_for())
    try:
        write_or_undo(log, topic, [1, 2])
        write_or_undo(log, topic, [3, 4], undo=True)
        write_or_undo(log, topic, [5], undo=True)
        write_or_undo(log, topic, [6])
    finally:
        log.close()
    ids = {
        isolation: [json.loads(message.value())["id"] for message in consumed(broker, topic, isolation=isolation)]
        for isolation in ("read_committed", "read_uncommitted")
    }
    assert ids == {"read_committed": [1, 2, 6], "read_uncommitted": [1, 2, 3, 4, 5, 6]}
    if shutil.which("kcat"):
        assert [value for _, value in kcat(broker, topic)] == ['{"id":1}', '{"id":2}', '{"id":6}']


def write_or_undo(log: Any, topic: str, ids: list[int], *, undo: bool = False) -> None:
    try:
        with log.transaction() as transaction:
            transaction.append(topic, pa.RecordBatch.from_pydict({"id": ids}))
            if undo:
                raise Undo
    except Undo:
        assert undo


# --- a schema registry ---

# What Avro has no type for, or Debezium writes as a text.
TEXTS = ("hour", "zoned", "doc", "uid", "tags")


@dataclass
class Registered:
    """Both rows and the delete of the second, written with a registry and read by deserialisers of Confluent's."""

    messages: list[Any]
    topic: str
    client: Any
    rows: list[dict[str, Any]]

    def read(self, key: Callable[..., Any], value: Callable[..., Any]) -> list[tuple[Any, Any]]:
        from confluent_kafka.serialization import MessageField, SerializationContext

        roles = [(key, SerializationContext(self.topic, MessageField.KEY), lambda message: message.key())]
        roles += [(value, SerializationContext(self.topic, MessageField.VALUE), lambda message: message.value())]
        return [tuple(one(part(message), where) for one, where, part in roles) for message in self.messages]  # type: ignore[misc]


@pytest.fixture
def registered(
    request: pytest.FixtureRequest,
    broker: KafkaBroker,
    registry: SchemaRegistryServer,
    everything: Database,
    topic_prefix: str,
) -> Registered:
    pytest.importorskip("httpx2", reason="confluent-kafka[schemaregistry] is not installed")
    from confluent_kafka.schema_registry import SchemaRegistryClient

    app = hr.App(topic_prefix, log=log_of(broker), format=request.param, registry=registry.url)
    capture(app, everything)
    everything.execute(INSERT)
    rows = python_rows(everything)
    with app.start() as running:
        everything.execute("delete from everything where id = 8")
        running.wait(60)
    topic = f"{topic_prefix}.public.everything"
    return Registered(consumed(broker, topic), topic, SchemaRegistryClient({"url": registry.url}), rows)


def python_rows(database: Database) -> list[dict[str, Any]]:
    """The table's rows as psycopg has them."""
    chosen = [name for name, *_ in COLUMNS if name not in TEXTS]
    rows = database.execute(f"select {', '.join(chosen)} from everything order by id")
    return [dict(zip(chosen, row, strict=True)) for row in rows]


@pytest.mark.parametrize("registered", ["avro"], indirect=True)
def test_confluents_avro_deserialiser_gives_the_rows(registered: Registered) -> None:
    pytest.importorskip("fastavro", reason="confluent-kafka[avro] is not installed")
    from confluent_kafka.schema_registry.avro import AvroDeserializer

    read = AvroDeserializer(registered.client)
    keys, values = zip(*registered.read(read, read), strict=True)
    assert keys == ({"id": 7}, {"id": 8}, {"id": 8})
    for value, row, text in zip(values[:2], registered.rows, map(json.loads, JSON_ROWS), strict=True):
        single = struct.unpack("f", struct.pack("f", row["single"]))[0]
        expected = row | {name: text[name] for name in TEXTS} | {"single": single}
        # As text, NaN equals itself, and -12.30 is not -12.3.
        assert {name: repr(one) for name, one in value.items()} == {name: repr(one) for name, one in expected.items()}
    assert values[2] is None
    price, day, at = (values[0][name] for name in ("price", "day", "at"))
    assert (type(price), type(day), type(at)) == (Decimal, datetime.date, datetime.datetime)


@pytest.mark.parametrize("registered", ["jsonschema"], indirect=True)
def test_confluents_json_schema_deserialiser_gives_the_rows(registered: Registered) -> None:
    pytest.importorskip("jsonschema", reason="confluent-kafka[json] is not installed")
    from confluent_kafka.schema_registry.json_schema import JSONDeserializer

    def reader(role: str, *, validate: bool = True) -> JSONDeserializer:
        schema = registered.client.get_latest_version(f"{registered.topic}-{role}").schema.schema_str
        return JSONDeserializer(schema, conf={"validate": validate}, schema_registry_client=registered.client)

    # Decimals are Connect's: the unscaled value as bytes.
    rows = [{**json.loads(row), "price": price} for row, price in zip(JSON_ROWS, ("+zI=", "AlQL4/8="), strict=True)]
    read = registered.read(reader("key"), reader("value", validate=False))
    assert read == [({"id": 7}, rows[0]), ({"id": 8}, rows[1]), ({"id": 8}, None)]
    # The second row has a NaN, which no schema of JSON allows; Connect's converter writes it as we do.
    valid = [message for message in registered.messages if b"NaN" not in (message.value() or b"")]
    assert replace(registered, messages=valid).read(reader("key"), reader("value")) == [read[0], read[2]]


# --- partitions ---


def test_a_key_lies_where_javas_partitioner_puts_it(broker: KafkaBroker, database: Database, topic_prefix: str) -> None:
    """librdkafka has Java's hash too (murmur2_random); and the events of a key are in order."""
    from confluent_kafka import Producer

    database.execute("create table keyed (id text primary key, version int)")
    app = hr.App(topic_prefix, log=log_of(broker, "?partitions=7"))
    capture(app, database)
    database.execute(
        "insert into keyed select left(repeat(i || 'žluť', 9), i % 23 + 1) || i, 0 from generate_series(1, 200) i"
    )
    with app.start() as running:
        for version in range(1, 6):
            database.execute("update keyed set version = %s where length(id) %% 5 <= %s", version, 5 - version)
        running.wait(60)
    rows = consumed(broker, f"{topic_prefix}.public.keyed")
    assert {message.partition() for message in rows} == set(range(7))

    other = f"{topic_prefix}-java"
    broker.create_topic(other, partitions=7)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "partitioner": "murmur2_random"})
    for key in sorted({message.key() for message in rows}):
        producer.produce(other, b"", key)
    assert producer.flush(30) == 0
    expected = {message.key(): message.partition() for message in consumed(broker, other)}
    assert len(expected) == 200
    assert {(message.key(), message.partition()) for message in rows} == set(expected.items())

    versions: dict[bytes, list[int]] = {}
    for message in rows:
        versions.setdefault(message.key(), []).append(json.loads(message.value())["version"])
    last = {
        json.dumps({"id": id_}, separators=(",", ":"), ensure_ascii=False).encode(): version
        for id_, version in database.execute("table keyed")
    }
    assert set(versions) == set(last)
    assert all(found == list(range(last[key] + 1)) for key, found in versions.items())
    assert set(last.values()) == {1, 2, 3, 4, 5}


# --- formats of values and keys ---


def test_arrow_is_a_stream_for_each_batch(broker: KafkaBroker, database: Database, topic_prefix: str) -> None:
    """Beside it, the captured topic has a message for each row."""
    database.execute("create table wide (id int primary key, x float8, name text)")
    app = hr.App(topic_prefix, log=log_of(broker))
    capture(app, database)["public.wide"].to(f"{topic_prefix}-arrow", format="arrow")
    fill = "insert into wide select i, i / 3.0, 'n' || i from generate_series({}, {}) i"
    database.execute(fill.format(1, 5000))
    with app.start() as running:
        running.wait(60)
        database.execute(fill.format(5001, 6000))
        running.wait(60)
    assert len(consumed(broker, f"{topic_prefix}.public.wide")) == 6000
    messages = consumed(broker, f"{topic_prefix}-arrow")
    assert 2 <= len(messages) <= 10
    assert {message.key() for message in messages} == {None}
    tables = [pa.ipc.open_stream(message.value()).read_all() for message in messages]
    rows = pa.concat_tables(tables).select(["id", "x", "name"]).to_pylist()
    expected = database.execute("select * from wide order by id")
    assert [tuple(row.values()) for row in rows] == expected


VALUES = {"json": b'{"id":7,"name":"seven"}', "string": b"seven", "csv": b"7,seven"}
KEYS = [
    ("json", "json", b'{"id":7}'),
    ("json", "string", b"7"),
    ("json", "bytes", b"7"),
    ("json", "none", None),
    ("string", "json", b'{"id":7}'),
    ("csv", "string", b"7"),
    ("json+schema", "json", b'{"id":7}'),
    ("json+envelope", "string", b"7"),
    ("avro", "string", b"7"),
    ("avro+envelope", "json", b'{"id":7}'),
    ("jsonschema", "string", b"7"),
]


def test_keys_have_a_format_of_their_own(
    broker: KafkaBroker, registry: SchemaRegistryServer, database: Database, topic_prefix: str
) -> None:
    """A row, changed and deleted, in a topic for each pair of formats; read again it is whole."""
    database.execute("create table t (id int primary key, name text)")
    app = hr.App(topic_prefix, log=log_of(broker), registry=registry.url)
    rows = capture(app, database)["public.t"]
    topics = {(format_, key): f"{topic_prefix}-{format_}-{key}".replace("+", "-") for format_, key, _ in KEYS}
    outputs = [rows.to(topic, format=format_, key_format=key) for (format_, key), topic in topics.items()]
    typed = rows.to(f"{topic_prefix}-typed", format="json", key_format="json+schema")
    database.execute("insert into t values (7, 'seven')")
    with app.start() as running:
        running.wait(60)
        database.execute("delete from t where id = 7")
        running.wait(60)
    for format_, key, expected in KEYS:
        found = consumed(broker, topics[format_, key])
        assert {message.key() for message in found} == {expected}, (format_, key)
        assert found[-1].value() is None, (format_, key)
        assert found[0].value() == VALUES.get(format_, found[0].value())
    (key, _), (value, _) = zip(
        *((item.key(), item.value()) for item in consumed(broker, f"{topic_prefix}-typed")), strict=True
    )
    assert (json.loads(key)["payload"], value) == ({"id": 7}, VALUES["json"])
    assert [field["type"] for field in json.loads(key)["schema"]["fields"]] == ["int32"]
    for output in [*outputs, typed]:
        again = [(row["op"], row["id"]) for row in output.read().to_arrow().to_pylist()]
        assert again == [("r", 7), ("d", 7)], output


@pytest.mark.parametrize(
    ("format_", "key"), [("json", "nonsense"), ("arrow", "json"), ("avro", "nonsense"), ("protobuf", "string")]
)
def test_a_key_that_a_format_cannot_have_is_refused_at_once(format_: str, key: str) -> None:
    app = hr.App("keys", log="kafka://127.0.0.1:9")
    with pytest.raises(DeclarationError, match=f"{key}|arrow"):
        app.topic("rows").to("out", format=format_, key_format=key)


# --- consumer groups ---


def test_a_groups_offsets_say_how_far_a_pipeline_is(broker: KafkaBroker, topic_prefix: str) -> None:
    """Information for others; see `docs/decisions/0004-delivery-guarantee.md` for what counts."""
    from confluent_kafka import Consumer, Producer, TopicPartition

    topic = f"{topic_prefix}-in"
    broker.create_topic(topic, partitions=2)
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for i in range(30):
        producer.produce(topic, json.dumps({"id": i}), partition=i % 3 // 2)
    assert producer.flush(30) == 0
    app = hr.App(topic_prefix, log=log_of(broker))
    app.topic(topic).to(f"{topic_prefix}-out")
    group = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": f"headrace-{topic_prefix}"})

    def committed() -> list[int]:
        return [item.offset for item in group.committed([TopicPartition(topic, i) for i in range(2)], 30)]

    with app.start() as running:
        running.wait(60)
        wait_until(lambda: committed() == [20, 10], "the group's offsets")
        # Also of the last message before it is quiet.
        producer.produce(topic, json.dumps({"id": 30}), partition=0)
        assert producer.flush(30) == 0
        wait_until(lambda: committed() == [21, 10], "the group's offsets once more")
    group.close()
    assert len(consumed(broker, f"{topic_prefix}-out")) == 31
