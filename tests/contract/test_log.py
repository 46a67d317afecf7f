"""The contract of `headrace.log.base`, run against every implementation."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.batch import Batch
from headrace.errors import DeclarationError, LogError
from headrace.log import open_log
from headrace.log.base import Entry, Log
from headrace.log.retention import Keep, apply_retention

Opener = Callable[[], Log]


class TickingClock:
    """Advances by one microsecond at every look."""

    def __init__(self) -> None:
        self.us = 0

    def now_us(self) -> int:
        self.us += 1
        return self.us

    def monotonic(self) -> float:
        return self.us / 1e6


# A writer on Kafka remembers what it wrote last; the cold one reads everything from the broker.
KAFKA = [pytest.param(name, marks=pytest.mark.xdist_group("kafka")) for name in ("kafka", "kafka-cold")]


@pytest.fixture(params=["memory", "sqlite", *KAFKA])
def location(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param.startswith("kafka"):
        broker = request.getfixturevalue("broker")
        if request.param == "kafka-cold":
            monkeypatch.setattr("headrace.log.kafka.TAIL_ENTRIES", 0)
        return f"kafka://{broker.bootstrap}/contract-{secrets.token_hex(6)}"
    return "memory://" if request.param == "memory" else str(tmp_path / "contract.headrace")


def another(location: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A log of the same kind that is not there yet."""
    if location.startswith("kafka://"):
        return f"{location.rpartition('/')[0]}/contract-{secrets.token_hex(6)}"
    return location if location == "memory://" else str(tmp_path_factory.mktemp("log") / "any.headrace")


@pytest.fixture
def clock() -> TickingClock:
    return TickingClock()


@pytest.fixture
def log(location: str, clock: TickingClock) -> Any:
    opened = open_log(location, writer=True, clock=clock)
    yield opened
    opened.close()


def rows(*ids: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"id": pa.array(ids, pa.int64())})


def ids(entries: list[Entry]) -> list[int]:
    return [value for entry in entries for value in entry.records.column("id").to_pylist()]


def places(entries: list[Entry]) -> list[tuple[str, int, int, int]]:
    """Topic, slice, offset and rows of each entry."""
    return [(entry.topic, entry.slice, entry.offset, entry.records.num_rows) for entry in entries]


def append(log: Log, *appends: tuple[str, pa.RecordBatch]) -> None:
    """One transaction, one slice."""
    with log.transaction() as txn:
        for topic, records in appends:
            txn.append(topic, records)


class Undo(Exception):
    pass


# -- appending -----------------------------------------------------------------------------------------------------


def test_append_returns_first_rows_offset(log: Log) -> None:
    with log.transaction() as txn:
        assert txn.append("a", rows(1, 2)) == 0
        assert txn.append("b", rows(3)) == 0
        assert txn.append("a", rows(4)) == 2
    with log.transaction() as txn:
        assert txn.append("a", rows(5)) == 3


def test_slices_number_commits_and_next_slice(log: Log) -> None:
    append(log, ("a", rows(1)), ("b", rows(2)))
    with log.transaction() as txn:
        txn.append("a", rows(3))
        txn.next_slice()
        txn.next_slice()
        txn.append("b", rows(4))
        txn.append("b", rows(5))
    slices = [entry.slice for entry in log.read()]
    assert slices[0] == slices[1] > 0
    assert slices[1] < slices[2] < slices[3] == slices[4]


def test_inside_a_slice_entries_come_as_appended(log: Log) -> None:
    append(log, ("b", rows(1)), ("a", rows(2)), ("b", rows(3)))
    assert ids(log.read()) == ids(log.read(["a", "b"])) == [1, 2, 3]


def test_zero_rows_change_nothing(log: Log) -> None:
    with log.transaction() as txn:
        assert txn.append("new", rows()) == 0
        txn.stage("new", rows())
        txn.publish()
    assert log.topics() == {} and log.read() == []
    append(log, ("a", rows(1, 2)))
    with log.transaction() as txn:
        assert txn.append("a", rows()) == 2
    assert len(log.read()) == log.topics()["a"].entries == 1


def test_complete_flag(log: Log) -> None:
    with log.transaction() as txn:
        txn.append("a", rows(1), complete=False)
        txn.next_slice()
        txn.append("a", rows(2))
    assert [entry.complete for entry in log.read()] == [False, True]


def test_ts_is_when_it_was_appended(log: Log, clock: TickingClock) -> None:
    clock.us = 1_000
    append(log, ("a", rows(1)))
    clock.us = 2_000
    append(log, ("a", rows(2)))
    first, second = (entry.ts_us for entry in log.read())
    assert 1_000 < first < 2_000 < second
    info = log.topics()["a"]
    assert (info.first_ts_us, info.last_ts_us) == (first, second)


def test_schema_may_change_within_a_topic(log: Log) -> None:
    wider = pa.RecordBatch.from_pydict({"id": [2], "name": ["x"]})
    other_metadata = rows(3).replace_schema_metadata({"headrace.key": '["id"]'})
    for records in (rows(1), wider, other_metadata, rows(4)):
        append(log, ("a", records))
    read = [entry.records for entry in log.read()]
    assert [records.schema.names for records in read] == [["id"], ["id", "name"], ["id"], ["id"]]
    assert read[1].equals(wider)
    assert [records.schema.metadata for records in read] == [None, None, {b"headrace.key": b'["id"]'}, None]


def test_batches_of_every_kind_come_back_equal(log: Log) -> None:
    plain = pa.RecordBatch.from_pydict({"id": list(range(1000)), "text": [f"row {i}" for i in range(1000)]})
    nested = pa.RecordBatch.from_pydict({"l": [[1, 2], None, []] * 5, "s": [{"x": 1, "y": "é"}, None, {}] * 5})
    batches = [
        Batch.of(plain, lsn=5, key=["id"], source="flink", ts_us=7, before=pa.array([None] * 1000, pa.struct([]))),
        Batch.of(plain).slice(990, 3),
        Batch(nested).slice(1, 4),
        Batch(pa.RecordBatch.from_pydict({"d": pa.array(["a", "b", "a"]).dictionary_encode()})),
        Batch(pa.RecordBatch.from_pydict({"v": pa.array(["a long enough string", None], pa.string_view())})),
        Batch(pa.RecordBatch.from_pydict({"n": pa.nulls(3)})),
    ]
    for batch in batches:
        append(log, ("a", batch.records))
    for batch, entry in zip(batches, log.read(limit=10**9), strict=True):
        entry.records.validate(full=True)
        assert entry.records.equals(batch.records, check_metadata=True)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.string_view(), pa.list_(pa.string()), pa.struct([("x", pa.string())])]
)
def test_a_slice_is_stored_without_its_parent(log: Log, kind: pa.DataType) -> None:
    value: Any = "a string of forty characters, just about"
    if pa.types.is_list(kind):
        value = [value]
    elif pa.types.is_struct(kind):
        value = {"x": value}
    large = pa.RecordBatch.from_arrays([pa.array([value] * 10_000, kind)], ["v"])
    append(log, ("a", large.slice(5_000, 2)))
    assert log.topics()["a"].bytes < 2_000
    assert log.read()[0].records.to_pydict() == {"v": [value, value]}


def test_what_is_stored_does_not_follow_the_callers_array(log: Log) -> None:
    values = np.array([1, 2, 3])
    append(log, ("a", pa.RecordBatch.from_arrays([pa.array(values)], ["id"])))
    values[:] = 0
    assert ids(log.read()) == [1, 2, 3]


# -- transactions --------------------------------------------------------------------------------------------------


def test_an_exception_undoes_everything(log: Log) -> None:
    append(log, ("a", rows(1)))
    with log.transaction() as txn:
        txn.put("position", "p", b"1")
        txn.stage("a", rows(2))
    before = log.topics()
    with pytest.raises(Undo), log.transaction() as txn:
        txn.append("a", rows(7))
        txn.append("new", pa.RecordBatch.from_pydict({"id": [8], "unseen": ["x"]}))
        txn.put("position", "p", b"2")
        txn.put("position", "q", b"2")
        txn.publish()
        txn.stage("a", rows(9))
        assert log.prune("a", before_offset=1) == 1
        assert ids(log.read(["new"])) == [8]
        raise Undo
    assert log.topics() == before and ids(log.read()) == [1]
    assert log.records("position") == {"p": b"1"}
    append(log, ("other", pa.RecordBatch.from_pydict({"id": [10], "different": [1.5]})))
    with log.transaction() as txn:
        txn.publish()
    assert ids(log.read()) == [1, 10, 2]
    assert log.read(["other"])[0].records.schema.names == ["id", "different"]


def test_an_undone_slice_leaves_order_intact(log: Log) -> None:
    append(log, ("a", rows(1)))
    with pytest.raises(Undo), log.transaction() as txn:
        txn.append("a", rows(2))
        raise Undo
    append(log, ("a", rows(3)))
    first, second = log.read()
    assert first.slice < second.slice and second.offset == 1


def test_reads_inside_see_what_was_appended(log: Log) -> None:
    append(log, ("a", rows(1)))
    with log.transaction() as txn:
        txn.append("a", rows(2))
        txn.put("k", "n", b"v")
        mine = log.read(after=log.read()[0].slice)
        assert ids(mine) == [2] and ids(log.read_topic("a", offset=1)) == [2]
        assert log.topics()["a"].end == 2 and log.records("k") == {"n": b"v"}
        txn.next_slice()
        txn.append("b", rows(3))
        assert ids(log.read(after=mine[-1].slice)) == [3]
    assert ids(log.read()) == [1, 2, 3]


def test_another_thread_sees_commits_only(log: Log) -> None:
    append(log, ("a", rows(1)))
    seen: list[Any] = []

    def look() -> None:
        seen.append((ids(log.read()), log.topics()["a"].end, log.records("k"), ids(log.read_topic("a"))))

    def in_thread() -> Any:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return seen.pop()

    with log.transaction() as txn:
        txn.append("a", rows(2))
        txn.put("k", "n", b"v")
        assert in_thread() == ([1], 1, {}, [1])
    assert in_thread() == ([1, 2], 2, {"n": b"v"}, [1, 2])


def test_reading_threads_beside_a_writer(log: Log) -> None:
    """Every reader sees whole transactions in order, however it interleaves with the writer."""
    commits, wrong = 150, []

    def follow() -> None:
        after, expected = 0, 0
        while expected < 2 * commits:
            for entry in log.read(after=after, limit=7):
                if ids([entry]) != [expected]:
                    wrong.append((ids([entry]), expected))
                    return
                expected += 1
                after = entry.slice

    threads = [threading.Thread(target=follow) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(commits):
        append(log, ("a", rows(2 * i)), ("b", rows(2 * i + 1)))
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)


def test_transactions_of_two_threads_follow_each_other(log: Log) -> None:
    def write() -> None:
        for _ in range(50):
            with log.transaction() as txn:
                txn.append("a", rows(txn.append("a", rows(0))))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert log.topics()["a"].end == 200
    assert ids(log.read())[1::2] == list(range(0, 200, 2))


def test_a_transaction_inside_another_is_refused(log: Log) -> None:
    with log.transaction() as txn:
        with pytest.raises(LogError, match="already open"), log.transaction():
            pass
        txn.append("a", rows(1))
    assert ids(log.read()) == [1]


def test_a_transaction_is_over_after_its_block(log: Log) -> None:
    with log.transaction() as txn:
        pass
    with pytest.raises(LogError, match="over"):
        txn.append("a", rows(1))
    with pytest.raises(LogError, match="over"):
        txn.put("k", "n", b"")
    assert log.topics() == {}


# -- topics --------------------------------------------------------------------------------------------------------


def create(log: Log, *topics: str) -> None:
    with log.transaction() as txn:
        for topic in topics:
            txn.create_topic(topic)


def drop(log: Log, *topics: str) -> None:
    with log.transaction() as txn:
        for topic in topics:
            txn.drop_topic(topic)


def test_a_topic_may_be_made_without_rows(log: Log, topic_prefix: str) -> None:
    one, two = f"{topic_prefix}.one", f"{topic_prefix}.two"
    create(log, one, two)
    assert list(log.topics()) == [one, two]
    info = log.topics()[one]
    assert (info.first, info.end, info.rows, info.entries, info.bytes) == (0, 0, 0, 0, 0)
    assert log.read() == log.read_topic(one) == log.extents(one) == []
    append(log, (two, rows(1, 2)))
    assert ids(log.read_topic(two)) == [1, 2] and log.topics()[two].end == 2
    assert log.topics()[one].end == 0


def test_a_topic_is_made_once(log: Log, topic_prefix: str) -> None:
    create(log, topic_prefix)
    append(log, (f"{topic_prefix}.rows", rows(1)))
    for topic in (topic_prefix, f"{topic_prefix}.rows"):
        with pytest.raises(LogError, match="has the topic"):
            create(log, topic)
    assert ids(log.read()) == [1]


def test_a_dropped_topic_is_gone_and_the_others_stay(log: Log, topic_prefix: str) -> None:
    one, two = f"{topic_prefix}.one", f"{topic_prefix}.two"
    append(log, (one, rows(1, 2)), (two, rows(3)))
    append(log, (one, rows(4)))
    newest = log.newest_slice()
    drop(log, one)
    assert list(log.topics()) == [two]
    assert ids(log.read()) == ids(log.read([one, two])) == [3]
    assert log.read_topic(one) == log.extents(one) == log.read([one]) == []
    assert log.newest_slice() == newest
    append(log, (two, rows(5)))
    assert [entry.slice for entry in log.read()][-1] > newest
    for gone in (one, f"{topic_prefix}.never"):
        with pytest.raises(LogError, match="no topic"):
            drop(log, gone)


def test_a_topic_of_a_dropped_ones_name_goes_on_where_it_ended(log: Log, topic_prefix: str) -> None:
    one, two = f"{topic_prefix}.one", f"{topic_prefix}.two"
    append(log, (one, rows(1, 2)), (two, rows(3, 4, 5)))
    drop(log, one, two)
    with log.transaction() as txn:
        assert txn.append(one, rows(6, 7)) == 2
    create(log, two)
    assert (log.topics()[two].first, log.topics()[two].end) == (3, 3)
    append(log, (two, rows(8)))
    assert [(entry.topic, entry.offset, ids([entry])) for entry in log.read()] == [(one, 2, [6, 7]), (two, 3, [8])]
    assert ids(log.read_topic(one)) == ids(log.read_topic(one, offset=2)) == [6, 7]
    assert log.topics()[one].rows == 2
    drop(log, one)
    append(log, (one, rows(9)))
    assert [(entry.offset, ids([entry])) for entry in log.read_topic(one)] == [(4, [9])]


def test_making_and_dropping_are_undone(log: Log, topic_prefix: str) -> None:
    one, two = f"{topic_prefix}.one", f"{topic_prefix}.two"
    append(log, (one, rows(1, 2)))
    with pytest.raises(Undo), log.transaction() as txn:
        txn.create_topic(two)
        txn.drop_topic(one)
        assert list(log.topics()) == [two] and ids(log.read()) == []
        raise Undo
    assert list(log.topics()) == [one] and ids(log.read()) == ids(log.read_topic(one)) == [1, 2]
    append(log, (one, rows(3)), (two, rows(4)))
    assert ids(log.read()) == [1, 2, 3, 4] and log.topics()[two].first == 0


def test_topics_made_and_dropped_are_seen_by_others_and_after_a_restart(
    location: str, log: Log, topic_prefix: str
) -> None:
    if location == "memory://":
        pytest.skip("nobody else sees a log in memory")
    one, two = f"{topic_prefix}.one", f"{topic_prefix}.two"
    append(log, (one, rows(1, 2)))
    drop(log, one)
    create(log, two)
    log.close()
    for writer in (False, True):
        again = open_log(location, writer=writer)
        assert list(again.topics()) == [two] and again.read() == []
        if writer:
            append(again, (one, rows(3)), (two, rows(4)))
            assert places(again.read())[0][2] == 2 and ids(again.read()) == [3, 4]
        again.close()
    reader = open_log(location, writer=False)
    assert ids(reader.read()) == [3, 4] and ids(reader.read_topic(one)) == [3]
    reader.close()


# -- staging -------------------------------------------------------------------------------------------------------


def test_staged_rows_are_invisible_until_published(log: Log) -> None:
    append(log, ("a", rows(1)))
    with log.transaction() as txn:
        txn.stage("a", rows(2, 3))
        txn.stage("b", rows(4))
    with log.transaction() as txn:
        txn.stage("a", rows(5))
    assert ids(log.read()) == [1] and list(log.topics()) == ["a"] and log.topics()["a"].end == 1
    append(log, ("a", rows(6)))
    with log.transaction() as txn:
        txn.publish()
        txn.put("position", "p", b"x")
    assert [ids([entry]) for entry in log.read()] == [[1], [6], [2, 3], [4], [5]]
    assert [entry.offset for entry in log.read(["a"])] == [0, 1, 2, 4]
    with log.transaction() as txn:
        txn.publish()
    assert len(log.read()) == 5


def test_staged_slices_stay_slices_and_the_last_is_complete(log: Log) -> None:
    with log.transaction() as txn:
        txn.stage("a", rows(1))
        txn.stage("b", rows(2))
        txn.next_slice()
        txn.stage("a", rows(3))
    with log.transaction() as txn:
        txn.stage("a", rows(4))
        txn.stage("b", rows(5))
    with log.transaction() as txn:
        txn.append("before", rows(0))
        txn.publish()
        txn.append("after", rows(6))
    found: dict[int, list[Any]] = {}
    for entry in log.read():
        found.setdefault(entry.slice, []).append((ids([entry])[0], entry.complete))
    assert list(found.values()) == [
        [(0, True)],
        [(1, False), (2, False)],
        [(3, False)],
        [(4, True), (5, True)],
        [(6, True)],
    ]


def test_discard_staged(log: Log) -> None:
    with log.transaction() as txn:
        txn.stage("a", rows(1))
        txn.discard_staged()
        txn.stage("a", rows(2))
    with log.transaction() as txn:
        txn.publish()
    assert ids(log.read()) == [2]
    with log.transaction() as txn:
        txn.stage("a", rows(3))
    with log.transaction() as txn:
        txn.discard_staged()
        txn.publish()
    assert ids(log.read()) == [2]


# -- reading -------------------------------------------------------------------------------------------------------


def three_slices(log: Log) -> list[int]:
    """Slices of 3 + 3, 3 and 2 rows; returns their numbers."""
    append(log, ("a", rows(1, 2, 3)), ("b", rows(4, 5, 6)))
    append(log, ("b", rows(7, 8, 9)))
    append(log, ("a", rows(10, 11)))
    return list(dict.fromkeys(entry.slice for entry in log.read()))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(0, [6]), (1, [6]), (6, [6]), (7, [6, 3]), (9, [6, 3]), (10, [6, 3, 2]), (10**9, [6, 3, 2])],
)
def test_read_takes_whole_slices_until_the_limit(log: Log, limit: int, expected: list[int]) -> None:
    three_slices(log)
    sizes: dict[int, int] = {}
    for entry in log.read(limit=limit):
        sizes[entry.slice] = sizes.get(entry.slice, 0) + entry.records.num_rows
    assert list(sizes.values()) == expected


def test_read_after_and_until(log: Log) -> None:
    first, second, third = three_slices(log)
    assert ids(log.read(after=first)) == [7, 8, 9, 10, 11]
    assert ids(log.read(after=first, until=second)) == [7, 8, 9]
    assert ids(log.read(until=first)) == [1, 2, 3, 4, 5, 6]
    assert log.read(after=third) == log.read(after=second, until=first) == []


def test_read_of_some_topics(log: Log) -> None:
    first, second, third = three_slices(log)
    assert places(log.read(["a"])) == [("a", first, 0, 3), ("a", third, 3, 2)]
    assert places(log.read(["b", "nowhere", "b"])) == [("b", first, 0, 3), ("b", second, 3, 3)]
    assert log.read([]) == log.read(["nowhere"]) == []
    assert places(log.read(["a"], after=first, limit=1)) == [("a", third, 3, 2)]
    assert ids(log.read(["b", "a"])) == ids(log.read())


def test_resuming_at_the_last_slice_reads_everything_once(log: Log) -> None:
    for i in range(20):
        append(log, ("a", rows(2 * i)), ("b", rows(2 * i + 1)))
    for topics in (None, ["a", "b"]):
        found: list[int] = []
        after = 0
        while entries := log.read(topics, after=after, limit=5):
            found += ids(entries)
            after = entries[-1].slice
        assert found == list(range(40))


@pytest.mark.parametrize(
    ("offset", "limit", "expected"),
    [
        (0, 1, [0]),
        (0, 3, [0]),
        (0, 4, [0, 3]),
        (2, 1, [0]),
        (3, 1, [3]),
        (5, 10**9, [3, 6]),
        (7, 1, [6]),
        (8, 1, []),
        (99, 1, []),
    ],
)
def test_read_topic_from_the_entry_that_holds_the_offset(
    log: Log, offset: int, limit: int, expected: list[int]
) -> None:
    for batch in (rows(0, 1, 2), rows(3, 4, 5), rows(6, 7)):
        append(log, ("other", rows(99)), ("a", batch))
    assert [entry.offset for entry in log.read_topic("a", offset=offset, limit=limit)] == expected


def test_read_topic_of_an_unknown_topic(log: Log) -> None:
    assert log.read_topic("nowhere") == [] and log.extents("nowhere") == []


def test_schemas_of_a_topic_begin_where_its_rows_change(log: Log, topic_prefix: str) -> None:
    topic = f"{topic_prefix}.columns"
    for columns in ({"a": [1, 2]}, {"a": [3]}, {"a": ["x"], "b": [1.5]}, {"a": [4]}):
        append(log, (topic, Batch.of(columns).records))
    found = [(offset, [name for name in schema.names if len(name) == 1]) for offset, schema in log.schemas(topic)]
    assert found == [(0, ["a"]), (3, ["a", "b"]), (4, ["a"])]
    assert str(log.schemas(topic)[1][1].field("a").type) == "string"
    assert log.schemas("nowhere") == []
    log.prune(topic, before_offset=3)
    assert [offset for offset, _ in log.schemas(topic)] == [3, 4]


def test_extents_are_entries_without_rows(log: Log) -> None:
    three_slices(log)
    found = log.extents("a", offset=1)
    assert [(item.offset, item.rows, item.ts_us) for item in found] == [
        (entry.offset, entry.records.num_rows, entry.ts_us) for entry in log.read_topic("a", offset=1)
    ]
    assert sum(item.bytes for item in found) == log.topics()["a"].bytes
    assert log.extents("a", offset=3) == found[1:] and log.extents("a", limit=1) == found[:1]


def test_topics_are_sorted_and_counted(log: Log) -> None:
    three_slices(log)
    found = log.topics()
    assert list(found) == ["a", "b"]
    info = found["a"]
    assert (info.name, info.first, info.end, info.rows, info.entries) == ("a", 0, 5, 5, 2)
    assert info.bytes > 0


# -- records -------------------------------------------------------------------------------------------------------


def test_records(log: Log) -> None:
    with log.transaction() as txn:
        txn.put("state", "b", b"2")
        txn.put("state", "a/1", b"1")
        txn.put("state", "a/2", b"")
        txn.put("state", "ä", b"3")
        txn.put("other", "a/1", b"x")
    assert list(log.records("state").items()) == [("a/1", b"1"), ("a/2", b""), ("b", b"2"), ("ä", b"3")]
    assert log.records("state", "a/") == {"a/1": b"1", "a/2": b""}
    assert log.records("nothing") == log.records("state", "c") == {}
    with log.transaction() as txn:
        txn.put("state", "a/1", b"new")
        txn.delete("state", "a/2")
        txn.delete("state", "never there")
        txn.delete("state", "b")
        txn.put("state", "b", b"back")
    assert log.records("state") == {"a/1": b"new", "b": b"back", "ä": b"3"}
    assert log.records("other") == {"a/1": b"x"}


# -- pruning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "dropped", "first"), [(0, 0, 0), (2, 0, 0), (3, 3, 3), (5, 3, 3), (8, 8, 8), (99, 8, 8)]
)
def test_prune_drops_whole_entries(log: Log, before: int, dropped: int, first: int) -> None:
    for batch in (rows(0, 1, 2), rows(3, 4, 5), rows(6, 7)):
        append(log, ("a", batch), ("b", rows(9)))
    assert log.prune("a", before_offset=before) == dropped
    info = log.topics()["a"]
    assert (info.first, info.end, info.rows) == (first, 8, 8 - dropped)
    assert info.entries == len(log.read(["a"])) and (info.bytes > 0) == (info.entries > 0)
    assert ids(log.read_topic("a")) == ids(log.read(["a"])) == list(range(first, 8))
    assert ids(log.read(["b"])) == [9, 9, 9]
    last = log.read()[-1].slice
    append(log, ("a", rows(8)))
    assert places(log.read(["a"]))[-1][2:] == (8, 1) and log.read()[-1].slice > last


def test_prune_updates_times(log: Log) -> None:
    for i in range(3):
        append(log, ("a", rows(i)))
    times = [entry.ts_us for entry in log.read()]
    log.prune("a", before_offset=1)
    assert (log.topics()["a"].first_ts_us, log.topics()["a"].last_ts_us) == (times[1], times[2])
    log.prune("a", before_offset=3)
    append(log, ("a", rows(3)))
    assert log.topics()["a"].first_ts_us == log.read()[0].ts_us


def test_prune_of_an_unknown_topic(log: Log) -> None:
    assert log.prune("nowhere", before_offset=5) == 0


def test_prune_inside_a_transaction_is_part_of_it(log: Log) -> None:
    append(log, ("a", rows(1)))
    append(log, ("a", rows(2)))
    with log.transaction() as txn:
        assert log.prune("a", before_offset=1) == 1
        assert txn.append("a", rows(3)) == 2
    assert ids(log.read()) == [2, 3]


def test_prune_of_many_entries(log: Log) -> None:
    with log.transaction() as txn:
        for i in range(2_500):
            txn.append("a", rows(i))
    assert log.prune("a", before_offset=2_400) == 2_400
    assert ids(log.read()) == list(range(2_400, 2_500))


# -- retention -----------------------------------------------------------------------------------------------------


def ten_entries(log: Log, clock: TickingClock) -> None:
    """Entries of two rows, appended a second apart."""
    for i in range(10):
        clock.us = i * 1_000_000
        append(log, ("a", rows(2 * i, 2 * i + 1)))


@pytest.mark.parametrize(
    ("keep", "needed", "first"),
    [
        (None, {}, 0),
        ("1 h", {}, 0),
        ("5 s", {}, 8),  # at 9.000001 s, entries from 4.000001 s on
        ("5 s", {"a": 5}, 4),  # a consumer is in the middle of the third entry
        ("5 s", {"other": 0}, 8),
        ("1 GB", {}, 0),
        ("1 b", {}, 20),
        ("1 b", {"a": 20}, 20),
        ("1 b", {"a": 0}, 0),
    ],
)
def test_retention(log: Log, clock: TickingClock, keep: str | None, needed: dict[str, int], first: int) -> None:
    ten_entries(log, clock)
    dropped = apply_retention(log, Keep.parse(keep), needed, 9_000_001)
    assert log.topics()["a"].first == first
    assert dropped == ({"a": first} if first else {})


def test_retention_by_size_keeps_as_much_as_fits(log: Log, clock: TickingClock) -> None:
    ten_entries(log, clock)
    one = log.topics()["a"].bytes // 10
    apply_retention(log, Keep(bytes=3 * one), {}, 0)
    assert log.topics()["a"].entries == 3
    apply_retention(log, Keep(bytes=3 * one - 1), {}, 0)
    assert log.topics()["a"].entries == 2


def test_forced_retention_passes_consumers(log: Log, clock: TickingClock) -> None:
    ten_entries(log, clock)
    assert apply_retention(log, Keep.parse("5 s"), {"a": 0}, 9_000_001, force=True) == {"a": 8}


def test_retention_of_named_topics_only(log: Log, clock: TickingClock) -> None:
    ten_entries(log, clock)
    append(log, ("b", rows(1)))
    assert apply_retention(log, Keep(bytes=1), {}, 0, topics=["b", "nowhere"]) == {"b": 1}


# -- opening and closing -------------------------------------------------------------------------------------------


def test_closing_twice_is_harmless_and_closed_is_closed(log: Log) -> None:
    append(log, ("a", rows(1)))
    log.close()
    log.close()
    with pytest.raises(LogError, match="closed"):
        log.read()
    with pytest.raises(LogError, match="closed"), log.transaction():
        pass


def test_what_was_committed_is_seen_by_others_when_the_log_is_closed(location: str, log: Log) -> None:
    if location == "memory://":
        pytest.skip("nobody else sees a log in memory")
    append(log, ("a", rows(0)))
    log.close()
    reader = open_log(location, writer=False)
    for number in range(1, 11):
        writer = open_log(location, writer=True)
        with writer.transaction() as txn:
            txn.append("a", rows(number))
            txn.put("position", "here", b"%d" % number)
        writer.close()
        assert reader.records("position") == {"here": b"%d" % number}
        assert ids(reader.read(after=number)) == [number]
    reader.close()


def test_closing_inside_a_transaction_is_refused(log: Log) -> None:
    with log.transaction() as txn:
        txn.append("a", rows(1))
        with pytest.raises(LogError, match="inside a transaction"):
            log.close()
    assert ids(log.read()) == [1]


@pytest.mark.parametrize("location", ["redis://localhost:6379", "http://x"], ids=str)
def test_other_locations_are_refused(location: str) -> None:
    with pytest.raises(DeclarationError, match="no log can be kept"):
        open_log(location, writer=True)


def test_a_log_that_nobody_made_cannot_be_read(location: str) -> None:
    with pytest.raises(LogError, match="there is no log"):
        open_log(location, writer=False)


# -- any sequence of operations ------------------------------------------------------------------------------------

TOPICS = st.sampled_from(["a", "b", "c"])
SIZES = st.integers(0, 4)
STEPS = st.one_of(
    st.tuples(st.just("append"), TOPICS, SIZES, st.booleans()),
    st.tuples(st.just("stage"), TOPICS, SIZES),
    st.tuples(st.just("next_slice")),
    st.tuples(st.just("publish")),
    st.tuples(st.just("discard_staged")),
    st.tuples(st.just("put"), st.sampled_from(["x", "xy", "z"]), st.binary(max_size=3)),
    st.tuples(st.just("delete"), st.sampled_from(["x", "xy", "z"])),
    st.tuples(st.just("prune"), TOPICS, st.integers(0, 12)),
)
TRANSACTIONS = st.lists(st.tuples(st.lists(STEPS, max_size=8), st.booleans()), max_size=8)


class Model:
    """The contract, as plainly as it can be said: a list of (topic, slice, offset, ids, complete)."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, int, int, list[int], bool]] = []
        self.ends: dict[str, int] = {}
        self.staged: list[tuple[int, str, list[int]]] = []
        self.records: dict[str, bytes] = {}
        self.slice = 0
        self.open = False
        self.group = 0
        self.group_open = False

    def copy(self) -> Model:
        other = Model()
        other.entries, other.ends, other.staged = list(self.entries), dict(self.ends), list(self.staged)
        other.records, other.slice, other.group = dict(self.records), self.slice, self.group
        return other

    def append(self, topic: str, ids: list[int], complete: bool) -> None:
        if not ids:
            return
        if not self.open:
            self.slice, self.open = self.slice + 1, True
        offset = self.ends.get(topic, 0)
        self.entries.append((topic, self.slice, offset, ids, complete))
        self.ends[topic] = offset + len(ids)

    def stage(self, topic: str, ids: list[int]) -> None:
        if ids:
            if not self.group_open:
                self.group, self.group_open = self.group + 1, True
            self.staged.append((self.group, topic, ids))

    def next_slice(self) -> None:
        self.open = self.group_open = False

    def publish(self) -> None:
        group = None
        for of, topic, ids in self.staged:
            if of != group:
                self.next_slice()
                group = of
            self.append(topic, ids, of == self.staged[-1][0])
        self.staged = []
        self.next_slice()

    def discard_staged(self) -> None:
        self.staged, self.group_open = [], False

    def put(self, name: str, value: bytes) -> None:
        self.records[name] = value

    def delete(self, name: str) -> None:
        self.records.pop(name, None)

    def prune(self, topic: str, before: int) -> None:
        self.entries = [entry for entry in self.entries if entry[0] != topic or entry[2] + len(entry[3]) > before]


@pytest.mark.parametrize("location", ["memory", "sqlite"], indirect=True)
@given(TRANSACTIONS, st.integers(1, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_of_operations(
    location: str, tmp_path_factory: pytest.TempPathFactory, transactions: list[Any], limit: int
) -> None:
    check_sequence(another(location, tmp_path_factory), transactions, limit)


@pytest.mark.parametrize("location", KAFKA, indirect=True)
@given(TRANSACTIONS, st.integers(1, 9))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_of_operations_on_kafka(
    location: str, tmp_path_factory: pytest.TempPathFactory, transactions: list[Any], limit: int
) -> None:
    """Fewer: a commit costs a hundred times as much there."""
    check_sequence(another(location, tmp_path_factory), transactions, limit)


def check_sequence(location: str, transactions: list[Any], limit: int) -> None:
    log = open_log(location, writer=True)
    model, number = Model(), 0
    try:
        for steps, undone in transactions:
            tried = model.copy()
            try:
                with log.transaction() as txn:
                    for name, *arguments in steps:
                        if name in ("append", "stage"):
                            topic, size, *flags = arguments
                            new = list(range(number, number + size))
                            number += size
                            getattr(tried, name)(topic, new, *flags)
                            getattr(txn, name)(topic, rows(*new), **({"complete": flags[0]} if flags else {}))
                        elif name == "prune":
                            tried.prune(*arguments)
                            log.prune(arguments[0], before_offset=arguments[1])
                        else:
                            getattr(tried, name)(*arguments)
                            getattr(txn, name)(*((["k"] if name in ("put", "delete") else []) + arguments))
                    agrees(log, tried, limit)
                    if undone:
                        raise Undo
                model = tried
            except Undo:
                pass
            agrees(log, model, limit)
    finally:
        log.close()


def agrees(log: Log, model: Model, limit: int) -> None:
    """The log reads as the model says, by slices, by topics and in steps."""
    found: list[Entry] = []
    while page := log.read(after=found[-1].slice if found else 0, limit=limit):
        found += page
    # Slice numbers may skip; their order and grouping may not.
    numbers = {item: i for i, item in enumerate(dict.fromkeys(entry.slice for entry in found))}
    wanted = {item: i for i, item in enumerate(dict.fromkeys(one[1] for one in model.entries))}
    assert list(numbers) == sorted(numbers)
    assert [(e.topic, numbers[e.slice], e.offset, ids([e]), e.complete) for e in found] == [
        (topic, wanted[number], offset, values, complete) for topic, number, offset, values, complete in model.entries
    ]
    assert log.records("k") == model.records
    infos = log.topics()
    assert {name: info.end for name, info in infos.items()} == model.ends
    for name, info in infos.items():
        held = [item for item in model.entries if item[0] == name]
        assert (info.first, info.entries) == (held[0][2] if held else info.end, len(held))
        assert ids(log.read_topic(name, limit=10**9)) == ids(log.read([name], limit=10**9))
        for offset in range(info.first, info.end):
            assert ids(log.read_topic(name, offset=offset, limit=1)) == next(
                item[3] for item in held if item[2] <= offset < item[2] + len(item[3])
            )
