"""What real Debezium wrote to Kafka, in six forms, against what the native capture gives for the same SQL."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest

import headrace as hr
from headrace.batch import Batch
from headrace.formats.topic_formats import ForeignFormats, TopicCodec
from headrace.kafka.fetch import wire_messages
from headrace.log.base import walk
from headrace.testing import KafkaBroker, KafkaConnect, PostgresServer, SchemaRegistryServer
from headrace.testing.servers import avro_converters, debezium_source
from headrace.wire import WireMessages
from tests.waiting import wait_until

from ..formats.debezium_cases import by_topic, lines

pytestmark = pytest.mark.timeout(180)
SENTINEL = "the very last row"
# A slot is active as soon as it is being made: only what streams has taken its snapshot.
STREAMING = """
    SELECT count(*) FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
    WHERE s.database = current_database() AND r.state = 'streaming'
"""

# Values of a type as SQL; row i of the tables has the i-th of each, beginning again at the end.
COLUMNS: dict[str, tuple[str, list[str]]] = {
    "flag": ("boolean", ["true", "false"]),
    "small": ("smallint", ["-32768", "32767"]),
    "whole": ("integer", ["-2147483648", "2147483647"]),
    "big": ("bigint", ["-9223372036854775808", "9223372036854775807"]),
    "an_oid": ("oid", ["0", "4294967295"]),
    "single": ("real", ["0.1", "'NaN'", "'-Infinity'", "3.4028235e38", "1e-45"]),
    "double": ("double precision", ["0.1", "'NaN'", "'Infinity'", "1.7976931348623157e308", "5e-324", "'-0'"]),
    "price": ("numeric(10,2)", ["-12345678.90", "0", "99999999.99"]),
    "wide": ("numeric(38,10)", ["1234567890123456789012345678.0123456789", "-0.0000000001"]),
    "count": ("numeric(5)", ["-99999", "7"]),
    "wider": ("numeric(50,2)", ["123456789012345678901234567890123456789012345678.90", "-0.10"]),
    "free": ("numeric", ["1.5", "-12345678901234567890123456789012345678901234567890.000001", "0", "1.500", "100"]),
    "day": ("date", ["'2024-02-29'", "'1582-10-14'", "'0001-01-01'", "'9999-12-31'"]),
    "at": (
        "timestamp",
        ["'2024-02-29 12:34:56.789012'", "'1969-12-31 23:59:59.999999'", "'9999-12-31 23:59:59.999999'"],
    ),
    "at0": ("timestamp(0)", ["'2024-02-29 12:34:56'", "'1900-01-01 00:00:00'"]),
    "at3": ("timestamp(3)", ["'2024-02-29 12:34:56.789'", "'1900-01-01 00:00:00.001'"]),
    "at6": ("timestamp(6)", ["'2024-02-29 12:34:56.789012'"]),
    "zoned": (
        "timestamptz",
        [
            *("'2024-02-29 12:34:56.789012+02'", "'0001-01-02 00:00:00+00'", "'9999-12-31 23:59:59.999999+00'"),
            *("'20000-01-01 00:00:00+00'", "'0044-03-15 12:00:00+00 BC'"),
        ],
    ),
    "zoned0": ("timestamptz(0)", ["'2024-02-29 12:34:56+02'"]),
    "zoned3": ("timestamptz(3)", ["'2024-02-29 12:34:56.700+02'"]),
    "raw": ("bytea", [r"'\x00ff'", "''", "decode(repeat('ab',300),'hex')"]),
    "words": ("text", ["'žlutý kůň 🐎'", "''", r"E'a\nb\t\"c\"\\d'", "repeat('x',5000)", "'__debezium_unavailable'"]),
    "short": ("varchar(20)", ["'é'", "'1234'", "'null'"]),
    "padded": ("char(6)", ["'ab'", "''", "'abcdef'"]),
    "ident": ("name", ["'pg_catalog'"]),
    "letter": ('"char"', ["'x'", "''"]),
    "uid": ("uuid", ["'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"]),
    "doc": ("json", ["""'{"b": 1,  "a": [null, 1.0]}'""", "'null'", "'\"x\"'"]),
    "docb": ("jsonb", ["""'{"b": 1,  "a": [null, 1.0]}'""", "'null'"]),
    "clock": ("time", ["'12:34:56.789012'", "'00:00:00'", "'24:00:00'"]),
    "clock3": ("time(3)", ["'12:34:56.7'"]),
    "clockz": ("timetz", ["'12:34:56.789012+02'", "'00:00:00+00'"]),
    "span": ("interval", ["'1 year 2 mons 3 days 04:05:06.789012'", "'-1 day'", "'0'"]),
    "mood": ("mood", ["'happy'", "'it''s, so'"]),
    "ints": ("integer[]", ["'{1,NULL,3}'", "'{}'"]),
    "texts": ("text[]", ["""'{a,NULL,"b c","NULL"}'""", "'{}'"]),
    "bools": ("boolean[]", ["'{t,f,NULL}'"]),
    "doubles": ("double precision[]", ["'{1,0.1,NaN,Infinity}'"]),
    "prices": ("numeric(10,2)[]", ["'{1.10,NULL}'"]),
    "uids": ("uuid[]", ["'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'"]),
    "days": ("date[]", ["'{2024-02-29,NULL}'"]),
    "ats": ("timestamp[]", ["'{2024-02-29 12:34:56.789012}'", "'{2024-02-29 00:00:00}'"]),
    "zoneds": ("timestamptz[]", ["'{2024-02-29 12:34:56.789012+02}'"]),
    "clocks": ("time[]", ["'{12:34:56.789012}'"]),
    "moods": ("mood[]", ["'{happy}'"]),
    "docs": ("jsonb[]", ["""array['{"a": 1}'::jsonb]"""]),
    "raws": ("bytea[]", [r"array['\x00ff'::bytea]"]),
    "net": ("inet", ["'10.0.0.1/8'", "'::1'"]),
    "block": ("cidr", ["'10.0.0.0/8'"]),
    "mac": ("macaddr", ["'08:00:2b:01:02:03'"]),
    "bit1": ("bit(1)", ["B'1'", "B'0'"]),
    "bits": ("bit(5)", ["B'10110'", "B'00000'"]),
    "varbits": ("varbit(9)", ["B'101'", "B'0001'", "B''"]),
    "cash": ("money", ["'-12.34'", "0"]),
    "spot": ("point", ["'(1.5,-2)'"]),
    "ir": ("int4range", ["'[1,5)'", "'empty'"]),
    "tr": ("tstzrange", ["'[2024-01-01 00:00:00+00,)'"]),
    "lexemes": ("tsvector", ["'a:1 b:2'"]),
    "boxed": ("box", ["'(1,1),(0,0)'"]),
    "wal": ("pg_lsn", ["'0/1932A28'"]),
    "spans": ("interval[]", ["'{1 day}'"]),
    "preset": ("integer DEFAULT 7", ["3"]),
}
ROWS = max(len(values) for _, values in COLUMNS.values())
TABLES = {"brief": "DEFAULT", "whole_rows": "FULL", "far": "DEFAULT"}
TYPED = ("brief", "whole_rows")


@dataclass(frozen=True)
class Form:
    """How a connector writes: a converter, and a flattening with its way with deletes."""

    name: str
    format: str
    schemas: bool
    flat: str = ""
    keeps_null: bool = False
    """replace.null.with.default=false"""

    def settings(self, registry: str) -> dict[str, str]:
        if self.format == "registry":
            found = avro_converters(registry) | {"schema.name.adjustment.mode": "avro"}
        else:
            found = {}
            for part in ("key", "value"):
                found[f"{part}.converter"] = "org.apache.kafka.connect.json.JsonConverter"
                found[f"{part}.converter.schemas.enable"] = str(self.schemas).lower()
            if self.keeps_null:
                found["value.converter.replace.null.with.default"] = "false"
        if self.flat:
            kind = "io.debezium.transforms.ExtractNewRecordState"
            flattening = {
                "type": kind,
                "delete.tombstone.handling.mode": self.flat,
                "add.fields": "op,source.ts_us,lsn",
            }
            found |= {"transforms": "flat"} | {f"transforms.flat.{key}": value for key, value in flattening.items()}
        return found


FORMS = {
    form.name: form
    for form in (
        Form("json-envelope", "json+envelope", schemas=False, keeps_null=True),
        Form("json-envelope-schema", "json+envelope", schemas=True),
        Form("json-flat", "json", schemas=False, flat="tombstone"),
        Form("json-flat-schema", "json", schemas=True, flat="rewrite-with-tombstone"),
        Form("avro-envelope", "registry", schemas=True),
        Form("avro-flat", "registry", schemas=True, flat="tombstone"),
    )
}


# --- the differences that are Debezium's own ---


def unscaled(text: str) -> str:
    """Connect's form of a decimal: base64 of the unscaled value's bytes."""
    number = int(text.replace(".", ""))
    size = (number + (number < 0)).bit_length() // 8 + 1
    return base64.b64encode(number.to_bytes(size, "big", signed=True)).decode()


def variable_scale(text: str) -> str:
    """VariableScaleDecimal, which has no zeros behind the last digit."""
    plain = text.rstrip("0").rstrip(".") if "." in text else text
    return json.dumps(
        {"scale": len(plain.partition(".")[2]), "value": unscaled(plain)}, separators=(",", ":")
    )  # fmt: skip


Says = dict[Any, Any] | Callable[[Any], Any]


@dataclass(frozen=True)
class Difference:
    """A column for which Debezium's messages say something else than the database."""

    why: str
    column: str
    says: Says
    forms: Callable[[Form], bool] = lambda form: True
    ops: str = "rcud"

    def of(self, value: Any) -> Any:
        if callable(self.says):
            return None if value is None else self.says(value)
        return self.says.get(value, value)


def typed(form: Form) -> bool:
    return form.schemas


def untyped(form: Form) -> bool:
    return not form.schemas


_NO_TYPE = "Debezium has no Connect type for it and leaves the column out"
_BARE = "without a schema the message holds Connect's form, and nothing says which"
DIFFERENCES = [
    Difference(_NO_TYPE, "boxed", lambda _: None),
    Difference(_NO_TYPE, "wal", lambda _: None),
    Difference(_NO_TYPE, "spans", lambda _: None),
    Difference("a name is null while streaming (Debezium's defect)", "ident", lambda _: None, ops="cud"),
    Difference(
        "NULL is printed as the column's default by Connect's converters",
        "preset",
        {None: 7},
        forms=lambda form: not form.keeps_null,
    ),
    Difference(
        "an interval is a number of microseconds, a month 30.4375 days long",
        "span",
        {"1 year 2 mons 3 days 04:05:06.789012": "37091106789012", "-1 days": "-86400000000", "00:00:00": "0"},
    ),
    Difference("times in an array lose their microseconds", "clocks", {"{12:34:56.789012}": "{12:34:56.789}"}, typed),
    Difference("a time with a zone is moved to UTC", "clockz", {"12:34:56.789012+02": "10:34:56.789012+00"}, typed),
    Difference(
        "the length of a bit varying is lost: it is as long as it may be",
        "varbits",
        {"101": "000000101", "0001": "000000001", "": "000000000"},
        typed,
    ),
    Difference("money is a number", "cash", {"-$12.34": "-12.34", "$0.00": "0.00"}, typed),
    Difference("zeros behind the last digit are cut off a numeric without a scale", "free", {"1.500": "1.5"}, typed),
    # Without a schema, read as the native schema says:
    Difference(_BARE, "wider", unscaled, untyped),
    Difference(_BARE, "free", variable_scale, untyped),
    Difference("without a schema a timestamp is in milliseconds", "at0", lambda us: us // 1000, untyped),
    Difference("likewise a timestamp(3)", "at3", lambda us: us // 1000, untyped),
    Difference(_BARE, "clock", {"12:34:56.789012": "45296789012", "00:00:00": "0", "24:00:00": "86400000000"}, untyped),
    Difference(_BARE, "clock3", {"12:34:56.7": "45296700"}, untyped),
    Difference(_BARE, "clockz", {"12:34:56.789012+02": "10:34:56.789012Z", "00:00:00+00": "00:00:00Z"}, untyped),
    Difference(_BARE, "prices", {"{1.10,NULL}": "{bg==,NULL}"}, untyped),
    Difference(_BARE, "days", {"{2024-02-29,NULL}": "{19782,NULL}"}, untyped),
    Difference(
        _BARE,
        "ats",
        {'{"2024-02-29 12:34:56.789012"}': "{1709210096789012}", '{"2024-02-29 00:00:00"}': "{1709164800000000}"},
        untyped,
    ),
    Difference(
        _BARE, "zoneds", {'{"2024-02-29 10:34:56.789012+00"}': "{2024-02-29T10:34:56.789012Z}"}, untyped
    ),
    Difference(_BARE, "clocks", {"{12:34:56.789012}": "{45296789000}"}, untyped),
    Difference("without a schema nothing says that it is an array", "moods", {"{happy}": '["happy"]'}, untyped),
    Difference(_BARE, "raws", {r'{"\\x00ff"}': "{AP8=}"}, untyped),
    Difference("a bit(1) is a boolean", "bit1", {"1": "true", "0": "false"}, untyped),
    Difference(_BARE, "bits", {"10110": "Fg==", "00000": ""}, untyped),
    Difference(_BARE, "varbits", {"101": "BQ==", "0001": "AQ==", "": ""}, untyped),
    Difference(_BARE, "cash", {"-$12.34": "+y4=", "$0.00": "AA=="}, untyped),
    Difference(
        _BARE,
        "spot",
        {"(1.5,-2)": '{"x":1.5,"y":-2.0,"wkb":"AQEAAAAAAAAAAAD4PwAAAAAAAADA","srid":null}'},
        untyped,
    ),
]  # fmt: skip

# Where messages have schemas, and nobody says what types are wanted, these are richer than the native capture's text.
RICHER = {
    "span": pa.duration("us"),
    "bit1": pa.bool_(),
    "ints": pa.list_(pa.int32()),
    "texts": pa.list_(pa.string()),
    "bools": pa.list_(pa.bool_()),
    "doubles": pa.list_(pa.float64()),
    "prices": pa.list_(pa.decimal128(10, 2)),
    "uids": pa.list_(pa.string()),
    "days": pa.list_(pa.date32()),
    "ats": pa.list_(pa.timestamp("us")),
    "zoneds": pa.list_(pa.timestamp("us", tz="UTC")),
    "clocks": pa.list_(pa.string()),
    "moods": pa.list_(pa.string()),
    "docs": pa.list_(pa.string()),
    "raws": pa.list_(pa.binary()),
}
LEFT_OUT = ("boxed", "wal", "spans")


# --- the SQL ---


def schema_sql() -> Iterator[str]:
    yield "CREATE TYPE mood AS ENUM ('happy', 'it''s, so')"
    columns = ", ".join(f'"{name}" {kind}' for name, (kind, _) in COLUMNS.items())
    for table in TYPED:
        yield f"CREATE TABLE {table} (id int, part text, {columns}, PRIMARY KEY (id, part))"
        yield f"ALTER TABLE {table} REPLICA IDENTITY {TABLES[table]}"
    yield "CREATE TABLE far (id int PRIMARY KEY, part text, long text, image bytea, n int)"
    yield "ALTER TABLE far ALTER long SET STORAGE EXTERNAL, ALTER image SET STORAGE EXTERNAL"


def values(i: int | None) -> list[str]:
    return ["NULL" if i is None else some[i % len(some)] for _, some in COLUMNS.values()]


def insert(table: str, id_: int, i: int | None, part: str = "é") -> str:
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    return f"INSERT INTO {table} (id, part, {names}) VALUES ({id_}, '{part}', {', '.join(values(i))})"


def update(table: str, id_: int, i: int | None) -> str:
    changes = ", ".join(f'"{name}" = {value}' for name, value in zip(COLUMNS, values(i), strict=True))
    return f"UPDATE {table} SET {changes} WHERE id = {id_}"


def before_sql() -> Iterator[list[str]]:
    """Transactions whose rows the snapshot reads."""
    for table in TYPED:
        yield [insert(table, 100, 0), insert(table, 101, None)]
    yield ["INSERT INTO far VALUES (1, 'a', repeat('long', 1000), decode(repeat('00ff', 2000), 'hex'), 1)"]


def stream_sql() -> Iterator[list[str]]:
    """Transactions of the stream."""
    for table in TYPED:
        yield [insert(table, i + 1, i) for i in range(ROWS)] + [insert(table, 50, None)]
        yield [update(table, 1, 1), update(table, 2, None), update(table, 50, 2)]
        yield [f"UPDATE {table} SET id = 60 WHERE id = 3"]
        again = [f"UPDATE {table} SET whole = 5 WHERE id = 4", f"DELETE FROM {table} WHERE id = 4", insert(table, 4, 1)]
        yield again
        yield [f"DELETE FROM {table} WHERE id IN (1, 50, 101)"]
        yield [insert(table, 999, 0, SENTINEL)]
    yield ["UPDATE far SET n = 2"]
    yield ["UPDATE far SET n = 3, long = 'short now'"]
    yield ["ALTER TABLE far ADD COLUMN later numeric(6,3)", "UPDATE far SET later = 1.5"]
    yield ["ALTER TABLE far DROP COLUMN n"]
    yield [f"INSERT INTO far VALUES (999, '{SENTINEL}', 'x', NULL, -0.25)"]


# --- capturing ---


@dataclass
class Captured:
    """What both captures made of the same SQL."""

    native: dict[str, list[Batch]]
    topics: dict[str, WireMessages]
    prefix: str
    registry: str

    def topic(self, form: Form, table: str) -> str:
        return f"{self.prefix}-{form.name}.public.{table}"

    def schema(self, table: str) -> pa.Schema:
        return self.native[table][-1].rows.schema


def consumed(
    bootstrap: str, topics: Iterable[str], last: Callable[[Any], bool], timeout: float = 60
) -> dict[str, list[Any]]:
    """Committed messages of each topic's only partition, from its beginning up to the one that is its ``last``."""
    from confluent_kafka import Consumer, TopicPartition

    settings = {"bootstrap.servers": bootstrap, "group.id": "test", "isolation.level": "read_committed"}
    consumer = Consumer({**settings, "enable.auto.commit": False, "fetch.wait.max.ms": 20})
    found: dict[str, list[Any]] = {topic: [] for topic in topics}
    wait_until(lambda: set(found) <= set(consumer.list_topics(timeout=30).topics), f"topics {list(found)}", timeout)
    consumer.assign([TopicPartition(topic, 0, 0) for topic in found])
    ended: set[str] = set()
    deadline = time.monotonic() + timeout
    while len(ended) < len(found):
        assert time.monotonic() < deadline, f"no last message in {sorted(set(found) - ended)}"
        for message in consumer.consume(1000, 0.1):
            assert message.error() is None, message.error()
            found[message.topic()].append(message)
            if last(message):
                ended.add(message.topic())
    consumer.close()
    return found


@pytest.fixture(scope="module")
def captured(
    server: PostgresServer, broker: KafkaBroker, connect: KafkaConnect, registry: SchemaRegistryServer
) -> Iterator[Captured]:
    run = f"dbz{secrets.token_hex(3)}"
    server.execute(f"CREATE DATABASE {run}")
    dsn = server.dsn.replace("/postgres?", f"/{run}?")
    native = hr.App(run, log="memory://")
    native.postgres(dsn, tables=r"public\..*", prefix="native")
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in schema_sql():
            connection.execute(statement.encode())
        for transaction in before_sql():
            execute(connection, transaction)
        for number, form in enumerate(FORMS.values()):
            source = debezium_source(server, prefix=f"{run}-{form.name}", tables=r"public\..*", slot=f"{run}_{number}")
            more = {"database.dbname": run, "poll.interval.ms": "10", "publication.autocreate.mode": "filtered"}
            connect.create(f"{run}-{form.name}", source | more | form.settings(registry.url))
        with native.start() as running:
            wait_until(lambda: _one(connection, STREAMING) == len(FORMS) + 1, "all slots")
            for transaction in stream_sql():
                execute(connection, transaction)
            running.wait(60)
            known = running.log.topics()
            assert not [topic for topic in known if topic.endswith(".dlq")]
            batches = {
                table: [Batch(e.records) for e in walk(running.log, f"native.public.{table}")] for table in TABLES
            }
        topics = [f"{run}-{form}.public.{table}" for form in FORMS for table in TABLES]
        found = consumed(broker.bootstrap, topics, lambda message: SENTINEL.encode() in (message.value() or b""))
    wires = {topic: wire_messages(topic, some, partition=0) for topic, some in found.items()}
    for form in FORMS:
        connect.delete(f"{run}-{form}")
    yield Captured(batches, wires, run, registry.url)
    slots = "SELECT count(*) FROM pg_replication_slots WHERE database = %s AND active"
    wait_until(lambda: server.execute(slots, run)[0][0] == 0, "Debezium to let go of its slots")
    server.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", run)
    server.execute(f"DROP DATABASE {run} WITH (FORCE)")


def execute(connection: psycopg.Connection[Any], transaction: Sequence[str]) -> None:
    with connection.transaction():
        for statement in transaction:
            connection.execute(statement.encode())


def _one(connection: psycopg.Connection[Any], query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    return row and row[0]


# --- comparing ---

Event = tuple[str, dict[str, Any], dict[str, Any] | None, list[str] | None]


def cells(array: pa.Array) -> list[Any]:
    """Values that compare exactly, whatever their year or their last bit."""
    if pa.types.is_struct(array.type):
        columns = [cells(child) for child in array.flatten()]
        names = [field.name for field in array.type]
        valid = array.is_valid().to_pylist()
        rows = zip(*columns, strict=True) if columns else iter([()] * len(array))
        return [dict(zip(names, row, strict=True)) if ok else None for ok, row in zip(valid, rows, strict=True)]
    if pa.types.is_date32(array.type):
        return array.cast(pa.int32()).to_pylist()
    if pa.types.is_temporal(array.type):
        return array.cast(pa.int64()).to_pylist()
    if pa.types.is_floating(array.type):
        return [None if value is None else repr(value) for value in array.to_pylist()]
    return array.to_pylist()


def events(batches: Iterable[Batch]) -> list[Event]:
    found: list[Event] = []
    for batch in batches:
        rows = cells(batch.rows.to_struct_array())
        before = [None] * batch.num_rows if batch.before is None else cells(batch.before)
        unchanged = [None] * batch.num_rows if batch.unchanged is None else batch.unchanged.to_pylist()
        found += zip(map(chr, batch.op.tolist()), rows, before, unchanged, strict=True)
    return found


def as_debezium(native: Iterable[Event], keys: Sequence[str]) -> Iterator[Event]:
    """A changed primary key is a delete and an insert."""
    for op, row, before, unchanged in native:
        if op == "u" and before is not None and any(before[key] != row[key] for key in keys):
            yield "d", before, None, None
            yield "c", row, None, unchanged
        else:
            yield op, row, before, unchanged


def said_by(form: Form, event: Event, keys: Sequence[str], hit: set[tuple[str, Any]]) -> Event:
    """An event of the native capture with what this form says differently."""
    op, row, before, unchanged = event
    if form.flat == "tombstone" and op == "d":
        return op, {name: value if name in keys else None for name, value in row.items()}, None, None
    rows = []
    for item in (row, None if form.flat else before):
        changed = None if item is None else dict(item)
        for difference in DIFFERENCES:
            if changed is not None and difference.column in changed and difference.forms(form) and op in difference.ops:
                value = changed[difference.column]
                changed[difference.column] = difference.of(value)
                if changed[difference.column] != value:
                    hit.add((difference.why, difference.column))
        rows.append(changed)
    assert rows[0] is not None
    return op, rows[0], rows[1], unchanged


def decoded(captured: Captured, form: Form, table: str, schema: pa.Schema | None) -> list[Batch]:
    """The messages' rows in the format that they show."""
    messages = captured.topics[captured.topic(form, table)]
    formats = ForeignFormats(TopicCodec(registry=captured.registry))
    name, found = formats(messages)
    assert name.lstrip("~") == form.format
    if schema is not None:
        found = formats.codec.format(name, messages.topic).decode(messages, schema)
    assert found.bad == []
    return [batch for batch, _ in found.parts]


HIT: set[tuple[str, Any]] = set()


@pytest.mark.parametrize("table", TYPED)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_debezium_says_what_the_native_capture_says(captured: Captured, form: Form, table: str) -> None:
    schema, keys = captured.schema(table), captured.native[table][0].key_columns
    assert keys == ("id", "part")
    batches = decoded(captured, form, table, schema)
    for batch in batches:
        assert batch.rows.schema.equals(schema)
        assert batch.key_columns == keys
    wanted = [said_by(form, event, keys, HIT) for event in as_debezium(events(captured.native[table]), keys)]
    found = events(batches)
    assert [op for op, *_ in found] == [op for op, *_ in wanted]
    for number, (got, want) in enumerate(zip(found, wanted, strict=True)):
        for name in schema.names:
            assert got[1][name] == want[1][name], (number, got[0], name)
        assert got[2] == want[2], (number, "before")
    assert {op for op, *_ in found} == set("rcud")
    assert (table == "whole_rows" and not form.flat) == any(before is not None for _, _, before, _ in found)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_value_that_was_not_sent_and_columns_that_come_and_go(captured: Captured, form: Form) -> None:
    """Unchanged values out of line are no values; rows have the columns that the table had when they were written."""
    native = events(captured.native["far"])
    assert ["long", "image"] in [unchanged for *_, unchanged in native]
    found = events(decoded(captured, form, "far", None))
    assert [op for op, *_ in found] == [op for op, *_ in native] == list("ruuuc")
    for (_, row, _, unchanged), (_, want, _, missing) in zip(found, native, strict=True):
        assert sorted(unchanged or []) == sorted(missing or [])
        assert {name for name, value in row.items() if value is not None} == {
            n for n, v in want.items() if v is not None
        }
        if form.schemas:
            assert {name: row.get(name) for name in want} == want
    assert found[-1][1]["later"] is not None
    for row, name in ((found[-1][1], "n"), (found[0][1], "later")):
        # Without schemas, what arrives together has one set of columns.
        assert row.get(name) is None and (name not in row or not form.schemas)


@pytest.mark.parametrize("table", TYPED)
@pytest.mark.parametrize("form", [form for form in FORMS.values() if form.schemas], ids=lambda form: form.name)
def test_schemas_in_messages_give_the_native_types(captured: Captured, form: Form, table: str) -> None:
    """Nobody says what types are wanted."""
    schema, keys = captured.schema(table), captured.native[table][0].key_columns
    batches = decoded(captured, form, table, None)
    for batch in batches:
        assert batch.column_names == [name for name in schema.names if name not in LEFT_OUT]
        for field in batch.rows.schema:
            assert field.type == RICHER.get(field.name, schema.field(field.name).type), field.name
    wanted = [said_by(form, event, keys, set()) for event in as_debezium(events(captured.native[table]), keys)]
    for got, want in zip(events(batches), wanted, strict=True):
        for name, value in got[1].items():
            assert name in RICHER or value == want[1][name], name


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_order_and_commit_times_are_the_databases(captured: Captured, form: Form) -> None:
    for table in TYPED:
        native = captured.native[table]
        keys = native[0].key_columns
        pairs = zip(events(native), [ts for batch in native for ts in batch.ts_us.tolist()], strict=True)
        times = [ts for event, ts in pairs for _ in as_debezium([event], keys)]
        batches = decoded(captured, form, table, None)
        ops = [chr(op) for batch in batches for op in batch.op.tolist()]
        got = [ts for batch in batches for ts in batch.ts_us.tolist()]
        # A snapshot has its reader's time; what is only a key has the message's.
        told = [i for i, op in enumerate(ops) if op != "r" and not (op == "d" and form.flat == "tombstone")]
        assert [got[i] for i in told] == [times[i] for i in told]
        places = [
            (int(lsn), int(index)) for batch in batches for lsn, index in zip(batch.lsn, batch.index, strict=True)
        ]
        assert [index for _, index in places] == sorted({index for _, index in places})


def test_every_difference_is_one(captured: Captured) -> None:
    """The table of differences holds no line that is not needed; runs behind the comparisons."""
    if not HIT:
        pytest.skip("the comparisons did not run")
    assert {(difference.why, difference.column) for difference in DIFFERENCES} == HIT


@pytest.mark.slow
def test_a_pipeline_takes_the_topics_in(captured: Captured, broker: KafkaBroker) -> None:
    """All forms at once through a pipeline, on a Kafka log that adopts them and one that copies their rows."""
    for log in (f"kafka://{broker.bootstrap}", "memory://"):
        app = hr.App(f"taken{secrets.token_hex(3)}", log=log, registry=captured.registry)
        for form in FORMS.values():
            topics = app.debezium(f"kafka://{broker.bootstrap}", prefix=f"{captured.prefix}-{form.name}")
            for table in TYPED:
                topics[f"public.{table}"].select("id", "part", "words").to(f"{app.name}-{form.name}-{table}")
        with app.start() as running:
            running.wait(60)
            for form in FORMS.values():
                for table in TYPED:
                    check_taken_in(captured, app, form, table)
            assert not [topic for topic in running.log.topics() if topic.endswith(".dlq")]


def check_taken_in(captured: Captured, app: hr.App, form: Form, table: str) -> None:
    batches = decoded(captured, form, table, None)
    wanted = events(batches)
    adopted = app.topic(captured.topic(form, table)).read().to_arrow()
    assert adopted.column("op").to_pylist() == [op for op, *_ in wanted]
    for name in batches[0].column_names:
        column = adopted.column(name)
        got = [value for chunk in column.chunks for value in cells(chunk)]
        assert repr(got) == repr([row.get(name) for _, row, *_ in wanted]), (form.name, table, name)
    copied = app.topic(f"{app.name}-{form.name}-{table}").read().to_arrow()
    assert copied.column("op").to_pylist() == [op for op, *_ in wanted]
    for name in ("id", "part", "words"):
        assert copied.column(name).to_pylist() == [row[name] for _, row, *_ in wanted], (form.name, table, name)


# --- the events that were recorded ---


@pytest.mark.parametrize("sources", ["one source", pytest.param("many sources", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "files"), [("envelope", 40), ("flat", 39)])
def test_recorded_events_decode_without_a_dead_letter(
    shared_data: Path, broker: KafkaBroker, kind: str, files: int, sources: str
) -> None:
    """What Debezium emitted for 40 files of SQL, each file a database of its own, through a pipeline.

    A source for each file takes half a second to begin and to end: forty of them are in the long form.
    """
    paths = sorted((shared_data / "debezium_cases").glob(f"*.{kind}.jsonl"))
    assert len(paths) >= files
    app = hr.App(f"cases{secrets.token_hex(3)}", log=f"kafka://{broker.bootstrap}")
    sizes = produced(broker, app, paths, kind, one_source=sources == "one source")
    assert len(sizes) > 40
    with app.start() as running:
        running.wait(90)
        topics = running.log.topics()
        assert not [topic for topic in topics if topic.endswith(".dlq")]
        rows = {topic: topics[topic].rows if topic in topics else 0 for topic in sizes}
    assert rows == sizes


def produced(broker: KafkaBroker, app: hr.App, paths: Sequence[Path], kind: str, *, one_source: bool) -> dict[str, int]:
    """Put the files' messages on topics of the cluster, declare these, and say how many rows each holds."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import NewTopic

    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 20})
    found: dict[str, list[Any]] = {}
    sizes: dict[str, int] = {}
    for path in paths:
        number = path.name.partition("_")[0]
        prefix, folder = (f"{app.name}-{kind}", f"{number}_") if one_source else (f"{app.name}-{kind}-{number}", "")
        tables: list[str] = []
        for topic, some in by_topic(lines(path)).items():
            if topic.startswith("__") or topic.count(".") < 2:
                continue  # heartbeats, transactions and messages: no tables
            table = folder + topic.partition(".")[2]
            tables.append(table)
            found[f"{prefix}.{table}"] = some
            sizes[f"{prefix}.{table}"] = sum(map(is_row if kind == "envelope" else is_flat_row, some))
        if not one_source or path == paths[0]:
            topics = app.debezium(prefix=prefix)
        for table in tables:
            topics[table].to(f"{app.name}-{kind}-out-{len(app.plan().tasks)}")
    admin = broker.admin()
    for future in admin.create_topics([NewTopic(topic, 1, 1) for topic in found], operation_timeout=30).values():
        future.result(30)
    for topic, some in found.items():
        for line in some:
            producer.produce(topic, line.value, line.key, headers=line.headers)
    producer.flush(30)
    return sizes


def is_row(line: Any) -> bool:
    return line.value is not None and json.loads(line.value).get("op") in ("c", "u", "d", "r", "t")


def is_flat_row(line: Any) -> bool:
    return line.value is None or json.loads(line.value).get("op") != "m" or "message" not in json.loads(line.value)
