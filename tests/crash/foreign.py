"""The pipeline on topics that others write: flattened JSON, one topic learned and answered, another one copied.

Run as `python tests/crash/foreign.py KAFKA LOG [NAME]`: it catches up and ends. Its model is cut by rows, so that what
it learns depends on the order in the topic and not on what happened to arrive together.
"""

from __future__ import annotations

import sys
from pathlib import Path

import headrace as hr

CENTERS = [[0.0, 0.0], [5.0, 5.0], [9.0, 1.0]]
OUTPUTS = ("answered", "copied", "f.public.points", "f.public.names")


def build(kafka: str, log: str | Path, name: str = "foreign", prefix: str = "f") -> hr.App:
    """Each row is answered by the model before the cut that holds it."""
    app = hr.App(name, log=log)
    topics = app.debezium(kafka, prefix=prefix)
    model = app.model("counted", hr.KMeans(k=3, initial_centers=CENTERS, decay=0.5), features=["x", "y"])
    model.learn(topics["public.points"], every=7)
    model.predict(topics["public.points"]).to("answered")
    topics["public.names"].select("id", "name").to("copied")
    return app


if __name__ == "__main__":
    build(*sys.argv[1:]).run(until="caught-up")
