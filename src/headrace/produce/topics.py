"""Making and deleting topics of a log or a cluster, and finding those who use one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from headrace.errors import DeclarationError, LogMissing, TopicInUse
from headrace.formats.topic_formats import COLUMNS, codec_for
from headrace.kafka.cluster import FOR_EVER, Cluster
from headrace.kafka.settings import SCHEME, KafkaLocation
from headrace.log import open_log
from headrace.log.base import Log, no_such_topic, topic_exists, walk
from headrace.log.kafka import KafkaLog
from headrace.log.kafka_view import KafkaView, metadata_of
from headrace.plan.plan import INTERNAL

# Kinds of records that `headrace produce` keeps.
PRODUCED = {"producer", COLUMNS}


def check_new(topic: str) -> None:
    """Refuse a name that is none, or Headrace's own.

    >>> check_new("__headrace.iris.steps")
    Traceback (most recent call last):
    headrace.errors.DeclarationError: the topic name «__headrace.iris.steps» is Headrace's own
      → Choose another name.
    """
    if not topic or topic != topic.strip():
        raise DeclarationError(f"{topic!r} cannot name a topic")
    if topic.startswith("__") or topic.endswith(".dlq"):
        raise DeclarationError(f"the topic name «{topic}» is Headrace's own", advice="Choose another name.")


def create(where: str, topic: str, partitions: int | None) -> dict[str, Any]:
    """Make a topic without rows, in a file's log or on a cluster; returns what was made.

    Raises:
        DeclarationError: the name is none, or a file's topic is to have partitions.
        LogLocked: a pipeline is running on the file. LogError: there is one, or the broker refuses.
    """
    if where.startswith(SCHEME):
        return create_on_cluster(KafkaLocation.parse(where), topic, partitions)
    if partitions is not None:
        raise DeclarationError("a topic of a file's log has no partitions", advice="Leave out --partitions.")
    check_new(topic)
    with closing(open_log(where, writer=True)) as held, held.transaction() as transaction:
        transaction.create_topic(topic)
    return {"topic": topic, "log": where}


def delete(where: str, topic: str, *, force: bool) -> int:
    """Delete a topic with its rows; returns how many it held.

    Raises:
        DeclarationError: it holds the state of others. LogError: somebody uses it, or it is not there.
        LogLocked: a pipeline is running on the file.
    """
    if topic.startswith("__"):
        raise DeclarationError(f"«{topic}» holds the state of others", advice="Its owner deletes it, nobody else.")
    if where.startswith(SCHEME):
        return delete_on_cluster(KafkaLocation.parse(where), topic, force=force)
    return delete_in_file(where, topic, force=force)


def create_on_cluster(location: KafkaLocation, topic: str, partitions: int | None) -> dict[str, Any]:
    """Make a topic of a cluster; whoever writes to it first has it, a pipeline of ours or anybody.

    Raises:
        LogError: there is one, or the broker refuses.
    """
    check_new(topic)
    cluster = Cluster(location)
    if cluster.partitions(topic):
        raise topic_exists(topic, location.url)
    cluster.create(topic, partitions=partitions or location.partitions, config=FOR_EVER)
    return {"topic": topic, "log": location.url, "partitions": cluster.partitions(topic)}


def delete_in_file(where: str, topic: str, *, force: bool) -> int:
    """Delete a topic of a file's log; returns the rows that it held.

    Raises:
        LogMissing: there is no log. LogLocked: a pipeline is running on it.
        LogError: it has no such topic, or somebody uses it.
    """
    if not Path(where).is_file():
        raise LogMissing(f"there is no log at {where}", advice="Check the path.")
    with closing(open_log(where, writer=True)) as log:
        info = log.topics().get(topic)
        if info is None:
            raise no_such_topic(topic)
        refuse_used(topic, list(users(log, topic)), force=force)
        # In pieces first: what a transaction frees waits in the WAL.
        log.prune(topic, before_offset=info.end)
        with log.transaction() as transaction:
            transaction.drop_topic(topic)
            transaction.delete(COLUMNS, topic)
        return info.rows


def delete_on_cluster(location: KafkaLocation, topic: str, *, force: bool) -> int:
    """Delete a topic of a cluster; returns the rows, or at most so many messages, that it held.

    Raises:
        LogError: there is no such topic, somebody uses it, or the broker refuses.
    """
    with closing(KafkaView(replace(location, name=""), codec=codec_for())) as view:
        seen = view.seen(topic)
        owner = view.owner(topic)
        pipeline = owner.location.name if owner is not None else ""
        found = [user for name in view.readers(topic) for user in _users_on(view.opened(name), topic)]
        refuse_used(topic, found, force=force)
    if not pipeline:
        Cluster(location).delete(topic)
        return seen.rows
    with closing(open_log(replace(location, name=pipeline).url, writer=True, codec=codec_for())) as log:
        with log.transaction() as transaction:
            transaction.drop_topic(topic)
            transaction.delete(COLUMNS, topic)
        return seen.rows


def _users_on(log: KafkaLog, topic: str) -> Iterator[str]:
    head = metadata_of(log, topic)
    if head is None or not head.visible:
        return
    yield from (f"{user} (log «{log.location.name}»)" for user in users(log, topic))
    if head.foreign and head.rows:
        yield f"the log of «{log.location.name}», which holds the order of its rows"
    elif not head.foreign and set(log.kinds()) - PRODUCED:
        yield f"the log of the pipeline «{log.location.name}», whose run ends when another one writes there"


def refuse_used(topic: str, found: list[str], *, force: bool) -> None:
    """Refuse to delete what somebody uses.

    Raises:
        TopicInUse: naming them.
    """
    if found and not force:
        raise TopicInUse(
            f"the topic «{topic}» is used by {', '.join(dict.fromkeys(found))}",
            advice="Their past can then be neither verified nor repeated. Stop the pipeline, and add --force.",
        )


def users(log: Log, topic: str) -> Iterator[str]:
    """Yield those who read or write a topic, as the log knows them: models, streams, captured sources."""
    for name, value in log.records("position").items():
        if topic in json.loads(value).get("offsets", {}):
            yield f"«{name}», which reads it"
    for name, value in log.records("model").items():
        inputs = json.loads(value).get("fingerprint", {}).get("inputs", [])
        if any(stream.partition(" │ ")[0] == topic for stream in inputs):
            yield f"«{name}», which reads it"
    for name, value in log.records("source").items():
        if topic in (json.loads(value).get("offsets") or {}):
            yield f"the source «{name}», which reads it"
        elif topic.startswith(f"{name}."):
            yield f"the source «{name}», which writes it"
    for task in _writers(log, topic):
        yield f"«{task}», which writes it"


def _writers(log: Log, topic: str) -> list[str]:
    """Return tasks that have written a topic, as the steps that the log still holds tell."""
    found: dict[str, None] = {}
    wanted = f"{json.dumps(topic)}: ["
    for steps in log.topics():
        if not (steps.startswith(INTERNAL) and steps.endswith(".steps")):
            continue
        for entry in walk(log, steps):
            writes = pc.match_substring(entry.records.column("outputs"), wanted)
            found |= dict.fromkeys(entry.records.filter(writes).column("task").to_pylist())
    return list(found)
