"""A server that wants TLS, a client's certificate and SCRAM; a password that stands nowhere but where it was given."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.capture.debezium.configuration import read_configuration
from headrace.capture.debezium.options import options_of
from headrace.capture.postgres.client import Server
from headrace.testing.servers import PostgresServer
from headrace.testing.servers.places import free_directory, free_port
from tests.databases import debian_binaries
from tests.processes import HEADRACE, Child

SECRET = "s3cret' \\pa ss"
PLANTED = "s3cret"
"""No line may have it."""
KEY_SECRET = "k3ysecret"


@dataclass(frozen=True)
class Strict:
    """A server that lets in who has a certificate and a password."""

    server: PostgresServer
    folder: Path

    def parameters(self, **more: str) -> dict[str, str]:
        given = {"host": "localhost", "port": str(self.server.port), "user": "app", "dbname": "postgres"}
        given |= {"sslmode": "verify-full", "sslrootcert": str(self.folder / "ca.crt")}
        given |= {"sslcert": str(self.folder / "client.crt"), "sslkey": str(self.folder / "client.key")}
        return {**given, "sslpassword": KEY_SECRET, **more}

    def dsn(self, **more: str) -> str:
        return " ".join(f"{name}={quoted(value)}" for name, value in self.parameters(**more).items())


def quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def certificate(
    folder: Path, name: str, subject: str, *, issuer: str = "", password: str = "", names: str = ""
) -> None:
    """Make a key and a certificate, signed by another one or by itself."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    plain = ["-nodes"] if not password else ["-passout", f"pass:{password}"]
    about = ["-newkey", "rsa:2048", "-keyout", f"{name}.key", "-subj", f"/CN={subject}", *plain]
    extension = ["-addext", f"subjectAltName={names}"] if names else []
    if not issuer:
        openssl("req", "-x509", "-days", "2", "-out", f"{name}.crt", *about)
        return
    openssl("req", "-new", "-out", f"{name}.csr", *about, *extension)
    signed = ["-CA", f"{issuer}.crt", "-CAkey", f"{issuer}.key", "-CAcreateserial", "-days", "2"]
    openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signed, "-copy_extensions", "copy")
    (folder / f"{name}.key").chmod(0o600)


@pytest.fixture(scope="module")
def strict() -> Iterator[Strict]:
    """The server, with a table of two rows."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = free_directory("headrace-tls-")
    folder.chmod(0o755)
    certificate(folder, "ca", "a test's authority")
    certificate(folder, "server", "localhost", issuer="ca", names="DNS:localhost")
    certificate(folder, "client", "app", issuer="ca", password=KEY_SECRET)
    server = PostgresServer(free_directory("headrace-pg-"), binaries=debian_binaries())
    try:
        server.start()
        for name in ("server.key", "server.crt", "ca.crt"):
            shutil.copy(folder / name, server.data / name)
            (server.data / name).chmod(0o600)
            if os.geteuid() == 0:
                shutil.chown(server.data / name, "nobody")
        server.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
        server.execute("INSERT INTO t VALUES (1, 1), (2, 2)")
        server.execute("SET password_encryption = 'scram-sha-256'")
        password = SECRET.replace("'", "''")
        server.execute(f"CREATE ROLE app LOGIN SUPERUSER PASSWORD '{password}'")
        for setting in ("ssl = on", "ssl_ca_file = 'ca.crt'"):
            server.execute(f"ALTER SYSTEM SET {setting}")
        rules = "local all postgres trust\nhostssl all app all scram-sha-256 clientcert=verify-full\n"
        (server.data / "pg_hba.conf").write_text(rules)
        server.execute("SELECT pg_reload_conf()")
        yield Strict(server, folder)
    finally:
        server.remove()
        shutil.rmtree(folder, ignore_errors=True)


def said(words: list[str], folder: Path, environment: dict[str, str], code: int = 0) -> str:
    """Everything that a command prints, on both streams."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    loud = {**bare, "HEADRACE_LOG_LEVEL": "debug", "HOME": str(folder), **environment}
    child = Child([HEADRACE, *words], cwd=folder, env=loud, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out, _ = child.communicate(timeout=120)
    text = str(out.decode())
    assert child.returncode == code, text
    return text


def bare(text: str | bytes) -> None:
    """See that no secret is there."""
    found = text if isinstance(text, bytes) else text.encode()
    for planted in (PLANTED, KEY_SECRET):
        assert planted.encode() not in found, found[-2000:]


WAYS = ("dsn", "PGPASSWORD", "PGPASSFILE", "passfile", ".pgpass", "service", "env", "file", "dir")
"""How the password is given."""


def given(way: str, strict: Strict, folder: Path) -> tuple[list[str], dict[str, str]]:
    """A capture's arguments, and its environment."""
    escaped = SECRET.replace("\\", "\\\\").replace(":", "\\:")
    passwords = folder / (".pgpass" if way == ".pgpass" else "passwords")
    passwords.write_text(f"localhost:*:*:app:{escaped}\n")
    passwords.chmod(0o600)
    environment: dict[str, str] = {}
    if way == "dsn":
        return [strict.dsn(password=SECRET)], environment
    if way in ("PGPASSWORD", "PGPASSFILE"):
        return [strict.dsn()], {way: SECRET if way == "PGPASSWORD" else str(passwords)}
    if way == "passfile":
        return [strict.dsn(passfile=str(passwords))], environment
    if way == ".pgpass":
        return [strict.dsn()], environment
    if way == "service":
        lines = [f"{name}={value}" for name, value in strict.parameters(password=SECRET).items()]
        (folder / "services.conf").write_text("\n".join(["[shop]", *lines, ""]))
        return ["postgresql://?service=shop"], {"PGSERVICEFILE": str(folder / "services.conf")}
    (folder / "secrets.properties").write_text("password=" + SECRET.replace("\\", "\\\\") + "\n")
    (folder / "password").write_text(SECRET)
    placeholder = {
        "env": "${env:SHOP_PASSWORD}",
        "file": f"${{file:{folder}/secrets.properties:password}}",
        "dir": f"${{dir:{folder}:password}}",
    }[way]
    parts = strict.parameters()
    names = {"host": "hostname"}
    connector = {f"database.{names.get(name, name)}": value for name, value in parts.items()}
    connector |= {"connector.class": "io.debezium.connector.postgresql.PostgresConnector", "topic.prefix": "p"}
    connector |= {"database.password": placeholder, "table.include.list": "public.t", "name": "p"}
    (folder / "connector.json").write_text(json.dumps({"name": "p", "config": connector}))
    return ["--config", str(folder / "connector.json")], {"SHOP_PASSWORD": SECRET}


@pytest.mark.parametrize("way", [pytest.param(way, marks=[] if way == "env" else [pytest.mark.slow]) for way in WAYS])
def test_a_password_is_found_and_said_nowhere(way: str, strict: Strict, tmp_path: Path) -> None:
    where, environment = given(way, strict, tmp_path)
    log = tmp_path / "p.headrace"
    words = ["capture", *where, "--log", str(log)]
    words += [] if where[0] == "--config" else ["--tables", r"public\.t", "--prefix", "p"]
    try:
        text = said([*words, "--until-caught-up"], tmp_path, environment)
        text += said([*words, "--until-caught-up", "--json"], tmp_path, environment)
        text += said(["capture", "status", "--log", str(log)], tmp_path, environment)
        text += said(["topics", "cat", "--all", "--log", str(log), "--format", "debezium-json"], tmp_path, environment)
        doctor = where if where[0] == "--config" else [where[0], "--log", str(log)]
        shown = Child([HEADRACE, "doctor", *doctor, "--json"], env={**os.environ, "HOME": str(tmp_path), **environment},
                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        found = shown.communicate(timeout=120)[0].decode()
        assert '"connection"' not in found
        bare(text + found)
        for file in tmp_path.glob("p.headrace*"):
            bare(file.read_bytes())
        encrypted = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'app'"
        assert (False,) not in strict.server.execute(encrypted)
        if where[0] == "--config":
            bare(said(["capture", "explain", where[1], "--json"], tmp_path, environment))
        # A password that is wrong is refused at once, and stands in no message.
        strict.server.execute("ALTER ROLE app PASSWORD 'another'")
        refused = said([*words, "--until-caught-up", "--start-timeout", "0"], tmp_path, environment, code=2)
        assert "password authentication failed" in refused
        bare(refused)
    finally:
        password = SECRET.replace("'", "''")
        strict.server.execute(f"ALTER ROLE app PASSWORD '{password}'")
        for (slot,) in strict.server.execute("SELECT slot_name FROM pg_replication_slots"):
            strict.server.execute("SELECT pg_drop_replication_slot(%s)", slot)


def test_a_server_that_is_not_who_it_says_is_refused(strict: Strict, tmp_path: Path) -> None:
    log = ["--tables", r"public\.t", "--prefix", "p", "--log", str(tmp_path / "p.headrace"), "--until-caught-up"]
    other = said(["capture", strict.dsn(password=SECRET, host="127.0.0.1"), *log], tmp_path, {}, code=2)
    assert "does not match host name" in other
    assert "is called as its certificate says" in other
    for wrong in ({"sslrootcert": "/nowhere/ca.crt"}, {"sslkey": "/nowhere/client.key"}, {"sslpassword": "wr0ng"}):
        text = said(["capture", strict.dsn(password=SECRET, **wrong), *log], tmp_path, {}, code=2)
        assert "Check sslmode, sslrootcert" in text
        bare(text)
    plain = strict.dsn(password=SECRET, sslmode="disable")
    without = said(["capture", plain, *log], tmp_path, {}, code=2)
    assert "no pg_hba.conf entry" in without
    bare(other + without)


def test_what_is_kept_and_shown_of_a_pipeline(strict: Strict, tmp_path: Path) -> None:
    app = hr.App("p", log=str(tmp_path / "p.headrace"))
    dsn = strict.dsn(password=SECRET)
    source = app.postgres(dsn, tables=r"public\.t")
    plan = app.plan()
    try:
        port = free_port()
        with app.start(metrics=("127.0.0.1", port)) as running:
            running.wait(60)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                page = answer.read().decode()
            assert re.search(r'headrace_capture_snapshot_rows\{source="p",table="public.t"\} 2.0', page)
            shown = [repr(app), repr(source), repr(plan), str(plan), repr(plan.sources), repr(running), page]
            shown += [repr(running.engine.sources[0].__dict__), str(running.engine.sources[0].status)]
            bare("\n".join(shown))
        for file in tmp_path.glob("p.headrace*"):
            bare(file.read_bytes())
    finally:
        strict.server.execute("SELECT pg_drop_replication_slot('headrace_p')")
    bare(repr(Server(dsn)) + str(Server(dsn)) + Server(dsn).address)
    options: Any = {"database.hostname": "db", "database.user": "ann", "database.dbname": "x", "topic.prefix": "p"}
    options |= {"connector.class": "PostgresConnector", "database.password": SECRET, "database.sslpassword": KEY_SECRET}
    configuration = read_configuration(options)
    bare(repr(configuration) + repr(options_of(configuration)))
