"""Reading ahead: an iterator that runs in a thread of its own, so that the next items are there when wanted."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

TICK_S = 0.1


@dataclass(frozen=True, slots=True)
class _End:
    """The iterator has ended, by an error if there is one."""

    error: BaseException | None


class ReadAhead(Generic[T]):
    """Items of an iterator, in its order; at most ``depth`` of them wait to be taken.

    Args:
        items: makes the iterator; it is given an event, and ends soon after that is set.
        name: the thread's.

    >>> ahead = ReadAhead(lambda stopped: iter([1, 2]), "example")
    >>> ahead.take(5), list(ahead), ahead.close()
    (1, [2], None)
    """

    def __init__(self, items: Callable[[threading.Event], Iterator[T]], name: str, *, depth: int = 4) -> None:
        self._items = items
        self._waiting: queue.Queue[T | _End] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._end: _End | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for item in self._items(self._stopped):
                self._put(item)
                if self._stopped.is_set():
                    return
            self._put(_End(None))
        except BaseException as error:
            self._put(_End(error))

    def _put(self, item: T | _End) -> None:
        while not self._stopped.is_set():
            try:
                self._waiting.put(item, timeout=TICK_S)
                return
            except queue.Full:
                continue

    def take(self, timeout: float) -> T | None:
        """Return the next item, None when none comes in time or any more.

        Raises:
            BaseException: what the iterator raised, after its last item.
        """
        if self._end is None:
            try:
                item = self._waiting.get(timeout=timeout) if timeout else self._waiting.get_nowait()
            except queue.Empty:
                return None
            if not isinstance(item, _End):
                return item
            self._end = item
        if self._end.error is not None:
            raise self._end.error
        return None

    def __iter__(self) -> Iterator[T]:
        """Iterate over the items to the last; raise what the iterator raised."""
        while True:
            item = self.take(TICK_S)
            if item is not None:
                yield item
            elif self._end is not None:
                return

    def close(self) -> None:
        """End the thread; it has ended when this returns."""
        self._stopped.set()
        self._thread.join()
