"""One request and its response, as handlers see them: bytes in, bytes out, on bare ASGI.

Predictions are asked thousands of times a second; what a framework does for each request costs more than they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

import orjson

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
BODY_SECONDS = 60.0


class Problem(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP's.
        detail: what is field_error, a text or a list as FastAPI gives them.
        headers: of the answer.
        more: other members of the answer's object.

    >>> Problem(404, "there is no model «m»").response().body.decode()
    '{"detail":"there is no model «m»"}'
    """

    def __init__(self, status: int, detail: Any, *, headers: Headers = (), **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = tuple(headers)
        self.more = more

    def response(self, *, protocol: bool = False) -> Response:
        """Return the response; with ``protocol`` as the Open Inference Protocol has it: ``{"error": text}``."""
        if not protocol:
            return json_response({"detail": self.detail, **self.more}, self.status, self.headers)
        return json_response({"error": said(self.detail), **self.more}, self.status, self.headers)


def said(detail: Any) -> str:
    """An error's detail as one text."""
    if isinstance(detail, str):
        return detail
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in detail)


def field_error(*loc: str, msg: str, kind: str = "value_error", given: Any = None) -> dict[str, Any]:
    """One member of a 422's detail, as pydantic writes it.

    >>> field_error("query", "length", msg="Field required", kind="missing")["loc"]
    ['query', 'length']
    """
    return {"type": kind, "loc": list(loc), "msg": msg, "input": given}


class Response:
    """A response."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, body: bytes, status: int = 200, headers: Headers = ()) -> None:
        self.body = body
        self.status = status
        self.headers = headers

    async def send(self, send: Send) -> None:
        """Give it to the server."""
        headers = [*self.headers, (b"content-length", str(len(self.body)).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def json_response(value: Any, status: int = 200, headers: Headers = ()) -> Response:
    """A value as JSON; NaN and infinities become null."""
    return Response(orjson.dumps(value, default=str, option=orjson.OPT_SERIALIZE_NUMPY), status, [JSON, *headers])


class Request:
    """One request.

    Args:
        scope, receive: ASGI's.
        names: parts of the path that a route names.
        body_limit: bytes beyond which the body is refused.
    """

    __slots__ = ("_receive", "body_limit", "names", "scope")

    def __init__(self, scope: Scope, receive: Receive, names: dict[str, str], body_limit: int) -> None:
        self.scope = scope
        self.names = names
        self.body_limit = body_limit
        self._receive = receive

    def header(self, name: bytes) -> str | None:
        """A header's value; ``name`` in lower case."""
        for key, value in self.scope["headers"]:
            if key == name:
                return bytes(value).decode("latin-1")
        return None

    def query(self) -> list[tuple[str, str]]:
        """Names and values in the query.

        Raises:
            Problem: they are no UTF-8.
        """
        text = self.scope["query_string"]
        if not text:
            return []
        try:
            return parse_qsl(text.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=1000)
        except ValueError as error:
            raise Problem(422, [field_error("query", msg=f"not a query in UTF-8: {error}")]) from None

    async def body(self) -> bytes:
        """The whole body.

        Raises:
            Problem: it is larger than the limit (413), its encoding is none we take (415), or it does not come (408).
        """
        encoding = self.header(b"content-encoding")
        if encoding not in (None, "identity"):
            raise Problem(415, f"content-encoding {encoding} is not taken; send the body as it is")
        length = self.header(b"content-length")
        if length is not None and length.isdecimal() and (len(length) > 18 or int(length) > self.body_limit):
            raise self._too_large()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._whole()
        except TimeoutError:
            text = f"the body had not come after {BODY_SECONDS:g} s"
            raise Problem(408, text, headers=[(b"connection", b"close")]) from None

    async def _whole(self) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Problem(400, "the connection was closed before the body had come")
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self.body_limit:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(pieces)

    def _too_large(self) -> Problem:
        return Problem(413, f"the body is larger than {self.body_limit:,} bytes", headers=[(b"connection", b"close")])


Handler = Callable[[Request], Awaitable[Response]]
