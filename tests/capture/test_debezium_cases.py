"""What Debezium 3.6.3 emitted for a script of SQL is what the native capture writes for it, in four forms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.capture.debezium_cases import FORMS, SHIPPED, Case, Step, names, recorded_forms
from tests.databases import Database, fresh_database
from tests.serve.client import headrace

from headrace.errors import DeclarationError
from headrace.formats.debezium_types import TypeOptions, columns

# What does not hold yet, or is not meant to.
DIFFERENT = {
    "57_domain_over_enum": "Debezium cannot start; here the table is captured",
    "61_case_duplicate_columns": "Debezium refuses the table; here it is captured",
}
# They need extensions that the embedded server does not have.
CONTRIB = ("58_contrib_types", "59_contrib_hstore_map", "f1_extensions", "f2_extensions_map")


@pytest.fixture
def empty(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database without any table, on a server that has the case's extensions."""
    name = request.node.callspec.params["name"] if hasattr(request.node, "callspec") else ""
    with fresh_database(request.getfixturevalue("debian" if name in CONTRIB else "server"), "case") as made:
        yield made


def _case(name: str) -> object:
    marks = [] if name in SHIPPED else [pytest.mark.slow]
    if name in DIFFERENT:
        marks.append(pytest.mark.xfail(strict=True, reason=DIFFERENT[name]))
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [_case(name) for name in names()])
def test_a_recorded_case(name: str, empty: Database, tmp_path: Path) -> None:
    case = Case.load(name)
    case.capture(empty, tmp_path / "case.headrace")
    for form in recorded_forms(name):
        assert case.lines(tmp_path / "case.headrace", form) == case.recorded(form), form
        if not any(name.endswith("decimal.format") for name in case.config):  # refused with other transforms
            assert case.lines(tmp_path / "case.headrace", form, chained=True) == case.recorded(form), f"{form}, chained"


def test_the_command_prints_the_same_lines(empty: Database, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case = Case.load("30_pk_change")
    log = tmp_path / "case.headrace"
    case.capture(empty, log)
    command = ("topics", "cat", "--all", "--log", str(log), "--format", "debezium-json")
    done = headrace(capfd, *command)
    assert [case.normal(line) for line in done.stdout.split("\n")[:-1]] == case.recorded("envelope")
    with_schemas = [json.loads(line) for line in headrace(capfd, *command, "--schemas").stdout.split("\n")[:-1]]
    assert with_schemas[0]["value"]["schema"]["name"] == "dbz.public.pk.Envelope"
    assert with_schemas[0]["key"]["payload"] == {"id": 1}
    done = headrace(capfd, *command, "--limit", "2")
    assert len(done.stdout.split("\n")) == 3
    done = headrace(capfd, *command[:2], "dbz.public.pkc", *command[3:])
    alone = [case.normal(line) for line in done.stdout.split("\n")[:-1]]
    assert alone == [line for line in case.recorded("envelope") if json.loads(line)["topic"] == "dbz.public.pkc"]
    assert set(FORMS) == set(recorded_forms(case.name))


def test_a_nan_is_written_as_each_mode_has_it(empty: Database, tmp_path: Path) -> None:
    empty.execute("CREATE TABLE n (k numeric(4,1) PRIMARY KEY, v numeric(6,2) DEFAULT 1.5)")
    empty.execute("ALTER TABLE n REPLICA IDENTITY FULL")
    empty.execute("INSERT INTO n VALUES ('NaN', 'NaN')")
    stream = ("UPDATE n SET v = 2", "UPDATE n SET k = 3, v = 'NaN'", "DELETE FROM n")
    case = Case("nan", {}, (), [Step(sql, "", fails=False) for sql in stream])
    case.capture(empty, tmp_path / "case.headrace")
    found = {}
    for mode in ("string", "double", "precise"):
        own = Case("nan", {"decimal.handling.mode": mode}, (), ())
        events = [json.loads(line) for line in own.lines(tmp_path / "case.headrace", "envelope")]
        rows = [event["value"] and (event["value"]["before"], event["value"]["after"]) for event in events]
        found[mode] = [(event["key"]["k"], *(row or ())) for event, row in zip(events, rows, strict=True)]
    assert found["string"] == [
        ("NAN", None, {"k": "NAN", "v": "NAN"}),
        ("NAN", {"k": "NAN", "v": "NAN"}, {"k": "NAN", "v": "2.00"}),
        ("NAN", {"k": "NAN", "v": "2.00"}, None),
        ("NAN",),
        ("3.0", None, {"k": "3.0", "v": "NAN"}),
        ("3.0", {"k": "3.0", "v": "NAN"}, None),
        ("3.0",),
    ]
    assert found["double"][1] == ("NaN", {"k": "NaN", "v": "NaN"}, {"k": "NaN", "v": 2.0})
    # Debezium says nothing of a NaN here, and its converter prints the default of what is nothing.
    assert found["precise"][0] == (None, None, {"k": None, "v": "AJY="})


def test_a_value_that_cannot_be_written_is_null_and_the_others_are_written() -> None:
    about = {"name": "i", "type": {"name": "interval", "typmod": -1}, "not_null": False, "default": None}
    facts = {"schema": "public", "table": "t", "columns": [about]}
    [column] = columns(facts, TypeOptions())
    texts = pa.array(["1 day", "another style", None, "00:00:01", "@ 1 mon"])
    assert column.cells(texts).to_pylist() == ["86400000000", "null", "null", "1000000", "null"]
    assert column.cells(texts[1:2]).to_pylist() == ["null"]


def test_updates_that_change_nothing_are_left_out_on_request(empty: Database, tmp_path: Path) -> None:
    empty.execute("CREATE TABLE w (id int PRIMARY KEY, a text, b float8)")
    empty.execute("ALTER TABLE w REPLICA IDENTITY FULL")
    empty.execute("CREATE TABLE k (id int PRIMARY KEY, a text)")
    empty.execute("INSERT INTO w VALUES (1, NULL, 'NaN'); INSERT INTO k VALUES (1, 'x')")
    stream = (
        "UPDATE w SET a = a",
        "UPDATE w SET b = 2",
        "UPDATE k SET a = a",
        "UPDATE w SET a = 'x'",
        "UPDATE w SET id = 2",
    )
    case = Case("idle", {}, (), [Step(sql, "", fails=False) for sql in stream])
    case.capture(empty, tmp_path / "case.headrace")

    def written(**config: str) -> list[tuple[str, str]]:
        own = Case("idle", {name.replace("_", "."): value for name, value in config.items()}, (), ())
        lines = [json.loads(line) for line in own.lines(tmp_path / "case.headrace", "envelope")]
        return [(line["topic"][-1], line["value"]["op"]) for line in lines[2:] if line["value"]]

    moved = [("w", "d"), ("w", "c")]
    assert written() == [("w", "u"), ("w", "u"), ("k", "u"), ("w", "u"), *moved]
    assert written(skip_messages_without_change="true") == [("w", "u"), ("k", "u"), ("w", "u"), *moved]
    options = {"skip_messages_without_change": "true", "column_exclude_list": r"public\.w\.a"}
    assert written(**options) == [("w", "u"), ("k", "u"), *moved]


def test_generated_columns_are_in_the_snapshot_only(empty: Database, tmp_path: Path) -> None:
    empty.execute("CREATE TABLE g (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED, n text)")
    empty.execute("INSERT INTO g VALUES (1)")
    case = Case("generated", {}, (), [Step("INSERT INTO g VALUES (2)", "", fails=False)])
    case.capture(empty, tmp_path / "case.headrace")
    lines = [json.loads(line) for line in case.lines(tmp_path / "case.headrace", "envelope")]
    assert [line["value"]["after"] for line in lines] == [{"id": 1, "twice": 2, "n": None}, {"id": 2, "n": None}]


def test_tables_that_do_not_stream_and_those_that_are_inherited_from(empty: Database, tmp_path: Path) -> None:
    empty.execute("CREATE UNLOGGED TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    empty.execute("CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE z_child () INHERITS (parent)")
    empty.execute("INSERT INTO parent VALUES (1); INSERT INTO z_child VALUES (2)")
    stream = ("INSERT INTO z_child VALUES (3)", "INSERT INTO a VALUES (2)")
    case = Case("inherits", {}, (), [Step(sql, "", fails=False) for sql in stream])
    case.capture(empty, tmp_path / "case.headrace")
    lines = [json.loads(line) for line in case.lines(tmp_path / "case.headrace", "envelope")]
    assert [(e["topic"], e["value"]["after"]["id"], e["value"]["source"]["snapshot"]) for e in lines] == [
        ("dbz.public.a", 1, "first"),
        ("dbz.public.parent", 1, "first_in_data_collection"),
        ("dbz.public.parent", 2, "last_in_data_collection"),
        ("dbz.public.z_child", 2, "last"),
        ("dbz.public.z_child", 3, "false"),
    ]


def test_rows_of_a_blocking_snapshot_are_marked_as_those_of_a_first_one(empty: Database, tmp_path: Path) -> None:
    empty.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int)")
    empty.execute("CREATE TABLE signals (id text PRIMARY KEY, type text, data text)")
    empty.execute("INSERT INTO a VALUES (1), (2), (3); INSERT INTO b VALUES (4), (5)")
    asked = '{"type": "blocking", "data-collections": ["public.b", "public.a"]}'
    stream = (f"INSERT INTO signals VALUES ('s', 'execute-snapshot', '{asked}')",)
    config = {"signal.data.collection": "public.signals", "incremental.snapshot.chunk.size": "2"}
    case = Case("blocking", config, (), [Step(sql, "", fails=False) for sql in stream])
    case.capture(empty, tmp_path / "case.headrace")
    lines = [json.loads(line) for line in case.lines(tmp_path / "case.headrace", "envelope")]
    events = [(e["topic"][-1], e["value"]["source"]["snapshot"]) for e in lines if e["value"]["op"] == "r"]
    assert events == [
        *[("a", "first"), ("a", "true"), ("a", "last_in_data_collection")],
        *[("b", "first_in_data_collection"), ("b", "last")],
        *[("b", "first"), ("b", "last_in_data_collection")],
        *[("a", "first_in_data_collection"), ("a", "true"), ("a", "last")],
    ]


def test_columns_are_masked_cut_and_hashed_by_the_first_rule_that_names_them(empty: Database, tmp_path: Path) -> None:
    """What follows from Debezium's ColumnMappers, MaskStrings and TruncateColumn."""
    empty.execute(
        "CREATE TABLE m (id int PRIMARY KEY, a text NOT NULL, h text, v varchar(8) NOT NULL, n int, b bytea, c text)"
    )
    empty.execute("INSERT INTO m VALUES (1, 'é😀x', 'secret', 'salted', 7, '\\x010203', NULL)")
    stream = ("INSERT INTO m VALUES (2, '😀😀', NULL, '', NULL, NULL, 'x')", "DELETE FROM m WHERE id = 1")
    Case("map", {}, (), [Step(sql, "", fails=False) for sql in stream]).capture(empty, tmp_path / "case.headrace")
    config = {
        "column.truncate.to.2.chars": r"public\.m\.(a|b|id)",
        "column.mask.with.3.chars": r"public\.m\.(n|c|a)",
        "column.mask.hash.SHA-256.with.salt.s.1": r"public\.m\.h",
        "column.mask.hash.v2.MD5.with.salt.x": r"public\.m\.v",
        "column.exclude.list": r"public\.m\.id",
        "datatype.propagate.source.type": r"public\.m\.bytea,public\.m\.(int4|none){1\,2}",
    }
    own = Case("map", config, (), ())
    lines = [json.loads(line) for line in own.lines(tmp_path / "case.headrace", "envelope")]
    hashed = hashlib.sha256(b"s.1\xac\xed\x00\x05\x74\x00\x06secret").hexdigest()
    assert [line["key"] for line in lines] == [{"id": 1}, {"id": 2}, {"id": 1}, {"id": 1}]
    assert (
        lines[0]["value"]["after"]
        == {
            "a": "é",  # half of a character of two is none
            "h": hashed,
            "v": hashlib.md5(b"xsalted").hexdigest()[:8],
            "n": 7,
            "b": "AQI=",
            "c": "***",
        }
    )
    empty_hash = hashlib.md5(b"x").hexdigest()[:8]
    assert lines[1]["value"]["after"] == {"a": "😀", "h": None, "v": empty_hash, "n": None, "b": None, "c": "***"}
    assert lines[2]["value"]["before"] == {"a": "", "h": None, "v": empty_hash, "n": None, "b": None, "c": "***"}
    schemas = own.lines(tmp_path / "case.headrace", "schema")[0]
    fields = {field["field"]: field for field in json.loads(schemas)["value_schema"]["fields"][1]["fields"]}
    assert fields["n"]["parameters"] == fields["h"]["parameters"] == {"masked": "true"}
    assert fields["b"]["parameters"] == {"truncateLength": "2"}
    # Debezium asks for the types that it propagates before it asks what it hashes, and takes one rule.
    first = Case("map", {**config, "datatype.propagate.source.type": ".*"}, (), ())
    line = json.loads(first.lines(tmp_path / "case.headrace", "envelope")[0])
    assert (line["value"]["after"]["h"], line["value"]["after"]["c"]) == ("secret", "***")


def test_the_columns_of_a_key_are_found_by_expressions(empty: Database, tmp_path: Path) -> None:
    empty.execute("CREATE TABLE one (id int PRIMARY KEY, k1 text, k2 text); CREATE TABLE two (id int PRIMARY KEY)")
    stream = ("INSERT INTO one VALUES (1, 'a', 'b')", "INSERT INTO two VALUES (2)")
    Case("keys", {}, (), [Step(sql, "", fails=False) for sql in stream]).capture(empty, tmp_path / "case.headrace")

    def keys(columns: str) -> list[dict[str, object]]:
        own = Case("keys", {"message.key.columns": columns}, (), ())
        return [json.loads(line)["key"] for line in own.lines(tmp_path / "case.headrace", "envelope")]

    assert keys("public.one:k2, ID") == [{"k2": "b", "id": 1}, {"id": 2}]
    assert keys(r"(.*)\.one:k.;public.two:gone") == [{"k1": "a", "k2": "b"}, {"id": 2}]
    assert keys("PUBLIC.T.*:id;public.one:k1,k1") == [{"k1": "a"}, {"id": 2}]


def test_names_are_as_avro_allows_them(empty: Database, tmp_path: Path) -> None:
    empty.execute('CREATE TABLE "a-b" ("1 x" int PRIMARY KEY, "é_" text, "é-" text)')
    case = Case("names", {}, (), [Step("INSERT INTO \"a-b\" VALUES (1, 'ä')", "", fails=False)])
    case.capture(empty, tmp_path / "case.headrace")

    def written(form: str, **config: str) -> dict[str, Any]:
        own = Case("names", {name.replace("_", "."): value for name, value in config.items()}, (), ())
        return dict(json.loads(own.lines(tmp_path / "case.headrace", form)[0]))

    whole = written("envelope", field_name_adjustment_mode="avro_unicode")
    assert whole["key"] == {"_u0031_u0020x": 1}
    assert whole["value"]["after"] == {"_u0031_u0020x": 1, "_u00e9_u005f": "ä", "_u00e9_u002d": None}
    schemas = written("schema", schema_name_adjustment_mode="avro", topic_delimiter="_")
    assert schemas["topic"] == "dbz_public_a-b"
    assert schemas["key_schema"]["name"] == "dbz_public_a_b.Key"
    assert schemas["value_schema"]["name"] == "dbz_public_a_b.Envelope"
    assert schemas["key_schema"]["fields"][0]["field"] == "1 x"
    with pytest.raises(DeclarationError, match="«é_» and «é-» of public"):
        written("envelope", field_name_adjustment_mode="avro")


def test_messages_and_heartbeats_by_a_configuration(empty: Database, tmp_path: Path) -> None:
    empty.execute("CREATE TABLE beat (n int)")
    config = {
        "message.prefix.exclude.list": r"no\,t.*, x{1\,2}",
        "binary.handling.mode": "hex",
        "heartbeat.interval.ms": "1",
        "heartbeat.action.query": "INSERT INTO beat VALUES (1)",
        "topic.heartbeat.prefix": "beats",
    }
    emitted = [("keep", "ab"), ("no,ted", ""), ("XX", ""), ("xxx", "c")]
    emit = [
        Step(f"SELECT pg_logical_emit_message(false, '{name}', '{text}')", "", fails=False) for name, text in emitted
    ]
    case = Case("beats", config, (), emit)
    case.capture(empty, tmp_path / "case.headrace")
    lines = [json.loads(line) for line in case.lines(tmp_path / "case.headrace", "flat")]
    messages = [line["value"]["message"] for line in lines if line["topic"] == "dbz.message"]
    assert messages == [{"prefix": "keep", "content": "6162"}, {"prefix": "xxx", "content": "63"}]
    beats = [line for line in lines if line["topic"] == "beats.dbz"]
    assert beats and beats[0] == {"topic": "beats.dbz", "key": {"serverName": "dbz"}, "value": {"ts_ms": None}}
