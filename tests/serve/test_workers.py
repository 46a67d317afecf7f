"""Workers: several processes that answer on one port, and what a request sees of their deaths."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import HEADRACE, Child
from tests.waiting import wait_until

from .client import FISH, SEEDS, Client
from .test_endpoint import retrained
from .test_following import clients_of, command, write_file

BROKEN = (ConnectionError, http.client.BadStatusLine, http.client.IncompleteRead)


class Load:
    """Threads that ask for predictions: half of them over one connection each, half over a new one each time.

    As HTTP clients do, they make a connection anew that the server has closed between two requests.

    Attributes:
        failed: what went wrong, by anybody.
        killed: how many processes are being killed. What such a process had accepted nobody can answer, so that a
            ``GET`` may be asked again once for each of them: its next connection may be to one that is killed too.
    """

    def __init__(self, url: str, threads: int = 4) -> None:
        self.url = url
        self.failed: list[str] = []
        self.killed = 0
        self.answered = [0] * threads
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, number: int) -> None:
        client = Client(self.url)
        broken = 0
        while not self._ended.is_set():
            try:
                client.close_if_ended()
                got = client.get("/prediction", **SEEDS)
                if (got.status, got.headers.get("headrace-version")) != (200, "2"):
                    self.failed.append(f"{got.status}: {got.body!r}")
                self.answered[number] += 1
                broken = 0
            except BROKEN as error:
                broken += 1
                if broken > self.killed:
                    self.failed.append(repr(error))
                client.close()
            except Exception as error:
                self.failed.append(repr(error))
                client.close()
            if number % 2:
                client.close()
        client.close()

    def go_on(self, requests: int = 20) -> None:
        """Return when each thread has been answered so often again."""
        goal = [count + requests for count in self.answered]
        wait_until(lambda: self.failed or all(map(int.__ge__, self.answered, goal)), 60)
        assert not self.failed, self.failed[:5]


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running_process(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def version_of(url: str) -> str | None:
    with clients_of(url) as (client,):
        return client.get("/prediction", **SEEDS).headers.get("headrace-version")


@contextlib.contextmanager
def served(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """A parent with two workers, both of which answer with version 2; its process, and where it is served."""
    log = tmp_path / "fish.headrace"
    file = str(write_file(tmp_path, f"retrained({str(log)!r})"))
    with retrained(log).start() as running:
        running.append("measured", FISH)
        running.retrain("weight")
    with command(file, "--workers", "2") as (process, url):
        yield process.pid, url


def begun_again(parent: int, before: set[int]) -> set[int]:
    """Wait for two workers of which none is gone; those that were not there before."""
    wait_until(lambda: len(alive := set(children_of(parent))) == 2 and all(map(running_process, alive)), 60)
    return set(children_of(parent)) - before


def test_workers_on_one_port(tmp_path: Path) -> None:
    """One that dies is begun again, and nobody waits for it while another one answers."""
    with served(tmp_path) as (parent, url):
        children = children_of(parent)
        assert len(children) == 2
        with Load(url) as load:
            load.go_on()
            load.killed = 1
            os.kill(children[0], signal.SIGKILL)
            wait_until(lambda: not running_process(children[0]))
            (new,) = wait_until(lambda: set(children_of(parent)) - set(children), 60)
            # It has not loaded its models yet, and never will while it stands still.
            os.kill(new, signal.SIGSTOP)
            load.go_on()
            load.killed = 0
            assert [version_of(url) for _ in range(20)] == ["2"] * 20
            os.kill(new, signal.SIGCONT)
            load.go_on()
            # Both are told to end: what they have taken they answer, what comes then waits for the next ones.
            before = set(children_of(parent))
            for child in before:
                os.kill(child, signal.SIGTERM)
            wait_until(lambda: not any(map(running_process, before)), 60)
            begun_again(parent, before)
            load.go_on()
        # What any of them counted is in what each of them says.
        with clients_of(url) as (client,):
            text = client.get("/metrics").body.decode()
        line = next(line for line in text.splitlines() if 'route="/prediction",status="200"' in line)
        assert float(line.rsplit(" ", 1)[1]) >= sum(load.answered)
    assert not any(Path(f"/proc/{child}").exists() for child in before)


@pytest.mark.slow
def test_workers_that_die_again_and_again(tmp_path: Path) -> None:
    with served(tmp_path) as (parent, url), Load(url) as load:
        for round_number in range(12):
            load.go_on(5)
            before = set(children_of(parent))
            killed = sorted(before)[: 1 + round_number % 2]
            how = signal.SIGTERM if round_number % 3 else signal.SIGKILL
            load.killed = len(killed) if how == signal.SIGKILL else 0
            for child in killed:
                os.kill(child, how)
            wait_until(lambda killed=killed: not any(map(running_process, killed)), 60)
            assert begun_again(parent, before)
            load.go_on(5)
            load.killed = 0


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    file = str(write_file(tmp_path, f"fish({str(tmp_path / 'fish.headrace')!r})"))
    process = Child([HEADRACE, "serve", file, "--workers", "2", "--port", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("serving at" in line for line in iter(process.stderr.readline, ""))
    children = children_of(process.pid)
    assert len(children) == 2
    process.kill()
    process.communicate(timeout=20)
    wait_until(lambda: not any(map(running_process, children)))
