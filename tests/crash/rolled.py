"""The pipeline that the crash tests of versions kill: a version ends every 20 rows, and one goes back.

Run as `python tests/crash/rolled.py DSN LOG`: it catches up and ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

import headrace as hr

CENTERS = [[0.0, 0.0], [5.0, 5.0], [9.0, 1.0]]


def build(dsn: str, log: str | Path, name: str = "rolled") -> hr.App:
    """Rows counted, so that some are pending when another version is asked for, and rows by transaction."""
    app = hr.App(name, log=log)
    db = app.postgres(dsn, tables=r"public\.c_.*", prefix="c")
    for model, every in (("counted", 7), ("each", "transaction")):
        learner = hr.KMeans(k=3, initial_centers=CENTERS, decay=0.5)
        one = app.model(model, learner, features=["x", "y"], versions=20, keep_versions=3)
        one.learn(db["public.c_train"], every=every)
        one.predict(db["public.c_test"]).to(f"{model}_out")
    return app


if __name__ == "__main__":
    build(*sys.argv[1:]).run(until="caught-up")
