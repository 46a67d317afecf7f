"""Connections that must not wait for ever: the head of a request has to come in time, and fit.

uvicorn waits without a limit for a head that does not end. A few thousand such connections, each sending a byte now and
then, would use up what the server may open.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_SECONDS = 20.0
HEAD_BYTES = 65_536

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol
else:
    Protocol = AutoHTTPProtocol


class Connection(Protocol):
    """A connection whose requests begin within 20 s, with heads of at most 64 KiB; else it is closed.

    Between two requests uvicorn's own keep-alive time counts. Used by the server's loop only.
    """

    _late: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """asyncio's: somebody has connected."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """asyncio's: bytes have come, of a head or of a body."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before or (before is not None and not before.response_complete):
            self._forget_head()
            return
        if self._late is None:
            self._expect_head()
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES:
            self._refuse()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's: it is over."""
        self._forget_head()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._late = self.loop.call_later(HEAD_SECONDS, self._refuse)

    def _forget_head(self) -> None:
        self._head_bytes = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self) -> None:
        self._forget_head()
        if not self.transport.is_closing():
            self.transport.close()
