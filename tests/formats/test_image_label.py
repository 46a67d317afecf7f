"""Labelled images as bytes and one byte: there and back, what others send, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batch import Batch
from headrace.errors import FormatError
from headrace.formats.base import Encoded
from headrace.formats.factory import format_for
from headrace.formats.image_label import ImageLabelFormat
from headrace.produce.idx import read_sets
from headrace.wire import WireMessages

FORMAT = ImageLabelFormat()


def wire(encoded: Encoded) -> WireMessages:
    n = len(encoded.values)
    return WireMessages("digits", encoded.values, offsets=np.arange(n), keys=encoded.keys, headers=encoded.headers)


def others(*values: bytes | None, keys: list[bytes | None] | None = None) -> WireMessages:
    return WireMessages("digits", list(values), offsets=np.arange(len(values)), keys=keys)


def batch(rows: list[dict[str, Any]], schema: pa.Schema, **more: Any) -> Batch:
    return Batch.of(pa.RecordBatch.from_pylist(rows, schema=schema), **more)


SCHEMA = pa.schema([("pixels", pa.binary()), ("label", pa.int16())])


def test_its_name() -> None:
    assert format_for("image+label").name == format_for("label+image").name == "image+label"
    assert format_for("image+label", key="string") == ImageLabelFormat(key="string")


@given(st.lists(st.tuples(st.binary(max_size=9), st.integers(0, 255)), max_size=6))
def test_there_and_back(rows: list[tuple[bytes, int]]) -> None:
    told = [{"pixels": pixels, "label": label} for pixels, label in rows]
    encoded = FORMAT.encode("digits", batch(told, SCHEMA))
    assert list(encoded.values) == [pixels + bytes([label]) for pixels, label in rows]
    for schema in (None, SCHEMA):
        decoded = FORMAT.decode(wire(encoded), schema)
        assert [row for part, _ in decoded.parts for row in part.rows.to_pylist()] == told
        assert not decoded.bad


@pytest.mark.parametrize("pixels", [pa.binary(), pa.large_binary(), pa.binary(4), pa.binary_view()])
@pytest.mark.parametrize("label", [pa.uint8(), pa.int16(), pa.int32(), pa.int64()])
def test_types_of_the_table(pixels: pa.DataType, label: pa.DataType) -> None:
    schema = pa.schema([("pixels", pixels), ("label", label)])
    given_ = batch([{"pixels": b"abcd", "label": 7}, {"pixels": b"\0\1\2\3", "label": 0}], schema)
    ((found, where),) = FORMAT.decode(wire(FORMAT.encode("digits", given_)), schema).parts
    assert found.rows.schema.types == [pixels, label] and where.tolist() == [0, 1]
    assert found.rows.to_pylist() == given_.rows.to_pylist()


def test_more_columns_and_a_key_are_kept() -> None:
    schema = pa.schema([("id", pa.int64()), *SCHEMA])
    rows: list[dict[str, Any]] = [{"id": 1, "pixels": b"ab", "label": 3}, {"id": 2, "pixels": b"cd", "label": 4}]
    events = batch(rows, schema, key=["id"], op=np.frombuffer(b"cu", np.uint8), lsn=7, ts_us=9)
    encoded = FORMAT.encode("digits", events)
    assert list(encoded.values) == [b"ab\3", b"cd\4"] and b'"id":1' in (encoded.keys[0] or b"").replace(b" ", b"")
    known = pa.schema(schema, metadata=events.schema.metadata)
    ((found, _),) = FORMAT.decode(wire(encoded), known).parts
    assert found.rows.to_pylist() == rows and found.key_columns == ("id",)
    assert (found.op.tobytes(), found.lsn.tolist(), found.ts_us.tolist()) == (b"cu", [7, 7], [9, 9])


def test_a_delete_has_no_value() -> None:
    schema = pa.schema([("id", pa.int64()), *SCHEMA])
    rows: list[dict[str, Any]] = [{"id": 1, "pixels": b"ab", "label": 3}, {"id": 1, "pixels": None, "label": None}]
    events = batch(rows, schema, key=["id"], op=np.frombuffer(b"cd", np.uint8))
    encoded = FORMAT.encode("digits", events)
    assert encoded.values[1] is None
    known = pa.schema(schema, metadata=events.schema.metadata)
    parts = FORMAT.decode(wire(encoded), known).parts
    assert [row for part, _ in parts for row in part.rows.to_pylist()] == rows
    assert b"".join(part.op.tobytes() for part, _ in parts) == b"cd"


def test_what_others_send() -> None:
    """As the seed's Scala: 784 bytes and a label, keys of text; and messages that are neither."""
    image = bytes(i % 256 for i in range(784))
    decoded = FORMAT.decode(others(image + b"\5", b"", b"\xff", keys=[b"00001", b"00002", b"00003"]))
    ((found, where),) = decoded.parts
    assert found.rows.to_pylist() == [{"pixels": image, "label": 5}, {"pixels": b"", "label": 255}]
    assert where.tolist() == [0, 2] and decoded.bad == [(1, "no bytes: neither an image nor a label")]


@pytest.mark.parametrize(
    ("rows", "schema", "message"),
    [
        ([{"pixels": b"a"}], pa.schema([SCHEMA.field(0)]), "needs the columns pixels and label"),
        ([{"pixels": "a", "label": 1}], pa.schema([("pixels", pa.string()), ("label", pa.int8())]), "has to be bytes"),
        ([{"pixels": b"a", "label": 1.0}], pa.schema([SCHEMA.field(0), ("label", pa.float64())]), "a whole number"),
        ([{"pixels": b"a", "label": 1}, {"pixels": None, "label": 1}], SCHEMA, "«pixels» is null in row 1"),
        ([{"pixels": b"a", "label": None}], SCHEMA, "«label» is null in row 0"),
        ([{"pixels": b"a", "label": 255}, {"pixels": b"a", "label": 256}], SCHEMA, "label 256 in row 1 is no byte"),
        ([{"pixels": b"a", "label": -1}], SCHEMA, "label -1 in row 0 is no byte"),
    ],
)
def test_what_does_not_fit(rows: list[dict[str, Any]], schema: pa.Schema, message: str) -> None:
    with pytest.raises(FormatError, match=message) as told:
        FORMAT.encode("digits", batch(rows, schema))
    assert "«digits»" in told.value.message


def test_the_real_digits(shared_data: Path) -> None:
    (digits,) = read_sets(shared_data / "mnist")
    records = digits.records().select(["pixels", "label"])
    encoded = FORMAT.encode("digits", Batch.of(records))
    assert {len(value or b"") for value in encoded.values} == {785}
    ((found, _),) = FORMAT.decode(wire(encoded)).parts
    assert found.rows.equals(records)
