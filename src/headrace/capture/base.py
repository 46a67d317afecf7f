"""What a source needs of a log: the part of `headrace.log.base` that capture uses, and no more."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import pyarrow as pa


class Transaction(Protocol):
    """All or nothing, durable when its block ends; see `headrace.log.base.Transaction` for each method's contract."""

    def next_slice(self) -> None: ...

    def stage(self, topic: str, records: pa.RecordBatch) -> None: ...

    def publish(self) -> None: ...

    def discard_staged(self) -> None: ...

    def put(self, kind: str, name: str, value: bytes) -> None: ...


class Log(Protocol):
    """Where captured rows go, and where the source's own record is kept beside them."""

    def transaction(self) -> AbstractContextManager[Transaction]: ...

    def records(self, kind: str, prefix: str = "") -> dict[str, bytes]: ...
