"""The service behind every route: which model, how far it must have learned, where predictions are logged."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa

from headrace.errors import HeadraceError, WaitTimeout
from headrace.position import parse_lsn
from headrace.serve import tracing
from headrace.serve.exchange import Problem, Request, field_error
from headrace.serve.models import (
    AtLeast,
    Models,
    NoModel,
    NotReady,
    PredictedRows,
    RowRefused,
    Snapshot,
    TooSlow,
    VersionInfo,
)
from headrace.serve.parameters import AT_LEAST, DEADLINE
from headrace.serve.settings import ServeSettings

LOOK_SECONDS = 0.005
MOST_WAITING = 256
Result = TypeVar("Result")
BLOCK_ROWS = 64
Row = Sequence[Any]
Waiting = tuple[Sequence[Row], "asyncio.Future[tuple[list[Any], VersionInfo]]"]


class PredictionService:
    """Asks models for predictions, for the handlers of one server. Used by the server's loop only."""

    def __init__(self, models: Models, settings: ServeSettings) -> None:
        self.models = models
        self.settings = settings
        # One thread predicts: a learner is called by one at a time. Others wait for disks and trainings.
        self._predicting = ThreadPoolExecutor(1, "headrace-predict")
        self._waiting = ThreadPoolExecutor(16, "headrace-serve")
        window = settings.batch_window_ms / 1000
        self._batchers = {name: Batcher(models, name, self._predicting, window) for name in models.descriptions}
        self._tracer = tracing.tracer()
        self._recorders: dict[str, Recorder] = {}
        self._reaching = 0

    def close(self) -> None:
        """End the threads, when nobody asks any more."""
        self._predicting.shutdown(wait=False, cancel_futures=True)
        self._waiting.shutdown(wait=False, cancel_futures=True)

    async def predict(self, model: str, rows: Sequence[Sequence[Any]]) -> tuple[list[Any], VersionInfo]:
        """Predictions for a few rows of values; see `Batcher.ask`."""
        batcher = self._batchers.get(model)
        if batcher is None:
            self.models.current(model)  # says that there is none
            raise NoModel(f"there is no model «{model}»")
        with tracing.predict_span(self._tracer, model, len(rows)) as span:
            values, info = await batcher.ask(rows)
            tracing.say_version(span, info)
        return values, info

    async def predict_batch(
        self, snapshot: Snapshot, rows: pa.RecordBatch, *, probabilities: bool = False
    ) -> PredictedRows:
        """Predict many rows, in a thread."""
        with tracing.predict_span(self._tracer, snapshot.info.model, rows.num_rows) as span:
            tracing.say_version(span, snapshot.info)
            return await self._run(self._predicting, lambda: snapshot.predict_batch(rows, probabilities=probabilities))

    async def version(self, model: str, version: str) -> Snapshot:
        """A version; reading it from the log takes a thread."""
        return await self.blocking(lambda: self.models.version(model, version))

    async def blocking(self, function: Callable[[], Result]) -> Result:
        """Return the result of a function that waits for something."""
        return await self._run(self._waiting, function)

    async def _run(self, executor: ThreadPoolExecutor, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(executor, function)

    async def record(self, topic: str, rows: pa.RecordBatch) -> None:
        """Append answers to a topic; those that come together share a commit. Returns when they are durable."""
        recorder = self._recorders.get(topic)
        if recorder is None:
            recorder = self._recorders[topic] = Recorder(self, topic)
        await recorder.append(rows)

    async def reach(self, model: str, wanted: AtLeast, deadline: float) -> Snapshot:
        """The model when it has learned that far.

        Raises:
            Problem: 504 at the deadline, with the position that it has; 503 where too many wait already.
        """
        if self._reaching >= MOST_WAITING:
            raise Problem(503, f"{MOST_WAITING} requests wait for a model already", headers=[(b"retry-after", b"1")])
        self._reaching += 1
        try:
            return await self._reached(model, wanted, deadline)
        finally:
            self._reaching -= 1

    async def _reached(self, model: str, wanted: AtLeast, deadline: float) -> Snapshot:
        until = time.monotonic() + deadline
        while (found := self.models.reached(model, wanted)) is None:
            if time.monotonic() >= until:
                info = self.models.current(model).info
                raise Problem(
                    504,
                    f"the model «{model}» has not learned up to there within {deadline:g} s; it has learned up to "
                    f"{info.position or 'nothing'}",
                    headers=info.headers,
                    **info.to_dict(),
                )
            await asyncio.sleep(LOOK_SECONDS)
        return found


class Recorder:
    """Answers on their way to one topic: while some are being written, the next ones gather."""

    def __init__(self, service: PredictionService, topic: str) -> None:
        self._service = service
        self._topic = topic
        self._gathered: list[tuple[pa.RecordBatch, asyncio.Future[None]]] = []
        self._writing = False

    async def append(self, rows: pa.RecordBatch) -> None:
        """Returns when the rows are durable."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gathered.append((rows, done))
        if not self._writing:
            self._writing = True
            # Not by this request alone: it may be cancelled, the others not.
            self._task = asyncio.create_task(self._write())
        await done

    async def _write(self) -> None:
        try:
            while self._gathered:
                gathered, self._gathered = self._gathered, []
                for batch, waiting in _joined(gathered):
                    await self._write_one(batch, waiting)
        finally:
            self._writing = False

    async def _write_one(self, batch: pa.RecordBatch, waiting: Sequence[asyncio.Future[None]]) -> None:
        models, timeout = self._service.models, self._service.settings.record_timeout
        error: Exception | None = None
        try:
            await self._service.blocking(lambda: models.record(self._topic, batch, timeout))
        except Exception as problem:  # goes to whoever asked
            error = problem
        for future in waiting:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)


def _joined(
    gathered: Sequence[tuple[pa.RecordBatch, asyncio.Future[None]]],
) -> list[tuple[pa.RecordBatch, list[asyncio.Future[None]]]]:
    """Batches of one schema as one, in order."""
    runs = (list(run) for _, run in itertools.groupby(gathered, key=lambda pair: pair[0].schema))
    return [(pa.concat_batches([batch for batch, _ in run]), [done for _, done in run]) for run in runs]


# -- requests that come together are answered together ----------------------------------------------------------------


class Batcher:
    """Rows of values for one model. Used by the server's loop only.

    A model predicts in blocks of 64 rows, padded, so that a row's bits do not depend on its neighbours: 64 rows cost as
    much as one. Rows of requests that the loop has taken in at once go into one block; with a window they wait for
    others.

    Args:
        executor: where models predict that take long.
        window: seconds to wait for other requests.
    """

    def __init__(self, models: Models, model: str, executor: Executor, window: float) -> None:
        self._models = models
        self._model = model
        self._executor = executor
        self._window = window
        self._waiting: list[Waiting] = []
        self._running = False

    async def ask(self, rows: Sequence[Row]) -> tuple[list[Any], VersionInfo]:
        """Predictions for at most 64 rows, or why there is none, and which model made all of them.

        Raises:
            HeadraceError: the model has learned nothing yet, or fails.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[tuple[list[Any], VersionInfo]] = loop.create_future()
        self._waiting.append((rows, answered))
        if len(self._waiting) == 1 and not self._running:
            self._begin(loop)
        return await answered

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._window:
            loop.call_later(self._window, self._answer)
        else:
            loop.call_soon(self._answer)

    def _answer(self) -> None:
        """Answer those that wait, as many as a block takes; the others in the next one."""
        if self._running or not self._waiting:
            return
        taken, rows = self._take()
        try:
            snapshot = self._models.current(self._model)
            try:
                values = snapshot.predict(rows)
            except TooSlow:
                self._running = True
                loop = asyncio.get_running_loop()
                asked = loop.run_in_executor(self._executor, lambda: snapshot.predict(rows, wait=True))
                asked.add_done_callback(lambda done: self._answered(done, taken, snapshot.info))
                return
        except Exception as error:  # goes to whoever asked
            _refuse(taken, error)
        else:
            _give(taken, values, snapshot.info)
        if self._waiting:
            self._answer()

    def _answered(self, done: asyncio.Future[list[Any]], taken: Sequence[Waiting], info: VersionInfo) -> None:
        self._running = False
        error = done.exception()
        if error is not None:
            _refuse(taken, error)
        else:
            _give(taken, done.result(), info)
        self._answer()

    def _take(self) -> tuple[list[Waiting], list[Row]]:
        count = total = 0
        for rows, _ in self._waiting:
            if count and total + len(rows) > BLOCK_ROWS:
                break
            count, total = count + 1, total + len(rows)
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken, [row for rows, _ in taken for row in rows]


def _give(taken: Sequence[Waiting], values: Sequence[Any], info: VersionInfo) -> None:
    at = 0
    for rows, answered in taken:
        if not answered.done():  # whoever asked may have gone
            answered.set_result((list(values[at : at + len(rows)]), info))
        at += len(rows)


def _refuse(taken: Sequence[Waiting], error: BaseException) -> None:
    for _, answered in taken:
        if not answered.done():
            answered.set_exception(error)


def refused(values: Sequence[Any]) -> list[tuple[int, RowRefused]]:
    """Rows among answers that have none."""
    return [(row, value) for row, value in enumerate(values) if isinstance(value, RowRefused)]


# -- parameters of a request -----------------------------------------------------------------------------------------


def parse_wanted(text: str) -> AtLeast:
    """Parse how far a model must have learned.

    Raises:
        ValueError: neither an LSN nor TOPIC:OFFSET.

    >>> parse_wanted("0/1932A28").lsn, parse_wanted("machine-weight:41")
    (26421800, AtLeast(lsn=None, topic='machine-weight', offset=41))
    """
    topic, _, offset = text.rpartition(":")
    if topic and offset.isascii() and offset.isdecimal() and int(offset) < 2**63:
        return AtLeast(topic=topic, offset=int(offset))
    high, slash, low = text.partition("/")
    digits = set("0123456789abcdefABCDEF")
    if not slash or not all(0 < len(half) <= 8 and set(half) <= digits for half in (high, low)):
        raise ValueError("Input should be an LSN such as 0/1932A28, or TOPIC:OFFSET")
    return AtLeast(lsn=parse_lsn(text))


async def reach_wanted(
    service: PredictionService, model: str, request: Request, query: dict[str, str]
) -> Snapshot | None:
    """Wait for what a request says of `at_least`; None where it says nothing."""
    text = query.get(AT_LEAST)
    where = ("query", AT_LEAST)
    if text is None:
        text = request.header(b"headrace-at-least")
        where = ("header", "Headrace-At-Least")
    settings = service.settings
    deadline = _deadline(query.get(DEADLINE), settings) if DEADLINE in query else settings.deadline
    if text is None:
        return None
    try:
        wanted = parse_wanted(text)
    except ValueError as error:
        raise Problem(422, [field_error(*where, msg=str(error), given=text)]) from None
    try:
        return await service.reach(model, wanted, deadline)
    except HeadraceError as error:
        if isinstance(error, NoModel):
            raise
        raise Problem(422, [field_error(*where, msg=str(error), given=text)]) from None


def _deadline(text: str | None, settings: ServeSettings) -> float:
    try:
        value = float(text or "")
        if not (math.isfinite(value) and 0 <= value <= settings.longest_deadline) or "_" in str(text):
            raise ValueError
    except ValueError:
        msg = f"Input should be seconds, from 0 to {settings.longest_deadline:g}"
        raise Problem(422, [field_error("query", DEADLINE, msg=msg, given=text)]) from None
    return value


def problem_of(error: HeadraceError) -> Problem:
    """Return an error of ours as an HTTP status."""
    text = f"{error.message}. {error.advice}" if error.advice else error.message
    if isinstance(error, NoModel):
        return Problem(404, text)
    if isinstance(error, NotReady):
        return Problem(503, text, headers=[(b"retry-after", b"1")])
    if isinstance(error, WaitTimeout):
        return Problem(504, text)
    return Problem(503 if error.retry else 422, text)
