"""Every column type at every place: a table of both, so that a type (`values.py`) or a place that comes later is in.

The rule: the pipeline goes on, each row is handled or has a dead letter with a reason, and after a restart the same.
Each test goes through all types and says of which it does not hold.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

import headrace as hr
from headrace import plain_values
from headrace.batch import Batch, dead_letters
from headrace.cli.console import print_csv
from headrace.cli.main import app as command
from headrace.errors import FormatError
from headrace.formats.base import Format
from headrace.formats.factory import format_for
from headrace.formats.registry import SchemaRegistry
from headrace.inspect.messages import to_json
from headrace.inspect.query import query_topics, topic_table
from headrace.log import open_log
from headrace.testing.servers import SchemaRegistryServer
from headrace.transform.expressions import Filter, Select, Transform, WithColumns, operate, text
from headrace.wire import WireMessages

from .conftest import Captured
from .values import missing


@contextlib.contextmanager
def gathered() -> Iterator[Callable[[str, Callable[[], object]], None]]:
    """Run many checks; say all that failed."""
    failed: list[str] = []

    def check(what: str, run: Callable[[], object]) -> None:
        try:
            run()
        except Exception as error:
            failed.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")

    yield check
    assert not failed, f"{len(failed)} failed:\n" + "\n".join(failed)


def test_every_type_of_capture_is_in_the_table() -> None:
    assert not missing(), "give these types values in values.py"


def test_capture_takes_each_row_or_says_why_not(captured: Captured) -> None:
    with gathered() as check:
        for kind, count in captured.inserted.items():
            rows, dead = sum(batch.num_rows for batch in captured.batches[kind]), captured.dead[kind]

            def all_there(count: int = count, rows: int = rows, dead: list[str] = dead) -> None:
                assert rows + len(dead) == count, f"{rows} rows and {len(dead)} dead letters of {count}"
                assert all(dead), dead

            check(kind, all_there)


def test_snapshot_and_stream_say_the_same(captured: Captured) -> None:
    def told(batches: list[Batch], op: str) -> list[str]:
        chosen = [batch.filter(batch.op == ord(op)) for batch in batches]
        return sorted(repr(key) for choice in chosen for key in plain_values.keys(choice.column("v")))

    with gathered() as check:
        for kind, batches in captured.batches.items():

            def same(kind: str = kind, batches: list[Batch] = batches) -> None:
                assert told(batches, "r") == told(batches, "c")
                assert len({batch.rows.schema for batch in batches}) <= 1
                assert len(captured.dead[kind]) == 2 * len(set(captured.dead[kind]))

            check(kind, same)


# -- looking ----------------------------------------------------------------------------------------------------------


def seen(batch: Batch) -> None:
    for row in plain_values.rows(batch.rows):
        json.loads(to_json(row))
    for letter in dead_letters(batch, ["why"] * batch.num_rows, stage="learn").column("row").to_pylist():
        json.loads(letter)
    column = batch.column("v")
    assert len(plain_values.texts(column)) == len(plain_values.keys(column)) == batch.num_rows
    assert {type(value) for value in plain_values.texts(column)} <= {str, type(None)}
    hash(tuple(plain_values.keys(column)))


def test_rows_become_python_and_json(captured: Captured) -> None:
    with gathered() as check:
        for kind, batch in captured.each():
            check(kind, lambda batch=batch: seen(batch))


def test_whole_topics_are_read(captured: Captured) -> None:
    app = hr.App("captured", log=captured.log)

    def look(kind: str, topic: str) -> None:
        held = app.topic(topic).read()
        count = sum(batch.num_rows for batch in captured.batches[kind])
        assert len(held) == count
        assert repr(held) and held._repr_html_()
        frame = held.to_pandas()
        assert repr(frame) and len(frame) == count
        with contextlib.redirect_stdout(_Binary()):
            print_csv(topic_table(log, topic))
        assert sum(len(item) for item in app.topic(topic).dataset(7)) == count

    with gathered() as check, contextlib.closing(open_log(captured.log, writer=False)) as log:
        for kind, topic in captured.topics.items():
            check(kind, lambda kind=kind, topic=topic: look(kind, topic))


def test_topics_are_queried(captured: Captured) -> None:
    """All in one query, since a connection of DuckDB takes longer than the rows; one by one where that fails."""

    def query(topics: list[str]) -> None:
        parts = " positional join ".join(f'(select "v" v{i} from "{topic}")' for i, topic in enumerate(topics))
        found = query_topics(log, f"select * from {parts}")
        assert len(plain_values.rows(found)) == found.num_rows > 0
        with contextlib.redirect_stdout(_Binary()):
            print_csv(found)

    with contextlib.closing(open_log(captured.log, writer=False)) as log:
        try:
            query(list(captured.topics.values()))
        except Exception:
            with gathered() as check:
                for kind, topic in captured.topics.items():
                    check(kind, lambda topic=topic: query([topic]))


class _Binary(io.StringIO):
    """A standard output that takes bytes too."""

    buffer = io.BytesIO()


@pytest.mark.parametrize(
    "arguments", [("topics", "cat", "--all"), ("topics", "list"), ("topics", "cat", "--all", "--json")]
)
def test_commands_print_everything(captured: Captured, arguments: tuple[str, ...]) -> None:
    found = CliRunner().invoke(command, [*arguments, "--log", str(captured.log)])
    assert found.exit_code == 0, found.output[-2000:]
    if "cat" in arguments:
        assert all(json.loads(line) for line in found.stdout.rstrip("\n").split("\n"))


# -- operations -------------------------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[], Any]] = {
    "filter": lambda: Filter(pc.is_valid(pc.field("v"))),
    "filter by a function": lambda: Filter(lambda batch: pc.equal(batch.column("v"), batch.column("v"))),
    "select": lambda: Select(("id", "v"), {"again": "v"}),
    "a template": lambda: WithColumns({"said": text("{id}: {v}")}),
    "a computed column": lambda: WithColumns(
        {"w": pc.if_else(pc.is_valid(pc.field("v")), pc.field("v"), pc.field("v"))}
    ),
    "a sum": lambda: WithColumns({"w": pc.add(pc.field("v"), pc.field("v"))}),
    "a cast": lambda: WithColumns({"w": pc.field("v").cast(pa.int16())}),
    "a transform": lambda: Transform(lambda batch: batch.with_columns([("w", batch.column("v"))])),
    "a transform of python": lambda: Transform(
        lambda batch: batch.with_columns([("w", pa.array(plain_values.texts(batch.column("v")), pa.string()))])
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_give_each_row_or_a_reason(captured: Captured, name: str) -> None:
    operation = OPERATIONS[name]()

    def done(batch: Batch) -> None:
        good, bad = operate(batch, [operation])
        kept = batch.num_rows if not isinstance(operation, Filter) else None
        assert kept is None or sum(item.num_rows for item in good) + len(bad) == kept
        assert all(reason for _, reason in bad)

    with gathered() as check:
        for kind, batch in captured.each():
            check(kind, lambda batch=batch: done(batch))


# -- formats ----------------------------------------------------------------------------------------------------------

FORMATS = ("json", "json+schema", "json+envelope", "json+envelope+schema", "arrow", "csv", "string", "bytes")


@pytest.mark.parametrize("name", FORMATS)
def test_formats_give_back_what_they_were_given(captured: Captured, name: str) -> None:
    give_back(captured, format_for(name), name)


@pytest.mark.parametrize("name", ["avro", "avro+envelope", "jsonschema", "jsonschema+envelope"])
def test_formats_of_a_registry_give_back_what_they_were_given(
    captured: Captured, registry: SchemaRegistryServer, topic_prefix: str, name: str
) -> None:
    give_back(captured, format_for(name, registry=SchemaRegistry(registry.url)), name, prefix=topic_prefix)


def give_back(captured: Captured, form: Format, name: str, *, prefix: str = "h") -> None:
    def there_and_back(batch: Batch) -> None:
        topic = f"{prefix}.{len(topics)}"
        topics.append(topic)
        try:
            encoded = form.encode(topic, batch)
        except FormatError as error:
            assert error.message
            assert name in ("string", "bytes", "csv") or "max_bytes" in error.message, error.message
            return
        messages = WireMessages(
            topic, encoded.values, offsets=np.arange(len(encoded.values)), keys=encoded.keys, headers=encoded.headers
        )
        decoded = form.decode(messages, batch.rows.schema)
        assert not decoded.bad, decoded.bad[:1]
        found = plain_values.united([pa.Table.from_batches([part.rows]) for part, _ in decoded.parts])
        assert repr(plain_values.keys(found.column("v"))) == repr(plain_values.keys(batch.column("v")))

    topics: list[str] = []
    kinds = captured.batches if prefix == "h" else captured.kinds(every=False)
    with gathered() as check:
        for kind in kinds:
            for batch in captured.batches[kind]:
                check(kind, lambda batch=batch: there_and_back(batch))
