"""The online mode: a producer appends digits, a model learns them as they come, and is tested after every update.

It follows https://github.com/cmhh/kafkatrain, where the model is gone when the program ends. Here producer and model go
on where they were: what each has done is in the log, in the same transactions.
"""

from __future__ import annotations

import contextlib
import importlib.util
import select
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console

import headrace as hr
from headrace.demos.mnist import digits, pipeline
from headrace.demos.mnist.options import Options
from headrace.demos.mnist.recipes import CLASSES, recipe
from headrace.demos.mnist.replayed import APP
from headrace.demos.mnist.show import Show, draw_curve, draw_digit, print_three, result_of
from headrace.demos.screen import keep_page, new_rows, print_next, say_pictures, show_page
from headrace.demos.servers import Scene, stage
from headrace.engines.local.running import Running
from headrace.engines.local.signals import Signals
from headrace.errors import HeadraceError
from headrace.produce.idx import LabelledImages

PRODUCER = "demo"
METRICS = "digits-metrics"
EVERY = 20
DELAY_MS = 10.0
MOST_ROWS = 500
MOST_LATE = 32
LOOK_SECONDS = 0.05
WAIT_SECONDS = 300.0


def play(options: Options, *, show: bool = True, console: Console | None = None) -> dict[str, Any]:
    """Play the online mode until every digit is learned, or until it is stopped; returns its result as JSON values."""
    started = time.monotonic()
    console = console or Console()
    name = options.model or _default(console if show else None)
    chosen = recipe(name)
    learner = chosen.learner()
    data = digits.read_data(options.idx)
    view = Show(console, show, title=f"MNIST, learned online: {name}")
    every = options.every or EVERY
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(stage(APP, options, view.say, database=False, resumes=True))
        classes = None if isinstance(learner, hr.Learner) else CLASSES
        tested = data.test.records()
        app = pipeline.online(found.log, learner, chosen.features, classes, tested, every=every)
        rows, answer, page = _run(app, data, options, view, stack)
        folder = options.png or found.pictures
        pictures = [draw_curve(folder / "accuracy.png", view.curve, f"{name}: test set, as digits are learned")]
        if answer is not None:
            pictures.insert(0, draw_digit(folder / "digit3.png", data.three, answer))
        test_rows = len(data.test)
        result = result_of("online", name, view, found, started, train_rows=rows, test_rows=test_rows, three=answer)
        if show:
            _print_end(console, result, data)
            say_pictures(console, pictures)
            _say_next(console, found, goes_on=rows < len(data.train))
            if page:
                keep_page(options, page, console)
    return result


def _say_next(console: Console, found: Scene, *, goes_on: bool) -> None:
    print_next(console, found, "headrace topics cat digits-metrics --limit 3", "headrace models show digits")
    if goes_on:
        console.print(f"  headrace demo mnist --online --log {found.log}   goes on", highlight=False, soft_wrap=True)


def _default(console: Console | None) -> str:
    if importlib.util.find_spec("keras") is not None:
        return "cnn"
    if console is not None:
        console.print(
            "Keras is not installed: the model is scikit-learn's MLPClassifier (pip install 'headrace\\[keras]')"
        )
    return "mlp"


# -- the producer -----------------------------------------------------------------------------------------------------


@dataclass
class Producer:
    """Appends digits in their order, one every so many milliseconds; behind the ones that are there.

    What is late because an update took long is appended together, a few dozens at the most.

    Attributes:
        at: digits appended, earlier runs included.
        stopped: ends it.
        error: what it died of.
    """

    images: LabelledImages
    delay: float
    view: Show
    at: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    def run(self, running: Running) -> None:
        """Append until all are there, or it is stopped."""
        try:
            due = time.monotonic()
            while self.at < len(self.images) and not self.stopped.is_set():
                self.stopped.wait(max(0.0, due - time.monotonic()))
                rows = 1 + self._late(due)
                self._append(running, rows)
                due = max(due + rows * self.delay, time.monotonic() - MOST_LATE * self.delay)
        except BaseException as error:
            self.error = error

    def _late(self, due: float) -> int:
        """Return how many more are due by now."""
        return min(MOST_LATE, int((time.monotonic() - due) / self.delay)) if self.delay else MOST_ROWS - 1

    def _append(self, running: Running, rows: int) -> None:
        end = min(self.at + rows, len(self.images))
        records = self.images.records(self.at, end)
        running.append(
            pipeline.DIGITS, records, key=["id"], producer_id=PRODUCER, sequence=self.at, timeout=WAIT_SECONDS
        )
        before, self.at = self.at, end
        self.view.done = end
        tenth = max(1, len(self.images) // 10)
        if end // tenth > before // tenth:
            self.view.told(f"produced {end / len(self.images):.0%}")


# -- the run ----------------------------------------------------------------------------------------------------------


def _run(
    app: hr.App, data: digits.Digits, options: Options, view: Show, until: contextlib.ExitStack
) -> tuple[int, int | None, str]:
    """Produce, learn, and show the accuracy after each update, until it is over or stopped.

    Args:
        until: the pipeline runs until it ends.

    Returns:
        How many digits are appended, what the hand-made 3 is taken for, and where the dashboard is: "" after a signal.
    """
    images, delay = data.train, (DELAY_MS if options.delay_ms is None else options.delay_ms) / 1000
    producer = Producer(images, delay, view)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        signals.stop = producer.stopped.set
        view.say("opening the log: what was learned before is learned again from it")
        stack.enter_context(view.drawing())
        running = until.enter_context(app.start(ui=options.ui))
        show_page(options, running.page, view.console)
        producer.at = running.appended(pipeline.DIGITS, PRODUCER)
        seen = _follow(running, view, 0, quietly=True)
        there = f" behind the {producer.at:,} that are there" if producer.at else ""
        view.count(f"producing {len(images):,} digits{there}{_how_to_stop()}", len(images))
        thread = threading.Thread(target=producer.run, args=[running], name="producer", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
            seen = _follow(running, view, seen)
            if _enter():
                producer.stopped.set()
        if producer.error is not None:
            raise producer.error
        running.wait(WAIT_SECONDS)
        _follow(running, view, seen)
        return producer.at, _answer(running, data.three), "" if signals.came else running.page


def _follow(running: Running, view: Show, seen: int, *, quietly: bool = False) -> int:
    """Points of the curve that the topic of metrics has got; returns how many it has."""
    rows, seen = new_rows(running.log, METRICS, seen)
    for row in rows:
        point = int(row["learned"]), round(float(row["accuracy"]), 4)
        if quietly:
            view.curve.append(point)
        else:
            view.point(*point)
    return seen


def _answer(running: Running, three: bytes) -> int | None:
    """Predict the hand-made 3; None before the first update."""
    try:
        return int(np.asarray(running["digits"].predict([{"pixels": three}]))[0])
    except HeadraceError:
        return None


def _how_to_stop() -> str:
    return "; Enter stops it" if sys.stdin is not None and sys.stdin.isatty() else ""


def _enter() -> bool:
    """Return whether somebody at a terminal has pressed Enter."""
    if sys.stdin is None or not sys.stdin.isatty() or not select.select([sys.stdin], [], [], 0)[0]:
        return False
    sys.stdin.readline()
    return True


def _print_end(console: Console, result: dict[str, Any], data: digits.Digits) -> None:
    if result["digit3"] is not None:
        print_three(console, data.three, result["digit3"])
    share = "nothing is learned yet" if result["accuracy"] is None else f"[bold]{result['accuracy']:.2%}[/] are right"
    console.print(
        f"{share}, of {result['test_rows']:,} test rows, after {result['train_rows']:,} of {len(data.train):,} digits "
        f"· {result['seconds']:.1f} s",
        highlight=False,
    )
