"""The HTTP client: what it repeats, what it says, and that it can be broken off."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from headrace.http_client import HttpClient, NoResponse
from headrace.testing.servers import free_port

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Listener:
    """Answers each request by what a script makes of it: bytes to send, and whether the connection is closed then."""

    def __init__(self, script: Callable[[int, bytes], tuple[bytes, bool]]) -> None:
        self.heads: list[bytes] = []
        self.connections = 0
        self._script = script
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while head := connection.recv(65_536):
                while b"Content-Length: 2" in head and not head.endswith(b"{}"):
                    head += connection.recv(65_536)
                self.heads.append(head)
                data, closes = self._script(len(self.heads), head)
                connection.sendall(data)
                if closes:
                    return

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def listening(script: Callable[[int, bytes], tuple[bytes, bool]]) -> Iterator[Listener]:
    listener = Listener(script)
    try:
        yield listener
    finally:
        listener.close()


def test_connections_are_kept_and_one_that_was_closed_is_made_again() -> None:
    # The third request meets the end of an idle connection: no response, and it is sent again.
    with listening(lambda number, head: (b"" if number == 3 else OK, number == 3)) as there:
        client = HttpClient(5.0)
        for _ in range(3):
            response = client.request("POST", f"{there.url}/hook?a=b", headers={"X-Team": "fish"}, body=b"{}")
            assert (response.status, response.body, response.headers["content-length"]) == (200, b"ok", "2")
        assert (len(there.heads), there.connections) == (4, 2)
        assert there.heads[0].startswith(b"POST /hook?a=b HTTP/1.1\r\n") and b"X-Team: fish" in there.heads[0]


def test_a_new_connection_that_gives_no_response_is_not_repeated() -> None:
    with listening(lambda number, head: (b"", True)) as there:
        with pytest.raises(NoResponse, match="without response"):
            HttpClient(5.0).request("GET", there.url, headers={})
        assert len(there.heads) == 1


def test_a_response_that_breaks_off_is_not_repeated() -> None:
    with listening(lambda number, head: (OK if number == 1 else OK[:-1], number == 2)) as there:
        client = HttpClient(5.0)
        client.request("GET", there.url, headers={})
        with pytest.raises(NoResponse, match=r"[Ii]ncomplete"):
            client.request("GET", there.url, headers={})
        assert len(there.heads) == 2


def test_no_redirect_is_followed() -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
    with listening(lambda number, head: (moved, False)) as there:
        assert HttpClient(5.0).request("GET", there.url, headers={}).status == 302
        assert len(there.heads) == 1


def test_a_long_body_is_read_to_its_limit() -> None:
    long = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000
    with listening(lambda number, head: (long, False)) as there:
        client = HttpClient(5.0)
        assert client.request("GET", there.url, headers={}, limit=100).body == b"x" * 100
        assert client.request("GET", there.url, headers={}, limit=100).body == b"x" * 100
        assert there.connections == 2


def test_what_the_system_says_is_told() -> None:
    with pytest.raises(NoResponse, match=r"^Connection refused$"):
        HttpClient(5.0).request("GET", f"http://127.0.0.1:{free_port()}", headers={})
    with listening(lambda number, head: (b"", False)) as there, pytest.raises(NoResponse, match=r"^timed out$"):
        HttpClient(0.05).request("GET", there.url, headers={})
    with (
        listening(lambda number, head: (OK, True)) as there,
        pytest.raises(NoResponse, match=r"SSL|record|version"),
    ):
        HttpClient(5.0).request("GET", there.url.replace("http:", "https:"), headers={})


def test_a_request_is_broken_off_from_another_thread() -> None:
    asked = threading.Event()

    def silent(number: int, head: bytes) -> tuple[bytes, bool]:
        asked.set()
        return b"", False

    with listening(silent) as there:
        client = HttpClient(600.0)
        threading.Thread(target=lambda: (asked.wait(60), client.cancel()), daemon=True).start()
        began = time.monotonic()
        with pytest.raises(NoResponse):
            client.request("GET", there.url, headers={})
        assert time.monotonic() - began < 60
        with pytest.raises(NoResponse, match="being stopped"):
            client.request("GET", there.url, headers={})
        assert len(there.heads) == 1


def test_proxies_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(lambda number, head: (OK, False)) as proxy, listening(lambda number, head: (OK, False)) as there:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//me:word@"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        client = HttpClient(5.0)
        client.request("GET", f"{there.url}/direct", headers={})
        client.request("GET", "http://schemas.example/subjects", headers={})
        assert [head.split(b" ", 2)[1] for head in (*there.heads, *proxy.heads)] == [
            b"/direct", b"http://schemas.example/subjects"
        ]  # fmt: skip
        assert b"proxy-authorization: Basic bWU6d29yZA==" in proxy.heads[0]
