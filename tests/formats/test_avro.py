"""Avro's binary form in columns, against fastavro; no registry and no Java here."""

from __future__ import annotations

import datetime
import io
import json
from decimal import Decimal
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import FormatError
from headrace.formats import avro_schema
from headrace.formats.avro_reader import AvroReader, finished
from headrace.formats.avro_schema import parse
from headrace.formats.avro_writer import write
from headrace.formats.coerce import fitting
from headrace.formats.registry_format import typed_reading

UTC = datetime.UTC


def decode(schema: Any, payloads: list[bytes]) -> tuple[pa.Array, dict[int, str]]:
    lengths = np.array([len(payload) for payload in payloads])
    ends = np.cumsum(lengths)
    reader = AvroReader(b"".join(payloads), ends - lengths, ends, finish=finished)
    return reader.read(parse(json.dumps(schema))), reader.reasons


def by_fastavro(schema: Any, value: Any) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(json.dumps(schema))), value)
    return out.getvalue()


def record(*fields: tuple[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "R", "fields": [{"name": name, "type": kind} for name, kind in fields]}


def connect(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "connect.name": name, "connect.version": 1, **more}


DECIMAL = "org.apache.kafka.connect.data.Decimal"
MIXED = record(
    ("a", ["null", "long"]),
    ("b", {"type": "array", "items": ["null", "string"]}),
    ("c", {"type": "map", "values": "double"}),
    ("d", {"type": "enum", "name": "E", "symbols": ["x", "y"]}),
    ("e", ["null", record(("f", "float"), ("g", "bytes"))]),
    ("h", {"type": "array", "items": {"type": "array", "items": "double"}}),
    ("i", {"type": "fixed", "name": "F", "size": 3}),
    ("j", "boolean"),
)
MIXED["fields"][4]["type"][1]["name"] = "Inner"
VALUES = st.fixed_dictionaries(
    {
        "a": st.none() | st.integers(-(2**63), 2**63 - 1),
        "b": st.lists(st.none() | st.text(max_size=5), max_size=4),
        "c": st.dictionaries(st.text(max_size=4), st.floats(allow_nan=False), max_size=3),
        "d": st.sampled_from("xy"),
        "e": st.none() | st.fixed_dictionaries({"f": st.floats(width=32, allow_nan=False), "g": st.binary(max_size=9)}),
        "h": st.lists(st.lists(st.floats(allow_nan=False), max_size=3), max_size=3),
        "i": st.binary(min_size=3, max_size=3),
        "j": st.booleans(),
    }
)


@given(st.lists(VALUES, min_size=1, max_size=8))
def test_reads_what_fastavro_writes(values: list[dict[str, Any]]) -> None:
    found, bad = decode(MIXED, [by_fastavro(MIXED, value) for value in values])
    assert not bad
    assert found.to_pylist() == [{**value, "c": list(value["c"].items())} for value in values]


@given(st.lists(VALUES, min_size=2, max_size=5), st.data())
def test_a_message_cut_anywhere_is_bad_and_the_others_are_not(
    values: list[dict[str, Any]], data: st.DataObject
) -> None:
    payloads = [by_fastavro(MIXED, value) for value in values]
    victim = data.draw(st.integers(0, len(values) - 1))
    cut = data.draw(st.integers(0, len(payloads[victim]) - 1))
    payloads[victim] = payloads[victim][:cut]
    found, bad = decode(MIXED, payloads)
    assert set(bad) == {victim}
    for i, item in enumerate(values):
        assert i == victim or found[i].as_py() == {**item, "c": list(item["c"].items())}


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_no_bytes_bring_it_down(payloads: list[bytes]) -> None:
    found, bad = decode(MIXED, payloads)
    assert len(found) == len(payloads)
    for i, payload in enumerate(payloads):
        if i in bad:
            continue
        stream = io.BytesIO(payload)  # what passes, fastavro reads to the same value and to the last byte
        value = fastavro.schemaless_reader(stream, fastavro.parse_schema(json.loads(json.dumps(MIXED))), None)
        assert stream.tell() == len(payload)
        assert repr(dict(found[i].as_py()["c"])) == repr(value["c"]) and found[i].as_py()["b"] == value["b"]


@pytest.mark.parametrize(
    ("kind", "payload", "reason"),
    [
        ("string", b"\x04h", "length"),
        ("string", b"\x02\xff", "not UTF-8"),
        ("string", b"\x01", "length"),
        ("int", b"\xfe\xff\xff\xff\x7f", "32 bits"),
        ("long", b"\xff" * 11, "64 bits"),
        ("double", b"\0\0\0", "in the middle"),
        ("boolean", b"\x02", "neither 0 nor 1"),
        (["null", "int"], b"\x04\x02", "no such branch"),
        ({"type": "enum", "name": "E", "symbols": ["x"]}, b"\x02", "no such symbol"),
        ({"type": "array", "items": "int"}, b"\xfe\xff\xff\xff\xff\xff\x01", "length"),
        ({"type": "array", "items": "double"}, b"\xfe\xff\xff\xff\xff\x1f\0", "length"),
        ("int", b"\x02\x02", "1 bytes left over"),
        (connect("bytes", DECIMAL, scale=0, precision=2), b"\x02\x64", "no org.apache.kafka.connect.data.Decimal"),
        (connect("string", "io.debezium.time.ZonedTimestamp"), b"\x10infinity", "no io.debezium.time.ZonedTimestamp"),
        ({"type": "int", "connect.type": "int16"}, b"\x80\x80\x04", "no int"),
    ],
)
def test_what_is_wrong_is_said(kind: Any, payload: bytes, reason: str) -> None:
    schema = record(("v", kind))
    _, bad = decode(schema, [payload, payload])
    assert sorted(bad) == [0, 1]
    assert reason in bad[0]


@pytest.mark.parametrize(
    ("kind", "value", "arrow", "expected"),
    [
        ({"type": "int", "connect.type": "int16"}, -5, pa.int16(), -5),
        (connect("int", "io.debezium.time.Date"), 19782, pa.date32(), datetime.date(2024, 2, 29)),
        ({"type": "int", "logicalType": "date"}, datetime.date(2024, 2, 29), pa.date32(), datetime.date(2024, 2, 29)),
        (
            connect("long", "io.debezium.time.Timestamp"),
            1,
            pa.timestamp("us"),
            datetime.datetime(1970, 1, 1, 0, 0, 0, 1000),
        ),
        (
            connect("long", "io.debezium.time.MicroTimestamp"),
            1,
            pa.timestamp("us"),
            datetime.datetime(1970, 1, 1, 0, 0, 0, 1),
        ),
        (
            {"type": "long", "logicalType": "timestamp-millis"},
            datetime.datetime(2024, 1, 1, tzinfo=UTC),
            pa.timestamp("us", "UTC"),
            datetime.datetime(2024, 1, 1, tzinfo=UTC),
        ),
        (
            connect("string", "io.debezium.time.ZonedTimestamp"),
            "2024-01-01T00:00:00.5Z",
            pa.timestamp("us", "UTC"),
            datetime.datetime(2024, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC),
        ),
        (connect("long", "io.debezium.time.MicroTime"), 45_296_700_000, pa.string(), "12:34:56.7"),
        (connect("long", "io.debezium.time.MicroTime"), 86_400_000_000, pa.string(), "24:00:00"),
        (connect("int", "io.debezium.time.Time"), 1000, pa.string(), "00:00:01"),
        (connect("bytes", DECIMAL, scale=2, precision=10), b"\xff\x85", pa.decimal128(10, 2), Decimal("-1.23")),
        (connect("bytes", DECIMAL, **{"connect.parameters": {"scale": "2"}}), b"\xff\x85", pa.string(), "-1.23"),
        (connect("string", "io.debezium.data.Uuid"), "c0ffee", pa.string(), "c0ffee"),
        (connect("long", "io.debezium.time.MicroDuration"), 5, pa.duration("us"), datetime.timedelta(microseconds=5)),
    ],
)
def test_types_are_those_of_native_capture(kind: Any, value: Any, arrow: pa.DataType, expected: Any) -> None:
    schema = record(("v", kind))
    found, bad = decode(schema, [by_fastavro(schema, {"v": value})])
    assert not bad
    assert (found.type.field("v").type, found[0].as_py()["v"]) == (arrow, expected)


def test_numbers_of_variable_scale_are_their_text() -> None:
    name = "io.debezium.data.VariableScaleDecimal"
    inner = {"type": "record", "name": "VariableScaleDecimal", "namespace": "io.debezium.data", "connect.name": name}
    inner["fields"] = [{"name": "scale", "type": "int"}, {"name": "value", "type": "bytes"}]  # type: ignore[assignment]
    schema = record(("v", ["null", inner]))
    values = [{"scale": 3, "value": b"\x05\xdc"}, None, {"scale": 8, "value": b"\xff"}, {"scale": 0, "value": b"\x07"}]
    found, _ = decode(schema, [by_fastavro(schema, {"v": value}) for value in values])
    assert [row["v"] for row in found.to_pylist()] == ["1.500", None, "-0.00000001", "7"]


def test_a_record_in_itself_is_refused() -> None:
    with pytest.raises(FormatError, match="contains itself"):
        parse(json.dumps({"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]}))


def test_a_name_defined_once_serves_again_and_in_references() -> None:
    inner = {"type": "record", "name": "I", "namespace": "n", "fields": [{"name": "x", "type": "int"}]}
    outer = {
        "type": "record",
        "name": "O",
        "namespace": "n",
        "fields": [{"name": "a", "type": "I"}, {"name": "b", "type": "n.I"}],
    }
    assert parse(json.dumps(outer), [json.dumps(inner)]).child("b").names == ("x",)
    with pytest.raises(FormatError, match="nothing defines it"):
        parse(json.dumps(outer))


# --- writing ---

LEAVES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.bool_(), st.booleans()),
    (pa.int8(), st.integers(-128, 127)),
    (pa.int16(), st.integers(-(2**15), 2**15 - 1)),
    (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**63 - 1)),
    (pa.float32(), st.floats(width=32, allow_nan=False)),
    (pa.float64(), st.floats(allow_nan=False)),
    (pa.string(), st.text(max_size=8)),
    (pa.large_string(), st.text(max_size=8)),
    (pa.binary(), st.binary(max_size=8)),
    (pa.date32(), st.dates()),
    (pa.timestamp("us"), st.datetimes()),
    (pa.timestamp("ms"), st.datetimes().map(lambda one: one.replace(microsecond=0))),
    (pa.timestamp("us", "UTC"), st.datetimes(timezones=st.just(UTC))),
    (pa.time64("us"), st.times()),
    (pa.duration("us"), st.timedeltas(min_value=datetime.timedelta(-999), max_value=datetime.timedelta(999))),
    (pa.decimal128(10, 2), st.integers(-(10**10) + 1, 10**10 - 1).map(lambda one: Decimal(one).scaleb(-2))),
    (pa.decimal128(38, 0), st.integers(-(10**28) + 1, 10**28 - 1).map(Decimal)),
]
NAMES = st.text(min_size=1, max_size=4)


def nested(inner: tuple[pa.DataType, st.SearchStrategy[Any]]) -> st.SearchStrategy[tuple[pa.DataType, Any]]:
    kind, values = inner
    item = st.none() | values
    return st.sampled_from(
        [
            (pa.list_(kind), st.lists(item, max_size=3)),
            (pa.map_(pa.string(), kind), st.dictionaries(NAMES, item, max_size=3).map(lambda one: list(one.items()))),
            (pa.struct([("p", kind), ("q", pa.int32())]), st.fixed_dictionaries({"p": item, "q": st.integers(0, 9)})),
        ]
    )


TYPES = st.sampled_from(LEAVES) | st.sampled_from(LEAVES).flatmap(nested)


@st.composite
def tables(draw: st.DrawFn) -> pa.RecordBatch:
    n = draw(st.integers(1, 6))
    columns = {}
    for i in range(draw(st.integers(1, 4))):
        kind, values = draw(TYPES)
        columns[f"c{i} ü"] = pa.array(draw(st.lists(st.none() | values, min_size=n, max_size=n)), kind)
    table = pa.RecordBatch.from_pydict(columns)
    start = draw(st.integers(0, n - 1))
    return table.slice(start)


@given(tables())
def test_any_table_comes_back_and_fastavro_reads_it(table: pa.RecordBatch) -> None:
    declared = avro_schema.record(table.schema, name="Value", namespace="s.public.t")
    rows = pa.StructArray.from_arrays(table.columns, fields=list(table.schema))
    payloads = write(parse(json.dumps(declared)), avro_schema.physical(rows)).to_pylist()
    for payload in payloads:
        stream = io.BytesIO(payload)
        fastavro.schemaless_reader(stream, fastavro.parse_schema(json.loads(json.dumps(declared))), None)
        assert stream.tell() == len(payload)
    found, bad = decode(declared, payloads)
    assert not bad
    for column, field in zip(found.flatten(), table.schema, strict=True):
        back, refused = fitting(column, typed_reading(field))
        assert not refused and back.to_pylist() == table.column(field.name).to_pylist()


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ([pa.field("a b", pa.int8()), pa.field("a_b", pa.int8())], "both «a_b» in Avro"),
        ([pa.field("m", pa.map_(pa.int32(), pa.int32()))], "«m» is map"),
        ([pa.field("i", pa.month_day_nano_interval())], "«i» is month_day_nano_interval"),
    ],
)
def test_columns_avro_cannot_hold_are_named(fields: list[pa.Field], match: str) -> None:
    with pytest.raises(FormatError, match=match):
        avro_schema.record(fields, name="Value", namespace="t")


def test_a_number_beyond_63_bits_is_refused() -> None:
    with pytest.raises(FormatError, match="uint64 does not fit"):
        avro_schema.physical(pa.array([2**64 - 1], pa.uint64()))
