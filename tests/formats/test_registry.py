"""The registry's client where it fails, frames of the wire forms, and the choice of a format: no Java here."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.batch import Batch
from headrace.errors import DeclarationError, FormatError, RegistryUnavailable
from headrace.formats.avro import AvroFormat
from headrace.formats.registered import NAMES, registered_format
from headrace.formats.registry import SchemaId, SchemaRegistry
from headrace.formats.registry_framing import frame, prefix
from headrace.testing.servers import free_port
from headrace.wire import WireMessages

INT = '{"type":"record","name":"V","fields":[{"name":"a","type":"int"}]}'
Answer = tuple[int, bytes, dict[str, str]]


class Failing:
    """An HTTP server whose answers a test scripts: failures that a real registry cannot be asked for."""

    def __init__(self) -> None:
        self.answer: Callable[[str], Answer] = lambda _: (200, json.dumps({"schema": INT}).encode(), {})
        self.asked: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, dict(self.headers)))
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, body, headers = outer.answer(self.path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def failing() -> Iterator[Failing]:
    scripted = Failing()
    thread = threading.Thread(target=scripted.server.serve_forever, args=(0.01,))
    thread.start()
    yield scripted
    scripted.server.shutdown()
    scripted.server.server_close()
    thread.join()


def script(*answers: Answer) -> Callable[[str], Answer]:
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


GOOD: Answer = (200, json.dumps({"schema": INT}).encode(), {})


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_what_may_pass_is_tried_again(failing: Failing, status: int) -> None:
    failing.answer = script((status, b"", {}), (status, b"", {}), GOOD)
    assert SchemaRegistry(failing.url).schema(SchemaId("id", 1)).text == INT
    assert len(failing.asked) == 3


def test_a_schema_is_asked_for_once_and_outlives_the_registry(failing: Failing) -> None:
    registry = SchemaRegistry(failing.url, deadline=0.2)
    registry.schema(SchemaId("id", 1))
    failing.answer = script((503, b"", {}))
    assert registry.schema(SchemaId("id", 1)).text == INT
    assert len(failing.asked) == 1
    with pytest.raises(RegistryUnavailable, match="schema id 2 and does not answer: status 503"):
        registry.schema(SchemaId("id", 2))


def test_nobody_listens() -> None:
    registry = SchemaRegistry(f"http://127.0.0.1:{free_port()}", deadline=0.2)
    with pytest.raises(RegistryUnavailable, match="does not answer"):
        registry.schema(SchemaId("id", 1))


def test_nothing_is_dead_lettered_while_the_registry_is_away(failing: Failing) -> None:
    registry = SchemaRegistry(failing.url, deadline=0.1)
    messages = WireMessages("t", [prefix(1, "confluent") + b"\x02"], offsets=np.array([0]))
    failing.answer = script((500, b"", {}))
    with pytest.raises(RegistryUnavailable):
        AvroFormat(registry).decode(messages)
    failing.answer = script(GOOD)
    decoded = AvroFormat(registry).decode(messages)
    assert decoded.parts[0][0].rows.to_pylist() == [{"a": 1}] and not decoded.bad


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (
            (404, b'{"error_code":40403,"message":"Schema not found"}', {}),
            "does not have schema id 1 .*Schema not found",
        ),
        ((401, b"", {}), "refuses schema id 1 to this user"),
        ((200, b"<html>", {}), "not JSON"),
        ((302, b"", {"Location": "http://127.0.0.1:1/elsewhere"}), "refuses schema id 1"),
        ((422, b"no json", {}), "422"),
    ],
)
def test_refusals_are_final_and_say_why(failing: Failing, answer: Answer, match: str) -> None:
    failing.answer = script(answer)
    with pytest.raises(FormatError, match=match) as caught:
        SchemaRegistry(failing.url, auth="me:secret").schema(SchemaId("id", 1))
    assert not isinstance(caught.value, RegistryUnavailable)
    assert "secret" not in str(caught.value)
    assert len(failing.asked) == 1


def test_an_id_without_schema_is_bad_and_the_rest_goes_on(failing: Failing) -> None:
    failing.answer = lambda path: (404, b"{}", {}) if path.endswith("/9") else GOOD
    values = [prefix(1, "confluent") + b"\x02", prefix(9, "confluent") + b"\x02", b"", b"{}", None]
    decoded = AvroFormat(failing.url).decode(WireMessages("t", values, offsets=np.arange(5)))
    ((batch, rows),) = decoded.parts
    assert (batch.rows.to_pylist(), rows.tolist()) == ([{"a": 1}, {"a": None}], [0, 4])
    assert batch.op.tobytes() == b"cd", "a null without a key is a delete in a table without one"
    assert [row for row, _ in decoded.bad] == [1, 2, 3]


@pytest.mark.parametrize(
    ("auth", "environment", "userinfo", "expected"),
    [
        (("me", "pass:word"), "", "", "Basic bWU6cGFzczp3b3Jk"),
        ("me:secret", "other:one", "", "Basic bWU6c2VjcmV0"),
        ("Bearer abc", "", "", "Bearer abc"),
        (None, "me:secret", "", "Basic bWU6c2VjcmV0"),
        (None, "", "me:se%40cret@", "Basic bWU6c2VAY3JldA=="),
        (None, "", "", None),
    ],
)
def test_credentials_are_sent_and_never_shown(
    failing: Failing, monkeypatch: pytest.MonkeyPatch, auth: Any, environment: str, userinfo: str, expected: str | None
) -> None:
    monkeypatch.setenv("HEADRACE_SCHEMA_REGISTRY_AUTH", environment)
    monkeypatch.setenv("HEADRACE_SCHEMA_REGISTRY_URL", failing.url.replace("://", f"://{userinfo}"))
    registry = SchemaRegistry(auth=auth)
    registry.schema(SchemaId("id", 1))
    assert failing.asked[0][1].get("Authorization") == expected
    assert repr(registry) == f"SchemaRegistry('{failing.url}')"


@pytest.mark.parametrize("url", ["", "registry:8081", "ftp://x", "http://"])
def test_a_registry_needs_an_address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.delenv("HEADRACE_SCHEMA_REGISTRY_URL", raising=False)
    with pytest.raises(DeclarationError, match="schema registry"):
        SchemaRegistry(url)


def test_threads_share_one_client(failing: Failing) -> None:
    registry = SchemaRegistry(failing.url)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(registry.schema(SchemaId("id", i % 3)).text))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [INT] * 12


# --- frames ---


def test_frames_of_all_forms_side_by_side() -> None:
    wide = (7).to_bytes(8, "big")
    values = [b"\0\0\0\1\0xy", b"", b"\1\0\0\0\1x", None, b"ab", b"\0\0\0\0\7", b"\0cd", b"\0\0\0\1\0z"]
    headers: list[Any] = [()] * len(values)
    headers[4] = [("apicurio.value.globalId", wide)]
    headers[6] = [("other", None), ("apicurio.value.contentId", wide)]
    frames = frame(values, headers)
    found = [(str(group.schema_id), group.rows.tolist(), group.payloads()) for group in frames.groups]
    assert found == [
        ("id 256", [0, 7], [b"xy", b"z"]),
        ("globalId 7", [4], [b"ab"]),
        ("id 7", [5], [b""]),
        ("contentId 7", [6], [b"\0cd"]),
    ]
    assert frames.empty.tolist() == [3]
    assert [row for row, _ in frames.bad] == [1, 2]


def test_keys_have_headers_of_their_own() -> None:
    headers = [[("apicurio.key.globalId", (3).to_bytes(8, "big"))]]
    assert frame([b"k"], headers, role="key").groups[0].schema_id == SchemaId("globalId", 3)
    assert frame([b"k"], headers, role="value").bad


# --- names ---


@pytest.mark.parametrize("name", NAMES)
def test_every_name_makes_the_format_of_that_name(name: str) -> None:
    assert registered_format(name, registry="http://127.0.0.1:1").name == name


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"spec": "avro2"}, "no format"),
        ({"spec": "avro", "key": "csv"}, "cannot have keys"),
        ({"spec": "protobuf", "key": "avro"}, "cannot have keys"),
    ],
)
def test_wrong_declarations(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(DeclarationError, match=match):
        registered_format(**arguments, registry="http://127.0.0.1:1")


@pytest.mark.parametrize("name", ["protobuf", "registry"])
def test_what_only_reads_says_so(name: str) -> None:
    with pytest.raises(DeclarationError, match=r"reads|only reads"):
        registered_format(name, registry="http://127.0.0.1:1").encode("t", Batch.of({"a": pa.array([1])}))
