"""The work that needs no order, done in parallel before it is put in order: decoding, and predicting ahead.

Whoever decodes ahead begins with what it knows of a topic, which may be less than the engine knows: what it has made is
taken where both knew the same. Likewise predictions: they are taken where the model is still the one that was known
here. Whatever is not taken is done again by the engine.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.capture.topics.reader import Where
from headrace.engines.flink.frames import Frame, read_frame
from headrace.engines.flink.job import FlinkJob
from headrace.errors import HeadraceError, LogMissing, RegistryUnavailable
from headrace.event_log import event
from headrace.foreseen import Foreseen
from headrace.formats.base import Decoded
from headrace.formats.topic_formats import COLUMNS, DecodedMessages, ForeignFormats, codec_for
from headrace.log import open_log
from headrace.log.base import Log
from headrace.plan.plan import Plan
from headrace.plan.task import ModelTask
from headrace.registry.models import Progress, read_progress
from headrace.replay.recovery import restore
from headrace.replay.task_history import TaskHistory
from headrace.step.model_version import ModelVersion
from headrace.step.predictions import foresee
from headrace.wire import WireMessages

logger = logging.getLogger("headrace")

LOOK_S = 0.2
AFTER_ERROR_S = 2.0
# What was known of the topic before and is known after, format, rows and their messages, what cannot be decoded,
# formats of the parts, predictions.
Made = tuple[
    bytes,
    bytes,
    str,
    list[tuple[pa.RecordBatch, Ints]],
    list[tuple[int, str]],
    list[str],
    tuple[tuple[Foreseen, ...], ...],
]
_Moves = tuple[int, int, int]  # what changes when a model does: rows learned, cuts, version


@dataclass(slots=True)
class _Known:
    """A model as the log has it.

    Attributes:
        moves: at its newest step.
        stored: at its newest checkpoint, which is ``version``.
        stands: whether it has stood still since the last look.
    """

    moves: _Moves = (-1, -1, -1)
    stored: _Moves = (-2, -2, -2)
    version: ModelVersion | None = None
    stands: bool = False


class KnownLog:
    """What the pipeline's log says, looked at in a thread: what its topics are, and its models where they stand still.

    A model that is learning all the time is another one when the rows come to it: nothing is predicted by it.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._log: Log | None = None
        self._models = {task.name: _Known() for task in plan.models if task.predict}
        self._ended = threading.Event()
        self.topics: Mapping[str, bytes] = {}
        self._look_safely()
        self._thread = threading.Thread(target=self._run, name=f"headrace-ahead-{plan.app}", daemon=True)
        self._thread.start()

    def version(self, model: str) -> ModelVersion | None:
        """Return a model that stands still; None where none is known."""
        known = self._models[model]
        return known.version if known.stands and known.moves == known.stored else None

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            self._look_safely()

    def _look_safely(self) -> None:
        try:
            self._look()
        except HeadraceError as error:
            # Nothing is lost by it but time.
            logger.warning("predicting ahead: %s", error.message, extra=event("ahead"))
            self._ended.wait(AFTER_ERROR_S)

    def _look(self) -> None:
        if self._log is None:
            with suppress(LogMissing):
                codec = codec_for(self._plan.formats)
                self._log = open_log(self._plan.log, writer=False, name=self._plan.app, codec=codec)
        if self._log is None:
            return
        self.topics = self._log.records(COLUMNS)
        for task in self._plan.models:
            if task.name in self._models:
                self._look_at(self._log, task, self._models[task.name])

    def _look_at(self, log: Log, task: ModelTask, known: _Known) -> None:
        progress = read_progress(log, task.name) or Progress()
        moves = _moves(progress)
        known.stands = moves == known.moves
        known.moves = moves
        if known.stands and known.stored != moves:
            history = TaskHistory(log, task)
            history.read()
            state, at = restore(log, history, progress)
            known.version, known.stored = state.active, _moves(at)

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()
        if self._log is not None:
            self._log.close()


def _moves(progress: Progress) -> _Moves:
    counters = progress.counters
    return counters.get("learned", 0), counters.get("cuts", 0), progress.version


class AheadOperator:
    """Decodes and predicts what one of several parallel operators is given."""

    def __init__(self, job: FlinkJob, *, alone: bool) -> None:
        """Begin with what the log says.

        Args:
            alone: there is no other one: what topics are it sees by itself, sooner than the log does.
        """
        os.environ.update(job.environment)
        self._job = job
        self._alone = alone
        self._plan: Plan = pickle.loads(job.plan)
        codec = codec_for(self._plan.formats)
        self._decoders = {
            (decoder.cluster, topic): ForeignFormats(codec, decoder.named, numbered=decoder.numbered)
            for decoder in job.decoders
            for topic in decoder.topics
        }
        self._log = KnownLog(self._plan)
        self._adopted: dict[str, bytes] = {}

    def take(self, data: bytes) -> bytes:
        """Return a frame with what was made ahead of it."""
        frame = read_frame(data)
        cluster = self._job.clusters[frame.source]
        made = {where: self._made(cluster, where, messages) for where, messages in frame.arrived.items()}
        return pickle.dumps((data, {where: found for where, found in made.items() if found is not None}), 5)

    def _made(self, cluster: str, where: Where, messages: WireMessages) -> Made | None:
        topic = where[0]
        decode = self._decoders.get((cluster, topic))
        if decode is None:
            return None
        recorded = self._log.topics.get(topic)
        if (
            recorded is not None
            and self._adopted.get(topic) != recorded
            and not (self._alone and topic in self._adopted)
        ):
            decode.restore({topic: recorded})
            self._adopted[topic] = recorded
        before = decode.records().get(topic, b"")
        try:
            format_, decoded = decode(messages)
        except RegistryUnavailable:
            return None  # whoever waits for it says so
        if self._alone:
            self._adopted.setdefault(topic, b"")
        after = decode.records().get(topic, b"")
        foreseen = tuple(tuple(self._foreseen(topic, batch)) for batch, _ in decoded.parts)
        parts = [(batch.records, rows) for batch, rows in decoded.parts]
        return before, after, format_, parts, decoded.bad, decoded.formats, foreseen

    def _foreseen(self, topic: str, batch: Batch) -> Iterator[Foreseen]:
        for task in self._plan.models:
            for plan in task.predict:
                if plan.stream.topic != topic:
                    continue
                version = self._log.version(task.name)
                if version is not None:
                    yield from foresee(task, plan.stream, version, batch, proba=plan.proba)

    def known(self, model: str) -> ModelVersion | None:
        """Return the model that predicts ahead; None while it is not known, or is learning."""
        return self._log.version(model)

    def close(self) -> None:
        """Let the log go."""
        self._log.close()


def read_ahead(data: bytes) -> Frame:
    """Return a frame with what was made ahead of it, where something was."""
    raw, made = pickle.loads(data)
    frame = read_frame(raw)
    arrived = {where: _with(messages, made.get(where)) for where, messages in frame.arrived.items()}
    return Frame(frame.source, frame.number, arrived)


def _with(messages: WireMessages, made: Made | None) -> WireMessages:
    if made is None:
        return messages
    before, after, format_, parts, bad, formats, foreseen = made
    batches = [(Batch(records), rows) for records, rows in parts]
    return DecodedMessages(messages, before, after, format_, Decoded(batches, bad, formats, foreseen=foreseen))
