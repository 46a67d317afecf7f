"""Executors of a Spark cluster as workers: models predict there, trainings run there, and rows may stay there.

The engine stays in the driver, with its one transaction. A job has no effects, so that retries, speculation and lost
executors change nothing; where Spark gives up, or does not come to a job, the driver does the work itself.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from headrace.capture.base import Source
from headrace.capture.topics.source import TopicSource
from headrace.engines.spark import executor
from headrace.engines.spark.executor import BroadcastState, Decoding, Performance, Performed, Prediction
from headrace.engines.spark.jobs import Jobs
from headrace.engines.spark.remote_rows import RemoteRows, only_predicted, together
from headrace.engines.workers import (
    INLINE_BYTES,
    Measured,
    MeasuredWorkers,
    PredictionJob,
    Readable,
    Sending,
    WorkersAway,
    pickled,
    pickled_training,
)
from headrace.formats.topic_formats import ForeignFormats, codec_for
from headrace.kafka.cluster import Cluster
from headrace.kafka.settings import KafkaLocation
from headrace.learn.state import dump_state
from headrace.plan.plan import Plan
from headrace.plan.task import ModelTask
from headrace.step.absent import FrozenVersion, Schedule
from headrace.step.outputs import Emission
from headrace.step.retraining import Trained
from headrace.step.state import State
from headrace.wire import EncodedRows

if TYPE_CHECKING:
    from pyspark import Broadcast

logger = logging.getLogger("headrace")

# A job takes 30 ms with nothing in it; rows go through the driver's disk and the JVM.
JOBS = Sending(seconds=0.05, bytes_per_s=1e8, shortest_s=0.02)
JOBS_AT_ONCE = 4


class SparkWorkers(MeasuredWorkers):
    """Executors that predict and train; a `headrace.engines.workers.Workers`."""

    def __init__(self, jobs: Jobs, plan: Plan) -> None:
        super().__init__(jobs.hands, plan.models, JOBS)
        self._jobs = jobs
        self._plan = plan
        self._threads = ThreadPoolExecutor(JOBS_AT_ONCE, thread_name_prefix="headrace-spark")
        self._trainings = ThreadPoolExecutor(max(1, len(plan.models)), thread_name_prefix="headrace-spark-train")
        self._learners = jobs.broadcast(self._declared)
        self._remote: list[RemoteRows] = []
        self._tasks: dict[str, Broadcast[bytes]] = {}
        self._performed: list[tuple[str, EncodedRows]] = []

    # -- predictions of rows that the driver has -------------------------------------------------------------------

    def _send(self, job: PredictionJob) -> Callable[[], list[Measured]]:
        """See `MeasuredWorkers`."""
        if self._jobs.away:
            raise WorkersAway
        self._hands = self._jobs.hands
        about = f"predict {job.known.task}: {job.rows:,} rows by version {job.number}"
        work = Prediction(self._learners, job.known, job.method, job.width)
        future = self._threads.submit(self._jobs.run, work, job.parts, about)

        def gathered() -> list[Measured]:
            try:
                return future.result()
            except Exception as error:  # whatever Spark, Py4J or the executor's Python make of it
                self._jobs.failed(error)
            return [self._predict_here(job, part) for part in job.parts]

        return gathered

    def _put(self, name: str, data: bytes) -> Readable:
        """See `MeasuredWorkers`."""
        broadcast = self._jobs.broadcast(data)
        state = BroadcastState(broadcast)
        weakref.finalize(state, self._jobs.let_go, broadcast)
        return state

    # -- trainings -------------------------------------------------------------------------------------------------

    def train(self, task: ModelTask, state: State) -> Callable[[], Trained | None]:
        """See `headrace.engines.workers.Workers.train`."""
        training = pickled_training(task, state)
        if self._jobs.away:
            return lambda: executor.train(training)
        about = f"learn {task.name}, cut {state.counters.cuts}"
        future = self._trainings.submit(self._jobs.run, executor.train, [training], about)

        def outcome() -> Trained | None:
            try:
                return future.result()[0]
            except Exception as error:
                self._jobs.failed(error)
                return executor.train(training)

        return outcome

    # -- rows that stay on executors -------------------------------------------------------------------------------

    def attend(self, sources: Sequence[Source[Any]]) -> None:
        """Read for sources whose rows may stay on executors: topics of the log's own cluster that are only predicted.

        A model's state goes there for each cut, so it is to be a small one.
        """
        if not self._plan.on_kafka:
            return
        stays = {task.name for task in self._plan.models if not self._may_go(task)}
        predicted = only_predicted(self._plan, stays)
        here = KafkaLocation.parse(self._plan.log, name=self._plan.app).bootstrap
        formats = replace(self._plan.formats, registry=codec_for(self._plan.formats).registry)
        for source in sources:
            if not isinstance(source, TopicSource) or source.traits.cluster != here:
                continue
            topics = predicted & set(source.topics)
            if topics and isinstance(source.decode, ForeignFormats):
                decoding = Decoding(source.location, formats, source.decode.named, {})
                source.elsewhere = remote = RemoteRows(self._jobs, decoding, topics)
                self._remote.append(remote)

    def _may_go(self, task: ModelTask) -> bool:
        """Return whether a model's state is small, and the model itself can be sent, as it was declared."""
        if task.name not in self._declared or len(dump_state(task.learner.state())) > INLINE_BYTES:
            return False
        try:
            self._tasks[task.name] = self._jobs.broadcast(pickled(task))
        except Exception as error:  # whatever a user's own functions hold
            logger.warning("«%s» is predicted by the driver: it cannot be sent (%s)", task.name, error)
            return False
        return True

    def perform(self, schedule: Schedule) -> Callable[[], Emission]:
        """See `headrace.step.absent.Performers.perform`."""
        remote = next(remote for remote in self._remote if remote.holds(int(schedule.at[0])))
        task = schedule.task
        cluster = Cluster(KafkaLocation.parse(self._plan.log, name=self._plan.app))
        outputs = task.predict[schedule.predict].outputs
        limits = {output.topic: cluster.largest_message(output.topic) for output in outputs}

        def work(versions: Sequence[FrozenVersion]) -> Performance:
            shared = self._jobs.broadcast(versions)
            return Performance(self._tasks[task.name], schedule.predict, shared, remote.formats, limits)

        about = f"predict {task.name}: {len(schedule.at):,} rows"
        begun = remote.begin(schedule, work)
        futures: list[Future[list[tuple[int, Performed]]]] = [
            self._threads.submit(remote.run, performance, job, about) for performance, job in begun
        ]

        def outcome() -> Emission:
            emission, messages = together([made for future in futures for made in future.result()])
            self._performed += messages
            self._jobs.let_go(begun[0][0].versions)  # one for all jobs of the schedule
            return emission

        return outcome

    def performed(self) -> list[tuple[str, EncodedRows]]:
        """See `headrace.engines.workers.Workers.performed`."""
        found, self._performed = self._performed, []
        return found

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """See `headrace.engines.workers.Workers.close`."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._trainings.shutdown(wait=False, cancel_futures=True)
        self._jobs.close()
