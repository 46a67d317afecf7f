"""The screen of the MNIST demo: figures that go up, a digit in the terminal, pictures in files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headrace.demos.mnist.digits import SIDE
from headrace.demos.screen import View, save_picture
from headrace.demos.servers import Scene
from headrace.inspect import plot

INK = 96
HALVES = " ▄▀█"
SHOWN_POINTS = 8


@dataclass(slots=True)
class Show(View):
    """Figures of the demo.

    Attributes:
        title: the first line.
        curve: pairs (rows, accuracy).
    """

    title: str = ""
    curve: list[tuple[int, float]] = field(default_factory=list)

    def __rich__(self) -> RenderableType:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(max(1, self.total), self.done, width=40), f"{self.done:,} of {self.total:,} rows")
        return Group(Text(self.title, style="bold"), Text(self.step, style="dim"), bar, self._points())

    def _points(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for rows, accuracy in self.curve[-SHOWN_POINTS:]:
            table.add_row(
                Text(f"{rows:>7,} rows"), ProgressBar(1.0, accuracy, width=40), Text(f"{accuracy:7.2%} right")
            )
        return table

    def count(self, step: str, total: int) -> None:
        """Begin a step that goes over so many rows."""
        self.total, self.done = total, 0
        self.say(step)

    def point(self, rows: int, accuracy: float) -> None:
        """Another point of the curve."""
        self.curve.append((rows, accuracy))
        self.told(f"{rows:>7,} rows: {accuracy:.2%} right")


def result_of(
    mode: str, model: str, view: Show, scene: Scene, started: float, *, train_rows: int, test_rows: int, three: object
) -> dict[str, Any]:
    """The demo's result as JSON values; ``three``: what the 3 drawn by hand is taken for."""
    return {
        "mode": mode,
        "model": model,
        "train_rows": train_rows,
        "test_rows": test_rows,
        "accuracy": view.curve[-1][1] if view.curve else None,
        "accuracy_curve": [list(point) for point in view.curve],
        "digit3": three,
        "log": scene.log,
        "seconds": round(time.monotonic() - started, 3),
    }


def print_three(console: Console, pixels: bytes, answer: object) -> None:
    """Print the 3 drawn by hand, and what it is taken for."""
    console.print(half_blocks(pixels), highlight=False, markup=False)
    console.print(f"The 3 drawn by hand is a [bold]{answer}[/]", highlight=False)


def half_blocks(pixels: bytes, side: int = SIDE) -> str:
    """An image as text: each character is two pixels, one above the other.

    >>> print(half_blocks(bytes([255, 0, 0, 255]), 2))
    ▀▄
    """
    ink = (np.frombuffer(pixels, np.uint8).reshape(-1, 2, side) >= INK).astype(int)
    return "\n".join("".join(HALVES[code] for code in line) for line in (2 * ink[:, 0] + ink[:, 1]).tolist())


def draw_digit(path: Path, pixels: bytes, answer: object) -> Path | None:
    """A PNG of an image with its prediction; None where there is no matplotlib."""
    return save_picture(path, (3, 3), lambda ax: plot.digit(pixels, ax=ax, title=answer))


def draw_curve(path: Path, curve: Sequence[tuple[int, float]], title: str) -> Path | None:
    """A PNG of an accuracy's curve; None where there is no matplotlib."""
    return save_picture(path, (6.4, 4), lambda ax: plot.accuracy(curve, ax=ax).set_title(title))


def share_right(predicted: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """The share of rows that are predicted as labelled.

    >>> share_right(np.array([1, 2, 3]), np.array([1, 2, 4]))
    0.6667
    """
    return round(float((predicted.astype(np.int64) == labels.astype(np.int64)).mean()), 4)
