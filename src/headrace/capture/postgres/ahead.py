"""Reading ahead: an iterator that runs in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")
_TICK_S = 0.1


def read_ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items in the same order, up to ``depth`` of them made before they are asked for.

    An error of ``items`` is raised here, after what came before it. When this generator is closed early, its thread
    has ended before `close` returns.

    >>> list(read_ahead(iter(range(5))))
    [0, 1, 2, 3, 4]
    """
    waiting: queue.Queue[tuple[list[T], BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def hand_over(item: list[T], error: BaseException | None) -> None:
        while not stopped.is_set():
            try:
                waiting.put((item, error), timeout=_TICK_S)
                return
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                hand_over([item], None)
                if stopped.is_set():
                    return
            hand_over([], None)
        except BaseException as error:
            hand_over([], error)

    thread = threading.Thread(target=run, name="headrace-snapshot", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if not item:
                return
            yield item[0]
    finally:
        stopped.set()
        thread.join()
