"""Protobuf payloads to columns; no registry and no Java here."""

from __future__ import annotations

import base64
import datetime
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ptars", reason="the extra «protobuf» is not installed")
pytest.importorskip("grpc_tools", reason="the extra «protobuf» is not installed")

from google.protobuf import descriptor_pb2, message_factory

from headrace.errors import FormatError
from headrace.formats import protobuf
from headrace.formats.protobuf import ProtobufDecoder
from headrace.formats.registry import Reference, RegisteredSchema, SchemaId
from headrace.formats.registry_framing import Framed

TEXT = """syntax = "proto3"; package a.b;
import "google/protobuf/timestamp.proto"; import "shared/inner.proto";
message V { int32 id = 1; optional double x = 2; Colour c = 3; google.protobuf.Timestamp at = 4; shared.Inner i = 5;
  repeated int32 r = 6; map<string, int64> m = 7; message Deep { string s = 1; } repeated Deep ds = 8; uint64 u = 9; }
enum Colour { RED = 0; BLUE = 1; }
message Other { string only = 1; message In { bool yes = 1; } }
"""
INNER = 'syntax = "proto3"; package shared; message Inner { string s = 1; }'
SCHEMA = RegisteredSchema("PROTOBUF", TEXT, (Reference("shared/inner.proto", INNER),))
FIRST = b"\0"


def message(*indexes: int) -> Any:
    return message_factory.GetMessageClass(protobuf.message(protobuf.descriptor(SCHEMA), indexes))


def group(*payloads: bytes, scheme: str = "id") -> Framed:
    lengths = np.array([len(payload) for payload in payloads])
    ends = np.cumsum(lengths)
    return Framed(SchemaId(scheme, 1), b"".join(payloads), np.arange(len(payloads)), ends - lengths, ends)


def rows(found: Any) -> dict[int, Any]:
    return {
        place: row for struct, places in found for place, row in zip(places.tolist(), struct.to_pylist(), strict=True)
    }


def test_every_sort_of_field() -> None:
    value = message(0)(id=-1, x=1.5, c=1, i={"s": "é"}, r=[1, 2], m={"k": 5}, ds=[{"s": "d"}], u=2**63)
    value.at.FromDatetime(datetime.datetime(2024, 2, 29, 1, 2, 3, 456))
    found, bad = ProtobufDecoder()(group(FIRST + value.SerializeToString(), FIRST), SCHEMA)
    assert not bad
    assert rows(found) == {
        0: {
            "id": -1,
            "x": 1.5,
            "c": "BLUE",
            "at": datetime.datetime(2024, 2, 29, 1, 2, 3, 456, tzinfo=datetime.UTC),
            "i": {"s": "é"},
            "r": [1, 2],
            "m": [("k", 5)],
            "ds": [{"s": "d"}],
            "u": 2**63,
        },
        1: {"id": 0, "x": None, "c": "RED", "at": None, "i": None, "r": [], "m": [], "ds": [], "u": 0},
    }


def test_the_message_is_the_one_that_the_indexes_name() -> None:
    other, inner = message(1)(only="o").SerializeToString(), message(1, 0)(yes=True).SerializeToString()
    long_form_of_first = b"\2\0" + message(0)(id=3).SerializeToString()
    found, bad = ProtobufDecoder()(
        group(b"\2\2" + other, b"\4\2\0" + inner, long_form_of_first, b"\2\x0a", b"\xff\xff", b""), SCHEMA
    )
    assert {place: {k: v for k, v in row.items() if v} for place, row in rows(found).items()} == {
        0: {"only": "o"},
        1: {"yes": True},
        2: {"id": 3, "c": "RED"},
    }
    assert {place: reason.split(" at ")[0] for place, reason in bad.items()} == {
        3: "id 1: the schema has no message",
        4: "no Protobuf message indexes behind the schema id",
        5: "no Protobuf message indexes behind the schema id",
    }


def test_without_indexes_it_is_the_first() -> None:
    found, bad = ProtobufDecoder()(group(message(0)(id=4).SerializeToString(), scheme="globalId"), SCHEMA)
    assert rows(found)[0]["id"] == 4 and not bad


@pytest.mark.parametrize("poison", [b"\xff", b"\x08", b"\x0a\x05ab", b"\x2a\x03\x0a\x01\xff"])
def test_a_broken_message_is_bad_and_the_others_are_not(poison: bytes) -> None:
    good = [FIRST + message(0)(id=i).SerializeToString() for i in range(1, 8)]
    found, bad = ProtobufDecoder()(group(*good[:5], FIRST + poison, *good[5:]), SCHEMA)
    assert list(bad) == [5]
    assert [row["id"] for _, row in sorted(rows(found).items())] == [1, 2, 3, 4, 5, 6, 7]


def test_descriptors_instead_of_text() -> None:
    file = protobuf.descriptor(SCHEMA)
    texts = []
    for item in (file, file.dependencies[1]):
        copy = descriptor_pb2.FileDescriptorProto()
        item.CopyToProto(copy)
        texts.append(base64.b64encode(copy.SerializeToString()).decode())
    serialised = RegisteredSchema("PROTOBUF", texts[0], (Reference("shared/inner.proto", texts[1]),))
    found, bad = ProtobufDecoder()(group(FIRST + message(0)(id=5).SerializeToString()), serialised)
    assert rows(found)[0]["id"] == 5 and not bad


@pytest.mark.parametrize(
    ("text", "references", "match"),
    [
        ("message {", (), "protoc refuses"),
        ('syntax = "proto3"; import "gone.proto"; message A {}', (), "gone.proto"),
        ('syntax = "proto3"; message A {}', (Reference("../../outside.proto", INNER),), "no plain relative path"),
        ('syntax = "proto3"; message A {}', (Reference("/tmp/outside.proto", INNER),), "no plain relative path"),
    ],
)
def test_schemas_that_cannot_be_used(text: str, references: tuple[Reference, ...], match: str) -> None:
    with pytest.raises(FormatError, match=match):
        protobuf.descriptor(RegisteredSchema("PROTOBUF", text, references))


def test_a_message_in_itself_is_its_bytes() -> None:
    schema = RegisteredSchema("PROTOBUF", 'syntax = "proto3"; message L { int32 a = 1; L next = 2; }')
    kind = message_factory.GetMessageClass(protobuf.message(protobuf.descriptor(schema), (0,)))
    found, bad = ProtobufDecoder()(group(FIRST + kind(a=1, next={"a": 2}).SerializeToString()), schema)
    assert rows(found)[0] == {"a": 1, "next": b"\x08\x02"} and not bad
