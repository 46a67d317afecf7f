"""`headrace capture`: a connector's configuration run natively, and `capture status` from another process meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from typer.testing import CliRunner, Result

import headrace as hr
from headrace.cli.main import app as command
from headrace.errors import DeclarationError, HeadraceError
from headrace.position import parse_lsn
from headrace.testing.servers import PostgresServer
from tests.capture.debezium_cases import FORMS, Case, names
from tests.connectors import ARTICLE, NAME
from tests.databases import Database, fresh_database
from tests.processes import HEADRACE, Child
from tests.waiting import wait_until


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def refused(*arguments: str | Path) -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        call(*arguments)
    return caught.value


@pytest.fixture
def connector(database: Database, tmp_path: Path) -> Path:
    """The article's connector, with host and port of the test's database; which has its tables."""
    for table in ("iris_train", "iris_test", "other"):
        database.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, petal float8)")
    database.execute("INSERT INTO iris_train VALUES (1, 0.5), (2, 'NaN')")
    parts = conninfo_to_dict(database.dsn)
    where = {"hostname": parts["host"], "port": str(parts.get("port") or 5432), "dbname": database.name}
    given = {f"database.{name}": value for name, value in where.items()}
    file = tmp_path / "connector.json"
    file.write_text(json.dumps({"name": NAME, "config": {**ARTICLE, **given}}))
    return file


def status(log: Path) -> dict[str, Any]:
    done = call("capture", "status", "--log", log, "--json")
    return dict(json.loads(done.stdout))


def test_a_connectors_file_is_run(connector: Path, database: Database, tmp_path: Path) -> None:
    log = tmp_path / "iris.headrace"
    arguments = ("capture", "--config", connector, "--log", log, "--until-caught-up", "--json")
    first = json.loads(call(*arguments).stdout)
    assert first["topics"] == {"flink.public.iris_train": 2}
    database.execute("INSERT INTO iris_test VALUES (3, 1)")
    database.execute("INSERT INTO other VALUES (4, 1)")
    again = json.loads(call(*arguments).stdout)
    assert (again["topics"], again["streamed"]) == ({"flink.public.iris_train": 2, "flink.public.iris_test": 1}, 1)
    found = status(log)
    assert list(found)[:3] == ["state", "lsn", "tables"]
    assert found["state"] == "stopped"
    assert {name: table["rows"] for name, table in found["tables"].items()} == {
        "public.iris_train": 2,
        "public.iris_test": 1,
    }
    assert found["tables"]["public.iris_test"]["lag"] is None
    # The slot is not Debezium's own, which may be running still.
    slots = database.execute("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")
    assert slots == [("headrace_iris_connector_flink_flink",)]


def test_a_table_that_is_made_later(connector: Path, database: Database, tmp_path: Path) -> None:
    log = tmp_path / "iris.headrace"
    arguments = ("capture", "--config", connector, "--log", log, "--until-caught-up", "--json")
    call(*arguments)
    database.execute("CREATE TABLE iris_late (id int PRIMARY KEY)")
    database.execute("INSERT INTO iris_late VALUES (1)")
    assert json.loads(call(*arguments).stdout)["topics"]["flink.public.iris_late"] == 1
    done = call("capture", "resync", connector, "--log", log, "--json", "--force")
    assert json.loads(done.stdout)["sources"][0]["source"] == "flink"
    assert json.loads(call(*arguments).stdout)["topics"]["flink.public.iris_late"] == 1


def test_a_lost_slot_and_the_log_alone(connector: Path, database: Database, tmp_path: Path) -> None:
    """What a resync appends are events of Debezium's, too; the password is not in the log."""
    log = tmp_path / "iris.headrace"
    arguments = ("capture", "--config", connector, "--log", log, "--until-caught-up", "--json")
    call(*arguments)
    database.drop_slots()
    database.execute("UPDATE iris_train SET petal = 7 WHERE id = 1")
    assert "headrace capture resync --log" in str(refused(*arguments))
    call("capture", "resync", "--log", log, "--json")
    shown = call("topics", "cat", "--all", "--log", log, "--format", "debezium-json").stdout
    assert json.loads(shown.splitlines()[-1])["value"] == {"id": 1, "petal": 7.0}


def test_a_database_without_a_file(connector: Path, database: Database, tmp_path: Path) -> None:
    arguments = ("--tables", r"public\.(iris_test|other)", "--tables", r"nothing{1,2}", "--prefix", "shop")
    settings = ("--set", f"slot.name=own_{database.name}", "--set", f"publication.name=own_{database.name}")
    database.execute("INSERT INTO other VALUES (1, 1)")
    log = ("--log", tmp_path / "s.headrace")
    done = call("capture", database.dsn, *arguments, *settings, *log, "--until-caught-up", "--json")
    assert json.loads(done.stdout)["topics"] == {"shop.public.other": 1}
    assert database.execute("SELECT count(*) FROM pg_publication WHERE pubname = %s", f"own_{database.name}") == [(1,)]


def test_what_cannot_be_run_is_said_at_once_and_leaves_nothing(connector: Path, tmp_path: Path) -> None:
    log = tmp_path / "none.headrace"
    settings = ("--set", "xmin.fetch.interval.ms=1000", "--set", "slot.nam=x", "--set", "snapshot.mode=custom")
    error = refused("capture", "--config", connector, "--log", log, *settings)
    assert error.exit_code == 2
    for said in ("xmin.fetch.interval.ms = 1000: Not supported yet.", "did you mean «slot.name»", "snapshot.mode"):
        assert said in str(error)
    assert not log.exists()
    assert "there is nothing to capture" in str(refused("capture", "--log", log))
    assert "this is not NAME=VALUE" in str(refused("capture", "--config", connector, "--set", "x"))


def test_a_publication_that_has_to_exist(connector: Path, tmp_path: Path) -> None:
    settings = ("--set", "publication.autocreate.mode=disabled", "--log", tmp_path / "none.headrace")
    error = refused("capture", "--config", connector, *settings)
    assert 'CREATE PUBLICATION "dbz_publication" FOR TABLE' in str(error)


def test_in_python(connector: Path, database: Database) -> None:
    app = hr.App("iris", log="memory://")
    source = app.debezium(connector)
    assert repr(source["public.iris_train"]) == "Stream(flink.public.iris_train)"
    with app.start() as running:
        running.wait()
        assert running.log.topics()["flink.public.iris_train"].rows == 2
    with pytest.raises(DeclarationError, match=r"did you mean «topic\.prefix»"):
        hr.App("x", log="memory://").debezium({**ARTICLE, "topic.prefx": "x"})
    with pytest.raises(DeclarationError, match="needs a connector's configuration"):
        hr.App("x", log="memory://").debezium()  # type: ignore[call-overload]  # the mistake that is tested


def test_status_while_it_runs_and_the_end(connector: Path, database: Database, tmp_path: Path) -> None:
    log = tmp_path / "iris.headrace"
    # A slot is made when the transactions have ended that are open now: the snapshot waits for this one.
    with psycopg.connect(database.dsn) as open_transaction:
        open_transaction.execute("INSERT INTO other VALUES (1, 1)")
        words = [HEADRACE, "capture", "--config", str(connector), "--log", str(log)]
        with Child(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_until(lambda: log.exists() and _state(log) == "snapshot", "the snapshot")
                open_transaction.commit()
                wait_until(lambda: _state(log) == "streaming", "the stream")
                database.execute("INSERT INTO iris_test VALUES (7, 7)")
                (lsn,) = database.execute("SELECT pg_current_wal_lsn()::text")[0]
                wait_until(lambda: parse_lsn(status(log)["lsn"]) >= parse_lsn(lsn), "the row")
                found = status(log)["tables"]["public.iris_test"]
                assert (found["rows"], found["topic"]) == (1, "flink.public.iris_test")
                begun = time.monotonic()
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
                assert time.monotonic() - begun < 10
            finally:
                process.kill()
    assert _state(log) == "stopped"


def _state(log: Path) -> str:
    try:
        return str(status(log)["state"])
    except HeadraceError:  # the log is being made, or captures nothing yet
        return ""


# --- explain ---


def test_explain(connector: Path) -> None:
    done = call("capture", "explain", connector, "--json")
    lines = json.loads(done.stdout)
    assert done.exit_code == 0
    assert {tuple(line) for line in lines} == {("property", "value", "state", "meaning", "default")}
    values = {line["property"]: line["value"] for line in lines}
    assert (values["database.password"], values["topic.prefix"]) == ("********", "flink")
    assert [line["property"] for line in lines][-3:] == ["key.converter", "value.converter", "transforms.unwrap.type"]
    stopped = call("capture", "explain", connector, "--set", "database.initial.statements=SELECT 1")
    assert stopped.exit_code == 2
    assert "database.initial.statements\tSELECT 1\t" in stopped.stdout


def test_explain_lists_every_property() -> None:
    found = {line["property"] for line in json.loads(call("capture", "explain", "--json").stdout)}
    assert {"slot.name", "column.mask.with.<length>.chars", "value.converter"} <= found
    assert "io.debezium.transforms.outbox.EventRouter" in found
    assert len(found) > 300


# --- Debezium's events ---


@pytest.mark.parametrize("form", ["envelope", "flat_rewrite"])
@pytest.mark.parametrize(
    "name",
    [
        "01_basic_crud",
        "50_filters_key_columns",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("05_numeric_string", "41_transactions_metadata")),
    ],
)
def test_a_configurations_events_are_debeziums(name: str, form: str, server: PostgresServer, tmp_path: Path) -> None:
    """What changes how events are written is in the file alone; the log remembers it."""
    if name not in names():
        pytest.skip("this recorded case is not here")
    case, log = Case.load(name), tmp_path / "case.headrace"
    with fresh_database(server, "case") as database:
        case.run(database, case.setup)
        parts = conninfo_to_dict(database.dsn)
        where = {"hostname": parts["host"], "port": parts.get("port", "5432"), "user": "postgres"}
        connector = {f"database.{key}": str(value) for key, value in where.items()}
        connector |= {"connector.class": "PostgresConnector", "database.dbname": database.name, "topic.prefix": "dbz"}
        connector |= {"plugin.name": "pgoutput", "database.password": "s3cret", **case.config, **FORMS[form]}
        app = hr.App("dbz", log=str(log))
        app.debezium(connector)
        with app.start() as running:
            running.wait(60)
            case.run(database, case.stream, lambda: running.wait(60))
            running.wait(60)
    assert b"s3cret" not in log.read_bytes()
    shown = call("topics", "cat", "--all", "--log", log, "--format", "debezium-json").stdout
    assert [case.normal(line) for line in shown.split("\n") if line] == case.recorded(form)


def test_a_log_on_kafka_has_messages_of_its_format(connector: Path) -> None:
    error = refused(
        "capture", "--config", connector, "--log", "kafka://127.0.0.1:1/x", "--set", "decimal.handling.mode=string"
    )
    assert "On a Kafka log messages are written as the log's format has them" in str(error)
