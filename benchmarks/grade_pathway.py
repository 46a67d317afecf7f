"""A Pathway program that joins predictions with labels and averages their error. Imports nothing from here.

`python grade_pathway.py FOLDER PAIRS` prints the seconds from the start of the run to its end, and how many windows
there were. FOLDER has ``measured.jsonl`` and ``weighed.jsonl``.

They meet in Pathway's own interval join, and go into its tumbling windows. It reads the files itself, which is several
times as fast as handing it rows from Python; with ``mode="static"`` it takes all of them as one batch. ``"streaming"``
takes about as long. It keeps nothing on disk. ``PATHWAY_THREADS`` is how many workers there are.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pathway as pw

MINUTE = 60_000_000


class Measured(pw.Schema):
    key: int
    a: float
    b: float
    c: float
    d: float
    prediction: float
    at: int


class Weighed(pw.Schema):
    key: int
    y: float
    at: int


def main(folder: Path, pairs: int) -> None:
    left: Any = pw.io.jsonlines.read(str(folder / "measured.jsonl"), schema=Measured, mode="static")
    right: Any = pw.io.jsonlines.read(str(folder / "weighed.jsonl"), schema=Weighed, mode="static")
    graded = left.interval_join(
        right, left.at, right.at, pw.temporal.interval(-MINUTE, MINUTE), left.key == right.key
    ).select(
        *pw.left,
        y=pw.right.y,
        later=pw.if_else(pw.right.at > pw.left.at, pw.right.at, pw.left.at),
        error=pw.apply_with_type(abs, float, pw.left.prediction - pw.right.y),
    )
    windows = graded.windowby(graded.later, window=pw.temporal.tumbling(duration=MINUTE)).reduce(
        start=pw.this._pw_window_start, error=pw.reducers.avg(pw.this.error), rows=pw.reducers.count()
    )
    counts: dict[int, int] = {}

    def changed(key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        if is_addition:
            counts[row["start"]] = row["rows"]

    pw.io.subscribe(windows, on_change=changed)
    began = time.perf_counter()
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    seconds = time.perf_counter() - began
    assert sum(counts.values()) == pairs, f"{sum(counts.values())} of {pairs} pairs"
    print(seconds, len(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
