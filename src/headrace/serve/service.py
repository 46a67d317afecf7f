"""What every way of asking has in common: which model, how far it must have learned, where answers are logged."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa

from headrace.errors import HeadraceError, WaitTimeout
from headrace.position import parse_lsn
from headrace.serve import tracing
from headrace.serve.batching import Batcher
from headrace.serve.exchange import Call, Problem, wrong
from headrace.serve.models import Answer, Made, Models, NoModel, NotReady, Snapshot, Wanted
from headrace.serve.parameters import AT_LEAST, DEADLINE
from headrace.serve.settings import ServeSettings

LOOK_SECONDS = 0.005
MOST_WAITING = 256
Result = TypeVar("Result")


class Asking:
    """Asks models, for the handlers of one server. Used by the server's loop only."""

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

    async def values(self, model: str, rows: Sequence[Sequence[Any]]) -> tuple[list[Any], Made]:
        """Predictions for a few rows of values; see `Batcher.ask`."""
        batcher = self._batchers.get(model)
        if batcher is None:
            self.models.current(model)  # says that there is none
            raise NoModel(f"there is no model «{model}»")
        with tracing.predict_span(self._tracer, model, len(rows)) as span:
            values, made = await batcher.ask(rows)
            tracing.made_by(span, made)
        return values, made

    async def answer(self, snapshot: Snapshot, rows: pa.RecordBatch, *, probabilities: bool = False) -> Answer:
        """Answers to many rows, in a thread."""
        with tracing.predict_span(self._tracer, snapshot.made.model, rows.num_rows) as span:
            tracing.made_by(span, snapshot.made)
            return await self._run(self._predicting, lambda: snapshot.answer(rows, probabilities=probabilities))

    async def version(self, model: str, version: str) -> Snapshot:
        """A version; reading it from the log takes a thread."""
        return await self.blocking(lambda: self.models.version(model, version))

    async def blocking(self, function: Callable[[], Result]) -> Result:
        """What a function gives that waits for something."""
        return await self._run(self._waiting, function)

    async def _run(self, executor: ThreadPoolExecutor, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(executor, function)

    async def record(self, topic: str, rows: pa.RecordBatch) -> None:
        """Append answers to a topic; those that come together share a commit. Returns when they are durable."""
        recorder = self._recorders.get(topic)
        if recorder is None:
            recorder = self._recorders[topic] = Recorder(self, topic)
        await recorder.append(rows)

    async def reach(self, model: str, wanted: Wanted, deadline: float) -> Snapshot:
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

    async def _reached(self, model: str, wanted: Wanted, deadline: float) -> Snapshot:
        until = time.monotonic() + deadline
        while (found := self.models.reached(model, wanted)) is None:
            if time.monotonic() >= until:
                made = self.models.current(model).made
                raise Problem(
                    504,
                    f"the model «{model}» has not learned up to there within {deadline:g} s; it has learned up to "
                    f"{made.position or 'nothing'}",
                    headers=made.headers,
                    **made.to_dict(),
                )
            await asyncio.sleep(LOOK_SECONDS)
        return found


class Recorder:
    """Answers on their way to one topic: while some are being written, the next ones gather."""

    def __init__(self, asking: Asking, topic: str) -> None:
        self._asking = asking
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
        models, timeout = self._asking.models, self._asking.settings.record_timeout
        error: Exception | None = None
        try:
            await self._asking.blocking(lambda: models.record(self._topic, batch, timeout))
        except Exception as problem:  # goes to whoever asked
            error = problem
        for one in waiting:
            if not one.done():
                if error is None:
                    one.set_result(None)
                else:
                    one.set_exception(error)


def _joined(
    gathered: Sequence[tuple[pa.RecordBatch, asyncio.Future[None]]],
) -> list[tuple[pa.RecordBatch, list[asyncio.Future[None]]]]:
    """Batches of one schema as one, in order."""
    runs: list[tuple[list[pa.RecordBatch], list[asyncio.Future[None]]]] = []
    for batch, done in gathered:
        if runs and runs[-1][0][0].schema.equals(batch.schema):
            runs[-1][0].append(batch)
            runs[-1][1].append(done)
        else:
            runs.append(([batch], [done]))
    return [(pa.concat_batches(batches), waiting) for batches, waiting in runs]


# -- what a request says ----------------------------------------------------------------------------------------------


def parse_wanted(text: str) -> Wanted:
    """How far a model must have learned, as people write it.

    Raises:
        ValueError: neither an LSN nor TOPIC:OFFSET.

    >>> parse_wanted("0/1932A28").lsn, parse_wanted("machine-weight:41")
    (26421800, Wanted(lsn=None, topic='machine-weight', offset=41))
    """
    topic, _, offset = text.rpartition(":")
    if topic and offset.isascii() and offset.isdecimal() and int(offset) < 2**63:
        return Wanted(topic=topic, offset=int(offset))
    high, slash, low = text.partition("/")
    digits = set("0123456789abcdefABCDEF")
    if not slash or not all(0 < len(one) <= 8 and set(one) <= digits for one in (high, low)):
        raise ValueError("Input should be an LSN such as 0/1932A28, or TOPIC:OFFSET")
    return Wanted(lsn=parse_lsn(text))


async def reach_wanted(asking: Asking, model: str, call: Call, query: dict[str, str]) -> Snapshot | None:
    """Wait for what a request says of `at_least`; None where it says nothing."""
    text = query.get(AT_LEAST)
    where = ("query", AT_LEAST)
    if text is None:
        text = call.header(b"headrace-at-least")
        where = ("header", "Headrace-At-Least")
    settings = asking.settings
    deadline = _deadline(query.get(DEADLINE), settings) if DEADLINE in query else settings.deadline
    if text is None:
        return None
    try:
        wanted = parse_wanted(text)
    except ValueError as error:
        raise Problem(422, [wrong(*where, msg=str(error), given=text)]) from None
    try:
        return await asking.reach(model, wanted, deadline)
    except HeadraceError as error:
        if isinstance(error, NoModel):
            raise
        raise Problem(422, [wrong(*where, msg=str(error), given=text)]) from None


def _deadline(text: str | None, settings: ServeSettings) -> float:
    try:
        value = float(text or "")
        if not (math.isfinite(value) and 0 <= value <= settings.longest_deadline) or "_" in str(text):
            raise ValueError
    except ValueError:
        msg = f"Input should be seconds, from 0 to {settings.longest_deadline:g}"
        raise Problem(422, [wrong("query", DEADLINE, msg=msg, given=text)]) from None
    return value


def problem_of(error: HeadraceError) -> Problem:
    """An error of ours as an HTTP status."""
    text = f"{error.message}. {error.advice}" if error.advice else error.message
    if isinstance(error, NoModel):
        return Problem(404, text)
    if isinstance(error, NotReady):
        return Problem(503, text, headers=[(b"retry-after", b"1")])
    if isinstance(error, WaitTimeout):
        return Problem(504, text)
    return Problem(503 if error.retry else 422, text)
