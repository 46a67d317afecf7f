"""Every column type into every sink: what it delivers is the row's value, what it refuses has a reason, and it goes on.

The sinks' own objects with a context that notes; a real PostgreSQL, a receiver, a server of MongoDB's protocol.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from headrace import plain_values
from headrace.batch import Batch, dead_letters
from headrace.sinks.base import Reason, SinkBatch, SinkSpec
from headrace.sinks.console import ConsoleSpec
from headrace.sinks.http import http_spec
from headrace.sinks.mongo import mongo_spec
from headrace.sinks.parquet import parquet_spec
from headrace.sinks.table import table_spec
from headrace.testing.servers import MongoDbServer
from tests.conftest import Query
from tests.sinks.receiver import Receiver

from .conftest import Captured
from .test_every_type import gathered

# Types with something odd about them, where all of them would take too long.
CHOSEN = (
    *("text", "date", "timestamp with time zone", "double precision", "numeric", "numeric(10,2)", "bytea", "jsonb"),
    *("integer[]", "boolean", "bigint"),
)


class Noted:
    """A context that notes what a sink refuses and keeps."""

    app, log_id = "shop", "this log"

    def __init__(self, sink: str, topic: str) -> None:
        self.sink, self.topic = sink, topic
        self.position = 0
        self.refused: list[Reason] = []

    def refuse(self, part: SinkBatch, reasons: Sequence[Reason]) -> None:
        rows = np.array([row for row, _ in reasons], np.int64)
        letters = dead_letters(part.batch.take(rows), [reason for _, reason in reasons], stage="sink")
        assert all(json.loads(row) for row in letters.column("row").to_pylist())
        self.refused += reasons

    def keep(
        self, position: int, *, outputs: Iterable[Any] = (), refused: tuple[SinkBatch, Sequence[Reason]] | None = None
    ) -> None:
        list(outputs)
        if refused is not None:
            self.refuse(*refused)
        self.position = position

    def pause(self, seconds: float, why: str) -> None:
        raise AssertionError(f"the sink stands: {why}")


def deliver(spec: SinkSpec, kind: str, batches: Sequence[Batch]) -> list[Reason]:
    """All of a topic's rows, again after a restart; what was refused."""
    context = Noted("sink", kind)
    for _ in range(2):  # the second time everything is there already
        sink = spec.sink(context)  # type: ignore[arg-type]
        try:
            offset = sink.open()
            start = 0
            for batch in batches:
                end = start + batch.num_rows
                if end > offset:
                    sink.deliver(SinkBatch(kind, start, end, batch, np.arange(start, end)))
                start = end
        finally:
            sink.close()
    return context.refused


def same(found: Sequence[Any], batches: Sequence[Batch], refused: Sequence[Reason]) -> None:
    rows = sum(batch.num_rows for batch in batches)
    assert len(found) + len(refused) == rows, f"{len(found)} delivered and {len(refused)} refused of {rows}"
    assert all(reason for _, reason in refused)


def test_the_console_prints_everything(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    with gathered() as check:
        for kind, batches in captured.batches.items():
            for form in ("lines", "table"):

                def run(kind: str = kind, batches: list[Batch] = batches, form: Any = form) -> None:
                    out = io.StringIO()
                    monkeypatch.setattr("sys.stdout", out)
                    refused = deliver(ConsoleSpec(form), kind, batches)
                    monkeypatch.undo()
                    if form == "lines":
                        same([json.loads(line) for line in out.getvalue().split("\n") if line], batches, refused)

                check(f"{kind} as {form}", run)


@pytest.mark.parametrize("by", [None, "v"])
def test_files_of_parquet_hold_everything(captured: Captured, tmp_path: Path, by: str | None) -> None:
    def run(kind: str, batches: list[Batch], by: str | None) -> None:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        refused = deliver(parquet_spec(folder, partition_by=by, rows_per_file=1), kind, batches)
        files = [path for path in folder.rglob("*.parquet") if not path.name.startswith(".")]
        same([row for file in files for row in range(pq.ParquetFile(file).metadata.num_rows)], batches, refused)
        if by is None:
            stored = [
                key for file in sorted(files) for key in plain_values.keys(pq.ParquetFile(file).read().column("v"))
            ]
            given = [key for batch in batches for key in plain_values.keys(batch.column("v"))]
            assert sorted(map(repr, stored)) == sorted(map(repr, given))

    with gathered() as check:
        for kind in captured.kinds(every=False) if by is None else CHOSEN:
            check(kind, lambda kind=kind: run(kind, captured.batches[kind], by))


def test_a_receiver_gets_everything(captured: Captured) -> None:
    receiver = Receiver()
    with receiver, gathered() as check:
        for kind, batches in captured.batches.items():

            def run(kind: str = kind, batches: list[Batch] = batches) -> None:
                receiver.requests.clear()
                refused = deliver(http_spec(receiver.url), kind, batches)
                same([request.row for request in receiver.requests], batches, refused)

            check(kind, run)


@pytest.mark.parametrize("key", ["id", "v", None])
def test_tables_hold_everything(captured: Captured, dsn: str, query: Query, key: str | None) -> None:
    def run(number: int, batches: list[Batch]) -> None:
        refused = deliver(table_spec(dsn, f"t{number}", key=key), str(number), batches)
        found = query(f"select count(*) from t{number}")[0][0] if len(refused) < _rows(batches) else 0
        if key != "v":
            same([None] * found, batches, refused)
        assert all(reason for _, reason in refused)

    kinds = {name: captured.batches[name] for name in (CHOSEN if key != "id" else captured.kinds(every=False))}
    with gathered() as check:
        for number, (kind, batches) in enumerate(kinds.items()):
            check(kind, lambda number=number, batches=batches: run(number, batches))


def _rows(batches: Sequence[Batch]) -> int:
    return sum(batch.num_rows for batch in batches)


def test_a_table_has_the_times_of_postgresql(captured: Captured, dsn: str, query: Query) -> None:
    for kind in ("date", "timestamp without time zone", "timestamp with time zone"):
        refused = deliver(table_spec(dsn, f"t {kind}", key="id"), kind, captured.batches[kind])
        assert not refused
        stored = {row[0] for row in query(f'select v::text from "t {kind}"')}
        given = {text for batch in captured.batches[kind] for text in plain_values.texts(batch.column("v"))}
        assert stored == given


@pytest.mark.parametrize("key", ["id", "v", None])
def test_documents_hold_everything(captured: Captured, mongo: MongoDbServer, key: str | None) -> None:
    kinds = captured.batches if key is None else {name: captured.batches[name] for name in CHOSEN}

    def run(number: int, batches: list[Batch]) -> None:
        spec = mongo_spec(mongo.uri, f"hostile{key}.c{number}", key=key)
        refused = deliver(spec, str(number), batches)
        assert all(reason for _, reason in refused)
        assert key == "v" or len(refused) < _rows(batches) or not batches

    with gathered() as check:
        for number, (kind, batches) in enumerate(kinds.items()):
            check(kind, lambda number=number, batches=batches: run(number, batches))
