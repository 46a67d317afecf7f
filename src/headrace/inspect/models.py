"""Models of a log: the figures of each, its newest scores, and its confusion matrix as a table."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from headrace.log.base import Log
from headrace.registry import models as registry
from headrace.registry.versions import VersionList

_OWN = ("stream", "model", "model_version", "model_position", "learned", "rows", "window", "labels", "confusion")


def model_rows(log: Log) -> list[dict[str, Any]]:
    """Return the figures of every model in a log."""
    found = []
    for name in log.records("model"):
        progress = registry.read_progress(log, name) or registry.Progress()
        versions = VersionList.read(log, name)
        found.append(
            {
                "model": name,
                "version": progress.version,
                "position": progress.position,
                "rows": progress.model_rows,
                "cuts": progress.counters.get("cuts", 0),
                "pending": progress.pending,
                **{counter: progress.counters.get(counter, 0) for counter in ("predicted", "rejected", "ignored")},
                "size": progress.size,
                "hash": progress.hash,
                "diverged": progress.diverged,
                "versions": len(versions),
                "tags": versions.tags,
            }
        )
    return found


def metrics_of(line: dict[str, Any]) -> dict[str, float | None]:
    """Return the metrics of a line, without what it says of itself."""
    return {name: value for name, value in line.items() if name not in _OWN}


def print_scores(lines: list[dict[str, Any]]) -> None:
    """Print every metric over all rows and over the newest, then the confusion matrix of each."""
    for line in lines:
        console = Console()
        figures = metrics_of(line)
        table = Table(title=f"{line['stream']}: {line['rows']:,} rows scored", title_justify="left", box=SIMPLE_HEAD)
        for name in ("metric", "all rows", f"newest {line['window']:,}"):
            table.add_column(name, justify="left" if name == "metric" else "right")
        for name in dict.fromkeys(name.removeprefix("window_") for name in figures):
            table.add_row(name, _shown(figures.get(name)), _shown(figures.get(f"window_{name}")))
        console.print(table)
        if line.get("confusion"):
            console.print(confusion_table(line["labels"], line["confusion"]))


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def confusion_table(labels: list[str], counts: list[int]) -> Table:
    """Return a table whose rows are the truth, its columns the predictions; labels in their own order.

    >>> table = confusion_table(["b", "a"], [3, 1, 0, 4])
    >>> [column.header for column in table.columns]
    ['truth', 'a', 'b', 'right']
    """
    k = len(labels)
    numbers = all(label.lstrip("-").isdigit() for label in labels)
    order = sorted(range(k), key=lambda i: int(labels[i]) if numbers else labels[i])
    table = Table(title="confusion: rows are the truth, columns the predictions", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("truth")
    for j in order:
        table.add_column(labels[j], justify="right")
    table.add_column("right", justify="right")
    for i in order:
        row = counts[i * k : (i + 1) * k]
        cells = [f"[bold green]{row[j]}[/]" if j == i else f"[red]{row[j]}[/]" if row[j] else "·" for j in order]
        table.add_row(labels[i], *cells, f"{row[i] / sum(row):.0%}" if sum(row) else "")
    return table
