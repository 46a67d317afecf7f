"""Whatever a batch holds comes back from its messages, bit for bit."""

from __future__ import annotations

import datetime
from decimal import Context, Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.batch import Batch
from headrace.formats.base import Encoded
from headrace.formats.json import JsonFormat
from headrace.wire import WireMessages

FORMATS = [JsonFormat(), JsonFormat(schemas=True), JsonFormat(envelope=True), JsonFormat(schemas=True, envelope=True)]
NAMES = [format_.name for format_ in FORMATS]
TOPIC = "shop.public.orders"


def wire(encoded: Encoded, topic: str = TOPIC) -> WireMessages:
    n = len(encoded.values)
    return WireMessages(topic, encoded.values, offsets=np.arange(n), keys=encoded.keys, headers=encoded.headers)


def identical(one: pa.Array, other: pa.Array) -> bool:
    """Equal to the last bit: -0.0 is not 0.0, and NaN is NaN (JSON has one NaN only)."""
    if not one.type.equals(other.type, check_metadata=True) or len(one) != len(other):
        return False
    if one.is_null().to_pylist() != other.is_null().to_pylist():
        return False
    return bool(repr(plain(one)) == repr(plain(other)))


def plain(array: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(array.type):
        return plain(array.dictionary_decode())
    if pa.types.is_timestamp(array.type) or pa.types.is_duration(array.type) or pa.types.is_time64(array.type):
        return array.view(pa.int64()).to_pylist()
    if pa.types.is_date32(array.type):
        return array.view(pa.int32()).to_pylist()
    if pa.types.is_struct(array.type):
        return [array.is_valid().to_pylist(), *[plain(child) for child in array.flatten()]]
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        return [pa.compute.list_value_length(array).to_pylist(), plain(array.flatten())]
    return array.to_pylist()


def ints(kind: pa.DataType) -> st.SearchStrategy[int]:
    bits, signed = kind.bit_width, pa.types.is_signed_integer(kind)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.integers(low, high) | st.sampled_from([low, high, 0])


def decimal_values(kind: pa.DataType) -> st.SearchStrategy[Decimal]:
    top = 10**kind.precision - 1
    return st.integers(-top, top).map(lambda n: Decimal(n).scaleb(-kind.scale, Context(prec=100)))


ODD_TEXTS = ["", '"\\', "\x00\x1f\n\r\t\b\f", "😀\u2028", "2024-01-01", "NaN", "null"]
TEXTS = st.text(max_size=8) | st.sampled_from(ODD_TEXTS)
EPOCH = datetime.datetime(1970, 1, 1)
INSTANTS = st.datetimes(datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31)).map(
    lambda one: (one - EPOCH) // datetime.timedelta(microseconds=1)
)
INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32())
SCALARS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    **{kind: ints(kind) for kind in INTEGERS},
    pa.bool_(): st.booleans(),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats() | st.sampled_from([-0.0, 0.0, 5e-324, 1e16, 1.7976931348623157e308]),
    pa.string(): TEXTS,
    pa.large_string(): TEXTS,
    pa.string_view(): TEXTS,
    pa.binary(): st.binary(max_size=7),
    pa.large_binary(): st.binary(max_size=7),
    pa.binary_view(): st.binary(max_size=20),
    pa.binary(4): st.binary(min_size=4, max_size=4),
    pa.date32(): st.integers(-(2**31), 2**31 - 1),
    pa.time32("ms"): st.integers(0, 86_399_999),
    pa.time64("us"): st.integers(0, 86_399_999_999),
    pa.time64("ns"): st.integers(0, 86_399_999_999_999),
    pa.timestamp("us"): ints(pa.int64()),
    pa.timestamp("ns"): ints(pa.int64()),
    pa.timestamp("ms"): ints(pa.int64()),
    pa.timestamp("us", "UTC"): INSTANTS | ints(pa.int64()),
    pa.timestamp("s", "UTC"): st.integers(-(10**11), 10**11),
    pa.timestamp("ns", "Europe/Paris"): ints(pa.int64()),
    pa.duration("us"): ints(pa.int64()),
    **{kind: decimal_values(kind) for kind in (pa.decimal128(38, 0), pa.decimal128(10, 2), pa.decimal128(20, 18))},
    **{kind: decimal_values(kind) for kind in (pa.decimal128(5, -2), pa.decimal256(76, 10))},
    pa.null(): st.none(),
}
LEAVES = [kind for kind in SCALARS if not pa.types.is_null(kind)]


def types() -> st.SearchStrategy[pa.DataType]:
    leaves = st.sampled_from(list(SCALARS))
    nested = st.recursive(
        leaves,
        lambda inner: st.one_of(
            inner.map(pa.list_),
            inner.map(pa.large_list),
            inner.map(lambda kind: pa.list_(kind, 2)),
            st.lists(inner, min_size=1, max_size=3).map(lambda ks: pa.struct([(f"f{i}", k) for i, k in enumerate(ks)])),
        ),
        max_leaves=3,
    )
    others = [pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.int64())]
    maps = [pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.string()), pa.map_(pa.int32(), pa.float64())]
    return nested | st.sampled_from([*others, *maps])


def values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if kind in SCALARS:
        return st.none() | SCALARS[kind]
    if pa.types.is_dictionary(kind):
        return values(kind.value_type)
    if pa.types.is_map(kind):
        keys = SCALARS[kind.key_type]
        return st.none() | st.dictionaries(keys, values(kind.item_type), max_size=3).map(lambda d: list(d.items()))
    if pa.types.is_struct(kind):
        return st.none() | st.fixed_dictionaries({field.name: values(field.type) for field in kind})
    size = (2, 2) if pa.types.is_fixed_size_list(kind) else (0, 3)
    return st.none() | st.lists(values(kind.value_type), min_size=size[0], max_size=size[1])


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    n = draw(st.integers(1, 5))
    kinds = draw(st.lists(types(), min_size=1, max_size=4))
    name = st.text(min_size=1, max_size=5).filter(lambda text: text[:2] != "__")
    names = draw(st.lists(name, min_size=len(kinds), max_size=len(kinds), unique=True))
    fields = [pa.field("id", pa.int64(), nullable=False)]
    arrays = [pa.array(range(n), pa.int64())]
    for name, kind in zip(names, kinds, strict=True):
        if name == "id":
            continue
        arrays.append(pa.array([draw(values(kind)) for _ in range(n)], kind))
        fields.append(pa.field(name, kind, metadata={"postgres.type": "made up"}))
    rows = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
    op = np.frombuffer(draw(st.binary(min_size=n, max_size=n)), np.uint8)
    before = pa.StructArray.from_arrays(arrays, fields=fields, mask=pa.array([code % 5 != 1 for code in op]))
    return Batch.of(
        rows,
        op=np.frombuffer(b"cudrc", np.uint8)[op % 5],
        lsn=np.array(draw(st.lists(st.integers(0, 2**64 - 1), min_size=n, max_size=n)), np.uint64),
        index=np.array(draw(st.lists(st.integers(0, 2**63 - 1), min_size=n, max_size=n)), np.int64),
        ts_us=np.array(draw(st.lists(st.integers(0, 2**52), min_size=n, max_size=n)), np.int64),
        key=["id"],
        source=draw(st.sampled_from(["shop", "other"])),
        before=before if before.null_count < n else None,
        unchanged=pa.array(draw(st.lists(st.none() | st.just(["id"]), min_size=n, max_size=n)), pa.list_(pa.string())),
    )


@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
@settings(suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_type_comes_back_bit_for_bit(form: JsonFormat, data: st.DataObject) -> None:
    batch = data.draw(batches())
    decoded = form.decode(wire(form.encode(TOPIC, batch)), batch.rows.schema)
    assert decoded.bad == []
    ((found, _),) = decoded.parts
    assert found.key_columns == batch.key_columns and found.source == batch.source
    for name in batch.records.schema.names:
        if name in found.records.schema.names:
            assert found.records.schema.field(name).equals(batch.records.schema.field(name), check_metadata=True)
            assert identical(found.column(name), batch.column(name)), (name, found.column(name), batch.column(name))
        else:  # an extra column that says nothing is left out
            assert name in ("__before", "__unchanged") and batch.column(name).null_count == batch.num_rows


@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
def test_truncates_and_deletes_come_back(form: JsonFormat) -> None:
    rows = pa.RecordBatch.from_pydict({"id": [1, 2, None], "name": ["x", "y", None]})
    batch = Batch.of(rows, op=np.frombuffer(b"cdt", np.uint8), lsn=9, ts_us=5, key=["id"], source="shop")
    encoded = form.encode(TOPIC, batch)
    assert encoded.keys[-1] is None
    assert encoded.rows.tolist() == ([0, 1, 1, 2] if form.envelope else [0, 1, 2])
    ((found, _),) = form.decode(wire(encoded), batch.rows.schema).parts
    assert found.records.equals(batch.records, check_metadata=True)


def test_slices_of_columns_are_written_as_they_are() -> None:
    whole = pa.RecordBatch.from_pydict(
        {"id": list(range(6)), "b": [b"a", None, b"bcd", b"", b"ef", None], "l": [[1], None, [2, 3], [], [4], [5]]}
    )
    for start in range(6):
        batch = Batch.of(whole.slice(start, 2), key=["id"], source="shop")
        ((found, _),) = JsonFormat().decode(wire(JsonFormat().encode(TOPIC, batch)), batch.rows.schema).parts
        assert found.rows.to_pylist() == batch.rows.to_pylist()
