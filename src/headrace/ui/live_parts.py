"""Parts of pages that change while somebody looks at them: made once for all viewers, and sent where they have changed.

A part has a name, as an address has: ``charts?model=weight&x=rows``. It is made again when a number that it depends on
has moved, but not more often than once a second, nor for more than a tenth of the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

from headrace.errors import HeadraceError
from headrace.event_log import event

MOST = 8
PAUSE_SECONDS, SHARE = 1.0, 0.1
logger = logging.getLogger("headrace")


@dataclass(slots=True)
class LivePart:
    """A part that somebody looks at.

    Attributes:
        keys: of the numbers that it depends on.
        make: returns its HTML; called in a thread.
        chosen: the pipeline that the page is of; "" where none was chosen.
        context: of the first request for it.
        text: the newest; empty before it was made.
    """

    keys: Sequence[str]
    make: Callable[[], str]
    chosen: str = ""
    context: Context = field(default_factory=copy_context)
    text: str = ""
    viewers: int = 0
    due: float = 0.0
    seen: tuple[str | None, ...] | None = None


Maker = Callable[[Mapping[str, str]], LivePart]


def part_name(kind: str, **values: str) -> str:
    """Return the name of a part.

    >>> part_name("charts", model="a/b", x="rows")
    'charts?model=a%2Fb&x=rows'
    """
    return f"{kind}?{urlencode(values)}"


class LiveParts:
    """The parts of all pages that are looked at. Belongs to the server's loop."""

    def __init__(self) -> None:
        self._makers: dict[str, Maker] = {}
        self._parts: dict[tuple[str, str], LivePart] = {}

    def offer(self, kind: str, maker: Maker) -> None:
        """Let parts of a kind be looked at.

        Args:
            maker: returns one of its values; raises `HeadraceError` where there is none of them.
        """
        self._makers[kind] = maker

    @contextlib.asynccontextmanager
    async def watching(self, names: Sequence[str], chosen: str = "") -> AsyncIterator[Mapping[str, LivePart]]:
        """Give parts by their names, which are made in the block; names that nothing has are left out.

        Args:
            chosen: the pipeline that the page is of.
        """
        found: dict[str, LivePart] = {}
        try:
            for name in list(dict.fromkeys(names))[:MOST]:
                key = (chosen, name)
                part = self._parts.get(key) or await asyncio.to_thread(self._made, name, chosen)
                if part is not None:
                    found[name] = self._parts.setdefault(key, part)
                    found[name].viewers += 1  # at once: who else looks at it may leave now
            yield found
        finally:
            for name, part in found.items():
                part.viewers -= 1
                if not part.viewers and self._parts.get((chosen, name)) is part:
                    del self._parts[chosen, name]

    def _made(self, name: str, chosen: str) -> LivePart | None:
        kind, _, query = name.partition("?")
        try:
            part = self._makers[kind](dict(parse_qsl(query)))
        except (HeadraceError, KeyError):
            return None
        part.chosen = chosen
        return part

    async def refresh(self, numbers: Mapping[str, Mapping[str, str]]) -> bool:
        """Make what has moved, one after the other; return whether there is something new.

        Args:
            numbers: of each choice, by their keys.
        """
        moved = False
        for part in list(self._parts.values()):
            now, begun = numbers.get(part.chosen, {}), time.monotonic()
            seen = tuple(map(now.get, part.keys))
            if not part.viewers or seen == part.seen or begun < part.due:
                continue
            try:
                text = await asyncio.to_thread(part.context.run, part.make)
            except HeadraceError as error:
                logger.info("a part of a page: %s", error, extra=event("ui_part_failed"))
                text = part.text
            except Exception:  # what is there stays; the page says so when it is loaded again
                logger.exception("a part of a page failed", extra=event("ui_part_failed"))
                text = part.text
            ended = time.monotonic()
            part.seen, part.due = seen, ended + max(PAUSE_SECONDS, (ended - begun) / SHARE)
            moved, part.text = moved or text != part.text, text
        return moved
