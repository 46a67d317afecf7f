"""Consumers that measure: the bare loop that others are compared with, and readers in processes of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import numpy.typing as npt

# librdkafka's defaults cap a reader at some 135,000 messages a second, measured on loopback.
FAST = {"queued.min.messages": 1_000_000, "fetch.queue.backoff.ms": 5, "fetch.message.max.bytes": 10 << 20}
PROMPT = {"fetch.wait.max.ms": 5, "fetch.queue.backoff.ms": 1}
PATIENCE_S = 600.0


def consumer(bootstrap: str, **settings: Any) -> Any:
    """A consumer that commits nothing."""
    from confluent_kafka import Consumer

    base = {"bootstrap.servers": bootstrap, "group.id": "benchmark", "enable.auto.commit": False}
    return Consumer(base | {"auto.offset.reset": "error", **settings})


def bare(bootstrap: str, topic: str, rows: int) -> float:
    """Seconds in which a bare loop has had ``rows`` messages of partition 0: only their lengths are looked at.

    It runs in a process of its own: Python's garbage collector would visit all that ours holds, again and again.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_bare, bootstrap, topic, rows).result()


def _bare(bootstrap: str, topic: str, rows: int) -> float:
    from confluent_kafka import TopicPartition

    reader = consumer(bootstrap, **FAST)
    started = time.perf_counter()
    reader.assign([TopicPartition(topic, 0, 0)])
    count = size = 0
    while count < rows:
        messages = reader.consume(10_000, 1.0)
        assert messages or time.perf_counter() < started + PATIENCE_S, f"{count} of {rows} messages of {topic}"
        for message in messages:
            size += len(message.value())
        count += len(messages)
    seconds = time.perf_counter() - started
    reader.close()
    assert size
    return seconds


class Reader:
    """A reader in a process of its own, which begins at a topic's present end: ours would share the interpreter lock.

    Args:
        work: `count` or `stamp`; then their arguments.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        context = get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        assert self._ours.recv() == "ready"

    def finish(self, timeout: float = PATIENCE_S) -> Any:
        """The figures it found."""
        if not self._ours.poll(timeout):
            self._process.terminate()
            raise TimeoutError(f"the reader has not read everything in {timeout:.0f} s")
        try:
            return self._ours.recv()
        finally:
            self._process.join(10)


def count(connection: Any, bootstrap: str, topic: str, rows: int) -> None:
    """Send the monotonic times at which the first and the last of ``rows`` new messages were there."""
    reader = _at_the_end(bootstrap, topic, FAST | PROMPT)
    connection.send("ready")
    first, seen = 0.0, 0
    while seen < rows:
        messages = reader.consume(10_000, 0.005)
        if messages and not seen:
            first = time.monotonic()
        seen += sum(message.error() is None for message in messages)
    connection.send((first, time.monotonic()))
    reader.close()


def stamp(connection: Any, bootstrap: str, topic: str, rows: int) -> None:
    """Send the monotonic time at which each of ``rows`` new messages was there, by its ``id``."""
    reader = _at_the_end(bootstrap, topic, PROMPT)
    connection.send("ready")
    values: list[bytes] = []
    times = np.empty(rows)
    while len(values) < rows:
        message = reader.poll(1.0)
        if message is not None and message.error() is None:
            times[len(values)] = time.monotonic()
            values.append(message.value())
    readable: npt.NDArray[np.float64] = np.full(rows, np.nan)
    readable[[json.loads(value)["id"] for value in values]] = times
    connection.send(readable)
    reader.close()


def _at_the_end(bootstrap: str, topic: str, settings: dict[str, Any]) -> Any:
    """A consumer that has reached the end of a topic and waits for what comes."""
    from confluent_kafka import KafkaError, TopicPartition

    reader = consumer(bootstrap, **settings, **{"enable.partition.eof": True})
    _, end = reader.get_watermark_offsets(TopicPartition(topic, 0), timeout=30)
    reader.assign([TopicPartition(topic, 0, end)])
    message = reader.poll(30)
    assert message is not None and message.error() is not None
    assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
    return reader
