"""The contract of a format: messages to batches, batches to messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.wire import Headers, WireMessages


@dataclass(frozen=True, slots=True)
class Decoded:
    """What messages turned out to be.

    A message that is neither in ``parts`` nor in ``bad`` was understood and is no row: the tombstone behind a
    delete, a heartbeat.

    Attributes:
        parts: rows in the order of the messages, a new part where the schema changes; with each the index, in the
            messages given, that each row came from (several rows of one message repeat it).
        bad: index and reason of each message that cannot be decoded.
        formats: of each part, where they differ; else empty.
    """

    parts: list[tuple[Batch, Ints]] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Messages that rows became, in the rows' order.

    Attributes:
        keys, values, headers: of each message; a value of None is a tombstone.
        rows: the row each message came from; a delete of an envelope format becomes two messages.
    """

    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Headers]
    rows: Ints


class Format(Protocol):
    """Bytes to rows and back. Called from any thread, as often as wanted, with equal results for equal arguments.

    `decode` takes whole batches of messages and `encode` whole batches of rows: no Python runs for each cell.
    """

    @property
    def name(self) -> str:
        """As a user names it: ``json``, ``json+envelope``, ``avro``, …"""
        ...

    def decode(self, messages: WireMessages, schema: pa.Schema | None = None) -> Decoded:
        """Rows of the messages.

        Args:
            messages: of one topic.
            schema: the table's columns (without those that Headrace adds) where they are known: the rows come back
                with exactly these columns and types, whatever the messages say of them. Without it types are those
                that the messages declare, or else what their values look like.
        """
        ...

    def encode(self, topic: str, batch: Batch) -> Encoded:
        """Messages for the rows.

        Raises:
            FormatError: the format cannot hold what is in the batch; the message names topic and column.
        """
        ...
