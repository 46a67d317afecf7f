"""The pipeline that the crash tests kill: three models on two tables, each row with a number of its own.

Run as `python tests/crash/pipeline.py DSN LOG`: it catches up and ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sklearn.linear_model import SGDRegressor

import headrace as hr

CENTERS = [[0.0, 0.0], [5.0, 5.0], [9.0, 1.0]]


def build(dsn: str, log: str | Path, name: str = "crash") -> hr.App:
    """Rows counted and rows by transaction; one stream is learned, answered and scored at once."""
    app = hr.App(name, log=log)
    db = app.postgres(dsn, tables=r"public\.c_.*", prefix="c")
    counted = app.model("counted", hr.KMeans(k=3, initial_centers=CENTERS, decay=0.5), features=["x", "y"])
    counted.learn(db["public.c_train"], every=7)
    counted.predict(db["public.c_test"]).to("counted_out")
    each = app.model("each", hr.KMeans(k=3, seed=3), features=["x", "y"])
    each.learn(db["public.c_train"])
    each.predict(db["public.c_train"]).to("each_out")
    scored = app.model(
        "scored",
        SGDRegressor(learning_rate="constant", eta0=0.001),
        features=["x", hr.category("note", capacity=6)],
        target="y",
        versions=40,
    )
    scored.learn(db["public.c_train"], every=5)
    scored.predict(db["public.c_train"]).to("scored_out")
    scored.evaluate(db["public.c_train"], window=20)
    scored.evaluate(db["public.c_test"], name="others", every=3)
    db["public.c_test"].select("id").to("copied")
    return app


if __name__ == "__main__":
    build(*sys.argv[1:]).run(until="caught-up")
