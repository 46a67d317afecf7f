"""The job's graph, in Flink's words, and its submission."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyflink
from pyflink.common import Configuration, Types, WatermarkStrategy
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.java_gateway import get_gateway
from pyflink.util.java_utils import add_jars_to_context_class_loader

from headrace.engines.flink.functions import AheadFunction, EngineFunction
from headrace.engines.flink.jars import JARS, job_jars
from headrace.engines.flink.job import FlinkJob
from headrace.engines.settings import FlinkEngine
from headrace.event_log import event
from headrace.kafka.settings import KafkaLocation

logger = logging.getLogger("headrace")

HOME = Path(pyflink.__file__).parent
BATCH_ROWS = 8_192
# Where several operators take turns: with larger ones the last of a few would wait for who has one more.
SPREAD_ROWS = 2_048
BATCH_BYTES = 4 << 20
LINGER_MS = 5
HEARTBEAT_MS = 1_000
BYTES = Types.PRIMITIVE_ARRAY(Types.BYTE())

# A user's own options come over these.
DEFAULTS = {
    "execution.checkpointing.interval": "1 s",
    "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
    # What a checkpoint holds is in the log: one that fails costs nothing.
    "execution.checkpointing.tolerable-failed-checkpoints": "2147483647",
    "restart-strategy.type": "exponential-delay",
    "restart-strategy.exponential-delay.initial-backoff": "500 ms",
    "restart-strategy.exponential-delay.max-backoff": "30 s",
    "taskmanager.memory.managed.size": "128m",
}
# These are what the operators are made for.
OURS = {
    "execution.checkpointing.mode": "EXACTLY_ONCE",
    # Frames of parallel operators are put in order again: none may be overtaken by a barrier.
    "execution.checkpointing.unaligned.enabled": "false",
    "execution.runtime-mode": "STREAMING",
    "python.execution-mode": "process",
    "python.fn-execution.bundle.size": "1",
    "pipeline.object-reuse": "true",
    "execution.attached": "true",
}


@dataclass(frozen=True, slots=True)
class JobSource:
    """Topics of one cluster that Flink reads.

    Attributes:
        offsets: where to begin, by topic and partition; other partitions at their oldest message.
    """

    location: KafkaLocation
    topics: Sequence[str]
    offsets: Mapping[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that was submitted.

    Attributes:
        client: Flink's `JobClient`.
        page: address of the page that shows it, and of the REST interface.
    """

    client: Any
    id: str
    page: str


def submit(
    job: FlinkJob, names: Sequence[str], sources: Sequence[JobSource], engine: FlinkEngine, title: str, parallelism: int
) -> Submitted:
    """Submit a job.

    Args:
        names: of the sources and the operator that runs the engine, as the plan names them.
        parallelism: of what can be spread.
    """
    jars = job_jars(
        engine.conf, [HOME / "lib", *([Path(os.environ["FLINK_HOME"], "lib")] if os.environ.get("FLINK_HOME") else [])]
    )
    env, page = _environment(engine, jars, parallelism)
    most = BATCH_ROWS if parallelism == 1 else SPREAD_ROWS
    streams = [_batches(env, number, source, most) for number, source in enumerate(sources)]
    frames = streams[0].union(*streams[1:]) if len(streams) > 1 else streams[0]
    ahead = frames.rebalance().flat_map(AheadFunction(job, alone=parallelism == 1), output_type=BYTES)
    ahead = ahead.name("decode, predict ahead").uid("ahead").set_parallelism(parallelism)
    stepped = ahead.rebalance().flat_map(EngineFunction(job), output_type=BYTES)
    stepped = stepped.name(names[0]).uid("engine").set_parallelism(1).slot_sharing_group("engine")
    _end(stepped)
    client = env.execute_async(title)
    return Submitted(client, str(client.get_job_id()), page or _page(client))


def _environment(engine: FlinkEngine, jars: Sequence[Path], parallelism: int) -> tuple[Any, str]:
    options = {
        **DEFAULTS,
        "python.executable": sys.executable,
        "python.client.executable": sys.executable,
        **engine.conf,
        **OURS,
        "parallelism.default": str(parallelism),
    }
    gateway = get_gateway()
    _exporting(jars)
    if engine.jobmanager is None:
        # Workers would share this process's interpreter otherwise.
        os.environ["_python_worker_execution_mode"] = "process"  # noqa: SIM112
        options = {"rest.bind-port": "0", **options}
        options |= {"rest.address": "127.0.0.1", "taskmanager.numberOfTaskSlots": str(parallelism + 1)}
        options[JARS] = ";".join(f"file://{jar}" for jar in jars)
        return StreamExecutionEnvironment.get_execution_environment(_configuration(options)), ""
    host, _, port = str(engine.jobmanager).rpartition(":")
    options |= {"execution.target": "remote", "rest.address": host.strip("[]"), "rest.port": port}
    options[JARS] = ";".join(f"file://{jar}" for jar in [*jars, *HOME.glob("opt/flink-python*.jar")])
    # `get_execution_environment` begins a mini cluster whatever the target is.
    java = gateway.jvm.org.apache.flink.streaming.api.environment.StreamExecutionEnvironment
    return StreamExecutionEnvironment(java(_configuration(options)._j_configuration)), f"http://{engine.jobmanager}"


def _exporting(jars: Sequence[Path]) -> None:
    add_jars_to_context_class_loader([f"file://{jar}" for jar in jars])


def _configuration(options: Mapping[str, str]) -> Configuration:
    made = Configuration()
    for name, value in options.items():
        made.set_string(name, value)
    return made


def _page(client: Any) -> str:
    """Return the address of the page that a mini cluster of this process has; "" where it does not tell."""
    try:
        field = client._j_job_client.getClass().getDeclaredField("miniCluster")
        field.setAccessible(True)
        return str(field.get(client._j_job_client).getRestAddress().get())
    except Exception as error:  # nothing else depends on it
        logger.warning("the address of Flink's page is not known: %s", error, extra=event("flink_page"))
        return ""


def _batches(env: Any, number: int, source: JobSource, most: int) -> Any:
    """Return the frames of one cluster's topics, of so many rows at most."""
    jvm = get_gateway().jvm
    begin = jvm.headrace.flink.StartOffsets()
    for (topic, partition), offset in source.offsets.items():
        begin.add(topic, partition, offset)
    properties = jvm.java.util.Properties()
    for name, value in consumer_properties(source.location).items():
        properties.setProperty(name, value)
    # A topic that is not there yet is waited for where it is named by a pattern.
    pattern = jvm.java.util.regex.Pattern.compile("|".join(re.escape(topic) for topic in source.topics))
    built = (
        jvm.org.apache.flink.connector.kafka.source.KafkaSource.builder()
        .setBootstrapServers(source.location.bootstrap)
        .setGroupId(f"headrace-{source.location.name}-flink")
        .setTopicPattern(pattern)
        .setStartingOffsets(begin.initializer())
        .setProperties(properties)
        .setDeserializer(jvm.headrace.flink.RawDeserializer())
        .build()
    )
    what = "topics " + ", ".join(source.topics)
    j_stream = env._j_stream_execution_environment.fromSource(
        built, WatermarkStrategy.no_watermarks()._j_watermark_strategy, what
    )
    j_stream.setParallelism(1)
    j_stream.uid(f"source-{number}")
    batcher = jvm.headrace.flink.Batcher(number, most, BATCH_BYTES, LINGER_MS, HEARTBEAT_MS)
    batches = j_stream.transform("batches", _j_bytes(), batcher)
    batches.setParallelism(1)
    batches.uid(f"batches-{number}")
    return DataStream(batches)


def _end(stream: Any) -> None:
    jvm = get_gateway().jvm
    ended = stream._j_data_stream.flatMap(jvm.headrace.flink.Verdict()).returns(_j_bytes())
    ended.name("verdict").setParallelism(1)
    sink = jvm.org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink()
    ended.sinkTo(sink).name("log").setParallelism(1)


def _j_bytes() -> Any:
    return get_gateway().jvm.org.apache.flink.api.common.typeinfo.PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO


_JAAS = {
    "PLAIN": "plain.PlainLoginModule",
    "SCRAM-SHA-256": "scram.ScramLoginModule",
    "SCRAM-SHA-512": "scram.ScramLoginModule",
}


def consumer_properties(location: KafkaLocation) -> dict[str, str]:
    """Return the properties of Java's consumer for a cluster: ours, and the user's translated from librdkafka's."""
    found = {
        "isolation.level": "read_committed",
        "fetch.max.wait.ms": "20",
        "max.poll.records": "5000",
        "partition.discovery.interval.ms": "2000",
        "commit.offsets.on.checkpoint": "true",
    }
    settings = dict(location.settings)
    user, password = settings.pop("sasl.username", ""), settings.pop("sasl.password", "")
    mechanism = settings.pop("sasl.mechanisms", "")
    if mechanism:
        found["sasl.mechanism"] = mechanism
    if mechanism in _JAAS:
        module = f"org.apache.flink.kafka.shaded.org.apache.kafka.common.security.{_JAAS[mechanism]}"
        found["sasl.jaas.config"] = f'{module} required username="{_quoted(user)}" password="{_quoted(password)}";'
    for name, java in (("ssl.ca.location", "ssl.truststore.location"), ("ssl.ca.pem", "ssl.truststore.certificates")):
        if name in settings:
            found |= {"ssl.truststore.type": "PEM", java: settings.pop(name)}
    if "security.protocol" in settings:
        found["security.protocol"] = settings["security.protocol"].upper()
    return found


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
