"""What tests of the server share: pipelines to serve, and a client that keeps its connection."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

import headrace as hr
from headrace.cli.console import talk
from headrace.cli.main import main
from headrace.engines.local.running import Running
from headrace.engines.local.serving.replica import Replica
from headrace.engines.local.serving.service import ServerBinding
from headrace.serve.settings import ServeSettings

FISH = [
    {"Length": 86.0, "Height": 18.7, "Species": "salmon", "Weight": 4.4},
    {"Length": 90.8, "Height": 17.6, "Species": "salmon", "Weight": 4.6},
    {"Length": 84.6, "Height": 18.4, "Species": "salmon", "Weight": 4.2},
    {"Length": 55.1, "Height": 12.4, "Species": "walleye", "Weight": 1.9},
    {"Length": 60.7, "Height": 13.3, "Species": "walleye", "Weight": 2.3},
    {"Length": 58.2, "Height": 12.1, "Species": "walleye", "Weight": 2.0},
]
SEEDS = {"length": 86.37, "height": 18.74, "species": "salmon"}


@dataclass(frozen=True)
class Got:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks one server, over one connection."""

    def __init__(self, url: str, *, context: ssl.SSLContext | None = None, **headers: str) -> None:
        self.url = url
        self.headers = headers
        parts = urlsplit(url)
        assert parts.hostname is not None
        if parts.scheme == "https":
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=30, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)

    def get(self, path: str, _headers: dict[str, str] | None = None, **query: Any) -> Got:
        return self.ask("GET", path, None, _headers, **query)

    def post(self, path: str, body: Any = b"", _headers: dict[str, str] | None = None, **query: Any) -> Got:
        return self.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), _headers, **query)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, **query: Any
    ) -> Got:
        target = f"{path}?{urlencode(query)}" if query else path
        self._connection.request(method, target, body, {**self.headers, **(headers or {})})
        answer = self._connection.getresponse()
        return Got(answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read())

    def close_if_ended(self) -> None:
        """Between two requests the server has nothing to say: what can be read is that it has closed the connection."""
        sock = self._connection.sock
        if sock is not None and select.select([sock], [], [], 0)[0]:
            self.close()

    def close(self) -> None:
        self._connection.close()


def fish(log: Path | str, *, log_to: str | None = None, **served: Any) -> hr.App:
    """The seed's model, on a topic that this program appends to."""
    app = hr.App("fish", log=log)
    measured = app.topic("measured", append=True)
    model = app.model(
        "weight",
        hr.LinearRegression(),
        features=["Length", "Height", hr.category("Species", known=["salmon", "walleye"])],
        target="Weight",
    )
    model.learn(measured)
    model.serve(digits=4, log_to=log_to, **served)
    return app


@contextlib.contextmanager
def serving(app: hr.App, rows: list[dict[str, Any]] | None = None, **options: Any) -> Iterator[tuple[Running, Client]]:
    """The app, running and served on a free port; ``rows`` are learned first."""
    with app.start(serve=ServeSettings(port=0, **options)) as running:
        assert running.server is not None
        for row in rows or []:
            running.append("measured", [row])
        client = Client(running.server.url)
        yield running, client
        client.close()


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def headrace(capfd: pytest.CaptureFixture[str], *arguments: str) -> Done:
    """``headrace …`` in this process: a new one would take a second to begin."""
    capfd.readouterr()
    given, sys.argv = sys.argv, ["headrace", *arguments]
    # Not `talk.file`: that is the stream of this test, which is closed after it.
    talks = (talk._file, talk.width)
    talk.file, talk.width = sys.stderr, 200
    try:
        main()
        code: Any = 0
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = given
        talk._file, talk.width = talks
    told = capfd.readouterr()
    return Done(int(code or 0), told.out, told.err)


@contextlib.contextmanager
def following(app: hr.App) -> Iterator[Client]:
    """A client of a server that follows the app's log, which another engine writes."""
    with contextlib.ExitStack() as stack:
        place = ServerBinding.of(app.plan(), ServeSettings(port=0))
        stack.callback(place.close)
        follower = Replica.of(app.plan())
        stack.callback(follower.stop)
        server = place.serving(follower, follower.log, location="here")
        follower.start()
        server.start()
        stack.callback(server.stop)
        client = Client(server.url)
        stack.callback(client.close)
        yield client
