"""Schemas with missing, odd or absurd parts, and payloads that do not fit theirs: one dead letter, never an error."""

from __future__ import annotations

import json
from base64 import b64encode
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.batch import Batch
from headrace.formats.avro import AvroDecoder
from headrace.formats.base import Decoded
from headrace.formats.coerce import fitting, reading
from headrace.formats.json import JsonFormat
from headrace.formats.jsonschema import JsonSchemaDecoder
from headrace.formats.registry import RegisteredSchema
from headrace.formats.registry_framing import Framed
from headrace.learn.features import matrix
from headrace.plain_values import values
from headrace.wire import WireMessages

CONNECT, TIME, DATA = "org.apache.kafka.connect.data.", "io.debezium.time.", "io.debezium.data."
DECIMAL = f"{CONNECT}Decimal"
ZONED = f"{TIME}ZonedTimestamp"
SCALE_AND_VALUE = [{"type": "int32", "field": "scale"}, {"type": "bytes", "field": "value"}]


def message(field: dict[str, Any], payload: Any, *, envelope: bool = False) -> bytes:
    """A row of an id and one column, with its schema."""
    fields = [{"type": "int32", "optional": False, "field": "id"}, {"optional": True, **field, "field": "x"}]
    row, schema = {"id": 1, "x": payload}, {"type": "struct", "fields": fields, "name": "t"}
    if envelope:
        source = {"type": "struct", "fields": [{"type": "string", "field": "name"}], "field": "source"}
        sides = [{**schema, "optional": True, "field": side} for side in ("before", "after")]
        schema = {
            "type": "struct",
            "fields": [*sides, source, {"type": "string", "field": "op"}],
            "name": "t.Envelope",
        }
        row = {"before": None, "after": row, "source": {"name": "s"}, "op": "c"}  # type: ignore[dict-item]
    return json.dumps({"schema": schema, "payload": row}, separators=(",", ":")).encode()


def decode(messages: list[bytes], schema: pa.Schema | None = None) -> Decoded:
    return JsonFormat().decode(WireMessages("s.public.t", messages, offsets=np.arange(len(messages))), schema)


def decimal(payload_type: str = "bytes", **parameters: str) -> dict[str, Any]:
    told = {name.replace("precision", "connect.decimal.precision"): value for name, value in parameters.items()}
    return {"type": payload_type, "name": DECIMAL, "version": 1, **({"parameters": told} if told else {})}


def unscaled(number: int) -> str:
    return b64encode(number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)).decode()


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "int32"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


TAKEN: list[tuple[dict[str, Any], Any, pa.DataType, Any]] = [
    (decimal(scale="0"), "BQ==", pa.string(), "5"),
    (decimal(scale="0"), unscaled(10**90), pa.string(), str(10**90)),
    (decimal(scale="2"), unscaled(-12345), pa.string(), "-123.45"),
    (decimal(scale="-3"), "BQ==", pa.string(), "5000"),
    (decimal(scale="2", precision="0"), "BQ==", pa.string(), "0.05"),
    (decimal(scale="2", precision="1000"), "BQ==", pa.string(), "0.05"),
    (decimal(scale="2", precision="x"), "BQ==", pa.string(), "0.05"),
    (decimal(scale="2", precision="9"), "BQ==", pa.decimal128(9, 2), Decimal("0.05")),
    (decimal(scale="2", precision="9"), 1.5, pa.decimal128(9, 2), Decimal("1.50")),  # decimal.format=NUMERIC
    (decimal(scale="0"), 5, pa.string(), "5"),
    ({"type": "bytes", "name": f"{DATA}Bits"}, "BQ==", pa.string(), "101"),
    ({"type": "bytes", "name": f"{DATA}Bits", "parameters": {"length": "2147483647"}}, "BQ==", pa.string(), "101"),
    ({"type": "string", "name": f"{DATA}Enum"}, "a", pa.string(), "a"),
    ({"type": "string", "name": f"{DATA}EnumSet", "parameters": {"allowed": None}}, "a,b", pa.string(), "a,b"),
    ({"type": "string", "name": f"{DATA}NoSuch"}, "a", pa.string(), "a"),
    ({"type": "int64", "name": f"{TIME}Frobnicated"}, 7, pa.int64(), 7),
    ({"type": "int64", "name": f"{TIME}Date"}, 19782, pa.date32(), "2024-02-29"),
    ({"type": "int32", "name": f"{TIME}Date"}, 2**31 - 1, pa.date32(), "infinity"),
    ({"type": "string", "name": ZONED}, "-infinity", pa.timestamp("us", "UTC"), "-infinity"),
    ({"type": "string", "name": ZONED}, "2024-02-29T00:00:00.100000000Z", pa.timestamp("us", "UTC"), "2024-02-29"),
    ({"type": "int32"}, "7", pa.int32(), 7),
]


@pytest.mark.parametrize("envelope", [False, True], ids=["flat", "envelope"])
@pytest.mark.parametrize(("field", "payload", "kind", "value"), TAKEN)
def test_taken_exactly_and_read_again(
    field: dict[str, Any], payload: Any, kind: pa.DataType, value: Any, envelope: bool
) -> None:
    found = message(field, payload, envelope=envelope)
    decoded = decode([found, found])
    assert decoded.bad == []
    ((batch, _),) = decoded.parts
    assert batch.column("x").type == kind
    got = values(batch.column("x"))
    assert got[0] == got[1] and (got[0] == value or str(got[0]).startswith(str(value)))
    again = decode([found, found], batch.rows.schema)  # as a log on the cluster reads it
    assert again.bad == [] and again.parts[0][0].rows.equals(batch.rows)


REFUSED: list[tuple[dict[str, Any], Any, str]] = [
    (decimal(), "BQ==", "it has no scale"),
    (decimal(scale="x"), "BQ==", 'its scale is "x"'),
    (decimal(scale="1000000000"), "BQ==", "its scale is 1000000000"),
    (decimal(scale="-1000000000"), "BQ==", "its scale is -1000000000"),
    (decimal(scale="9" * 5000), "BQ==", "not a whole number"),
    ({**decimal(), "parameters": [1]}, "BQ==", "not an object"),
    ({**decimal(), "parameters": {"scale": 2.5}}, "BQ==", "its scale is 2.5"),
    (decimal(scale="2", precision="5"), unscaled(123456789), "does not fit decimal128(5, 2)"),
    (decimal(scale="0"), True, "true does not fit"),
    (decimal(scale="0"), [1], "[1] does not fit"),
    (decimal(scale="0"), 5.5, "5.5 does not fit"),
    (decimal(scale="0"), "###", "is not base64"),
    ({"type": "array", "items": decimal(scale="x")}, ["BQ=="], 'its scale is "x"'),
    ({"type": "bytes", "name": f"{DATA}Bits", "parameters": {"length": "abc"}}, "AQ==", 'its length is "abc"'),
    ({"type": "bytes", "name": f"{DATA}Bits", "parameters": {"length": "-1"}}, "AQ==", "its length is -1"),
    ({"type": "bytes", "name": f"{DATA}Bits", "parameters": {"length": "2000000000"}}, "AQ==", "its length is"),
    ({"type": "bytes", "name": f"{DATA}Bits", "parameters": {"length": "3"}}, "//8=", "has more than 3 bits"),
    (
        {"type": "struct", "name": f"{DATA}VariableScaleDecimal", "fields": SCALE_AND_VALUE},
        {"scale": 1_000_000_000, "value": "BQ=="},
        "has the scale 1000000000",
    ),
    ({"type": "struct", "name": f"{DATA}VariableScaleDecimal"}, {"value": "BQ=="}, "a scale without a value"),
    ({"type": "struct", "name": f"{DATA}geometry.Point"}, [1, 2], "has no «x»"),
    ({"type": "struct", "name": f"{DATA}geometry.Point"}, {"x": 1}, "has not both"),
    ({"type": "struct", "name": f"{DATA}SparseDoubleVector"}, {"dimensions": 3, "vector": [[1]]}, "does not fit"),
    ({"type": "string", "name": ZONED}, "2024-01-01T00:00:00.123456789Z", "has more decimals"),
    ({"type": "string", "name": ZONED}, "yesterday", "is not an ISO 8601"),
    ({"type": "int64", "name": ZONED}, 5, "does not fit timestamp"),
    ({"type": "string", "name": ZONED}, "+99294276-12-31T23:59:59Z", "is beyond"),
    ({"type": "int64", "name": f"{TIME}Timestamp"}, 2**63 - 1, "does not fit timestamp"),
    ({"type": "int32", "name": f"{TIME}Time"}, -5, "is not a time of day"),
    ({"type": "int64", "name": f"{TIME}MicroDuration"}, "x", "does not fit duration"),
    ({"type": "int32"}, 3_000_000_000, "3000000000 does not fit int32"),
    ({"type": "int8"}, 300, "300 does not fit int8"),
    ({"type": "int16"}, -40_000, "-40000 does not fit int16"),
    ({"type": "int64"}, 2**63, "does not fit int64"),
    ({"type": "int32"}, 1.5, "1.5 does not fit int32"),
    ({"type": "int32"}, "abc", '"abc" does not fit int32'),
    ({"type": "int32"}, True, "true does not fit int32"),
    ({"type": "float"}, 1e300, "is beyond 32-bit floats"),
    ({"type": "boolean"}, 1, "1 does not fit bool"),
    ({"type": "bytes"}, True, "true does not fit binary"),
    ({"type": "array", "items": {"type": "int8"}}, [1, 300], "does not fit list"),
    ({"type": "array", "items": 5}, [1], "5 stands where a type has to"),
    ({"type": "map", "keys": "x", "values": 7}, {"a": 1}, "stands where a type has to"),
    ({"type": "struct"}, {"a": 1}, "a struct without a list of fields"),
    ({"type": "struct", "fields": [{"type": "int32"}]}, {"a": 1}, "a field without a name"),
    ({"type": "struct", "fields": [{"type": "int32", "field": "a"}] * 2}, {"a": 1}, "two fields are named «a»"),
    ({"type": "zork"}, [1, 2.5], "none of Kafka Connect's types"),
    ({"type": ["int32", "null"]}, 5, "none of Kafka Connect's types"),
    ({"type": "array"}, [1], "none of Kafka Connect's types"),
    (nested(100), 1, "nested more than 64 deep"),
]


@pytest.mark.parametrize("envelope", [False, True], ids=["flat", "envelope"])
@pytest.mark.parametrize(("field", "payload", "why"), REFUSED)
def test_one_dead_letter_and_the_others_go_on(field: dict[str, Any], payload: Any, why: str, envelope: bool) -> None:
    good = message({"type": "string"}, "good", envelope=envelope)
    decoded = decode([good, message(field, payload, envelope=envelope), good])
    assert [at for at, _ in decoded.bad] == [1] and why in decoded.bad[0][1]
    assert sum(batch.num_rows for batch, _ in decoded.parts) == 2


def test_a_type_follows_from_the_schema_and_not_from_the_batch() -> None:
    messages = [message(decimal(scale="0"), unscaled(number)) for number in (5, 10**90, -1)]
    together = [row for batch, _ in decode(messages).parts for row in values(batch.column("x"))]
    alone = [decode([item]).parts[0][0].column("x") for item in messages]
    assert together == [values(column)[0] for column in alone] == ["5", str(10**90), "-1"]
    assert {column.type for column in alone} == {pa.string()}


def test_a_decimal_without_a_precision_is_a_feature() -> None:
    batch = decode([message(decimal(scale="0"), "BQ=="), message(decimal(scale="0"), unscaled(-7))]).parts[0][0]
    found = matrix(batch, ("x",))
    assert found.reasons == {} and found.X[:, 0].tolist() == [5.0, -7.0]


# --- formats of a schema registry ---


def avro(kind: Any, *payloads: bytes) -> tuple[list[Any], dict[int, str]]:
    text = json.dumps({"type": "record", "name": "R", "fields": [{"name": "x", "type": kind}]})
    return columns(AvroDecoder(), "AVRO", text, payloads)


def columns(decoder: Any, kind: str, text: str, payloads: tuple[bytes, ...]) -> tuple[list[Any], dict[int, str]]:
    ends = np.cumsum([len(payload) for payload in payloads])
    starts = ends - [len(payload) for payload in payloads]
    group = Framed(7, b"".join(payloads), np.arange(len(payloads)), starts, ends)  # type: ignore[arg-type]
    found, bad = decoder(group, RegisteredSchema(kind, text))
    return [value for struct, _ in found for value in values(struct.field("x"))], bad


FIVE = b"\x02\x05"
AVRO_TAKEN: list[tuple[Any, bytes, Any]] = [
    ({"type": "bytes", "logicalType": "decimal"}, FIVE, "5"),
    ({"type": "bytes", "logicalType": "decimal", "precision": 0, "scale": 0}, FIVE, "5"),
    ({"type": "bytes", "logicalType": "decimal", "precision": 1000, "scale": 2}, FIVE, "0.05"),
    ({"type": "bytes", "logicalType": "decimal", "precision": "x", "scale": 2}, FIVE, "0.05"),
    ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": -2}, FIVE, "500"),
    ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 9}, FIVE, "0.000000005"),
    ({"type": "bytes", "connect.name": DECIMAL, "connect.parameters": {"scale": "0"}}, FIVE, "5"),
    ({"type": "int", "logicalType": "decimal", "precision": 4}, b"\x0a", 5),
    ({"type": "string", "logicalType": "timestamp-micros"}, b"\x02a", "a"),
    ({"type": "fixed", "name": "F", "size": 2, "logicalType": "uuid"}, b"ab", b"ab"),
    ({"type": "long", "logicalType": "no-such"}, b"\x0a", 5),
    ({"type": "long", "connect.name": "io.debezium.time.NoSuch"}, b"\x0a", 5),
]
AVRO_REFUSED: list[tuple[Any, bytes, str]] = [
    ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": "x"}, FIVE, 'its scale is "x"'),
    ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2.5}, FIVE, "its scale is 2.5"),
    ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 10**9}, FIVE, "its scale is 1000000000"),
    ({"type": "bytes", "connect.name": DECIMAL}, FIVE, "it has no scale"),
    ({"type": "bytes", "connect.name": DECIMAL, "connect.parameters": [1]}, FIVE, "not an object"),
    (
        {"type": "bytes", "connect.name": f"{DATA}Bits", "connect.parameters": {"length": "abc"}},
        FIVE,
        'its length is "abc"',
    ),
    ({"type": "long", "connect.name": f"{TIME}Timestamp"}, b"\xfe" + b"\xff" * 8 + b"\x01", "no io.debezium.time"),
    ({"type": "string", "connect.name": ZONED}, b"\x02x", "no io.debezium.time.ZonedTimestamp"),
]


@pytest.mark.parametrize(("kind", "payload", "value"), AVRO_TAKEN)
def test_avro_taken_exactly(kind: Any, payload: bytes, value: Any) -> None:
    assert avro(kind, payload, payload) == ([value, value], {})


@pytest.mark.parametrize(("kind", "payload", "why"), AVRO_REFUSED)
def test_avro_refused_with_its_reason(kind: Any, payload: bytes, why: str) -> None:
    found, bad = avro(kind, payload)
    assert found == [] and why in bad[0]


@pytest.mark.parametrize(
    ("declared", "payload", "value", "why"),
    [
        ({"type": "string", "connect.type": "bytes", "title": DECIMAL}, '"BQ=="', None, "it has no scale"),
        (
            {"type": "string", "connect.type": "bytes", "title": DECIMAL, "connect.parameters": {"scale": "x"}},
            '"BQ=="',
            None,
            'its scale is "x"',
        ),
        (
            {"type": "string", "connect.type": "bytes", "title": DECIMAL, "connect.parameters": {"scale": "0"}},
            '"BQ=="',
            "5",
            "",
        ),
        ({"type": "integer", "connect.type": "int8"}, "300", None, "300 does not fit int8"),
        ({"type": "integer", "connect.type": "int32", "title": "io.debezium.time.NoSuch"}, "300", 300, ""),
    ],
)
def test_json_schema(declared: Any, payload: str, value: Any, why: str) -> None:
    text = json.dumps({"type": "object", "properties": {"x": declared}})
    found, bad = columns(JsonSchemaDecoder(), "JSON", text, (b'{"x":%s}' % payload.encode(),))
    assert found == ([value] if not why else []) and why in bad.get(0, "")


def test_what_is_written_is_read_again() -> None:
    """A decimal beyond Arrow's is a text with its name of a number, and comes back through our own messages."""
    batch = decode([message(decimal(scale="0"), unscaled(10**90))]).parts[0][0]
    for form in (JsonFormat(), JsonFormat(schemas=True), JsonFormat(envelope=True, schemas=True)):
        encoded = form.encode("t", Batch(batch.records))
        told = WireMessages("t", encoded.values, offsets=np.arange(1), keys=encoded.keys, headers=encoded.headers)
        assert values(form.decode(told, batch.rows.schema).parts[0][0].column("x")) == [str(10**90)]


def test_a_map_that_does_not_fit_refuses_its_own_row_only() -> None:
    maps = pa.array([[("a", "1")], [("a", "x")], [("b", "3")]], pa.map_(pa.string(), pa.string()))
    array, bad = fitting(maps, reading(pa.field("m", pa.map_(pa.string(), pa.int64()))))
    assert array.to_pylist() == [[("a", 1)], None, [("b", 3)]]
    assert bad == [(1, 'column «m»: {"a":"x"} does not fit map<string, int64>')]
