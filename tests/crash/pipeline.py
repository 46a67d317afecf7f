"""The pipeline that the crash tests kill: two models on two tables, each row with a number of its own.

Run as `python tests/crash/pipeline.py DSN LOG`: it catches up and ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

import headrace as hr

CENTERS = [[0.0, 0.0], [5.0, 5.0], [9.0, 1.0]]


def build(dsn: str, log: str | Path, name: str = "crash") -> hr.App:
    """Rows counted and rows by transaction; one stream is learned and answered at once."""
    app = hr.App(name, log=log)
    db = app.postgres(dsn, tables=r"public\.c_.*", prefix="c")
    counted = app.model("counted", hr.KMeans(k=3, initial_centers=CENTERS, decay=0.5), features=["x", "y"])
    counted.learn(db["public.c_train"], every=7)
    counted.predict(db["public.c_test"]).to("counted_out")
    each = app.model("each", hr.KMeans(k=3, seed=3), features=["x", "y"])
    each.learn(db["public.c_train"])
    each.predict(db["public.c_train"]).to("each_out")
    db["public.c_test"].select("id").to("copied")
    return app


if __name__ == "__main__":
    build(*sys.argv[1:]).run(until="caught-up")
