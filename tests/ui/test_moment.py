"""A log at a place of it: whatever names the place, what was there then is there, and nothing later."""

from __future__ import annotations

import bisect
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batch import Batch
from headrace.errors import DeclarationError, HeadraceError, LogError
from headrace.log import open_log
from headrace.log.base import Log
from headrace.testing import SettableClock
from headrace.ui.read.moment import Moment, moment_at, now, slice_at

MINUTE = 60.0
BEGAN_US = 1_622_620_000_000_000  # 2021-06-02 07:46:40 UTC


def rows(first: int, count: int, lsn: int = 0) -> Batch:
    numbers = np.arange(first, first + count)
    return Batch.of({"id": numbers.tolist()}, lsn=lsn, index=numbers)


def written(log: Log, clock: SettableClock, transactions: list[list[tuple[str, int, int]]]) -> None:
    """Write transactions, a minute apart: of each slice its topic, rows and LSN."""
    ends: dict[str, int] = {}
    for slices in transactions:
        clock.advance(MINUTE)
        with log.transaction() as txn:
            for topic, count, lsn in slices:
                txn.next_slice()
                txn.append(topic, rows(ends.get(topic, 0), count, lsn).records)
                ends[topic] = ends.get(topic, 0) + count


TRANSACTIONS = [
    [("orders", 3, 0x10), ("sizes", 2, 0x10)],
    [("orders", 1, 0x20)],
    [("sizes", 4, 0x30), ("late", 1, 0x30)],
]


@pytest.fixture(params=["file", "memory"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    clock = SettableClock(BEGAN_US)
    made = open_log(tmp_path / "a.headrace" if request.param == "file" else "memory://", writer=True, clock=clock)
    written(made, clock, TRANSACTIONS)
    request.addfinalizer(made.close)
    return made


def ends(moment: Moment) -> dict[str, int]:
    return {name: info.end for name, info in moment.topics().items()}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {"orders": 4, "sizes": 6, "late": 1}),
        ("orders:2", {"orders": 3}),
        ("sizes:0", {"orders": 3, "sizes": 2}),
        ("orders:3", {"orders": 4, "sizes": 2}),
        ("2021-06-02T07:46:40Z", {}),
        ("2021-06-02T07:47:40Z", {"orders": 3, "sizes": 2}),
        ("2021-06-02T07:49:00", {"orders": 4, "sizes": 2}),
        ("2021-06-02T09:49:00+02:00", {"orders": 4, "sizes": 2}),
        ("2035-01-01", {"orders": 4, "sizes": 6, "late": 1}),
        ("0/10", {"orders": 3, "sizes": 2}),
        ("0/20", {"orders": 4, "sizes": 2}),
        ("0/1F", {"orders": 3, "sizes": 2}),
        ("0/20:3", {"orders": 4, "sizes": 2}),
        ("0/FF", {"orders": 4, "sizes": 6, "late": 1}),
        ("slice:1", {"orders": 3}),
        ("slice:999", {"orders": 4, "sizes": 6, "late": 1}),
    ],
)
def test_each_way_to_name_a_place(log: Log, text: str, found: dict[str, int]) -> None:
    moment = moment_at(log, text)
    assert ends(moment) == found
    assert moment.live == (text == "")


@pytest.mark.parametrize(
    "text", ["nonsense", "0/zz", "orders:99", "12:99", "nowhere:1", "slice:x", "'; DROP TABLE", "\x00"]
)
def test_what_is_no_place_is_refused_by_a_clear_error(log: Log, text: str) -> None:
    with pytest.raises(HeadraceError) as refused:
        moment_at(log, text)
    assert isinstance(refused.value, DeclarationError | LogError)
    assert refused.value.message


def test_rows_of_a_moment_are_those_of_then(log: Log) -> None:
    moment = moment_at(log, "orders:2")
    with_rows = list(moment.rows("orders", 1, moment.end("orders")))
    assert [(offset, records.column("id").to_pylist()) for offset, records in with_rows] == [(1, [1, 2])]
    info = moment.topic("orders")
    assert info is not None
    assert info.rows == 3
    assert moment.topic("late") is None
    assert moment.topic("nowhere") is None


def test_a_moment_stays_while_the_log_goes_on(tmp_path: Path) -> None:
    clock = SettableClock(BEGAN_US)
    with_rows = open_log(tmp_path / "b.headrace", writer=True, clock=clock)
    written(with_rows, clock, TRANSACTIONS[:1])
    moment, live = moment_at(with_rows, "slice:2"), now(with_rows)
    before = ends(moment)
    with with_rows.transaction() as txn:
        txn.append("orders", rows(3, 5).records)
    assert ends(moment) == before
    assert ends(live)["orders"] == 8
    with_rows.close()


def test_what_was_pruned_is_not_there_at_any_moment(log: Log) -> None:
    log.prune("orders", before_offset=3)
    moment = moment_at(log, "slice:1")
    info = moment.topic("orders")
    assert info is not None
    assert (info.rows, info.end) == (0, 3)
    assert list(moment.rows("orders", 0, info.first)) == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(-2, 60))
def test_the_slice_of_a_time_is_the_last_one_at_or_before_it(gaps: list[int], asked: int) -> None:
    """Slices whose times may be equal, against a search through all of them."""
    clock = SettableClock(0)
    log = open_log("memory://", writer=True, clock=clock)
    times = []
    for number, gap in enumerate(gaps):
        clock.advance(gap)
        times.append(clock.now_us())
        with log.transaction() as txn:
            txn.append("t", rows(number, 1).records)
    assert slice_at(log, asked * 1_000_000) == bisect.bisect_right(times, asked * 1_000_000)
