"""The screen of the fish demo: fish as they are graded, windows, the alarm, the retraining, the model."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headrace.demos.fish.outcome import Row
from headrace.demos.fish.pipeline import THRESHOLD

SHOWN_ROWS = 8
SHOWN_WINDOWS = 6
SHOWN_TOLD = 4
OTHER_LINES = 23


@dataclass(slots=True)
class Show:
    """Figures of the demo, drawn live where there is a terminal, else printed as they change.

    Attributes:
        model: the version that answers, and when it was made.
        told: alarms and trainings.
    """

    console: Console
    shown: bool = True
    step: str = "starting"
    total: int = 0
    done: int = 0
    model: str = ""
    graded: deque[Row] = field(default_factory=lambda: deque(maxlen=SHOWN_ROWS))
    online: deque[float] = field(default_factory=lambda: deque(maxlen=SHOWN_ROWS))
    windows: deque[Row] = field(default_factory=lambda: deque(maxlen=SHOWN_WINDOWS))
    told: list[Text] = field(default_factory=list)

    def __rich__(self) -> RenderableType:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(max(1, self.total), self.done, width=40), f"{self.done:,} of {self.total:,} messages")
        title = Text("The fish factory: weights predicted, weighed ten seconds later", style="bold")
        model = Text(self.model, style="cyan")
        step = Text(self.step, style="dim")
        return Group(title, step, bar, model, *self.told[-SHOWN_TOLD:], self._fish(), self._errors())

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
                clock(row["__ts"]),
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

    @property
    def live(self) -> bool:
        """True where figures are drawn anew, in place."""
        return self.shown and self.console.is_terminal

    def say(self, step: str) -> None:
        """A new step begins."""
        self.step = step
        self._print(Text(step))

    def window(self, row: Row) -> None:
        """A window is over."""
        self.windows.append(row)
        self._print(Text(f"{_window(row)}: {row['rows']} fish, mean error {row['ErrorAvg']:.3f}"))

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

    def answers(self, version: int, ts_us: int) -> None:
        """Print which version predicts."""
        made = datetime.fromtimestamp(ts_us / 1e6, UTC)
        self.model = f"model weight: version {version}, made at {made:%Y-%m-%d %H:%M:%S} UTC"

    def _tell(self, text: Text) -> None:
        self.told.append(text)
        self._print(text)

    def _print(self, text: Text) -> None:
        """A line, where figures are not drawn anew."""
        if self.shown and not self.live:
            self.console.print(text, highlight=False, soft_wrap=True)


def clock(when: datetime) -> str:
    """A time of day.

    >>> clock(datetime(2021, 6, 10, 0, 2, 7))
    '00:02:07'
    """
    return f"{when:%H:%M:%S}"


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
