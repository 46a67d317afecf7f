"""A queue of what other threads want written to the log: in the engine's next round, in its transaction."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from headrace.batch import Batch
from headrace.log.base import Transaction
from headrace.replay.steps import append_fitting


@dataclass(slots=True, eq=False)
class PendingWrite:
    """Rows for topics, and records, which are written together.

    Attributes:
        done: set when they are durable, or never will be.
        written: which of the two.
    """

    topics: tuple[tuple[str, Batch], ...]
    records: tuple[tuple[str, str, bytes], ...]
    done: threading.Event = field(default_factory=threading.Event)
    written: bool = False

    def finish(self, *, written: bool) -> None:
        """Tell whoever waits."""
        self.written = written
        self.done.set()


class WriteQueue:
    """Pending writes in the order they came in. `add` may be called by any thread, the rest by the engine's.

    >>> queue = WriteQueue()
    >>> pending = queue.add([], [("sink", "shop/a/t", b"7")])
    >>> bool(queue), pending.done.is_set()
    (True, False)
    >>> queue.end(), pending.done.is_set(), pending.written
    (None, True, False)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[PendingWrite] = deque()
        self._taken: list[PendingWrite] = []
        self._ended = False

    def add(self, topics: Sequence[tuple[str, Batch]], records: Sequence[tuple[str, str, bytes]]) -> PendingWrite:
        """Queue rows and records. After the engine's end they are not written, and what is returned says so at once."""
        pending = PendingWrite(tuple(topics), tuple(records))
        with self._lock:
            if self._ended:
                pending.finish(written=False)
            else:
                self._waiting.append(pending)
        return pending

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def write(self, txn: Transaction, letters: Callable[[str, Batch], None]) -> None:
        """Put all that wait into a transaction, their rows in a slice of their own; tell of dead letters among them."""
        with self._lock:
            self._taken = list(self._waiting)
            self._waiting.clear()
        if any(pending.topics for pending in self._taken):
            txn.next_slice()
        for pending in self._taken:
            for topic, batch in pending.topics:
                append_fitting(txn, topic, batch, stage="sink", letters=letters)
            for kind, name, value in pending.records:
                txn.put(kind, name, value)

    def finish(self) -> None:
        """Note that what was written is durable."""
        taken, self._taken = self._taken, []
        for pending in taken:
            pending.finish(written=True)

    def give_back(self) -> None:
        """Queue again what was written in a transaction that was undone: first in the next one."""
        with self._lock:
            self._waiting.extendleft(reversed(self._taken))
        self._taken = []

    def end(self) -> None:
        """Write nothing any more, and tell whoever waits."""
        with self._lock:
            self._ended = True
            left = [*self._taken, *self._waiting]
            self._waiting.clear()
        self._taken = []
        for pending in left:
            pending.finish(written=False)
