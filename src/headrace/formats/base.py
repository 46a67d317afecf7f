"""The contract of a format: messages to batches, batches to messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.foreseen import Foreseen
from headrace.wire import Encoded, WireMessages

if TYPE_CHECKING:
    from headrace.formats.json_columns import Column


@dataclass(frozen=True, slots=True)
class Preceding:
    """State that the messages of a topic leave for those that follow them; replaced, never changed.

    Attributes:
        columns: of its rows, where no schema says them (JSON); None where they are to be decided anew.
        enveloped: change events come in envelopes: a message without a value is no event.
        deletes: by partition, offset and key of its last message, where that was a delete with a row of its own.
        recorded: the messages were decoded before, and only those were kept that are events.
    """

    columns: Column | None = None
    enveloped: bool = False
    deletes: Mapping[int, tuple[int, bytes | None]] = field(default_factory=dict)
    recorded: bool = False


FIRST = Preceding()
RECORDED = Preceding(recorded=True)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Events of messages, and which messages are none.

    A message that is neither in ``parts`` nor in ``bad`` was understood and is no row: the tombstone behind a
    delete, a heartbeat.

    Attributes:
        parts: rows in the order of the messages, a new part where the schema changes; with each the index, in the
            messages given, that each row came from (several rows of one message repeat it).
        bad: index and reason of each message that cannot be decoded.
        formats: of each part, where they differ; else empty.
        preceding: what these messages, and those before them, say of the next.
        foreseen: of the parts, for each, predictions that whoever decoded them has made ahead.
    """

    parts: list[tuple[Batch, Ints]] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    preceding: Preceding = FIRST
    foreseen: tuple[tuple[Foreseen, ...], ...] = ()


class Format(Protocol):
    """Bytes to rows and back. Called from any thread, as often as wanted, with equal results for equal arguments.

    `decode` takes whole batches of messages and `encode` whole batches of rows: no Python runs for each cell.
    """

    @property
    def name(self) -> str:
        """The name that users give it: ``json``, ``json+envelope``, ``avro``, …"""
        ...

    def decode(self, messages: WireMessages, schema: pa.Schema | None = None, preceding: Preceding = FIRST) -> Decoded:
        """Return the events of the messages.

        Args:
            messages: of one topic.
            schema: the table's columns (without those that Headrace adds) where they are known: the rows come back
                with exactly these columns and types, whatever the messages say of them. Without it types are those
                that the messages declare, or else what their values look like.
            preceding: what messages before these said (`Decoded.preceding`). With it a message becomes the same event
                however messages are grouped.
        """
        ...

    def encode(self, topic: str, batch: Batch) -> Encoded:
        """Messages for the rows.

        Raises:
            FormatError: the format cannot hold what is in the batch; the message names topic and column.
        """
        ...
