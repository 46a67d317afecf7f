"""`headrace doctor`, as a user calls it: of a database, of a log and its databases, with repairs and exit codes."""

from __future__ import annotations

import json
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.databases import Database
from typer.testing import CliRunner, Result

from headrace.capture.postgres.slot_binding import Claim, known_sources
from headrace.cli.main import app as command
from headrace.errors import DeclarationError
from headrace.log import open_log


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command, ["doctor", *arguments], catch_exceptions=False)


def answered(*arguments: str, code: int) -> dict[str, Any]:
    done = call(*arguments, "--json")
    assert done.exit_code == code, done.output
    return dict(json.loads(done.stdout))


def checks_of(found: dict[str, Any], severity: str = "error") -> list[str]:
    return [finding["check"] for finding in found["findings"] if finding["severity"] == severity]


@pytest.fixture
def file(database: Database, tmp_path: Path) -> Path:
    """The file of a pipeline that has run."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    database.execute("INSERT INTO t VALUES (1, 1)")
    made = tmp_path / "pipeline.py"
    made.write_text(
        f"""import headrace as hr
app = hr.App({database.name!r}, log={str(tmp_path / "t.headrace")!r})
db = app.postgres({database.dsn!r}, tables=r"public\\.t")
"""
    )
    done = CliRunner().invoke(command, ["run", str(made), "--until-caught-up"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return made


def test_exit_codes_and_repair(database: Database) -> None:
    database.execute("CREATE TABLE t (id int NOT NULL UNIQUE)")
    found = answered(database.dsn, "--tables", r"public\.t", code=1)
    assert checks_of(found) == ["replica_identity"]
    (finding,) = [finding for finding in found["findings"] if finding["severity"] == "error"]
    assert set(finding) == {"check", "severity", "where", "message", "sql", "advice", "safe"}
    assert found["errors"] == 1
    with pytest.raises(DeclarationError, match="this would run ALTER TABLE"):
        call(database.dsn, "--fix")
    fixed = answered(database.dsn, "--tables", r"public\.t", "--fix", "--yes", code=0)
    assert fixed["fixed"] == [
        {"sql": 'ALTER TABLE "public"."t" REPLICA IDENTITY USING INDEX "t_id_key";', "error": None}
    ]
    assert not checks_of(fixed)


def test_repair_by_another_role(database: Database) -> None:
    role = database.name
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION mine FOR TABLE t")
    database.execute(f"CREATE ROLE {role} LOGIN REPLICATION")
    weak = database.dsn.replace("postgres@", f"{role}@")
    try:
        alone = answered(weak, "--publication", "mine", "--fix", "--yes", code=1)
        assert "permission denied" in alone["fixed"][0]["error"]
        assert answered(weak, "--publication", "mine", "--fix", "--yes", "--fix-as", database.dsn, code=0)["fixed"]
    finally:
        database.execute(f"DROP OWNED BY {role}")
        database.execute(f"DROP ROLE {role}")


def test_of_a_log_and_its_database(file: Path, database: Database, tmp_path: Path) -> None:
    log = str(tmp_path / "t.headrace")
    for arguments in (["--log", log], [str(file)], [database.dsn, "--log", log]):
        found = answered(*arguments, code=0)
        # Its own slot is idle, and that is no more than a note.
        assert f"headrace_{database.name}" in str([each for each in found["findings"] if each["severity"] == "note"])
    database.execute(f"ALTER PUBLICATION headrace_{database.name} DROP TABLE t")
    for arguments in (["--log", log], [str(file)]):
        assert "log" in checks_of(answered(*arguments, code=1))
    database.drop_slots()
    (finding,) = [each for each in answered("--log", log, code=1)["findings"] if each["check"] == "log"]
    assert f"headrace_{database.name}" in finding["message"]
    assert f"headrace capture resync --log {log}" in finding["advice"]


def test_of_a_pipeline_that_hangs(file: Path, tmp_path: Path) -> None:
    part = {"kind": "engine", "name": "x", "seconds": 0.0, "status": "waits", "ended": False}
    (tmp_path / "t.headrace.health").write_text(json.dumps({"ts": 1.0, "pid": 1, "parts": [part]}))
    found = answered("--log", str(tmp_path / "t.headrace"), code=1)
    assert checks_of(found) == ["silent"]


def test_what_people_see(database: Database) -> None:
    database.execute("CREATE UNLOGGED TABLE t (id int PRIMARY KEY)")
    done = call(database.dsn.replace("postgres@", "postgres:geheim@"), "--tables", r"public\.t")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[0].split("\t")[:3] == ["check", "severity", "where"]
    assert "SET LOGGED;" in done.stdout
    assert "1 error" in done.stderr
    assert "geheim" not in done.output


@pytest.mark.parametrize(("arguments", "says"), [((), "nothing to look at"), (("x", "--tables", "("), "no regular")])
def test_mistakes(arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_DSN", raising=False)
    with pytest.raises(DeclarationError, match=says):
        call(*arguments)


@pytest.mark.parametrize("ending", ["json", "properties"])
def test_of_a_debezium_configuration(database: Database, tmp_path: Path, ending: str) -> None:
    """The heartbeat's table is outside the publication, and the connector runs what a capture here does not."""
    database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    database.execute("CREATE TABLE beat (id int PRIMARY KEY)")
    database.execute("CREATE TABLE bare (id int)")
    database.execute("CREATE PUBLICATION dbz FOR TABLE orders")
    properties = {
        "name": "shop",
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "plugin.name": "pgoutput",
        "database.hostname": "127.0.0.1",
        "database.port": str(database.server.port),
        "database.user": "postgres",
        "database.password": "geheim",
        "database.dbname": database.name,
        "topic.prefix": "shop",
        "table.include.list": "public.orders",
        "publication.name": "dbz",
        "publication.autocreate.mode": "disabled",
        "heartbeat.interval.ms": "10000",
        "heartbeat.action.query": "INSERT INTO beat (id) VALUES (1) ON CONFLICT DO NOTHING",
    }
    file = tmp_path / f"connector.{ending}"
    lines = "".join(f"{name}={value}\n" for name, value in properties.items())
    file.write_text(json.dumps({"name": "shop", "config": properties}) if ending == "json" else lines)
    found = answered("--config", str(file), code=1)
    assert checks_of(found) == ["heartbeat"]
    assert "geheim" not in json.dumps(found)
    fixed = answered("--config", str(file), "--fix", "--yes", code=0)
    assert fixed["fixed"] == [{"sql": 'ALTER PUBLICATION "dbz" ADD TABLE "public"."beat";', "error": None}]
    # A connection string goes before the configuration's.
    assert "replica_identity" not in str(answered(database.dsn, "--config", str(file), code=0))


def test_a_log_gets_no_password_in_clear(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes an address into a log, and sends that to somebody, learns nothing of theirs."""
    with socket.create_server(("127.0.0.1", 0)) as thief:
        address = f"host=127.0.0.1 port={thief.getsockname()[1]} user=me dbname=x sslmode=disable"
        log = open_log(str(tmp_path / "t.headrace"), writer=True)
        (name,) = known_sources(log)
        with log.transaction() as transaction:
            transaction.put("owner", name, Claim("s", address).to_json())
        log.close()
        monkeypatch.setenv("PGPASSWORD", "geheim")
        heard: list[bytes] = []

        def steal() -> None:
            connection, _ = thief.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"R" + struct.pack("!II", 8, 3))  # AuthenticationCleartextPassword
                heard.append(connection.recv(4096))

        thread = threading.Thread(target=steal, daemon=True)
        thread.start()
        found = answered("--log", str(tmp_path / "t.headrace"), code=1)
        thread.join(60)
    assert "connection" in checks_of(found)
    assert b"geheim" not in heard[0]
