"""Every column type as the key, group, time or value of every operator: the pipeline goes on, also after a restart.

One pipeline on the topics that were captured: for each type windows by it, of it and in its time, alarms and drifts on
it and by it, grades by it, and a category of it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from river.drift import PageHinkley

import headrace as hr
from headrace.batch import Batch
from headrace.log import open_log
from headrace.log.base import Log
from headrace.plain_values import keys
from headrace.replay.verify import verify

from .conftest import Captured
from .test_every_type import gathered

SLICES = 2  # pipelines, so that what fails is near
WORDS: dict[str, Callable[[Any, str], Any]] = {
    "by": lambda t, n: t.window(2, every=1, by="v").agg(rows_of=hr.metrics.count(), x=hr.metrics.mean("x")),
    "by in time": lambda t, n: t.window("1 min", by="v").agg(rows_of=hr.metrics.count()),
    "of": lambda t, n: t.window(3, every=1).agg(
        first_v=hr.metrics.first("v"), last_v=hr.metrics.last("v"), count_v=hr.metrics.count("v")
    ),
    "extremes": lambda t, n: t.window(3, every=1).agg(least=hr.metrics.min("v"), most=hr.metrics.max("v")),
    "unique": lambda t, n: t.window(3, every=1).agg(v=hr.metrics.unique("v")),
    "mean": lambda t, n: t.window(2, every=1).mean("v"),
    "sum": lambda t, n: t.window(2, every=1).agg(v=hr.metrics.sum("v"), median=hr.metrics.median("v")),
    "time": lambda t, n: t.window("1 min", time="v").agg(rows_of=hr.metrics.count()),
    "above": lambda t, n: t.above(0, column="v", cooldown=1),
    "drift": lambda t, n: t.drift("v", PageHinkley()),
    "drift by": lambda t, n: t.drift("x", PageHinkley(), by="v"),
}


def unseen(batch: Batch) -> Batch:
    """Give rows as they are: what a function gives is checked when it is there, and not before anything runs."""
    return batch


def declare(log: Path, captured: Captured, kinds: list[str]) -> hr.App:
    app = hr.App("operators", log=log)
    for kind in kinds:
        topic = captured.topics[kind]
        name = topic.rpartition(".")[2]
        for word, make in WORDS.items():
            make(app.topic(topic).transform(unseen), name).to(f"{name} {word}".replace(" ", "_"))
        # A window's alarm by groups, and predictions that are graded by the value.
        counted = app.topic(topic).transform(unseen).window(1, by="v").agg(rows_of=hr.metrics.count())
        counted.above(0, column="rows_of", cooldown=1).to(f"{name}_alarmed")
        model = app.model(f"m_{name}", hr.LinearRegression(), features=["x", hr.category("v")], target="y")
        stream = app.topic(topic).transform(unseen)
        model.learn(stream)
        model.predict(stream).to(f"{name}_scored").grade(stream, on="v", within="1 h").to(f"{name}_graded")
    return app


def counts(log: Log) -> dict[str, int]:
    return {name: info.rows for name, info in log.topics().items() if not name.startswith("__")}


@pytest.mark.parametrize("part", range(SLICES))
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every"])
def test_operators_go_on(captured: Captured, tmp_path: Path, every: bool, part: int) -> None:
    log = tmp_path / "operators.headrace"
    shutil.copy(captured.log, log)
    kinds = captured.kinds(every=every)[part::SLICES]
    with declare(log, captured, kinds).start() as running:
        running.wait(120)
    with contextlib.closing(open_log(log, writer=False)) as held:
        before = counts(held)
    app = declare(log, captured, kinds)
    with app.start() as running:
        running.wait(120)
    with contextlib.closing(open_log(log, writer=False)) as held, gathered() as check:
        assert counts(held) == before
        report = verify(app.plan(), held)
        check("verify", lambda: _equal(report))
        for kind in kinds:
            check(kind, lambda kind=kind: _nothing_is_lost(held, captured, kind))


def _equal(report: Any) -> None:
    assert report.result == "equal", [(task.task, task.differences) for task in report.tasks if task.differences]


def _nothing_is_lost(held: Log, captured: Captured, kind: str) -> None:
    """What can be counted from outside: predictions, and lines that come for each row or a dead letter for it."""
    topic = captured.topics[kind]
    name = topic.rpartition(".")[2]
    found = counts(held)
    rows = sum(batch.num_rows for batch in captured.batches[kind])
    assert found.get(f"{name}_scored", 0) == rows, f"{found.get(f'{name}_scored')} predictions of {rows} rows"
    letters = [row for entry in held.read_topic(f"{topic}.dlq") for row in entry.records.to_pylist()]
    assert all(row["reason"] and row["stage"] for row in letters)
    groups = len({key for batch in captured.batches[kind] for key in keys(batch.column("v"))})
    for word, lines in (("unique", rows - 2), ("of", rows - 2), ("extremes", rows - 2), ("by", rows - groups)):
        assert found.get(f"{name}_{word}", 0) == lines, f"{word}: {found.get(f'{name}_{word}')} lines of {lines}"
    nulls = sum(batch.column("v").null_count for batch in captured.batches[kind])
    assert sum(row["reason"] == "the time «v» is NULL" for row in letters) == nulls, "rows without a time"
    refused = {row["reason"] for row in letters if row["stage"] == "derive"}
    for word in ("mean", "sum"):
        # A line whose value does not fit is a dead letter of the lines' own topic.
        lines = found.get(f"{name}_{word}", 0) + found.get(f"{name}_{word}.dlq", 0)
        told = any(f"the {word} of" in item or "does not fit" in item or "no number" in item for item in refused)
        assert lines == rows - 1 or told, f"{word}: {lines} of {rows - 1}"
