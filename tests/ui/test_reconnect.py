"""The one stream: it goes on where it was after the server was killed, and two people cost one look."""

from __future__ import annotations

import http.client
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.log import open_log
from headrace.ui.stream import Hub
from tests.serve.client import FISH, fish
from tests.waiting import wait_until

from .conftest import PATIENCE_MS, Opener, dashboard_of
from .test_commands import announced, begun

playwright = pytest.importorskip("playwright.sync_api")
playwright.expect.set_options(timeout=PATIENCE_MS)
expect = playwright.expect


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_page_goes_on_after_its_server_was_killed(opener: Opener, tmp_path: Path) -> None:
    """The page is not loaded again: what a person has typed, and where it was scrolled to, stays."""
    opener.expected += ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET"]
    page = opener()
    port = str(free_port())
    command = ("ui", "--log", tmp_path / "fish.headrace", "--no-open", "--port", port)
    with fish(tmp_path / "fish.headrace").start() as running:
        running.append("measured", [FISH[0]])
        with begun(*command, cwd=tmp_path) as (process, lines):
            page.goto(f"{announced(process, lines)}topics")
            rows = page.locator("[data-live='topic:measured/rows']:visible")
            expect(rows).to_have_text("1")
            page.fill("[data-filter]", "measured")
            process.send_signal(signal.SIGKILL)
            process.wait()
            expect(page.locator("[data-live='log/state']")).to_have_text("away")
        running.append("measured", FISH[1:4])
        with begun(*command, cwd=tmp_path) as (process, lines):
            announced(process, lines)
            expect(rows).to_have_text("4")
            expect(page.locator("[data-live='log/state']")).to_have_text("running")
            assert page.input_value("[data-filter]") == "measured"
            expect(page.locator("[data-filter]")).to_be_focused()
            page.goto("about:blank")


def test_two_people_cost_one_look(opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are computed once for all viewers, and not at all without one."""
    looks: list[Hub] = []
    look = Hub.look

    def counted(hub: Hub, *more: Any) -> Any:
        looks.append(hub)
        return look(hub, *more)

    monkeypatch.setattr(Hub, "look", counted)
    log = tmp_path / "rows.headrace"
    app = hr.App("rows", log=log)
    app.topic("measured", append=True)
    with app.start() as running, dashboard_of(log) as url:
        people = [opener(), opener()]
        for page in people:
            page.goto(f"{url}/")
            expect(page.locator("[data-live='log/state']")).to_have_text("running")
        running.append("measured", [{"a": 1}])
        for page in people:
            expect(page.locator("[data-live='topic:measured/rows']:visible")).to_have_text("1")
        (hub,) = set(looks)
        assert hub._viewers.total() == 2
        for page in people:
            page.goto("about:blank")
        wait_until(lambda: hub._task is not None and hub._task.done(), "an end of looks that nobody sees")


def test_an_event_has_the_logs_position(tmp_path: Path) -> None:
    log = tmp_path / "rows.headrace"
    app = hr.App("rows", log=log)
    app.topic("measured", append=True)
    with app.start() as running, dashboard_of(log) as url:
        running.append("measured", [{"a": 1}])
        host = url.removesuffix("/ui").removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request("GET", "/ui/events?want=topic:")
        answer = connection.getresponse()
        lines = []
        while not lines or not lines[-1].startswith("data: "):
            lines.append(answer.readline().decode().strip())
        held = open_log(str(log), writer=False)
        assert f"id: {held.newest_slice()}" in lines and "event: numbers" in lines
        held.close()
        connection.close()
