"""to_http: one request a row, known by its key, tried again, signed."""

from __future__ import annotations

import hashlib
import hmac
import socket
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.errors import WaitTimeout
from headrace.log import open_log
from headrace.testing.servers import free_port

from .events import app_on, events, letters, write
from .receiver import Receiver, Request

ALARMS = "op id x\nc 1 a\nc 2 b\nc 3 c"


def topic(log: Path, name: str) -> list[dict[str, Any]]:
    held = open_log(log, writer=False)
    try:
        rows = [row for entry in held.read_topic(name) for row in entry.records.to_pylist()]
        return [{key: value for key, value in row.items() if not key.startswith("__")} for row in rows]
    finally:
        held.close()


def test_each_row_is_a_request_that_is_sent_once(receiver: Receiver, tmp_path: Path) -> None:
    write(tmp_path / "log", events(ALARMS))
    app, stream = app_on(tmp_path / "log")
    stream.to_http(receiver.url + "?token=abc", headers={"X-Team": "fish"})
    for _ in range(2):
        app.run(until="caught-up")
    assert [request.row for request in receiver.requests] == [
        {"id": 1, "x": "a"},
        {"id": 2, "x": "b"},
        {"id": 3, "x": "c"},
    ]
    assert receiver.keys == ["shop/in/0", "shop/in/1", "shop/in/2"]
    one = receiver.requests[0]
    assert (one.method, one.path) == ("POST", "/hook?token=abc")
    assert one.headers.items() >= {"X-Team": "fish", "Content-Type": "application/json", "Headrace-Op": "c"}.items()
    assert "Headrace-Signature" not in one.headers
    assert "abc" not in str(app.plan()) and "abc" not in repr(app.plan())


def test_a_receiver_knows_who_sent_it(receiver: Receiver, tmp_path: Path) -> None:
    write(tmp_path / "log", events(ALARMS))
    app, stream = app_on(tmp_path / "log")
    stream.to_http(receiver.url.replace("//", "//me:pass%40word@"), secret="s3cret", method="PUT")
    app.run(until="caught-up")
    for request in receiver.requests:
        stamp, _, digest = request.headers["Headrace-Signature"].removeprefix("t=").partition(",v1=")
        expected = hmac.new(b"s3cret", stamp.encode() + b"." + request.body, hashlib.sha256).hexdigest()
        assert hmac.compare_digest(digest, expected)
        assert abs(int(stamp) - time.time()) < 60
        assert request.headers["Authorization"] == "Basic bWU6cGFzc0B3b3Jk"
        assert request.method == "PUT"
    assert not {"s3cret", "pass%40word", "pass@word"} & set(repr(app.plan()).split("'"))
    assert "word" not in str(app.plan()) and "s3cret" not in repr(app.plan())


# What a receiver answers to the first attempts of the row, and what becomes of the row.
ATTEMPTS = {
    "busy": ([503, 500, 429, 200], "delivered"),
    "no answer": ([0, 0, 204], "delivered"),
    "time-out": ([408, 425, 201], "delivered"),
    "bad row": ([422], "refused"),
    "gone": ([503, 410], "refused"),
}


@pytest.mark.parametrize("case", ATTEMPTS)
def test_attempts(case: str, receiver: Receiver, tmp_path: Path) -> None:
    answers, outcome = ATTEMPTS[case]
    left = list(answers)
    receiver.script = lambda request: (left.pop(0), {}, "") if request.row["id"] == 2 else 200
    write(tmp_path / "log", events(ALARMS))
    app, stream = app_on(tmp_path / "log")
    stream.to_http(receiver.url, backoff="10 ms", success_topic="success", error_topic="error")
    app.run(until="caught-up")
    assert left == []
    assert [key for key in receiver.keys if key != "shop/in/1"] == ["shop/in/0", "shop/in/2"]
    assert receiver.keys.count("shop/in/1") >= len(answers)
    refused = outcome == "refused"
    assert [row["idempotency_key"] for row in topic(tmp_path / "log", "success")] == [
        "shop/in/0", *([] if refused else ["shop/in/1"]), "shop/in/2"
    ]  # fmt: skip
    errors = [{"idempotency_key": "shop/in/1", "status": answers[-1], "attempts": len(answers), "response": "",
               "request": '{"id":2,"x":"b"}'}]  # fmt: skip
    assert topic(tmp_path / "log", "error") == (errors if refused else [])
    assert [letter.partition(" | ")[2] for letter in letters(tmp_path / "log")] == (
        ['{"id": 2, "x": "b"}'] if refused else []
    )


def test_given_up_after_so_many_attempts(receiver: Receiver, tmp_path: Path) -> None:
    receiver.script = lambda request: (500, {}, "out of order") if request.row["id"] == 1 else 200
    write(tmp_path / "log", events(ALARMS))
    app, stream = app_on(tmp_path / "log")
    stream.to_http(receiver.url, retries=2, backoff="1 ms")
    app.run(until="caught-up")
    assert receiver.keys == ["shop/in/0"] * 3 + ["shop/in/1", "shop/in/2"]
    (letter,) = letters(tmp_path / "log")
    assert "answered 500 after 3 attempts: out of order" in letter


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_receiver_says_when_to_come_again(form: str, receiver: Receiver, tmp_path: Path) -> None:
    times: list[float] = []

    def script(request: Request) -> Any:
        times.append(time.time())
        after = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
        return (429, {"Retry-After": after}, "") if len(times) == 1 else 200

    receiver.script = script
    write(tmp_path / "log", events("op id\nc 1"))
    app, stream = app_on(tmp_path / "log")
    stream.to_http(receiver.url, backoff="1 ms")
    app.run(until="caught-up")
    assert times[1] - times[0] >= 0.95


def test_one_that_lets_nobody_in_holds_the_sink_back_and_refuses_no_row(receiver: Receiver, tmp_path: Path) -> None:
    receiver.script = lambda request: 401 if request.number < 3 else 200
    write(tmp_path / "log", events(ALARMS))
    app, stream = app_on(tmp_path / "log")
    stream.to_http(receiver.url)
    app.run(until="caught-up")
    assert receiver.keys == ["shop/in/0"] * 4 + ["shop/in/1", "shop/in/2"]
    assert not len(app.topic("in.dlq").read())


def test_a_receiver_that_is_down_gets_everything_when_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    write(tmp_path / "log", events(ALARMS))
    app, stream = app_on(tmp_path / "log")
    stream.to_http(f"http://127.0.0.1:{port}/hook", name="hook")
    with app.start() as running:
        with pytest.raises(WaitTimeout, match=r"«hook» has delivered in up to offset 0 of 3 \(waiting: http://127"):
            running.wait(0.5)
        running.wait(60, sinks=False)
        with Receiver(port=port) as receiver:
            running.wait(60)
        assert receiver.keys == ["shop/in/0", "shop/in/1", "shop/in/2"]


def test_a_receiver_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        write(tmp_path / "log", events(ALARMS))
        app, stream = app_on(tmp_path / "log")
        stream.to_http(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout="1 h")
        began = time.monotonic()
        with app.start() as running:
            silent.accept()
        assert time.monotonic() - began < 20
        assert running.sinks.popitem()[1].status == "stopped"


def test_answers_are_rows_that_the_pipeline_reads(receiver: Receiver, tmp_path: Path) -> None:
    receiver.script = lambda request: (200, {}, f"thanks for {request.row['id']}")
    app = hr.App("shop", log=tmp_path / "log")
    app.topic("in", append=True).to_http(receiver.url, success_topic="answers")
    app.topic("answers").select("response").to("copied")
    with app.start() as running:
        running.append("in", [{"id": 1}, {"id": 2}])
        running.wait(60)
        running.wait(60)
    assert [row["response"] for row in topic(tmp_path / "log", "copied")] == ["thanks for 1", "thanks for 2"]
