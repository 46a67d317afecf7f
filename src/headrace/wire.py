"""Messages of a topic as a broker holds them: keys, values, headers, offsets, each as a column.

They are what `headrace.formats` turns into batches and makes of them, and what a log on Kafka sends and fetches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints

Headers = Sequence[tuple[str, bytes | None]]
_T = TypeVar("_T")


class WireMessages:
    """Messages of one topic, in the order of their partitions' offsets.

    Keys and headers are often not looked at, and fetching them costs a call for each message: they may be given as
    functions, which are called once, when somebody asks.

    Args:
        topic: its name.
        values: each message's bytes; None is a tombstone.
        offsets: each one's offset in its partition.
        partitions, ts_ms: likewise partition and timestamp (milliseconds since 1970, Kafka's unit); 0 by default.
        keys, headers: likewise, as a list or a function that gives it; None where there are none.
        key: gives one message's key, where ``keys`` is a function.

    >>> messages = WireMessages("t", [b"{}", None], offsets=np.array([4, 7]), keys=lambda: [b"a", b"b"])
    >>> len(messages), messages.keys, messages.headers, messages.take([1]).keys
    (2, [b'a', b'b'], [(), ()], [b'b'])
    """

    __slots__ = ("_headers", "_key", "_keys", "offsets", "partitions", "topic", "ts_ms", "values")

    def __init__(
        self,
        topic: str,
        values: Sequence[bytes | None],
        *,
        offsets: Ints,
        partitions: Ints | None = None,
        ts_ms: Ints | None = None,
        keys: Sequence[bytes | None] | Callable[[], Sequence[bytes | None]] | None = None,
        key: Callable[[int], bytes | None] | None = None,
        headers: Sequence[Headers] | Callable[[], Sequence[Headers]] | None = None,
    ) -> None:
        n = len(values)
        self.topic = topic
        self.values = values
        self.offsets = offsets
        self.partitions = np.zeros(n, np.int64) if partitions is None else partitions
        self.ts_ms = np.zeros(n, np.int64) if ts_ms is None else ts_ms
        self._keys = keys
        self._key = key
        self._headers = headers

    def __len__(self) -> int:
        return len(self.values)

    @property
    def keys(self) -> Sequence[bytes | None]:
        """Each message's key, None where it has none."""
        if callable(self._keys):
            self._keys = self._keys()
        return [None] * len(self.values) if self._keys is None else self._keys

    def key(self, i: int) -> bytes | None:
        """Return one message's key; the others are not fetched for it."""
        if self._keys is None:
            return None
        return self._key(i) if self._key is not None and callable(self._keys) else self.keys[i]

    @property
    def headers(self) -> Sequence[Headers]:
        """Each message's headers, an empty sequence where it has none."""
        if callable(self._headers):
            self._headers = self._headers()
        return [()] * len(self.values) if self._headers is None else self._headers

    def take(self, indices: Sequence[int] | Ints) -> WireMessages:
        """Return some of the messages, in the given order."""
        at = np.asarray(indices, np.int64)
        chosen = at.tolist()
        return WireMessages(
            self.topic,
            _chosen(self.values, chosen),
            offsets=self.offsets[at],
            partitions=self.partitions[at],
            ts_ms=self.ts_ms[at],
            keys=None if self._keys is None else lambda: _chosen(self.keys, chosen),
            key=lambda i: self.key(chosen[i]),
            headers=None if self._headers is None else lambda: _chosen(self.headers, chosen),
        )


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


@dataclass(frozen=True, slots=True)
class MessageColumns:
    """Messages as columns of bytes: between processes these cost a twentieth of lists of Python's objects.

    Attributes:
        keys: None where no message has one; ``values``: likewise of each message, a null is a tombstone.
        headers: (name, values) of each header; every message has all of them, in this order.

    >>> messages = Encoded([None, None], [b"{}", None], [[("a", b"1")], [("a", None)]], np.arange(2))
    >>> packed = MessageColumns.of(messages)
    >>> keys, values, headers = MessageColumns.joined([packed, packed]).unpacked()
    >>> keys[:2], values, list(headers)[:2]
    ([None, None], [b'{}', None, b'{}', None], [[('a', b'1')], [('a', None)]])
    """

    keys: pa.Array | None
    values: pa.Array
    headers: tuple[tuple[str, pa.Array], ...]

    @classmethod
    def of(cls, messages: Encoded) -> MessageColumns | None:
        """Return messages as columns; None where their headers do not have the same names."""
        names = {tuple(name for name, _ in pairs) for pairs in messages.headers}
        if len(names) != 1:
            return None
        (common,) = names
        columns = zip(*messages.headers, strict=True)
        headers = tuple(
            (name, _packed([value for _, value in column])) for name, column in zip(common, columns, strict=True)
        )
        keyless = all(key is None for key in messages.keys)
        return cls(None if keyless else _packed(messages.keys), _packed(messages.values), headers)

    @classmethod
    def joined(cls, parts: Sequence[MessageColumns]) -> MessageColumns:
        """Return messages one behind the other; all of them have the same headers, and all or none have keys."""
        keys = None if parts[0].keys is None else pa.concat_arrays([part.keys for part in parts])
        columns = zip(*(part.headers for part in parts), strict=True)
        headers = tuple((column[0][0], pa.concat_arrays([values for _, values in column])) for column in columns)
        return cls(keys, pa.concat_arrays([part.values for part in parts]), headers)

    @property
    def shape(self) -> tuple[bool, tuple[str, ...]]:
        """Return what messages that are joined have in common: whether they have keys, names of headers."""
        return self.keys is not None, tuple(name for name, _ in self.headers)

    def unpacked(self) -> tuple[Sequence[bytes | None], Sequence[bytes | None], Iterator[Headers]]:
        """Return keys, values and headers of the messages; headers are made one after the other, never all at once."""
        n = len(self.values)
        keys: Sequence[bytes | None] = [None] * n if self.keys is None else _unpacked(self.keys)
        columns = [zip(itertools.repeat(name), _unpacked(values), strict=False) for name, values in self.headers]
        headers: Iterator[Headers] = map(list, zip(*columns, strict=True)) if columns else itertools.repeat((), n)
        return keys, _unpacked(self.values), headers


def _packed(values: Sequence[bytes | None]) -> pa.Array:
    return pa.array(values, pa.large_binary())


def _unpacked(values: pa.Array) -> list[bytes | None]:
    found: list[bytes | None] = values.to_pylist()
    return found


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows that are messages already, made by whoever had the rows.

    Attributes:
        schema: of the rows; ``rows``: how many.
        size: bytes of all keys and values.
    """

    messages: MessageColumns
    schema: pa.Schema
    rows: int
    size: int


def _chosen(column: Sequence[_T], indices: Sequence[int]) -> list[_T]:
    return [column[i] for i in indices]
