"""A copied log is the log: same rows at the same offsets, same slices, same records; and half of one is nobody's."""

from __future__ import annotations

import secrets
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.processes import run_python

from headrace.batch import Batch
from headrace.errors import DeclarationError, LogError, LogLocked
from headrace.formats.topic_formats import codec_for
from headrace.log import copy as copying
from headrace.log import open_log
from headrace.log.base import Log, walk
from headrace.log.copy import Copied, copy_log
from headrace.testing.servers import KafkaBroker

CODEC = codec_for()


def events(*ids: int, lsn: int = 1) -> pa.RecordBatch:
    columns = {
        "id": pa.array(ids, pa.int32()),
        "x": [id_ / 7 for id_ in ids],
        "name": [f"n°{number}" for number in ids],
    }
    return Batch.of(columns, op="c", lsn=lsn, ts_us=1_700_000_000_123_456, key=["id"], source="shop").records


def steps(*numbers: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"step": list(numbers)})


def filled(location: str) -> None:
    """A log with all that a log can hold: large transactions, pruned topics, a gap in the slices, large records."""
    prefix = f"t{secrets.token_hex(3)}"
    with closing(open_log(location, writer=True, codec=CODEC)) as log:
        with log.transaction() as txn:
            txn.append(f"{prefix}.a", events(1, 2, 3))
            txn.append(f"{prefix}.b", events(9))
            txn.append(f"__headrace.{prefix}.steps", steps(1))
        for complete in (False, False, True):
            with log.transaction() as txn:
                txn.append(f"{prefix}.a", events(4, 5, lsn=2), complete=complete)
        with log.transaction() as txn:
            txn.append(f"{prefix}.gone", events(1, 2))
            txn.next_slice()
            txn.append(f"{prefix}.a", events(6, lsn=3))
            txn.append(f"{prefix}.a", events(7, lsn=3))
            txn.put("position", "m", b'{"slice": 6}')
            txn.put("checkpoint", "m/000001", secrets.token_bytes(300_000))
            txn.put("source", "shop", b"0/16B3748")
        with log.transaction() as txn:
            txn.append(f"{prefix}.last", events(1))
        log.prune(f"{prefix}.a", before_offset=3)
        log.prune(f"{prefix}.gone", before_offset=2)
        log.prune(f"{prefix}.last", before_offset=1)


def contents(location: str) -> dict[str, Any]:
    """Everything that a reader can see, except sizes, which depend on the form."""
    with closing(open_log(location, writer=False, codec=CODEC)) as log:
        return {
            "topics": {name: (topic.first, topic.end) for name, topic in log.topics().items()},
            "rows": {name: _rows(log, name) for name in log.topics()},
            "order": [(entry.slice, entry.topic, entry.offset) for entry in log.read(limit=2**40)],
            "records": {kind: log.records(kind) for kind in log.kinds()},
            "slice": log.newest_slice(),
        }


def _rows(log: Log, topic: str) -> list[Any]:
    return [(e.slice, e.offset, e.complete, e.ts_us, e.records.schema, e.records) for e in walk(log, topic)]


def copied(source: str, target: str) -> Copied:
    return copy_log(source, target, codec=CODEC)


def test_a_file_copied_to_a_file(tmp_path: Path) -> None:
    source, target = str(tmp_path / "a.headrace"), str(tmp_path / "b.headrace")
    filled(source)
    done = copied(source, target)
    assert (done.location, done.topics, done.records) == (target, 5, 3)
    assert sorted(path.name for path in tmp_path.iterdir() if "b.headrace" in path.name) == ["b.headrace"]
    assert contents(target) == contents(source)


@pytest.mark.parametrize("rows", [1, 32_768])
def test_to_a_cluster_and_back(rows: int, broker: KafkaBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "ROWS_AT_ONCE", rows)
    source, back = str(tmp_path / "a.headrace"), str(tmp_path / "b.headrace")
    filled(source)
    target = f"kafka://{broker.bootstrap}"
    there = copied(source, target)
    assert there.location.startswith(f"{target}/t"), "without a name it takes the pipeline's"
    assert contents(there.location) == contents(source)
    copied(there.location, back)
    assert contents(back) == contents(source)


def test_new_rows_follow_the_last_slice_also_where_it_was_pruned(broker: KafkaBroker, tmp_path: Path) -> None:
    source = str(tmp_path / "a.headrace")
    filled(source)
    last = contents(source)["slice"]
    for target in (str(tmp_path / "b.headrace"), f"kafka://{broker.bootstrap}"):
        there = copied(source, target).location
        with closing(open_log(there, writer=True, codec=CODEC)) as log:
            topic = next(name for name in log.topics() if name.endswith(".gone"))
            with log.transaction() as txn:
                assert txn.append(topic, events(8)) == 2
            assert [entry.slice for entry in log.read([topic])] == [last + 1]


def test_what_is_there_is_never_written_over(broker: KafkaBroker, tmp_path: Path) -> None:
    source, other = str(tmp_path / "a.headrace"), str(tmp_path / "b.headrace")
    filled(source)
    filled(other)
    there = copied(source, f"kafka://{broker.bootstrap}").location
    with pytest.raises(LogError, match="is there already"):
        copied(source, other)
    with pytest.raises(LogError, match="there is a log at"):
        copied(source, there)
    with pytest.raises(LogError, match=r"has a topic «.*» with messages in it"):
        copied(source, f"{there}-again")
    with pytest.raises(DeclarationError, match="onto itself"):
        copied(source, source)
    with pytest.raises(LogError, match="no log at"):
        copied(str(tmp_path / "nothing.headrace"), other)


def test_a_log_that_is_written_is_not_copied(tmp_path: Path) -> None:
    source = str(tmp_path / "a.headrace")
    filled(source)
    with closing(open_log(source, writer=True)), pytest.raises(LogLocked):
        copied(source, str(tmp_path / "b.headrace"))


KILLED = """
import os, signal, sys
from headrace.formats.topic_formats import codec_for
from headrace.log import copy
copy.ROWS_AT_ONCE = 1
calls = iter(range(10))
def on_rows(done, total):
    if next(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
copy.copy_log(sys.argv[1], sys.argv[2], codec=codec_for(), on_rows=on_rows)
"""


def killed(source: str, target: str) -> None:
    done = run_python([sys.executable, "-c", KILLED, source, target], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_killed_copy_to_a_file_leaves_none(tmp_path: Path) -> None:
    source, target = str(tmp_path / "a.headrace"), str(tmp_path / "b.headrace")
    filled(source)
    killed(source, target)
    assert not Path(target).exists()
    copied(source, target)
    assert contents(target) == contents(source)


def test_a_killed_copy_to_a_cluster_is_nobodys_and_is_gone_on_with(broker: KafkaBroker, tmp_path: Path) -> None:
    source, other = str(tmp_path / "a.headrace"), str(tmp_path / "b.headrace")
    filled(source)
    filled(other)
    target = f"kafka://{broker.bootstrap}/copy-{secrets.token_hex(3)}"
    killed(source, target)
    for writer in (False, True):
        with pytest.raises(LogError, match="half of a copy"):
            open_log(target, writer=writer, codec=CODEC)
    with pytest.raises(LogError, match="half of a copy"):
        copied(other, target)
    assert copied(source, target).rows < 12
    assert contents(target) == contents(source)
