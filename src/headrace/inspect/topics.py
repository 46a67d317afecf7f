"""Topics of a log, or of a whole cluster: their figures, their rows as a table, and their rows line by line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from headrace import plain_values
from headrace.batch import Batch, present
from headrace.formats.topic_formats import ForeignFormats, codec_for
from headrace.inspect.messages import messages, plain, rows, to_json, wire_lines
from headrace.inspect.query import empty_topic, joined, topic_table, with_numbers
from headrace.inspect.rows import no_topic
from headrace.log.base import Log, TopicInfo
from headrace.log.kafka_view import KafkaView, TopicView
from headrace.plan.plan import INTERNAL
from headrace.wire import WireMessages

FOLLOW_SECONDS = 0.05
AWAIT_SECONDS = 0.2
READ_ROWS = 8192
Report = Callable[[str], None]


def topic_row(info: TopicInfo) -> dict[str, Any]:
    """Return the figures of a topic of a log."""
    return {
        "topic": info.name,
        "rows": info.rows,
        "bytes": info.bytes,
        "first_offset": info.first if info.rows else None,
        "last_offset": info.end - 1 if info.rows else None,
        "first_ts": iso_time(info.first_ts_us),
        "last_ts": iso_time(info.last_ts_us),
    }


def seen_row(seen: TopicView, newest_us: int = 0) -> dict[str, Any]:
    """Return the figures of a topic of a cluster: by its pipeline's log, or by the broker, which counts messages."""
    where = {"partitions": len(seen.end), "pipeline": seen.pipeline or None}
    if seen.info is not None:
        return {**topic_row(seen.info), **where}
    numbered = len(seen.end) == 1 and seen.rows > 0
    return {
        "topic": seen.topic,
        "rows": seen.rows,
        "bytes": None,
        "first_offset": seen.first[0] if numbered else None,
        "last_offset": seen.end[0] - 1 if numbered else None,
        "first_ts": None,
        "last_ts": iso_time(newest_us),
        **where,
    }


def iso_time(ts_us: int) -> str | None:
    """Return a time in ISO 8601; None where there is none."""
    return datetime.fromtimestamp(ts_us / 1e6, UTC).isoformat(timespec="milliseconds") if ts_us else None


def about_topic(held: Log | KafkaView, topic: str) -> tuple[dict[str, Any], Batch | None]:
    """Return a topic's figures, and its newest rows."""
    return _about_seen(held, topic) if isinstance(held, KafkaView) else _about(held, topic)


def _about(log: Log, topic: str) -> tuple[dict[str, Any], Batch | None]:
    info = _topic(log, topic)
    entries = log.read_topic(topic, offset=max(info.first, info.end - 1))
    return topic_row(info), Batch(entries[-1].records) if entries else None


def columns_of(held: Log | KafkaView, topic: str) -> list[dict[str, Any]]:
    """Return the columns that a topic's rows have had in its life, with the offsets of the first row and of the last.

    A column that changed its type is named once for each type. ``to`` is None while rows still have it; of a topic of
    others on a cluster the columns are those of its newest messages, from an offset that is not known.
    """
    log = held.owner(topic) if isinstance(held, KafkaView) else held
    if log is None:
        _, batch = about_topic(held, topic)
        return [] if batch is None else [_column(field, None) for field in batch.schema]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for offset, schema in log.schemas(topic):
        names = {(field.name, str(field.type)) for field in schema}
        for name, column in found.items():
            if name not in names and column["to"] is None:
                column["to"] = offset - 1
        for field in schema:
            found.setdefault((field.name, str(field.type)), _column(field, offset))["to"] = None
    return list(found.values())


def _column(field: pa.Field, offset: int | None) -> dict[str, Any]:
    return {"column": field.name, "type": str(field.type), "from": offset, "to": None}


def _about_seen(view: KafkaView, topic: str) -> tuple[dict[str, Any], Batch | None]:
    seen = view.seen(topic)
    log = view.owner(topic)
    if log is not None:
        about, batch = _about(log, topic)
        return {**about, **seen_row(seen), "format": view.format_of(topic)}, batch
    last = view.last(topic)
    name, decoded = ForeignFormats(codec_for())(last)
    newest = int(last.ts_ms.max()) * 1000 if len(last) else 0
    return {**seen_row(seen, newest), "format": name.lstrip("~") if len(last) else None}, (
        decoded.parts[-1][0] if decoded.parts else None
    )


def _topic(log: Log, name: str) -> TopicInfo:
    infos = log.topics()
    if name not in infos:
        raise no_topic(log, name)
    return infos[name]


# -- rows -------------------------------------------------------------------------------------------------------------


def view_table(view: KafkaView, topic: str, report: Report) -> pa.Table:
    """Return a whole topic of a cluster; of others' topics with ``partition`` and ``offset`` of each message."""
    log = view.owner(topic)
    if log is not None:
        return topic_table(log, topic)
    tables, bad = [], 0
    decode = ForeignFormats(codec_for())
    for page in view.messages(topic):
        _, decoded = decode(page)
        bad += len(decoded.bad)
        for batch, at in decoded.parts:
            numbers = {"partition": pa.array(page.partitions[at]), "offset": pa.array(page.offsets[at])}
            tables.append(with_numbers(present(batch.records), **numbers))
    if bad:
        report(f"{bad} messages of {topic} cannot be decoded and are left out")
    return joined(tables)


def view_shape(view: KafkaView, topic: str) -> pa.Table:
    """Return none of a topic's rows, with the columns of its newest ones."""
    _, batch = _about_seen(view, topic)
    return empty_topic(None if batch is None else batch.records.slice(0, 0))


def topic_lines(
    held: Log | KafkaView,
    topic: str | None,
    start: int = 0,
    *,
    follow: bool = False,
    as_messages: bool = False,
    format_: str | None = None,
    report: Report,
) -> Iterator[str]:
    """Yield rows as JSON, one a line.

    Args:
        topic: None: every topic, in the order of the log.
        start: the first offset.
        follow: go on as rows arrive.
        as_messages: as `kcat -J` prints messages.
        format_: of messages of others, where they do not show it themselves.
        report: told of messages that cannot be decoded, and that a topic is waited for.

    Raises:
        LogError: there is no such topic.
    """
    if not isinstance(held, KafkaView):
        return _log_lines(held, topic, start, follow, as_messages)
    if topic is None:
        return _log_lines(held.log, None, start, follow, as_messages)
    if follow:
        _await_topic(held, topic, report)
    held.seen(topic)  # refuses one that is not there
    log = held.owner(topic)
    if as_messages:
        return (
            to_json(line) for page in held.messages(topic, offset=start, follow=follow) for line in wire_lines(page)
        )
    if log is not None:
        return _log_lines(log, topic, start, follow, as_messages)
    decode = ForeignFormats(codec_for(), {topic: format_} if format_ else {})
    pages = held.messages(topic, offset=start, follow=follow)
    return (line for page in pages for line in _decoded_lines(page, decode, report))


def _await_topic(view: KafkaView, topic: str, report: Report) -> None:
    if topic not in view.topics():
        report(f"waiting for the topic {topic}")
    while topic not in view.topics():
        time.sleep(AWAIT_SECONDS)


def _decoded_lines(page: WireMessages, decode: ForeignFormats, report: Report) -> Iterator[str]:
    """Yield rows of messages in their order; those that cannot be decoded are reported."""
    if not len(page):
        return
    _, decoded = decode(page)
    found: list[tuple[int, str]] = []
    for batch, at in decoded.parts:
        shown = plain_values.rows(present(batch.records))
        found += [(index, to_json(plain(row))) for index, row in zip(np.asarray(at).tolist(), shown, strict=True)]
    for index, reason in decoded.bad:
        where = f"{page.topic} partition {page.partitions[index]} offset {page.offsets[index]}"
        report(f"{where}: {reason}")
    for _, line in sorted(found, key=itemgetter(0)):
        yield line


def _log_lines(log: Log, topic: str | None, start: int, follow: bool, as_messages: bool) -> Iterator[str]:
    if topic is not None:
        _topic(log, topic)
    convert = messages if as_messages else rows
    at, after = start, 0
    while True:
        read = (
            log.read(after=after, limit=READ_ROWS)
            if topic is None
            else log.read_topic(topic, offset=at, limit=READ_ROWS)
        )
        for entry in read:
            after, end = entry.slice, entry.offset + entry.records.num_rows
            if end > at and (topic is not None or not entry.topic.startswith(INTERNAL)):
                for row in convert(entry, max(at, entry.offset), end):
                    yield to_json(row if as_messages or topic is not None else {"topic": entry.topic, **row})
            at = at if topic is None else max(at, end)
        if not read:
            if not follow:
                return
            time.sleep(FOLLOW_SECONDS)
