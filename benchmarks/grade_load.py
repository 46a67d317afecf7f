"""Predictions and their labels for the benchmark of grading: as events, in a log, in files and on a broker's topics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import headrace as hr
from headrace.batch import Batch
from headrace.step.events import Part, Rows
from headrace.testing.servers import KafkaBroker

SLICE = 4_096
FEATURES = ("a", "b", "c", "d")
TOPICS = ("measured", "weighed")
MINUTE_US = 60_000_000
BEGIN_US = 1_623_283_200_000_000  # 2021-06-10T00:00:00Z


@dataclass(frozen=True, slots=True)
class Load:
    """Predictions and their labels.

    Attributes:
        pairs: how many; ``step_us``: event time between two.
        delay: so many rows later comes a row's label.
    """

    pairs: int
    step_us: int = 1_000
    delay: int = 10_000

    @property
    def ended(self) -> int:
        """Return how many windows have ended with the last label."""
        return (self.pairs - 1 + self.delay) * self.step_us // MINUTE_US

    def slices(self) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Topics and rows, in the order of event time: predictions, then the labels of that time."""
        labelled = 0
        for start in range(0, self.pairs + self.delay, SLICE):
            end = start + SLICE
            if start < self.pairs:
                yield "measured", self.measured(start, min(end, self.pairs))
            known = min(max(0, end - self.delay), self.pairs)
            if known > labelled:
                yield "weighed", self.weighed(labelled, known)
                labelled = known

    def measured(self, start: int, end: int) -> pa.RecordBatch:
        """Rows to be predicted; ``prediction`` is what others, who have no model, are given."""
        ids = np.arange(start, end)
        X = np.random.default_rng(start).normal(size=(len(ids), len(FEATURES)))
        columns = {"id": ids, **{name: X[:, i] for i, name in enumerate(FEATURES)}, "prediction": X.sum(axis=1)}
        return pa.RecordBatch.from_pydict({**columns, "at": self._times(ids)})

    def weighed(self, start: int, end: int) -> pa.RecordBatch:
        """Labels."""
        ids = np.arange(start, end)
        return pa.RecordBatch.from_pydict({"id": ids, "y": np.sin(ids), "at": self._times(ids + self.delay)})

    def _times(self, rows: npt.NDArray[np.int64]) -> pa.Array:
        return pa.array(BEGIN_US + rows * self.step_us).view(pa.timestamp("us", tz="UTC"))

    def events(self, rows: int) -> Iterator[Rows]:
        """Events of about so many rows, as an engine makes them of the slices."""
        offsets = {"measured": 0, "weighed": 0}
        waiting: dict[str, list[tuple[int, pa.RecordBatch]]] = {"measured": [], "weighed": []}
        count = 0
        for number, (topic, records) in enumerate(self.slices(), 1):
            waiting[topic].append((number, records))
            count += records.num_rows
            if count >= rows:
                yield _event(waiting, offsets)
                count = 0
        if count:
            yield _event(waiting, offsets)


def _event(waiting: dict[str, list[tuple[int, pa.RecordBatch]]], offsets: dict[str, int]) -> Rows:
    parts = []
    for topic, slices in waiting.items():
        if slices:
            numbers = np.repeat([number for number, _ in slices], [slice_.num_rows for _, slice_ in slices])
            index = np.concatenate([np.arange(slice_.num_rows) for _, slice_ in slices])
            records = pa.concat_batches([slice_ for _, slice_ in slices])
            batch = Batch.of(records, lsn=numbers.astype(np.uint64), index=index)
            parts.append(Part(topic, batch, numbers, offsets[topic]))
            offsets[topic] += len(numbers)
            slices.clear()
    return Rows(tuple(parts), True)


def first_rows(folder: Path) -> Path:
    """A CSV with the rows that a model begins with."""
    path = folder / "first.csv"
    X = np.random.default_rng(7).normal(size=(50, len(FEATURES)))
    lines = [",".join(map(repr, [*row.tolist(), float(row.sum())])) for row in X]
    path.write_text("\n".join([",".join([*FEATURES, "y"]), *lines]))
    return path


def fill_log(log: Path, load: Load) -> Path:
    """Put the rows into a log, a slice an append."""
    app = hr.App("writer", log=log)
    for topic in TOPICS:
        app.topic(topic, append=True)
    with app.start() as running:
        for topic, records in load.slices():
            running.append(topic, records)
    return log


def fill_files(folder: Path, load: Load) -> Path:
    """Put the rows into a file of JSON lines for each topic."""
    files = {topic: (folder / f"{topic}.jsonl").open("w") for topic in TOPICS}
    for topic, records in load.slices():
        files[topic].writelines(f"{json.dumps(row)}\n" for row in plain(records))
    for file in files.values():
        file.close()
    return folder


def fill_broker(broker: KafkaBroker, load: Load) -> None:
    """Put the rows on a topic each: JSON, the id as the key, the event time as the message's."""
    from confluent_kafka import Producer

    for topic in TOPICS:
        # By their times these rows are old, and would be deleted at once.
        broker.create_topic(topic, config={"retention.ms": "-1"})
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 50, "queue.buffering.max.messages": 10**6})
    for topic, records in load.slices():
        for row in plain(records):
            producer.produce(topic, json.dumps(row).encode(), str(row["key"]).encode(), timestamp=row["at"] // 1000)
        producer.poll(0)
    assert producer.flush(120) == 0, "the broker did not take everything"


def plain(records: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as others take them: ``at`` in microseconds, the id as ``key`` (Pathway has an ``id`` of its own)."""
    at = records.schema.get_field_index("at")
    whole = records.set_column(at, "at", records.column(at).view(pa.int64()))
    return list(whole.rename_columns(["key", *whole.schema.names[1:]]).to_pylist())
