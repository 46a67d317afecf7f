"""An HTTP server that records what it gets, and answers as a test wants it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Script = Callable[["Request"], "int | tuple[int, dict[str, str], str]"]


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        return self.headers["Idempotency-Key"]

    @property
    def row(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """Listens on a free port; ``script`` says what each request is answered, 200 by default."""

    def __init__(self, *, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.script: Script = lambda request: 200
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    @property
    def keys(self) -> list[str]:
        return [request.key for request in self.requests]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length)
                if len(body) < length:  # the client died in the middle of it: no request was made
                    self.close_connection = True
                    return
                with outer._lock:
                    request = Request(len(outer.requests), self.command, self.path, dict(self.headers.items()), body)
                    outer.requests.append(request)
                answer = outer.script(request)
                status, headers, text = answer if isinstance(answer, tuple) else (answer, {}, "")
                if status == 0:
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            do_POST = do_PUT = do_PATCH = _answer  # noqa: N815  # the names that http.server calls

            def log_message(self, format: str, *arguments: object) -> None:
                """What it got is in the records."""

        return Handler

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
