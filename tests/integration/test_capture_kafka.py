"""A connector's configuration beside the real thing: into a Kafka log, and what Debezium and Connect declare."""

from __future__ import annotations

import contextlib
import json
import secrets
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from confluent_kafka import Consumer
from psycopg.conninfo import conninfo_to_dict
from typer.testing import CliRunner

from headrace.capture.debezium.connect import CONVERTERS
from headrace.capture.debezium.explanation import find
from headrace.capture.debezium.properties import Kind, Property, done
from headrace.capture.debezium.transforms import COMMON, PREDICATES, TRANSFORMS
from headrace.cli.main import app as command
from headrace.testing.servers import KafkaBroker, KafkaConnect
from tests.databases import Database
from tests.waiting import wait_until

PLUGIN = "io.debezium.connector.postgresql.PostgresConnector"


def call(*arguments: str | Path) -> Any:
    done = CliRunner().invoke(command, [*map(str, arguments), "--json"], catch_exceptions=False)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_connector_is_captured_into_a_cluster(database: Database, broker: KafkaBroker, tmp_path: Path) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    database.execute("INSERT INTO t VALUES (1, 1.5)")
    parts = conninfo_to_dict(database.dsn)
    prefix = f"captured{secrets.token_hex(4)}"
    config = {
        "connector.class": PLUGIN,
        **{f"database.{name}": str(parts.get(key) or "") for name, key in (("hostname", "host"), ("port", "port"))},
        "database.user": "postgres",
        "database.dbname": database.name,
        "topic.prefix": prefix,
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "false",
        "key.converter.schemas.enable": "false",
        "transforms": "unwrap",
        "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState",
    }
    file = tmp_path / "connector.properties"
    file.write_text("".join(f"{name}={value}\n" for name, value in config.items() if value))
    log = f"kafka://{broker.bootstrap}/{prefix}"
    done = call("capture", "--config", file, "--log", log, "--until-caught-up")
    assert done["topics"] == {f"{prefix}.public.t": 1}
    status = call("capture", "status", "--log", log)
    assert (status["state"], status["tables"]["public.t"]["rows"]) == ("stopped", 1)
    reader = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": prefix, "auto.offset.reset": "earliest"})
    with contextlib.closing(reader):
        reader.subscribe([f"{prefix}.public.t"])
        message = wait_until(lambda: reader.poll(1.0), "the message")
        assert json.loads(message.value()) == {"id": 1, "x": 1.5}


def declared_by(connect: KafkaConnect, path: str, body: dict[str, str] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{connect.url}/connector-plugins{path}", data, headers)
    request.method = "GET" if body is None else "PUT"
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_the_table_has_what_the_connector_itself_declares(connect: KafkaConnect) -> None:
    config = {"connector.class": PLUGIN, "name": "x", "topic.prefix": "x"}
    found = declared_by(connect, f"/{PLUGIN}/config/validate", config)["configs"]
    # What Debezium declares of some is a regular expression, of two one that it has wrong.
    parts = {"(d+)": "8", "([^.]+)": "SHA-256", "(.+)": "salt"}
    names = [config["definition"]["name"] for config in found]
    for part, given in parts.items():
        names = [name.replace(part, given) for name in names]
    assert len(names) > 140
    assert [name for name in names if find(name) is None] == []


@pytest.mark.slow
def test_the_table_has_what_transforms_and_converters_declare(connect: KafkaConnect) -> None:
    known = (*CONVERTERS, *TRANSFORMS, *PREDICATES)
    missing, seen = [], 0
    for plugin in declared_by(connect, "?connectorsOnly=false"):
        component = next((component for component in known if plugin["class"] in component.classes), None)
        if component is None:
            continue
        own = (*component.properties, *COMMON, Property("converter.type", Kind.TEXT, None, done("Connect sets it.")))
        declared = {config["name"] for config in declared_by(connect, f"/{quote(plugin['class'])}/config")}
        missing += [(plugin["class"], name) for name in declared if not any(known.names(name) for known in own)]
        seen += 1
    assert seen > 40
    assert missing == []
