"""What the registry needs of a log: named records, read and written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Pieces = Sequence[bytes | memoryview]


class Writes(Protocol):
    """The part of a log's transaction that the registry needs."""

    def put(self, kind: str, name: str, value: bytes | Pieces) -> None: ...

    def delete(self, kind: str, name: str) -> None: ...


class Reads(Protocol):
    """The part of a log that the registry needs."""

    def records(self, kind: str, prefix: str = "") -> dict[str, bytes]: ...
