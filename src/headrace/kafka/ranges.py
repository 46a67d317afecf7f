"""Ranges of a partition's offsets, where messages lie, and how rows were spread over several partitions."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from headrace.arrays import Ints


class TopicRange(NamedTuple):
    """Messages wanted: the visible ones of a partition from ``first`` to ``last``."""

    topic: str
    partition: int
    first: int
    last: int

    @property
    def where(self) -> tuple[str, int]:
        """Topic and partition."""
        return (self.topic, self.partition)


class MessageRange(NamedTuple):
    """Messages of one partition: all visible ones from ``first`` to ``last``, ``messages`` of them ours."""

    partition: int
    first: int
    last: int
    messages: int

    def of(self, topic: str) -> TopicRange:
        """Return the range as it is fetched."""
        return TopicRange(topic, self.partition, self.first, self.last)


def pack_spread(partitions: Ints) -> bytes:
    """Return the partition of each message, compressed.

    >>> unpack_spread(pack_spread(np.array([0, 2, 1]))).tolist()
    [0, 2, 1]
    """
    return zlib.compress(partitions.astype("<u2").tobytes())


def unpack_spread(packed: bytes) -> Ints:
    """Return the inverse of `pack_spread`."""
    return np.frombuffer(zlib.decompress(packed), "<u2").astype(np.int64)


def ranges_of(offsets: Ints, partition: int, chosen: Ints) -> tuple[MessageRange, ...]:
    """Return some of a partition's messages as ranges without a hole.

    Args:
        offsets: of all messages that were visible, in order.
        partition: theirs.
        chosen: indexes of those that are meant, ascending.

    >>> ranges_of(np.array([4, 5, 7, 9]), 0, np.array([0, 1, 3]))
    (MessageRange(partition=0, first=4, last=5, messages=2), MessageRange(partition=0, first=9, last=9, messages=1))
    """
    if not len(chosen):
        return ()
    breaks = np.flatnonzero(np.diff(chosen) != 1) + 1
    runs = np.split(chosen, breaks)
    return tuple(MessageRange(partition, int(offsets[run[0]]), int(offsets[run[-1]]), len(run)) for run in runs)
