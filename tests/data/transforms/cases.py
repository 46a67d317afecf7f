"""Records, and chains of transforms that are applied to them: what both Java's transforms and ours are asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KAFKA = "org.apache.kafka.connect.transforms."
DEBEZIUM = "io.debezium.transforms."
TIME = "io.debezium.time."
DATA = "org.apache.kafka.connect.data."
Schema = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A chain, and the records that go through it.

    Attributes:
        name: says what is asked.
    """

    name: str
    records: str
    properties: dict[str, str]


def _of(kind: str, name: str | None = None, *, optional: bool = True, **more: Any) -> Schema:
    named = {} if name is None else {"name": name, "version": 1}
    return {"type": kind, "optional": optional, **named, **more}


def _struct(fields: dict[str, Schema], *, optional: bool = False, **more: Any) -> Schema:
    return {
        "type": "struct",
        "fields": [{**schema, "field": name} for name, schema in fields.items()],
        "optional": optional,
        **more,
    }


COLUMNS = {
    "id": _of("int32", optional=False),
    "name": _of("string", default="anon"),
    "price": _of("bytes", f"{DATA}Decimal", parameters={"scale": "2", "connect.decimal.precision": "10"}),
    "flag": _of("boolean"),
    "big": _of("int64"),
    "d": _of("double"),
    "f": _of("float"),
    "small": _of("int16", optional=False, default=7),
    "created": _of("int64", f"{TIME}MicroTimestamp"),
    "milli": _of("int64", f"{TIME}Timestamp"),
    "nano": _of("int64", f"{TIME}NanoTimestamp"),
    "ts": _of("int64", f"{DATA}Timestamp"),
    "cday": _of("int32", f"{DATA}Date"),
    "ctime": _of("int32", f"{DATA}Time"),
    "day": _of("int32", f"{TIME}Date"),
    "zoned": _of("string", f"{TIME}ZonedTimestamp"),
    "tags": _of("array", items=_of("string")),
    "point": _struct(
        {"x": _of("double", optional=False), "y": _of("double", optional=False)},
        optional=True,
        name="io.debezium.data.geometry.Point",
        version=1,
    ),
    "raw": _of("bytes"),
    "vec": _of("array", "io.debezium.data.DoubleVector", items=_of("double")),
    "num": _of("string"),
}
SOURCE = {
    "connector": _of("string", optional=False),
    "ts_ms": _of("int64", optional=False),
    "snapshot": _of("string", "io.debezium.data.Enum", default="false", parameters={"allowed": "true,false"}),
    "db": _of("string", optional=False),
    "schema": _of("string", optional=False),
    "table": _of("string", optional=False),
    "lsn": _of("int64"),
    "ts_us": _of("int64"),
}
TRANSACTION = {
    "id": _of("string", optional=False),
    "total_order": _of("int64", optional=False),
    "data_collection_order": _of("int64", optional=False),
}


def _envelope(topic: str, columns: dict[str, Schema]) -> Schema:
    row = {"optional": True, "name": f"{topic}.Value"}
    return _struct(
        {
            "before": {**_struct(columns), **row},
            "after": {**_struct(columns), **row},
            "source": _struct(SOURCE, name="io.debezium.connector.postgresql.Source", version=1),
            "transaction": _struct(TRANSACTION, optional=True, name="event.block", version=1),
            "op": _of("string", optional=False),
            "ts_ms": _of("int64"),
        },
        name=f"{topic}.Envelope",
        version=2,
    )


def _event(
    table: str, columns: dict[str, Schema], op: str, before: Any, after: Any, *, block: Any = None, key: str = "id"
) -> dict[str, Any]:
    topic = f"dbz.public.{table}"
    row = after or before
    source = {
        "connector": "postgresql", "ts_ms": 1_720_000_000_123, "snapshot": "true" if op == "r" else None, "db": "shop",
        "schema": "public", "table": table, "lsn": 4242, "ts_us": 1_720_000_000_123_456,
    }  # fmt: skip
    value = {
        "before": before, "after": after, "source": source, "transaction": block, "op": op, "ts_ms": 1_720_000_000_500,
    }  # fmt: skip
    key_schema = _struct({key: columns[key]}, name=f"{topic}.Key")
    return {
        "topic": topic,
        "key": row and {"schema": key_schema, "payload": {key: row[key]}},
        "value": {"schema": _envelope(topic, columns), "payload": value},
    }


def _row(**given: Any) -> dict[str, Any]:
    return {**dict.fromkeys(COLUMNS), "small": 1, **given}


FULL = _row(
    id=1, name='Zoë "q" \\ 😀', price="AfSk", flag=True, big=9_007_199_254_740_993, d=1.5e10, f=0.25, small=-5,
    created=1_720_000_000_123_456, milli=1_720_000_000_123, nano=1_720_000_000_123_456_789, ts=1_720_000_000_123,
    cday=19_905, ctime=3_723_004, day=-719_163, zoned="2024-07-01T22:30:00.5Z", tags=["a", None, "b"],
    point={"x": 1.0, "y": -2.5}, raw="AQID", vec=[1.0, 2.5], num="42",
)  # fmt: skip
EMPTY = _row(id=-(2**31))
ODD = _row(
    id=2**31 - 1, name="", price="/w==", flag=False, big=-(2**63), d=1e-5, f=3.4028235e38, small=32_767, created=-1,
    milli=-1, nano=-1, ts=-1, cday=-1, ctime=0, day=0, zoned="2024-01-01T00:00:00Z", tags=[],
    point={"x": 0.0, "y": 0.0},
    raw="", vec=[], num=" 1e3 ",
)  # fmt: skip
BLOCK = {"id": "770:4242", "total_order": 3, "data_collection_order": 1}
TOMBSTONE = {**_event("goods", COLUMNS, "d", FULL, None), "value": None}
UPDATE = _event("goods", COLUMNS, "u", {**FULL, "name": "old", "tags": None, "raw": None}, {**FULL, "raw": None})

OUTBOX = {
    "id": _of("string", "io.debezium.data.Uuid", optional=False),
    "aggregatetype": _of("string", optional=False),
    "aggregateid": _of("string", optional=False),
    "type": _of("string"),
    "payload": _of("string", "io.debezium.data.Json"),
    "at": _of("int64", f"{TIME}MicroTimestamp"),
    "shard": _of("int32"),
    "version": _of("int32"),
}


def _message(op: str = "c", **given: Any) -> dict[str, Any]:
    row = {
        "id": "11111111-1111-1111-1111-111111111111", "aggregatetype": "order", "aggregateid": "7", "type": "Made",
        "payload": '{"a": 1}', "at": None, "shard": 3, "version": 1, **given,
    }  # fmt: skip
    return _event("outbox", OUTBOX, op, row if op == "d" else None, None if op == "d" else row)


PAYLOADS = [
    None, "", "  ", "{}", '{"a": 1, "b": [1, 2], "c": {"d": "é", "e": null}, "f": 1.5, "g": true, "h": 9999999999}',
    '{"items": [{"x": 1}, {"x": 2, "y": "z"}, null], "none": [], "mixed": 1e3}',
    '{"items": [{"x": 1}, {"x": 2, "y": "z"}]}',
    '{"items": [{"x": 1}, null]}',
    '{"deep": [{"a": {"b": [true]}}], "big": 123456789012345678901234567890}',
    '{"bad": [1, "a"]}', "not json", "[1, 2]",
    '{"wide": [1, 9999999999]}', '{"nested": [[1, 2], [3]]}', '"text"', "{broken",
]  # fmt: skip
HEARTBEAT = {
    "topic": "__debezium-heartbeat.dbz",
    "key": {"schema": _struct({"serverName": _of("string", optional=False)}), "payload": {"serverName": "dbz"}},
    "value": {
        "schema": _struct({"ts_ms": _of("int64", optional=False)}, name="io.debezium.connector.common.Heartbeat"),
        "payload": {"ts_ms": 5},
    },
}
RECORDS: dict[str, list[dict[str, Any]]] = {
    "goods": [
        _event("goods", COLUMNS, "r", None, EMPTY),
        _event("goods", COLUMNS, "c", None, FULL, block=BLOCK),
        _event("goods", COLUMNS, "c", None, ODD),
        UPDATE,
        _event("goods", COLUMNS, "d", FULL, None),
        TOMBSTONE,
        _event("goods", COLUMNS, "t", None, None),
        HEARTBEAT,
    ],
    "outbox": [
        _message(),
        *[_message(payload=payload, at=1_720_000_000_123_456, aggregatetype="cart") for payload in PAYLOADS],
        _message("u"),
        _message("d"),
        {**_message("d"), "value": None},
        HEARTBEAT,
    ],
}


def _chain(*steps: dict[str, str], predicates: dict[str, dict[str, str]] | None = None) -> dict[str, str]:
    names = [f"t{place}" for place in range(len(steps))]
    found = {"transforms": ",".join(names)}
    for name, step in zip(names, steps, strict=True):
        found |= {f"transforms.{name}.{key}": value for key, value in step.items()}
    if predicates:
        found["predicates"] = ",".join(predicates)
        for name, about in predicates.items():
            found |= {f"predicates.{name}.{key}": value for key, value in about.items()}
    return found


def _kafka(name: str, **own: str) -> dict[str, str]:
    return {"type": KAFKA + name, **{key.replace("_", "."): value for key, value in own.items()}}


def _debezium(name: str, **own: str) -> dict[str, str]:
    return {"type": DEBEZIUM + name, **{key.replace("_", "."): value for key, value in own.items()}}


UNWRAP = _debezium("ExtractNewRecordState")
REWRITE = _debezium(
    "ExtractNewRecordState",
    delete_tombstone_handling_mode="rewrite-with-tombstone",
    add_fields="op,source.ts_ms:at,transaction.id,total_order,snapshot,nope",
    add_headers="op,table,ts_ms,transaction.total_order",
)
TOMBSTONES = {"none": {"type": f"{KAFKA}predicates.RecordIsTombstone"}}
NOT_TOMBSTONE = {"predicate": "none", "negate": "true"}


def _cast(spec: str) -> dict[str, str]:
    return {**_kafka("Cast$Value", spec=spec), **NOT_TOMBSTONE}


def _goods(name: str, *steps: dict[str, str], predicates: dict[str, dict[str, str]] | None = None) -> Case:
    return Case(name, "goods", _chain(*steps, predicates=predicates))


def _outbox(name: str, **own: str) -> Case:
    return Case(f"outbox: {name}", "outbox", _chain(_debezium("outbox.EventRouter", **own)))


CASES = [
    _goods("unwrap", UNWRAP),
    *[
        _goods(f"unwrap, {mode}", {**UNWRAP, "delete.tombstone.handling.mode": mode})
        for mode in ("drop", "rewrite", "delete-to-tombstone")
    ],
    _goods("unwrap with fields and headers", REWRITE),
    _goods("unwrap keeps null", {**REWRITE, "replace.null.with.default": "false"}),
    _goods("unwrap, routed by a field", {**UNWRAP, "route.by.field": "name"}),
    _goods("unwrap, routed by a number", {**UNWRAP, "route.by.field": "id"}),
    _goods(
        "changed", _debezium("ExtractChangedRecordState", header_changed_name="Changed", header_unchanged_name="Same")
    ),
    _goods(
        "changed, into the row",
        _debezium("ExtractChangedRecordState", header_changed_name="Changed"),
        _debezium("HeaderToValue", headers="Changed", fields="changed", operation="copy"),
        UNWRAP,
    ),
    _goods(
        "drop unchanged fields",
        _debezium("ExtractChangedRecordState", header_unchanged_name="Same"),
        {**UNWRAP, "drop.fields.header.name": "Same"},
    ),
    _goods(
        "drop unchanged fields whatever the schema",
        _debezium("ExtractChangedRecordState", header_unchanged_name="Same"),
        {
            **UNWRAP,
            "drop.fields.header.name": "Same",
            "drop.fields.from.key": "true",
            "drop.fields.keep.schema.compatible": "false",
        },
    ),
    _goods("exclude and rename", UNWRAP, _kafka("ReplaceField$Value", exclude="vec,nope", renames="id:ID,name:NAME")),
    _goods("include", UNWRAP, _kafka("ReplaceField$Value", include="id,name,small")),
    _goods(
        "include, nulls kept",
        UNWRAP,
        _kafka("ReplaceField$Value", include="id,name", replace_null_with_default="false"),
    ),
    _goods("fields of the envelope", _kafka("ReplaceField$Value", exclude="source,transaction")),
    _goods("fields of the key", _kafka("ReplaceField$Key", renames="id:key_id")),
    _goods("mask", UNWRAP, _kafka("MaskField$Value", fields="name,big,d,f,flag,tags,day,num,small,ts")),
    _goods("mask a struct", UNWRAP, _kafka("MaskField$Value", fields="point")),
    _goods("mask bytes", UNWRAP, _kafka("MaskField$Value", fields="raw")),
    _goods("mask with a number", UNWRAP, _kafka("MaskField$Value", fields="big,d,small,num", replacement="12")),
    _goods("mask with a text", UNWRAP, _kafka("MaskField$Value", fields="name", replacement='x"y')),
    _goods("mask a number with a text", UNWRAP, _kafka("MaskField$Value", fields="big", replacement="x")),
    _goods("mask a boolean with a text", UNWRAP, _kafka("MaskField$Value", fields="flag", replacement="x")),
    _goods("mask keys", _kafka("MaskField$Key", fields="id")),
    _goods(
        "insert",
        UNWRAP,
        _kafka(
            "InsertField$Value",
            topic_field="topic!",
            static_field="st",
            static_value="é",
            partition_field="p?",
            timestamp_field="at",
        ),
    ),
    _goods("insert a time that there is not", UNWRAP, _kafka("InsertField$Value", timestamp_field="at!")),
    _goods("insert into keys", _kafka("InsertField$Key", static_field="st", static_value="1")),
    _goods("hoist", UNWRAP, _kafka("HoistField$Value", field="line")),
    _goods("hoist a key", _kafka("HoistField$Key", field="k")),
    _goods("hoist a tombstone", _kafka("HoistField$Value", field="line")),
    _goods("extract", UNWRAP, _kafka("ExtractField$Value", field="price")),
    _goods("extract from a key", _kafka("ExtractField$Key", field="id")),
    _goods("extract a struct", _kafka("ExtractField$Value", field="source")),
    _goods("extract by a path", _kafka("ExtractField$Value", field="after.name", field_syntax_version="v2")),
    _goods("extract what is not there", UNWRAP, _kafka("ExtractField$Value", field="nope")),
    _goods("value to key", UNWRAP, _kafka("ValueToKey", fields="name,small")),
    _goods(
        "value to key, then its field",
        UNWRAP,
        _kafka("ValueToKey", fields="id"),
        _kafka("ExtractField$Key", field="id"),
    ),
    _goods("value to key of nothing", UNWRAP, _kafka("ValueToKey", fields="nope")),
    _goods("flatten", _kafka("Flatten$Value", delimiter="_")),
    _goods("flatten a row", UNWRAP, _kafka("Flatten$Value")),
    _goods("flatten keys", _kafka("Flatten$Key")),
    _goods("schema's name", UNWRAP, _kafka("SetSchemaMetadata$Value", schema_name="my.Name", schema_version="3")),
    _goods("schema's name of keys", _kafka("SetSchemaMetadata$Key", schema_name="my.Key")),
    *[
        _goods(f"header {literal!r}", _kafka("InsertHeader", header="h", value_literal=literal))
        for literal in (
            "text",
            "17",
            "-40000",
            "3000000000",
            "1.5",
            "true",
            "null",
            '"quoted"',
            "1e400.0",
            "2024-01-01x",
        )
    ],
    _goods("drop headers", REWRITE, _kafka("DropHeaders", headers="__op,__nope")),
    _goods(
        "headers to the value",
        REWRITE,
        _debezium("HeaderToValue", headers="__op,__table", fields="o,t", operation="move"),
    ),
    _goods(
        "headers into a struct",
        {**_kafka("InsertHeader", header="h", value_literal="17")},
        _debezium("HeaderToValue", headers="h", fields="source.h", operation="copy"),
    ),
    _goods(
        "headers into a new struct",
        {**_kafka("InsertHeader", header="h", value_literal="17")},
        _debezium("HeaderToValue", headers="h", fields="made.h", operation="move"),
    ),
    _goods(
        "header of a field, copied",
        UNWRAP,
        _kafka("HeaderFrom$Value", fields="id,name", headers="i,n", operation="copy"),
    ),
    _goods(
        "header of a field, moved", UNWRAP, _kafka("HeaderFrom$Value", fields="name", headers="n", operation="move")
    ),
    _goods("header of the key", _kafka("HeaderFrom$Key", fields="id", headers="i", operation="copy")),
    _goods("regex", _kafka("RegexRouter", regex=r"dbz\.(\w+)\.(.*)", replacement="$2-in-$1")),
    _goods("regex that does not match", _kafka("RegexRouter", regex="public", replacement="x")),
    _goods("time in the topic", _kafka("TimestampRouter")),
    *[
        _goods(f"cast {spec}", UNWRAP, _cast(spec), predicates=TOMBSTONES)
        for spec in (
            "id:string,big:string,small:string,flag:string,d:string,f:string,price:string,raw:string,ts:string,cday:string",
            "big:int8,d:int32,f:int16,flag:int64,small:float64",
            "big:float64,small:float32,id:float64,flag:float32",
            "big:boolean,d:boolean,name:boolean,num:boolean",
            "num:int32",
            "num:float64",
            "num:float32",
            "name:int8",
            "d:int64,f:int64,ts:int64,cday:int32",
            "id:int64,small:int32",
            "tags:string",
            "point:string",
            "price:int32",
            "zoned:int32",
            "raw:int32",
            "ctime:string,created:string",
            "small:boolean",
            "f:float64",
            "d:int8",
        )
    ],
    _goods("cast a key", _kafka("ExtractField$Key", field="id"), _kafka("Cast$Key", spec="string")),
    _goods("cast the field of a key", _kafka("Cast$Key", spec="id:int64")),
    *[
        _goods(
            f"time {field} to {target}",
            UNWRAP,
            {**_kafka("TimestampConverter$Value", field=field, target_type=target), **more},
        )
        for field, target, more in (
            ("ts", "string", {"format": "yyyy-MM-dd'T'HH:mm:ss.SSSX"}),
            ("ts", "string", {"format": "EEE, d MMM yy hh:mm a"}),
            ("ts", "unix", {}),
            ("ts", "unix", {"unix.precision": "seconds"}),
            ("ts", "Date", {}),
            ("ts", "Time", {}),
            ("cday", "Timestamp", {}),
            ("ctime", "string", {"format": "HH:mm:ss"}),
            ("milli", "Timestamp", {}),
            ("created", "Timestamp", {"unix.precision": "microseconds"}),
            ("nano", "Date", {"unix.precision": "nanoseconds"}),
            ("created", "string", {"unix.precision": "microseconds", "format": "dd/MM/yyyy"}),
            ("zoned", "Timestamp", {"format": "yyyy-MM-dd'T'HH:mm:ss"}),
            ("name", "Timestamp", {"format": "yyyy"}),
            ("id", "Timestamp", {}),
            ("d", "Timestamp", {}),
            ("nope", "Timestamp", {}),
            ("ts", "Timestamp", {}),
        )
    ],
    *[
        _goods(f"zone {zone} {lists}", _debezium("TimezoneConverter", converted_timezone=zone, **lists))
        for zone, lists in (
            ("+02:00", {}),
            ("Europe/Vienna", {}),
            ("America/New_York", {"include_list": "source:goods:zoned,goods:milli"}),
            ("+02:00", {"include_list": "source:goods"}),
            ("+02:00", {"exclude_list": "source:goods:created"}),
            ("+02:00", {"exclude_list": "source:goods"}),
            ("+02:00", {"include_list": "topic:other"}),
            ("-05:30", {"include_list": "topic:dbz.public.goods:ts"}),
            ("+02:00", {"include_list": "goods:nano"}),
            ("+02:00", {"include_list": "source:goods:source.ts_ms,goods:after.ts"}),
        )
    ],
    _goods(
        "vectors",
        _debezium("VectorToJsonConverter"),
    ),
    _goods("vectors of a row", UNWRAP, _debezium("VectorToJsonConverter")),
    _goods("logical", _debezium("ByLogicalTableRouter", topic_regex=r"dbz\.public\.(.*)", topic_replacement="all")),
    _goods(
        "logical with a key's part",
        _debezium(
            "ByLogicalTableRouter",
            topic_regex=r"(.*)\.(goods)",
            topic_replacement="$1.all",
            key_field_regex=r".*\.(\w+)",
            key_field_replacement="$1",
            key_field_name="__table",
        ),
    ),
    _goods(
        "logical without keys",
        _debezium(
            "ByLogicalTableRouter", topic_regex=r"(.*)goods", topic_replacement="$1all", key_enforce_uniqueness="false"
        ),
    ),
    *[
        _goods(
            f"partition by {fields}, {function}",
            _debezium(
                "partitions.PartitionRouting",
                partition_payload_fields=fields,
                partition_topic_num="7",
                partition_hash_function=function,
            ),
        )
        for fields in (
            "change.name",
            "after.id,source.table",
            "change.big,change.flag",
            "op",
            "after.nope",
            "change.d,change.f",
            "change.price",
            "after.small",
            "ts_ms",
        )
        for function in ("java", "murmur")
    ],
    _goods("schema changes", _debezium("SchemaChangeEventFilter", schema_change_event_exclude_list="CREATE")),
    _goods(
        "filter by topic",
        {**_kafka("Filter"), "predicate": "p", "negate": "true"},
        UNWRAP,
        predicates={"p": {"type": f"{KAFKA}predicates.TopicNameMatches", "pattern": "dbz.*"}},
    ),
    _goods("filter tombstones", {**_kafka("Filter"), "predicate": "none"}, predicates=TOMBSTONES),
    _goods(
        "only where there is a header",
        {**_kafka("InsertHeader", header="a", value_literal="1")},
        {**_kafka("DropHeaders", headers="a"), "predicate": "none"},
        {**_kafka("RegexRouter", regex=".*", replacement="has"), "predicate": "h"},
        predicates={**TOMBSTONES, "h": {"type": f"{KAFKA}predicates.HasHeaderKey", "name": "a"}},
    ),
    _goods(
        "a usual chain",
        REWRITE,
        _kafka("ReplaceField$Value", exclude="vec,raw,point"),
        _kafka("ValueToKey", fields="id"),
        _kafka("ExtractField$Key", field="id"),
        _kafka("Cast$Key", spec="string"),
        _kafka("RegexRouter", regex=r".*\.(.*)", replacement="$1"),
    ),
    _outbox("as it is"),
    _outbox("expanded", table_expand_json_payload="true"),
    _outbox("expanded with nulls", table_expand_json_payload="true", table_json_payload_null_behavior="optional_bytes"),
    _outbox("tombstones", route_tombstone_on_empty_payload="true"),
    _outbox("headers", table_fields_additional_placement="type:header:eventType,aggregateid:header"),
    _outbox("envelope", table_fields_additional_placement="type:envelope:eventType", route_by_field="type"),
    _outbox("partition", table_fields_additional_placement="shard:partition"),
    _outbox("missing", table_fields_additional_placement="nope:header"),
    _outbox(
        "missing, ignored",
        table_fields_additional_placement="nope:header,type:header",
        table_field_additional_missing="ignore",
    ),
    _outbox("its own time", table_field_event_timestamp="at"),
    _outbox(
        "a version",
        table_field_event_schema_version="version",
        table_fields_additional_placement="type:envelope",
        route_by_field="type",
    ),
    _outbox("no time", table_field_event_timestamp="nope"),
    _outbox("another key", table_field_event_key="type"),
    _outbox("another route", route_topic_replacement="events.${routedByValue}.v1"),
    _outbox("updates are fatal", table_op_invalid_behavior="fatal"),
    Case(
        "outbox, then its time in the topic",
        "outbox",
        _chain(_debezium("outbox.EventRouter"), _kafka("TimestampRouter", topic_format="${topic}.${timestamp}")),
    ),
    Case(
        "outbox without a payload", "outbox", _chain(_debezium("outbox.EventRouter", table_field_event_payload="nope"))
    ),
]
