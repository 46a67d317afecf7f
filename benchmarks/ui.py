"""The dashboard on a large log: pages, a filter, viewers beside a pipeline, and memory while a topic is followed.

``--rows`` is how many the log has, a tenth of them in one topic and the others in 99 more. With 10,000,000 of them a
topic is followed for an hour, with fewer for a shorter time, but for 20 s at the least; beside it is a stream of all
numbers. ``--tail-minutes 60`` does that alone, at 200 rows a second, and says the memory of each minute. Pages are
asked one after another, five times each after a first time; the figure is the slowest page's median. All of a page is
the page, its scripts and styles, and the slider, over one connection. Viewers are streams of all numbers.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pyarrow as pa

import headrace as hr
from headrace.batch import Batch
from headrace.log import open_log
from headrace.serve.settings import ServeSettings

TOPICS = 100
ENTRY = 50_000
TIMES = 5
FIRST_BYTE_MS, WHOLE_MS, FILTER_MS = 150.0, 500.0, 1000.0
VIEWERS, COST = 50, 0.9
ROUNDS = 3
FED_SECONDS = 5.0
WHOLE_ROWS, HOUR, SHORTEST = 10_000_000, 3600.0, 20.0
BURST, PAUSE, SLOW_PAUSE = 100, 0.05, 0.5
GROWN = 1.05
PAGES = ("/", "/topics", "/topics/big", "/topics/big/5", "/topics/t50", "/models", "/alarms", "/sql", "/health")
FILES = (
    "static/theme.js",
    "static/headrace.js",
    "static/headrace.css",
    "vendor/htmx.min.js",
    "vendor/uPlot.iife.min.js",
)


def run(rows: int, *, tail_minutes: float = 0.0) -> list[dict[str, Any]]:
    """Make the log, and measure; with ``tail_minutes`` nothing but the memory of a tail so long."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "large.headrace"
        _fill(log, rows)
        with _dashboard(log) as (address, process):
            if tail_minutes:
                return [_memory(log, address, process.pid, tail_minutes * 60, pause=SLOW_PAUSE, say=True)]
            found = [*_pages(address), _filter(address, max(1, rows // 10))]
            found.append(_memory(log, address, process.pid, max(SHORTEST, HOUR * rows / WHOLE_ROWS)))
        return [*found, _viewers(Path(folder) / "fed.headrace")]


def _fill(path: Path, rows: int) -> None:
    """Write a tenth of the rows to one topic, and the others to 99."""
    rng = np.random.default_rng(0)
    log = open_log(str(path), writer=True)
    big, small = max(1, rows // 10), max(1, rows * 9 // 10 // (TOPICS - 1))
    for topic, count in (("big", big), *((f"t{number}", small) for number in range(1, TOPICS))):
        for start in range(0, count, ENTRY):
            ids = np.arange(start, min(count, start + ENTRY))
            columns = {"id": ids, "price": rng.random(len(ids)), "name": [f"n{number % 97}" for number in ids]}
            batch = Batch.of(
                pa.RecordBatch.from_pydict(columns), key=("id",), lsn=start + 1, index=ids, ts_us=start + 1
            )
            with log.transaction() as transaction:
                transaction.append(topic, batch.records)
    log.close()


@contextlib.contextmanager
def _dashboard(log: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``headrace ui`` of a log, in a process of its own."""
    command = [str(Path(sys.executable).parent / "headrace"), "ui", "--log", str(log), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"].removesuffix("/"), process
        finally:
            process.terminate()


def _pages(address: str) -> list[dict[str, Any]]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)

    def asked(path: str) -> tuple[float, float]:
        """Return milliseconds to the first byte, and to the last one."""
        begin = time.perf_counter()
        connection.request("GET", f"{parts.path}{path}", headers={"Accept": "text/html"})
        answer = connection.getresponse()
        answer.read(1)
        first = time.perf_counter()
        answer.read()
        assert answer.status == 200, (path, answer.status)
        return (first - begin) * 1e3, (time.perf_counter() - begin) * 1e3

    first: dict[str, float] = {}
    whole: dict[str, float] = {}
    for path in (*PAGES, "/?at=slice:100", "/topics/big?at=slice:100"):
        asked(path)
        times = [asked(path) for _ in range(TIMES)]
        rest = sum(asked(f"/{name}")[1] for name in FILES) + asked(f"/travel?path={quote(parts.path + '/')}")[1]
        first[path] = statistics.median(time[0] for time in times)
        whole[path] = statistics.median(time[1] for time in times) + rest
    connection.close()
    return [
        _figure("first byte", max(first.values()), FIRST_BYTE_MS, "ms", pages=first),
        _figure("whole page", max(whole.values()), WHOLE_MS, "ms", pages=whole),
    ]


def _figure(name: str, ours: float, target: float, unit: str, **details: Any) -> dict[str, Any]:
    """Return a figure that may be as large as its target."""
    ratio = ours / target
    return {"name": name, "ours": ours, "reference": target, "unit": unit, "ratio": ratio, "at_most": 1.0, **details}


def _filter(address: str, rows: int) -> dict[str, Any]:
    """Look through all rows of a topic for one of them."""
    parts = urlsplit(address)
    times = []
    for number in range(TIMES):
        connection = http.client.HTTPConnection(parts.netloc, timeout=60)
        begin = time.perf_counter()
        sought = quote(f"id = {number} and name = 'n{number}'")
        connection.request("GET", f"{parts.path}/topics/big/search?filter={sought}&columns=id")
        answer = connection.getresponse()
        text = answer.read().decode()
        times.append((time.perf_counter() - begin) * 1e3)
        assert "event: rows" in text, text[:500]
        connection.close()
    return _figure(f"filter, {rows:,} rows", statistics.median(times), FILTER_MS, "ms")


def _memory(
    log: Path, address: str, pid: int, seconds: float, *, pause: float = PAUSE, say: bool = False
) -> dict[str, Any]:
    """Follow a topic into which rows come all the time; compare the memory at the end with that after a fifth."""
    ended = threading.Event()
    writer = open_log(str(log), writer=True)
    batch = Batch.of(pa.RecordBatch.from_pydict({"id": np.arange(BURST)}))
    with writer.transaction() as transaction:
        transaction.append("tail", batch.records)
    followed = _follow(address, "/topics/tail/tail?after=0&columns=id", ended)
    _follow(address, "/events", ended)
    sizes: list[tuple[float, int]] = []
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < seconds:
        with writer.transaction() as transaction:
            transaction.append("tail", batch.records)
        if say and passed // 60 > (sizes[-1][0] // 60 if sizes else -1):
            print(f"{passed / 60:3.0f} min {_resident(pid) / 1e6:8.1f} MB", file=sys.stderr, flush=True)
        sizes.append((passed, _resident(pid)))
        time.sleep(pause)
    ended.set()
    writer.close()
    early = max(size for at, size in sizes if at < seconds * 0.4 and at > seconds * 0.2)
    late = max(size for at, size in sizes if at > seconds * 0.8)
    figure = {"name": f"memory, {seconds:,.0f} s", "ours": late / 1e6, "reference": early / 1e6, "unit": "MB"}
    minutes = {int(at // 60): size / 1e6 for at, size in sizes}
    details = {"minutes": minutes, "rows": BURST * (len(sizes) + 1), "last": followed.last}
    return {**figure, "ratio": late / early, "at_most": GROWN, "details": details}


@dataclass
class _Followed:
    """A stream that is read; ``last`` is the id of its newest event, of a tail an offset."""

    last: str = ""


def _follow(address: str, path: str, ended: threading.Event) -> _Followed:
    """Read a stream of the dashboard, in a thread."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    connection.request("GET", f"{parts.path}{path}")
    answer = connection.getresponse()
    assert answer.status == 200, (path, answer.status)

    followed = _Followed()

    def read() -> None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            while not ended.is_set() and (line := answer.readline()):
                if line.startswith(b"id: "):
                    followed.last = line[4:].decode().strip()

    threading.Thread(target=read, daemon=True).start()
    return followed


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def _viewers(log: Path) -> dict[str, Any]:
    """Feed a pipeline that shows its own dashboard, with and without people who watch it."""
    app = hr.App("fed", log=log)
    points = app.topic("points", append=True)
    model = app.model("model", hr.LinearRegression(), features=["x"], target="y")
    model.predict(points).to("predicted")
    model.learn(points)
    alone: list[float] = []
    watched: list[float] = []
    with app.start(ui=ServeSettings(port=0)) as running:
        _fed(running)
        for _ in range(ROUNDS):
            alone.append(_fed(running))
            command = [sys.executable, "-c", WATCHING, running.page, str(VIEWERS)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                process.stdout.readline()
                watched.append(_fed(running))
                process.kill()
    ours, reference = statistics.median(watched), statistics.median(alone)
    figure = {"name": f"{VIEWERS} viewers", "ours": ours, "reference": reference, "unit": "rows/s"}
    return {**figure, "ratio": ours / reference, "target": COST, "details": {"alone": alone, "watched": watched}}


WATCHING = """
import http.client, selectors, sys
from urllib.parse import urlsplit
place, found = urlsplit(sys.argv[1]), selectors.DefaultSelector()
for _ in range(int(sys.argv[2])):
    connection = http.client.HTTPConnection(place.netloc, timeout=60)
    connection.request("GET", "/ui/events")
    answer = connection.getresponse()
    answer.fp.readline()
    found.register(connection.sock or answer.fp.raw._sock, selectors.EVENT_READ, (connection, answer))
print("watching", flush=True)
while True:
    for key, _ in found.select():
        key.fileobj.recv(65536)
"""


def _fed(running: hr.Running) -> float:
    """Return rows a second that the pipeline takes in, for a while."""
    x = np.random.default_rng(0).random(200)
    rows = pa.RecordBatch.from_pydict({"x": x, "y": 2 * x})
    begin, sent = time.monotonic(), 0
    while time.monotonic() - begin < FED_SECONDS:
        running.append("points", rows)
        sent += rows.num_rows
    return sent / (time.monotonic() - begin)
