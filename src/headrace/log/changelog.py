"""Named records in a compacted topic: what its messages mean, and which messages a change needs.

===========================  ==================================================================================
key of a message             value
===========================  ==================================================================================
``r`` KIND ``0x00`` NAME     ``0x00`` and the record itself, or ``0x01`` and a JSON list of its pieces' hashes
``b`` HASH ``/`` NUMBER      one chunk of a piece
===========================  ==================================================================================

A large record is kept as pieces under their hashes: a tensor that two checkpoints share is there once. A message
without a value takes its key away; Kafka's compaction then forgets it. Holds everything in memory except what it is
given back as bytes: a pipeline's positions, versions and its few checkpoints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from headrace.errors import LogCorrupt

INLINE_BYTES = 65_536
CHUNK_BYTES = 700_000  # below the broker's default limit of 1,048,588 bytes a message

Value = bytes | Sequence[bytes | memoryview]
Change = tuple[bytes, bytes | None]


@dataclass(slots=True)
class Changelog:
    """The records that the messages read so far add up to.

    >>> log = Changelog()
    >>> for key, value in log.changes({("position", "species"): b"17"}):
    ...     log.apply(key, value)
    >>> log.records("position")
    {'species': b'17'}
    """

    _small: dict[tuple[str, str], bytes] = field(default_factory=dict)
    _large: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _chunks: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def apply(self, key: bytes, value: bytes | None) -> None:
        """Take in one message.

        Raises:
            LogCorrupt: it is none of ours.
        """
        if key[:1] == b"b":
            name, _, number = key[1:].decode().partition("/")
            if value is None:
                self._chunks.get(name, {}).pop(int(number), None)
                if not self._chunks.get(name):
                    self._chunks.pop(name, None)
            else:
                self._chunks.setdefault(name, {})[int(number)] = value
            return
        if key[:1] != b"r" or (value is not None and value[:1] not in (b"\x00", b"\x01")):
            raise LogCorrupt(f"a message with the key {key[:80]!r} is none of the changelog's")
        kind, _, name = key[1:].decode().partition("\x00")
        at = (kind, name)
        self._small.pop(at, None)
        self._large.pop(at, None)
        if value is not None and value[:1] == b"\x00":
            self._small[at] = value[1:]
        elif value is not None:
            self._large[at] = json.loads(value[1:])

    def records(self, kind: str, prefix: str = "") -> dict[str, bytes]:
        """Return records of a kind whose names begin with ``prefix``, sorted by name.

        Raises:
            LogCorrupt: a piece of one is missing or damaged.
        """
        names = {n for k, n in (*self._small, *self._large) if k == kind and n.startswith(prefix)}
        return {name: self._value(kind, name) for name in sorted(names)}

    def kinds(self) -> list[str]:
        """Return the kinds of records that there are, sorted."""
        return sorted({kind for kind, _ in (*self._small, *self._large)})

    def _value(self, kind: str, name: str) -> bytes:
        small = self._small.get((kind, name))
        if small is not None:
            return small
        pieces = []
        for piece in self._large[kind, name]:
            chunks = self._chunks.get(piece, {})
            data = b"".join(chunks[i] for i in sorted(chunks))
            if _hash(data) != piece:
                raise LogCorrupt(
                    f"a piece of the record {kind} «{name}» is missing or damaged",
                    advice="The changelog topic lost messages: restore it, or reset what the record belongs to.",
                )
            pieces.append(data)
        return b"".join(pieces)

    def changes(self, puts: Mapping[tuple[str, str], Value | None]) -> Iterator[Change]:
        """Yield messages that change records: to a value, or to nothing (None). Changes nothing itself."""
        kept = dict(self._large)
        new: dict[str, bytes] = {}
        for at, value in puts.items():
            kept.pop(at, None)
            key = b"r" + "\x00".join(at).encode()
            if value is None:
                if at in self._small or at in self._large:
                    yield key, None
                continue
            pieces = [value] if isinstance(value, bytes) else [bytes(piece) for piece in value]
            if sum(map(len, pieces)) <= INLINE_BYTES:
                yield key, b"\x00" + b"".join(pieces)
                continue
            hashes = [_hash(piece) for piece in pieces]
            new |= dict(zip(hashes, pieces, strict=True))
            kept[at] = hashes
            yield key, b"\x01" + json.dumps(hashes).encode()
        needed = {piece for hashes in kept.values() for piece in hashes}
        for piece in sorted(new.keys() & needed - self._chunks.keys()):
            for number, start in enumerate(range(0, max(1, len(new[piece])), CHUNK_BYTES)):
                yield f"b{piece}/{number}".encode(), bytes(new[piece][start : start + CHUNK_BYTES])
        for piece in sorted(self._chunks.keys() - needed):
            for number in sorted(self._chunks[piece]):
                yield f"b{piece}/{number}".encode(), None


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
