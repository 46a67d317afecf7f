"""A server whose data directory was put back to an older copy is refused; one that crashed is not."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.capture.comparison import Counts
from headrace.capture.postgres.decode import HistoryDiffers, Resent
from headrace.capture.postgres.resync import Resync
from headrace.capture.postgres.slot_binding import SourceRecord
from headrace.errors import SourceRefused
from headrace.log.base import Log
from headrace.log.memory import MemoryLog
from headrace.position import parse_lsn
from headrace.testing.servers import PostgresServer, postgres

from .conftest import CapturedDatabase, Engine


class Restored(CapturedDatabase):
    """A database whose server can be copied, and put back."""

    def __init__(self, server: PostgresServer) -> None:
        super().__init__(server, "postgres")
        self.copy = server.directory / "copy"

    def stop(self, engine: Engine | None) -> None:
        """A server stops when everything is sent and acknowledged: whoever reads goes on meanwhile."""
        stopping = threading.Thread(target=self.server.stop)
        stopping.start()
        while engine is not None and stopping.is_alive():
            engine.round()
        stopping.join()

    def take_copy(self, engine: Engine | None = None) -> None:
        self.stop(engine)
        shutil.rmtree(self.copy, ignore_errors=True)
        _copy(self.server.data, self.copy)
        self.server.start()

    def put_back(self, engine: Engine | None = None) -> None:
        self.stop(engine)
        shutil.rmtree(self.server.data)
        _copy(self.copy, self.server.data)
        self.server.start()

    def capture(self, log: Log) -> Engine:
        source = self.source()
        source.check(log)
        source.start(log)
        return Engine(source, log)

    def insert(self, first: int, last: int, table: str = "t") -> None:
        for number in range(first, last + 1):
            self.execute(f"INSERT INTO {table} VALUES ({number}, 1)")

    def pass_by(self, lsn: int) -> None:
        """Write to another table until the server's log has passed an LSN."""
        while parse_lsn(self.execute("SELECT pg_current_wal_insert_lsn()::text")[0][0]) <= lsn + 1000:
            self.execute("INSERT INTO other SELECT g, 1 FROM generate_series(1, 1000) g")


def _copy(source: Path, target: Path) -> None:
    """As `cp -a`: the server's files belong to its user."""
    shutil.copytree(source, target, symlinks=True)
    for path in [target, *target.rglob("*")]:
        origin = source / path.relative_to(target)
        shutil.chown(path, origin.stat().st_uid, origin.stat().st_gid)


@pytest.fixture(scope="module")
def restored() -> Iterator[Restored]:
    # Restarts take their time from the checkpoint at the end: as little as can be is to be written in it.
    with postgres(settings={"shared_buffers": "1MB", "autovacuum": "off", "fsync": "off"}) as server:
        made = Restored(server)
        made.execute("CREATE TABLE t (id int PRIMARY KEY, x float8); CREATE TABLE other (id int, x float8)")
        yield made


@pytest.fixture
def database(restored: Restored) -> Iterator[Restored]:
    restored.execute("TRUNCATE t")
    yield restored
    for source in restored.sources:
        source.stop()
    restored.sources.clear()
    restored.drop_slots()


def acknowledged(log: Log) -> int:
    held = SourceRecord.load(log, "postgres")
    assert held is not None
    return held.acknowledged


def test_an_older_copy_is_refused_when_it_runs_and_when_it_starts(database: Restored) -> None:
    log = MemoryLog()
    engine = database.capture(log)
    database.insert(1, 3)
    engine.catch_up()
    database.take_copy(engine)
    engine.until(lambda: "streaming" in engine.source.status.text)
    database.insert(4, 50)
    engine.catch_up()
    database.put_back(engine)
    database.insert(51, 57)
    with pytest.raises(SourceRefused, match="restored from an older copy") as caught:
        engine.until(lambda: False)
    assert "begins with a new snapshot" in caught.value.advice
    engine.source.stop()
    with pytest.raises(SourceRefused, match="restored from an older copy"):
        database.source().check(log)
    # When its log has come to where the other had been, its insert position tells nothing any more.
    database.pass_by(acknowledged(log))
    for _ in range(2):
        engine = database.capture(log)
        with pytest.raises(SourceRefused, match="restored from an older copy"):
            engine.until(lambda: False)
        engine.source.stop()
    assert engine.ids(database.topic()) == list(range(1, 51))
    # A resync finds what the other history had and this one has not, and goes on in this one.
    known = SourceRecord.load(log, "postgres")
    assert known is not None
    resync = Resync(database.source().declared, known, lambda *_: None)
    resync.check(log)
    assert not resync.elsewhere
    resync.open(log, lambda: False)
    (compared,) = resync.compared
    assert compared.counts == Counts(known=50, now=10, equal=3, inserted=7, updated=0, deleted=47)
    engine = database.capture(log)
    database.insert(58, 58)
    engine.catch_up()
    assert sorted(engine.ids(database.topic())[50:]) == sorted([*range(4, 51), *range(51, 59)])


@pytest.mark.parametrize("again", [True, False], ids=["the same statements", "other statements"])
def test_an_older_copy_that_goes_on_alike(database: Restored, again: bool) -> None:
    """The same statements make records at the same LSNs: times tell them apart."""
    log = MemoryLog()
    engine = database.capture(log)
    database.insert(1, 2)
    engine.catch_up()
    engine.source.stop()
    database.take_copy()
    database.insert(3, 9)
    engine = database.capture(log)
    engine.catch_up()
    engine.source.stop()
    database.put_back()
    database.insert(3, 9) if again else database.insert(10, 30)
    database.pass_by(acknowledged(log))
    engine = database.capture(log)
    with pytest.raises(SourceRefused, match="restored from an older copy"):
        engine.until(lambda: False)
    assert engine.ids(database.topic()) == list(range(1, 10))


def test_an_older_copy_of_a_time_when_nothing_was_captured(database: Restored) -> None:
    """The log's last transaction is in the copy: rows are where the log has none."""
    log = MemoryLog()
    engine = database.capture(log)
    database.insert(1, 2)
    engine.catch_up()
    engine.source.stop()
    database.take_copy()
    engine = database.capture(log)
    database.pass_by(acknowledged(log) + 100_000)
    engine.catch_up()
    ended = engine.source.end()
    engine.until(lambda: acknowledged(log) >= ended)
    engine.source.stop()
    database.put_back()
    database.insert(3, 9)
    database.pass_by(acknowledged(log))
    engine = database.capture(log)
    with pytest.raises(SourceRefused, match="restored from an older copy"):
        engine.until(lambda: False)


def test_a_copy_put_back_that_lacks_nothing_goes_on(database: Restored) -> None:
    log = MemoryLog()
    engine = database.capture(log)
    database.insert(1, 2)
    engine.catch_up()
    engine.source.stop()
    database.take_copy()
    database.insert(3, 9)
    database.put_back()
    database.insert(10, 11)
    engine = database.capture(log)
    engine.catch_up()
    assert engine.ids(database.topic()) == [1, 2, 10, 11]


def test_a_server_that_crashed_goes_on(database: Restored) -> None:
    """Its slot stands where it stood at the last checkpoint, or where it was made: what is sent again is as it was."""
    log = MemoryLog()
    engine = database.capture(log)
    for turn in range(3):
        database.insert(100 * turn + 1, 100 * turn + 20)
        database.execute("INSERT INTO other VALUES (1, 1)")
        database.execute("TRUNCATE other")
        engine.catch_up()
        time.sleep(0.2)  # the acknowledgement is on its way
        engine.round()
        if turn == 1:
            engine.source.stop()
        database.server.stop("immediate")
        database.server.start()
        assert parse_lsn(database.slot()["confirmed_flush_lsn"]) < acknowledged(log)
        if turn == 1:
            engine = database.capture(log)
    engine.catch_up()
    expected = [100 * turn + number for turn in range(3) for number in range(1, 21)]
    assert engine.ids(database.topic()) == expected


# --- the check itself ---


def test_what_is_sent_again() -> None:
    check = Resent(since=10, until=40, last=(20, 5))
    check.passed(15)
    check.transaction(15, 4)
    check.passed(20)
    check.transaction(20, 5)
    check.transaction(20, 5)  # its second piece
    check.passed(39)
    assert not check.done
    check.passed(40)
    assert check.done


@pytest.mark.parametrize("sent", [(20, 6), (21, 5), (39, 1)])
def test_another_transaction_than_the_last(sent: tuple[int, int]) -> None:
    with pytest.raises(HistoryDiffers, match="does not have it"):
        Resent(since=10, until=40, last=(20, 5)).transaction(*sent)


def test_the_last_transaction_does_not_come() -> None:
    with pytest.raises(HistoryDiffers, match="not in the server's history"):
        Resent(since=20, until=40, last=(20, 5)).passed(21)
    Resent(since=21, until=40, last=(20, 5)).passed(40)
    Resent(since=21, until=40, last=(0, 0)).passed(40)
