"""Durable topics: `open_log` gives the log that a location names; `headrace.log.base` is the contract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headrace.clock import Clock
from headrace.errors import DeclarationError, LogError

if TYPE_CHECKING:
    from headrace.log.base import Log
    from headrace.log.kafka_codec import Codec


def file_of(log: Log, ending: str = "") -> Path | None:
    """Return the file that a log is, or what is beside it under its name; None for a log in memory or on a cluster."""
    from headrace.log.sqlite import SqliteLog

    return log.path.with_name(log.path.name + ending) if isinstance(log, SqliteLog) else None


def open_log(
    location: str | Path,
    *,
    writer: bool,
    clock: Clock | None = None,
    name: str = "",
    codec: Codec | None = None,
) -> Log:
    """Return the log at a location, made there when it is missing and opened for writing.

    Args:
        location: a path (one SQLite file), ``memory://`` for a log that lives as long as its object, or
            ``kafka://host:port[,host:port][/NAME]`` for topics of a cluster.
        writer: whether to write; one process at a time may, any number may read.
        clock: says when entries were appended; the machine's by default.
        name: the pipeline's, where the location does not say it; a cluster holds the logs of many.
        codec: formats of the topics of a cluster; see `headrace.log.kafka_codec`.

    Raises:
        DeclarationError: there is no such kind of log.
        LogLocked: another process writes it.
        LogError: it is not there or cannot be used, with the branches `LogCorrupt` and `LogVersionError`.

    >>> log = open_log("memory://", writer=True)
    >>> log.topics()
    {}
    """
    text = str(location)
    if text == "memory://":
        if not writer:
            raise LogError("there is no log in memory to open", advice="Read through the object that writes it.")
        from headrace.log.memory import MemoryLog

        return MemoryLog(clock=clock)
    if text.startswith("kafka://"):
        from headrace.kafka.settings import KafkaLocation
        from headrace.log.kafka import KafkaLog

        return KafkaLog(KafkaLocation.parse(text, name=name), writer=writer, codec=codec, clock=clock)
    if "://" in text:
        raise DeclarationError(
            f"no log can be kept at «{text}» in this version",
            advice="Give a path, kafka://host:port, or memory://.",
        )
    from headrace.log.sqlite import SqliteLog

    return SqliteLog(location, writer=writer, clock=clock)
