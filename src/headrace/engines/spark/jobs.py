"""Jobs of one pipeline on a Spark context: what Spark's page calls them, and what happens when one is given up."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.event_log import event

if TYPE_CHECKING:
    from pyspark import RDD, Broadcast, SparkContext

logger = logging.getLogger("headrace")

PATIENCE_S = 60.0
T = TypeVar("T")
Made = TypeVar("Made")


class Jobs:
    """Runs work on executors. Any thread may call it; a job's description belongs to the thread that runs it.

    Args:
        app: the pipeline's name.
        stops: whether the context ends with the pipeline.

    Attributes:
        hands: tasks that run at once, as of the last job: executors come and go.
        away: why there are no executors any more; empty while there may be some.
    """

    def __init__(self, context: SparkContext, app: str, *, stops: bool) -> None:
        self.hands = max(1, context.defaultParallelism)
        self.away = ""
        self._context = context
        self._group = f"headrace {app}"
        self._stops = stops
        # Broadcasts that nobody needs any more: a finalizer may run in any thread, so it leaves them to the next job.
        self._done: deque[Broadcast[Any]] = deque()

    def run(self, work: Callable[[T], Made], parts: Sequence[T], about: str) -> list[Made]:
        """Do work with each part, a task for each; return what came of them, in order."""
        return self.collect(self._context.parallelize(parts, len(parts)).map(work), about)

    def kept(self, parts: Sequence[T], work: Callable[[T], Made]) -> RDD[Made]:
        """Return what comes of work with each part; it is done with the first job on it, and stays on the executors."""
        from pyspark import StorageLevel

        return self._context.parallelize(parts, len(parts)).map(work).persist(StorageLevel.MEMORY_AND_DISK)

    def collect(self, made: RDD[Made], about: str) -> list[Made]:
        """Run a job; ``about`` is what Spark's page calls it."""
        while self._done:
            self._done.popleft().destroy()
        self._context.setJobGroup(self._group, about)
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(ended,), name="headrace-spark-watch", daemon=True)
        watch.start()
        try:
            found: list[Made] = made.collect()
        finally:
            ended.set()
        self.hands = max(1, self._context.defaultParallelism)
        return found

    def _watch(self, ended: threading.Event) -> None:
        """Cancel jobs that nobody takes: Spark itself would wait for executors for ever."""
        while not ended.wait(PATIENCE_S):
            if self._nobody():
                self.cancel()

    def _nobody(self) -> bool:
        spark = self._context._jsc.sc()
        return not spark.isLocal() and spark.getExecutorMemoryStatus().size() <= 1  # the driver counts

    def broadcast(self, value: T) -> Broadcast[T]:
        """Put a value where every executor fetches it once."""
        return self._context.broadcast(value)

    def let_go(self, broadcast: Broadcast[Any]) -> None:
        """Take a broadcast away, before the next job."""
        self._done.append(broadcast)

    def cancel(self) -> None:
        """End the pipeline's jobs."""
        self._context.cancelJobGroup(self._group)

    def failed(self, error: Exception) -> None:
        """Take note of an error with which a job has ended."""
        text = str(getattr(error, "java_exception", "") or error).strip()  # Py4J's errors hold Java's
        self.lost(text.splitlines()[0] if text else type(error).__name__)
        if not self.away and (self._context._jsc is None or self._context._jsc.sc().isStopped()):
            self.away = "the session with Spark has ended"
            logger.warning("%s: this process does all work from now on", self.away, extra=event("workers_away"))

    def lost(self, reason: str) -> None:
        """Take note of a job that is not done on executors."""
        logger.warning("Spark gave a job up: %s; it is done here", reason, extra=event("worker_lost"))

    def close(self) -> None:
        """End the pipeline's jobs, and the session where it was begun for them."""
        if self._context._jsc is None:
            return
        self.cancel()
        if self._stops:
            self._context.stop()
