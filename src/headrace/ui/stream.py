"""The one stream of events of a page: numbers as they move, and new rows of a topic.

A number is computed once for all viewers, by `Hub`, which looks at the log as long as somebody watches. The id of an
event is the log's position, its newest slice (of rows their offset): a browser that comes back says the last one, and
goes on there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple, TypeVar

import anyio
import anyio.to_thread
import fastapi

from headrace.errors import HeadraceError
from headrace.event_log import event
from headrace.log.base import Log
from headrace.ui.read.pipeline import Numbers, graph_of, look

LOOK_SECONDS = 0.25
WAIT_SECONDS = 0.5
QUIET_SECONDS = 15.0
GRAPH_SECONDS = 5.0
LEFT_SECONDS = 0.1
QUERIES = 4
HISTORY = 600
T = TypeVar("T")
logger = logging.getLogger("headrace")


class Sample(NamedTuple):
    """Figures of a pipeline at one time; None where none runs."""

    ts: float
    p50_ms: float | None
    p99_ms: float | None
    rounds_s: float | None
    memory: int | None


class Hub:
    """Looks at logs for all viewers of a process. Belongs to the server's loop; a look is taken in a thread.

    Args:
        logs: gives the logs.

    Attributes:
        numbers: the newest, by their keys; ``slice`` the newest of the first log. Replaced, never changed.
        failed: why the last look failed; empty where it did not.
        queries: lets so many queries of people run at once; the others wait, and other pages have threads.
        history: figures of the last ten minutes in which somebody watched.
    """

    def __init__(self, logs: Callable[[], Mapping[str, Log]]) -> None:
        self._logs = logs
        self._made: dict[str, Numbers] = {}
        self._graphs_at = 0.0
        self._viewers = 0
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.numbers: dict[str, str] = {}
        self.slice = 0
        self.failed = ""
        self.ended = False
        self.queries = anyio.CapacityLimiter(QUERIES)
        self.history: deque[Sample] = deque(maxlen=HISTORY)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """In the block somebody watches."""
        self._viewers += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._viewers -= 1

    async def changed(self) -> bool:
        """Wait until there are other numbers, not long; return whether there are."""
        waited = self._changed
        try:
            await asyncio.wait_for(waited.wait(), WAIT_SECONDS)
        except TimeoutError:
            return False
        return True

    def end(self) -> None:
        """Let every stream end soon: the server ends. Any thread may call it."""
        self.ended = True

    async def _watch(self) -> None:
        while self._viewers and not self.ended:
            begun = time.monotonic()
            try:
                numbers, newest = await asyncio.to_thread(self.look)
                failed = ""
            except HeadraceError as error:
                numbers, newest, failed = {**self.numbers, "log/state": "away"}, self.slice, error.message
            except Exception:  # a page that shows nothing new is better than none
                logger.exception("looking at the log failed", extra=event("ui_look_failed"))
                numbers, newest, failed = self.numbers, self.slice, "looking at the log failed: see the server's log"
            if numbers != self.numbers or failed != self.failed:
                self.numbers, self.slice, self.failed = numbers, newest, failed
                waited, self._changed = self._changed, asyncio.Event()
                waited.set()
            self._remember()
            await asyncio.sleep(max(0.05, LOOK_SECONDS - (time.monotonic() - begun)))

    def _remember(self) -> None:
        """Keep figures of the first log that runs, once a second."""
        now = time.time()
        if self.history and now - self.history[-1].ts < 1:
            return
        figures = next((made.figures for made in self._made.values() if made.figures), {})
        self.history.append(Sample(now, *(figures.get(name) for name in ("p50_ms", "p99_ms", "rounds_s", "memory"))))

    def look(self) -> tuple[dict[str, str], int]:
        """Take one look, in any thread, one at a time; return the numbers, and the newest slice of the first log."""
        now = time.monotonic()
        stale = now - self._graphs_at > GRAPH_SECONDS
        found: dict[str, str] = {}
        newest = 0
        for name, log in self._logs().items():
            if name not in self._made:
                self._made[name] = Numbers(graph_of(log))
            elif stale:
                self._made[name].graph = graph_of(log)
            seen = look(log)
            found |= self._made[name].take(seen)
            newest = newest or seen.slice
        if stale:
            self._graphs_at = now
        return found, newest


def message(kind: str, data: str, event_id: object = None) -> bytes:
    """Return an event as it goes over the wire.

    >>> message("numbers", "1", 7)
    b'id: 7\\nevent: numbers\\ndata: 1\\n\\n'
    """
    lines = [f"id: {event_id}"] if event_id is not None else []
    lines += [f"event: {kind}", *(f"data: {line}" for line in data.split("\n"))]
    return ("\n".join(lines) + "\n\n").encode()


async def numbers(hub: Hub, wanted: Callable[[str], bool]) -> AsyncIterator[bytes]:
    """Yield numbers that a page shows: all of them first, then those that change.

    Args:
        wanted: of the keys.
    """
    sent: dict[str, str] = {}
    seen: dict[str, str] | None = None
    quiet_at = time.monotonic()
    async with hub.watching():
        yield b"retry: 1000\n\n"
        while not hub.ended:
            if hub.numbers is seen or not hub.numbers:
                if not await hub.changed() and time.monotonic() - quiet_at > QUIET_SECONDS:
                    quiet_at = time.monotonic()
                    yield b": quiet\n\n"  # lets either side notice that the other has gone
                continue
            seen = hub.numbers
            now = {key: value for key, value in seen.items() if wanted(key)}
            news = {key: value for key, value in now.items() if sent.get(key) != value}
            news |= {key: "–" for key in sent if key not in now}
            if news:
                sent, quiet_at = now, time.monotonic()
                yield message("numbers", json.dumps(news), hub.slice)


async def while_watched(request: fastapi.Request, hub: Hub, work: Callable[[], T], cancel: Callable[[], None]) -> T:
    """Run a query in a thread as long as the browser waits for it.

    Args:
        work: the query.
        cancel: ends the work soon; called when the browser has left.
    """
    doing = asyncio.ensure_future(anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=hub.queries))
    try:
        while not (await asyncio.wait({doing}, timeout=LEFT_SECONDS))[0]:
            if await request.is_disconnected():
                cancel()
        return doing.result()
    finally:
        cancel()
        doing.cancel()
