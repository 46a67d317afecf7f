"""Health of a running pipeline: its sources, its sinks, the engine's rounds; and how a follower learns of it.

The engine's process knows by looking at its parts. For the processes that follow the log it also writes what it sees,
about once a second: beside a log that is a file, into one on a cluster (`headrace.inspect.health`).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.engines.local.sink_runner import SinkStatus
from headrace.errors import HeadraceError
from headrace.inspect.health import Sample, Status
from headrace.log.base import Transaction
from headrace.log.kafka import KafkaTransaction
from headrace.log.topic_metadata import STATUS
from headrace.serve.models import ComponentHealth, Gauge

if TYPE_CHECKING:
    from headrace.engines.local.engine import Engine

DEAD = ".dlq"
WRITE_SECONDS = 1.0
HISTORY_SECONDS, HISTORY_SAMPLES = 5.0, 720
IDLE_SECONDS = 10.0
LAG_SECONDS = 3.0


def health_of(engine: Engine, sinks: Sequence[SinkStatus] = ()) -> list[ComponentHealth]:
    """Return the health of a pipeline that runs in this process."""
    found = []
    for source in engine.sources:
        now = source.status
        found.append(ComponentHealth("source", source.name, now.away_seconds, now.text))
    found += [ComponentHealth("sink", sink.name, sink.waiting_seconds, sink.status) for sink in sinks]
    status = engine.progress.status
    if engine.error is not None:
        status = f"ended: {engine.error}"
    elif engine.finished.is_set():
        status = "ended"
    over = engine.error is not None or engine.finished.is_set()
    return [*found, ComponentHealth("engine", engine.plan.app, engine.round_age, status, ended=over)]


def engine_metrics(engine: Engine, sinks: Sequence[SinkStatus] = ()) -> list[Gauge]:
    """Return numbers about sources, sinks and rounds; asks the sources' servers."""
    lag = source_lag(engine)
    return [*lag, *capture_metrics(engine, lag), *_own_metrics(engine, sinks)]


def source_lag(engine: Engine) -> list[Gauge]:
    """Return how far the log is behind the sources' servers, and what they keep for it; asks them."""
    found = []
    for source in engine.sources:
        lag = source.traits.measure_lag() if source.traits.measure_lag is not None else ()
        labels = {"source": source.name}
        found += [Gauge(f"source_{measured.name}", measured.about, measured.value, labels) for measured in lag]
    return found


def capture_metrics(engine: Engine, lag: Sequence[Gauge]) -> list[Gauge]:
    """Return numbers about the databases that are captured, since the start.

    Args:
        lag: as `source_lag` says.
    """
    found = []
    for source in engine.sources:
        if source.traits.measure is None:
            continue
        labels = {"source": source.name}
        for measured in source.traits.measure():
            about = {**labels, "table": measured.table} if measured.table else labels
            found.append(Gauge(f"capture_{measured.name}", measured.about, measured.value, about))
        begin = f"{source.name}."
        for topic, rows in engine.progress.captured.items():
            if topic.startswith(begin) and not topic.endswith(DEAD):
                about = {**labels, "table": topic.removeprefix(begin)}
                found.append(Gauge("capture_rows", "Events written to the log", rows, about))
        for topic, rows in engine.dead_letters.counts.items():
            if topic.startswith(begin):
                about = {**labels, "table": topic.removeprefix(begin).removesuffix(DEAD)}
                found.append(Gauge("capture_dead_letters", "Rows that went to dead letters", rows, about))
        reconnects = source.status.reconnects
        found.append(Gauge("capture_reconnects", "Connections made again", reconnects, labels))
        mine = (gauge for gauge in lag if gauge.labels == labels)
        found += [replace(gauge, name=gauge.name.replace("source_", "capture_", 1)) for gauge in mine]
    return found


def _own_metrics(engine: Engine, sinks: Sequence[SinkStatus]) -> list[Gauge]:
    found = []
    for source in engine.sources:
        labels, status = {"source": source.name}, source.status
        away = status.away_seconds
        found.append(Gauge("source_connected", "Whether the source is connected", float(away == 0), labels))
        found.append(Gauge("source_away_seconds", "For how long it is not", away, labels))
        found.append(Gauge("source_reconnects", "Connections made again since the start", status.reconnects, labels))
    ends = {name: info.end for name, info in engine.log.topics().items()} if sinks else {}
    for sink in sinks:
        labels = {"sink": sink.name, "topic": sink.topic}
        behind = max(0, ends.get(sink.topic, 0) - (sink.position or 0))
        found.append(Gauge("sink_delivered", "Rows delivered since the start", sink.delivered, labels))
        found.append(Gauge("sink_refused", "Rows refused to dead letters since the start", sink.refused, labels))
        found.append(Gauge("sink_lag_rows", "Rows of the topic that are not delivered", behind, labels))
        found.append(Gauge("sink_waiting_seconds", "How long the destination is away", sink.waiting_seconds, labels))
    for runner in engine.runners:
        # What operators remember, not what their topics hold: this is asked in the engine's thread once a second.
        for operator in runner.state.operators.operators if runner.state.operators is not None else ():
            node = {"task": runner.task.name, "node": str(operator.number)}
            found += [Gauge(made.name, made.text, made.value, {**node, **made.labels}) for made in operator.measures()]
    if engine.workers is not None:
        found.append(Gauge("worker_rows", "Rows that were sent to workers to be predicted", engine.workers.sent))
    return [
        *found,
        Gauge("rounds", "Rounds committed since the start", engine.progress.rounds),
        Gauge("round_age_seconds", "Since the engine's last round began", engine.round_age),
        Gauge("round_seconds", "How long the last round that committed took", engine.round_seconds),
    ]


class StatusReport:
    """Makes `Status` of an engine in this process. Called by one thread, about once a second: shares are of that time.

    How far sources are behind their servers is asked in a thread of its own: an answer may take its time.

    Args:
        sinks: gives the sinks of the pipeline.
    """

    def __init__(self, engine: Engine, sinks: Callable[[], Sequence[SinkStatus]]) -> None:
        self._engine = engine
        self._sinks = sinks
        self._seconds: dict[str, float] = {}
        self._rounds = 0
        self._at = time.monotonic()
        self._lag: list[Gauge] = []
        self._ended = threading.Event()
        if any(source.traits.measure_lag is not None for source in engine.sources):
            threading.Thread(target=self._ask, name="headrace-lag", daemon=True).start()

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()

    def _ask(self) -> None:
        while not self._ended.wait(LAG_SECONDS):
            self._lag = source_lag(self._engine)

    def __call__(self) -> Status:
        """Return what there is to say now."""
        engine, times, now = self._engine, self._engine.times, time.monotonic()
        passed, rounds = max(1e-3, now - self._at), engine.progress.rounds
        seconds = dict(times.seconds)
        busy = {part: min(1.0, (spent - self._seconds.get(part, 0.0)) / passed) for part, spent in seconds.items()}
        figures: dict[str, Any] = {
            "app": engine.plan.app,
            "rounds": rounds,
            "rounds_s": (rounds - self._rounds) / passed,
            "busy": {part: round(share, 4) for part, share in busy.items()},
            "memory": memory_bytes(),
            "gauges": [asdict(gauge) for gauge in (*self._lag, *_own_metrics(engine, self._sinks()))],
            **times.latency(),
        }
        self._seconds, self._rounds, self._at = seconds, rounds, now
        return Status(health_of(engine, self._sinks()), figures)


def memory_bytes() -> int:
    """Return the resident memory of this process; 0 where the system does not say it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class StartReport:
    """What a pipeline that is starting says beside its log, until it runs: how far its first snapshot has come.

    A thread says it every second, so that a start that waits for a lock is not taken for dead.

    Args:
        app: the pipeline's name.
    """

    def __init__(self, app: str) -> None:
        self._app = app
        self._doing = "starting"
        self._read: dict[str, list[int]] = {}

    def read(self, table: str, rows: int, estimated: int) -> None:
        """Note how many rows of a table the snapshot has read."""
        self._doing = f"snapshot of {table}: {rows:,} of about {max(rows, estimated):,} rows"
        self._read[table] = [rows, max(rows, estimated)]

    def __call__(self) -> Status:
        """Return what there is to say now."""
        parts = [ComponentHealth("engine", self._app, 0.0, self._doing)]
        return Status(parts, {"app": self._app, "snapshot": dict(self._read)})

    @contextlib.contextmanager
    def beside(self, path: Path | None) -> Iterator[None]:
        """Say it while the block runs. Where that fails nothing stays; where it does not, what runs says more."""
        if path is None:
            yield
            return
        ended, told = threading.Event(), HealthWriter(path, self)

        def tell() -> None:
            told.write()
            while not ended.wait(WRITE_SECONDS):
                told.write()

        thread = threading.Thread(target=tell, name="headrace-starting", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            ended.set()
            thread.join()
            told.remove()
            raise
        ended.set()
        thread.join()


class HistoryWriter:
    """Writes figures of the last hour beside a log, every `HISTORY_SECONDS`.

    Args:
        kept: those of before: a pipeline that was killed goes on with them.
    """

    def __init__(self, path: Path, kept: Sequence[Sample] = ()) -> None:
        self._path = path
        begin = time.time() - HISTORY_SAMPLES * HISTORY_SECONDS
        self._samples = deque((sample for sample in kept if sample.ts > begin), maxlen=HISTORY_SAMPLES)

    def add(self, figures: Mapping[str, Any]) -> None:
        """Take the figures of a `Status`, where it is time."""
        ts = time.time()
        if not self._samples or ts - self._samples[-1].ts >= HISTORY_SECONDS:
            self._samples.append(Sample(ts, *(figures.get(name) for name in Sample._fields[1:])))
            _replace(self._path, list(self._samples))

    def remove(self) -> None:
        """Take it away: the pipeline has ended in good order."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


class HealthWriter:
    """Writes a `Status` beside a log. Called by one thread, often; `remove` by any other.

    Args:
        history: is given its figures, too.
    """

    def __init__(self, path: Path, status: Callable[[], Status], history: HistoryWriter | None = None) -> None:
        self._path = path
        self._status = status
        self._history = history
        self._written_at = -WRITE_SECONDS
        self._lock = threading.Lock()
        self._removed = False

    def write(self) -> None:
        """Write it, at most once a second. A disk that takes nothing is no reason to stop."""
        now = time.monotonic()
        if now - self._written_at < WRITE_SECONDS:
            return
        self._written_at = now
        status = self._status()
        with self._lock:
            if self._removed:
                return
            _replace(self._path, _said(status))
            if self._history is not None:
                self._history.add(status.figures)

    def remove(self) -> None:
        """Take it away, for good: the pipeline ends in good order, and its thread may still make a round."""
        with self._lock:
            self._removed = True
            if self._history is not None:
                self._history.remove()
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def _replace(path: Path, content: Any) -> None:
    """Write JSON in the place of a file, all of it or nothing."""
    draft = path.with_name(f"{path.name}.draft")
    with contextlib.suppress(OSError):
        draft.write_text(json.dumps(content))
        draft.replace(path)


def _said(status: Status) -> dict[str, Any]:
    parts = [asdict(part) for part in status.parts]
    return {"ts": time.time(), "pid": os.getpid(), "parts": parts, "figures": status.figures}


class StatusRecord:
    """Keeps `Status` as a record of a log on a cluster. Called by the engine's thread.

    It goes with rounds that commit anyway, at most once a second. While nothing is committed it takes a transaction of
    its own every `IDLE_SECONDS`: a pipeline that waits for rows is told from one that was killed.

    Args:
        app: names the record.
    """

    def __init__(self, engine: Engine, app: str, status: Callable[[], Status]) -> None:
        self._engine = engine
        self._app = app
        self._status = status
        self._host = socket.gethostname()
        self._written_at = -IDLE_SECONDS

    def in_round(self, txn: Transaction) -> None:
        """Put it into a transaction that has something else to commit."""
        if isinstance(txn, KafkaTransaction) and txn.changed and self._age >= WRITE_SECONDS:
            self._put(txn, "running")

    def idle(self) -> None:
        """Write it where nothing was committed for a while."""
        if self._age >= IDLE_SECONDS:
            self._written_at = time.monotonic()  # whatever comes of it: a broker that is away is not asked at once
            try:
                with self._engine.log.transaction() as txn:
                    self._put(txn, "running")
            except HeadraceError as error:
                if not error.retry:
                    raise

    def at_end(self, txn: Transaction) -> None:
        """Say how the pipeline has ended."""
        self._put(txn, "stopped" if self._engine.error is None else "failed")

    @property
    def _age(self) -> float:
        return time.monotonic() - self._written_at

    def _put(self, txn: Transaction, state: str) -> None:
        self._written_at = time.monotonic()
        about = {**_said(self._status()), "host": self._host, "state": state, "within": IDLE_SECONDS}
        txn.put(STATUS, self._app, json.dumps(about).encode())
