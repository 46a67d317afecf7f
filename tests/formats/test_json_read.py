"""Reading JSON that is odd, wrong, mixed or much."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.batch import Batch
from headrace.formats.base import Decoded
from headrace.formats.json import JsonFormat
from headrace.wire import WireMessages

PLACEHOLDER = "__debezium_unavailable_value"


def decode(
    values: list[bytes | None],
    schema: pa.Schema | None = None,
    *,
    keys: list[bytes | None] | None = None,
    form: JsonFormat | None = None,
    headers: list[list[tuple[str, bytes | None]]] | None = None,
) -> Decoded:
    told = WireMessages("t.public.x", values, offsets=np.arange(len(values)), keys=keys, headers=headers)
    return (form or JsonFormat()).decode(told, schema)


def rows(decoded: Decoded) -> list[dict[str, Any]]:
    return [row for batch, _ in decoded.parts for row in batch.rows.to_pylist()]


def ops(decoded: Decoded) -> str:
    return "".join(chr(op) for batch, _ in decoded.parts for op in batch.op)


POISON = [
    (b"", "invalid JSON at byte 0: unexpected end of data"),
    (b'{"a":', "invalid JSON at byte 5: unexpected end of data"),
    (b'{"a":1}garbage', "invalid JSON at byte 7"),
    (b'{"a":1}{"a":2}', "invalid JSON at byte 7"),
    (b'{"a":"\xff"}', "invalid UTF-8 at byte 6"),
    (b'{"a":"\\ud800"}', "a surrogate that stands alone"),
    (b'{"a":"x\ny"}', "invalid JSON at byte"),
    (b"[1]", "not a JSON object: [1]"),
    (b"7", "not a JSON object: 7"),
    (b'{"a":1,"a":2}', "the name «a» stands twice"),
    (b'{"a":1e999}', "the number 1e999 is beyond 64-bit floats"),
    (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deep"),
    (b'{"before":null,"after":{"a":1},"op":"z","source":{}}', "an envelope of op «z»"),
    (b'{"before":null,"after":null,"op":"c","source":{}}', "op «c» without its row"),
    (b'{"schema":{"type":"struct","fields":[]},"payload":', "invalid JSON"),
    (b'{"schema":{"type":"int32"},"payload":7}', "a payload of type int32, not a struct"),
]


@pytest.mark.parametrize("schema", [None, pa.schema([("a", pa.int64())])], ids=["untyped", "typed"])
@pytest.mark.parametrize(("poison", "why"), POISON, ids=[why[:40] for _, why in POISON])
def test_one_bad_message_stops_no_other(poison: bytes, why: str, schema: pa.Schema | None) -> None:
    decoded = decode([b'{"a":1}', b'{"a":2}', poison, b'{"a":3}'], schema)
    assert [one for one, _ in decoded.bad] == [2]
    assert why in decoded.bad[0][1]
    assert [row["a"] for row in rows(decoded)] == [1, 2, 3]
    assert [i for _, where in decoded.parts for i in where.tolist()] == [0, 1, 3]


def test_two_halves_of_an_object_do_not_make_one() -> None:
    decoded = decode([b'{"a":', b"1}", b'{"a":2}{"a":3}'])
    assert [one for one, _ in decoded.bad] == [0, 1, 2] and not decoded.parts


def test_many_bad_messages_among_good_ones() -> None:
    values: list[bytes | None] = [b'{"a":%d}' % i if i % 3 else b'{"a":%d' % i for i in range(3_000)]
    decoded = decode(values)
    assert [one for one, _ in decoded.bad] == list(range(0, 3_000, 3))
    assert [row["a"] for row in rows(decoded)] == [i for i in range(3_000) if i % 3]


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        (pa.int64(), '"x"', '"x" does not fit int64'),
        (pa.int8(), "300", "does not fit int8"),
        (pa.int32(), "1.5", "does not fit int32"),
        (pa.float64(), '"much"', '"much" does not fit double'),
        (pa.bool_(), "1", "does not fit bool"),
        (pa.date32(), '"yesterday"', "is not an ISO 8601 date and time"),
        (pa.timestamp("us", "UTC"), '"infinity"', "is not an ISO 8601 date and time"),
        (pa.timestamp("us", "UTC"), '"2023-02-29T00:00:00Z"', "is not a date of the calendar"),
        (pa.timestamp("ms"), '"2023-02-28T00:00:00.0001Z"', "has more decimals"),
        (pa.time64("us"), "86400000000", "does not fit time64"),
        (pa.binary(), '"###"', "is not base64"),
        (pa.decimal128(5, 2), '"1.234"', "does not fit decimal128(5, 2)"),
        (pa.decimal128(5, 2), "1234.56", "does not fit decimal128(5, 2)"),
        (pa.list_(pa.int64()), '{"b":1}', "does not fit list"),
        (pa.struct([("b", pa.int64())]), "[1]", "does not fit struct"),
        (pa.map_(pa.string(), pa.int64()), '{"k":"v"}', "does not fit map"),
    ],
)
def test_a_value_that_does_not_fit_is_named(kind: pa.DataType, text: str, why: str) -> None:
    schema = pa.schema([("id", pa.int64()), ("a", kind)])
    values: list[bytes | None] = [b'{"id":0,"a":null}', b'{"id":1,"a":%s}' % text.encode(), b'{"id":2}']
    decoded = decode(values, schema)
    ((message, reason),) = decoded.bad
    assert message == 1 and "column «a»" in reason and why in reason
    assert [row["id"] for row in rows(decoded)] == [0, 2]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (pa.int64(), "1.0", 1),
        (pa.int64(), '"7"', 7),
        (pa.float64(), '"NaN"', "nan"),
        (pa.float64(), '"-Infinity"', "-inf"),
        (pa.float32(), "1", "1.0"),
        (pa.string(), "1.50", "1.50"),
        (pa.string(), "12345678901234567890123", "12345678901234567890123"),
        (pa.string(), "true", "true"),
        (pa.string(), '{"x":[1.0,null]}', '{"x":[1.0,null]}'),
        (pa.decimal128(10, 2), "1.5", "1.50"),
        (pa.decimal128(10, 2), '"1.5"', "1.50"),
        (pa.decimal128(10, 2), '"AJY="', "1.50"),
        (pa.decimal128(38, 0), "12345678901234567890123456789012345678", "12345678901234567890123456789012345678"),
        (pa.date32(), "19782", "2024-02-29"),
        (pa.date32(), '"2024-02-29"', "2024-02-29"),
        (pa.date32(), '"2024-02-29Z"', "2024-02-29"),
        (pa.timestamp("us"), "1000000", "1970-01-01 00:00:01"),
        (pa.timestamp("us", "UTC"), '"1970-01-01T01:00:01+01:00"', "1970-01-01 00:00:01+00:00"),
        (pa.time64("us"), "1000000", "00:00:01"),
        (pa.time64("us"), '"00:00:01Z"', "00:00:01"),
        (pa.map_(pa.string(), pa.int64()), '{"k":1,"l":null}', "[('k', 1), ('l', None)]"),
    ],
)
def test_forms_of_one_type(kind: pa.DataType, text: str, value: Any) -> None:
    decoded = decode([b'{"a":%s}' % text.encode()], pa.schema([("a", kind)]))
    assert decoded.bad == []
    assert str(rows(decoded)[0]["a"]) == str(value)


@pytest.mark.parametrize(
    ("texts", "kind", "values"),
    [
        (["1", "2"], "int64", [1, 2]),
        (["1", "2.5"], "double", [1.0, 2.5]),
        (["2.0"], "double", [2.0]),
        (["9223372036854775808", "1"], "decimal128(38, 0)", [9223372036854775808, 1]),
        (["NaN", "1"], "double", None),
        (['"NaN"', "1"], "double", None),
        (["null", "null"], "null", [None, None]),
        (['"2024-01-01T00:00:00Z"', '"2024-01-01"'], "string", ["2024-01-01T00:00:00Z", "2024-01-01"]),
        (["null", '"2024-01-01"'], "string", [None, "2024-01-01"]),
        (['["2024-01-01"]', "[]"], "list<item: string>", [["2024-01-01"], []]),
        (["[null,null]", "[]"], "list<item: null>", [[None, None], []]),
        (['{"x":1}', '{"y":"z"}'], "struct<x: int64, y: string>", [{"x": 1, "y": None}, {"x": None, "y": "z"}]),
        (['[1,"x"]', "[2]"], "string", ['[1,"x"]', "[2]"]),
    ],
)
def test_types_that_nobody_declares(texts: list[str], kind: str, values: list[Any] | None) -> None:
    decoded = decode([b'{"a":%s}' % text.encode() for text in texts])
    assert decoded.bad == []
    ((batch, _),) = decoded.parts
    assert str(batch.column("a").type) == kind
    if values is not None:
        assert batch.column("a").to_pylist() == values


def test_a_column_that_changes_its_kind_begins_a_new_part() -> None:
    decoded = decode([b'{"a":1}', b'{"a":null}', b'{"a":"x"}', b'{"a":"y"}', b'{"a":3}'])
    assert [(str(batch.column("a").type), where.tolist()) for batch, where in decoded.parts] == [
        ("int64", [0, 1]),
        ("string", [2, 3]),
        ("int64", [4]),
    ]


def test_pretty_printed_messages() -> None:
    flat = json.dumps({"a": 1, "b": "x\ny"}, indent=2).encode()
    envelope = json.dumps({"op": "c", "source": {"name": "s"}, "before": None, "after": {"a": 2, "b": "z"}}, indent=2)
    schema = {"type": "struct", "fields": [{"type": "int32", "field": "a"}]}
    told = json.dumps({"payload": {"a": 3}, "schema": schema}, indent=1)
    decoded = decode([flat, envelope.encode(), told.encode(), flat])
    assert decoded.bad == [] and [row["a"] for row in rows(decoded)] == [1, 2, 3, 1]


def with_schema(row: dict[str, Any]) -> bytes:
    fields = [{"type": "int64", "optional": True, "field": name} for name in row]
    return json.dumps({"schema": {"type": "struct", "fields": fields}, "payload": row}, separators=(",", ":")).encode()


def test_all_shapes_in_one_topic_are_one_part_when_the_schema_is_known() -> None:
    envelope = b'{"before":null,"after":{"a":2},"source":{"name":"t"},"op":"c","ts_ms":1}'
    values = [b'{"a":1}', envelope, with_schema({"a": 3}), b'{"a":4}', with_schema({"a": 5})]
    decoded = decode(values, pa.schema([("a", pa.int64())]))
    assert decoded.bad == [] and [row["a"] for row in rows(decoded)] == [1, 2, 3, 4, 5]
    assert [where.tolist() for _, where in decoded.parts] == [[0, 1, 2, 3, 4]]


def test_columns_come_as_asked_for() -> None:
    schema = pa.schema([pa.field("new", pa.string()), pa.field("a", pa.int32(), nullable=False, metadata={"m": "1"})])
    ((batch, _),) = decode([b'{"a":1,"dropped":{"x":1}}'], schema).parts
    found = pa.schema(list(batch.rows.schema))
    assert found.equals(schema, check_metadata=True)
    assert batch.rows.to_pylist() == [{"new": None, "a": 1}]


def test_a_hundred_thousand_tombstones() -> None:
    keys: list[bytes | None] = [b'{"id":%d}' % i for i in range(100_000)]
    start = time.perf_counter()
    decoded = decode([None] * 100_000, keys=keys)
    ((batch, where),) = decoded.parts
    assert time.perf_counter() - start < 10  # a loop that scanned backwards for each would take minutes
    assert batch.column("id").to_pylist() == list(range(100_000)) and set(batch.op) == {ord("d")}
    assert batch.key_columns == ("id",) and where.tolist() == list(range(100_000))


@pytest.mark.parametrize("known", [False, True])
def test_tombstones_take_the_columns_of_their_neighbours(known: bool) -> None:
    schema = pa.schema([("id", pa.int64()), ("n", pa.string())]) if known else None
    keys = [b'{"id":1}', b'{"id":2}', with_schema({"id": 3}), b'{"id":4}']
    decoded = decode([None, b'{"id":2,"n":"x"}', None, b'{"id":4,"n":"y"}'], schema, keys=list(keys))
    assert decoded.bad == [] and ops(decoded) == "dcdc" and len(decoded.parts) == 1
    assert [(row["id"], row["n"]) for row in rows(decoded)] == [(1, None), (2, "x"), (3, None), (4, "y")]


def test_a_tombstone_behind_the_delete_of_its_key_is_dropped() -> None:
    deleted = b'{"id":1,"__deleted":"true"}'
    keys = [b'{"id":%d}' % i for i in (1, 1, 2, 1, 3)]
    decoded = decode([deleted, None, None, deleted, None], keys=list(keys))
    assert ops(decoded) == "dddd" and [row["id"] for row in rows(decoded)] == [1, 2, 1, 3]


def test_partitions_that_interleave_keep_deletes_and_tombstones_together() -> None:
    deleted = b'{"id":%d,"__deleted":"true"}'
    told = WireMessages(
        "t",
        [deleted % 1, deleted % 2, None, None],
        offsets=np.array([0, 0, 1, 1]),
        partitions=np.array([0, 1, 0, 1]),
        keys=[b'{"id":1}', b'{"id":2}', b'{"id":1}', b'{"id":2}'],
    )
    assert len(rows(JsonFormat().decode(told))) == 2


@pytest.mark.parametrize(
    ("key", "known", "row"),
    [
        (b"plain", None, None),
        (b"plain", ["id"], {"id": "plain", "n": None}),
        (b'"quoted"', ["id"], {"id": '"quoted"', "n": None}),
    ],
)
def test_keys_that_are_no_objects(key: bytes, known: list[str] | None, row: dict[str, Any] | None) -> None:
    metadata = None if known is None else {b"headrace.key": json.dumps(known).encode()}
    schema = pa.schema([("id", pa.string()), ("n", pa.int64())], metadata=metadata)
    decoded = decode([b'{"id":"a","n":1}', None], schema, keys=[b"a", key])
    if row is None:
        assert [i for i, _ in decoded.bad] == [1] and "key" in decoded.bad[0][1]
    else:
        assert decoded.bad == [] and rows(decoded)[1] == row
        assert decoded.parts[0][0].key_columns == ("id",)


def test_position_and_time_of_an_envelope() -> None:
    def event(i: int, sequence: str, tx: int, **more: Any) -> bytes:
        source = {"name": "shop", "ts_ms": 1, "ts_us": 1500 + i, "sequence": sequence, "lsn": 900 - i, "txId": tx}
        return json.dumps({"before": None, "after": {"id": i}, "source": source, "op": "c", **more}).encode()

    values = [
        event(0, '["100","900"]', 5),
        event(1, '["100","899"]', 5),
        event(2, '["200","898"]', 6, transaction={"id": "6:1", "total_order": 4}),
        event(3, '[null,"897"]', 7),
    ]
    ((batch, _),) = decode(values).parts  # type: ignore[arg-type]  # a list of bytes has no None
    assert batch.lsn.tolist() == [100, 100, 200, 897]
    assert batch.index.tolist() == [0, 1, 3, 0]
    assert batch.ts_us.tolist() == [1500, 1501, 1502, 1503]
    assert batch.source == "shop"


def test_values_that_the_source_did_not_send() -> None:
    raw = list(PLACEHOLDER.encode())
    row = {"id": 1, "t": PLACEHOLDER, "a": [PLACEHOLDER], "b": raw, "x": "x"}
    event = json.dumps({"before": None, "after": row, "source": {"name": "s"}, "op": "u"}).encode()
    whole = json.dumps({"before": None, "after": {**row, "t": "t", "a": ["a"], "b": [1]}, "source": {}, "op": "u"})
    ((batch, _),) = decode([event, whole.encode()]).parts
    assert batch.unchanged is not None and batch.unchanged.to_pylist() == [["t", "a", "b"], None]
    assert batch.rows.to_pylist()[0] == {"id": 1, "t": None, "a": None, "b": None, "x": "x"}


def test_our_own_value_that_looks_like_a_placeholder_stays() -> None:
    batch = Batch.of({"id": [1], "t": [PLACEHOLDER]}, op="u", key=["id"])
    encoded = JsonFormat().encode("t", batch)
    ((found, _),) = decode(list(encoded.values), headers=[list(header) for header in encoded.headers]).parts
    assert found.rows.to_pylist() == batch.rows.to_pylist() and found.unchanged is None


def test_what_debezium_says_in_headers() -> None:
    headers: list[list[tuple[str, bytes | None]]] = [
        [("__op", b"u"), ("__source_ts_ms", b"7"), ("__debezium.oldkey", b"Struct{id=1}")],
        [("__op", b'"d"')],
        [],
    ]
    decoded = decode([b'{"id":1}', None, b'{"id":3}'], keys=[b'{"id":1}', b'{"id":2}', b'{"id":3}'], headers=headers)
    assert ops(decoded) == "udc" and decoded.parts[0][0].ts_us.tolist()[0] == 7000


@pytest.mark.parametrize("key", ["json", "json+schema", "string", "bytes", "none"])
def test_key_formats(key: str) -> None:
    batch = Batch.of({"id": [7, 8], "n": ["x", "y"]}, op=np.frombuffer(b"cd", np.uint8), key=["id"])
    encoded = JsonFormat(key=key).encode("t", batch)
    first = {"json": b'{"id":7}', "string": b"7", "bytes": b"7", "none": None}
    if key in first:
        assert encoded.keys[0] == first[key]
    else:
        assert json.loads(encoded.keys[0] or b"")["payload"] == {"id": 7}
    schema = pa.schema(list(batch.rows.schema), metadata={b"headrace.key": b'["id"]'})
    told = WireMessages("t", encoded.values, offsets=np.arange(2), keys=encoded.keys, headers=encoded.headers)
    ((found, _),) = JsonFormat(key=key).decode(told, schema).parts
    assert found.records.equals(batch.records)


def test_not_a_number_here_and_there() -> None:
    schema = pa.schema([("a", pa.float64()), ("b", pa.int32())])
    texts = ["1.5", '"NaN"', '"-Infinity"', "-0.0", "null", '"many"']
    decoded = decode([b'{"a":%s,"b":%d}' % (text.encode(), i) for i, text in enumerate(texts)], schema)
    assert [i for i, _ in decoded.bad] == [5] and len(decoded.parts) == 1
    assert repr(decoded.parts[0][0].column("a").to_pylist()) == "[1.5, nan, -inf, -0.0, None]"


def test_old_rows_in_headers_of_several_kinds() -> None:
    batch = Batch.of({"id": [1, 2, 3], "x": [0.5, 1.5, 2.5]}, op="u", key=["id"], source="t")
    old = pa.array([{"id": 1, "x": float("nan")}, None, {"id": 3, "x": 7.0}], pa.struct(list(batch.rows.schema)))
    batch = Batch.of(batch.rows, op="u", key=["id"], source="t", before=old)
    encoded = JsonFormat().encode("t.public.x", batch)
    decoded = decode(
        list(encoded.values),
        batch.rows.schema,
        keys=list(encoded.keys),
        headers=[list(header) for header in encoded.headers],
    )
    ((found, _),) = decoded.parts
    assert found.before is not None and repr(found.before.to_pylist()) == repr(old.to_pylist())
    headers = [list(header) for header in encoded.headers]
    headers[2] = [(name, b'{"id":"three"}' if name == "__before" else value) for name, value in headers[2]]
    ((message, why),) = decode(list(encoded.values), batch.rows.schema, headers=headers).bad
    assert message == 2 and "__before" in why
