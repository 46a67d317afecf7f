"""A pipeline with one sink that the crash tests kill. It catches up, which includes its sink, and ends.

Run as `python tests/crash/delivering.py KIND:DESTINATION LOG [ROWS]`. With ROWS it appends so many rows itself, as one
producer that goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

import headrace as hr


def build(where: str, log: str | Path, *, append: bool = False) -> hr.App:
    """One sink of a kind on the topic «in»."""
    kind, _, place = where.partition(":")
    app = hr.App("crash", log=log)
    stream = app.topic("in", append=append)
    if kind == "table":
        stream.to_table(place, "out", key="id", name="sink")
    elif kind == "rows":
        stream.to_table(place, "out", name="sink")
    elif kind == "parquet":
        stream.to_parquet(place, partition_by="x", rows_per_file=20, every="20 ms", name="sink")
    elif kind == "mongo":
        uri, _, database = place.rpartition("/")
        stream.to_mongo(uri, database=database, collection="out", key="id", name="sink")
    else:
        stream.to_http(place, backoff="5 ms", success_topic="answers", name="sink")
    return app


def main(where: str, log: str, rows: str = "") -> None:
    """Deliver what the log holds, or what is appended meanwhile."""
    if not rows:
        build(where, log).run(until="caught-up")
        return
    with build(where, log, append=True).start() as running:
        for number in range(running.appended("in", "crash"), int(rows)):
            row = {"id": number, "x": f"x{number % 3}", "y": float(number)}
            running.append("in", [row], producer_id="crash", sequence=number)
        running.wait(None)


if __name__ == "__main__":
    main(*sys.argv[1:])
