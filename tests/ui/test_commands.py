"""Where the dashboard is shown: ``headrace ui``, ``run --ui``, ``serve``, ``app.start(ui=…)``; its start and end."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.serve.server import open_free_socket
from headrace.serve.settings import ServeSettings
from tests.processes import HEADRACE, Child
from tests.serve.client import Client, fish, following, headrace
from tests.serve.test_following import write_file
from tests.waiting import wait_until

PAGE = {"Accept": "text/html"}
START_SECONDS = 1.0
# What a busy machine takes to let a process run at all.
SLACK = 20.0


@contextlib.contextmanager
def begun(*arguments: str | Path, cwd: Path) -> Iterator[tuple[subprocess.Popen[Any], list[str]]]:
    """A command that runs, and the lines of its standard error so far; it is killed where it has not ended."""
    lines: list[str] = []
    with Child(
        [HEADRACE, *map(str, arguments)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")), daemon=True)
        reader.start()
        try:
            yield process, lines
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            reader.join()


def announced(process: subprocess.Popen[Any], lines: list[str]) -> str:
    """Return where the dashboard is, as soon as that is said."""

    def said() -> str | None:
        assert process.poll() is None, lines
        return next((line.split()[-1] for line in list(lines) if "the dashboard is at" in line), None)

    return str(wait_until(said))


def opened(address: str, **more: Any) -> int:
    """Return the status of a page."""
    client = Client(address.removesuffix("/ui/"), **more)
    try:
        return client.get("/ui/", PAGE).status
    finally:
        client.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ui_says_where_it_is_and_ends_by_a_signal(fish_log: Path, tmp_path: Path, number: signal.Signals) -> None:
    begin = time.monotonic()
    with begun("ui", "--log", fish_log, "--port", "0", "--json", cwd=tmp_path) as (process, _):
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["url"]
        assert time.monotonic() - begin < START_SECONDS + SLACK
        assert opened(address) == 200
        process.send_signal(number)
        code = process.wait(2 + SLACK)
        assert code in (0, 128 + number)  # the other where a busy machine took longer than it may


def test_ui_takes_the_only_log_here_and_a_free_port(fish_log: Path, tmp_path: Path) -> None:
    (tmp_path / "only.headrace").symlink_to(fish_log)
    with socket.create_server(("127.0.0.1", 0)) as taken, begun("ui", "--no-open", cwd=tmp_path) as (process, lines):
        assert opened(announced(process, lines)) == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert taken.getsockname()[1]


def test_what_cannot_be_shown_is_said(fish_log: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = headrace(capfd, "ui", "--log", str(tmp_path / "none.headrace"), "--no-open")
    assert done.returncode == 1 and "there is no log at" in done.stderr and "Traceback" not in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = headrace(capfd, "ui", "--log", str(fish_log), "--no-open", "--port", port)
        assert done.returncode == 1 and f"cannot listen on 127.0.0.1:{port}" in done.stderr
    done = headrace(capfd, "ui", "--log", str(fish_log), "--no-open", "--port", "0", "--host", "0.0.0.0")
    assert done.returncode == 2 and "no key is configured" in done.stderr


def test_run_shows_it_beside_the_pipeline(tmp_path: Path) -> None:
    file = write_file(tmp_path, f"fish({str(tmp_path / 'fish.headrace')!r})")
    with begun("run", file, "--ui", cwd=tmp_path) as (process, lines):
        assert opened(announced(process, lines)) == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_start_shows_it_and_says_where(tmp_path: Path) -> None:
    with fish(tmp_path / "fish.headrace").start(ui=ServeSettings(port=0)) as running:
        assert running.server is not None and running.page == f"{running.server.url}/ui/"
        assert opened(running.page) == 200
        assert Client(running.server.url).get("/v2/health/live").status == 200, "it serves as serve=True does"
    with fish(tmp_path / "two.headrace").start(serve=ServeSettings(port=0)) as running:
        assert running.page == "", "nobody has asked for it"
    with fish(tmp_path / "three.headrace").start(serve=ServeSettings(port=0), ui=True) as running:
        assert running.server is not None and running.page == f"{running.server.url}/ui/"


def test_a_taken_port_is_no_hindrance_where_nobody_has_chosen_one(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(socket.create_server(("127.0.0.1", 8080)))
        app = hr.App("rows", log=tmp_path / "rows.headrace")
        app.topic("measured", append=True)
        running = stack.enter_context(app.start(ui=True))
        assert not running.page.startswith("http://127.0.0.1:8080/")
        assert opened(running.page) == 200, "without any model, too"


def test_serve_has_it_whoever_runs_the_pipeline(tmp_path: Path) -> None:
    app = fish(tmp_path / "fish.headrace")
    with app.start(serve=ServeSettings(port=0)) as running, following(fish(tmp_path / "fish.headrace")) as client:
        assert running.server is not None
        assert opened(f"{running.server.url}/ui/") == 200
        assert client.get("/ui/", PAGE).status == 200
        assert client.get("/ui/topics", PAGE).status == 200


@pytest.mark.slow
def test_serve_has_it_in_every_worker(tmp_path: Path) -> None:
    file = write_file(tmp_path, f"fish({str(tmp_path / 'fish.headrace')!r})")
    with begun("serve", file, "--port", "0", "--workers", "2", cwd=tmp_path) as (process, lines):
        where = wait_until(lambda: next((line for line in list(lines) if "serving at " in line), None))
        url = where.partition("serving at ")[2].split()[0]
        wait_until(lambda: answers(url))
        for _ in range(8):  # each over a connection of its own, which any worker may get
            assert opened(f"{url}/ui/") == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def answers(url: str) -> bool:
    try:
        return opened(f"{url}/ui/") == 200
    except OSError:
        return False


def test_over_tls_the_cookie_goes_over_nothing_else(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    settings = ServeSettings(
        port=0, tls_cert=cert, tls_key=key, jwt_secret="0123456789abcdef0123456789abcdef0123456789abcdef"
    )
    import jwt

    token = jwt.encode(
        {"sub": "me", "scope": "read", "exp": time.time() + 600}, str(settings.jwt_secret.get_secret_value())
    )
    with fish(tmp_path / "fish.headrace").start(ui=settings) as running:
        assert running.server is not None and running.page.startswith("https://")
        client = Client(running.server.url, context=ssl.create_default_context(cafile=cert))
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
        got = client.post("/ui/sign-in", f"key={token}".encode(), headers)
        assert got.status == 303 and "Secure" in got.headers["set-cookie"]
        client.close()


@pytest.mark.slow
def test_a_demo_shows_it_as_long_as_it_plays(tmp_path: Path) -> None:
    arguments = ("demo", "fish", "--ui", "--no-open", "--speed", "60", "--log", tmp_path / "fish.headrace", "--json")
    with begun(*arguments, cwd=tmp_path) as (process, lines):
        assert opened(announced(process, lines)) == 200
        assert process.stdout is not None
        assert len(json.loads(process.stdout.read())["rows"]) == 180
        assert process.wait(60) == 0, "without a terminal nobody waits for Ctrl-C"


def test_a_demo_on_flink_does_not_show_it(capfd: pytest.CaptureFixture[str]) -> None:
    done = headrace(capfd, "demo", "iris", "--engine", "flink", "--ui")
    assert done.returncode == 2 and "--ui is not for --engine flink" in done.stderr.replace("\n", " ")


def test_two_that_look_for_a_free_port_at_once_have_two() -> None:
    """Neither listens yet: the second one must not take the port that the first one has bound."""
    with contextlib.ExitStack() as stack:
        bound = [stack.enter_context(open_free_socket(ServeSettings())) for _ in range(2)]
        assert len({found.getsockname()[1] for found in bound}) == 2
        for found in bound:
            found.listen()
