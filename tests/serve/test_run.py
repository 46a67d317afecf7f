"""Programs that serve: `app.run(serve=True)` and the example, as processes of their own, until a signal ends them."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import headrace as hr
from tests.processes import Child
from tests.waiting import wait_until

from .client import Client
from .factory import factory

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve.py"
PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from serve.factory import factory
factory({log!r}).run(serve=True)
"""
SALMON = {"length": 86.37, "height": 18.74, "species": "salmon"}


@contextlib.contextmanager
def begun(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python program, and where it says it serves; killed where it still runs at the end."""
    process = Child(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HEADRACE_SERVE_PORT": "0", **environment},
    )
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        url = next((word for line in lines for word in line.split() if word.startswith("http")), "")
        assert url, f"it ended with {process.wait()}"
        yield process, url.removesuffix(";").removesuffix("/prediction")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@contextlib.contextmanager
def program(*arguments: str, end: signal.Signals, **environment: str) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """A program that serves, and ends when it gets a signal: with code 0, but on a machine that is too busy for it."""
    with begun(*arguments, **environment) as (process, url):
        client = Client(url)
        yield process, client
        client.close()
        process.send_signal(end)
        out, err = process.communicate(timeout=30)
        assert process.returncode in (0, 128 + end), out + err
        assert "Traceback" not in err
        assert out == ""


def test_it_serves_until_a_signal_ends_it(tmp_path: Path) -> None:
    log = tmp_path / "fish.headrace"
    script = PROGRAM.format(tests=str(Path(__file__).parents[1]), log=str(log))
    with program("-c", script, end=signal.SIGTERM) as (_, client):
        assert client.get("/prediction", **SALMON, fish=1).status == 200
    # The log was let go in good order: the next one writes at once.
    with factory(log).start() as running:
        running.append("weighed", [{"Fish_Id": 1, "Weight": 4.4}])
        running.wait()
        assert running.log.topics()["weight-diff"].end == 1


def test_the_example(tmp_path: Path) -> None:
    log = tmp_path / "fish.headrace"
    with program(str(EXAMPLE), end=signal.SIGINT, FISH_LOG=str(log)) as (process, client):
        got = client.get("/prediction", **SALMON, fish="1")
        assert got.json["Weight"] == 4.5105
        assert process.stdin is not None
        process.stdin.write('{"Fish_Id": "1", "Weight": 4.4399}\n')
        process.stdin.flush()
        trained = wait_until(lambda: (got := client.post("/train")).status == 200 and got.json)
        assert (trained["version"], trained["rows"]) == (2, 1)
        assert client.get("/prediction", **SALMON, fish="2").headers["headrace-version"] == "2"
    (grade,) = hr.App("fish", log=str(log)).topic("weight-diff").read().to_arrow().to_pylist()
    assert (grade["Fish_Id"], grade["status"]) == ("1", "graded")
    assert grade["error"] == pytest.approx(abs(grade["prediction"] - 4.4399) / 4.4399)


def test_what_was_answered_is_there_after_kill_9(tmp_path: Path) -> None:
    """A request is answered when its row is durable: whenever the process dies, no answer was given in vain."""
    log = tmp_path / "fish.headrace"
    script = PROGRAM.format(tests=str(Path(__file__).parents[1]), log=str(log))
    answered: list[int] = []
    asked = itertools.count()

    def ask(url: str) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            client = Client(url)
            while True:
                number = next(asked)
                assert client.get("/prediction", **SALMON, fish=number).status == 200
                answered.append(number)

    with begun("-c", script) as (process, url), ThreadPoolExecutor(4) as threads:
        clients = [threads.submit(ask, url) for _ in range(4)]
        wait_until(lambda: len(answered) > 60)
        process.kill()
        for future in clients:
            future.result(30)
        process.wait(30)
    app = factory(log)
    with app.start() as running:
        running.append("weighed", [{"Fish_Id": i, "Weight": 4.4} for i in range(next(asked))])
        running.wait()
        written = app.topic("weight-prediction").read().to_arrow().column("Fish_Id").to_pylist()
        rows = app.topic("weight-diff").read().to_arrow()
        graded = rows.filter(rows.column("status").to_numpy(zero_copy_only=False) == "graded").column("Fish_Id")
    assert len(set(written)) == len(written)
    # Of the four that were being answered some may have been written already.
    assert set(answered) <= set(written) <= {*answered, *range(len(answered) + 5)}
    assert sorted(graded.to_pylist()) == sorted(written)
