"""A transaction that is open, as every log has it: its slices' numbers, its end, and whose turn it is to write."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from headrace.errors import LogError

_O = TypeVar("_O", bound="OpenTransaction")


class SliceNumbers:
    """The numbers that a transaction gives to its slices, and to the entries in each.

    >>> numbers = SliceNumbers(7)
    >>> numbers.enter(), numbers.enter(), numbers.close(), numbers.enter(), numbers.last
    ((8, 0), (8, 1), None, (9, 0), 9)
    """

    def __init__(self, last: int) -> None:
        self.last = last
        self._entries = 0
        self._open = False

    def enter(self) -> tuple[int, int]:
        """Return the slice of the next entry, and its number there."""
        if not self._open:
            self.last, self._entries, self._open = self.last + 1, 0, True
        self._entries += 1
        return self.last, self._entries - 1

    def close(self) -> None:
        """Let the next entry begin a slice."""
        self._open = False

    def restore(self, number: int) -> None:
        """Begin a slice with a number of its own.

        Raises:
            LogError: it does not follow the last one.
        """
        if number <= self.last:
            raise LogError(f"slice {number} cannot follow slice {self.last}")
        self.last, self._entries, self._open = number, 0, True


class OpenTransaction:
    """The slices of a transaction, and its end, after which nothing more is done in it."""

    def __init__(self, last_slice: int) -> None:
        self._slices = SliceNumbers(last_slice)
        self._group_open = False
        self._over: LogError | None = None

    def next_slice(self) -> None:
        """See `Transaction.next_slice`."""
        self._check()
        self._slices.close()
        self._group_open = False

    def end(self) -> None:
        """Let nothing more be done in this transaction."""
        self._over = self._over or LogError("this log transaction is over", advice="Use it inside its with block.")

    def _check(self) -> None:
        if self._over is not None:
            raise self._over


class WritingTurn(Generic[_O]):
    """The one transaction that is open, and its thread; another thread that wants one waits for its end."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._open: _O | None = None
        self._thread = 0

    @property
    def own(self) -> _O | None:
        """The open transaction, if it is the calling thread's."""
        return self._open if self._thread == threading.get_ident() else None

    @contextmanager
    def taken(self, begin: Callable[[], _O]) -> Iterator[_O]:
        """Begin a transaction when it is this thread's turn; it is over behind the block."""
        if self.own is not None:
            raise LogError("a log transaction is already open in this thread", advice="Use that one.")
        with self.lock:
            transaction = begin()
            self._open, self._thread = transaction, threading.get_ident()
            try:
                yield transaction
            finally:
                transaction.end()
                self._open, self._thread = None, 0
