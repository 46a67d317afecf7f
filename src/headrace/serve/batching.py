"""Requests that come together are answered together.

A model predicts in blocks of 64 rows, padded, so that a row's bits do not depend on its neighbours: 64 rows cost as
much as one. Rows of requests that the loop has taken in at once go into one block; with a window they wait for others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from headrace.serve.models import Made, Models, RowRefused, TooSlow

BLOCK_ROWS = 64
Row = Sequence[Any]
Waiting = tuple[Sequence[Row], "asyncio.Future[tuple[list[Any], Made]]"]


class Batcher:
    """Rows of values for one model. Used by the server's loop only.

    Args:
        executor: where models predict that take long.
        window: seconds to wait for other requests.
    """

    def __init__(self, models: Models, model: str, executor: Executor, window: float) -> None:
        self._models = models
        self._model = model
        self._executor = executor
        self._window = window
        self._waiting: list[Waiting] = []
        self._running = False

    async def ask(self, rows: Sequence[Row]) -> tuple[list[Any], Made]:
        """Predictions for at most 64 rows, or why there is none, and which model made all of them.

        Raises:
            HeadraceError: the model has learned nothing yet, or fails.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[tuple[list[Any], Made]] = loop.create_future()
        self._waiting.append((rows, answered))
        if len(self._waiting) == 1 and not self._running:
            self._begin(loop)
        return await answered

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._window:
            loop.call_later(self._window, self._answer)
        else:
            loop.call_soon(self._answer)

    def _answer(self) -> None:
        """Answer those that wait, as many as a block takes; the others in the next one."""
        if self._running or not self._waiting:
            return
        taken, rows = self._take()
        try:
            snapshot = self._models.current(self._model)
            try:
                values = snapshot.some(rows)
            except TooSlow:
                self._running = True
                loop = asyncio.get_running_loop()
                asked = loop.run_in_executor(self._executor, lambda: snapshot.some(rows, wait=True))
                asked.add_done_callback(lambda done: self._answered(done, taken, snapshot.made))
                return
        except Exception as error:  # goes to whoever asked
            _refuse(taken, error)
        else:
            _give(taken, values, snapshot.made)
        if self._waiting:
            self._answer()

    def _answered(self, done: asyncio.Future[list[Any]], taken: Sequence[Waiting], made: Made) -> None:
        self._running = False
        error = done.exception()
        if error is not None:
            _refuse(taken, error)
        else:
            _give(taken, done.result(), made)
        self._answer()

    def _take(self) -> tuple[list[Waiting], list[Row]]:
        count = total = 0
        for rows, _ in self._waiting:
            if count and total + len(rows) > BLOCK_ROWS:
                break
            count, total = count + 1, total + len(rows)
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken, [row for rows, _ in taken for row in rows]


def _give(taken: Sequence[Waiting], values: Sequence[Any], made: Made) -> None:
    at = 0
    for rows, answered in taken:
        if not answered.done():  # whoever asked may have gone
            answered.set_result((list(values[at : at + len(rows)]), made))
        at += len(rows)


def _refuse(taken: Sequence[Waiting], error: BaseException) -> None:
    for _, answered in taken:
        if not answered.done():
            answered.set_exception(error)


def refused(values: Sequence[Any]) -> list[tuple[int, RowRefused]]:
    """Rows among answers that have none."""
    return [(row, one) for row, one in enumerate(values) if isinstance(one, RowRefused)]
