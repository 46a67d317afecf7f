"""A connector's configuration: read from its file, each property explained, every mistake said at once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.connectors import ARTICLE

from headrace.capture.debezium.configuration import Configuration, read_configuration
from headrace.capture.debezium.explanation import Line, check, everything, explain, find
from headrace.capture.debezium.expressions import expressions, python_expression
from headrace.capture.debezium.options import dsn_of, options_of, tables_of
from headrace.capture.debezium.properties import State
from headrace.capture.postgres.snapshot_options import SnapshotOptions
from headrace.errors import DeclarationError
from headrace.formats.debezium_writer import EventOptions
from headrace.formats.transforms.chain import problems
from headrace.sql_expressions import problem

SEEDS = Path(__file__).parents[2].parent / "shared" / "seeds"


def explained(**more: str) -> dict[str, Line]:
    return {line.name: line for line in explain(Configuration({**ARTICLE, **named(more)}, "here"))}


def named(more: dict[str, str]) -> dict[str, str]:
    """Property names from keywords: ``slot_name`` is ``slot.name``."""
    return {name.replace("_", "."): value for name, value in more.items()}


def mistakes(properties: dict[str, str]) -> str:
    with pytest.raises(DeclarationError) as caught:
        check(Configuration({**ARTICLE, **properties}, "connector.json"))
    return str(caught.value)


# --- the table ---


def test_the_table_has_every_property_of_the_connector() -> None:
    listed = (Path(__file__).parent / "debezium_properties.txt").read_text().splitlines()
    names = [name for name in listed if not name.startswith("#")]
    assert len(names) > 140
    found = {name: find(name) for name in names}
    assert [name for name, known in found.items() if known is None or known.name != name] == []


def test_each_property_says_what_it_does_in_a_sentence() -> None:
    texts = [(line.name, line.meaning.text) for _, line in everything()]
    assert [name for name, text in texts if not re.fullmatch(r"[A-Za-z$].*\.", text)] == []
    assert {line.state for _, line in everything()} == set(State)


def test_allowed_values_and_defaults_agree() -> None:
    for _, line in everything():
        known = find(line.name)
        if known is not None and known.name == line.name and known.default is not None:
            assert known.check(known.default) == "", known.name
            assert {value for value in known.values if known.check(value)} == set(), known.name


# --- reading ---


@pytest.mark.parametrize("outer", [True, False])
def test_json(tmp_path: Path, outer: bool) -> None:
    file = tmp_path / "connector.json"
    file.write_text(json.dumps({"name": "iris", "config": ARTICLE} if outer else ARTICLE))
    read = read_configuration(file)
    assert read.properties == ({"name": "iris", **ARTICLE} if outer else ARTICLE)
    options = options_of(read)
    assert (options.name, options.prefix, options.snapshot) == ("iris" if outer else "flink", "flink", "initial")
    assert options.tables == ("(?a:public.iris_.*)",)
    assert (options.format, options.slot, options.publication) == ("json+schema", None, None)
    assert options.dsn.startswith("host='postgres' port='5432' user='postgres'")


def test_decimals_are_numbers_only_where_no_other_transform_reads_them() -> None:
    numeric = {**ARTICLE, "value.converter.decimal.format": "NUMERIC"}  # flattened
    routed = {"transforms": "unwrap,r", "transforms.r.type": "org.apache.kafka.connect.transforms.ValueToKey"}
    check(Configuration(numeric, "c"))
    with pytest.raises(DeclarationError, match="decimal is base64"):
        check(Configuration({**numeric, **routed, "transforms.r.fields": "id"}, "c"))


@pytest.mark.skipif(not SEEDS.is_dir(), reason="the articles are not here")
def test_the_articles_configurations_are_read_unchanged() -> None:
    found = 0
    for article in sorted(SEEDS.glob("*.txt")):
        for text in re.findall(r"\{\s*\"name\"[^{}]*\{[^{}]*\}\s*\}", article.read_text()):
            read = read_configuration(json.loads(text))
            if "PostgresConnector" in read.get("connector.class"):
                found += 1
                assert all(line.state.runs for line in explain(read)), article
    assert found >= 2


def test_properties_file_as_java_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "connector.properties"
    file.write_bytes(
        b"\xef\xbb\xbf# a comment\n! another\n\nname: iris\nconnector.class = io.debezium.connector.postgresql.\\\n"
        b"   PostgresConnector\ntable.include.list=public\\\\.a,\\\n    public\\\\.t\\u00e4ble\n"
        b"topic.prefix\tshop\ndatabase.password=a\\=b\\:c \\tz\ndatabase.user=\xc3\xa4nn\nempty=\n"
    )
    assert read_configuration(file).properties == {
        "name": "iris",
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "table.include.list": r"public\.a,public\.täble",
        "topic.prefix": "shop",
        "database.password": "a=b:c \tz",
        "database.user": "änn",
        "empty": "",
    }
    file.write_bytes(b"database.user=\xe4nn\n")  # Latin-1, as Java wrote until version 8
    assert read_configuration(file).get("database.user") == "änn"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1, column 1"),
        ("[1]", "no JSON object"),
        ('{"a": "b",}', "line 1"),
        ('{"a": null, "b": {"c": 1}, "d": [1]}', "«a» is null; every value is a text"),
        ('{"name": "x", "config": {"name": "y"}}', "two names, «x» and «y»"),
        ('{"config": {}, "slot.name": "x"}', "«slot.name» stands beside «config»"),
        ('{"slot.name": "x", "slot.name": "y"}', "«slot.name» stands there twice"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_no_configuration(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "connector.json"
    file.write_text(text)
    with pytest.raises(DeclarationError) as caught:
        read_configuration(file)
    assert says in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(DeclarationError, match=re.escape(str(place))):
            read_configuration(place)


def test_values_of_json_are_texts() -> None:
    given: dict[str, Any] = {"tasks.max": 1, "slot.failover": False, "database.port": 5432}
    assert read_configuration(given).properties == {
        "tasks.max": "1",
        "slot.failover": "false",
        "database.port": "5432",
    }


# --- config providers ---


def test_providers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secrets.properties").write_text("password=s3cret\nuser=ann\n")
    (tmp_path / "port").write_text("5433")
    monkeypatch.setenv("DATABASE", "shop")
    read = read_configuration(
        {
            **ARTICLE,
            "config.providers": "vault,env",
            "config.providers.vault.class": "org.apache.kafka.common.config.provider.FileConfigProvider",
            "config.providers.vault.param.allowed.paths": str(tmp_path),
            "config.providers.env.class": "org.apache.kafka.common.config.provider.EnvVarConfigProvider",
            "database.password": f"${{vault:{tmp_path}/secrets.properties:password}}",
            "database.user": f"${{file:{tmp_path}/secrets.properties:user}}",
            "database.dbname": "${env:DATABASE}",
            "database.port": f"${{dir:{tmp_path}:port}}",
        }
    )
    assert dsn_of(read) == "host='postgres' port='5433' user='ann' password='s3cret' dbname='shop'"
    assert "s3cret" not in repr(read)
    assert {line.value for line in explain(read) if line.name in read.provided} == {"********"}
    check(read)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("${vault:a:b}", "the provider «vault», which config.providers does not have"),
        ("${env:HEADRACE_NO_SUCH}", "the environment has no such variable"),
        ("${file:/no/such:key}", "/no/such cannot be read"),
        ("${file:key}", "it names no file"),
        ("${dir:/etc:../passwd}", "it names no file of the directory"),
        ("${tight:/etc/hostname:x}", "allowed.paths"),
    ],
)
def test_what_a_provider_cannot_give(value: str, says: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        read_configuration(
            {
                "database.password": value,
                "config.providers": "tight",
                "config.providers.tight.class": "FileConfigProvider",
                "config.providers.tight.param.allowed.paths": "/var/empty",
            }
        )
    assert says in str(caught.value)
    assert "database.password" in str(caught.value)


def test_what_a_configuration_says_of_snapshots() -> None:
    def of(**more: str) -> SnapshotOptions:
        return options_of(Configuration({**ARTICLE, **named(more)}, "here")).snapshots

    assert of() == SnapshotOptions(chunk_rows=1024)
    assert of(snapshot_mode="initial_only").streams is False
    assert of(snapshot_mode="When_Needed").when_needed and of(snapshot_mode="always").always
    flags = {"snapshot.mode": "configuration_based", "snapshot.mode.configuration.based.start.stream": "true"}
    options = options_of(Configuration({**ARTICLE, **flags}, "here"))
    assert (options.snapshot, options.snapshots.streams) == ("never", True)
    with pytest.raises(DeclarationError, match="captures nothing"):
        of(snapshot_mode="configuration_based")
    given = of(signal_data_collection="public.signals", snapshot_include_collection_list="public.A.*,x.y")
    assert (given.signals, given.windows, given.reads("public.ab"), given.reads("public.b")) == (
        *("public.signals", True),
        *(True, False),
    )
    assert not of(signal_data_collection="public.signals", read_only="true").windows
    where = {"snapshot.select.statement.overrides": "public.a", "snapshot.delay.ms": "1500"}
    with pytest.raises(DeclarationError, match=r"overrides\.public\.a is not there"):
        of(**where)
    query = {"snapshot.select.statement.overrides.public.a": "SELECT * FROM public.a WHERE id > 1"}
    given = options_of(Configuration({**ARTICLE, **where, **query}, "here")).snapshots
    assert given.selects == (("public.a", "SELECT * FROM public.a WHERE id > 1"),) and given.delay_s == 1.5
    tables = options_of(Configuration({**ARTICLE, "signal.data.collection": "x.signals"}, "here")).tables
    assert any(re.fullmatch(table, "x.signals") for table in tables)


# --- mistakes ---


def test_every_mistake_is_said_at_once() -> None:
    told = mistakes(
        {
            "slot.nam": "x",
            "database.port": "54e3",
            "snapshot.mode": "initially",
            "table.exclude.list": "public.x",
            "column.mask.with.x.chars": "a",
            "transforms.unwrap.add.field": "op",
            "transforms.unwarp.add.fields": "op",
            "max.batch.size": "0",
            "xmin.fetch.interval.ms": "1000",
            "topic.prefix": "my shop",
            "schema.include.list": ",",
            "transforms": "unwrap,unwrap",
            "status.update.interval.ms": "99999999999999999999",
        }
    )
    assert "slot.nam = x: There is no such property (did you mean «slot.name»?)" in told
    assert "«54e3» is no whole number" in told
    assert "«initially» is none of always, initial" in told
    assert "table.include.list is there too" in told
    assert "(did you mean «column.mask.with.<length>.chars»?)" in told
    assert "ExtractNewRecordState has no such property (did you mean «add.fields»?)" in told
    assert "«unwarp» is not one of transforms=unwrap,unwrap (did you mean «unwrap»?)" in told
    assert "0 is less than 1" in told
    assert "xmin.fetch.interval.ms = 1000: Not supported yet." in told
    assert "«my shop» is not letters, digits, dots, - and _" in told
    assert "schema.include.list = ,: It names nothing." in told
    assert "«unwrap» is there twice" in told
    assert "99999999999999999999 is more than" in told
    assert len(told.splitlines()) == 15  # with the first line, and what to do


def test_what_is_required_and_missing() -> None:
    with pytest.raises(DeclarationError) as caught:
        check(Configuration({"connector.class": ARTICLE["connector.class"]}, "connector.json"))
    for name in ("database.hostname", "database.user", "database.dbname", "topic.prefix"):
        assert f"{name}: It is required, and is not there." in str(caught.value)


def test_a_misspelt_parameter_of_the_database() -> None:
    assert "(did you mean «database.hostname»?)" in mistakes({"database.hostnam": "x"})


@pytest.mark.parametrize(
    ("given", "state", "says"),
    [
        ({"plugin_name": "decoderbufs"}, "harmless", "pgoutput is read in its place"),
        ({"plugin_name": "PGOUTPUT"}, "done", "pgoutput"),
        ({"slot_drop_on_stop": "false"}, "done", "stays"),
        ({"slot_drop_on_stop": "true"}, "refused", "gap"),
        ({"snapshot_mode": "no_data"}, "done", "Nothing is read"),
        ({"snapshot_mode": "when_needed"}, "done", "new slot"),
        ({"signal_enabled_channels": "source, file"}, "done", "obeyed once"),
        ({"signal_enabled_channels": "source,jmx"}, "refused", "headrace snapshot TABLE"),
        ({"signal_enabled_channels": "In-Process"}, "refused", "headrace snapshot TABLE"),
        ({"publication_autocreate_mode": "no_tables"}, "refused", "captures nothing"),
        ({"slot_failover": "false"}, "done", "standbys keep it"),
        ({"slot_failover": "true"}, "done", "standbys keep it"),
        ({"driver_socketTimeout": "1"}, "refused", "JDBC"),
        ({"database_server_name": "x"}, "refused", "Use topic.prefix."),
        ({"producer_override_acks": "all"}, "refused", "HEADRACE_KAFKA"),
        ({"connector_class": "io.debezium.connector.mysql.MySqlConnector"}, "refused", "which alone is run natively"),
        ({"value_converter": "io.confluent.connect.avro.AvroConverter"}, "done", "Avro"),
        ({"value_converter": "com.example.MyConverter"}, "refused", "code in Java"),
        ({"transforms_unwrap_type": "io.debezium.transforms.EnforceRecordSize"}, "not yet", "Not supported yet"),
        ({"transforms_unwrap_type": "io.debezium.transforms.Filter"}, "done", "SQL"),
    ],
)
def test_what_a_property_does(given: dict[str, str], state: str, says: str) -> None:
    (name,) = named(given)
    line = explained(**given)[name]
    assert (line.state.value, says in line.meaning.text) == (state, True), line.meaning.text


def test_transforms_and_predicates_in_their_order() -> None:
    lines = explain(
        Configuration(
            {
                **ARTICLE,
                "transforms": "route, unwrap,route2",
                "transforms.route.type": "org.apache.kafka.connect.transforms.RegexRouter",
                "transforms.route.regex": "(?<a",
                "transforms.route.predicate": "mine",
                "transforms.route2.type": "RegexRouter",
                "predicates": "mine",
                "predicates.mine.type": "org.apache.kafka.connect.transforms.predicates.TopicNameMatches",
                "predicates.mine.pattern": "a.*",
            },
            "here",
        )
    )
    chosen = [line.name for line in lines if line.name.endswith(".type")]
    assert chosen == [f"transforms.{name}.type" for name in ("route", "unwrap", "route2")] + ["predicates.mine.type"]
    assert "is no regular expression" in next(line for line in lines if line.name.endswith("regex")).meaning.text


@pytest.mark.parametrize(
    ("expression", "sql"),
    [
        ("value.op == 'u' && value.before.id == 2", "value.op = 'u' AND value.before.id = 2"),
        ('!(value.after?.name.startsWith("a\'b")) || topic != null', None),
        ("value.after.n in [1, 2]", "value.after.n IN (1, 2)"),
        (
            "topic ==~ /shop\\..*/ ? 'x' : topic",
            "CASE WHEN regexp_full_match(topic, 'shop\\..*') THEN 'x' ELSE topic END",
        ),
        ("value.each { it > 1 }", ""),
        ("def x = 1; x > 0", ""),
        ("value.after.foo(1)", ""),
    ],
)
def test_a_groovy_expression_is_refused_with_its_sql(expression: str, sql: str | None) -> None:
    found = explained(
        transforms="f",
        **{
            "transforms.f.type": "io.debezium.transforms.Filter",
            "transforms.f.language": "jsr223.groovy",
            "transforms.f.condition": expression,
        },
    )
    line = found["transforms.f.condition"]
    assert (line.state, found["transforms.f.language"].state) == (State.REFUSED, State.REFUSED)
    if sql:
        assert f"In SQL: {sql}; and language=sql." in line.meaning.text
        assert problem(sql) == ""
    elif sql == "":
        assert "Write it in SQL" in line.meaning.text


def test_what_transforms_are_told_reaches_the_writer_in_pythons_form() -> None:
    given = {
        "transforms": "route,f,unwrap",
        "transforms.route.type": "RegexRouter",
        "transforms.route.regex": r"(?<all>.*)\.\Qa.b\E",
        "transforms.route.replacement": "${all}",
        "transforms.f.type": "org.apache.kafka.connect.transforms.MaskField$Key",
        "transforms.f.fields": "id",
        "transforms.f.predicate": "p",
        "predicates": "p",
        "predicates.p.type": "HasHeaderKey",
        "predicates.p.name": "h",
        "errors.tolerance": "ALL",
    }
    options = options_of(Configuration({**ARTICLE, **given}, "here"))
    events = dict(options.events)
    assert EventOptions.of(events).tolerant
    assert events["transforms.route.regex"] == r"(?a:(?P<all>.*)\.a\.b)"
    assert events["transforms.f.type"].endswith("MaskField$Key")
    assert events["predicates.p.type"] == "org.apache.kafka.connect.transforms.predicates.HasHeaderKey"
    assert problems(events) == {}
    with pytest.raises(DeclarationError, match="messages are written as the log's format"):
        options_of(Configuration({**ARTICLE, **given}, "here"), on_kafka=True)


def test_what_a_provider_gives_is_not_kept_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKED", "s3cret")
    given = {
        **ARTICLE,
        "transforms": "unwrap,mask",
        "transforms.mask.type": "MaskField$Value",
        "transforms.mask.fields": "a",
        "transforms.mask.replacement": "${env:MASKED}",
    }
    with pytest.raises(DeclarationError, match=r"transforms\.mask\.replacement comes from a config provider") as caught:
        options_of(read_configuration(given))
    assert "s3cret" not in str(caught.value)


def test_keys_that_are_written_otherwise_than_values() -> None:
    assert explained(key_converter_schemas_enable="false")["key.converter"].state is State.NOT_YET
    both = {"key_converter_schemas_enable": "false", "value_converter_schemas_enable": "false"}
    assert explained(**both)["key.converter"].state is State.DONE
    plain = {name: value for name, value in ARTICLE.items() if not name.startswith("transforms")}
    assert options_of(Configuration(plain, "here")).format == "json+envelope+schema"


def test_a_pattern_of_files_is_pointed_out() -> None:
    text = explained(table_include_list="public.iris_*")["table.include.list"].meaning.text
    assert "names that begin so are public.iris_.*" in text


def test_no_secret_is_shown() -> None:
    secrets = {
        "database.password": "s3cret one",
        "database.sslpassword": "s3cret",
        "driver.password": "s3cret",
        "value.converter.basic.auth.user.info": "ann:s3cret",
        "value.converter.schema.registry.url": "http://ann:s3cret@registry",
        "producer.override.sasl.jaas.config": "… password='s3cret';",
        "signal.consumer.ssl.key.password": "s3cret",
        "database.port": "x",
        "my.api.token": "s3cret",
    }
    configuration = Configuration({**ARTICLE, **secrets}, "connector.json")
    shown = repr(configuration) + "".join(str(line.as_dict()) for line in explain(configuration)) + mistakes(secrets)
    assert "s3cret" not in shown
    fine = Configuration({**ARTICLE, "database.password": "s3cret"}, "connector.json")
    assert "s3cret" not in repr(options_of(fine))


# --- expressions ---


@pytest.mark.parametrize(
    ("java", "matching", "other"),
    [
        (r"public\.iris_.*", ["public.iris_train", "PUBLIC.IRIS_"], ["public_iris_x", "xpublic.iris_"]),
        (r"public\.\Qa.b\E", ["public.a.b"], ["public.axb"]),
        (r"[\p{Alpha}&&x]?\p{Upper}+", [], []),
        (r"\p{Alnum}+", ["aZ9"], ["a_", "ä"]),
        (r"\P{Digit}+", ["ab"], ["a1"]),
        (r"\w+", ["a_1"], ["täble"]),
        (r"t\x{e4}ble|\u00fc|\xf6", ["täble", "ü", "ö", "TäBLE"], ["TÄBLE"]),
        (r"(?<part>a|b)\.\k<part>", ["a.a"], ["a.b"]),
        (r"a*+b", ["aab"], ["aa"]),
        (r"(?i)a\z", ["A"], ["b"]),
        ("täble", ["täble"], ["TÄBLE"]),  # Java folds ASCII letters only
        (r"a\h\v", ["a\t\n"], ["ab"]),
        (r"[]]", [], []),
        (r"a{2}", ["aa"], ["a"]),
    ],
)
def test_java_expressions(java: str, matching: list[str], other: list[str]) -> None:
    if not matching:
        with pytest.raises(DeclarationError):
            python_expression(java)
        return
    pattern = re.compile(python_expression(java), re.IGNORECASE)
    assert [text for text in matching if pattern.fullmatch(text) is None] == []
    assert [text for text in other if pattern.fullmatch(text) is not None] == []


@pytest.mark.parametrize(
    "java",
    [
        r"\p{L}", r"\p{IsLatin}", r"[a-z&&[^b]]", r"[a[b]]", r"a(?i)b", r"(?U)a", r"\R", r"\X", r"\Gx", r"\07",
        r"a{,3}", r"(?P<a>b)", "(", "a)", "*a", "a{99999999999999}", "\\", "(?<n>a)(?<n>b)",
    ],
)  # fmt: skip
def test_expressions_that_are_refused(java: str) -> None:
    with pytest.raises(DeclarationError):
        expressions(java, split=False)


def test_lists_of_tables_and_schemas() -> None:
    def captured(**lists: str) -> set[str]:
        patterns = tables_of(Configuration({f"{n.replace('_', '.')}.list": text for n, text in lists.items()}, "here"))
        names = ("public.a", "public.ab", "audit.a", "audit_old.b", "public.{1,2}")
        return {name for name in names if any(re.fullmatch(pattern, name, re.IGNORECASE) for pattern in patterns)}

    assert captured() == {"public.a", "public.ab", "audit.a", "audit_old.b", "public.{1,2}"}
    assert captured(table_include=r"public\.a, audit\.a,") == {"public.a", "audit.a"}
    assert captured(table_include=r"PUBLIC\.a{1\,1}b?") == {"public.a", "public.ab"}
    assert captured(schema_include="audit") == {"audit.a"}
    assert captured(schema_exclude="audit.*", table_exclude=r".*\.a") == {"public.ab", "public.{1,2}"}
    assert captured(schema_include="public|audit", table_include=r".*\.a") == {"public.a", "audit.a"}
    with pytest.raises(DeclarationError, match="back reference"):
        captured(table_include=r"(p)ublic\.\1", table_exclude="x")
