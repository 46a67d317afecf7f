"""A whole log, copied: from a file to a cluster, back, or to another file.

Everything keeps its place: rows their offsets, slices their numbers (positions and the records of steps name them),
named records their values. So the copy is replayed, verified and gone on with as the original would have been.

A file appears under its name when it is whole. A cluster's log is marked while it is filled: nobody else opens it, and
the same copy, started again, goes on where it was broken off.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from headrace.clock import SystemClock
from headrace.errors import DeclarationError, LogError, LogMissing
from headrace.kafka.cluster import Cluster
from headrace.kafka.settings import SCHEME, KafkaLocation
from headrace.log import open_log
from headrace.log.base import Entry, Log, Transaction
from headrace.log.kafka_codec import INTERNAL_PREFIX, Codec
from headrace.log.kafka_view import pipelines
from headrace.log.topic_metadata import COPYING

ROWS_AT_ONCE = 32_768
STEPS = ".steps"

OnRows = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Copied:
    """The result of a copy.

    Attributes:
        location: where it is now.
        topics, rows, slices, records: how much of each; of a copy that was gone on with, rows and slices since then.
    """

    location: str
    topics: int
    rows: int
    slices: int
    records: int


class _EntryClock(SystemClock):
    """The time at which the entry that is being copied was appended."""

    def __init__(self) -> None:
        self.us: int | None = None

    def now_us(self) -> int:
        return super().now_us() if self.us is None else self.us


def copy_log(
    source: str, target: str, *, codec: Codec, target_codec: Codec | None = None, on_rows: OnRows | None = None
) -> Copied:
    """Copy a log to where none is.

    Nobody may write the original meanwhile: a file is locked; a cluster's log is copied until nothing new is in it.

    Args:
        source, target: locations, as `open_log` takes them. A target ``kafka://host:port`` without a name takes the
            name of the pipeline.
        codec: formats of a cluster that is read; ``target_codec`` of one that is written, the same by default.
        on_rows: called with the rows copied so far and all rows.

    Raises:
        LogError: there is a log, or a topic of the same name, at the target; the original is missing, or was pruned
            while it was copied.
        LogLocked: somebody writes the original.
    """
    clock = _EntryClock()
    source = _with_name(source)
    with contextlib.closing(_open_source(source, codec)) as held:
        target = _named(target, held)
        if target == source:
            raise DeclarationError("a log cannot be copied onto itself")
        with _target(source, target, held, target_codec or codec, clock) as (copy, after):
            return _Copy(held, copy, clock, on_rows).run(target, after)


class _Copy:
    """One copy on its way."""

    def __init__(self, source: Log, target: Log, clock: _EntryClock, on_rows: OnRows | None) -> None:
        self._source = source
        self._target = target
        self._clock = clock
        self._on_rows = on_rows
        self._known = set(target.topics())
        self._rows = self._slices = 0
        self._before = sum(info.rows for info in target.topics().values())

    def run(self, location: str, after: int) -> Copied:
        source = self._source
        while True:
            while entries := source.read(after=after, limit=ROWS_AT_ONCE):
                self._copy(entries)
                after = entries[-1].slice
            records = {(kind, name): value for kind in source.kinds() for name, value in source.records(kind).items()}
            newest = source.newest_slice()
            if not source.read(after=after, limit=1):
                break
        self._clock.us = None
        with self._target.transaction() as txn:
            self._end(txn, newest)
            for (kind, name), value in records.items():
                txn.put(kind, name, value)
            txn.delete(COPYING, "")
        return Copied(location, len(self._target.topics()), self._rows, self._slices, len(records))

    def _copy(self, entries: list[Entry]) -> None:
        with self._target.transaction() as txn:
            for number, some in itertools.groupby(entries, key=attrgetter("slice")):
                txn.restore_slice(number)
                self._slices += 1
                for entry in some:
                    self._append(txn, entry)
        if self._on_rows is not None:
            infos = self._source.topics().values()
            self._on_rows(self._before + self._rows, sum(info.rows for info in infos))

    def _append(self, txn: Transaction, entry: Entry) -> None:
        if entry.topic not in self._known:
            self._known.add(entry.topic)
            if entry.offset:
                txn.restore_topic(entry.topic, offset=entry.offset)
        self._clock.us = entry.ts_us
        offset = txn.append(entry.topic, entry.records, complete=entry.complete)
        if offset != entry.offset:
            raise LogError(
                f"«{entry.topic}» goes on at offset {entry.offset}, its copy at {offset}",
                advice="Rows were pruned, or others wrote, while it was copied: begin again with another target.",
            )
        self._rows += entry.records.num_rows

    def _end(self, txn: Transaction, newest: int) -> None:
        """Copy what has no rows any more: topics that were pruned to their ends, and the last slices' numbers."""
        for topic, info in self._source.topics().items():
            if topic not in self._known:
                txn.restore_topic(topic, offset=info.end)
        if newest > self._target.newest_slice():
            txn.restore_slice(newest)


# -- the two ends -------------------------------------------------------------------------------------------------


def _open_source(location: str, codec: Codec) -> Log:
    if location.startswith(SCHEME):
        return open_log(location, writer=False, codec=codec)
    if not Path(location).exists():
        raise LogMissing(f"there is no log at {location}")
    # To write: so that nobody else does while it is copied.
    return open_log(location, writer=True)


def _with_name(source: str) -> str:
    """Return a pipeline on a cluster by its name: the only one there, where none is given."""
    if not source.startswith(SCHEME):
        return source
    kafka = KafkaLocation.parse(source)
    if kafka.name:
        return source
    names = pipelines(Cluster(kafka))
    if len(names) != 1:
        raise DeclarationError(
            f"{len(names)} pipelines have logs on {kafka.bootstrap}: {', '.join(names) or 'none'}",
            advice=f"Say which: --from {kafka.url}/NAME",
        )
    return f"{kafka.url}/{names[0]}"


def _named(target: str, source: Log) -> str:
    """Return a target on a cluster with its name: the pipeline's, where none is given."""
    if not target.startswith(SCHEME):
        return target
    kafka = KafkaLocation.parse(target)
    if kafka.name:
        return target
    before = f"{INTERNAL_PREFIX}."
    names = [topic for topic in source.topics() if topic.startswith(before) and topic.endswith(STEPS)]
    if len(names) != 1:
        raise DeclarationError(
            f"the log holds {len(names)} pipelines: which name does its copy get?", advice=f"Write --to {target}/NAME."
        )
    bare, _, options = target.partition("?")
    name = names[0].removeprefix(before).removesuffix(STEPS)
    return f"{bare.rstrip('/')}/{name}" + (f"?{options}" if options else "")


@contextlib.contextmanager
def _target(origin: str, location: str, source: Log, codec: Codec, clock: _EntryClock) -> Iterator[tuple[Log, int]]:
    """Return the log to be filled, and the slice after which to go on."""
    if location.startswith(SCHEME):
        with _kafka_target(origin, location, source, codec, clock) as found:
            yield found
        return
    path = Path(location)
    if path.exists():
        raise LogError(f"{path} is there already", advice="Give another --to, or take it away.")
    # Whatever a copy that was broken off has left.
    unfinished = path.with_name(f"{path.name}.copying")
    _remove(unfinished)
    with contextlib.closing(open_log(unfinished, writer=True, clock=clock)) as log:
        yield log, 0
    unfinished.replace(path)
    _remove(unfinished)


def _remove(path: Path) -> None:
    for end in ("", "-wal", "-shm", ".lock", ".new"):
        path.with_name(path.name + end).unlink(missing_ok=True)


@contextlib.contextmanager
def _kafka_target(
    origin: str, location: str, source: Log, codec: Codec, clock: _EntryClock
) -> Iterator[tuple[Log, int]]:
    from headrace.log.kafka import KafkaLog

    kafka = KafkaLocation.parse(location)
    cluster = Cluster(kafka)
    begun = False
    if cluster.partitions(f"{INTERNAL_PREFIX}.{kafka.name}.changelog"):
        with contextlib.closing(KafkaLog(kafka, writer=False, codec=codec, half_copied=True)) as there:
            begun = _begun(there, origin, kafka)
    if not begun:
        _refuse_taken(cluster, kafka, list(source.topics()))
    with contextlib.closing(KafkaLog(kafka, writer=True, codec=codec, clock=clock, half_copied=True)) as log:
        with log.transaction() as txn:
            txn.put(COPYING, "", _absolute(origin).encode())
        yield log, log.newest_slice()


def _absolute(origin: str) -> str:
    return origin if origin.startswith(SCHEME) else str(Path(origin).resolve())


def _begun(there: Log, origin: str, kafka: KafkaLocation) -> bool:
    """Return whether this copy was begun there before.

    Raises:
        LogError: there is another log.
    """
    marks = there.records(COPYING)
    if marks and marks[""].decode() == _absolute(origin):
        return True
    if not marks and not there.topics() and not there.kinds():
        return False
    what = f"half of a copy of {marks[''].decode()}" if marks else "a log"
    raise LogError(
        f"there is {what} at {kafka.url} already",
        advice="Copy to another cluster, or delete that log's topics first.",
    )


def _refuse_taken(cluster: Cluster, kafka: KafkaLocation, topics: list[str]) -> None:
    """Refuse topics that hold messages: rows of ours never go among messages of others."""
    there = cluster.topics()
    for topic in topics:
        if topic in there and cluster.ends(topic) != cluster.beginnings(topic):
            raise LogError(
                f"the cluster {kafka.bootstrap} has a topic «{topic}» with messages in it",
                advice="Another log or another program wrote them. Copy to another cluster, or delete that topic.",
            )
