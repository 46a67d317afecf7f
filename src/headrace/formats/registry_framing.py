"""The schema ids of messages: in five bytes in front (Confluent), nine, or headers (Apicurio).

======================  ==============================================================================
``confluent``           0x00, the id in 4 bytes, the payload
``apicurio``            0x00, the global id in 8 bytes, the payload (Apicurio's serialisers before 3)
``apicurio-headers``    the payload alone; header ``apicurio.value.globalId`` or ``.contentId`` (8 bytes)
======================  ==============================================================================

Integers are big-endian. Reading, a message that has Apicurio's header is taken by it, whatever was declared: a topic
can change from one to the other.
Sources: https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format,
https://www.apicur.io/registry/docs/apicurio-registry/3.0.x/getting-started/assembly-configuring-kafka-client-serdes.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Literal

import numpy as np

from headrace.arrays import Ints
from headrace.errors import FormatError, RegistryUnavailable
from headrace.formats.registry import RegisteredSchema, SchemaId, SchemaRegistry
from headrace.wire import Headers

Wire = Literal["confluent", "apicurio", "apicurio-headers"]
Role = Literal["key", "value"]
WIRES: tuple[str, ...] = ("confluent", "apicurio", "apicurio-headers")
_NO_ID = "no schema id: neither the byte 0 and an id in front nor Apicurio's headers"


@dataclass(frozen=True, slots=True)
class Framed:
    """Payloads of one schema: message ``rows[i]`` is ``buffer[starts[i]:ends[i]]``."""

    schema_id: SchemaId
    buffer: bytes
    rows: Ints
    starts: Ints
    ends: Ints

    def payloads(self) -> list[bytes]:
        return [self.buffer[a:b] for a, b in zip(self.starts.tolist(), self.ends.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class Frames:
    """Messages by the schema they name.

    Attributes:
        groups: in the order in which the schemas first appear.
        empty: indexes of the messages without a value.
        bad: index and reason of those that name none.
    """

    groups: list[Framed] = field(default_factory=list)
    empty: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    bad: list[tuple[int, str]] = field(default_factory=list)


def frame(
    values: Sequence[bytes | None], headers: Sequence[Headers], *, wire: Wire = "confluent", role: Role = "value"
) -> Frames:
    """Find each message's schema id and payload.

    >>> frames = frame([b"\\0\\0\\0\\0\\7ab", None, b"?"], [(), (), ()])
    >>> [(str(group.schema_id), group.rows.tolist(), group.payloads()) for group in frames.groups]
    [('id 7', [0], [b'ab'])]
    >>> frames.empty.tolist(), frames.bad[0][0]
    ([1], 2)
    """
    size = 9 if wire == "apicurio" else 5
    if wire != "apicurio-headers" and not any(headers):
        full = [value for value in values if value is not None]
        if full and len(full) == len(values) and (alike := _alike(full, size)) is not None:
            return alike
    lengths = np.fromiter((-1 if value is None else len(value) for value in values), np.int64, len(values))
    buffer = b"".join([value for value in values if value])
    ends = np.cumsum(np.maximum(lengths, 0))
    starts = ends - np.maximum(lengths, 0)
    schemes, numbers = _header_ids(headers, role)
    prefixed = np.flatnonzero((schemes == 0) & (lengths >= size))
    if wire != "apicurio-headers" and len(prefixed):
        data = np.frombuffer(buffer, np.uint8)
        prefixed = prefixed[data[starts[prefixed]] == 0]
        digits = data[starts[prefixed, None] + np.arange(1, size)].astype(np.int64)
        numbers[prefixed] = (digits << (8 * np.arange(size - 2, -1, -1))).sum(axis=1)
        schemes[prefixed] = 2 if wire == "apicurio" else 1
        starts[prefixed] += size
    present = lengths >= 0
    schemes[~present] = 0
    found: list[Framed] = []
    rows = np.flatnonzero(schemes)
    for at in _by_schema(schemes[rows], numbers[rows]):
        chosen = rows[at]
        scheme = ("", "id", "globalId", "contentId")[int(schemes[chosen[0]])]
        schema_id = SchemaId(scheme, int(numbers[chosen[0]]))
        found.append(Framed(schema_id, buffer, chosen, starts[chosen], ends[chosen]))
    lost = np.flatnonzero(present & (schemes == 0)).tolist()
    return Frames(found, np.flatnonzero(~present), [(i, _NO_ID) for i in lost])


def _alike(values: Sequence[bytes], size: int) -> Frames | None:
    """Messages that all begin with the same id in ``size`` bytes; None where they do not."""
    head = values[0][:size]
    if len(head) < size or head[0] or not all(map(bytes.startswith, values, repeat(head))):
        return None
    ends = np.cumsum(np.fromiter(map(len, values), np.int64, len(values)))
    starts = np.append(0, ends[:-1]) + size
    schema_id = SchemaId("globalId" if size > 5 else "id", int.from_bytes(head[1:], "big"))
    return Frames([Framed(schema_id, b"".join(values), np.arange(len(values)), starts, ends)])


def known(
    frames: Frames, registry: SchemaRegistry
) -> tuple[list[tuple[Framed, RegisteredSchema]], list[tuple[int, str]]]:
    """Each group with its schema, and the messages whose schema the registry does not have.

    Raises:
        RegistryUnavailable: a schema is not in memory and the registry does not answer.
    """
    groups: list[tuple[Framed, RegisteredSchema]] = []
    bad = list(frames.bad)
    for group in frames.groups:
        try:
            groups.append((group, registry.schema(group.schema_id)))
        except RegistryUnavailable:
            raise
        except FormatError as error:
            bad += [(row, error.message) for row in group.rows.tolist()]
    return groups, bad


def id_headers(number: int, *, wire: Wire, role: Role) -> list[tuple[str, bytes]]:
    """The headers that name the schema, where headers do."""
    return [(f"apicurio.{role}.globalId", number.to_bytes(8, "big"))] if wire == "apicurio-headers" else []


def prefix(number: int, wire: Wire) -> bytes:
    """Return the bytes before the payload.

    >>> prefix(7, "confluent"), len(prefix(7, "apicurio")), prefix(7, "apicurio-headers")
    (b'\\x00\\x00\\x00\\x00\\x07', 9, b'')
    """
    if wire == "apicurio-headers":
        return b""
    return b"\0" + number.to_bytes(8 if wire == "apicurio" else 4, "big")


def _header_ids(headers: Sequence[Headers], role: Role) -> tuple[Ints, Ints]:
    """Scheme (0 none, 2 globalId, 3 contentId) and number that each message's headers give."""
    schemes, numbers = np.zeros(len(headers), np.int64), np.zeros(len(headers), np.int64)
    names = {f"apicurio.{role}.globalId": 2, f"apicurio.{role}.contentId": 3}
    for i, pairs in enumerate(headers):
        for name, value in pairs:
            if name in names and value is not None and len(value) == 8 and not schemes[i]:
                schemes[i], numbers[i] = names[name], int.from_bytes(value, "big")
    return schemes, numbers


def _by_schema(schemes: Ints, numbers: Ints) -> list[Ints]:
    """Places of each schema's messages, schemas in the order in which they first appear."""
    if not len(schemes):
        return []
    if (schemes == schemes[0]).all() and (numbers == numbers[0]).all():
        return [np.arange(len(schemes))]
    pairs = np.stack([schemes, numbers], axis=1)
    _, first, which = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    return [np.flatnonzero(which.ravel() == k) for k in np.argsort(first)]
