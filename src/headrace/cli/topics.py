"""``headrace topics …``: list, show, cat, copy, create, delete; of a file's log, or of everything on a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated

import numpy as np
import typer

from headrace.batch import is_meta
from headrace.cli.arguments import JsonOption, LogOption, WideOption, location, looking
from headrace.cli.console import (
    copy_progress,
    print_result,
    print_rows,
    print_table,
    print_utf8,
    print_values,
    report,
    short_topic,
)
from headrace.cli.events import with_events
from headrace.errors import FormatError
from headrace.formats.topic_formats import TopicCodec, checked_format, codec_for
from headrace.formats.transforms.chain import Refusal
from headrace.inspect.debezium import event_blocks
from headrace.inspect.messages import to_json
from headrace.inspect.topics import about_topic, columns_of, seen_row, topic_lines, topic_row
from headrace.log.kafka_view import KafkaView
from headrace.plan.plan import INTERNAL
from headrace.produce.topics import create, delete

topics = typer.Typer(help="Look at topics, make and delete them: a log's, or a Kafka cluster's.", no_args_is_help=True)


@topics.command("list")
def topics_list(
    log: LogOption = None,
    as_json: JsonOption = False,
    internal: Annotated[bool, typer.Option("--internal", help="Headrace's and Kafka's own topics too.")] = False,
    wide: WideOption = False,
) -> None:
    """Show rows, bytes, first and last offset and time of every topic.

    Example: headrace topics list --log iris.headrace
    """
    with looking(log) as held:
        if isinstance(held, KafkaView):
            infos = [seen_row(seen) for seen in held.seen_all(held.names(internal=internal))]
        else:
            infos = [
                topic_row(info) for info in held.topics().values() if internal or not info.name.startswith(INTERNAL)
            ]
    print_rows(infos, as_json=as_json, title="topics", short=short_topic, wide=wide)


@topics.command("show")
def topics_show(
    topic: Annotated[str, typer.Argument()],
    log: LogOption = None,
    as_json: JsonOption = False,
    wide: WideOption = False,
) -> None:
    """Show one topic: its figures, its key and its columns.

    The columns are those of the topic's life, with the offsets of the first row that has each and of the last one.

    Example: headrace topics show iris_predictions --log iris.headrace
    """
    with looking(log) as held:
        about, batch = about_topic(held, topic)
        columns = columns_of(held, topic)
    about |= {"key": [] if batch is None else list(batch.key_columns), "columns": columns}
    if as_json:
        print(to_json(about))
    else:
        shown = {name: value for name, value in about.items() if name not in ("columns", "topic")}
        print_values(shown, title=topic, wide=wide)
        own = [column for column in columns if not is_meta(column["column"])]
        lines = [{**column, "to": "now" if column["to"] is None else column["to"]} for column in own]
        print()
        print_table(lines, title="columns", wide=wide)


@topics.command("cat")
@with_events
def topics_cat(
    topic: Annotated[str | None, typer.Argument(help="The topic; or --all.")] = None,
    log: LogOption = None,
    start: Annotated[int | None, typer.Option("--from", min=0, help="First offset.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="At most so many rows.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as rows arrive.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With offset, ts, headers and key, as kcat -J.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every topic, in the order of the log.")] = False,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Of a Kafka topic whose messages do not show it: csv, string, bytes; or debezium-json: captured rows "
            "as the events that Debezium emits.",
        ),
    ] = None,
    schemas: Annotated[bool, typer.Option("--schemas", help="Of debezium-json: with the schemas.")] = False,
) -> None:
    """Print rows as JSON, one a line, up to the last offset.

    Example: headrace topics cat iris_predictions --log iris.headrace --limit 3
    """
    if (topic is None) == (not everything):
        raise typer.BadParameter("name a topic, or give --all")
    if limit == 0:
        return
    with looking(log) as held:
        if format_ == "debezium-json":
            refusals = _Refusals()
            opened = held.log if isinstance(held, KafkaView) else held
            blocks = event_blocks(opened, topic, schemas=schemas, follow=follow, on_refusal=refusals)
            for block in _up_to(limit, blocks):
                print_utf8(block, flush=follow)
            refusals.close()
            return
        lines = topic_lines(
            held,
            topic,
            start or 0,
            follow=follow,
            as_messages=as_json,
            format_=checked_format(format_) if format_ else None,
            report=report,
        )
        for line in islice(lines, limit):
            print(line, flush=follow)


def _up_to(limit: int | None, blocks: Iterable[memoryview]) -> Iterator[memoryview]:
    """Yield blocks of lines up to so many lines; of the last one what is needed."""
    left = limit
    for block in blocks:
        ends = () if left is None else np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
        if left is not None and left <= len(ends):
            yield block[: ends[left - 1] + 1]
            return
        yield block
        left = None if left is None else left - len(ends)


@dataclass
class _Refusals:
    """Records that transforms could not take: each is said; of those that are to be left out the first.

    Attributes:
        left_out: how many the connector leaves out, as ``errors.tolerance=all`` says; ``failed``: how many others.
        first: what was said of the first of these.
    """

    left_out: int = 0
    failed: int = 0
    first: str = ""

    def __call__(self, refusal: Refusal, tolerated: bool) -> None:
        """Count one."""
        if not tolerated or not self.left_out:
            report(str(refusal))
        self.left_out += tolerated
        self.failed += not tolerated
        if not tolerated:
            self.first = self.first or str(refusal)

    def close(self) -> None:
        """Say how many there were.

        Raises:
            FormatError: some were not to be left out.
        """
        if self.left_out:
            report(f"records that a transform could not take, left out as errors.tolerance=all says: {self.left_out:,}")
        if self.failed:
            raise FormatError(
                f"records that a transform could not take: {self.failed:,}; the first: {self.first}",
                advice="errors.tolerance=all in the connector's configuration says that they are to be left out.",
            )


@topics.command("copy")
@with_events
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
    report(
        f"{done.topics} topics, {done.rows} rows in {done.slices} slices and {done.records} records are now in "
        f"{done.location}"
    )
    report(f"Run the pipeline with --log {done.location}; {origin} is as it was.")


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
    made = create(location(log), topic, partitions)
    print_result(made, f"the topic {topic} is made", as_json=as_json)


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
    rows_gone = delete(where, topic, force=force)
    deleted = {"topic": topic, "log": where, "rows": rows_gone}
    print_result(deleted, f"the topic {topic} and its {rows_gone} rows are deleted", as_json=as_json)
