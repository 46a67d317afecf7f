"""From COMMIT returning to the prediction being readable in the log, at 1,000 one-row transactions a second."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import headrace as hr
from headrace.testing.servers import PostgresServer, postgres

RATE = 1000

# A process of its own: a writer in ours would share its interpreter lock with the pipeline.
WRITER = """
import sys, time, psycopg
dsn, count, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with psycopg.connect(dsn, autocommit=True) as c:
    start = time.clock_gettime(time.CLOCK_MONOTONIC) + 0.2
    for i in range(count):
        due = start + i / rate
        while (left := due - time.clock_gettime(time.CLOCK_MONOTONIC)) > 0:
            time.sleep(left)
        c.execute("insert into l_test (id, x, y) values (%s, %s, %s)", [i, i % 10, i % 7], prepare=True)
        print(i, time.clock_gettime(time.CLOCK_MONOTONIC))
"""

WATCHER = """
import sys, time, numpy as np
from headrace.log import open_log
log, rows = open_log(sys.argv[1], writer=False), int(sys.argv[2])
(first,) = log.read_topic("predicted")  # imports and opens what the first read needs
readable, offset, deadline = np.full(rows, np.nan), first.records.num_rows, time.monotonic() + 600
rows += offset
print("ready", flush=True)
while offset < rows and time.monotonic() < deadline:
    for entry in log.read_topic("predicted", offset=offset):
        readable[np.asarray(entry.records.column("id"))] = time.clock_gettime(time.CLOCK_MONOTONIC)
        offset = entry.offset + entry.records.num_rows
    time.sleep(0.001)
sys.stdout.buffer.write(readable.tobytes())
"""


def run(rows: int) -> list[dict[str, Any]]:
    """Percentiles in milliseconds; the reference is the commit itself on this machine: the writer's own pace."""
    with postgres() as server, tempfile.TemporaryDirectory() as directory:
        server.execute("create table l_test (id bigint primary key, x float8, y float8)")
        app = _app(server, Path(directory))
        with app.start() as running:
            server.execute("insert into l_test values (-1, 0, 0)")
            running.wait(60)
            seen = _Watcher(Path(app.log), rows)
            committed = _write(server, rows)
            running.wait(60)
            readable = seen.finish()
    delays = np.sort((readable - committed) * 1000)
    p50, p99 = (float(np.percentile(delays, q)) for q in (50, 99))
    picture = _histogram(delays)
    details = {"rows": rows, "rate": rows / (committed[-1] - committed[0]), "max_ms": float(delays[-1])}
    return [
        {"name": f"latency-{name}", "reference": target, "ours": value, "ratio": target / value, "unit": "ms"}
        | ({"picture": picture, "details": details} if name == "p99" else {})
        for name, value, target in (("p50", p50, 5.0), ("p99", p99, 25.0))
    ]


def _app(server: PostgresServer, directory: Path) -> hr.App:
    app = hr.App("latency", log=directory / "latency.headrace")
    db = app.postgres(server.dsn, tables=r"public\.l_.*", prefix="b", allow_failing_updates=True)
    model = app.model("m", hr.KMeans(k=2, initial_centers=[[0.0, 0.0], [9.0, 6.0]], decay=1.0), features=["x", "y"])
    model.learn(db["public.l_test"], every=100)
    model.predict(db["public.l_test"]).to("predicted")
    return app


def _write(server: PostgresServer, rows: int) -> npt.NDArray[np.float64]:
    command = [sys.executable, "-c", WRITER, server.dsn, str(rows), str(RATE)]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return np.array(words[1::2], np.float64)


class _Watcher:
    """A reader in a process of its own, which notes when each prediction is there for it."""

    def __init__(self, log: Path, rows: int) -> None:
        command = [sys.executable, "-c", WATCHER, str(log), str(rows)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def finish(self) -> npt.NDArray[np.float64]:
        out, _ = self._process.communicate(timeout=600)
        return np.frombuffer(out, np.float64)


def _histogram(delays: npt.NDArray[np.float64]) -> str:
    edges = [0, 1, 2, 3, 4, 5, 7, 10, 15, 25, 50, 100, float("inf")]
    counts, _ = np.histogram(delays, edges)
    widest = max(int(counts.max()), 1)
    lines = [
        f"  {low:>4}–{high:<5} ms {'█' * round(40 * count / widest):<40} {count}"
        for low, high, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
        if count
    ]
    return "\n".join([*lines, f"  mean {statistics.fmean(delays):.2f} ms, max {delays[-1]:.1f} ms"])
