"""The screen of the fish demo: fish as they are graded, windows, the alarm, the retraining, the model."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headrace.demos.fish.outcome import MODEL, Row, is_graded
from headrace.demos.fish.pipeline import THRESHOLD
from headrace.demos.screen import View, new_rows
from headrace.engines.local.running import Running
from headrace.registry.versions import VersionList

SHOWN_ROWS = 8
SHOWN_WINDOWS = 6
SHOWN_NEWS = 4
OTHER_LINES = 23


@dataclass(slots=True)
class Show(View):
    """Figures of the demo.

    Attributes:
        model: the version that predicts, and when it was made.
        news: alarms and trainings.
    """

    model: str = ""
    graded: deque[Row] = field(default_factory=lambda: deque(maxlen=SHOWN_ROWS))
    online: deque[float] = field(default_factory=lambda: deque(maxlen=SHOWN_ROWS))
    windows: deque[Row] = field(default_factory=lambda: deque(maxlen=SHOWN_WINDOWS))
    news: list[Text] = field(default_factory=list)

    def __rich__(self) -> RenderableType:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(max(1, self.total), self.done, width=40), f"{self.done:,} of {self.total:,} messages")
        title = Text("The fish factory: weights predicted, weighed ten seconds later", style="bold")
        model = Text(self.model, style="cyan")
        step = Text(self.step, style="dim")
        return Group(title, step, bar, model, *self.news[-SHOWN_NEWS:], self._fish(), self._errors())

    def _fish(self) -> Table:
        table = Table(title="weight-diff", title_justify="left", box=SIMPLE_HEAD)
        for name in ("Fish_Id", "Species", "PredictedWeight", "ActualWeight", "Error", "model", "weighed at"):
            table.add_column(name, justify="left" if name == "Species" else "right", no_wrap=True)
        shown = max(3, min(SHOWN_ROWS, self.console.height - OTHER_LINES))
        for row in list(self.graded)[-shown:]:
            table.add_row(
                str(row["Fish_Id"]),
                row["Species"],
                f"{row['prediction']:.4f}",
                f"{row['Weight']:.4f}",
                Text(f"{row['error']:.3f}", style=_style(row["error"])),
                f"v{row['model_version']}",
                f"{row['__ts']:%H:%M:%S}",
            )
        return table

    def _errors(self) -> Table:
        table = Table(title="mean error, minute by minute", title_justify="left", box=SIMPLE_HEAD, show_header=False)
        for row in self.windows:
            error = row["ErrorAvg"]
            bar = ProgressBar(1.0, min(1.0, error), width=40, complete_style=_style(error), finished_style="red")
            table.add_row(_window(row), bar, Text(f"{error:.3f}", style=_style(error)), f"{row['rows']} fish")
        if self.online:
            mean = sum(self.online) / len(self.online)
            table.add_row("learned online", ProgressBar(1.0, min(1.0, mean), width=40), f"{mean:.3f}", "newest fish")
        return table

    def window(self, row: Row) -> None:
        """A window is over."""
        self.windows.append(row)
        self.told(Text(f"{_window(row)}: {row['rows']} fish, mean error {row['ErrorAvg']:.3f}"))

    def alarm(self, row: Row) -> None:
        """A window's error was too large."""
        text = f"ALARM {_window(row)}: mean error {row['ErrorAvg']:.3f} is above {THRESHOLD:g}, fish "
        text += f"{row['Fish_Id_Start']} to {row['Fish_Id_End']}, {' and '.join(row['Species'])}"
        self._tell(Text(text, style="bold red"))

    def training(self, row: Row) -> None:
        """Print the outcome of a training."""
        if row["status"] == "trained":
            text = f"RETRAINED on {row['selection']}: version {row['version']} from here on"
        else:
            text = f"a training came to nothing ({row['status']}): {row['reason']}"
        self._tell(Text(text, style="bold green" if row["status"] == "trained" else "yellow"))

    def predicts(self, version: int, ts_us: int) -> None:
        """Print which version predicts."""
        made = datetime.fromtimestamp(ts_us / 1e6, UTC)
        self.model = f"model weight: version {version}, made at {made:%Y-%m-%d %H:%M:%S} UTC"

    def _tell(self, text: Text) -> None:
        self.news.append(text)
        self.told(text)


def error_table(errors: dict[str, float | None], online: dict[str, float | None] | None = None) -> Table:
    """Mean errors of each species before and after."""
    table = Table(title="mean errors", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("predicted by")
    names = [error.removesuffix("_before") for error in errors if error.endswith("_before")]
    for name in names:
        table.add_column(name, justify="right")
    lines: list[tuple[str, Any, str]] = [("version 1", errors, "before"), ("later versions", errors, "after")]
    if online is not None:
        lines += [("learned online, fish of version 1", online, "before"), ("… of later versions", online, "after")]
    for title, of, when in lines:
        cells = [of[f"{name}_{when}"] for name in names]
        table.add_row(title, *(Text("–" if cell is None else f"{cell:.4f}", style=_style(cell)) for cell in cells))
    return table


def _style(error: float | None) -> str:
    return "" if error is None else "red" if error > THRESHOLD else "green"


def _window(row: Row) -> str:
    return f"{row['window_start']:%H:%M} to {row['window_end']:%H:%M}"


# -- rows that a running pipeline has written since the last look ----------------------------------------------------

LOOK_SECONDS = 0.1


class Follower:
    """Hands new rows of the pipeline's topics to the view, a few times a second.

    What an earlier run has written is read when the first look is taken, and shown as if it had just come.
    """

    def __init__(self, running: Running, view: Show) -> None:
        self._log = running.log
        self._running = running
        self._view = view
        self._seen: dict[str, int] = {}
        self._version = 0
        self._next = 0.0

    def look(self, *, now: bool = False) -> None:
        """Show what is new; ``now``: even where the last look was just before."""
        if not self._view.shown or (not now and time.monotonic() < self._next):
            return
        view, topics = self._view, self._log.topics()
        if "weight-diff" in topics:
            view.graded.extend(row for row in self._rows("weight-diff") if is_graded(row))
        if "weight-online-diff" in topics:
            view.online.extend(row["error"] for row in self._rows("weight-online-diff") if is_graded(row))
        for topic, take in (
            ("weight-error", view.window),
            ("weight-retrain", view.alarm),
            ("weight-training", view.training),
        ):
            if topic in topics:
                for row in self._rows(topic):
                    take(row)
        self._look_at_model()
        self._next = time.monotonic() + LOOK_SECONDS

    def _rows(self, topic: str) -> list[Row]:
        rows, self._seen[topic] = new_rows(self._log, topic, self._seen.get(topic, 0))
        return rows

    def _look_at_model(self) -> None:
        version = self._running[MODEL].version
        if version != self._version:
            known = VersionList.read(self._log, MODEL).versions.get(version)
            if known is not None:
                self._version = version
                self._view.predicts(version, known.ts_us)
