"""What messages that have arrived become: decoded pieces, in the order of their arrival or in one that a topic says.

Whoever reads the topics (a consumer of ours, Flink) hands messages in; nothing here opens a socket of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from headrace.arrays import Ints
from headrace.batch import undecodable
from headrace.capture.base import Origin, Piece
from headrace.capture.topics.reader import DecodedLike, Offsets, Where
from headrace.capture.topics.transactions import TransactionOrder
from headrace.kafka.ranges import ranges_of
from headrace.wire import WireMessages


class Decode(Protocol):
    """Makes rows of messages, and remembers what their topics are; see `ForeignFormats`."""

    def __call__(self, messages: WireMessages) -> tuple[str, DecodedLike]:
        """Return the format's name and the rows."""
        ...

    def records(self) -> dict[str, bytes]:
        """Return by topic what its messages have decided so far."""
        ...

    def restore(self, records: Mapping[str, bytes]) -> None:
        """Go on with that."""
        ...


class MessagePieces:
    """Makes pieces of messages.

    Args:
        decode: gives the format's name and the rows of messages.
        order: what orders the events; None: arrival.
    """

    def __init__(self, decode: Decode, order: TransactionOrder | None = None) -> None:
        self.decode = decode
        self.order = order

    def of(self, arrived: Mapping[Where, WireMessages]) -> list[Piece[Offsets]]:
        """Return what can be handed out now of messages that follow those of the last call, by partition.

        Raises:
            RegistryUnavailable: a schema cannot be fetched now. None of the messages was taken: they are to be given
                again, after `Decode.restore` of what was decided before.
        """
        order = self.order
        if order is None:
            return [decoded_piece(wire, self.decode) for wire in arrived.values()]
        # All are decoded before one is taken: what needs a registry that is away is decoded again.
        decoded = {where: self.decode(wire) for where, wire in arrived.items() if where[0] != order.topic}
        for where, wire in arrived.items():
            if where in decoded:
                order.take(where, wire, *decoded[where])
            else:
                order.take_ends(wire)
        return list(order.pieces())

    def positions(self, read: Mapping[Where, int]) -> dict[Where, int]:
        """Return where a start has to go on that has read so far: at the first message that was not handed out."""
        return dict(read) if self.order is None else self.order.positions(read)


def decoded_piece(messages: WireMessages, decode: Decode) -> Piece[Offsets]:
    """Return messages of one partition as a piece: their rows, those that are none, and where they lie."""
    topic, partition = messages.topic, int(messages.partitions[0])
    format_, decoded = decode(messages)
    batches, origins = [], []
    for i, (batch, rows) in enumerate(decoded.parts):
        batches.append((topic, batch))
        name = decoded.formats[i] if decoded.formats else format_
        origins.append(Origin(ranges_of(messages.offsets, partition, _distinct(rows)), name))
    rejected = ((f"{topic}.dlq", undecodable(messages, decoded.bad)),) if decoded.bad else ()
    return Piece(tuple(batches), rejected, origins=tuple(origins), foreseen=decoded.foreseen)


def _distinct(rows: Ints) -> Ints:
    """Return each message once, in order; most often each is one row."""
    return rows if (np.diff(rows) > 0).all() else np.unique(rows)
