"""Deletes of Debezium's flattening count once, in every format and every ``delete.tombstone.handling.mode``.

https://debezium.io/documentation/reference/stable/transformations/event-flattening.html: whoever writes the topic sets
what a delete and the tombstone behind it become. The same holds for a topic of envelopes, with and without
``tombstones.on.delete``. However the messages are cut into fetches, and whether the log decodes them again, the events
are the same.
"""

from __future__ import annotations

import http.server
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest

from headrace.batch import Batch
from headrace.formats.base import Decoded
from headrace.formats.csv import CsvFormat
from headrace.formats.factory import KNOWN, format_for
from headrace.formats.topic_formats import ForeignFormats, TopicCodec
from headrace.wire import Headers, WireMessages

TOPIC = "shop.public.t"
MODES = ("drop", "tombstone", "rewrite", "rewrite-with-tombstone", "delete-to-tombstone")
ROWS = [(1, "a"), (2, "b"), (1, None), (2, "c"), (2, None), (2, None), (3, "d"), (3, None)]  # None: a delete
READS_ONLY = ("protobuf", "registry")
HOLDS_NO_NAMES = ("csv", "string", "bytes", "image+label")  # the op travels in a header (add.headers=op)
NO_MESSAGES_OF_ROWS = ("arrow",)  # a message holds many rows, and a topic of them is no table's
PROTO = 'syntax = "proto3"; message {name} {{ {fields} }}'


@dataclass
class Messages:
    """Messages of a topic, as a connector writes them, with the events that they are."""

    keys: list[bytes | None] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    events: list[tuple[str, int | None]] = field(default_factory=list)

    def add(self, key: bytes | None, value: bytes | None, op: str, *, header: bool) -> None:
        self.keys.append(key)
        self.values.append(value)
        self.headers.append([("__op", op.encode())] if header else [])

    def wire(self, start: int, end: int) -> WireMessages:
        return WireMessages(
            TOPIC,
            self.values[start:end],
            offsets=np.arange(start, end) * 2,
            keys=self.keys[start:end],
            headers=self.headers[start:end],
        )


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    """The URL of a registry that takes every schema, and gives it back by its number."""
    schemas: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if sent not in schemas:
                schemas.append(sent)
            self._send({"id": schemas.index(sent) + 1})

        def do_GET(self) -> None:
            self._send(schemas[int(self.path.split("?")[0].rpartition("/")[2]) - 1])

        def _send(self, found: object) -> None:
            body = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def payload(name: str, registry: str, number: int, text: str, mark: str | None) -> tuple[bytes | None, bytes | None]:
    """Key and value of a row as this format has them; ``mark``: what ``__deleted`` says."""
    if name == "protobuf":
        return _protobuf(registry, number, text, mark)
    columns: dict[str, list[object]] = {"id": [number], "name": [text]}
    key = ["id"]
    if name in ("string", "bytes"):
        columns, key = {"key": [str(number)], "value": [text]}, ["key"]
    elif name == "image+label":
        columns, key = {"pixels": [b"x"], "label": [number]}, ["label"]
    if mark is not None:
        columns["__deleted"] = [mark]
    form = CsvFormat(header=True) if name == "csv with a header" else format_for(_written(name), registry=registry)
    encoded = form.encode(TOPIC, Batch.of(columns, key=key))
    return encoded.keys[0], encoded.values[0]


def _written(name: str) -> str:
    return "avro" if name == "registry" else name


def _protobuf(registry: str, number: int, text: str, mark: str | None) -> tuple[bytes, bytes]:
    pytest.importorskip("ptars", reason="the extra «protobuf» is not installed")
    pytest.importorskip("grpc_tools", reason="the extra «protobuf» is not installed")
    from headrace.formats.registry import SchemaRegistry

    client = SchemaRegistry(registry)
    found = []
    for subject, fields in (
        ("key", "int64 id = 1;"),
        ("value", "int64 id = 1; string name = 2; string __deleted = 3;"),
    ):
        schema = PROTO.format(
            name=subject.title(),
            fields=fields if mark or subject == "key" else fields.replace("string __deleted = 3;", ""),
        )
        head = b"\0" + client.register(f"{TOPIC}-{subject}", schema, "PROTOBUF").to_bytes(4, "big") + b"\0"
        body = b"\x08" + bytes([number])
        if subject == "value":
            for tag, value in ((0x12, text), (0x1A, mark or "")):
                body += bytes([tag, len(value)]) + value.encode() if value else b""
        found.append(head + body)
    return found[0], found[1]


def flattened(name: str, mode: str, registry: str, *, keyed: bool = True) -> Messages:
    """The messages of `ROWS` behind Debezium's flattening; ``keyed``: of a table with a primary key."""
    named = name not in HOLDS_NO_NAMES
    rewrites = mode.startswith("rewrite")
    messages = Messages()
    for number, text in ROWS:
        mark = ("false" if text else "true") if rewrites and named else None
        key, value = payload(name, registry, number, text or "old", mark)
        key = key if keyed else None
        op = "c" if text else "d"
        header = not named and rewrites
        if text or rewrites:
            messages.add(key, value, op, header=header)
        elif mode != "drop":
            messages.add(key, None, op, header=header)
        if not text and mode == "rewrite-with-tombstone":
            messages.add(key, None, op, header=header)
        if text or mode != "drop":
            messages.events.append((op, number if keyed or text or rewrites else None))
    return messages


def enveloped(name: str, registry: str, *, tombstones: bool) -> Messages:
    """The messages of `ROWS` as change events, as we write them but without our headers."""
    messages = Messages()
    for number, text in ROWS:
        op = "c" if text else "d"
        batch = Batch.of({"id": [number], "name": [text]}, op=op, key=["id"])
        encoded = format_for(name, registry=registry).encode(TOPIC, batch)
        messages.add(encoded.keys[0], encoded.values[0], op, header=False)
        if op == "d" and tombstones:
            messages.add(encoded.keys[0], None, op, header=False)
        messages.events.append((op, number))
    return messages


def events_of(decoded: Decoded) -> list[tuple[str, int | None]]:
    found: list[tuple[str, int | None]] = []
    for batch, _ in decoded.parts:
        column = next((name for name in ("id", "label", "key", "f0") if name in batch.column_names), None)
        values = batch.column(column).to_pylist() if column else [None] * batch.num_rows
        numbers = [None if number is None else int(number) for number in values]
        found += list(zip(map(chr, batch.op.tolist()), numbers, strict=True))
    assert decoded.bad == []
    return found


def read(messages: Messages, name: str, registry: str, cuts: Sequence[int]) -> list[tuple[str, int | None]]:
    """The events, fetched in pieces with a restart between two; and decoded again from the messages that had rows."""
    formats = ForeignFormats(TopicCodec(registry=registry), {TOPIC: name})
    found: list[tuple[str, int | None]] = []
    rows: list[int] = []
    schema = pa.schema([])
    for start, end in itertools.pairwise([0, *cuts, len(messages.values)]):
        form, decoded = formats(messages.wire(start, end))
        found += events_of(decoded)
        rows += [start + int(row) for _, at in decoded.parts for row in at]
        schema = schema if schema.names or not decoded.parts else decoded.parts[0][0].records.schema
        formats.restore(formats.records())
    again = TopicCodec(registry=registry).decode(form, messages.wire(0, len(messages.values)).take(rows), schema)
    assert again.num_rows == len(rows), "what the log has decoded once, it decodes again"
    return found


def cuts_of(count: int) -> list[list[int]]:
    return [[], list(range(1, count)), *([cut] for cut in range(1, count))]


FLAT = [name for name in KNOWN if "envelope" not in name and name not in NO_MESSAGES_OF_ROWS]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FLAT)
def test_every_delete_counts_once(name: str, mode: str, registry: str) -> None:
    messages = flattened(name, mode, registry)
    for cuts in cuts_of(len(messages.values)):
        assert read(messages, name, registry, cuts) == messages.events, cuts


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in FLAT if name not in HOLDS_NO_NAMES])
def test_every_delete_of_a_table_without_a_key_counts_once(name: str, mode: str, registry: str) -> None:
    messages = flattened(name, mode, registry, keyed=False)
    for cuts in cuts_of(len(messages.values)):
        assert read(messages, name, registry, cuts) == messages.events, cuts


@pytest.mark.parametrize("mode", MODES)
def test_names_in_a_header_line(mode: str, registry: str) -> None:
    messages = flattened("csv with a header", mode, registry)
    schema = pa.schema([("id", pa.int64()), ("name", pa.string())], metadata={"headrace.key": '["id"]'})
    decoded = CsvFormat(header=True).decode(messages.wire(0, len(messages.values)), schema)
    assert events_of(decoded) == messages.events


@pytest.mark.parametrize("tombstones", [True, False])
@pytest.mark.parametrize("name", [name for name in KNOWN if "envelope" in name])
def test_every_delete_of_an_envelope_counts_once(name: str, tombstones: bool, registry: str) -> None:
    messages = enveloped(name, registry, tombstones=tombstones)
    for named in (name, "registry") if name.startswith(("avro", "jsonschema")) else (name,):
        for cuts in cuts_of(len(messages.values)):
            assert read(messages, named, registry, cuts) == messages.events, cuts
