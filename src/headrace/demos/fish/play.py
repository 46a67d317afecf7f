"""The fish demo: both machines send what they measure, and the pipeline predicts, grades, notices and retrains.

A demo that was killed goes on where it was, given the same log: rows from topics are appended one by one, in one order,
and how far each machine is stands in the log.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console

import headrace as hr
from headrace.demos.fish import pipeline
from headrace.demos.fish.events import Event, FishData, read_data
from headrace.demos.fish.outcome import Outcome, mean_errors, read_outcome, shown
from headrace.demos.fish.picture import Curve, chart, draw
from headrace.demos.fish.show import Follower, Show, error_table
from headrace.demos.fish.tables import create_tables, insert
from headrace.demos.screen import keep_page, print_kept, print_next, say_pictures, show_page
from headrace.demos.servers import Scene, ServerOptions, clean_up, stage
from headrace.engines.local.running import Running
from headrace.engines.local.signals import Signals

APP = "fish"
PRODUCER = "machine"
PICTURE = "fish.png"
WAIT_SECONDS = 120.0
LIVE_SPEED = 60.0
WATCHED_SPEED = 4.0
Send = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ServerOptions):
    """See `headrace.cli.demo.demo_fish`.

    Attributes:
        speed: seconds of event time in a second; 0 as fast as it can; None: `WATCHED_SPEED` beside a dashboard,
            `LIVE_SPEED` where figures are drawn anew in a terminal, else 0.
    """

    source: str = "topics"
    data: Path | None = None
    speed: float | None = None
    online: bool = False
    png: Path | None = None


def play(options: Options, *, show: bool = True, console: Console | None = None) -> dict[str, Any]:
    """Play the demo until every fish is weighed, or until it is stopped; returns its result as JSON values."""
    started = time.monotonic()
    data = read_data(options.data)
    view = Show(console or Console(), show)
    with contextlib.ExitStack() as stack:
        tables = options.source == "postgres"
        found = stack.enter_context(stage(APP, options, view.say, database=tables, resumes=not tables))
        outcome, page = (_run_tables if tables else _run_topics)(options, data, found, view, stack)
        curve = Curve.of(outcome)
        picture = draw((options.png or found.pictures) / PICTURE, curve)
        result = _result(outcome, data) | {"log": found.log, "seconds": round(time.monotonic() - started, 3)}
        if show:
            _print_end(view.console, result, curve)
            _say_next(view.console, found, picture)
            if page:
                keep_page(options, page, view.console)
    if options.keep:
        print_kept(found)
    return result


def _result(outcome: Outcome, data: FishData) -> dict[str, Any]:
    rows = outcome.rows
    result: dict[str, Any] = {
        "rows": rows,
        "alarms": outcome.alarms,
        "versions": [training.to_dict() for training in outcome.trainings],
        "mean_error": mean_errors(rows, data.species),
    }
    if outcome.online is not None:
        # Before and after are the same fish as with the other model: this one's version never changes.
        versions = {row["grade"]: row["model_version"] for row in outcome.graded}
        online = shown(outcome.online)
        by = [versions[row["grade"]] for row in outcome.online]
        result["online"] = {"rows": online, "mean_error": mean_errors(online, data.species, by)}
    return result


# -- sending ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Pace:
    """Return when each event is due.

    Attributes:
        speed: seconds of event time in a second; 0: at once.
        stopped: ends it.
    """

    speed: float
    stopped: threading.Event

    def of(self, events: list[Event], idle: Callable[[], None]) -> Iterator[Event]:
        """The events, each when it is due; ``idle`` is called meanwhile."""
        if not events:
            return
        begun, first = time.monotonic(), events[0].time_us
        for event in events:
            due = begun + (event.time_us - first) / 1e6 / self.speed if self.speed else 0.0
            while (left := due - time.monotonic()) > 0 and not self.stopped.wait(min(left, 0.1)):
                idle()
            if self.stopped.is_set():
                return
            yield event


def _speed(options: Options, view: Show) -> float:
    if options.speed is not None:
        return options.speed
    return WATCHED_SPEED if options.ui else LIVE_SPEED if view.live else 0.0


def _run_topics(
    options: Options, data: FishData, found: Scene, view: Show, stack: contextlib.ExitStack
) -> tuple[Outcome, str]:
    """Append every row to its machine's topic; returns the dashboard's address too, "" where it was stopped."""
    app = pipeline.from_topics(found.log, data.training, online=options.online)
    with _sending(view) as stopped:
        running = _start(app, options, stack, view.console)
        sent = {machine: _already_sent(running, data, machine) for machine in data.sent}

        def send(event: Event) -> None:
            row = data.sent[event.machine].rows.slice(event.row, 1)
            running.append(
                event.machine, row, key=["Fish_Id"], producer_id=PRODUCER, sequence=event.row, timeout=WAIT_SECONDS
            )

        events = [item for item in data.events() if item.row >= sent[item.machine]]
        view.total = sum(item.rows.num_rows for item in data.sent.values())
        view.done = view.total - len(events)
        outcome = _send_all(app, running, events, send, Pace(_speed(options, view), stopped), view)
    return outcome, "" if stopped.is_set() else running.page


def _already_sent(running: Running, data: FishData, machine: str) -> int:
    """Rows that an earlier run has appended.

    Raises:
        LogError: they are others than those of the file.
    """
    rows = running.appended(machine, PRODUCER)
    if rows:
        there = data.sent[machine].rows.slice(0, rows)
        running.append(machine, there, key=["Fish_Id"], producer_id=PRODUCER, sequence=0, timeout=WAIT_SECONDS)
    return rows


def _run_tables(
    options: Options, data: FishData, found: Scene, view: Show, stack: contextlib.ExitStack
) -> tuple[Outcome, str]:
    """Insert every row into its machine's table; see `_run_topics`."""
    database = stack.enter_context(psycopg.connect(found.dsn, autocommit=True))
    create_tables(database, data)
    app = pipeline.from_tables(found.dsn, found.log, data.training, online=options.online)
    with _sending(view) as stopped:
        if options.postgres is not None:
            stack.callback(clean_up, database, APP)
        running = _start(app, options, stack, view.console)
        events = data.events()
        view.total = len(events)
        pace = Pace(_speed(options, view), stopped)
        outcome = _send_all(
            app, running, events, lambda event: insert(database, data, event.machine, event.row), pace, view
        )
    return outcome, "" if stopped.is_set() else running.page


def _start(app: hr.App, options: Options, stack: contextlib.ExitStack, console: Console) -> Running:
    """Return the pipeline, which runs until the stack ends."""
    running = stack.enter_context(app.start(ui=options.ui))
    show_page(options, running.page, console)
    return running


@contextlib.contextmanager
def _sending(view: Show) -> Iterator[threading.Event]:
    """In the block figures are drawn; gives what SIGINT and SIGTERM set."""
    stopped = threading.Event()
    with Signals() as signals:
        signals.stop = stopped.set
        view.say("training the first model, and opening the log")
        with view.drawing():
            yield stopped


def _send_all(app: hr.App, running: Running, events: list[Event], send: Send, pace: Pace, view: Show) -> Outcome:
    """Send all events, and show what comes of them."""
    follower = Follower(running, view)
    there = f" behind the {view.done:,} that are there" if view.done else ""
    view.say(f"the machines send{there}" + (f", at {pace.speed:g} times the time" if pace.speed else ""))
    for event in pace.of(events, follower.look):
        send(event)
        view.done += 1
        follower.look()
    running.wait(WAIT_SECONDS)
    follower.look(now=True)
    view.say("reading what came of it")
    return read_outcome(app, running.log)


# -- the end --------------------------------------------------------------------------------------------------------


def _print_end(console: Console, result: dict[str, Any], curve: Curve) -> None:
    console.print(chart(curve, width=min(console.width, 120)))
    console.print(error_table(result["mean_error"], result.get("online", {}).get("mean_error")))
    for item in result["versions"]:
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in item["coefficients"].items() if value is not None)
        console.print(
            f"version {item['version']}, trained on {item['rows']} fish ({', '.join(item['species'])}): {numbers}",
            highlight=False,
        )
    alarms = len(result["alarms"])
    console.print(
        f"{len(result['rows'])} fish graded, {alarms} alarm{'' if alarms == 1 else 's'} · {result['seconds']:.1f} s",
        highlight=False,
    )


def _say_next(console: Console, found: Scene, picture: Path | None) -> None:
    """Print where the picture is, and what to try with the log."""
    say_pictures(console, [picture])
    print_next(
        console,
        found,
        "headrace topics cat weight-retrain",
        "headrace models show weight",
        "headrace sql 'select Species, model_version, avg(error) from \"weight-diff\" group by all'",
    )
