"""What other threads want written to the log: it goes with the engine's next round, in that round's transaction."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.batch import Batch
from headrace.log.base import Transaction
from headrace.replay.steps import append_fitting


@dataclass(slots=True, eq=False)
class Note:
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


class Outbox:
    """Notes in the order they came in. `add` may be called by any thread, the rest by the engine's.

    >>> outbox = Outbox()
    >>> note = outbox.add([], [("sink", "shop/a/t", b"7")])
    >>> bool(outbox), note.done.is_set()
    (True, False)
    >>> outbox.end(), note.done.is_set(), note.written
    (None, True, False)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notes: deque[Note] = deque()
        self._taken: list[Note] = []
        self._ended = False

    def add(self, topics: Sequence[tuple[str, Batch]], records: Sequence[tuple[str, str, bytes]]) -> Note:
        """Queue a note. After the engine's end it is not written, and says so at once."""
        note = Note(tuple(topics), tuple(records))
        with self._lock:
            if self._ended:
                note.finish(written=False)
            else:
                self._notes.append(note)
        return note

    def __bool__(self) -> bool:
        return bool(self._notes)

    def write(self, txn: Transaction) -> None:
        """Put all that wait into a transaction, their rows in a slice of their own."""
        with self._lock:
            self._taken = list(self._notes)
            self._notes.clear()
        if any(note.topics for note in self._taken):
            txn.next_slice()
        for note in self._taken:
            for topic, batch in note.topics:
                append_fitting(txn, topic, batch, stage="sink")
            for kind, name, value in note.records:
                txn.put(kind, name, value)

    def finish(self) -> None:
        """What was written is durable."""
        taken, self._taken = self._taken, []
        for note in taken:
            note.finish(written=True)

    def give_back(self) -> None:
        """The transaction was undone: they are written in the next one, first."""
        with self._lock:
            self._notes.extendleft(reversed(self._taken))
        self._taken = []

    def end(self) -> None:
        """Nothing is written any more."""
        with self._lock:
            self._ended = True
            left = [*self._taken, *self._notes]
            self._notes.clear()
        self._taken = []
        for note in left:
            note.finish(written=False)
