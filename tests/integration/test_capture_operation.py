"""A capture as people run it: SIGTERM in every phase, metrics for Prometheus, and `capture status` of each phase."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from headrace.cli.main import app as command
from headrace.errors import HeadraceError
from headrace.log import open_log
from headrace.testing.servers import postgres
from tests.databases import Database
from tests.processes import HEADRACE, Child
from tests.waiting import wait_until

END_SECONDS = 10.0


def status(log: Path) -> dict[str, Any]:
    """What `capture status` says; nothing while there is no log, or it captures nothing yet."""
    try:
        shown = CliRunner().invoke(command, ["capture", "status", "--log", str(log), "--json"], catch_exceptions=False)
    except HeadraceError:
        return {"state": "", "tables": {}}
    return dict(json.loads(shown.stdout))


def words(dsn: str, log: Path, *more: str) -> list[str]:
    return [HEADRACE, "capture", dsn, "--tables", r"public\.t.*", "--prefix", "p", "--log", str(log), *more]


@contextlib.contextmanager
def capturing(dsn: str, log: Path, *more: str) -> Iterator[Any]:
    """A capture in a process of its own; its standard error goes to a file beside the log."""
    said = log.with_suffix(".said")
    with said.open("wb") as stderr, Child(words(dsn, log, *more), stdout=subprocess.DEVNULL, stderr=stderr) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(60)


def end(process: Any) -> None:
    """Send SIGTERM; it ends cleanly, and in time."""
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert time.monotonic() - begun < END_SECONDS


def ids(log: Path, topic: str = "p.public.t") -> list[int]:
    with contextlib.closing(open_log(str(log), writer=False)) as held:
        entries = held.read_topic(topic, limit=10_000_000)
        return [value for entry in entries for value in entry.records.column("id").to_pylist()]


def finish(dsn: str, log: Path, expected: list[int]) -> None:
    """Capture the rest: whatever was interrupted, each row is there once."""
    child = Child(words(dsn, log, "--until-caught-up"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, said = child.communicate(timeout=240)
    assert child.returncode == 0, said.decode()
    assert sorted(ids(log)) == expected
    assert status(log)["state"] == "stopped"


@pytest.fixture
def table(database: Database) -> Database:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    return database


def test_sigterm_while_a_slot_waits_for_a_transaction(table: Database, tmp_path: Path) -> None:
    log = tmp_path / "p.headrace"
    table.execute("INSERT INTO t VALUES (1, 1)")
    with psycopg.connect(table.dsn) as holding:
        holding.execute("INSERT INTO t VALUES (2, 2)")
        with capturing(table.dsn, log) as process:
            wait_until(lambda: status(log)["state"] == "snapshot", "the start")
            end(process)
        holding.commit()
    finish(table.dsn, log, [1, 2])


def test_sigterm_while_a_table_is_locked(table: Database, tmp_path: Path) -> None:
    """A publication of it waits: in a statement that libpq sends."""
    log = tmp_path / "p.headrace"
    table.execute("INSERT INTO t VALUES (1, 1)")
    with psycopg.connect(table.dsn) as holding:
        holding.execute("LOCK TABLE t IN SHARE MODE")
        with capturing(table.dsn, log, "--set", "publication.autocreate.mode=filtered") as process:
            wait_until(lambda: "it waits for a lock on table" in log.with_suffix(".said").read_text(), "the lock")
            end(process)
    finish(table.dsn, log, [1])


def test_sigterm_while_a_slot_is_in_use(table: Database, tmp_path: Path) -> None:
    log, other = tmp_path / "p.headrace", "headrace_p"
    with capturing(table.dsn, log) as first:
        wait_until(lambda: status(log)["state"] == "streaming", "the stream")
        end(first)
    (slot,) = table.execute("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")[0]
    assert str(slot).startswith(other)
    reader = ["--slot", str(slot), "-d", table.dsn, "--start", "-f", "-", "-o", "proto_version=1"]
    reader += ["-o", f"publication_names={slot}"]
    holder = subprocess.Popen([str(table.server.bin / "pg_recvlogical"), *reader], stdout=subprocess.DEVNULL)
    try:
        active = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
        wait_until(lambda: table.execute(active, slot) == [(True,)], "the other reader")
        with capturing(table.dsn, log) as process:
            said = log.with_suffix(".said")
            wait_until(lambda: "waiting for slot" in said.read_text(), "the wait for the slot")
            end(process)
    finally:
        holder.kill()
        holder.wait(60)
    table.execute("INSERT INTO t VALUES (1, 1)")
    finish(table.dsn, log, [1])


def test_sigterm_while_the_server_is_away(tmp_path: Path) -> None:
    with postgres() as server:
        log = tmp_path / "p.headrace"
        server.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
        with capturing(server.dsn, log) as process:
            wait_until(lambda: status(log)["state"] == "streaming", "the stream")
            server.stop("immediate")
            said = log.with_suffix(".said")
            wait_until(lambda: re.search("cannot be reached|was lost|connecting", said.read_text()), "the loss")
            end(process)
        # A start that finds nobody is ended as well.
        with capturing(server.dsn, log, "--start-timeout", "300") as process:
            wait_until(lambda: "it is tried again" in log.with_suffix(".said").read_text(), "the next try")
            end(process)
        server.start()
        server.execute("INSERT INTO t VALUES (1, 1)")
        finish(server.dsn, log, [1])


@pytest.mark.slow
def test_sigterm_in_the_snapshot_of_a_large_table(table: Database, tmp_path: Path) -> None:
    log = tmp_path / "p.headrace"
    table.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 3000000) i")
    with capturing(table.dsn, log) as process:
        found = wait_until(lambda: (now := status(log))["tables"] and now, "rows of the snapshot")
        assert found["state"] == "snapshot"
        assert found["tables"]["public.t"]["estimated"] >= found["tables"]["public.t"]["rows"]
        end(process)
    finish(table.dsn, log, list(range(1, 3_000_001)))


@pytest.mark.slow
def test_sigterm_in_a_transaction_of_a_million_rows(table: Database, tmp_path: Path) -> None:
    log = tmp_path / "p.headrace"
    with capturing(table.dsn, log) as process:
        wait_until(lambda: status(log)["state"] == "streaming", "the stream")
        before = log.stat().st_size
        table.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 1000000) i")

        def grows() -> bool:
            wal = log.with_name(f"{log.name}-wal")
            return log.stat().st_size + (wal.stat().st_size if wal.exists() else 0) > before + (1 << 20)

        wait_until(grows, "rows of the transaction")
        end(process)
    finish(table.dsn, log, list(range(1, 1_000_001)))


def test_a_capture_that_was_killed_is_not_said_to_run(table: Database, tmp_path: Path) -> None:
    log = tmp_path / "p.headrace"
    table.execute("INSERT INTO t VALUES (1, 1)")
    with capturing(table.dsn, log) as process:
        wait_until(lambda: status(log)["state"] == "streaming", "the stream")
        process.kill()
        process.wait(60)
        found = wait_until(lambda: (now := status(log))["state"] == "stopped" and now, "the silence")
    about = found["tables"]["public.t"]
    assert (about["rows"], about["lag"]) == (1, None)
    assert about["last_commit"].startswith("20")
    assert re.fullmatch(r"[0-9A-F]+/[0-9A-F]+", found["lsn"])


def scraped(url: str) -> dict[str, float]:
    """The metrics of captures, by name and labels."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    found = re.findall(r"^headrace_capture_(\S+) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_metrics_of_a_capture(table: Database, tmp_path: Path) -> None:
    log = tmp_path / "p.headrace"
    table.execute("INSERT INTO t VALUES (1, 1), (2, 2)")
    table.execute("CREATE TABLE t_times (id int PRIMARY KEY, at timestamp)")
    with capturing(table.dsn, log, "--metrics-port", "0") as process:
        said = log.with_suffix(".said")
        url = wait_until(lambda: (at := re.search(r"http://\S+/metrics", said.read_text())) and at[0], "the address")
        wait_until(lambda: status(log)["state"] == "streaming", "the stream")
        source = 'source="p"'
        of_t = f'{{{source},table="public.t"}}'
        wait_until(lambda: scraped(url).get(f'snapshot_rows{{{source},table="public.t"}}') == 2, "the snapshot's rows")
        table.execute("INSERT INTO t VALUES (3, 3)")
        wait_until(lambda: scraped(url).get(f"rows{of_t}") == 1, "the row")
        found = scraped(url)
        assert found[f"bytes{{{source}}}"] > 0
        assert found[f"reconnects{{{source}}}"] == 0
        assert found[f"slot_retained_bytes{{{source}}}"] >= 0
        assert found[f"lag_bytes{{{source}}}"] >= 0
        assert found[f"lag_seconds{{{source}}}"] >= 0
        table.execute("INSERT INTO t_times VALUES (1, '294276-12-31'), (2, '2024-01-01')")
        letters = f'dead_letters{{{source},table="public.t_times"}}'
        wait_until(lambda: scraped(url).get(letters) == 1, "the dead letter")
        (pid,) = table.execute("SELECT active_pid FROM pg_replication_slots WHERE database = current_database()")[0]
        table.execute("SELECT pg_terminate_backend(%s)", pid)
        wait_until(lambda: scraped(url).get(f"reconnects{{{source}}}") == 1, "the reconnection")
        end(process)
