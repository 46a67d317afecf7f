"""Records of versions, tags, requests; tensors that lie in a log once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import numpy as np
import pytest

from headrace.errors import HeadraceError, LogError, WaitTimeout
from headrace.learn.state import dump_pieces, load_state
from headrace.log import layout, open_log
from headrace.log.base import Log
from headrace.log.memory import MemoryLog
from headrace.registry import models as registry
from headrace.registry.requests import Inbox, Request, ask
from headrace.registry.versions import VersionList, VersionRecord, put_version, read_artifact


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Log]:
    log = open_log(tmp_path / "a.headrace", writer=True)
    yield log
    log.close()


def versions_of(count: int, log: Log) -> VersionList:
    """Versions of which all but the last have ended, with a small state each."""
    versions = VersionList("m", [])
    with log.transaction() as txn:
        registry.write_version(
            txn, VersionRecord("m", 1, reason="declared", ts_us=1, fingerprint={"cut": "5 rows"}), "app"
        )
        versions = VersionList.read(log, "m")
        for number in range(1, count):
            state = dump_pieces({"w": np.full(3, float(number))})
            versions.end(txn, number, state, ended_us=number, position=f"0/{number:X}:0", rows=number)
            versions.begin(txn, VersionRecord("m", number + 1, number, "every 1 rows"))
    return VersionList.read(log, "m")


def test_a_version_comes_back_as_it_was_written() -> None:
    log = MemoryLog()
    one = VersionRecord(
        "m", 3, 1, "rollback to version 1", 17, "me@here", "5 rows", 1, tags=["best"], rows=9, kept=True
    )
    with log.transaction() as txn:
        put_version(txn, one)
    assert VersionList.read(log, "m").versions == {3: one}


def test_a_record_of_an_older_headrace_is_read() -> None:
    log = MemoryLog()
    old = {"model": "m", "version": 1, "reason": "declared", "ts_us": 5, "fingerprint": {"cut": "5 rows"}}
    with log.transaction() as txn:
        txn.put("version", "m/000001", json.dumps(old).encode())
    current = VersionList.read(log, "m").current
    assert current is not None
    assert (current.reason, current.parent, current.ended_us, current.kept) == ("declared", None, None, False)


def test_a_version_is_found_by_its_number_or_a_tag() -> None:
    log = MemoryLog()
    versions = versions_of(4, log)
    with log.transaction() as txn:
        versions.tag(txn, versions.find(2), "best", 5)
    again = VersionList.read(log, "m")
    assert again.find("best").version == again.find("2").version == again.find(2).version == 2
    assert [version.version for version in again.lineage(again.find(4))] == [1, 2, 3, 4]
    assert again.fingerprint(again.find(4)) == {"cut": "5 rows"}
    with pytest.raises(LogError, match=r"no version «worst»") as caught:
        again.find("worst")
    assert "1 to 4, best (version 2)" in caught.value.advice


def test_the_log_keeps_the_states_that_the_policy_says() -> None:
    log = MemoryLog()
    versions = versions_of(8, log)
    with log.transaction() as txn:
        versions.tag(txn, versions.find(2), "best", 5)
        versions.versions[5].began = {"artifact": "m/000003"}
        assert versions.prune(txn, 2) == [1, 4, 5]
    kept = [one.version for one in VersionList.read(log, "m") if one.kept]
    assert kept == [2, 3, 6, 7]
    assert sorted(log.records("artifact")) == [f"m/{number:06d}" for number in kept]


# -- tensors ----------------------------------------------------------------------------------------------------------


def size(path: Path) -> int:
    """Bytes of a log's file, its WAL included."""
    return sum(item.stat().st_size for item in path.parent.glob(f"{path.name}*"))


def test_a_tensor_that_several_records_have_lies_in_the_file_once(tmp_path: Path) -> None:
    large = np.random.default_rng(0).random(1 << 19)  # 4 MB
    path = tmp_path / "a.headrace"
    log = open_log(path, writer=True)
    for step in range(6):
        with log.transaction() as txn:
            state = {"learner.w": large, "step": step, "progress": "{}"}
            txn.put("checkpoint", f"m/{step:012d}", dump_pieces(state))
            txn.put("artifact", f"m/{step:06d}", dump_pieces({"w": large, "b": np.full(3, float(step))}))
    log.close()
    assert size(path) < 1.2 * large.nbytes
    log = open_log(path, writer=True)
    for step in range(6):
        data = read_artifact(log, f"m/{step:06d}")
        assert data is not None
        found = load_state(data)
        assert np.array_equal(np.asarray(found["w"]), large)
        assert np.asarray(found["b"]).tolist() == [step] * 3
    with log.transaction() as txn:
        for step in range(6):
            txn.delete("checkpoint", f"m/{step:012d}")
            txn.delete("artifact", f"m/{step:06d}")
    log.close()
    connection = apsw.Connection(str(path))
    assert connection.execute("SELECT (SELECT count(*) FROM pieces) + (SELECT count(*) FROM bodies)").get == 0
    connection.close()


def test_writing_a_record_again_leaves_no_piece_behind(file: Log) -> None:
    for step in range(5):
        with file.transaction() as txn:
            same, other = np.zeros(1 << 16), np.full(1 << 16, float(step))
            txn.put("artifact", "m/1", dump_pieces({"same": same, "other": other}))
    data = read_artifact(file, "m/1")
    assert data is not None
    assert np.asarray(load_state(data)["other"])[0] == 4.0
    with file.transaction() as txn:
        txn.put("artifact", "m/1", b"small now")
    assert read_artifact(file, "m/1") == b"small now"
    path = file.path  # type: ignore[attr-defined]  # a log in a file has one
    file.close()
    connection = apsw.Connection(str(path))
    assert connection.execute("SELECT (SELECT count(*) FROM pieces) + (SELECT count(*) FROM bodies)").get == 0
    connection.close()


def test_an_undone_transaction_leaves_pieces_as_they_were(file: Log) -> None:
    pieces = dump_pieces({"w": np.ones(1 << 16)})
    with file.transaction() as txn:
        txn.put("artifact", "m/1", pieces)
    with pytest.raises(ZeroDivisionError), file.transaction() as txn:
        txn.delete("artifact", "m/1")
        txn.put("artifact", "m/2", pieces)
        raise ZeroDivisionError
    assert read_artifact(file, "m/1") == b"".join(pieces)
    assert read_artifact(file, "m/2") is None


def test_a_damaged_piece_is_said(file: Log) -> None:
    with file.transaction() as txn:
        txn.put("artifact", "m/1", dump_pieces({"w": np.ones(1 << 16)}))
    path = file.path  # type: ignore[attr-defined]  # a log in a file has one
    file.close()
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE bodies SET body = zeroblob(length(body))")
    connection.close()
    log = open_log(path, writer=False)
    with pytest.raises(LogError, match="a piece of the record artifact «m/1» is missing or damaged"):
        read_artifact(log, "m/1")
    log.close()


def test_a_file_of_the_first_format_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "old.headrace"
    log = open_log(path, writer=True)
    with log.transaction() as txn:
        txn.put("checkpoint", "m/1", b"x" * 100_000)
    log.close()
    connection = apsw.Connection(str(path))
    connection.execute("DROP TABLE pieces; ALTER TABLE records DROP COLUMN pieces; PRAGMA user_version=1")
    connection.close()
    log = open_log(path, writer=True)
    assert log.records("checkpoint") == {"m/1": b"x" * 100_000}
    with log.transaction() as txn:
        txn.put("checkpoint", "m/1", [b"y" * 100_000, b"z"])
    assert log.records("checkpoint")["m/1"] == b"y" * 100_000 + b"z"
    log.close()
    connection = apsw.Connection(str(path))
    assert connection.execute("PRAGMA user_version").get == layout.MIGRATED
    connection.close()


# -- requests ---------------------------------------------------------------------------------------------------------


def request(version: int = 1) -> Request:
    return Request("rollback", "m", version, "me@here", rebuilt={"position": "0/A:1", "rows": 3, "known": {}})


def answering(folder: Path, answers: list[object]) -> threading.Thread:
    """An engine that answers requests as they come, until each answer was given."""

    def run() -> None:
        inbox, deadline = Inbox(folder), time.monotonic() + 20
        while answers and time.monotonic() < deadline:
            for name, _, state in inbox.take():
                answer = answers.pop(0)
                inbox.reply(name, answer if isinstance(answer, HeadraceError) else {"state": len(state or b"")})
            time.sleep(0.01)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_request_is_answered(tmp_path: Path) -> None:
    folder = tmp_path / "a.headrace.requests"
    thread = answering(folder, [{}, LogError("no", advice="try again")])
    assert ask(folder, request(), [b"abc", b"de"]) == {"state": 5}
    with pytest.raises(LogError, match="no") as caught:
        ask(folder, request())
    assert caught.value.advice == "try again"
    thread.join()
    assert list(folder.iterdir()) == []


def test_a_request_that_nobody_takes_is_withdrawn(tmp_path: Path) -> None:
    folder = tmp_path / "a.headrace.requests"
    with pytest.raises(WaitTimeout, match="was withdrawn"):
        ask(folder, request(), timeout=0.2)
    assert list(Inbox(folder).take()) == []
    assert list(folder.iterdir()) == []


def test_a_request_whose_time_is_over_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({"until": time.time() - 1, "request": request().to_json()}))
    (tmp_path / "torn.json").write_text('{"until"')
    assert list(Inbox(tmp_path).take()) == []
    (tmp_path / "new.json").write_text(json.dumps({"until": time.time() + 9, "request": request(2).to_json()}))
    ((name, found, state),) = Inbox(tmp_path).take()
    assert (name, found, state) == ("new", request(2), None)
    Inbox(tmp_path).clear()
    assert list(tmp_path.iterdir()) == []


def test_a_log_without_a_file_has_no_requests() -> None:
    assert list(Inbox(None).take()) == []
