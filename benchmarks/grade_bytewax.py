"""A Bytewax dataflow that joins predictions with labels and averages their error. Imports nothing from here.

`python grade_bytewax.py FOLDER PAIRS` prints the seconds from the start of the dataflow to its end, and the number of
windows. FOLDER has ``measured.jsonl`` and ``weighed.jsonl``.

Bytewax has no interval join: its `join` keeps every key for ever, and `join_window` joins within fixed windows. So the
side that comes first waits in the state of its key, as its documentation advises for a join of one's own, until the
other is there (`stateful_flat_map`). The rows are Python objects in memory before it starts, and come in batches. There
is one worker, and no recovery store: nothing is written.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import bytewax.operators.windowing as win
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, run_main

BATCH = 4_096
WITHIN = timedelta(minutes=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Rows by their ids, with times."""
    found = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        row["at"] = EPOCH + timedelta(microseconds=row["at"])
        found.append((str(row["key"]), row))
    return found


def meet(waiting: dict[str, Any] | None, row: dict[str, Any]) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """A row and the one that waits under its key."""
    if waiting is None or ("y" in waiting) == ("y" in row) or abs(waiting["at"] - row["at"]) > WITHIN:
        return row, []
    prediction, label = (waiting, row) if "y" in row else (row, waiting)
    error = abs(prediction["prediction"] - label["y"])
    return None, [{**prediction, "y": label["y"], "error": error, "at": max(waiting["at"], row["at"])}]


def main(folder: Path, pairs: int) -> None:
    flow = Dataflow("graded")
    sides = [
        op.input(name, flow, TestingSource(rows(folder / f"{name}.jsonl"), BATCH)) for name in ("measured", "weighed")
    ]
    graded = op.stateful_flat_map("meet", op.merge("both", *sides), meet)
    clock = win.EventClock(lambda row: row["at"], wait_for_system_duration=WITHIN)
    windower = win.TumblingWindower(length=timedelta(minutes=1), align_to=EPOCH)
    totals = win.fold_window(
        "mean",
        op.map("all", graded, lambda pair: ("all", pair[1])),
        clock,
        windower,
        builder=lambda: (0.0, 0),
        folder=lambda total, row: (total[0] + row["error"], total[1] + 1),
        merger=lambda a, b: (a[0] + b[0], a[1] + b[1]),
        ordered=False,
    )
    found: list[Any] = []
    op.output("out", totals.down, TestingSink(found))
    late: list[Any] = []
    op.output("late", totals.late, TestingSink(late))
    began = time.perf_counter()
    run_main(flow)
    seconds = time.perf_counter() - began
    counted = sum(count for _, (_, (_, count)) in found)
    assert counted + len(late) == pairs, f"{counted} and {len(late)} late of {pairs} pairs"
    assert not late, f"{len(late)} late"
    print(seconds, len(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
