"""The protocol of a format, as a log on Kafka needs it; and the format of its own internal topics."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from headrace.errors import LogCorrupt
from headrace.log.message import MessageFormat
from headrace.wire import Encoded, WireMessages

INTERNAL_FORMAT = "headrace"
INTERNAL_PREFIX = "__headrace"
LARGEST = 600_000


@dataclass(frozen=True, slots=True)
class Form:
    """The form of an entry's messages: the format's name, and the rows' schema.

    >>> form = Form("json", pa.schema([("id", pa.int64())]))
    >>> Form.from_json(form.to_json()) == form
    True
    """

    format: str
    schema: pa.Schema

    @property
    def key(self) -> tuple[str, bytes]:
        """Equal for equal forms, metadata included."""
        return self.format, self.schema.serialize().to_pybytes()

    def to_json(self) -> bytes:
        ipc = base64.b64encode(self.schema.serialize()).decode()
        return json.dumps({"format": self.format, "schema": ipc}).encode()

    @classmethod
    def from_json(cls, value: bytes) -> Form:
        known = json.loads(value)
        return cls(known["format"], pa.ipc.read_schema(pa.py_buffer(base64.b64decode(known["schema"]))))


class Codec(Protocol):
    """Turns rows into the messages of a topic's format and back."""

    def format_of(self, topic: str) -> str:
        """Return the name of the format in which a topic is written."""
        ...

    def encode(self, topic: str, format_: str, records: pa.RecordBatch) -> Encoded:
        """Return messages for rows; several may come from one row, or one from several."""
        ...

    def decode(self, format_: str, messages: WireMessages, schema: pa.Schema) -> pa.RecordBatch:
        """Return the rows of messages that `encode` made of records with this schema, to the bit.

        Raises:
            LogCorrupt: the messages are others.
        """
        ...


class InternalCodec:
    """Batches as Arrow IPC messages without their schema, which the changelog holds: for nobody but us."""

    def format_of(self, topic: str) -> str:
        """See `Codec`."""
        return INTERNAL_FORMAT

    def encode(self, topic: str, format_: str, records: pa.RecordBatch) -> Encoded:
        """See `Codec`; a batch too large for one message becomes several."""
        form = MessageFormat(records.schema)
        bodies: list[tuple[int, bytes]] = []
        waiting = [(0, records)]
        while waiting:
            first, some = waiting.pop()
            body = form.encode(some).to_pybytes()
            if len(body) > LARGEST and some.num_rows > 1:
                half = some.num_rows // 2
                waiting += [(first + half, some.slice(half)), (first, some.slice(0, half))]
            else:
                bodies.append((first, body))
        n = len(bodies)
        return Encoded([None] * n, [body for _, body in bodies], [()] * n, np.array([first for first, _ in bodies]))

    def decode(self, format_: str, messages: WireMessages, schema: pa.Schema) -> pa.RecordBatch:
        """See `Codec`."""
        form = MessageFormat(schema)
        try:
            parts = [form.decode(value or b"") for value in messages.values]
        except pa.ArrowException as error:
            raise LogCorrupt(f"a message of «{messages.topic}» is damaged: {error}") from error
        return parts[0] if len(parts) == 1 else pa.concat_batches(parts)


class Codecs:
    """The internal form for internal topics, the given codec for all others."""

    def __init__(self, codec: Codec | None) -> None:
        self._internal = InternalCodec()
        self._codec: Codec = codec or self._internal

    def format_of(self, topic: str) -> str:
        """Return the format in which a topic is written."""
        return INTERNAL_FORMAT if topic.startswith(INTERNAL_PREFIX) else self._codec.format_of(topic)

    def encode(self, topic: str, format_: str, records: pa.RecordBatch) -> Encoded:
        """See `Codec`."""
        return self._of(format_).encode(topic, format_, records)

    def decode(self, form: Form, messages: WireMessages) -> pa.RecordBatch:
        """See `Codec`."""
        return self._of(form.format).decode(form.format, messages, form.schema)

    def _of(self, format_: str) -> Codec:
        return self._internal if format_ == INTERNAL_FORMAT else self._codec
