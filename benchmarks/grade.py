"""Predictions that meet their labels, and windows over their error: steps alone, a pipeline, and other systems.

A row each millisecond of event time has four features; its label comes ten seconds later. Both come in order, in slices
of 4,096 rows that alternate; a prediction waits for a minute. The windows are tumbling, of a minute, and give the mean
of the absolute error. What is counted are pairs of a prediction and its label a second.

The pipeline's rows are in its log before it starts; it predicts, and writes predictions, grades and windows. Beside the
others it does what they do: all are given predictions, so that no model takes part, and write windows only (of ours
those are written durably). Each is given its rows in the way that suits it best, which its script says. Those that
cannot be installed are left out, and said.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

import headrace as hr
from benchmarks.environment import environment
from benchmarks.kafka_profile import Sampler
from headrace.batch import Batch
from headrace.engines.local.beginning import begin
from headrace.events import Part, Rows
from headrace.log import open_log
from headrace.state import State, initial_state
from headrace.step import step
from headrace.task import ModelTask

REPEATS = 3
SLICE = 4_096
# Rows of both topics in an event: the most that the engine takes into a step, and one slice of each.
LARGE, SMALL = 65_536, 2 * SLICE
MINUTE_US = 60_000_000
FEATURES = ("a", "b", "c", "d")
TARGET = 200_000.0
TIMES = 5.0
PENDING_MB = 500.0
FEW, MANY = 10_000, 1_000_000
HERE = Path(__file__).parent


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
    def last_us(self) -> int:
        """The last label's event time."""
        return (self.pairs - 1 + self.delay) * self.step_us

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

    def _times(self, rows: np.ndarray) -> pa.Array:
        return pa.array(rows * self.step_us).view(pa.timestamp("us", tz="UTC"))

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
            numbers = np.repeat([number for number, _ in slices], [one.num_rows for _, one in slices])
            index = np.concatenate([np.arange(one.num_rows) for _, one in slices])
            records = pa.concat_batches([one for _, one in slices])
            batch = Batch.of(records, lsn=numbers.astype(np.uint64), index=index)
            parts.append(Part(topic, batch, numbers, offsets[topic]))
            offsets[topic] += len(numbers)
            slices.clear()
    return Rows(tuple(parts), True)


# -- steps alone ------------------------------------------------------------------------------------------------------


def declared(name: str, log: Path | str, first: Path) -> hr.App:
    """A model, its grades, and their windows, with topics of their own."""
    app = hr.App(name, log=log)
    measured, weighed = app.topic("measured"), app.topic("weighed")
    model = app.model(name, hr.LinearRegression(), features=FEATURES, target="y", initial=hr.csv(first))
    predicted = model.predict(measured).to(f"{name}-predictions")
    graded = predicted.grade(
        weighed, on="id", within="1 min", metric=hr.metrics.absolute_error, time="at"
    ).to(f"{name}-grades")
    graded.window("1 min").mean("error").to(f"{name}-windows")
    return app


def first_rows(folder: Path) -> Path:
    """The rows that the model begins with."""
    path = folder / "first.csv"
    X = np.random.default_rng(7).normal(size=(50, len(FEATURES)))
    lines = [",".join(map(repr, [*row.tolist(), float(row.sum())])) for row in X]
    path.write_text("\n".join([",".join([*FEATURES, "y"]), *lines]))
    return path


def begun(first: Path) -> tuple[ModelTask, State]:
    """The task, and its state once it has learned the first rows."""
    plan = declared("steps", "memory://", first).plan()
    (task,) = plan.models
    state = initial_state(task)
    begin(plan, task, open_log("memory://", writer=True), state)
    return task, state


def stepped(first: Path, load: Load, rows: int) -> float:
    """Seconds in which all pairs are graded."""
    task, state = begun(first)
    events = list(load.events(rows))
    graded = 0
    began = time.perf_counter()
    for event in events:
        for topic, batch in step(task, state, event):
            graded += batch.num_rows if topic == "steps-grades" else 0
    seconds = time.perf_counter() - began
    assert graded == load.pairs, f"{graded} of {load.pairs} graded"
    return seconds


# -- a pipeline -------------------------------------------------------------------------------------------------------


def fill(log: Path, load: Load) -> None:
    """Put the rows into a log, a slice an append."""
    app = hr.App("writer", log=log)
    for topic in ("measured", "weighed"):
        app.topic(topic, append=True)
    with app.start() as running:
        for topic, records in load.slices():
            running.append(topic, records)


def caught_up(app: hr.App, load: Load) -> float:
    """Seconds from the start of an app until all pairs are graded, and the windows that have ended are written."""
    began = time.perf_counter()
    with app.start() as running:
        running.wait(300)
        seconds = time.perf_counter() - began
        ends = {topic.removeprefix(app.name): info.end for topic, info in running.log.topics().items()}
    # Silence may have closed the last one since.
    ended = load.last_us // MINUTE_US
    assert ended <= ends["-windows"] <= ended + 1, f"{ends} where {ended} windows have ended"
    assert ends.get("-grades", load.pairs) == load.pairs, f"{ends} where {load.pairs} are to be graded"
    return seconds
