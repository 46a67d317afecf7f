"""A slot belongs to one log: another one is refused and told whose it is, unless the user gives the slot away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.capture.base import KIND
from headrace.capture.postgres import slot_binding
from headrace.errors import SourceRefused
from headrace.log import open_log
from headrace.log.base import Log
from headrace.log.memory import MemoryLog

from .conftest import CapturedDatabase, Engine


class Runs:
    """Captures of one database into logs at places of their own."""

    def __init__(self, database: CapturedDatabase, folder: Path) -> None:
        self.database, self.folder = database, folder
        self.open: list[tuple[Any, Log]] = []

    def start(self, name: str, **options: Any) -> Engine:
        place = str(self.folder / name)
        log = open_log(place, writer=True)
        source = self.database.source(place=place, **options)
        self.open.append((source, log))
        source.check(log)
        source.start(log)
        return Engine(source, log)

    def refused(self, name: str, **options: Any) -> str:
        begun = time.monotonic()
        with pytest.raises(SourceRefused) as caught:
            self.start(name, **options)
        assert time.monotonic() - begun < 25  # not the 30 s for which a dead reader is waited
        self.stop()
        assert caught.value.advice
        return str(caught.value)

    def stop(self) -> None:
        """The one that was started last."""
        source, log = self.open.pop()
        source.stop()
        log.close()


@pytest.fixture
def runs(database: CapturedDatabase, tmp_path: Path) -> Iterator[Runs]:
    made = Runs(database, tmp_path)
    yield made
    while made.open:
        made.stop()


def test_another_log_is_refused_and_the_first_goes_on(runs: Runs, database: CapturedDatabase) -> None:
    first = runs.start("a.headrace")
    text = runs.refused("b.headrace")  # while the first one runs
    assert str(runs.folder / "a.headrace") in text
    assert "is read now (server process" in text
    assert "--take-over" in text
    assert "give this one a slot of its own" in text
    assert "is read now" in runs.refused("b.headrace", take_over=True)
    database.execute("INSERT INTO t VALUES (1, 1)")
    first.catch_up()
    runs.stop()
    text = runs.refused("b.headrace")  # and after it
    assert str(runs.folder / "a.headrace") in text
    assert "is read now" not in text
    database.execute("INSERT INTO t VALUES (2, 2)")
    first = runs.start("a.headrace")
    first.catch_up()
    assert first.ids(database.topic()) == [1, 2]
    runs.stop()

    second = runs.start("b.headrace", take_over=True)
    second.catch_up()
    assert second.ids(database.topic()) == [1, 2]
    runs.stop()
    text = runs.refused("a.headrace")
    assert "belongs to another log now" in text
    assert str(runs.folder / "b.headrace") in text
    runs.start("b.headrace").catch_up()  # it needs the word no more


def test_a_log_that_moved_and_one_that_was_deleted(runs: Runs, database: CapturedDatabase) -> None:
    runs.start("a.headrace")
    runs.stop()
    for name in ("a.headrace", "a.headrace-wal", "a.headrace-shm"):
        if (runs.folder / name).exists():
            (runs.folder / name).rename(runs.folder / name.replace("a.", "moved."))
    runs.start("moved.headrace").catch_up()
    runs.stop()
    (runs.folder / "moved.headrace").unlink()
    database.execute("INSERT INTO t VALUES (1, 1)")
    anew = runs.start("moved.headrace")  # where it lay: it cannot come back
    anew.catch_up()
    assert anew.ids(database.topic()) == [1]


def test_a_log_from_before_gets_its_identity(runs: Runs, database: CapturedDatabase) -> None:
    first = runs.start("a.headrace")
    with first.log.transaction() as transaction:
        for name in first.log.records(slot_binding.KIND):
            transaction.delete(slot_binding.KIND, name)
    database.execute(f"COMMENT ON PUBLICATION headrace_{database.name} IS NULL")
    runs.stop()
    assert "was not made for this log" in runs.refused("b.headrace")
    runs.start("a.headrace")
    runs.stop()
    assert str(runs.folder / "a.headrace") in runs.refused("b.headrace")


def test_a_publication_of_the_users(runs: Runs, database: CapturedDatabase) -> None:
    """Its comment is left alone; a role that cannot write one is served too, and its slot is refused all the same."""
    role = f"reader_{database.name}"
    dsn = database.dsn.replace("postgres@", f"{role}@")
    database.execute(f"CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON t TO {role}")
    database.execute("CREATE PUBLICATION mine FOR TABLE t; COMMENT ON PUBLICATION mine IS 'for the warehouse'")
    query = "SELECT obj_description(oid, 'pg_publication') FROM pg_publication"
    try:
        for options in ({"publication": "mine"}, {"publication": "mine", "dsn": dsn, "app": "other"}):
            engine = runs.start("a.headrace", **options)
            assert "/a.headrace»" in runs.refused("b.headrace", **options)
            engine.catch_up()
            runs.stop()
            assert "was not made for this log" in runs.refused("b.headrace", **options)
            runs.start("b.headrace", **options, take_over=True).catch_up()
            runs.stop()
            (runs.folder / "a.headrace").unlink()
            (runs.folder / "b.headrace").unlink()
            assert database.execute(query) == [("for the warehouse",)]
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_slot_of_the_users(runs: Runs, database: CapturedDatabase) -> None:
    database.execute("SELECT pg_create_logical_replication_slot('mine', 'pgoutput')")
    database.execute("CREATE PUBLICATION shared FOR TABLE t")
    options = {"slot": "mine", "publication": "shared", "snapshot": "never"}
    runs.start("a.headrace", **options).catch_up()
    other = database.source(app="other", prefix="other", publication="shared")  # two slots of one publication
    log = MemoryLog()
    other.check(log)
    other.start(log)
    assert str(runs.folder / "a.headrace") in runs.refused("b.headrace", **options)
    runs.stop()
    assert str(runs.folder / "a.headrace") in runs.refused("b.headrace", **options)
    runs.start("b.headrace", **options, take_over=True).catch_up()
    runs.stop()
    assert "belongs to another log now" in runs.refused("a.headrace", **options)


def test_what_was_claimed_and_never_made(database: CapturedDatabase) -> None:
    """Two new logs at the same moment: the one that comes second has no right to the slot afterwards."""
    log = MemoryLog()
    wanted = slot_binding.Claim(f"headrace_{database.name}")
    slot_binding.claim(log, slot_binding.Owner("", "/a", "h", "x"), database.name, wanted)
    slot_binding.unclaim(log, database.name)
    database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", f"headrace_{database.name}")
    with pytest.raises(SourceRefused, match="was not made for this log"):
        database.source().check(log)
    assert log.records(KIND) == {}
