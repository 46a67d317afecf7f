"""The one stream of events of a page: numbers as they move, parts that change with them, and new rows of a topic.

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
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import fastapi

from headrace.errors import HeadraceError
from headrace.event_log import event
from headrace.inspect.health import Sample
from headrace.log.base import Log
from headrace.ui.live_parts import LiveParts
from headrace.ui.read.pipeline import Numbers, graph_of, look
from headrace.ui.subject import PIPELINE

LOOK_SECONDS = 0.25
WAIT_SECONDS = 0.5
QUIET_SECONDS = 15.0
GRAPH_SECONDS = 5.0
LEFT_SECONDS = 0.1
QUERIES = 4
HISTORY = 600
T = TypeVar("T")
logger = logging.getLogger("headrace")


class Seen(NamedTuple):
    """What one look gave.

    Attributes:
        numbers: by their keys.
        slice: the newest of the first log.
        failed: why the look failed; empty where it did not.
    """

    numbers: dict[str, str]
    slice: int = 0
    failed: str = ""


class Hub:
    """Looks at logs for all viewers of a process. Belongs to the server's loop; a look is taken in a thread.

    Args:
        logs: gives the logs that are shown where a pipeline was chosen, or ("") none was.
        others: gives numbers of more than these logs, for those who have chosen none.

    Attributes:
        parts: of pages that are sent anew when numbers have moved.
        seen: what the last look at each choice that is watched gave. Replaced, never changed.
        queries: lets so many queries of people run at once; the others wait, and other pages have threads.
        history: figures of the last ten minutes in which somebody watched, by the choice.
    """

    def __init__(self, logs: Callable[[str], Mapping[str, Log]], others: Callable[[], dict[str, str]] = dict) -> None:
        self._logs = logs
        self._others = others
        self._made: dict[str, Numbers] = {}
        self._graphs_at: dict[str, float] = {}
        self._viewers: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._refreshing: asyncio.Task[None] | None = None
        self.parts = LiveParts()
        self.seen: dict[str, Seen] = {}
        self.ended = False
        self.queries = anyio.CapacityLimiter(QUERIES)
        self.history: dict[str, deque[Sample]] = {}

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """In the block somebody watches what their address has chosen."""
        chosen = PIPELINE.get()
        self._viewers[chosen] += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._viewers[chosen] -= 1

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
        while (watched := [chosen for chosen, viewers in self._viewers.items() if viewers]) and not self.ended:
            begun = time.monotonic()
            looked: dict[str, tuple[dict[str, str], int]] = {}
            seen = {chosen: await asyncio.to_thread(self._seen, chosen, looked) for chosen in watched}
            if seen != self.seen:
                self.seen = seen
                self._tell()
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.create_task(self._refresh())
            await asyncio.sleep(max(0.05, LOOK_SECONDS - (time.monotonic() - begun)))

    def _tell(self) -> None:
        waited, self._changed = self._changed, asyncio.Event()
        waited.set()

    async def _refresh(self) -> None:
        """Make parts of pages, however long it takes: numbers are looked at meanwhile."""
        if await self.parts.refresh({chosen: seen.numbers for chosen, seen in self.seen.items()}):
            self._tell()

    def _seen(self, chosen: str, looked: dict[str, tuple[dict[str, str], int]]) -> Seen:
        before = self.seen.get(chosen, Seen({}))
        try:
            found = self.look(chosen, looked)
        except HeadraceError as error:
            found = Seen({**before.numbers, "log/state": "away"}, before.slice, error.message)
        except Exception:  # a page that shows nothing new is better than none
            logger.exception("looking at the log failed", extra=event("ui_look_failed"))
            found = before._replace(failed="looking at the log failed: see the server's log")
        return found

    def look(self, chosen: str, looked: dict[str, tuple[dict[str, str], int]]) -> Seen:
        """Take one look at the logs of a choice, in any thread, one at a time.

        Args:
            looked: numbers and newest slice of logs that were looked at just now, by their names.
        """
        logs = self._logs(chosen)
        for name, log in logs.items():
            if name not in looked:
                now = time.monotonic()
                if name not in self._made:
                    self._made[name] = Numbers(graph_of(log))
                elif now - self._graphs_at[name] > GRAPH_SECONDS:
                    self._made[name].graph = graph_of(log)
                else:
                    now = self._graphs_at[name]
                self._graphs_at[name] = now
                seen = look(log)
                looked[name] = self._made[name].take(seen), seen.slice
        found = {} if chosen else self._others()
        for name in logs:
            found |= looked[name][0]
        self._remember(chosen, [self._made[name].figures for name in logs])
        return Seen(found, next((looked[name][1] for name in logs), 0))

    def _remember(self, chosen: str, figures: Sequence[Mapping[str, Any]]) -> None:
        """Keep figures of the first log that runs, once a second."""
        now, kept = time.time(), self.history.setdefault(chosen, deque(maxlen=HISTORY))
        if not kept or now - kept[-1].ts >= 1:
            first = next(filter(None, figures), {})
            kept.append(Sample(now, *(first.get(name) for name in ("p50_ms", "p99_ms", "rounds_s", "memory"))))


def message(kind: str, data: str, event_id: object = None) -> bytes:
    """Return an event as it goes over the wire.

    >>> message("numbers", "1", 7)
    b'id: 7\\nevent: numbers\\ndata: 1\\n\\n'
    """
    lines = [f"id: {event_id}"] if event_id is not None else []
    lines += [f"event: {kind}", *(f"data: {line}" for line in data.split("\n"))]
    return ("\n".join(lines) + "\n\n").encode()


async def numbers(hub: Hub, wanted: Callable[[str], bool], names: Sequence[str] = ()) -> AsyncIterator[bytes]:
    """Yield numbers that a page shows, and parts of it: all of them first, then those that change.

    Args:
        wanted: of the keys.
        names: of parts.
    """
    sent: dict[str, str] = {}
    shown: dict[str, str] = {}
    seen: Seen | None = None
    chosen = PIPELINE.get()
    quiet_at = time.monotonic()
    async with hub.parts.watching(names, chosen) as parts, hub.watching():
        yield b"retry: 1000\n\n"
        while not hub.ended:
            for name, part in parts.items():
                if part.text and shown.get(name) != part.text:
                    shown[name], quiet_at = part.text, time.monotonic()
                    yield message("part", json.dumps({"name": name, "html": part.text}))
            newest = hub.seen.get(chosen)
            if newest is None or newest is seen or not newest.numbers:
                if not await hub.changed() and time.monotonic() - quiet_at > QUIET_SECONDS:
                    quiet_at = time.monotonic()
                    yield b": quiet\n\n"  # lets either side notice that the other has gone
                continue
            seen = newest
            now = {key: value for key, value in seen.numbers.items() if wanted(key)}
            news = {key: value for key, value in now.items() if sent.get(key) != value}
            news |= {key: "–" for key in sent if key not in now}
            if news:
                sent, quiet_at = now, time.monotonic()
                yield message("numbers", json.dumps(news), seen.slice)


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
