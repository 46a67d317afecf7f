"""Arrow streams, CSV, texts and bytes; telling formats apart; their names."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.batch import Batch
from headrace.errors import DeclarationError, FormatError
from headrace.formats.arrow import ArrowFormat
from headrace.formats.base import Encoded, Format
from headrace.formats.csv import CsvFormat
from headrace.formats.factory import KNOWN, REGISTERED, format_for
from headrace.formats.json_keys import KEY_FORMATS
from headrace.formats.plain import BytesFormat, StringFormat
from headrace.formats.topic_formats import TopicCodec, detect
from headrace.wire import WireMessages


def wire(encoded: Encoded) -> WireMessages:
    n = len(encoded.values)
    return WireMessages("s.p.t", encoded.values, offsets=np.arange(n), keys=encoded.keys, headers=encoded.headers)


def of(*values: bytes | None, keys: list[bytes | None] | None = None) -> WireMessages:
    return WireMessages("s.p.t", list(values), offsets=np.arange(len(values)), keys=keys, ts_ms=np.full(len(values), 5))


def events(**more: Any) -> Batch:
    rows = pa.RecordBatch.from_arrays(
        [
            pa.array([1, 2, 3], pa.int32()),
            pa.array(["", None, 'q"\n,']),
            pa.array(["x", "y", "x"]).dictionary_encode(),
            pa.array([b"\xff", None, b""]),
            pa.array([1.5, float("nan"), None]),
            pa.array([[1], None, []], pa.list_(pa.int64())),
            pa.array([0, None, 1], pa.timestamp("us", "UTC")),
        ],
        names=["id", "name", "kind", "raw", "number", "list", "at"],
    )
    return Batch.of(rows, op=np.frombuffer(b"cur", np.uint8), lsn=7, ts_us=9, key=["id"], source="s", **more)


def test_arrow_loses_nothing() -> None:
    batch = events(unchanged=pa.array([None, ["raw"], None], pa.list_(pa.string())))
    ((found, where),) = ArrowFormat().decode(wire(ArrowFormat().encode("t", batch))).parts
    assert found.records.schema.equals(batch.records.schema, check_metadata=True)
    assert str(found.records.to_pylist()) == str(batch.records.to_pylist()) and where.tolist() == [0, 0, 0]


def test_arrow_cuts_long_batches() -> None:
    batch = Batch.of({"id": np.arange(1_000), "text": ["x" * 100] * 1_000}, key=["id"])
    form = ArrowFormat(max_bytes=10_000)
    encoded = form.encode("t", batch)
    assert len(encoded.values) > 10 and max(len(value or b"") for value in encoded.values) <= 10_000
    decoded = form.decode(wire(encoded))
    assert [part.num_rows for part, _ in decoded.parts] == np.diff([*encoded.rows.tolist(), 1_000]).tolist()
    assert pa.Table.from_batches([part.records for part, _ in decoded.parts]).equals(pa.table(batch.records))
    with pytest.raises(FormatError, match="longer than max_bytes"):
        ArrowFormat(max_bytes=100).encode("t", batch)


def test_arrow_of_others_and_what_is_no_stream() -> None:
    sink = pa.BufferOutputStream()
    schema = pa.schema([("a", pa.int64()), ("d", pa.dictionary(pa.int8(), pa.string()))])
    with pa.ipc.new_stream(sink, schema) as writer:
        for words in (["x"], ["y", "x"]):
            column = pa.array(words).dictionary_encode().cast(schema.field("d").type)
            writer.write_batch(pa.record_batch([pa.array(range(len(words))), column], schema=schema))
    value = sink.getvalue().to_pybytes()
    decoded = ArrowFormat().decode(of(value, b"\xff\xff\xff\xff", None, value[:-40], b"x"))
    assert [i for i, _ in decoded.bad] == [1, 3, 4]
    assert [row for part, _ in decoded.parts for row in part.rows.to_pylist()] == [
        {"a": 0, "d": "x"},
        {"a": 0, "d": "y"},
        {"a": 1, "d": "x"},
    ]
    assert {chr(op) for part, _ in decoded.parts for op in part.op} == {"c"}
    asked = ArrowFormat().decode(of(value), pa.schema([("a", pa.int32()), ("z", pa.string())])).parts[0][0]
    assert asked.rows.to_pylist() == [{"a": 0, "z": None}]


@pytest.mark.parametrize("form", [CsvFormat(), CsvFormat(delimiter="\t"), CsvFormat(delimiter=";", header=True)])
def test_csv_comes_back_with_its_schema(form: CsvFormat) -> None:
    batch = events()
    decoded = form.decode(wire(form.encode("t", batch)), batch.rows.schema)
    assert decoded.bad == []
    assert str(decoded.parts[0][0].records.to_pylist()) == str(batch.records.to_pylist())


@pytest.mark.parametrize(
    ("form", "values", "rows", "bad"),
    [
        (CsvFormat(), [b"1,x", b"2,"], [{"f0": "1", "f1": "x"}, {"f0": "2", "f1": None}], []),
        (CsvFormat(columns=("a", "b")), [b'1,""\n2,y\n'], [{"a": "1", "b": ""}, {"a": "2", "b": "y"}], []),
        (CsvFormat(header=True), [b"a;b,c\r\n1,2\r\n"], [{"a;b": "1", "c": "2"}], []),
        (CsvFormat(columns=("a",)), [b"1,2", b"3"], [{"a": "3"}], [(0, "2 fields where 1 are expected")]),
        (CsvFormat(), [b'"x'], [], [(0, "a quote at character 0 that is not closed")]),
        (CsvFormat(), [b"\xff"], [], [(0, "invalid UTF-8 at byte 0")]),
        (CsvFormat(), [b'x"y'], [], [(0, "a quote inside a field that is not quoted, at character 1")]),
    ],
)  # fmt: skip
def test_csv_of_others(form: CsvFormat, values: list[bytes], rows: list[Any], bad: list[tuple[int, str]]) -> None:
    decoded = form.decode(of(*values))
    assert decoded.bad == bad
    assert [row for part, _ in decoded.parts for row in part.rows.to_pylist()] == rows


@pytest.mark.parametrize("key", KEY_FORMATS)
@pytest.mark.parametrize("name", ["json", "json+schema", "json+envelope", "csv", "string", "bytes"])
def test_what_we_wrote_comes_back_whole(name: str, key: str) -> None:
    """As a log reads it, who knows the schema: old rows, deletes, and columns that the value does not have."""
    row = {"id": pa.scalar(1, pa.int32()), "raw": pa.scalar(b"\0x"), "price": pa.scalar(Decimal("-1.50"))}
    if name in ("string", "bytes"):
        del row["price"]  # one column beside the key
    schema = pa.schema([(column, value.type) for column, value in row.items()])
    rows = [row, {**row, "id": 2}, {**row, "id": 3}, {**row, "id": 4}, dict.fromkeys(row)]
    batch = Batch.of(
        pa.RecordBatch.from_pylist(rows, schema=schema),
        op=np.frombuffer(b"ruddt", np.uint8),
        lsn=7,
        index=np.arange(5),
        ts_us=9,
        key=["id"],
        source="s",
        before=pa.array([None, {**row, "raw": b""}, None, None, None], pa.struct(list(schema))),
    )
    codec = TopicCodec(keys={"s.p.t": key})
    told = wire(codec.encode("s.p.t", name, batch.records))
    assert codec.decode(name, told, batch.records.schema).equals(batch.records, check_metadata=True)


@pytest.mark.parametrize("form", [BytesFormat(), StringFormat()])
def test_values_as_they_are(form: BytesFormat | StringFormat) -> None:
    kind = pa.binary() if isinstance(form, BytesFormat) else pa.string()
    decoded = form.decode(of(b"x", None, b"", keys=[b"k", b"l", None]))
    ((batch, _),) = decoded.parts
    assert pa.schema(list(batch.rows.schema)) == pa.schema([("key", kind), ("value", kind)])
    assert "".join(map(chr, batch.op)) == "cdc" and batch.key_columns == ("key",)
    assert batch.column("value").cast(pa.binary()).to_pylist() == [b"x", None, b""]
    back = form.decode(wire(form.encode("t", batch)))
    assert back.parts[0][0].rows.equals(batch.rows)
    with pytest.raises(FormatError, match="holds one column"):
        form.encode("t", events())
    with pytest.raises(FormatError, match="is null"):
        form.encode("t", Batch.of({"value": ["x", None]}))


@pytest.mark.parametrize(
    ("values", "headers", "name"),
    [
        ([None, b""], [], ""),
        ([b' {"a":1}\n', None], [], "json"),
        ([b'{"a":1}', b"\0\0\0\0\1"], [], "bytes"),
        ([b"\0\0\0\0\1\2"], [], "registry"),
        ([b"\2\6abc"], [("apicurio.value.globalId", b"\0" * 8)], "registry"),
        ([b"\xff\xff\xff\xff\x10"], [], "arrow"),
        ([b"plain", b'{"a":1}'], [], "string"),
        ([b"\xfe"], [], "bytes"),
    ],
)
def test_formats_are_told_apart(values: list[bytes | None], headers: list[tuple[str, bytes]], name: str) -> None:
    told = WireMessages("t", values, offsets=np.arange(len(values)), headers=[headers] * len(values))
    assert detect(told) == name


@pytest.mark.parametrize("spec", [item for item in KNOWN if item.split("+")[0] not in REGISTERED])
def test_names(spec: str) -> None:
    form: Format = format_for(spec)
    assert form.name == spec
    assert form.decode(of()).parts == []


@pytest.mark.parametrize("spec", ["jsn", "json+avro", "json+schema+schema", "csv+schema", ""])
def test_a_name_that_is_none(spec: str) -> None:
    with pytest.raises(DeclarationError, match=r"there is no format") as error:
        format_for(spec)
    assert "json+envelope" in str(error.value)


def test_a_key_format_that_is_none() -> None:
    with pytest.raises(DeclarationError, match="no key format «avro»"):
        format_for("json", key="avro")
    with pytest.raises(DeclarationError, match="has no key"):
        format_for("arrow", key="json")
