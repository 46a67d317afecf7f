"""Random work on a server and kills of pipeline and server: the log has what the server's own log has, event by event.

The checker reads a second slot with code of its own (`oracle.py`). A round ends with something that must be refused, as
often as not. The long form is run by `make crash`; one round is in the suite.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psycopg
import pytest

import headrace as hr
import headrace.engines.local.startup  # the server of forks has it already
from headrace.capture.postgres.drift import Began
from headrace.errors import HeadraceError
from headrace.log import open_log
from headrace.log.base import walk
from headrace.testing.servers import PostgresServer, postgres
from tests.databases import Database

from . import harness
from .oracle import UNCHANGED, Event, Oracle
from .random_workload import CAPTURED, SETUP, Writer

ROUNDS = int(os.environ.get("HEADRACE_CRASH_ROUNDS", "20"))
SEED = int(os.environ.get("HEADRACE_CRASH_SEED", "7"))
# What must be refused, and what the refusal says.
REFUSED = {
    "swap": (
        "BEGIN; ALTER TABLE {a} RENAME TO gone; CREATE TABLE r_a (LIKE {s}.gone INCLUDING ALL); INSERT INTO r_a "
        "SELECT * FROM {s}.gone; COMMIT",
        "public.r_a is another table now",
    ),
    "operations": (
        "ALTER PUBLICATION headrace_random_r SET (publish = 'update')",
        "no longer publishes inserts, deletes, truncates",
    ),
    "set back": (
        "ALTER PUBLICATION headrace_random_r SET (publish = 'update'); "
        "ALTER PUBLICATION headrace_random_r SET (publish = 'insert, update, delete, truncate')",
        "was altered, and set back",
    ),
    "put back": (
        "ALTER PUBLICATION headrace_random_r DROP TABLE {a}; ALTER PUBLICATION headrace_random_r ADD TABLE ONLY {a}",
        "and put back",
    ),
    "filter": (
        "ALTER PUBLICATION headrace_random_r DROP TABLE {a}; "
        "ALTER PUBLICATION headrace_random_r ADD TABLE ONLY {a} WHERE (x > 0.5)",
        "the row filter of table public.r_a",
    ),
    "dropped": ("DROP PUBLICATION headrace_random_r", "publication «headrace_random_r»"),
}


def build(dsn: str, log: str) -> hr.App:
    """A model on one table, and every captured table in the log."""
    app = hr.App("random", log=log)
    db = app.postgres(dsn, tables=r"public\.r_.*", prefix="r")
    model = app.model("means", hr.KMeans(k=3, seed=3), features=["x", "y"])
    model.learn(db["public.r_learned"], every=25)
    model.predict(db["public.r_learned"]).to("answers")
    return app


def pipeline(dsn: str, log: str, words: str, caught_up: bool) -> None:
    """Run in a child process; that it runs, and what it ends with, is written to a file."""
    try:
        if caught_up:
            build(dsn, log).run(until="caught-up")
            return
        with build(dsn, log).start() as running:
            Path(words).write_text("running")
            while not running.join(0.2):
                pass
    except HeadraceError as error:
        Path(words).write_text(str(error))
        os._exit(error.exit_code)


class Round:
    """One database, its pipeline, and what must have come of them."""

    def __init__(self, server: PostgresServer, directory: Path, seed: int) -> None:
        self.server, self.database = server, Database.create(server, f"random_{seed}")
        self.name, self.dsn = self.database.name, self.database.dsn
        self.chance = random.Random(seed)
        self.log, self.words = directory / f"{seed}.headrace", directory / f"{seed}.txt"
        self.execute(SETUP)
        self.oids = {name: self.execute(f"SELECT '{name}'::regclass::oid")[0][0] for name in CAPTURED}
        self.writers = [Writer(self.dsn, list(self.oids.values()), seed * 10 + number) for number in range(2)]
        self.kills = self.crashes = 0

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def start(self, *, caught_up: bool = False) -> ForkServerProcess:
        self.words.unlink(missing_ok=True)
        child = multiprocessing.get_context("forkserver").Process(
            target=pipeline, args=(self.dsn, str(self.log), str(self.words), caught_up)
        )
        child.start()
        return child

    def catch_up(self) -> None:
        child = self.start(caught_up=True)
        child.join(120)
        assert child.exitcode == 0, self.said(child)

    def said(self, child: ForkServerProcess) -> str:
        return f"{child.exitcode}: {self.words.read_text() if self.words.exists() else 'nothing'}"

    def work(self, kills: int) -> None:
        """Two writers write while the pipeline is killed and started again; now and then the server crashes."""
        stop = threading.Event()
        threads = [threading.Thread(target=writer.run, args=(stop,)) for writer in self.writers]
        for thread in threads:
            thread.start()
        try:
            for _ in range(kills):
                child = self.start()
                # Long enough, now and then, for tables to join.
                longest = 1.2 if self.chance.random() < 0.7 else 4.0
                until = time.monotonic() + self.chance.uniform(0.05, longest)
                while child.is_alive() and time.monotonic() < until:
                    time.sleep(0.01)
                assert child.exitcode is None, self.said(child)
                started = self.words.exists()
                if self.chance.random() < 0.2:
                    self.server.stop("immediate")
                    self.server.start()
                    self.crashes += 1
                    time.sleep(self.chance.uniform(0, 0.5))
                    # A server that is away at a start is an error; once the pipeline runs, it is waited for.
                    away = child.exitcode == 1 and ("be reached" in self.said(child) or "lost" in self.said(child))
                    assert child.exitcode is None or (away and not started), self.said(child)
                child.kill()
                child.join()
                self.kills += 1
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def refused(self) -> tuple[str, str]:
        """Do one thing behind the pipeline's back, while it runs or is stopped: what it says, and what it must say."""
        case = self.chance.choice(sorted(REFUSED))
        done, says = REFUSED[case]
        table = self.execute(
            f"SELECT relnamespace::regnamespace::text, oid::regclass::text FROM pg_class WHERE oid = {self.oids['r_a']}"
        )[0]
        running = self.chance.random() < 0.5
        child = self.start() if running else None
        time.sleep(self.chance.uniform(0, 1.5) if running else 0)
        # The table may be called anything by now: a new r_a takes the name that it had when its capture began.
        holders = (
            "SELECT oid::regclass::text FROM pg_class WHERE relname = 'r_a' AND relnamespace = 'public'::regnamespace"
        )
        for (holder,) in self.execute(holders):
            if case == "swap" and holder != table[1]:
                self.execute(f"ALTER TABLE {holder} RENAME TO also_away")
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in done.format(s=table[0], a=table[1]).split(";"):
                connection.execute(statement.strip().encode())
        child = child or self.start()
        child.join(60)
        if child.exitcode is None:
            child.kill()
            child.join()
        return f"{case}: {self.said(child)}", says

    def check(self, snapshot: list[tuple[str, dict[str, Any]]]) -> int:
        """Compare the log with the server's, event by event, and the model with its replay; how many events."""
        topics = {f"r.public.{name}": oid for name, oid in self.oids.items()}
        expected = [(event.lsn, event.index, event.oid, event.op, event.row) for event in self.events]
        held = open_log(str(self.log), writer=False, name="random")
        try:
            found = [event for topic, oid in topics.items() for event in _held(held, topic, oid)]
        finally:
            held.close()
        first = [event for event in found if event.op == "r"]
        assert sorted((e.oid, repr(e.row)) for e in first) == sorted((oid, repr(row)) for oid, row in snapshot)
        # Within a topic rows lie in the order of their positions already; together the positions are the one order.
        rest = [event for event in found if event.op != "r"]
        for oid in topics.values():
            places = [(event.lsn, event.index) for event in rest if event.oid == oid]
            assert places == sorted(set(places)), f"relation {oid} is not in commit order, or has an event twice"
        rest.sort(key=lambda event: (event.lsn, event.index))
        got = [(event.lsn, event.index, event.oid, event.op, event.row) for event in rest]
        for number, (ours, theirs) in enumerate(zip(got, expected, strict=False)):
            assert ours == theirs, f"event {number} of {len(expected)}"
        assert len(got) == len(expected)
        harness.verify(build(self.dsn, str(self.log)))
        return len(expected)

    def check_mortal(self) -> int:
        """Compare tables that came and went with what their topics say is in them; how many there are."""
        query = "SELECT oid::bigint, oid::regclass::text FROM pg_class WHERE relname ~ '^r_[mf]'"
        there = dict(self.execute(f"{query} AND relkind IN ('r', 'p') AND NOT relispartition"))
        held = open_log(str(self.log), writer=False, name="random")
        try:
            began = Began.load(held, "r")
            assert began is not None
            active = {table.oid: table for table in began.active if table.oid not in self.oids.values()}
            assert set(active) >= set(there), f"{set(there) - set(active)} did not join"
            for oid, name in there.items():
                key = self.execute(
                    "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND "
                    f"a.attnum = i.indkey[0] WHERE i.indrelid = {oid} AND i.indisprimary"
                )[0][0]
                with psycopg.connect(self.dsn) as connection:
                    cursor = connection.execute(f"SELECT * FROM {name}".encode())
                    names = [column.name for column in cursor.description or ()]
                    rows = {row[names.index(key)]: dict(zip(names, row, strict=True)) for row in cursor}
                replayed = _replayed(held, f"r.{active[oid]}")
                assert replayed.keys() == rows.keys(), f"{name}: {len(rows)} rows, {len(replayed)} replayed"
                for number, row in rows.items():
                    same = {column: replayed[number].get(column, row[column]) for column in ("x", "note")}
                    assert same == {column: row[column] for column in same}, f"{name}: {number}"
        finally:
            held.close()
        return len(there)

    def run(self, kills: int) -> str:
        oracle = Oracle(self.dsn)
        snapshot = self._snapshot()
        self.catch_up()
        self.work(kills)
        self.catch_up()
        self.events = oracle.events(set(self.oids.values()))
        count = self.check(snapshot)
        mortal = self.check_mortal()
        said = ""
        if self.chance.random() < 0.6:
            said, says = self.refused()
            assert says in said
            self.check(snapshot)
        written = sum(writer.committed for writer in self.writers)
        return (
            f"{self.name}: {written} transactions, {count} events, {mortal} tables, {self.kills} kills, "
            f"{self.crashes} crashes; {said}"
        )

    def _snapshot(self) -> list[tuple[int, dict[str, Any]]]:
        found = []
        for name, oid in self.oids.items():
            with psycopg.connect(self.dsn) as connection:
                cursor = connection.execute(f"SELECT * FROM {name}".encode())
                names = [column.name for column in cursor.description or ()]
                found += [(oid, dict(zip(names, row, strict=True))) for row in cursor]
        return found

    def close(self) -> None:
        self.database.drop()


def _held(log: Any, topic: str, oid: int) -> Iterator[Event]:
    if topic not in log.topics():
        return
    for entry in walk(log, topic):
        records = entry.records
        names = [name for name in records.schema.names if not name.startswith("__")]
        for row in records.to_pylist():
            unsent = row.get("__unchanged") or ()
            values = {name: UNCHANGED if name in unsent else row[name] for name in names}
            yield Event(row["__lsn"], row["__index"], oid, chr(row["__op"]), values)


def _replayed(log: Any, topic: str) -> dict[int, dict[str, Any]]:
    """Return the rows that a topic says are there, by key; none of them twice."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in walk(log, topic) if topic in log.topics() else ():
        (key,) = json.loads(entry.records.schema.metadata[b"headrace.key"])
        for row in entry.records.to_pylist():
            op, number = chr(row["__op"]), row[key]
            if op == "t":
                rows.clear()
            elif op == "d":
                del rows[number]
            else:
                old = row.get("__before") or {}
                before = rows.pop(old.get(key) or number, None)
                assert (before is None) == (op in "cr"), f"{topic}: {op} of {number}, of which there is {before}"
                unsent = row.get("__unchanged") or ()
                rows[number] = {name: (before or {}).get(name) if name in unsent else row[name] for name in row}
    return rows


@pytest.fixture(scope="module")
def small() -> Iterator[PostgresServer]:
    """A server that spills early, and that these tests may crash."""
    settings = {"logical_decoding_work_mem": "64kB", "fsync": "off", "wal_level": "logical"}
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    with postgres(settings=settings) as server:
        yield server


@pytest.mark.slow
def test_one_round(small: PostgresServer, tmp_path: Path) -> None:
    made = Round(small, tmp_path, seed=1)
    print(made.run(kills=3))
    made.close()


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.timeout(7200)
def test_many_rounds(small: PostgresServer, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    for number in range(ROUNDS):
        made = Round(small, tmp_path, seed=SEED * 100_000 + number)
        print(f"{number}: {made.run(kills=chance.randint(3, 8))}", flush=True)
        made.close()
