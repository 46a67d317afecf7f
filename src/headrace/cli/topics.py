"""``headrace topics …``: list, show, cat, copy, create, delete; of a file's log, or of everything on a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import typer

from headrace import plain_values
from headrace.batch import Batch, present
from headrace.cli.console import copy_progress, print_table, seen_row, short_topic, talk, topic_row
from headrace.cli.log import JsonOption, LogOption, location, looking
from headrace.cli.topics_change import check_new, create_on_cluster, delete_in_file, delete_on_cluster
from headrace.errors import DeclarationError, LogError
from headrace.formats.topic_formats import ForeignFormats, TopicCodec, checked_format, codec_for
from headrace.inspect.messages import messages, plain, rows, to_json, wire_lines
from headrace.inspect.query import joined, topic_table, with_numbers
from headrace.kafka.settings import SCHEME, KafkaLocation
from headrace.log import open_log
from headrace.log.base import Log, TopicInfo
from headrace.log.kafka_view import KafkaView
from headrace.plan.plan import INTERNAL
from headrace.wire import WireMessages

topics = typer.Typer(help="Look at topics, make and delete them: a log's, or a Kafka cluster's.", no_args_is_help=True)
FOLLOW_SECONDS = 0.05
AWAIT_SECONDS = 0.2


@topics.command("list")
def topics_list(
    log: LogOption = None,
    as_json: JsonOption = False,
    internal: Annotated[bool, typer.Option("--internal", help="Headrace's and Kafka's own topics too.")] = False,
) -> None:
    """Rows, bytes, first and last offset and time of every topic.

    Example: headrace topics list --log iris.headrace
    """
    with looking(log) as held:
        if isinstance(held, KafkaView):
            infos = [seen_row(held.seen(name)) for name in held.names(internal=internal)]
        else:
            infos = [topic_row(one) for one in held.topics().values() if internal or not one.name.startswith(INTERNAL)]
    if as_json:
        print(to_json(infos))
    else:
        print_table([short_topic(info) for info in infos], title="topics")


@topics.command("show")
def topics_show(topic: Annotated[str, typer.Argument()], log: LogOption = None, as_json: JsonOption = False) -> None:
    """One topic: its figures, its key and its columns.

    Example: headrace topics show iris_predictions --log iris.headrace
    """
    with looking(log) as held:
        about, batch = _about_seen(held, topic) if isinstance(held, KafkaView) else _about(held, topic)
    columns = [] if batch is None else [{"column": f.name, "type": str(f.type)} for f in batch.schema]
    about |= {"key": [] if batch is None else list(batch.key_columns), "columns": columns}
    if as_json:
        print(to_json(about))
    else:
        shown = [{"": name, "value": value} for name, value in about.items() if name not in ("columns", "topic")]
        print_table(shown, title=topic)
        print_table(columns, title="columns")


@topics.command("cat")
def topics_cat(
    topic: Annotated[str | None, typer.Argument(help="The topic; or --all.")] = None,
    log: LogOption = None,
    start: Annotated[int | None, typer.Option("--from", min=0, help="First offset.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="At most so many rows.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as rows arrive.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With offset, ts, headers and key, as kcat -J.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every topic, in the order of the log.")] = False,
    format_: Annotated[
        str | None, typer.Option("--format", help="Of a Kafka topic whose messages do not show it: csv, string, bytes.")
    ] = None,
) -> None:
    """Rows as JSON, one a line, up to the last offset.

    Example: headrace topics cat iris_predictions --log iris.headrace --limit 3
    """
    if (topic is None) == (not everything):
        raise typer.BadParameter("name a topic, or give --all")
    if limit == 0:
        return
    printed = 0
    with looking(log) as held:
        for line in _lines(held, topic, start or 0, follow, as_json, checked_format(format_) if format_ else None):
            print(line, flush=follow)
            printed += 1
            if printed == limit:
                break


@topics.command("copy")
def topics_copy(
    origin: Annotated[str, typer.Option("--from", help="The log: a path, or kafka://host:port/NAME.")],
    target: Annotated[
        str, typer.Option("--to", help="Where none is: a path, kafka://host:port or kafka://host:port/NAME.")
    ],
    format_: Annotated[str, typer.Option("--format", help="How rows are written to a cluster.")] = "json",
    as_json: JsonOption = False,
) -> None:
    """Move a whole log: topics, positions, models, checkpoints. Stop the pipeline first; it goes on with the copy.

    Example: headrace topics copy --from iris.headrace --to kafka://127.0.0.1:9092
    """
    from headrace.log.copy import copy_log

    read = codec_for()
    written = TopicCodec(checked_format(format_), registry=read.registry)
    with copy_progress(show=not as_json) as on_rows:
        done = copy_log(origin, target, codec=read, target_codec=written, on_rows=on_rows)
    if as_json:
        figures = {name: getattr(done, name) for name in ("topics", "rows", "slices", "records")}
        print(to_json({"from": origin, "to": done.location, **figures}))
        return
    talk.print(
        f"{done.topics} topics, {done.rows} rows in {done.slices} slices and {done.records} records are now in "
        f"{done.location}",
        highlight=False,
        soft_wrap=True,
    )
    talk.print(f"Run the pipeline with --log {done.location}; {origin} is as it was.", highlight=False, soft_wrap=True)


@topics.command("create")
def topics_create(
    topic: Annotated[str, typer.Argument(help="Its name.")],
    partitions: Annotated[int | None, typer.Option(min=1, help="Of a topic on Kafka; 1 if left out.")] = None,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a topic without rows. Topics that rows are written to need not be made: they come with the first row.

    Example: headrace topics create clicks --partitions 3 --log kafka://127.0.0.1:9092
    """
    where = location(log)
    if where.startswith(SCHEME):
        made = create_on_cluster(KafkaLocation.parse(where), topic, partitions)
    else:
        if partitions is not None:
            raise DeclarationError("a topic of a file's log has no partitions", advice="Leave out --partitions.")
        check_new(topic)
        with closing(open_log(where, writer=True)) as held, held.transaction() as transaction:
            transaction.create_topic(topic)
        made = {"topic": topic, "log": where}
    if as_json:
        print(to_json(made))
    else:
        talk.print(f"the topic {topic} is made", highlight=False)


@topics.command("delete")
def topics_delete(
    topic: Annotated[str, typer.Argument(help="Its name.")],
    force: Annotated[bool, typer.Option("--force", help="Also one that a model or stream of a log uses.")] = False,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a topic with its rows. On Kafka its consumer groups' offsets go with it.

    Refused where a model or a stream reads or writes the topic: without its rows, their past can be neither verified
    nor repeated. Headrace's own topics and Kafka's are never deleted.

    Example: headrace topics delete clicks --log shop.headrace
    """
    where = location(log)
    if topic.startswith("__"):
        raise DeclarationError(f"«{topic}» holds the state of others", advice="Its owner deletes it, nobody else.")
    if where.startswith(SCHEME):
        rows_gone = delete_on_cluster(KafkaLocation.parse(where), topic, force=force)
    else:
        rows_gone = delete_in_file(where, topic, force=force)
    if as_json:
        print(to_json({"topic": topic, "log": where, "rows": rows_gone}))
    else:
        talk.print(f"the topic {topic} and its {rows_gone} rows are deleted", highlight=False)


# -- one topic --------------------------------------------------------------------------------------------------------


def _about(log: Log, topic: str) -> tuple[dict[str, Any], Batch | None]:
    info = _topic(log, topic)
    entries = log.read_topic(topic, offset=max(info.first, info.end - 1))
    return topic_row(info), Batch(entries[-1].records) if entries else None


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
        known = ", ".join(one for one in infos if not one.startswith(INTERNAL)) or "none"
        raise LogError(f"the log has no topic «{name}»", advice=f"Its topics: {known}.")
    return infos[name]


# -- rows -------------------------------------------------------------------------------------------------------------


def view_table(view: KafkaView, topic: str) -> pa.Table:
    """A whole topic of a cluster; of others' topics with ``partition`` and ``offset`` of each message."""
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
        talk.print(f"{bad} messages of {topic} cannot be decoded and are left out", highlight=False)
    return joined(tables)


def _lines(
    held: Log | KafkaView, topic: str | None, start: int, follow: bool, as_json: bool, format_: str | None
) -> Iterator[str]:
    if not isinstance(held, KafkaView):
        return _log_lines(held, topic, start, follow, as_json)
    if topic is None:
        return _log_lines(held.log, None, start, follow, as_json)
    if follow:
        _await_topic(held, topic)
    held.seen(topic)  # refuses one that is not there
    log = held.owner(topic)
    if as_json:
        return (
            to_json(line) for page in held.messages(topic, offset=start, follow=follow) for line in wire_lines(page)
        )
    if log is not None:
        return _log_lines(log, topic, start, follow, as_json)
    decode = ForeignFormats(codec_for(), {topic: format_} if format_ else {})
    return (line for page in held.messages(topic, offset=start, follow=follow) for line in _decoded_lines(page, decode))


def _await_topic(view: KafkaView, topic: str) -> None:
    """Whoever follows a topic may be there before it is."""
    if topic not in view.topics():
        talk.print(f"waiting for the topic {topic}", highlight=False)
    while topic not in view.topics():
        time.sleep(AWAIT_SECONDS)


def _decoded_lines(page: WireMessages, decode: ForeignFormats) -> Iterator[str]:
    """Rows of messages in their order; those that cannot be decoded are said on standard error."""
    if not len(page):
        return
    _, decoded = decode(page)
    found: list[tuple[int, str]] = []
    for batch, at in decoded.parts:
        shown = plain_values.rows(present(batch.records))
        found += [(index, to_json(plain(row))) for index, row in zip(np.asarray(at).tolist(), shown, strict=True)]
    for index, reason in decoded.bad:
        where = f"{page.topic} partition {page.partitions[index]} offset {page.offsets[index]}"
        talk.print(f"{where}: {reason}", highlight=False, markup=False, soft_wrap=True)
    for _, line in sorted(found, key=lambda one: one[0]):
        yield line


def _log_lines(log: Log, topic: str | None, start: int, follow: bool, as_json: bool) -> Iterator[str]:
    if topic is not None:
        _topic(log, topic)
    convert = messages if as_json else rows
    source = _tail_topic(log, topic, start) if topic is not None else _tail_all(log, start)
    while True:
        advanced = False
        for entry, first in source():
            for row in convert(entry, first, entry.offset + entry.records.num_rows):
                yield to_json(row if as_json or topic is not None else {"topic": entry.topic, **row})
            advanced = True
        if not advanced:
            if not follow:
                return
            time.sleep(FOLLOW_SECONDS)


def _tail_topic(log: Log, topic: str, offset: int) -> Callable[[], Iterator[tuple[Any, int]]]:
    at = offset

    def more() -> Iterator[tuple[Any, int]]:
        nonlocal at
        for entry in log.read_topic(topic, offset=at, limit=8192):
            end = entry.offset + entry.records.num_rows
            if end > at:
                first = max(at, entry.offset)
                at = end
                yield entry, first

    return more


def _tail_all(log: Log, offset: int) -> Callable[[], Iterator[tuple[Any, int]]]:
    after = 0

    def more() -> Iterator[tuple[Any, int]]:
        nonlocal after
        for entry in log.read(after=after, limit=8192):
            after = entry.slice
            end = entry.offset + entry.records.num_rows
            if not entry.topic.startswith(INTERNAL) and end > offset:
                yield entry, max(offset, entry.offset)

    return more
