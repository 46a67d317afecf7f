"""Rows that executors fetch, decode and keep: the driver learns their order, and says who predicts them.

A round's ranges are one RDD, which is kept until the log holds what came of it. Of topics that are only predicted the
driver gets the columns that order rows; the step writes down which version of the model predicts which of them, and the
executors that have them do so, and return messages, which the driver sends in its transaction. Where an executor is
lost Spark fetches and decodes again: ranges of offsets do not change.
"""

from __future__ import annotations

import bisect
import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.capture.base import Piece
from headrace.capture.topics.reader import Offsets
from headrace.capture.topics.source import ROWS_AT_ONCE
from headrace.engines.spark.executor import Decoded, Decoding, Performance, Performed, Segment
from headrace.engines.spark.jobs import Jobs
from headrace.formats.topic_formats import Formats
from headrace.kafka.ranges import TopicRange
from headrace.plan.plan import Plan
from headrace.plan.task import ModelTask
from headrace.step.absent import FrozenVersion, Schedule, moved, whole_schema
from headrace.step.outputs import Emission
from headrace.wire import EncodedRows, MessageColumns

LEAST = 4_096
MOST = ROWS_AT_ONCE  # as many as a step takes: a job costs the driver some ten milliseconds, however few rows it has
SHORTEST = 1_024  # of a part
PARTS = 2  # for each hand: whoever is done early takes another one


@dataclass(slots=True)
class _Call:
    """One round's ranges, decoded by executors.

    Attributes:
        first: number of the first row that lies there; ``end``: of the one after the last.
        batches: (number of its first row, range, batch, rows) of each batch that lies there.
    """

    decoding: Decoding
    ranges: Sequence[TopicRange]
    rdd: Any
    first: int
    end: int = 0
    batches: list[tuple[int, int, int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Work:
    """Segments of one call."""

    call: _Call
    by_range: Mapping[int, list[Segment]]


class RemoteRows:
    """Rows of one source's topics on executors; a `headrace.capture.topics.source.RangeDecoder`.

    Args:
        decoding: how its messages are fetched and decoded; what they have decided is given with each call.
        predicted: topics of which the driver needs nothing but their rows' order.
    """

    least = LEAST
    most = MOST

    def __init__(self, jobs: Jobs, decoding: Decoding, predicted: frozenset[str]) -> None:
        self._jobs = jobs
        self._decoding = decoding
        self._predicted = predicted
        self._calls: deque[_Call] = deque()
        self._rows = 0

    @property
    def formats(self) -> Formats:
        """Return the formats of topics."""
        return self._decoding.formats

    # -- called by the thread that reads ahead ---------------------------------------------------------------------

    def decode(self, ranges: Sequence[TopicRange], decided: Mapping[str, bytes]) -> list[Piece[Offsets]] | None:
        """See `headrace.capture.topics.source.RangeDecoder`."""
        decoding = replace(self._decoding, decided=dict(decided))
        parts = _parts(ranges, self._jobs.hands)
        messages = sum(part.last - part.first + 1 for part in parts)
        about = f"decode {', '.join(sorted({part.topic for part in parts}))}: {messages:,} messages"
        rdd = self._jobs.kept(parts, decoding)
        predicted = self._predicted
        try:
            found: list[Decoded] = self._jobs.collect(rdd.map(lambda decoded: decoded.told(predicted)), about)
        except Exception as error:  # whatever Spark, Py4J or the executor's Python make of it
            self._jobs.failed(error)
            rdd.unpersist()
            return None
        if not all(decoded.sound for decoded in found):
            rdd.unpersist()
            return None
        call = _Call(decoding, parts, rdd, self._rows)
        pieces = [self._located(call, number, decoded.piece) for number, decoded in enumerate(found)]
        call.end = self._rows
        self._calls.append(call)
        return pieces

    def _located(self, call: _Call, number: int, piece: Piece[Offsets]) -> Piece[Offsets]:
        """Return a piece whose rows that lie elsewhere have numbers of their own."""
        batches = []
        for at, (topic, batch) in enumerate(piece.batches):
            if whole_schema(batch.schema) is not None:
                call.batches.append((self._rows, number, at, batch.num_rows))
                batch = Batch(moved(batch.records, self._rows))
                self._rows += batch.num_rows
            batches.append((topic, batch))
        return replace(piece, batches=tuple(batches))

    # -- called by the engine's thread -----------------------------------------------------------------------------

    def release(self, calls: int) -> None:
        """See `headrace.capture.topics.source.RangeDecoder`."""
        for _ in range(calls):
            self._calls.popleft().rdd.unpersist()

    def holds(self, at: int) -> bool:
        """Return whether a row lies here."""
        return any(call.first <= at < call.end for call in list(self._calls))

    def begin(
        self, schedule: Schedule, perform: Callable[[Sequence[FrozenVersion]], Performance]
    ) -> list[tuple[Performance, _Work]]:
        """Return what is to be done, a job for each call.

        Args:
            perform: makes the work of a task from the versions that are needed.
        """
        numbers: dict[int, int] = {}
        versions: list[FrozenVersion] = []
        for _, version in schedule.runs:
            if id(version) not in numbers:
                numbers[id(version)] = len(versions)
                versions.append(version)
        runs = [(rows, numbers[id(version)]) for rows, version in schedule.runs]
        work = perform(versions)
        found: dict[int, tuple[_Call, dict[int, list[Segment]]]] = {}
        calls = list(self._calls)
        for number, (call, range_, segment) in enumerate(_segments(calls, schedule.at, runs)):
            _, by_range = found.setdefault(id(call), (call, {}))
            by_range.setdefault(range_, []).append(replace(segment, number=number))
        return [(work, _Work(call, by_range)) for call, by_range in found.values()]

    def run(self, work: Performance, job: _Work, about: str) -> list[tuple[int, Performed]]:
        """Do it, on executors; here, where Spark gives it up."""
        by_range = job.by_range

        def performed(number: int, decoded: Iterator[Decoded]) -> Iterator[tuple[int, Performed]]:
            for range_ in decoded if number in by_range else ():
                yield from work(range_, by_range[number])

        try:
            return self._jobs.collect(job.call.rdd.mapPartitionsWithIndex(performed), about)
        except Exception as error:
            self._jobs.failed(error)
        found: list[tuple[int, Performed]] = []
        for number, segments in by_range.items():
            found += work(job.call.decoding(job.call.ranges[number]), segments)
        return found


def _parts(ranges: Sequence[TopicRange], hands: int) -> list[TopicRange]:
    """Return ranges in so many parts that all hands have some."""
    messages = sum(range_.last - range_.first + 1 for range_ in ranges)
    most = max(SHORTEST, -(-messages // (PARTS * max(1, hands))))
    parts = []
    for topic, partition, first, last in ranges:
        count = max(1, -(-(last - first + 1) // most))
        cuts = np.linspace(first, last + 1, count + 1).astype(np.int64).tolist()
        parts += [TopicRange(topic, partition, a, b - 1) for a, b in itertools.pairwise(cuts) if b > a]
    return parts


def _segments(calls: Sequence[_Call], at: Ints, runs: Sequence[tuple[int, int]]) -> list[tuple[_Call, int, Segment]]:
    """Return a schedule's rows by the batches in which they lie, in their order."""
    found: list[tuple[_Call, int, Segment]] = []
    starts = np.concatenate([[0], np.cumsum([rows for rows, _ in runs])])
    done = 0
    while done < len(at):
        number = int(at[done])
        call = next(call for call in calls if call.first <= number < call.end)
        first, range_, batch, rows = call.batches[bisect.bisect_right(call.batches, number, key=lambda b: b[0]) - 1]
        # As far as rows follow each other within the batch.
        most = min(len(at) - done, first + rows - number)
        breaks = np.flatnonzero(np.diff(at[done : done + most]) != 1)
        count = int(breaks[0]) + 1 if len(breaks) else most
        found.append((call, range_, Segment(0, batch, number - first, count, _cut(runs, starts, done, count))))
        done += count
    return found


def _cut(runs: Sequence[tuple[int, int]], starts: Ints, first: int, count: int) -> list[tuple[int, int]]:
    """Return the runs of some rows."""
    found = []
    at = int(np.searchsorted(starts, first, "right")) - 1
    while at < len(runs) and starts[at] < first + count:
        rows = min(int(starts[at + 1]), first + count) - max(int(starts[at]), first)
        found.append((rows, runs[at][1]))
        at += 1
    return found


def together(found: Sequence[tuple[int, Performed]]) -> tuple[Emission, list[tuple[str, EncodedRows]]]:
    """Return what became of all segments, in the order of their rows: for the step, and for the log."""
    ordered = [made for _, made in sorted(found, key=lambda numbered: numbered[0])]
    messages: dict[str, list[list[EncodedRows]]] = {}  # by topic, those that are alike together
    for made in ordered:
        for topic, encoded in made.messages:
            groups = messages.setdefault(topic, [])
            if groups and _alike(groups[-1][-1], encoded):
                groups[-1].append(encoded)
            else:
                groups.append([encoded])
    letters = [letter for made in ordered for letter in made.rows]
    encoded_rows = [(topic, _joined(group)) for topic, groups in messages.items() for group in groups]
    return Emission(sum(made.rejected for made in ordered), letters, []), encoded_rows


def _alike(first: EncodedRows, second: EncodedRows) -> bool:
    same_schema = first.schema.equals(second.schema, check_metadata=True)
    return same_schema and first.messages.shape == second.messages.shape


def _joined(parts: Sequence[EncodedRows]) -> EncodedRows:
    messages = MessageColumns.joined([part.messages for part in parts])
    return EncodedRows(messages, parts[0].schema, sum(part.rows for part in parts), sum(part.size for part in parts))


def only_predicted(plan: Plan, stays: Collection[str]) -> frozenset[str]:
    """Return topics of which the driver needs nothing but the order of their rows.

    Args:
        stays: models that are not to be sent.

    They are predicted, as they are, by models of which nothing is derived and which are not trained anew; nothing else
    reads them, and nothing here reads what becomes of them.
    """
    read = {topic for task in plan.tasks for topic in task.topics}
    used: dict[str, list[bool]] = {}
    for task in plan.tasks:
        if not isinstance(task, ModelTask):
            for topic in task.topics:
                used.setdefault(topic, []).append(False)
            continue
        others = [*task.learn, *(plan.stream for plan in task.evaluate if plan.stream is not None)]
        others += [plan.served for plan in task.predict if plan.served is not None]
        for stream in others:
            used.setdefault(stream.topic, []).append(False)
        plain = not task.nodes and task.retrain is None and task.name not in stays
        for predict in task.predict:
            outputs = [output.topic for output in predict.outputs]
            alone = len(set(outputs)) == len(outputs) and not read & set(outputs)
            used.setdefault(predict.stream.topic, []).append(plain and alone and not predict.stream.operations)
    return frozenset(topic for topic, plain in used.items() if all(plain))
