"""A shop that runs for half an hour at 200 commits a second: latency, memory and log do not grow with what was done.

Each commit is an order; a second later another commit tells its size, which the model learns and its prediction is
graded with. Predictions go into a table of another database. Measured is the time from the order's COMMIT returning to
its prediction in that table, the resident set, and what the log takes a row, in the first and the last sixth of the
run (of 30 minutes: five each, a first minute that fills caches left out).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import headrace as hr
from benchmarks.kafka_profile import Sampler
from headrace.arrays import Floats
from headrace.testing.servers import PostgresServer, postgres

RATE = 200
WARM_S = 60.0
PART = 6
LEAST_S = 5.0
FLAT = 1.1
PATIENCE_S = 120.0

# Processes of their own: what measures shares no interpreter lock with what is measured.
WRITER = """
import sys, time, psycopg
dsn, orders, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
late = int(rate / 2)
with psycopg.connect(dsn, autocommit=True) as c:
    start = time.clock_gettime(time.CLOCK_MONOTONIC) + 0.2
    for i in range(2 * orders):
        due = start + i / rate
        while (left := due - time.clock_gettime(time.CLOCK_MONOTONIC)) > 0:
            time.sleep(left)
        order, second = divmod(i, 2)
        if second and order >= late:
            n = order - late
            c.execute("update orders set size = %s where id = %s", [n % 10 + n % 7, n], prepare=True)
        elif not second:
            c.execute("insert into orders (id, x, y) values (%s, %s, %s)", [order, order % 10, order % 7], prepare=True)
            print(time.clock_gettime(time.CLOCK_MONOTONIC), flush=order % 64 == 0)
"""

WATCHER = """
import sys, time, numpy as np, psycopg
dsn, orders, patience, seen = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), 0
found = np.full(orders, np.nan)
query = "select id from predicted where id > %s order by id"
deadline = time.monotonic() + patience
with psycopg.connect(dsn, autocommit=True) as c:
    while c.execute("select to_regclass('predicted')").fetchone()[0] is None:  # the sink makes it with the first row
        time.sleep(0.1)
    while seen < orders and time.monotonic() < deadline:
        new = [row[0] for row in c.execute(query, [seen - 1], prepare=True)]
        if new:
            found[new] = time.clock_gettime(time.CLOCK_MONOTONIC)
            seen, deadline = new[-1] + 1, time.monotonic() + patience
        time.sleep(0.002)
sys.stdout.buffer.write(found.tobytes())
"""


def run(rows: int, *, profile: bool = False) -> list[dict[str, Any]]:
    """Ratios of the last part to the first, of p50, p99, resident set and bytes a row; at most 1.1 each."""
    with (
        postgres(settings={"max_wal_size": "2GB"}) as server,
        tempfile.TemporaryDirectory() as directory,
        Sampler(wanted=profile) as sampler,
    ):
        server.execute("create table orders (id bigint primary key, x float8, y float8, size float8)")
        server.execute("alter table orders replica identity full")
        app = shop(server, Path(directory))
        with app.start() as running, Samples(Path(app.log)) as samples:
            committed, delivered = drive(server, rows, Path(directory) / "committed")
            running.wait(PATIENCE_S)
    found = figures(committed, delivered, samples, rows)
    found[0]["profile"] = sampler.text
    return found


def shop(server: PostgresServer, folder: Path) -> hr.App:
    """The pipeline: orders are predicted, learned and graded when their size is known; two sinks."""
    app = hr.App("shop", log=folder / "shop.headrace")
    db = app.postgres(server.dsn, tables=r"public\.orders", prefix="shop")
    orders = db["public.orders"]
    model = app.model("size", hr.LinearRegression(), features=["x", "y"], target="size")
    model.learn(orders, every=100)
    predicted = model.predict(orders).to("predicted")
    graded = predicted.grade(orders, on="id", within="1 min").to("graded")
    graded.window("1 min").mean("error").to("errors")
    predicted.to_table(server.dsn, "predicted", key="id")
    return app


def drive(server: PostgresServer, orders: int, committed: Path) -> tuple[Floats, Floats]:
    """When each order's COMMIT returned, and when its prediction was seen in the table.

    Args:
        committed: a file that the writer writes to: what this process held of it would count as the pipeline's.
    """
    watching = [sys.executable, "-c", WATCHER, server.dsn, str(orders), str(PATIENCE_S)]
    watcher = subprocess.Popen(watching, stdout=subprocess.PIPE)
    command = [sys.executable, "-c", WRITER, server.dsn, str(orders), str(RATE)]
    with committed.open("w") as file:
        subprocess.run(command, check=True, stdout=file)
    out, _ = watcher.communicate(timeout=2 * PATIENCE_S)
    return np.loadtxt(committed, np.float64), np.frombuffer(out, np.float64)


@dataclass
class Samples(AbstractContextManager["Samples"]):
    """The resident set of this process and the size of the log's files, once a second."""

    log: Path
    times: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Samples:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(1.0):
            self.times.append(time.clock_gettime(time.CLOCK_MONOTONIC))
            self.resident.append(process.memory_info().rss)
            self.stored.append(self.log.stat().st_size)


def figures(committed: Floats, delivered: Floats, samples: Samples, orders: int) -> list[dict[str, Any]]:
    """What each part had."""
    begin, end = committed[0], committed[-1]
    if end - begin < PART * LEAST_S:
        raise SystemExit(
            f"{orders:,} orders are over in {end - begin:.0f} s: at least {PART * LEAST_S:.0f} s are needed"
        )
    warm = min(WARM_S, (end - begin) / PART)
    part = (end - begin) / PART
    spans = ((begin + warm, begin + warm + part), (end - part, end))
    delays = [(delivered - committed)[(committed >= low) & (committed < high)] * 1000 for low, high in spans]
    times, resident, stored = (np.array(values) for values in (samples.times, samples.resident, samples.stored))
    inside = [(times >= low) & (times < high) for low, high in spans]
    rows = [len(values) for values in delays]
    grown = [float(np.ptp(stored[chosen])) for chosen in inside]
    pairs = {
        "p50": ("ms", [float(np.percentile(values, 50)) for values in delays]),
        "p99": ("ms", [float(np.percentile(values, 99)) for values in delays]),
        "memory": ("MB", [float(np.median(resident[chosen])) / 1e6 for chosen in inside]),
        "log, a row": ("bytes", [size / count for size, count in zip(grown, rows, strict=True)]),
    }
    details = {"orders": orders, "commits a second": 2 * orders / (end - begin), "reference": "the first part"}
    return [
        {"name": f"steady {name}", "reference": first, "ours": last, "ratio": last / first, "unit": unit}
        | {"at_most": FLAT, "details": details}
        for name, (unit, (first, last)) in pairs.items()
    ]
