"""Signals of Debezium's that come from elsewhere than its table: from a file, or from a topic.

    file, topic ──▶ thread ──▶ obeyed, with a mark of the channel, in a transaction of the log ──▶ deleted, committed

A mark says of a channel what was obeyed last. It is stored with what the signals have asked for, so that a signal is
obeyed once, whatever is killed; only then is it deleted from its file.
(https://debezium.io/documentation/reference/3.6/configuration/signalling.html)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from headrace.capture.postgres.signals import Signal
from headrace.capture.postgres.snapshot_options import ChannelOptions
from headrace.errors import DeclarationError
from headrace.event_log import event

logger = logging.getLogger("headrace")

_AT_ONCE = 1_000
_POLL_S = 0.5  # a consumer that was made just now has nothing yet
# Properties of Java's consumer that have another name in librdkafka, or none.
_RENAMED = {"sasl.mechanism": "sasl.mechanisms", "ssl.truststore.certificates": "ssl.ca.pem"}
_LEFT_OUT = frozenset({"key.deserializer", "value.deserializer"})
_JAAS = re.compile(r"""\b(username|password)\s*=\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^\s;]+)""")


@dataclass(frozen=True, slots=True)
class Arrived:
    """What a channel had: signals in their order, and its mark when they are obeyed."""

    channel: str
    signals: tuple[Signal, ...]
    mark: str


class Channel(Protocol):
    """A place where signals come from; used by one thread, which calls everything again where it raises OSError."""

    name: str

    def read(self, mark: str) -> tuple[list[Signal], str]:
        """Return what came behind a mark, and the mark behind that; the same mark where nothing did."""

    def taken(self, mark: str) -> str:
        """Let go of all up to a mark, which is durable; return the mark that is to be stored then."""

    def close(self) -> None:
        """Close it."""


class SignalFile:
    """A file of signals, a line of JSON each. Lines are deleted when what they ask for is in the log.

    Its mark is the size and the hash of the lines at its beginning that were obeyed. A line that was obeyed and could
    not be deleted any more is told from one that was written again by a mark that is empty.
    """

    name = "file"

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def read(self, mark: str) -> tuple[list[Signal], str]:
        """See `Channel.read`."""
        if mark:
            return [], self.taken(mark)
        data = self._data()
        whole = data[: data.rfind(b"\n") + 1]
        if data != whole and _parsed(data[len(whole) :].decode(errors="replace")) is not None:
            whole = data  # the last line lacks only its end
        signals = []
        for line in whole.decode(errors="replace").splitlines():
            if line.strip():
                found = _parsed(line)
                if found is None:
                    _warn(f"a line of {self._path} is left out, which is no signal: {line[:200]!r}")
                else:
                    signals.append(found)
        return signals, _mark(whole) if whole else ""

    def taken(self, mark: str) -> str:
        """See `Channel.taken`."""
        data = self._data()
        size = int(mark.partition(":")[0] or 0)
        if size and len(data) >= size and _mark(data[:size]) == mark:
            with self._path.open("r+b") as file:
                rest = file.read()[size:]  # with what was appended meanwhile
                file.seek(0)
                file.write(rest)
                file.truncate()
                os.fsync(file.fileno())
        return ""

    def _data(self) -> bytes:
        return self._path.read_bytes() if self._path.is_file() else b""

    def close(self) -> None:
        """See `Channel.close`."""


class SignalTopic:
    """Partition 0 of a topic of signals: messages whose key is the topics' prefix. Its mark is the next offset."""

    name = "kafka"

    def __init__(self, options: ChannelOptions, key: str) -> None:
        self._options, self._key = options, key
        self._consumer: Any = None
        self._at = ""

    def read(self, mark: str) -> tuple[list[Signal], str]:
        """See `Channel.read`."""
        from confluent_kafka import KafkaException

        try:
            return self._read(mark)
        except KafkaException as error:
            raise OSError(f"the topic of signals «{self._options.topic}» cannot be read: {error}") from error

    def _read(self, mark: str) -> tuple[list[Signal], str]:
        if self._consumer is None or self._at != mark:
            self._assign(mark)
        messages = self._consumer.consume(_AT_ONCE, _POLL_S)
        failed = [message.error() for message in messages if message.error()]
        messages = [message for message in messages if not message.error()]
        if failed and not messages:
            raise OSError(f"the topic of signals «{self._options.topic}» cannot be read: {failed[0].str()}")
        signals = []
        for message in messages:
            if (message.key() or b"").decode(errors="replace") != self._key or not message.value():
                continue
            found = _parsed(message.value().decode(errors="replace"))
            if found is None:
                _warn(f"offset {message.offset()} of topic «{self._options.topic}» is left out: it is no signal")
            else:
                signals.append(found)
        if not signals:
            return [], mark
        self._at = str(messages[-1].offset() + 1)
        return signals, self._at

    def _assign(self, mark: str) -> None:
        from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

        if self._consumer is None:
            self._consumer = Consumer(consumer_properties(self._options))
        place = TopicPartition(self._options.topic, 0)
        if mark:
            place.offset = int(mark)
        else:
            (committed,) = self._consumer.committed([place], timeout=10.0)
            place.offset = committed.offset if committed.offset >= 0 else OFFSET_BEGINNING
        self._consumer.assign([place])
        self._at = mark

    def taken(self, mark: str) -> str:
        """See `Channel.taken`. The group's offset is information for others."""
        from confluent_kafka import KafkaException, TopicPartition

        with contextlib.suppress(KafkaException):
            place = TopicPartition(self._options.topic, 0, int(mark))
            if self._consumer is not None:
                self._consumer.commit(offsets=[place], asynchronous=False)
        return mark

    def close(self) -> None:
        """See `Channel.close`."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


def consumer_properties(options: ChannelOptions) -> dict[str, str | int]:
    """Return librdkafka's properties for those of Java's consumer.

    Raises:
        DeclarationError: librdkafka has nothing of that kind.

    >>> jaas = 'org.apache.kafka.common.security.plain.PlainLoginModule required username="ann" password="x";'
    >>> given = (("sasl.jaas.config", jaas), ("sasl.mechanism", "PLAIN"), ("key.deserializer", "…"))
    >>> found = consumer_properties(ChannelOptions(topic="s", bootstrap="b:1", consumer=given))
    >>> found["sasl.username"], found["sasl.mechanisms"], found["bootstrap.servers"]
    ('ann', 'PLAIN', 'b:1')
    """
    found: dict[str, str | int] = {
        "bootstrap.servers": options.bootstrap,
        "group.id": options.group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "log_level": 0,
        "allow.auto.create.topics": False,
    }
    for name, value in options.consumer:
        if name == "sasl.jaas.config":
            found |= {f"sasl.{word}": text.strip("\"'") for word, text in _JAAS.findall(value)}
        elif name.startswith(("ssl.truststore.", "ssl.keystore.")) and name not in _RENAMED:
            raise DeclarationError(
                f"signal.consumer.{name} names a store of Java's",
                advice="Give PEM files: signal.consumer.ssl.ca.location, ssl.certificate.location, ssl.key.location.",
            )
        elif name not in _LEFT_OUT:
            found[_RENAMED.get(name, name)] = value
    return found


class SignalChannels:
    """The channels of one source, looked at in a thread. Methods belong to the thread that polls the source.

    Args:
        wake: called from the thread when there is something to obey.
    """

    def __init__(self, options: ChannelOptions, key: str, wake: Callable[[], None]) -> None:
        self._channels: list[Channel] = [SignalFile(options.file)] if options.file else []
        self._channels += [SignalTopic(options, key)] if options.topic else []
        self._poll_s, self._wake = options.poll_s, wake
        self._lock = threading.Lock()
        self._arrived: list[Arrived] = []
        self._handed: dict[str, Arrived] = {}
        self._durable: dict[str, str] = {}
        self._look, self._ended = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._said = ""

    def start(self, marks: Mapping[str, str]) -> None:
        """Begin to look, behind the marks that the log has."""
        if self._channels and self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(dict(marks),), name="headrace-signals", daemon=True)
            self._thread.start()

    @property
    def arrived(self) -> bool:
        """Return whether `take` has something. From any thread."""
        return bool(self._arrived)

    def take(self) -> Sequence[Arrived]:
        """Return what has come; it comes again after `undo`."""
        with self._lock:
            arrived, self._arrived = self._arrived, []
            self._handed |= {entry.channel: entry for entry in arrived}
        return arrived

    def stored(self, marks: Mapping[str, str]) -> None:
        """Note that the log has these marks."""
        with self._lock:
            for name, entry in list(self._handed.items()):
                if marks.get(name, "") == entry.mark:
                    del self._handed[name]
                    self._durable[name] = entry.mark
        self._look.set()

    def undo(self) -> None:
        """Forget what was taken and not stored: it comes again."""
        with self._lock:
            self._arrived = [*self._handed.values(), *self._arrived]
            self._handed = {}

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._look.set()
        if self._thread is not None:
            self._thread.join(10.0)
            self._thread = None

    def _run(self, marks: dict[str, str]) -> None:
        waiting: set[str] = set()
        while not self._ended.is_set():
            self._look.clear()
            for channel in self._channels:
                try:
                    self._look_at(channel, marks, waiting)
                except (OSError, DeclarationError) as error:
                    self._say(str(error))
            self._look.wait(self._poll_s)
        for channel in self._channels:
            channel.close()

    def _look_at(self, channel: Channel, marks: dict[str, str], waiting: set[str]) -> None:
        """Hand over what a channel has; no more before that is durable."""
        name = channel.name
        signals: list[Signal] = []
        if name in waiting:
            with self._lock:
                durable = self._durable.pop(name, None)
            if durable is None:
                return
            waiting.discard(name)
            marks[name] = durable
            mark = channel.taken(durable) if durable else durable
        else:
            signals, mark = channel.read(marks.get(name, ""))
        if mark == marks.get(name, ""):
            return
        waiting.add(name)
        with self._lock:
            self._arrived.append(Arrived(name, tuple(signals), mark))
        self._wake()

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            _warn(text)


def _parsed(line: str) -> Signal | None:
    """Return the signal that a text of JSON is; None where it is none.

    >>> _parsed('{"id": "1", "type": "log", "data": {"message": "hello"}}')
    Signal(id='1', type='log', data='{"message": "hello"}')
    """
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        return None
    data = found.get("data")
    text = data if isinstance(data, str) else json.dumps(data if data is not None else {})
    return Signal(str(found.get("id", "")), found["type"], text)


def _mark(data: bytes) -> str:
    return f"{len(data)}:{hashlib.sha256(data).hexdigest()}"


def _warn(text: str) -> None:
    logger.warning("%s", text, extra=event("signal_refused"))
