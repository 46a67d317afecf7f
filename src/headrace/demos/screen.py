"""The screen of the demos: a view that is drawn live or printed line by line, pictures, and what to try next."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from headrace.demos.servers import Scene, ServerOptions
from headrace.engines.local.signals import Signals
from headrace.errors import MissingExtra
from headrace.log.base import Log
from headrace.ui.application import open_browser

WAIT_SECONDS = 0.2


@dataclass(slots=True)
class View(ABC):
    """Figures of a demo, drawn live where there is a terminal, else printed as they change.

    Attributes:
        shown: whether anything is printed.
        step: what is being done.
        total, done: rows that there will be, and that there are.
    """

    console: Console
    shown: bool = True
    step: str = "starting"
    total: int = 0
    done: int = 0

    @abstractmethod
    def __rich__(self) -> RenderableType:
        """Return the whole view."""

    @property
    def live(self) -> bool:
        """True where figures are drawn anew, in place."""
        return self.shown and self.console.is_interactive

    def drawing(self) -> contextlib.AbstractContextManager[object]:
        """Draw the view anew, in place, where it is live."""
        return Live(self, console=self.console, transient=True) if self.live else contextlib.nullcontext()

    def say(self, step: str) -> None:
        """Begin a new step."""
        self.step = step
        self.told(step)

    def told(self, text: str | Text) -> None:
        """Print a line, where figures are not drawn anew."""
        if self.shown and not self.live:
            self.console.print(Text(text) if isinstance(text, str) else text, highlight=False, soft_wrap=True)


def show_page(options: ServerOptions, page: str, console: Console | None = None) -> None:
    """Open the dashboard, where it was asked for.

    Args:
        console: on which a person at a terminal is told where it is, above what is drawn there.
    """
    if options.ui and console is not None and console.is_interactive:
        console.print(f"The dashboard is at {page}", highlight=False, soft_wrap=True)
    if options.ui and options.opens:
        open_browser(page)


def keep_page(options: ServerOptions, page: str, console: Console) -> None:
    """Wait with the end of the pipeline until a person at a terminal has seen enough of its dashboard."""
    if not (options.ui and console.is_interactive):
        return
    ended = threading.Event()
    with Signals(expected=True) as signals:
        signals.stop = ended.set
        console.print(
            f"\nThe dashboard stays at {page}, and the pipeline runs. Ctrl-C ends both.",
            highlight=False,
            soft_wrap=True,
        )
        while not ended.wait(WAIT_SECONDS):
            pass


def save_picture(path: Path, size: tuple[float, float], draw: Callable[[Any], object]) -> Path | None:
    """Save what is drawn on axes as a PNG; None where there is no matplotlib."""
    try:
        figure = new_figure(size)
    except MissingExtra:
        return None
    draw(figure.add_subplot())
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path


def new_figure(size: tuple[float, float]) -> Any:
    """A figure that belongs to no window: it can be made anywhere."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("plot", "a picture") from error
    return Figure(figsize=size)


def say_pictures(console: Console, pictures: Sequence[Path | None]) -> None:
    """Say where the pictures are, or what is missing for them."""
    drawn = [str(path) for path in pictures if path is not None]
    word = "icture" if len(pictures) == 1 else "ictures"
    text = f"P{word}: {', '.join(drawn)}" if drawn else f"No p{word}: pip install 'headrace\\[plot]'"
    console.print(text, highlight=False, soft_wrap=True)


def new_rows(log: Log, topic: str, seen: int) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a topic from an offset on, and the offset behind them."""
    rows: list[dict[str, Any]] = []
    for entry in log.read_topic(topic, offset=seen):
        rows += entry.records.slice(max(0, seen - entry.offset)).to_pylist()
        seen = entry.offset + entry.records.num_rows
    return rows, seen


def print_next(console: Console, scene: Scene, *commands: str) -> None:
    """Print what to try with the log."""
    if scene.stopped:
        text = (
            "The broker is stopped, and the log went with it. Give --keep to look at both, or --log kafka://host:port."
        )
        console.print(text, highlight=False, soft_wrap=True)
        return
    console.print(f"\nThe log stays at {scene.log}. Next:", highlight=False, soft_wrap=True)
    for command in ("headrace topics list", *commands):
        console.print(f"  {command} --log {scene.log}", highlight=False, soft_wrap=True, markup=False)


def print_kept(scene: Scene) -> None:
    """Print, on standard error, which servers go on."""
    for line in scene.kept:
        Console(stderr=True).print(f"goes on: {line}", highlight=False, soft_wrap=True)
