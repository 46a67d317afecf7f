"""Rows that a person appends: into a stopped pipeline's file, through a pipeline in this process, or on a cluster.

Each row is there once per token, which a page makes with its form: it is the name of a producer
(`headrace.produce.producer`), and a second click, or a request that a browser repeats, finds its rows there.
"""

from __future__ import annotations

import ast
import base64
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.batch import is_meta
from headrace.errors import DeclarationError, FormatError
from headrace.formats.json_columns import ROW, Column
from headrace.formats.topic_formats import COLUMNS, Decision, codec_for
from headrace.kafka.settings import SCHEME, KafkaLocation
from headrace.log.base import Log, walk
from headrace.log.kafka import KafkaLog
from headrace.plain_values import rows
from headrace.plan.plan import INTERNAL
from headrace.produce.files import Decided
from headrace.produce.inputs import Input
from headrace.produce.producer import Appender, EventColumns, Throttle, append_all, open_for
from headrace.ui.read.produced import message_of
from headrace.ui.site import Site

SECONDS = 30.0
LONGEST_TOKEN = 100
# A file's log has one writer: rows of two requests wait for each other.
_writing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Appended:
    """What came of it.

    Attributes:
        rows: those that are new; ``there``: those that were there already.
        first: offset from which on the new ones are found; None where there are none.
        message: partition and offset of the first one's message, as ``PARTITION:OFFSET``, where pipelines that read the
            topic number its rows themselves; "" where they do not.
    """

    rows: int
    there: int
    first: int | None
    message: str = ""


@dataclass(slots=True)
class GivenRows:
    """Rows to append: a batch of them, or a file.

    Attributes:
        batch: typed rows; None: those of the file.
        file: of JSON lines, CSV or Parquet, by its ending.
    """

    batch: pa.RecordBatch | None = None
    file: Path | None = None
    column: Column = field(default=ROW)

    def batches(self) -> Iterator[Decided]:
        """Read them from the first one on."""
        if self.batch is not None:
            yield self.batch, None
        else:
            yield from Input(self.file, column=self.column).batches()


class _Quiet:
    """A page has no progress bar: the request waits."""

    def advance(self, done: int) -> None: ...

    def report(self, message: str) -> None: ...


def append(site: Site, topic: str, given: GivenRows, token: str, *, key: Sequence[str] = ()) -> Appended:
    """Append rows to a topic, each once for a token.

    Raises:
        DeclarationError: rows of people do not belong there, or the pipeline takes none for the topic.
        LogLocked: a pipeline that runs in another process writes this file.
        FormatError: they cannot be read.
    """
    if topic.startswith((INTERNAL, "__")) or topic.endswith(".dlq"):
        raise DeclarationError(f"«{topic}» is written by Headrace alone", advice="Choose another topic.")
    if not token or len(token) > LONGEST_TOKEN:
        raise DeclarationError("the form has no token", advice="Load the page again.")
    subject = site.subject
    log = subject.log_of(topic) or subject.log
    info = log.topics().get(topic) if log is not None else None
    end = 0 if info is None else info.end
    where = subject.location
    if site.models is not None and subject.view is None:
        try:
            return _through_pipeline(site, topic, given, token, key, end)
        except DeclarationError:
            if not where.startswith(SCHEME):  # beside a file's one writer nobody else writes
                raise
    if where.startswith(SCHEME):
        # A topic that others read has a log of its own: nobody's pipeline gets a second writer.
        where = f"{SCHEME}{KafkaLocation.parse(where).bootstrap}"
    with _writing, closing(open_for(where, topic, codec_for())) as held:
        appender = Appender(held, topic, token, EventColumns(tuple(key), first=end))
        there = appender.skipped
        if given.batch is not None:
            if not there:
                appender.append(given.batch)
        else:
            source = Input(given.file, column=appender.column)
            append_all(source, appender, Throttle(), None, _Quiet())
        figures = appender.figures()
        first = figures["first_offset"]
        message = message_of(held, topic, first) if first is not None and isinstance(held, KafkaLog) else ""
    return Appended(figures["rows"], there, first, message)


def _through_pipeline(site: Site, topic: str, given: GivenRows, token: str, key: Sequence[str], end: int) -> Appended:
    """Append rows through the pipeline of this process."""
    assert site.models is not None
    log = site.subject.log
    decided = log.records(COLUMNS, topic).get(topic) if log is not None else None
    given.column = (Decision.load(decided).columns if decided else None) or ROW
    new = at = 0
    first: pa.RecordBatch | None = None
    for batch, _ in given.batches():
        first = batch if first is None else first
        new += site.models.append(topic, batch, key=key, producer_id=token, sequence=at, timeout=SECONDS)
        at += batch.num_rows
    place = _place_of(log, topic, end, first) if new and log is not None and first is not None else None
    return Appended(new, at - new, place)


def _place_of(log: Log, topic: str, since: int, batch: pa.RecordBatch) -> int | None:
    """Return the offset of a row that was just appended; others append at the same time."""
    wanted = rows(batch.slice(0, 1))[0]
    for entry in walk(log, topic, since):
        for row, values in enumerate(rows(entry.records)):
            if entry.offset + row >= since and all(values.get(name) == value for name, value in wanted.items()):
                return entry.offset + row
    return None


def row_of_texts(schema: pa.Schema, texts: dict[str, str | None]) -> pa.RecordBatch:
    """Return one row of the values that a form has, with a topic's types; an empty one is NULL.

    Raises:
        FormatError: a value is none of its column's type.
    """
    arrays = []
    for name in schema.names:
        kind, text = schema.field(name).type, texts.get(name)
        try:
            arrays.append(pa.nulls(1, kind) if text is None or text == "" else _typed(text, kind))
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise FormatError(
                f"«{name}»: {text!r:.80} is no {kind} ({error})", advice="Correct it; an empty field is NULL."
            ) from error
    return pa.RecordBatch.from_arrays(arrays, names=schema.names)


def row_of_json(schema: pa.Schema, row: dict[str, Any]) -> pa.RecordBatch:
    """Return one row of JSON values, as dead letters hold them, with a topic's types.

    Columns that the topic has not keep the types that their values have.

    Raises:
        FormatError: a value is none of its column's type.
    """
    arrays = {}
    for name, value in row.items():
        if is_meta(name):
            raise FormatError(f"«{name}» is a name of Headrace's own", advice="Leave it out.")
        kind = schema.field(name).type if name in schema.names else None
        try:
            arrays[name] = pa.array([value]) if kind is None else _of_json(value, kind)
        except (pa.ArrowException, ValueError, TypeError, OverflowError, SyntaxError) as error:
            raise FormatError(f"«{name}»: {value!r:.80} is no {kind} ({error})", advice="Correct it.") from error
    return pa.RecordBatch.from_pydict(arrays)


def _of_json(value: Any, kind: pa.DataType) -> pa.Array:
    if value is None:
        return pa.nulls(1, kind)
    if isinstance(value, str):
        if value.startswith(("b'", 'b"')) and _is_bytes(kind):  # as Python prints them, where a letter was written
            return pa.array([ast.literal_eval(value)], kind)
        return pa.array([value], kind) if value == "" else _typed(value, kind)
    if pa.types.is_decimal(kind):
        return _typed(str(value), kind)
    return pa.array([value], kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _typed(text: str, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return _typed(text, kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.array([text], kind)
    if _is_bytes(kind):
        return pa.array([base64.b64decode(text, validate=True)], kind)
    if pa.types.is_nested(kind):
        return pa.array([json.loads(text)], kind)
    if pa.types.is_null(kind):
        return pa.array([text])
    return pa.array([text.strip()], pa.string()).cast(kind)
