"""The seed's picture: errors over fish, the threshold, the trigger period, the retraining data and the new model.

Once as PNG (matplotlib), once in letters for the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from headrace.demos.fish.outcome import Outcome, Row
from headrace.demos.fish.pipeline import THRESHOLD
from headrace.demos.screen import save_picture

HEIGHT = 12
MARGIN = 7
INKS = (("dark_orange", "#e6762f"), ("dodger_blue1", "#2f7fd0"), ("green3", "#3a9d4b"), ("magenta", "#a04fb3"))
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Curve:
    """Errors of fish in the order in which they were graded, and what happened; places count fish from 0.

    Attributes:
        triggers: first and last fish of each window that raised an alarm.
        trained: first and last fish of those that each new version was trained on.
        models: the first fish that each new version predicted, with the version.
        online: errors of the same fish by the model that learns every one; empty where there is none.
    """

    errors: list[float]
    species: list[str]
    triggers: list[Span]
    trained: list[Span]
    models: list[tuple[int, int]]
    online: list[float]

    @classmethod
    def of(cls, outcome: Outcome) -> Curve:
        """The picture's data."""
        rows = outcome.graded
        models: dict[int, int] = {}
        for i, row in enumerate(rows):
            models.setdefault(row["model_version"], i)
        return cls(
            [row["error"] for row in rows],
            [row["Species"] for row in rows],
            _spans([i for i, row in enumerate(rows) if _within(row, alarm)] for alarm in outcome.alarms),
            _spans(
                [i for i, row in enumerate(rows) if row["grade"] in training.grades] for training in outcome.trainings
            ),
            [(i, version) for version, i in models.items() if version > 1],
            [row["error"] for row in outcome.online or []],
        )

    @property
    def kinds(self) -> list[str]:
        """The species, in the order in which they came."""
        return list(dict.fromkeys(self.species))


def _within(row: Row, alarm: Row) -> bool:
    return bool(
        datetime.fromisoformat(alarm["window_start"]) <= row["ts"] < datetime.fromisoformat(alarm["window_end"])
    )


def _spans(places: Iterable[Sequence[int]]) -> list[Span]:
    return [(some[0], some[-1]) for some in places if some]


# -- as a file ------------------------------------------------------------------------------------------------------


def draw(path: Path, curve: Curve) -> Path | None:
    """A PNG of it; None where there is no matplotlib."""
    return save_picture(path, (9.6, 4.8), lambda ax: _draw_errors(ax, curve))


def _draw_errors(ax: Any, curve: Curve) -> None:
    _draw_periods(ax, curve)
    for i, kind in enumerate(curve.kinds):
        places = [n for n, item in enumerate(curve.species) if item == kind]
        ax.scatter([n + 1 for n in places], [curve.errors[n] for n in places], s=14, color=_ink(i)[1], label=kind)
    if curve.online:
        ax.plot(range(1, len(curve.online) + 1), curve.online, color="0.45", lw=1, label="learned online")
    ax.axhline(THRESHOLD, color="0.2", ls="--", lw=1, label=f"threshold {THRESHOLD:.0%}")
    ax.set(xlabel="fish, in the order in which they were weighed", ylabel="relative error of the predicted weight")
    ax.set_ylim(0, 1.12 * max([2 * THRESHOLD, *curve.errors, *curve.online]))
    ax.set_title("The fish factory: errors over events")
    ax.legend(loc="upper right", fontsize=8)


def _draw_periods(ax: Any, curve: Curve) -> None:
    """Bands for what raised alarms and what was trained on; a line where a new model begins to predict."""
    for name, color, alpha, (low, high), spans in (
        ("trigger period", "#f3cdc8", 0.6, (0.0, 1.0), curve.triggers),
        ("retraining data", "#2f7fd0", 0.35, (0.94, 0.98), curve.trained),
    ):
        for i, (first, last) in enumerate(spans):
            label = name if i == 0 else None
            ax.axvspan(first + 0.5, last + 1.5, ymin=low, ymax=high, color=color, alpha=alpha, lw=0, label=label)
    for at, version in curve.models:
        ax.axvline(at + 0.5, color="#b3261e", lw=1.2, label=f"new model (version {version})")


def _ink(number: int) -> tuple[str, str]:
    return INKS[number % len(INKS)]


# -- in the terminal --------------------------------------------------------------------------------------------------


def chart(curve: Curve, *, width: int = 80) -> Text:
    """The picture in letters, at most ``width`` wide; each column is the mean of a few fish."""
    fish = len(curve.errors)
    if not fish:
        return Text("no fish was weighed", style="dim")
    each = -(-fish // max(10, width - MARGIN))
    top = max(*curve.errors, 2 * THRESHOLD)
    starts = range(0, fish, each)
    means = [float(np.mean(curve.errors[at : at + each])) for at in starts]
    levels = [min(HEIGHT - 1, int(mean / top * HEIGHT)) for mean in means]
    limit = int(THRESHOLD / top * HEIGHT)
    styles = [_ink(curve.kinds.index(curve.species[at]))[0] for at in starts]
    text = Text(no_wrap=True)
    for level in reversed(range(HEIGHT)):
        text.append(f"{level * top / HEIGHT:5.2f} ┤", style="dim")
        for at, style in zip(levels, styles, strict=True):
            text.append(*(("●", style) if at == level else ("┄", "dim") if level == limit else (" ", "")))
        text.append("\n")
    text.append(" " * 6 + "└" + "─" * len(means) + f"\n{'':7}fish 1 to {fish}", style="dim")
    for i, kind in enumerate(curve.kinds):
        text.append(f"   ● {kind}", style=_ink(i)[0])
    text.append(f"   ┄ threshold {THRESHOLD:g}\n", style="dim")
    _append_periods(text, curve, each)
    return text


def _append_periods(text: Text, curve: Curve, each: int) -> None:
    """A line each: where the windows of alarms lie, the rows trained on, and the fish predicted by new models."""
    fish = len(curve.errors)
    ends = [at for at, _ in curve.models[1:]] + [fish]
    models = [(at, end - 1) for (at, _), end in zip(curve.models, ends, strict=True)]
    for name, style, spans in (
        ("trigger period", "red", curve.triggers),
        ("retraining data", "blue", curve.trained),
        ("new model", "green", models),
    ):
        if not spans:
            continue
        line = np.zeros(-(-fish // each), np.bool_)
        for first, last in spans:
            line[first // each : last // each + 1] = True
        text.append(" " * MARGIN + "".join("▀" if item else " " for item in line), style=style)
        text.append(f"\n{'':{MARGIN}}{name}: " + ", ".join(f"fish {a + 1} to {b + 1}" for a, b in spans) + "\n", style)
