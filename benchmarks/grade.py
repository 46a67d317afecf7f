"""Predictions that meet their labels, and windows over their error: steps alone, a pipeline, and other systems.

A row each millisecond of event time has four features; its label comes ten seconds later. Both come in order, in slices
of 4,096 rows that alternate; a prediction waits for a minute. The windows are tumbling, of a minute, and give the mean
of the absolute error. What is counted are pairs of a prediction and its label a second.

The pipeline's rows are in its log before it starts; it predicts, and writes predictions, grades and windows durably.

Beside the others all do the same: predictions are given, no model takes part, and only windows come out. Bytewax has
its rows in memory and keeps nothing: beside it stand our steps on rows in memory. Pathway reads files, and Quix Streams
a broker's topics: beside them stands our pipeline on its log, whose steps keep one core busy. Pathway is measured with
one worker, and with two (on two cores; Python's lock leaves Bytewax one). What each does and how is said in its script.
One that cannot be installed is left out, and said.

A million predictions that wait: what the resident set grows by, and the speed of steps against that with 10,000.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

import headrace as hr
from benchmarks.environment import environment
from benchmarks.grade_load import FEATURES, SLICE, Load, fill_broker, fill_files, fill_log, first_rows
from benchmarks.kafka_profile import Sampler
from headrace.log import open_log
from headrace.plan.task import ModelTask
from headrace.replay.recovery import begin
from headrace.step.state import State, initial_state
from headrace.step.step import step
from headrace.testing.servers import KafkaBroker
from headrace.testing.servers.java import JavaMissing

REPEATS = 3
# Rows of both topics in an event: the most that the engine takes into a step, and one slice of each.
LARGE, SMALL = 65_536, 2 * SLICE
TARGET = 200_000.0
TIMES = 5.0
# A little over 1,000,000: whole events.
FEW, MANY = 10_000, 16 * LARGE
PENDING_MB = 500.0
FLAT = 0.8
PATIENCE_S = 300
QUIX, BYTEWAX, PATHWAY = "quixstreams==3.28.1", "bytewax==0.21.1", "pathway==0.33.0"
Figure = dict[str, Any]


def run(rows: int, *, profile: bool = False) -> list[Figure]:
    """Pairs a second of ours against the figure to beat, and against others; and what a million that wait cost."""
    load = Load(rows)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        first = first_rows(folder)
        found = [
            _beats(f"step of {size:,}", load, [stepped(first, load, size) for _ in range(REPEATS)])
            for size in (LARGE, SMALL)
        ]
        found.append(_pipeline(fill_log(folder / "log.headrace", load), first, load, profile=profile))
        found += _beside_others(folder, load)
        return [*found, *_many_waiting(first, rows)]


def _beats(name: str, load: Load, seconds: list[float]) -> Figure:
    """Against the figure to beat."""
    ours = load.pairs / statistics.median(seconds)
    figure = {"name": name, "ours": ours, "reference": TARGET, "unit": "pairs/s", "ratio": ours / TARGET, "target": 1.0}
    return {**figure, "details": {"pairs": load.pairs, "reference": "the figure to beat", "seconds": seconds}}


def _pipeline(log: Path, first: Path, load: Load, *, profile: bool) -> Figure:
    apps = (declared(f"pipeline{number}", log, first) for number in count())
    figure = _beats("pipeline", load, [caught_up(next(apps), load) for _ in range(REPEATS)])
    with Sampler(wanted=profile) as sampler:
        if profile:
            caught_up(next(apps), load)
    return {**figure, "profile": sampler.text}


# -- ours -------------------------------------------------------------------------------------------------------------


def declared(name: str, log: Path | str, first: Path) -> hr.App:
    """A model, its grades and their windows; the model and what is written bear the app's name."""
    app = hr.App(name, log=log)
    model = app.model(name, hr.LinearRegression(), features=FEATURES, target="y", initial=hr.csv(first))
    return _graded(app, model.predict(app.topic("measured")).to(f"{name}-predictions"), f"{name}-grades")


def given(name: str, log: Path | str) -> hr.App:
    """The same without a model: the topic has predictions; only windows are written."""
    app = hr.App(name, log=log)
    return _graded(app, app.topic("measured"), None)


def _graded(app: hr.App, predicted: Any, grades: str | None) -> hr.App:
    metric, labels = hr.metrics.absolute_error, app.topic("weighed")
    graded = predicted.grade(labels, on="id", within="1 min", metric=metric, time="at", target="y")
    (graded.to(grades) if grades else graded).window("1 min").mean("error").to(f"{app.name}-windows")
    return app


def begun(first: Path) -> tuple[ModelTask, State]:
    """The task, and its state once it has learned the first rows."""
    plan = declared("steps", "memory://", first).plan()
    (task,) = plan.models
    state = initial_state(task)
    begin(plan, task, open_log("memory://", writer=True), state)
    return task, state


def stepped(first: Path, load: Load, rows: int) -> float:
    """Seconds in which all pairs are predicted and graded, in events of so many rows."""
    task, state = begun(first)
    events = list(load.events(rows))
    graded = 0
    began = time.perf_counter()
    for event in events:
        graded += sum(batch.num_rows for topic, batch in step(task, state, event) if topic == "steps-grades")
    seconds = time.perf_counter() - began
    assert graded == load.pairs, f"{graded} of {load.pairs} graded"
    return seconds


def stepped_given(load: Load) -> float:
    """Seconds in which all pairs are graded, their predictions being there."""
    (task,) = given("given", "memory://").plan().tasks
    state = initial_state(task)
    events = list(load.events(LARGE))
    windows = 0
    began = time.perf_counter()
    for event in events:
        windows += sum(batch.num_rows for _, batch in step(task, state, event))
    seconds = time.perf_counter() - began
    assert windows == load.ended, f"{windows} windows"
    return seconds


def caught_up(app: hr.App, load: Load) -> float:
    """Seconds from the start of an app until all pairs are graded, and the windows that have ended are written."""
    began = time.perf_counter()
    with app.start() as running:
        running.wait(PATIENCE_S)
        seconds = time.perf_counter() - began
        ends = {topic.removeprefix(app.name): about.end for topic, about in running.log.topics().items()}
    # Silence may have closed the last one since.
    assert 0 <= ends.get("-windows", 0) - load.ended <= 1, f"{ends} where {load.ended} windows have ended"
    assert ends.get("-grades", load.pairs) == load.pairs, f"{ends} where {load.pairs} pairs are to be graded"
    return seconds


# -- beside others ----------------------------------------------------------------------------------------------------


def _beside_others(folder: Path, load: Load) -> list[Figure]:
    """Runs of each other system and of ours in turns."""
    log, files = fill_log(folder / "given.headrace", load), fill_files(folder, load)

    def pipeline() -> float:
        # Rows that are derived without a model belong to the app that began with them: each has a log of its own.
        with tempfile.TemporaryDirectory() as own:
            return caught_up(given("given", shutil.copy(log, own)), load)

    def on_files(name: str, package: str, workers: int = 1) -> Callable[[], float]:
        return _other(name, package, str(files), load, PATHWAY_THREADS=str(workers))

    found = [
        _beside("step : Bytewax", load, lambda: stepped_given(load), lambda: on_files("bytewax", BYTEWAX)),
        _beside("pipeline : Pathway", load, pipeline, lambda: on_files("pathway", PATHWAY)),
        _beside("pipeline : Pathway 2", load, pipeline, lambda: on_files("pathway", PATHWAY, workers=2)),
    ]
    less = Load(max(SLICE, load.pairs // 20))
    try:
        with KafkaBroker() as broker:
            fill_broker(broker, less)
            quix = _beside(
                "pipeline : Quix", load, pipeline, lambda: _other("quix", QUIX, broker.bootstrap, less), less
            )
    except JavaMissing as error:
        print(f"Quix Streams is left out, since there is no broker: {error}", file=sys.stderr)
        quix = None
    return [item for item in (*found, quix) if item is not None]


def _other(name: str, package: str, place: str, load: Load, **variables: str) -> Callable[[], float]:
    """Return a function that runs a script in an environment with a package; it gives the seconds that the script says.

    Args:
        variables: of the process's environment.

    Raises:
        subprocess.CalledProcessError: the package cannot be installed.
    """
    python = environment(package)
    command = [str(python), str(Path(__file__).with_name(f"grade_{name}.py")), place, str(load.pairs)]

    def seconds() -> float:
        settings = {**os.environ, **variables}
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=settings)
        assert done.returncode == 0, done.stderr
        taken, windows = done.stdout.split()[-2:]
        # Some close the last window too when their rows end, and one waits for more before it closes any.
        assert abs(int(windows) - load.ended) <= 1, f"{name}: {windows} windows, where {load.ended} have ended"
        return float(taken)

    return seconds


def _beside(
    name: str,
    load: Load,
    ours: Callable[[], float],
    other: Callable[[], Callable[[], float]],
    less: Load | None = None,
) -> Figure | None:
    """Ours against another, which may be given less to do; None where that cannot be installed."""
    try:
        theirs = other()
    except subprocess.CalledProcessError as error:
        print(f"{name} is left out, since it cannot be installed: {str(error.stderr)[-800:]}", file=sys.stderr)
        return None
    pairs = (less or load).pairs
    turns = [(pairs / theirs(), load.pairs / ours()) for _ in range(REPEATS)]
    reference, mine = (statistics.median(item) for item in zip(*turns, strict=True))
    figure = {"name": name, "ours": mine, "reference": reference, "unit": "pairs/s", "target": TIMES}
    details = {"pairs of theirs": pairs, "pairs of ours": load.pairs, "theirs and ours": turns}
    return {**figure, "ratio": statistics.median(our / their for their, our in turns), "details": details}


# -- many that wait ---------------------------------------------------------------------------------------------------


def _many_waiting(first: Path, rows: int) -> list[Figure]:
    """Memory of a million predictions that wait, and the speed with them."""
    turns = [(in_fresh_process(first, FEW, rows), in_fresh_process(first, MANY, rows)) for _ in range(REPEATS)]
    few, many = (statistics.median(rows / seconds for _, seconds in item) for item in zip(*turns, strict=True))
    memory = statistics.median(held for _, (held, _) in turns)
    flat = {"name": "speed, 1M : 10k wait", "ours": many, "reference": few, "unit": "pairs/s"}
    flat |= {"ratio": statistics.median(a[1] / b[1] for a, b in turns), "target": FLAT}
    held = {"name": "memory, 1M waiting", "ours": memory, "reference": PENDING_MB, "unit": "MB"}
    return [flat, {**held, "ratio": memory / PENDING_MB, "at_most": 1.0, "details": {"turns": turns}}]


def in_fresh_process(first: Path, waiting: int, rows: int) -> tuple[float, float]:
    """As `wait_and_grade`, where nothing else has used memory before."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(wait_and_grade, first, waiting, rows).result()


def wait_and_grade(first: Path, waiting: int, rows: int) -> tuple[float, float]:
    """Steps with so many predictions that have no label yet.

    Returns:
        MB by which the resident set has grown when they wait; seconds of ``rows`` more, each with a label, from there.
    """
    # All that waits does so for five sixths of its minute.
    load = Load(waiting + rows, step_us=50_000_000 // waiting, delay=waiting)
    task, state = begun(first)
    process = psutil.Process()
    before, held, seconds, graded = process.memory_info().rss, 0.0, 0.0, 0
    for event in load.events(LARGE):
        if len(event.parts) == 1 and graded:
            break  # only labels are left
        labels = len(event.parts) == 2
        if labels and not graded:
            held = (process.memory_info().rss - before) / 1e6
        began = time.perf_counter()
        found = step(task, state, event)
        seconds += (time.perf_counter() - began) * labels
        graded += sum(batch.num_rows for topic, batch in found if topic == "steps-grades")
    assert graded >= rows // 2, f"{graded} graded"
    return held, seconds * rows / graded
