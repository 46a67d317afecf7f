"""What a stranger tries: ways around the key, requests that cost much, connections that never end."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest

from headrace.serve import server, service
from headrace.serve.keys import KeyFile
from tests.waiting import wait_until

from .client import FISH, SEEDS, Client, fish, serving

SECRET = "a secret of more than thirty-two characters"


def keys_of(log: Path) -> KeyFile:
    return KeyFile(log.with_name(f"{log.name}.keys"))


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, str]]:
    """A server that wants a key, and a key that may predict."""
    log = tmp_path_factory.mktemp("served") / "fish.headrace"
    _, text = keys_of(log).create("till", ["predict"])
    with serving(fish(log), FISH, jwt_secret=SECRET) as (_, client):
        yield client, text


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(fish(tmp_path_factory.mktemp("served") / "fish.headrace"), FISH) as (_, client):
        yield client


ROUTES = [
    ("POST", "/train"),
    ("GET", "/metrics"),
    ("GET", "/models"),
    ("GET", "/prediction"),
    ("POST", "/models/weight/predict"),
    ("GET", "/v2/models/weight"),
    ("POST", "/v2/models/weight/infer"),
    ("GET", "/v2/models/weight/versions/1"),
]
WRITTEN = {
    "as it is": "{}",
    "a line's end": "{}%0A",
    "a carriage return": "{}%0D",
    "a null byte": "{}%00",
    "a slash": "{}/",
    "two slashes": "/{}",
    "a dot": "/.{}",
    "from below": "/docs/..{}",
    "from below, escaped": "/docs/%2e%2e{}",
    "an asset's folder": "/static-offline-docs/..{}",
    "a parameter": "{};x=1",
    "a question mark, escaped": "{}%3F",
    "another host": "http://localhost{}",
}


@pytest.mark.parametrize("way", WRITTEN)
def test_no_way_of_writing_a_path_goes_round_the_key(closed: tuple[Client, str], way: str) -> None:
    client, _ = closed
    for method, path in ROUTES:
        for verb in (method, "HEAD", "OPTIONS", "PUT"):
            got = client.ask(verb, WRITTEN[way].format(path), b"" if verb != "GET" else None)
            assert got.status in (401, 404, 405), (verb, path, got)
        escaped = "/" + "".join(f"%{ord(item):02x}" for item in path[1:])
        assert client.ask(method, escaped, b"").status in (401, 404)


def test_what_needs_no_key(closed: tuple[Client, str]) -> None:
    client, _ = closed
    for path in ("/docs", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready"):
        assert client.get(path).status == 200
    for path in ("/redoc", "/static-offline-docs/", "/static-offline-docs/../api.py", "/docs/x", "/nothing"):
        assert client.get(path).status == 404


def test_the_page_asks_for_the_key(closed: tuple[Client, str], opened: Client) -> None:
    found = closed[0].get("/openapi.json").json
    assert found["security"] == [{"key": []}, {"bearer": []}]
    assert found["components"]["securitySchemes"]["key"]["name"] == "X-API-Key"
    assert found["paths"]["/v2/health/live"]["get"]["security"] == []
    assert "security" not in found["paths"]["/train"]["post"]
    assert "security" not in opened.get("/openapi.json").json


def test_every_answer_says_how_it_may_be_used(closed: tuple[Client, str], opened: Client) -> None:
    for got in (
        closed[0].get("/prediction"),
        opened.get("/prediction", **SEEDS),
        opened.get("/docs"),
        opened.get("/x"),
    ):
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["cache-control"] == "no-store"
        assert got.headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in got.headers
        assert "server" not in got.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({}, 200),
    ],
    ids=str,
)
def test_pages_of_other_sites_ask_nothing(opened: Client, headers: dict[str, str], status: int) -> None:
    """An image of another site's page could else write rows into a topic that is learned."""
    assert opened.get("/prediction", headers, **SEEDS).status == status


def segment(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


NOW = int(time.time())
TOKENS: dict[str, tuple[str, int]] = {
    "very long": ("x" * 40_000, 401),
    "very long, as a key": ("hr_" + "x" * 40_000, 401),
    "deep": (f"{segment(b'[' * 6000)}.e30.x", 401),
    "other bytes": ("\xff\xfe", 401),
    "scopes that are a number": (jwt.encode({"exp": NOW + 3600, "scope": 7}, SECRET, "HS256"), 403),
    "scopes that are nothing": (jwt.encode({"exp": NOW + 3600, "scope": None}, SECRET, "HS256"), 403),
    "scopes that are an object": (jwt.encode({"exp": NOW + 3600, "scope": {"admin": 1}}, SECRET, "HS256"), 403),
    "scopes within a word": (jwt.encode({"exp": NOW + 3600, "scope": "nopredict"}, SECRET, "HS256"), 403),
    "an end that is a word": (jwt.encode({"exp": "never", "scope": "admin"}, SECRET, "HS256"), 401),
    "no name": (f"{segment({'alg': 'none'})}.{segment({'exp': NOW + 3600, 'scope': 'admin'})}.", 401),
}


@pytest.mark.parametrize("case", TOKENS)
def test_tokens_that_are_made_to_break_it(closed: tuple[Client, str], case: str) -> None:
    text, status = TOKENS[case]
    got = closed[0].get("/prediction", {"Authorization": f"Bearer {text}"}, **SEEDS)
    assert got.status == status, got.body


HUGE = "9" * 5000
NUMBERS = [
    ("GET", f"/v2/models/weight/versions/{HUGE}", {}, 404),
    ("GET", f"/v2/models/weight/versions/{HUGE}/ready", {}, 404),
    ("GET", f"/prediction?length={HUGE}&height=1&species=salmon", {}, 422),
    ("GET", f"/prediction?length=1&height=1&species=salmon&at_least=measured:{HUGE}", {}, 422),
    ("GET", f"/prediction?length=1&height=1&species=salmon&deadline={HUGE}", {}, 422),
    ("GET", "/prediction?" + "&".join(f"a{i}=1" for i in range(2000)), {}, 422),
    ("POST", "/v2/models/weight/infer", {"Inference-Header-Content-Length": HUGE}, 400),
]


@pytest.mark.parametrize("number", range(len(NUMBERS)))
def test_numbers_too_large_to_be_any(opened: Client, number: int) -> None:
    method, target, headers, status = NUMBERS[number]
    assert opened.ask(method, target, b"{}" if method == "POST" else None, headers).status == status


def test_keys_that_cannot_be_read_let_nobody_in(tmp_path: Path) -> None:
    log = tmp_path / "fish.headrace"
    keys = keys_of(log)
    _, text = keys.create("till", ["predict"])
    with serving(fish(log), FISH) as (_, client):
        header = {"X-API-Key": text}
        assert client.get("/prediction", header, **SEEDS).status == 200
        keys.path.chmod(0o644)
        keys.path.write_text("{}")
        got = wait_until(lambda: (one := client.get("/prediction", header, **SEEDS)).status != 200 and one)
        assert got.status == 503
        assert str(tmp_path) not in got.body.decode()
        assert client.get("/prediction", **SEEDS).status in (401, 503)
        assert client.get("/v2/health/live").status == 200


def test_a_key_that_is_revoked_meanwhile_does_not_come_back(tmp_path: Path) -> None:
    """Two processes with the file in mind: what one of them took away is not stored again by the other."""
    log = tmp_path / "fish.headrace"
    one, other = keys_of(log), keys_of(log)
    key, text = one.create("first", ["admin"])
    assert other.find(text) is None or other.find(text) == key
    late = keys_of(log)
    one.revoke(key.id)
    late.create("second", ["predict"])
    assert keys_of(log).find(text) is None
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda i: keys_of(log).create(f"k{i}", ["predict"])[0].id, range(24)))
    assert {item.id for item in keys_of(log).all()} >= set(made)


# -- connections ------------------------------------------------------------------------------------------------------


def connect(client: Client) -> socket.socket:
    where = urlsplit(client.url)
    return socket.create_connection((str(where.hostname), where.port or 0), timeout=20)


def ends(opened: socket.socket) -> bool:
    """Whether the other side closes it, within the socket's time."""
    try:
        while opened.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def test_a_head_that_does_not_end_is_cut_off(opened: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    for beginning in (b"", b"GET /prediction HTTP/1.1\r\nHost: localhost\r\nX-A: "):
        with connect(opened) as slow:
            slow.sendall(beginning)
            assert ends(slow)
    # One that sends a byte now and then is not better off.
    with connect(opened) as slow:
        began = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while time.monotonic() < began + 20:
                slow.sendall(b"G")
                threading.Event().wait(0.02)
    # A request that was answered leaves the time between two to uvicorn's keep-alive.
    assert opened.get("/prediction", **SEEDS).status == 200


def test_a_head_that_is_too_large_is_cut_off(opened: Client) -> None:
    with connect(opened) as large:
        large.sendall(b"GET /prediction HTTP/1.1\r\nHost: localhost\r\n")
        # The sockets' buffers may take megabytes before the server has looked at the first of it.
        began = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while time.monotonic() < began + 20:
                large.sendall(b"X-A: " + b"a" * 1000 + b"\r\n")
    assert opened.get("/prediction", **SEEDS).status == 200


def test_a_body_that_does_not_come_is_given_up(opened: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.serve.exchange.BODY_SECONDS", 0.2)
    with connect(opened) as slow:
        slow.sendall(b"POST /v2/models/weight/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert slow.recv(65536).startswith(b"HTTP/1.1 408")


def test_more_connections_than_it_takes(tmp_path: Path) -> None:
    with serving(fish(tmp_path / "fish.headrace"), FISH, connections=8) as (_, client):
        held = [connect(client) for _ in range(12)]
        wait_until(lambda: Client(client.url).get("/v2/health/live").status == 503)
        for item in held:
            item.close()
        wait_until(lambda: Client(client.url).get("/v2/health/live").status == 200)


def test_more_who_wait_than_it_takes(opened: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_WAITING", 3)

    def ask(_: int) -> int:
        mine = Client(opened.url)
        try:
            return mine.get("/prediction", **SEEDS, at_least="measured:999", deadline=1.0).status
        finally:
            mine.close()

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(8)))
    assert sorted(found) == [503] * 5 + [504] * 3
    assert opened.get("/prediction", **SEEDS, at_least="measured:0").status == 200
