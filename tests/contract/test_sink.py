"""The contract of `headrace.sinks.base`, run against every sink, each with a destination of its own."""

from __future__ import annotations

import dataclasses
import json
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from tests.sinks.conftest import receiver

from headrace.batch import Batch
from headrace.errors import SinkError
from headrace.sinks.base import Reason, Sink, SinkBatch, SinkContext, SinkSpec, Stopped
from headrace.sinks.console import ConsoleSpec
from headrace.sinks.http import http_spec
from headrace.sinks.mongo import mongo_spec
from headrace.sinks.parquet import parquet_spec
from headrace.sinks.table import table_spec

__all__ = ["receiver"]  # a fixture


class Context(SinkContext):
    """What a log keeps for a sink, in memory.

    Attributes:
        stops: raise `Stopped` in place of storing anything, as an engine does that ends.
    """

    def __init__(self, log_id: str = "this log") -> None:
        self.app, self.sink, self.topic, self.log_id = "shop", "out", "in", log_id
        self.stops = False
        self.refused: dict[int, str] = {}
        self._position = 0

    @property
    def position(self) -> int:
        return self._position

    def refuse(self, part: SinkBatch, reasons: Sequence[Reason]) -> None:
        self._check()
        self.refused |= {int(part.offsets[row]): reason for row, reason in reasons}

    def keep(
        self,
        position: int,
        *,
        outputs: Iterable[tuple[str, Batch]] = (),
        refused: tuple[SinkBatch, Sequence[Reason]] | None = None,
    ) -> None:
        self._check()
        list(outputs)
        if refused is not None:
            self.refuse(*refused)
        self._position = position

    def pause(self, seconds: float, why: str) -> None:
        raise AssertionError(f"the sink stands: {why}")

    def _check(self) -> None:
        if self.stops:
            raise Stopped


@dataclasses.dataclass
class Destination:
    """A sink's specification, and how to look at what it has delivered.

    Attributes:
        ids: the ids that are there, in the order of their offsets.
        poison: a column with a value, the second one, that the destination refuses; None where it takes everything.
        keeps_position: whether the position lies at the destination, not in the log.
        once: whether a row that is delivered again has no further effect.
    """

    spec: SinkSpec
    ids: Callable[[], list[int]]
    poison: pa.Array | None = None
    keeps_position: bool = True
    once: bool = True


KINDS = ("console", "http", "parquet", "table", "table by key", "mongo", "mongo by key")


@pytest.fixture(params=KINDS)
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Destination]:
    kind, _, key = request.param.partition(" by ")
    columns = ["id"] if key else None
    if kind == "console":
        capsys: pytest.CaptureFixture[str] = request.getfixturevalue("capsys")
        printed: list[int] = []

        def lines() -> list[int]:
            printed.extend(json.loads(line)["id"] for line in capsys.readouterr().out.splitlines())
            return printed

        yield Destination(ConsoleSpec("lines"), lines, keeps_position=False, once=False)
    elif kind == "http":
        hook = request.getfixturevalue("receiver")
        hook.script = lambda got: 422 if got.row.get("x") == "bad" else 200
        poison = pa.array(["a", "bad", "c"])
        url = hook.url.replace("//", "//me:word@")
        # A receiver knows a row that it has by its key.
        rows = lambda: list({got.key: got.row["id"] for got in hook.requests if got.row.get("x") != "bad"}.values())  # noqa: E731
        yield Destination(http_spec(url), rows, poison, keeps_position=False)
    elif kind == "parquet":
        folder = tmp_path / "out"

        def read() -> list[int]:
            if not list(folder.glob("*.parquet")):
                return []
            return [
                row[0]
                for row in duckdb.sql(f"select id from read_parquet('{folder}/*.parquet') order by id").fetchall()
            ]

        interval = pa.array([None, pa.MonthDayNano([1, 2, 3]), None], pa.month_day_nano_interval())
        yield Destination(parquet_spec(folder), read, interval)
    elif kind == "table":
        address, run = request.getfixturevalue("dsn"), request.getfixturevalue("query")

        def select() -> list[int]:
            if run("select to_regclass('out')") == [(None,)]:
                return []
            return [row[0] for row in run("select id from out order by id")]

        yield Destination(table_spec(address, "out", key=columns), select, pa.array(["a", "b\0", "c"]))
    else:
        uri, database = request.getfixturevalue("mongo").uri, f"contract_{uuid.uuid4().hex[:10]}"

        def find() -> list[int]:
            from pymongo import MongoClient

            with MongoClient(uri) as client:
                return sorted(document["id"] for document in client[database]["out"].find())

        yield Destination(
            mongo_spec(uri, f"{database}.out", key=columns), find, pa.array([1, 2**64 - 1, 3], pa.uint64())
        )


def opened(there: Destination, context: Context) -> Sink:
    return there.spec.sink(context)


def part(first: int, end: int, *, rows: int | None = None, x: pa.Array | None = None) -> SinkBatch:
    """Rows whose ids are their offsets."""
    offsets = np.arange(first, end if rows is None else first + rows)
    columns = {"id": pa.array(offsets, pa.int64()), **({} if x is None else {"x": x})}
    return SinkBatch("in", first, end, Batch.of(columns), offsets)


def test_rows_are_there_and_a_resume_starts_behind_them(there: Destination) -> None:
    context = Context()
    sink = opened(there, context)
    assert sink.open() == 0
    sink.deliver(part(0, 3))
    assert there.ids() == [0, 1, 2]
    sink.deliver(part(3, 5))
    sink.close()
    again = opened(there, context)
    assert again.open() == 5
    again.deliver(part(5, 6))
    again.close()
    assert there.ids() == [0, 1, 2, 3, 4, 5]
    assert context.refused == {}
    assert context.position == (0 if there.keeps_position else 6)


def test_a_part_without_rows_moves_the_position(there: Destination) -> None:
    context = Context()
    sink = opened(there, context)
    sink.open()
    sink.deliver(part(0, 7, rows=0))
    sink.deliver(part(7, 9, rows=1))
    sink.close()
    again = opened(there, context)
    assert again.open() == 9
    again.close()
    assert there.ids() == [7]


def test_a_row_that_is_refused_is_told_by_its_offset_and_the_others_are_there(there: Destination) -> None:
    if there.poison is None:
        pytest.skip("it takes everything")
    context = Context()
    sink = opened(there, context)
    sink.open()
    sink.deliver(part(0, 3, x=there.poison))
    sink.close()
    assert there.ids() == [0, 2]
    assert list(context.refused) == [1]
    assert context.refused[1].strip()
    again = opened(there, context)
    assert again.open() == 3
    again.close()


def test_what_the_log_did_not_store_is_given_again_and_has_its_effect_once(there: Destination) -> None:
    context = Context()
    sink = opened(there, context)
    sink.open()
    sink.deliver(part(0, 2))
    context.stops = True
    given = part(2, 5, x=there.poison)
    if there.keeps_position and there.poison is not None:
        # A dead letter comes before the position that passes its row.
        with pytest.raises(Stopped):
            sink.deliver(given)
    elif not there.keeps_position:
        with pytest.raises(Stopped):
            sink.deliver(given)
    sink.close()
    context.stops = False
    again = opened(there, context)
    assert again.open() == 2
    again.deliver(given)
    again.close()
    expected = [0, 1, 2, 3, 4] if there.poison is None else [0, 1, 2, 4]
    assert sorted(set(there.ids())) == expected
    assert there.ids() == expected or not there.once
    assert list(context.refused) == ([] if there.poison is None else [3])


def test_a_position_of_another_log_is_none_of_this_one(there: Destination) -> None:
    if not there.keeps_position:
        pytest.skip("the log keeps its position")
    sink = opened(there, Context())
    sink.open()
    sink.deliver(part(0, 3))
    sink.close()
    other = opened(there, Context("another log"))
    try:
        position = other.open()
    except SinkError as error:
        assert "another log" in error.message and error.advice
    else:
        assert position == 0
    finally:
        other.close()


def test_it_ends_at_any_time(there: Destination) -> None:
    never = opened(there, Context())
    never.cancel()
    never.close()
    never.close()
    sink = opened(there, Context())
    sink.open()
    canceller = threading.Thread(target=sink.cancel)
    canceller.start()
    canceller.join()
    sink.close()
    sink.close()


def test_a_specification_is_frozen_and_shows_no_secret(there: Destination) -> None:
    spec = there.spec
    assert spec.kind and spec.where
    assert not {"word", "me:"} & set(spec.where.split("/")) and "word" not in repr(spec) + spec.where
    assert set(spec.key) <= set(spec.columns)
    assert all(isinstance(topic, str) for topic in spec.writes)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.key = ()  # type: ignore[misc]  # that it cannot be is the point
    sink = opened(there, Context())
    assert sink.rows >= 1 and sink.linger >= 0
    sink.close()
