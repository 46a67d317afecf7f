"""What only the embedded log promises: its file, its lock, other processes, crashes, damage, a full disk."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pyarrow as pa
import pytest
from tests.processes import Child

from headrace.clock import SystemClock
from headrace.errors import LogCorrupt, LogError, LogFull, LogLocked, LogVersionError
from headrace.faults import VARIABLE
from headrace.log import layout, open_log, sqlite
from headrace.log.base import Log
from headrace.log.lease import filesystem_of, refuse_network_filesystem
from headrace.log.sqlite import SqliteLog

PRELUDE = """
import os, signal, sys, time
import pyarrow as pa
from headrace.log import open_log
path = sys.argv[1]
def rows(*ids): return pa.RecordBatch.from_pydict({"id": pa.array(ids, pa.int64())})
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a log.headrace"


@pytest.fixture
def log(path: Path) -> Iterator[SqliteLog]:
    opened = SqliteLog(path, writer=True)
    yield opened
    opened.close()


def rows(*ids: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"id": pa.array(ids, pa.int64())})


def append(log: Log, *ids: int, topic: str = "a") -> None:
    with log.transaction() as txn:
        txn.append(topic, rows(*ids))
        txn.put("position", "p", str(ids[-1]).encode())


def ids(log: Log, topic: str = "a") -> list[int]:
    return [value for entry in log.read([topic], limit=10**9) for value in entry.records["id"].to_pylist()]


def start(script: str, path: Path, fault: str = "") -> subprocess.Popen[str]:
    """Another process with this script; it finds ``path``, ``rows`` and `open_log`."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script), str(path)]
    environment = os.environ | {VARIABLE: fault}
    return Child(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return out


def run(script: str, path: Path, fault: str = "", code: int = 0) -> str:
    return finish(start(script, path, fault), code)


def wal_bytes(path: Path) -> int:
    wal = path.with_name(path.name + "-wal")
    return wal.stat().st_size if wal.exists() else 0


def counts(path: Path) -> dict[str, int]:
    with_tables = apsw.Connection(str(path))
    tables = ("bodies", "entries", "staged", "schemas")
    found = {table: int(with_tables.execute(f"SELECT count(*) FROM {table}").get) for table in tables}
    with_tables.close()
    return found


# -- the file ------------------------------------------------------------------------------------------------------


def test_everything_survives_reopening(path: Path) -> None:
    log = open_log(path, writer=True)
    append(log, 1, 2)
    append(log, 3, topic="b")
    before = (log.topics(), log.records("position"), log.read())
    log.close()
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, path.name + ".lock"]
    log = open_log(path, writer=True)
    assert (log.topics(), log.records("position"), log.read()) == before
    log.close()


def test_slices_and_offsets_go_on_after_everything_was_pruned(path: Path) -> None:
    log = open_log(path, writer=True)
    append(log, 1)
    append(log, 2)
    last = log.read()[-1].slice
    log.prune("a", before_offset=2)
    log.close()
    log = open_log(path, writer=True)
    append(log, 3)
    (entry,) = log.read()
    assert entry.slice > last and entry.offset == 2
    log.close()


def test_opening_for_writing_drops_what_was_staged(path: Path) -> None:
    log = open_log(path, writer=True)
    append(log, 1)
    with log.transaction() as txn:
        txn.stage("a", rows(2))
    log.close()
    reader = open_log(path, writer=False)
    reader.close()
    assert counts(path)["staged"] == 1
    log = open_log(path, writer=True)
    with log.transaction() as txn:
        txn.publish()
    assert ids(log) == [1]
    log.close()
    assert counts(path) == {"bodies": 1, "entries": 1, "staged": 0, "schemas": 1}


def test_one_schema_is_stored_once(log: SqliteLog) -> None:
    for i in range(5):
        append(log, i)
        append(log, i, topic="b")
    assert counts(log.path)["schemas"] == 1


def test_pruned_pages_are_used_again(log: SqliteLog) -> None:
    def fill() -> int:
        for i in range(200):
            append(log, *range(i, i + 500))
        log.prune("a", before_offset=log.topics()["a"].end)
        return int(apsw.Connection(str(log.path)).execute("PRAGMA page_count").get)

    first = fill()
    assert fill() <= first * 1.1


def test_publishing_moves_no_bodies(log: SqliteLog) -> None:
    large = pa.RecordBatch.from_pydict({"id": list(range(65_536)), "x": [0.5] * 65_536})
    for _ in range(20):
        with log.transaction() as txn:
            txn.stage("a", large)
    with log.transaction() as txn:
        before = wal_bytes(log.path)
        txn.publish()
    assert wal_bytes(log.path) - before < 1 << 20
    assert log.topics()["a"].end == 20 * 65_536


def test_a_body_too_large_for_one_entry_is_split(log: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LARGEST_BODY", 10_000)
    with log.transaction() as txn:
        assert txn.append("a", rows(*range(10_000))) == 0
        txn.stage("b", rows(*range(10_000)))
        txn.publish()
    assert ids(log) == ids(log, "b") == list(range(10_000))
    assert len(log.read(["a"], limit=1)) > 5, "one slice all the same"


def test_reading_copies_nothing(log: SqliteLog) -> None:
    append(log, *range(1000))
    (entry,) = log.read()
    before = pa.total_allocated_bytes()
    again = log.read()
    assert pa.total_allocated_bytes() == before
    assert again[0].records.equals(entry.records)


def test_the_wal_is_bounded(log: SqliteLog) -> None:
    large = pa.RecordBatch.from_pydict({"x": [0.5] * 65_536})
    for _ in range(150):
        with log.transaction() as txn:
            txn.append("a", large)
        log.read(["a"], after=10**6)
    assert wal_bytes(log.path) < 24 << 20


def test_a_reader_that_stays_is_outlasted(log: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """One paused reader makes the WAL grow; the writer goes on, and starts the WAL anew once the reader is gone."""
    monkeypatch.setattr(sqlite, "RESTART_PAGES", sqlite.CHECKPOINT_PAGES + 500)
    append(log, 0)
    paused = layout.connect_reader(log.path)
    paused.execute("BEGIN")
    paused.execute("SELECT count(*) FROM entries").fetchall()
    large = pa.RecordBatch.from_pydict({"id": [5] * 65_536})

    def write() -> None:
        for _ in range(100):
            with log.transaction() as txn:
                txn.append("b", large)

    write()
    grown = wal_bytes(log.path)
    assert grown > 40 << 20
    paused.close()
    write()
    assert wal_bytes(log.path) <= grown + (1 << 20)
    log.close()
    assert wal_bytes(log.path) == 0


def test_readers_without_a_gap_cannot_make_the_wal_grow(log: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every moment some reader stands on an older state, so that no passive checkpoint can finish."""
    monkeypatch.setattr(sqlite, "RESTART_PAGES", 2 * sqlite.CHECKPOINT_PAGES)
    append(log, 0)
    done = threading.Event()
    reading = threading.Barrier(4)

    def read_without_end() -> None:
        connection = layout.connect_reader(log.path)
        reading.wait()
        while not done.is_set():
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM entries").fetchall()
            time.sleep(0.02)
            connection.execute("COMMIT")
        connection.close()

    threads = [threading.Thread(target=read_without_end) for _ in range(3)]
    for thread in threads:
        thread.start()
    reading.wait()
    large = pa.RecordBatch.from_pydict({"id": [5] * 65_536})
    longest = 0
    written = 0
    for _ in range(600):
        with log.transaction() as txn:
            txn.append("b", large)
        written += large.nbytes
        longest = max(longest, wal_bytes(log.path))
    done.set()
    for thread in threads:
        thread.join()
    # On a busy machine an attempt to begin anew can find a reader that was not scheduled; the next one is far off.
    assert longest < written * 0.6


def test_commits_are_flushed_to_the_disk(log: SqliteLog) -> None:
    """SIGKILL cannot show it, only a power cut: FULL is 2."""
    connection = log._writer.connection  # type: ignore[union-attr]
    assert connection.execute("PRAGMA synchronous").get == 2
    assert connection.execute("PRAGMA journal_mode").get == "wal"
    assert connection.execute("PRAGMA page_size").get == layout.PAGE_BYTES


# -- one writer ----------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_told_who_writes(log: SqliteLog) -> None:
    with pytest.raises(LogLocked, match=rf"by process {os.getpid()} \(this one\)"):
        SqliteLog(log.path, writer=True)
    out = run(
        """
        from headrace.errors import LogLocked
        try: open_log(path, writer=True)
        except LogLocked as error: print(error)
        """,
        log.path,
    )
    assert f"by process {os.getpid()}\n" in out
    append(log, 1)


def test_a_link_to_the_log_has_the_same_lock(log: SqliteLog, tmp_path: Path) -> None:
    link = tmp_path / "link.headrace"
    link.symlink_to(log.path)
    with pytest.raises(LogLocked):
        SqliteLog(link, writer=True)


def test_the_lock_ends_with_its_process(path: Path) -> None:
    holder = start("log = open_log(path, writer=True); print('held', flush=True); time.sleep(60)", path)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(LogLocked, match=f"by process {holder.pid}$|by process {holder.pid}\n"):
        SqliteLog(path, writer=True)
    holder.kill()
    holder.wait()
    SqliteLog(path, writer=True).close()


def test_a_forked_child_does_not_keep_the_lock_and_cannot_write(path: Path) -> None:
    out = run(
        """
        from headrace.errors import LogLocked
        log = open_log(path, writer=True)
        said, say = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with log.transaction() as txn: pass
            except LogLocked as error: print(error, flush=True)
            os.write(say, b".")
            sys.stdout.close(); sys.stderr.close(); os.close(1); os.close(2)
            time.sleep(60)
            os._exit(0)
        os.read(said, 1)
        print(child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
        code=-signal.SIGKILL,
    )
    try:
        assert "opened by the parent process" in out
        SqliteLog(path, writer=True).close()
    finally:
        os.kill(int(out.split()[-1]), signal.SIGKILL)


def test_a_forked_child_reads_through_connections_of_its_own(path: Path) -> None:
    out = run(
        """
        log = open_log(path, writer=True)
        with log.transaction() as txn: txn.append("a", rows(1))
        log.read()
        child = os.fork()
        if child == 0:
            print(len(log.read()), len(log._readers._idle), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        with log.transaction() as txn: txn.append("a", rows(2))
        print(len(log.read()))
        """,
        path,
    )
    assert out.split() == ["1", "1", "2"]


def test_a_writer_that_was_overtaken_writes_nothing(log: SqliteLog) -> None:
    """As on a file system whose locks do nothing: the epoch in the file decides."""
    append(log, 1)
    other = sqlite.SqliteWriter(log.path, SystemClock())
    with pytest.raises(LogLocked, match="another process has opened"):
        append(log, 2)
    with other.transaction() as txn:
        txn.append("a", rows(3))
    other.close()
    assert ids(log) == [1, 3]


def test_a_log_opened_for_reading_refuses_to_write(log: SqliteLog) -> None:
    reader = open_log(log.path, writer=False)
    with pytest.raises(LogLocked, match="for reading only"), reader.transaction():
        pass
    with pytest.raises(LogLocked):
        reader.prune("a", before_offset=1)
    reader.close()


def test_an_sqlite_shell_in_the_way_is_told(log: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "BUSY_MILLISECONDS", 50)
    log.close()
    log = SqliteLog(log.path, writer=True)
    shell = apsw.Connection(str(log.path))
    shell.execute("BEGIN IMMEDIATE")
    with pytest.raises(LogLocked, match="another program"):
        append(log, 1)
    shell.close()
    append(log, 1)
    log.close()


# -- other processes -----------------------------------------------------------------------------------------------


def test_another_process_tails_while_we_write(log: SqliteLog) -> None:
    append(log, 0)
    tail = start(
        """
        log = open_log(path, writer=False)
        after, found = 0, []
        while len(found) < 600 and os.getppid() != 1:
            for entry in log.read(["a", "b"], after=after, limit=10):
                found += entry.records["id"].to_pylist()
                after = entry.slice
        print(found == list(range(600)), len(log.records("position")))
        """,
        log.path,
    )
    for i in range(1, 600):
        append(log, i, topic="ab"[i % 2])
    assert finish(tail) == "True 1\n"


def test_a_reader_outlives_writers_that_come_and_go(path: Path) -> None:
    open_log(path, writer=True).close()
    reader = open_log(path, writer=False)
    for i in range(3):
        run(f"log = open_log(path, writer=True)\nwith log.transaction() as txn: txn.append('a', rows({i}))", path)
        assert ids(reader) == list(range(i + 1))
        run(
            f"""
            log = open_log(path, writer=True)
            with log.transaction() as txn: txn.append('b', rows({i}))
            os.kill(os.getpid(), signal.SIGKILL)
            """,
            path,
            code=-signal.SIGKILL,
        )
        assert ids(reader, "b") == list(range(i + 1))
    reader.close()


def test_a_reader_holds_no_transaction_and_leaves_the_wal_alone(log: SqliteLog) -> None:
    append(log, 1)
    reader = open_log(log.path, writer=False)
    ids(reader)
    reader.read(limit=1)
    append(log, 2)
    before = wal_bytes(log.path)
    assert ids(reader) == [1, 2]
    reader.close()
    assert wal_bytes(log.path) == before > 0
    again = open_log(log.path, writer=False)
    again.read(limit=1)
    writer = apsw.Connection(str(log.path))
    busy, _ = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][:2]
    writer.close()
    assert not busy and wal_bytes(log.path) == 0
    again.close()


# -- crashes -------------------------------------------------------------------------------------------------------

WRITE = """
log = open_log(path, writer=True)
for i in range(10):
    with log.transaction() as txn:
        txn.append("a", rows(2 * i, 2 * i + 1))
        txn.append("b", rows(i))
        txn.put("position", "p", str(i).encode())
    print(i, flush=True)
"""


@pytest.mark.parametrize(("fault", "kept"), [("log.before-commit", 3), ("log.after-commit", 4)])
@pytest.mark.parametrize("reader_first", [True, False])
def test_killed_around_a_commit(path: Path, fault: str, kept: int, reader_first: bool) -> None:
    acknowledged = run(WRITE, path, fault=f"{fault}:4", code=-signal.SIGKILL)
    assert acknowledged.split() == ["0", "1", "2"]
    for writer in (False, True) if reader_first else (True, False):
        log = open_log(path, writer=writer)
        assert ids(log) == list(range(2 * kept)) and ids(log, "b") == list(range(kept))
        assert log.records("position") == {"p": str(kept - 1).encode()}
        if writer:
            append(log, 2 * kept)
            assert log.topics()["a"].end == 2 * kept + 1
            with log.transaction() as txn:
                txn.append("a", rows(0))
                log.prune("a", before_offset=2 * kept)
        log.close()
        if writer:
            break


@pytest.mark.parametrize(("fault", "staged"), [("log.before-commit:2", 1), ("log.after-commit:2", 2)])
def test_killed_while_staging(path: Path, fault: str, staged: int) -> None:
    script = """
    log = open_log(path, writer=True)
    for i in range(3):
        with log.transaction() as txn: txn.stage("a", rows(i))
    """
    run(script, path, fault=fault, code=-signal.SIGKILL)
    assert counts(path)["staged"] == staged
    log = open_log(path, writer=True)
    assert log.topics() == {}
    append(log, 7)
    assert ids(log) == [7]
    log.close()
    assert counts(path)["bodies"] == 1


@pytest.mark.parametrize(("fault", "published"), [("log.before-commit:2", []), ("log.after-commit:2", [1, 2])])
def test_killed_while_publishing(path: Path, fault: str, published: list[int]) -> None:
    script = """
    log = open_log(path, writer=True)
    with log.transaction() as txn: txn.stage("a", rows(1, 2))
    with log.transaction() as txn: txn.publish()
    """
    run(script, path, fault=fault, code=-signal.SIGKILL)
    log = open_log(path, writer=True)
    assert ids(log) == published
    log.close()
    assert counts(path)["bodies"] == len(published) // 2


def test_killed_while_the_log_is_made(path: Path) -> None:
    run(WRITE, path, fault="log.before-made", code=-signal.SIGKILL)
    with pytest.raises(LogError, match="no log"):
        open_log(path, writer=False)
    log = open_log(path, writer=True)
    append(log, 1)
    log.close()
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, path.name + ".lock"]


@pytest.mark.parametrize("delay", [0.02, 0.05, 0.1, 0.2])
def test_killed_at_any_moment(path: Path, delay: float) -> None:
    """What was acknowledged is there, whole, in order; at most the commit under way besides."""
    endless = start(WRITE.replace("range(10)", "range(10**9)"), path)
    assert endless.stdout is not None
    endless.stdout.readline()
    time.sleep(delay)
    endless.kill()
    # The killed process may have been in the middle of a line.
    acknowledged = endless.stdout.read().rpartition("\n")[0].splitlines()
    endless.wait()
    last = int(acknowledged[-1]) if acknowledged else 0
    log = open_log(path, writer=True)
    held = int(log.records("position")["p"])
    assert last <= held <= last + 2
    assert ids(log, "b") == list(range(held + 1)) and ids(log) == list(range(2 * held + 2))
    log.close()


def test_a_removed_log_leaves_nothing_to_its_successor(path: Path) -> None:
    """The WAL of a killed writer stays behind when the file is removed by hand."""
    run(WRITE, path, fault="log.after-commit:5", code=-signal.SIGKILL)
    assert wal_bytes(path)
    path.unlink()
    log = open_log(path, writer=True)
    assert log.topics() == {} and log.read() == []
    log.close()


# -- damage --------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(path: Path) -> Path:
    """A closed log with fifty entries of topic a, to be damaged."""
    log = open_log(path, writer=True)
    for i in range(50):
        append(log, *range(1000 * i, 1000 * i + 1000))
    log.close()
    return path


def flip(path: Path, pattern: bytes) -> None:
    content = bytearray(path.read_bytes())
    at = content.index(pattern)
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_in_a_body_names_topic_and_offset(damaged: Path) -> None:
    flip(damaged, (7_005).to_bytes(8, "little") + (7_006).to_bytes(8, "little"))
    log = open_log(damaged, writer=False)
    with pytest.raises(LogCorrupt, match="topic «a» at offset 7000"):
        ids(log)
    assert [entry.offset for entry in log.read_topic("a", offset=8_000, limit=3000)] == [8_000, 9_000, 10_000]
    log.close()
    log = open_log(damaged, writer=True)
    log.prune("a", before_offset=8_000)
    assert ids(log) == list(range(8_000, 50_000)), "the advice of the message works"
    log.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET offset = offset + 1 WHERE offset = 7000",
        "UPDATE entries SET schema = 2 WHERE offset = 7000",
        "UPDATE entries SET body = body + 1 WHERE offset = 7000",
        "UPDATE entries SET slice = slice + 1000 WHERE offset = 7000",
        "UPDATE entries SET ts_us = ts_us + 1 WHERE offset = 7000",
        "UPDATE entries SET complete = 0 WHERE offset = 7000",
        "UPDATE topics SET name = 'b'",
        "DELETE FROM bodies WHERE id = 8",
        "UPDATE schemas SET ipc = zeroblob(length(ipc))",
        "DELETE FROM schemas",
        "DELETE FROM entries WHERE offset = 7000",
        "DELETE FROM entries WHERE offset = 0",
        "DELETE FROM entries WHERE offset >= 40000",
        "DELETE FROM entries",
        "UPDATE topics SET end_offset = end_offset + 1",
        "UPDATE topics SET first_offset = 0, end_offset = 49000",
    ],
)
def test_an_entry_out_of_place_is_found(damaged: Path, statement: str) -> None:
    layout.page_checksums()  # whoever changes the file writes them
    connection = apsw.Connection(str(damaged))
    connection.execute(statement)
    connection.close()
    log = open_log(damaged, writer=False)
    with pytest.raises(LogCorrupt):
        for topic in ("a", "b"):
            ids(log, topic)
    with pytest.raises(LogCorrupt):
        for topic in ("a", "b"):
            after = 0
            while found := log.read([topic], after=after, limit=3000):
                after = found[-1].slice
    log.close()


FLIPS = 150


def everything(path: Path, *, writer: bool) -> dict[str, Any]:
    """All that a log holds, in every way of reading it."""
    log = open_log(path, writer=writer)
    try:
        topics = log.topics()
        return {
            "topics": topics,
            "rows": {name: [(e.offset, e.records.to_pydict()) for e in log.read_topic(name)] for name in topics},
            "slices": [(e.slice, e.topic, e.offset, e.complete, e.ts_us) for e in log.read(limit=10**9)],
            "each": {name: [(e.slice, e.offset) for e in log.read([name], limit=10**9)] for name in topics},
            "extents": {name: log.extents(name) for name in topics},
            "records": {kind: log.records(kind) for kind in log.kinds()},
            "newest": log.newest_slice(),
        }
    finally:
        log.close()


def test_no_flipped_bit_reads_as_other_data(path: Path, tmp_path: Path) -> None:
    log = open_log(path, writer=True)
    for i in range(60):
        with log.transaction() as txn:
            for topic in ("a", "b", "a longer name of a topic"):
                txn.append(topic, pa.RecordBatch.from_pydict({"id": [i, i + 1], "t": ["x" * i, None]}))
            txn.put("checkpoint", f"m/{i:012d}", bytes(100))
            txn.put("position", "m", str(i).encode())
    log.close()
    whole, content = everything(path, writer=False), path.read_bytes()
    rng = random.Random(7)
    said = 0
    for number in range(FLIPS):
        # The first page more often: it says how all the others are to be read.
        at = rng.randrange(layout.PAGE_BYTES if number % 4 == 0 else len(content))
        copy = tmp_path / "copy.headrace"
        for end in ("", "-wal", "-shm"):
            copy.with_name(copy.name + end).unlink(missing_ok=True)
        copy.write_bytes(content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :])
        try:
            assert everything(copy, writer=number % 2 == 0) == whole, f"byte {at}"
        except LogError as error:
            said += 1
            assert "copy.headrace" in str(error) and error.advice
    assert said > FLIPS // 2


@pytest.mark.parametrize("cut", [0, 100, 8_192, 100_000, -8_192, -100])
@pytest.mark.parametrize("writer", [True, False])
def test_a_truncated_file_is_found(damaged: Path, cut: int, writer: bool) -> None:
    os.truncate(damaged, cut if cut >= 0 else damaged.stat().st_size + cut)
    with pytest.raises(LogCorrupt) as caught:
        log = open_log(damaged, writer=writer)
        try:
            ids(log)
        finally:
            log.close()
    assert str(damaged) in str(caught.value) and caught.value.advice


def test_a_truncated_file_beside_its_wal_is_found(damaged: Path) -> None:
    run(WRITE, damaged, fault="log.after-commit:5", code=-signal.SIGKILL)
    os.truncate(damaged, damaged.stat().st_size // 2)
    with pytest.raises(LogCorrupt):
        log = open_log(damaged, writer=True)
        try:
            ids(log)
        finally:
            log.close()


@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)) * 400])
@pytest.mark.parametrize("writer", [True, False])
def test_what_is_no_log_is_refused_and_left_alone(path: Path, content: bytes, writer: bool) -> None:
    path.write_bytes(content)
    with pytest.raises(LogCorrupt, match=re.escape(str(path))):
        open_log(path, writer=writer)
    assert path.read_bytes() == content


@pytest.mark.parametrize("writer", [True, False])
def test_another_programs_database_is_refused_and_left_alone(path: Path, writer: bool) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE mine (x); INSERT INTO mine VALUES (1)")
    connection.close()
    content = path.read_bytes()
    with pytest.raises(LogCorrupt, match="not a Headrace log"):
        open_log(path, writer=writer)
    assert path.read_bytes() == content


def test_paths_that_cannot_be_a_log(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no log at"):
        open_log(tmp_path / "missing", writer=False)
    with pytest.raises(LogError, match="cannot write beside"):
        open_log(tmp_path / "no folder" / "log", writer=True)
    for writer in (True, False):
        with pytest.raises(LogError):
            open_log(tmp_path, writer=writer)


# -- versions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", [True, False])
def test_a_newer_format_is_refused(damaged: Path, writer: bool) -> None:
    connection = apsw.Connection(str(damaged))
    connection.execute(f"PRAGMA user_version={layout.FORMAT + 1}")
    connection.close()
    with pytest.raises(LogVersionError, match=f"has format {layout.FORMAT + 1}") as caught:
        open_log(damaged, writer=writer)
    assert "Upgrade" in caught.value.advice


def to_format_2(connection: apsw.Connection) -> None:
    connection.execute("ALTER TABLE records ADD COLUMN added INTEGER NOT NULL DEFAULT 7")


def failing_migration(connection: apsw.Connection) -> None:
    connection.execute("DROP TABLE records")
    raise ZeroDivisionError


def test_an_older_format_is_migrated_by_the_writer(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = layout.MIGRATED - 1
    layout.page_checksums()
    connection = apsw.Connection(str(damaged))
    connection.execute(f"PRAGMA user_version={older}")
    connection.close()
    with pytest.raises(LogVersionError, match="older format"):
        open_log(damaged, writer=False)
    monkeypatch.setattr(layout, "MIGRATIONS", {older: failing_migration})
    with pytest.raises(ZeroDivisionError):
        open_log(damaged, writer=True)
    monkeypatch.setattr(layout, "MIGRATIONS", {older: to_format_2})
    log = open_log(damaged, writer=True)
    assert len(ids(log)) == 50_000 and log.records("position") == {"p": b"49999"}
    log.close()
    connection = apsw.Connection(str(damaged))
    assert connection.execute("PRAGMA user_version").get == layout.MIGRATED
    assert connection.execute("SELECT added FROM records").get == 7
    connection.close()
    open_log(damaged, writer=False).close()


def test_a_log_without_page_checksums_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As earlier versions made them; a missing entry is noticed there too."""
    monkeypatch.setattr(layout, "page_checksums", lambda: False)
    log = open_log(path, writer=True)
    append(log, 1, 2)
    log.close()
    monkeypatch.undo()
    log = open_log(path, writer=True)
    append(log, 3)
    assert ids(log) == [1, 2, 3]
    log.close()
    connection = apsw.Connection(str(path))
    assert connection.execute("PRAGMA user_version").get == layout.MIGRATED
    connection.close()


def test_an_apsw_without_extensions_has_no_page_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    layout.page_checksums()
    monkeypatch.setitem(sys.modules, "apsw.sqlite_extra", None)
    monkeypatch.delattr(apsw, "sqlite_extra")
    assert layout.page_checksums.__wrapped__() is False


def test_a_log_with_page_checksums_is_not_written_without_them(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "page_checksums", lambda: False)
    with pytest.raises(LogError, match="cksumvfs"):
        open_log(damaged, writer=True)
    log = open_log(damaged, writer=False)
    assert len(ids(log)) == 50_000
    log.close()


def test_an_sqlite_with_the_wal_bug_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.45.1")
    with pytest.raises(LogError, match=r"SQLite 3\.45\.1"):
        open_log(path, writer=True)


# -- a full disk ---------------------------------------------------------------------------------------------------


def test_a_full_disk_tears_nothing(log: SqliteLog) -> None:
    """`max_page_count` makes SQLite say what it says when the file cannot grow."""
    append(log, 1)
    connection = log._writer.connection  # type: ignore[union-attr]
    connection.execute(f"PRAGMA max_page_count={connection.execute('PRAGMA page_count').get + 5}").fetchall()
    with pytest.raises(LogFull) as caught, log.transaction() as txn:
        txn.append("a", rows(2))
        txn.put("position", "p", b"2")
        txn.append("a", rows(*range(100_000)))
    assert caught.value.retry and str(log.path) in str(caught.value)
    assert ids(log) == [1] and log.records("position") == {"p": b"1"}
    append(log, 3)
    connection.execute("PRAGMA max_page_count=1000000").fetchall()
    append(log, *range(100_000))
    assert ids(log)[:2] == [1, 3] and log.topics()["a"].end == 100_002


def test_an_error_swallowed_inside_the_block_is_raised_at_its_end(log: SqliteLog) -> None:
    connection = log._writer.connection  # type: ignore[union-attr]
    connection.execute(f"PRAGMA max_page_count={connection.execute('PRAGMA page_count').get + 5}").fetchall()
    with pytest.raises(LogFull), log.transaction() as txn:
        with pytest.raises(LogFull):
            txn.append("a", rows(*range(100_000)))
        with pytest.raises(LogFull):
            txn.put("position", "p", b"alone, outside any transaction")
    assert log.topics() == {} and log.records("position") == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB; skips where it cannot be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_really_full_disk(small_disk: Path) -> None:
    path = small_disk / "log.headrace"
    ballast = small_disk / "ballast"
    log = open_log(path, writer=True)
    ballast.write_bytes(bytes(1 << 20))
    written = 0
    with pytest.raises(LogFull):
        for written in range(10_000):
            append(log, *range(written, written + 100))
    for _ in range(3):
        with pytest.raises(LogFull):
            append(log, *range(100_000))
    assert log.topics()["a"].end == 100 * written
    reader = open_log(path, writer=False)
    assert len(ids(reader)) == 100 * written
    reader.close()
    ballast.unlink()
    append(log, 7)
    assert log.topics()["a"].end == 100 * written + 1
    log.close()
    log = open_log(path, writer=True)
    assert ids(log)[-1] == 7
    log.close()


def test_no_room_to_make_a_log(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes((3 << 20) - 8192))
    with pytest.raises(LogError):
        open_log(small_disk / "log.headrace", writer=True)
    (small_disk / "ballast").unlink()
    log = open_log(small_disk / "log.headrace", writer=True)
    append(log, 1)
    log.close()


# -- file systems --------------------------------------------------------------------------------------------------

MOUNTS = [
    "/dev/vda / ext4 rw,relatime 0 0",
    "overlay /var/lib overlay rw 0 0",
    "tmpfs /tmp tmpfs rw 0 0",
    "nas:/export /srv/my\\040data nfs4 rw 0 0",
    "/dev/vdb /srv/my\\040data/local ext4 rw 0 0",
    "//server/share /mnt/share cifs rw 0 0",
    "ada@host: /mnt/ssh fuse.sshfs rw 0 0",
    "share /mnt/vm virtiofs rw 0 0",
    "nas:/below /mnt/over nfs rw 0 0",
    "/dev/vdc /mnt/over xfs rw 0 0",
]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/a.headrace", "ext4"),
        ("/var/lib/a.headrace", "overlay"),
        ("/tmp/a.headrace", "tmpfs"),
        ("/tmpfoo/a.headrace", "ext4"),
        ("/srv/my data/a.headrace", "nfs4"),
        ("/srv/my data/local/a.headrace", "ext4"),
        ("/mnt/share/deep/a.headrace", "cifs"),
        ("/mnt/ssh/a.headrace", "fuse.sshfs"),
        ("/mnt/vm/a.headrace", "virtiofs"),
        ("/mnt/over/a.headrace", "xfs"),
    ],
)
def test_network_file_systems_are_refused(path: str, kind: str) -> None:
    assert filesystem_of(Path(path), MOUNTS) == kind
    if kind in ("nfs4", "cifs", "fuse.sshfs"):
        with pytest.raises(LogError, match=re.escape(f"network file system ({kind})")) as caught:
            refuse_network_filesystem(Path(path), MOUNTS)
        assert "local disk" in caught.value.advice
    else:
        refuse_network_filesystem(Path(path), MOUNTS)


def test_this_machines_mounts_can_be_read(tmp_path: Path) -> None:
    refuse_network_filesystem(tmp_path)
    assert filesystem_of(tmp_path, Path("/proc/self/mounts").read_text().splitlines())
