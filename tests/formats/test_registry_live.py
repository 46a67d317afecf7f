"""A real registry (Apicurio) and Confluent's own serialisers on the other side."""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import socketserver
import threading
import urllib.request
import uuid
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.batch import OPS, Batch
from headrace.errors import FormatError, RegistryUnavailable
from headrace.formats.avro import AvroFormat
from headrace.formats.base import Encoded, Format
from headrace.formats.registered import registered_format
from headrace.formats.registry import SchemaId, SchemaRegistry
from headrace.formats.registry_format import RegistryReader
from headrace.testing import SchemaRegistryServer
from headrace.wire import WireMessages

pytest.importorskip("confluent_kafka.schema_registry", reason="confluent-kafka's registry client is not installed")
pytest.importorskip("httpx2", reason="confluent-kafka[schemaregistry] is not installed")

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

UTC = datetime.UTC


@pytest.fixture
def client(registry: SchemaRegistryServer) -> SchemaRegistry:
    """Ours, of the session's registry."""
    return SchemaRegistry(registry.url)


@pytest.fixture
def confluent(registry: SchemaRegistryServer) -> SchemaRegistryClient:
    """Confluent's, of the same."""
    return SchemaRegistryClient({"url": registry.url})


@pytest.fixture
def topic() -> str:
    return f"shop.public.t{uuid.uuid4().hex[:8]}"


COLUMNS = pa.schema(
    [
        pa.field("id", pa.int32()),
        pa.field("small", pa.int16()),
        pa.field("ratio", pa.float64()),
        pa.field("price", pa.decimal128(10, 2)),
        pa.field("day", pa.date32()),
        pa.field("at", pa.timestamp("us")),
        pa.field("zoned", pa.timestamp("us", "UTC")),
        pa.field("raw", pa.binary()),
        pa.field("name", pa.string()),
        pa.field("doc", pa.string(), metadata={b"postgres.type": b"jsonb"}),
        pa.field("yes", pa.bool_()),
        pa.field("tags", pa.list_(pa.string())),
    ]
)
MOMENT = datetime.datetime(2024, 2, 29, 1, 2, 3, 456)
ROW: dict[str, Any] = {
    "id": 1,
    "small": -5,
    "ratio": 0.1,
    "price": Decimal("-12.30"),
    "day": MOMENT.date(),
    "at": MOMENT,
    "zoned": MOMENT.replace(tzinfo=UTC),
    "raw": b"\0x",
    "name": "hé",
    "doc": '{"a": 1}',
    "yes": True,
    "tags": ["a", None],
}


def batch(*, before: bool = False) -> Batch:
    """One event of each op, the truncation last."""
    empty = dict.fromkeys(ROW)
    rows = [{**ROW, "id": 1}, {**ROW, "id": 2, "name": None}, {**empty, "id": 3}, {**ROW, "id": 4}, empty]
    records = pa.RecordBatch.from_pylist(rows, schema=COLUMNS)
    old = pa.array([None, {**ROW, "id": 2}, None, None, None], pa.struct(list(COLUMNS))) if before else None
    return Batch.of(
        records,
        op=np.array([OPS[name] for name in "rucdt"], np.uint8),
        lsn=np.array([5, 6, 6, 7, 8], np.uint64),
        index=np.array([0, 0, 1, 0, 0]),
        ts_us=1_700_000_000_000_001,
        key=["id"],
        source="shop",
        before=old,
    )


def sent(topic: str, encoded: Encoded) -> WireMessages:
    n = len(encoded.values)
    return WireMessages(topic, encoded.values, offsets=np.arange(n), keys=encoded.keys, headers=encoded.headers)


WIRES = ["confluent", "apicurio", "apicurio-headers"]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("envelope", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_avro_comes_back_whole(client: SchemaRegistry, topic: str, wire: Any, envelope: bool, before: bool) -> None:
    form = AvroFormat(client, envelope=envelope, wire=wire)
    comes_back_whole(form, topic, batch(before=before))


@pytest.mark.parametrize("name", ["jsonschema", "jsonschema+envelope"])
@pytest.mark.parametrize("before", [False, True])
def test_json_comes_back_whole(client: SchemaRegistry, topic: str, name: str, before: bool) -> None:
    comes_back_whole(registered_format(name, registry=client), topic, batch(before=before))


@pytest.mark.parametrize("name", ["avro", "avro+envelope", "jsonschema", "jsonschema+envelope"])
def test_columns_are_foretold_by_the_newest_message_or_the_subject(
    client: SchemaRegistry, topic: str, name: str
) -> None:
    form = registered_format(name, registry=client)
    assert isinstance(form, RegistryReader)
    messages = sent(topic, form.encode(topic, batch(before=True)))
    (came, _), *_ = form.decode(messages).parts
    none = messages.take(np.arange(0))
    for newest in (messages, none):
        told = form.foretell(topic, newest)
        assert told is not None and told.others == name.startswith("json")
        assert [(column.name, column.type) for column in told.schema] == [(c.name, c.type) for c in came.rows.schema]
    assert form.foretell("nobody's", none) is None


def test_columns_of_protobuf_are_those_of_the_message_that_payloads_name(client: SchemaRegistry, topic: str) -> None:
    pytest.importorskip("ptars", reason="the extra «protobuf» is not installed")
    pytest.importorskip("grpc_tools", reason="the extra «protobuf» is not installed")
    text = (
        'syntax = "proto3"; message Fish { int64 id = 1; double x = 2; } message Label { int64 id = 1; string y = 2; }'
    )
    number = client.register(f"{topic}-value", text, "PROTOBUF")
    form = registered_format("registry", registry=client)
    assert isinstance(form, RegistryReader)
    second = WireMessages(topic, [b"\0" + number.to_bytes(4, "big") + b"\2\2" + b"\x08\x07"], offsets=np.arange(1))
    told = form.foretell(topic, second)
    assert told is not None and told.schema.names == ["id", "y"] and not told.others
    told = form.foretell(topic, second.take(np.arange(0)))
    assert told is not None and told.schema.names == ["id", "x"] and told.others


@pytest.mark.parametrize("name", ["avro", "avro+envelope", "jsonschema", "jsonschema+envelope"])
@pytest.mark.parametrize(("key", "expected"), [("json", b'{"id":1}'), ("string", b"1"), ("none", None)])
def test_keys_in_another_format(
    client: SchemaRegistry, topic: str, name: str, key: str, expected: bytes | None
) -> None:
    form = registered_format(name, registry=client, key=key)
    events = batch(before=True)
    assert form.encode(topic, events).keys[0] == expected
    comes_back_whole(form, topic, events, key=("id",) if key == "json" else ())
    assert client.versions(f"{topic}-key") == []


def comes_back_whole(form: Format, topic: str, events: Batch, *, key: tuple[str, ...] = ("id",)) -> None:
    encoded = form.encode(topic, events)
    assert [encoded.rows.tolist().count(i) for i in range(5)] == [1, 1, 1, 2 if "envelope" in form.name else 1, 1]
    decoded = form.decode(sent(topic, encoded), COLUMNS)
    assert not decoded.bad
    ((found, rows),) = decoded.parts
    assert rows.tolist() == ([0, 1, 2, 3, 5] if "envelope" in form.name else [0, 1, 2, 3, 4])
    assert found.rows.to_pylist() == events.rows.to_pylist()
    assert found.op.tolist() == events.op.tolist()
    assert (found.lsn.tolist(), found.index.tolist()) == (events.lsn.tolist(), events.index.tolist())
    assert found.ts_us.tolist() == events.ts_us.tolist()
    assert (found.source, found.key_columns) == ("shop", key)
    if events.before is not None:
        assert found.before is not None and found.before.to_pylist() == events.before.to_pylist()


@pytest.mark.parametrize("name", ["avro", "jsonschema", "avro+envelope", "jsonschema+envelope"])
def test_types_are_in_the_schema(client: SchemaRegistry, topic: str, name: str) -> None:
    """Nobody says the columns: the registry's schema does."""
    events = batch().slice(0, 3)
    form = registered_format(name, registry=client)
    ((found, _),) = form.decode(sent(topic, form.encode(topic, events))).parts
    assert found.rows.schema.equals(COLUMNS)
    assert found.rows.to_pylist() == events.rows.to_pylist()


def test_confluents_deserialiser_reads_our_avro(
    client: SchemaRegistry, confluent: SchemaRegistryClient, topic: str
) -> None:
    encoded = AvroFormat(client).encode(topic, batch().slice(0, 3))
    read = AvroDeserializer(confluent)
    values = [read(value, SerializationContext(topic, MessageField.VALUE)) for value in encoded.values]
    assert values[0] == {**ROW, "zoned": "2024-02-29T01:02:03.000456Z"}
    assert values[2] == {**dict.fromkeys(ROW), "id": 3}
    assert read(encoded.keys[1], SerializationContext(topic, MessageField.KEY)) == {"id": 2}
    assert confluent.get_latest_version(f"{topic}-key").schema.schema_type == "AVRO"


def test_confluents_deserialiser_reads_our_envelopes(
    client: SchemaRegistry, confluent: SchemaRegistryClient, topic: str
) -> None:
    encoded = AvroFormat(client, envelope=True).encode(topic, batch(before=True))
    read = AvroDeserializer(confluent)
    values = [
        read(value, SerializationContext(topic, MessageField.VALUE)) if value else None for value in encoded.values
    ]
    told = [
        value and (value["op"], value["before"] and value["before"]["id"], value["after"] and value["after"]["id"])
        for value in values
    ]
    assert told == [("r", None, 1), ("u", 2, 2), ("c", None, 3), ("d", 4, None), None, ("t", None, None)]
    assert values[0]["source"]["lsn"] == 5 and values[0]["source"]["name"] == "shop"


def test_confluents_deserialiser_reads_our_json(
    client: SchemaRegistry, confluent: SchemaRegistryClient, topic: str
) -> None:
    encoded = registered_format("jsonschema", registry=client).encode(topic, batch().slice(0, 3))
    text = confluent.get_latest_version(f"{topic}-value").schema.schema_str
    read = JSONDeserializer(text, schema_registry_client=confluent)
    value = read(encoded.values[0], SerializationContext(topic, MessageField.VALUE))
    assert (value["id"], value["day"], value["name"], value["tags"]) == (1, 19782, "hé", ["a", None])


def test_we_read_confluents_avro_and_its_evolution(
    client: SchemaRegistry, confluent: SchemaRegistryClient, topic: str
) -> None:
    old = {"type": "record", "name": "V", "fields": [{"name": "id", "type": "int"}]}
    new = {**old, "fields": [*old["fields"], {"name": "n", "type": ["null", "string"], "default": None}]}  # type: ignore[misc]
    context = SerializationContext(topic, MessageField.VALUE)
    first, second = (AvroSerializer(confluent, json.dumps(item)) for item in (old, new))
    values = [first({"id": 1}, context), second({"id": 2, "n": "x"}, context), first({"id": 3}, context), b"\0\0\0\0"]
    messages = WireMessages(topic, values, offsets=np.arange(4))
    decoded = AvroFormat(client).decode(messages)
    found = [(part.rows.to_pylist(), rows.tolist()) for part, rows in decoded.parts]
    assert found == [([{"id": 1}], [0]), ([{"id": 2, "n": "x"}], [1]), ([{"id": 3}], [2])]
    assert [row for row, _ in decoded.bad] == [3]
    schema = pa.schema([("n", pa.string()), ("id", pa.int64())])
    ((part, rows),) = AvroFormat(client).decode(messages, schema).parts
    assert part.rows.schema.equals(schema) and rows.tolist() == [0, 1, 2]
    assert part.rows.to_pydict() == {"n": [None, "x", None], "id": [1, 2, 3]}


def test_avro_json_and_protobuf_in_one_topic(
    client: SchemaRegistry, confluent: SchemaRegistryClient, topic: str
) -> None:
    pytest.importorskip("ptars", reason="the extra «protobuf» is not installed")
    from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
    from google.protobuf import timestamp_pb2

    context = SerializationContext(topic, MessageField.VALUE)
    avro = '{"type":"record","name":"V","fields":[{"name":"seconds","type":"long"}]}'
    schema = '{"$schema":"http://json-schema.org/draft-07/schema#","title":"V","type":"object","properties":{"seconds":{"type":"integer"}}}'
    named = {"subject.name.strategy": lambda context, name: f"{context.topic}-{uuid.uuid4().hex}"}
    write_avro = AvroSerializer(confluent, avro, conf=named)
    write_json = JSONSerializer(schema, confluent, conf=named)
    write_protobuf = ProtobufSerializer(
        timestamp_pb2.Timestamp, confluent, {**named, "use.deprecated.format": False, "skip.known.types": True}
    )
    values = [
        write_avro({"seconds": 1}, context),
        write_json({"seconds": 2}, context),
        write_protobuf(timestamp_pb2.Timestamp(seconds=3), context),
    ]
    form = registered_format("registry", registry=client)
    decoded = form.decode(WireMessages(topic, values, offsets=np.arange(3)), pa.schema([("seconds", pa.int64())]))
    assert not decoded.bad
    ((part, rows),) = decoded.parts
    assert part.rows.to_pydict() == {"seconds": [1, 2, 3]} and rows.tolist() == [0, 1, 2]
    only = AvroFormat(client).decode(WireMessages(topic, values, offsets=np.arange(3)))
    assert [row for row, _ in only.bad] == [1, 2] and "is a JSON schema" in only.bad[0][1]


def test_protobuf_text_with_references(client: SchemaRegistry, confluent: SchemaRegistryClient, topic: str) -> None:
    pytest.importorskip("ptars", reason="the extra «protobuf» is not installed")
    from confluent_kafka.schema_registry import SchemaReference

    inner = Schema('syntax = "proto3"; package p; message In { int32 x = 1; }', "PROTOBUF")
    confluent.register_schema(f"{topic}-inner", inner)
    reference = SchemaReference("in.proto", f"{topic}-inner", 1)
    outer = 'syntax = "proto3"; package p; import "in.proto"; message Out { In i = 1; string s = 2; }'
    number = confluent.register_schema(f"{topic}-value", Schema(outer, "PROTOBUF", [reference]))
    payload = b"\0\x0a\x02\x08\x05\x12\x01a"
    values = [b"\0" + number.to_bytes(4, "big") + payload]
    expected = [{"i": {"x": 5}, "s": "a"}]
    form = registered_format("protobuf", registry=client)
    ((part, _),) = form.decode(WireMessages(topic, values, offsets=np.arange(1))).parts
    assert part.rows.to_pylist() == expected
    for scheme in ("globalId", "contentId"):
        headers = [[(f"apicurio.value.{scheme}", number.to_bytes(8, "big"))]]
        told = WireMessages(topic, [payload[1:]], offsets=np.arange(1), headers=headers)
        ((part, _),) = form.decode(told).parts
        assert part.rows.to_pylist() == expected, scheme


def test_an_incompatible_change_is_refused_in_the_registrys_words(client: SchemaRegistry, topic: str) -> None:
    AvroFormat(client).encode(topic, Batch.of({"a": pa.array([1])}))
    put(f"{client.url}/config/{topic}-value", b'{"compatibility":"FULL"}')
    required = pa.RecordBatch.from_arrays(
        [pa.array(["x"])], schema=pa.schema([pa.field("b", pa.string(), nullable=False)])
    )
    with pytest.raises(FormatError, match=rf"topic «{topic}».*incompatible.*{topic}-value.*409"):
        AvroFormat(client).encode(topic, Batch.of(required))
    assert client.versions(f"{topic}-value") == [1]


def put(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="PUT")
    with urllib.request.urlopen(request, timeout=10):
        pass


@pytest.mark.parametrize(
    ("subject", "expected"),
    [("topic", "{t}-value"), ("record", "{t}.Value"), ("topic-record", "{t}-{t}.Value")],
)
def test_subjects(client: SchemaRegistry, topic: str, subject: Any, expected: str) -> None:
    AvroFormat(client, subject=subject).encode(topic, Batch.of({"a": pa.array([1])}))
    assert client.versions(expected.format(t=topic)) == [1]


def test_without_leave_to_register_only_what_is_there_is_written(client: SchemaRegistry, topic: str) -> None:
    events = Batch.of({"a": pa.array([1])})
    with pytest.raises(FormatError, match="does not have"):
        AvroFormat(client, register=False).encode(topic, events)
    assert client.versions(f"{topic}-value") == []
    encoded = AvroFormat(client).encode(topic, events)
    fresh = SchemaRegistry(client.url)
    assert list(AvroFormat(fresh, register=False).encode(topic, events).values) == list(encoded.values)


def test_tombstones_of_others_are_deletes_by_key(client: SchemaRegistry, topic: str) -> None:
    """Debezium's flattening sends a delete as key and null, without our headers; of a table without a key as a null."""
    encoded = AvroFormat(client).encode(topic, batch().slice(0, 1))
    messages = WireMessages(
        topic, [encoded.values[0], None, None], offsets=np.arange(3), keys=[*encoded.keys * 2, None]
    )
    ((part, rows),) = AvroFormat(client).decode(messages, COLUMNS).parts
    assert (part.op.tobytes(), rows.tolist()) == (b"cdd", [0, 1, 2])
    assert part.rows.to_pylist()[1:] == [{**dict.fromkeys(ROW), "id": 1}, dict.fromkeys(ROW)]
    ((part, rows),) = AvroFormat(client, envelope=True).decode(messages, COLUMNS).parts
    assert rows.tolist() == [0]


@pytest.mark.parametrize("name", ["avro", "jsonschema"])
def test_poison_between_good_messages(client: SchemaRegistry, topic: str, name: str) -> None:
    form = registered_format(name, registry=client)
    good = list(form.encode(topic, batch().slice(0, 3)).values)
    cut, unknown = good[0][:-3], b"\0\x7f\xff\xff\xff" + good[0][5:]  # type: ignore[index]
    values = [good[0], cut, good[1], unknown, b"plain", good[2]]
    ((part, rows),), bad = (lambda d: (d.parts, d.bad))(form.decode(WireMessages(topic, values, offsets=np.arange(6))))
    assert rows.tolist() == [0, 2, 5] and [row for row, _ in bad] == [1, 3, 4]
    assert part.rows.column("id").to_pylist() == [1, 2, 3]


class Relay(socketserver.ThreadingTCPServer):
    """Connections to another port of this machine, until it is closed: they are refused then."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Pump)
        self.port = port
        self.connections: list[socket.socket] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        for connection in self.connections:  # clients keep theirs
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Pump(socketserver.BaseRequestHandler):
    """One connection, there and back."""

    def handle(self) -> None:
        assert isinstance(self.server, Relay)
        self.server.connections.append(self.request)
        with socket.create_connection(("127.0.0.1", self.server.port)) as other:
            back = threading.Thread(target=pump, args=(other, self.request), daemon=True)
            back.start()
            pump(self.request, other)
            back.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while some := source.recv(65_536):
            target.sendall(some)
        target.shutdown(socket.SHUT_WR)


def test_the_registry_goes_away_in_the_middle(registry: SchemaRegistryServer, topic: str) -> None:
    with Relay(registry.port) as relay:
        url = registry.url.replace(str(registry.port), str(relay.server_address[1]))
        client = SchemaRegistry(url, deadline=0.3)
        form = AvroFormat(client)
        events = batch().slice(0, 3)
        messages = sent(topic, form.encode(topic, events))
        form.decode(messages)
    # What is known goes on, reading and writing; what is not waits.
    assert form.decode(messages).parts[0][0].rows.equals(events.rows)
    assert list(form.encode(topic, events).values) == list(messages.values)
    with pytest.raises(RegistryUnavailable):
        form.encode(topic, Batch.of({"new": pa.array([1])}))
    number = int.from_bytes(bytes(messages.values[0] or b"")[1:5], "big") + 100
    other = WireMessages(topic, [messages.values[0], b"\0" + number.to_bytes(4, "big")], offsets=np.arange(2))
    with pytest.raises(RegistryUnavailable):
        form.decode(other)
    with pytest.raises(RegistryUnavailable):
        client.schema(SchemaId("contentId", 1))
