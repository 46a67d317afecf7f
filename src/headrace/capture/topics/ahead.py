"""Receiving and decoding ahead: a thread that has the next rows ready while the log commits the last ones."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

TICK_S = 0.1
DEPTH = 4


class Ahead:
    """Items of an iterator that runs in a thread of its own; at most `DEPTH` of them wait.

    Args:
        items: makes the iterator; it is given an event and ends soon after that is set.
        name: the thread's.

    >>> ahead = Ahead(lambda stopped: iter([1, 2]), "example")
    >>> ahead.take(5), ahead.take(5), ahead.close()
    (1, 2, None)
    """

    def __init__(self, items: Callable[[threading.Event], Iterator[Any]], name: str) -> None:
        self._items = items
        self._waiting: queue.Queue[Any] = queue.Queue(DEPTH)
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for item in self._items(self._stopped):
                while not self._stopped.is_set():
                    try:
                        self._waiting.put(item, timeout=TICK_S)
                        break
                    except queue.Full:
                        continue
                if self._stopped.is_set():
                    return
        except BaseException as error:
            self._error = error

    def take(self, timeout: float) -> Any:
        """The next item, None when there is none in time; raises what the iterator raised, after its last item."""
        try:
            return self._waiting.get(timeout=timeout) if timeout else self._waiting.get_nowait()
        except queue.Empty:
            if self._error is not None and self._waiting.empty():
                raise self._error from None
            return None

    def close(self) -> None:
        """End the thread; it has ended when this returns."""
        self._stopped.set()
        self._thread.join()
