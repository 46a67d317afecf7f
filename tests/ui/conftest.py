"""A browser that notices what goes wrong, and dashboards to look at.

The browser lives as long as tests of this directory follow one another: Playwright keeps an event loop of its own in
this thread meanwhile, and another one (`asyncio.run`) cannot be started beside it here.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from headrace.demos.fish.play import Options, play
from headrace.formats.topic_formats import codec_for
from headrace.kafka.settings import KafkaLocation
from headrace.log import open_log
from headrace.log.kafka_view import KafkaView
from headrace.serve.keys import KeyFile
from headrace.serve.server import Server, open_keys, open_socket
from headrace.serve.settings import ServeSettings
from headrace.ui.application import Dashboard
from headrace.ui.subject import Subject
from tests.serve.client import Client

CHROMIUM = "chromium"
BROWSER_FIXTURES = frozenset({"browser", "page", "opener"})
PATIENCE_MS = 60_000
FORM = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin", "Accept": "text/html"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one worker of pytest-xdist have the browser."""
    for item in items:
        if BROWSER_FIXTURES & set(getattr(item, "fixturenames", ())) and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("browser"))


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Debian's Chromium; skips where it, or Playwright, is missing."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which(CHROMIUM)
    if path is None:
        pytest.skip(f"{CHROMIUM} is not installed: apt-get install {CHROMIUM}")
    with playwright.sync_playwright() as tool:
        running = tool.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@dataclass
class Opener:
    """Opens pages, and keeps what goes wrong in them.

    Attributes:
        wrong: messages of consoles, and requests that failed.
        expected: parts of those that a test expects.
    """

    browser: Any
    wrong: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    _contexts: list[Any] = field(default_factory=list)

    def __call__(self, **options: Any) -> Any:
        """Return a page of a person of its own; ``options`` of Playwright's `new_context`."""
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self._contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("requestfailed", self._failed)
        page.on("response", self._answered)
        return page

    def _console(self, message: Any) -> None:
        # A request that failed is told by its address, below.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.wrong.append(f"{message.type}: {message.text}")

    def _failed(self, request: Any) -> None:
        # A page that is left ends its stream, and what it still loads.
        if request.failure != "net::ERR_ABORTED":
            self.wrong.append(f"failed: {request.url} {request.failure}")

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.wrong.append(f"{response.status}: {response.url}")

    def close(self) -> None:
        for context in self._contexts:
            context.close()

    def check(self) -> None:
        """Fail the test where something went wrong that it did not expect."""
        wrong = [text for text in self.wrong if not any(part in text for part in self.expected)]
        assert not wrong, wrong


@pytest.fixture
def opener(browser: Any) -> Iterator[Opener]:
    """Open pages of as many people as a test needs; errors in their consoles and failed requests fail it."""
    made = Opener(browser)
    yield made
    made.close()
    made.check()


@pytest.fixture
def page(opener: Opener) -> Any:
    """One page; see `opener`."""
    return opener()


@pytest.fixture(scope="session")
def fish_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of a fish demo that has ended: 180 fish, an alarm, a training, two versions. Tests do not change it."""
    path = tmp_path_factory.mktemp("fish") / "fish.headrace"
    play(Options(log=str(path), speed=0), show=False)
    return path


@pytest.fixture(scope="session")
def fish_dashboard(fish_log: Path) -> Iterator[str]:
    """The address of a dashboard of it, without a slash at the end."""
    with dashboard_of(fish_log) as url:
        yield url


@pytest.fixture
def client(path: Path) -> Iterator[Client]:
    """A client of a dashboard of the log that a module's own fixture ``path`` makes."""
    with dashboard_of(path) as url:
        made = Client(url.removesuffix("/ui"))
        yield made
        made.close()


@contextlib.contextmanager
def dashboard_of(log: Path, *, keys: KeyFile | None = None, port: int = 0, **options: Any) -> Iterator[str]:
    """Serve a dashboard of a log, as `headrace ui` does; gives its address.

    Args:
        options: of `ServeSettings`.
    """
    settings = ServeSettings(port=port, keys=None if keys is None else keys.path, **options)
    held = open_log(str(log), writer=False)
    try:
        pages = Dashboard(Subject(held, log.name, str(log)), settings, open_keys(settings, str(log)))
        server = Server(pages, settings, listening=open_socket(settings), ending=pages.end)
        server.start()
        try:
            yield f"{server.url}/ui"
        finally:
            server.stop()
    finally:
        held.close()


@contextlib.contextmanager
def cluster_dashboard(where: str) -> Iterator[str]:
    """Serve a dashboard of a cluster, or of one log on it, as `headrace ui` does; gives its address."""
    settings = ServeSettings(port=0)
    with KafkaView(KafkaLocation.parse(where), codec=codec_for()) as view:
        pages = Dashboard(Subject(view, where, where), settings, None)
        server = Server(pages, settings, listening=open_socket(settings), ending=pages.end)
        server.start()
        try:
            yield f"{server.url}/ui"
        finally:
            server.stop()
