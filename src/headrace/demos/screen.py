"""The screen of the demos: a view that is drawn live or printed line by line, pictures, and what to try next."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from headrace.demos.servers import Scene
from headrace.errors import MissingExtra


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


def print_next(console: Console, scene: Scene, *commands: str) -> None:
    """Print what to try with the log."""
    if scene.stopped:
        console.print("The broker is stopped, and the log went with it. Give --keep to look at both.", highlight=False)
        return
    console.print(f"\nThe log stays at {scene.log}. Next:", highlight=False, soft_wrap=True)
    for command in ("headrace topics list", *commands):
        console.print(f"  {command} --log {scene.log}", highlight=False, soft_wrap=True, markup=False)


def print_kept(scene: Scene) -> None:
    """Print, on standard error, which servers go on."""
    for line in scene.kept:
        Console(stderr=True).print(f"goes on: {line}", highlight=False, soft_wrap=True)
