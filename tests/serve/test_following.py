"""Other processes that answer: followers of a log, the command, workers on one port."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.engines.local.serving.replica import Replica
from headrace.engines.local.serving.served_rows import ServedRowsSender
from headrace.errors import FingerprintError, HeadraceError, LogMissing
from headrace.learn.state import state_hash
from headrace.serve.models import AtLeast
from headrace.serve.settings import ServeSettings
from tests.processes import HEADRACE, Child, run_python
from tests.waiting import wait_until

from .client import FISH, SEEDS, Client, fish, headrace
from .test_endpoint import retrained

FILE = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from serve.client import fish
from serve.test_endpoint import retrained
{more}
app = {app}
"""


@contextlib.contextmanager
def following(app: hr.App) -> Iterator[Replica]:
    follower = Replica.of(app.plan())
    follower.start()
    try:
        yield follower
    finally:
        follower.stop()


def hash_of(follower: Replica) -> str:
    return state_hash(follower.current("weight").by.learner.state())


def test_a_follower_is_where_the_pipeline_is_to_the_bit(tmp_path: Path) -> None:
    log = tmp_path / "fish.headrace"
    rng = np.random.default_rng(3)
    with fish(log).start() as running:
        running.append("measured", FISH)
        with following(fish(log)) as follower:
            for n in (1, 7, 300, 2):
                rows = [{**FISH[i % 6], "Length": float(rng.normal(70, 9))} for i in range(n)]
                running.append("measured", rows)
                position = running["weight"].position
                wait_until(lambda position=position: follower.current("weight").info.position == position)
                assert hash_of(follower) == running["weight"].hash
        # It was away for a while.
        running.append("measured", FISH)
        with following(fish(log)) as follower:
            assert hash_of(follower) == running["weight"].hash


def test_a_follower_takes_part_in_versions(tmp_path: Path) -> None:
    log = tmp_path / "fish.headrace"
    with retrained(log).start() as running:
        running.append("measured", FISH)
        with following(retrained(log)) as follower:
            assert not follower.ready()
            assert follower.train("weight", 20)["version"] == 2
            wait_until(lambda: follower.current("weight").info.version == 2)
            assert hash_of(follower) == running["weight"].hash
            running.append("measured", FISH[:2])
            running.retrain("weight")
            wait_until(lambda: follower.current("weight").info.version == 3)
            before = follower.version("weight", "2").predict([[86.37, 18.74, "salmon"]], wait=True)
            running.rollback("weight", 2)
            wait_until(lambda: follower.current("weight").info.version == 4)
            assert follower.current("weight").predict([[86.37, 18.74, "salmon"]], wait=True) == before
            with pytest.raises(HeadraceError, match="came to nothing"):
                follower.train("weight", 20)


def test_a_follower_says_how_far_it_is(tmp_path: Path) -> None:
    log = tmp_path / "fish.headrace"
    with fish(log).start() as running:
        running.append("measured", FISH[:3])
        with following(fish(log)) as follower:
            assert follower.reached("weight", AtLeast(topic="measured", offset=2)) is not None
            assert follower.reached("weight", AtLeast(topic="measured", offset=3)) is None
            running.append("measured", FISH[3:4])
            found = wait_until(lambda: follower.reached("weight", AtLeast(topic="measured", offset=3)))
            assert found.info.position == running["weight"].position
            assert {metric.name for metric in follower.metrics()} >= {
                "model_version",
                "model_lag_rows",
                "model_learned",
            }


def test_a_reset_model_is_followed(tmp_path: Path) -> None:
    log = tmp_path / "fish.headrace"
    with fish(log).start() as running:
        running.append("measured", FISH)
    with following(fish(log)) as follower:
        assert follower.ready()
        done = run_python(
            [HEADRACE, "models", "reset", "weight", "--log", str(log), "--from", "latest"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        wait_until(lambda: follower.current("weight").info.version == 2)
        assert not follower.ready()


def test_what_cannot_be_followed(tmp_path: Path) -> None:
    with pytest.raises(LogMissing):
        Replica.of(fish(tmp_path / "none.headrace").plan())
    log = tmp_path / "fish.headrace"
    with fish(log).start() as running:
        running.append("measured", FISH)
    with pytest.raises(FingerprintError, match="declared differently"):
        Replica.of(retrained(log).plan())


def test_rows_are_handed_over_once_whatever_dies(tmp_path: Path) -> None:
    """Files that a writer has taken in and not removed when it died are found again, and skipped."""
    log = tmp_path / "fish.headrace"
    rows = pa.RecordBatch.from_pylist([{"prediction": 1.5}, {"prediction": 2.5}])
    app = fish(log, log_to="answered.by-http")
    with app.start(serve=ServeSettings(port=0)), following(fish(log, log_to="answered.by-http")) as follower:
        follower.record("answered.by-http", rows, 20)
        assert len(app.topic("answered.by-http").read()) == 2
        other = ServedRowsSender(follower.log)
        other.append("answered.by-http", rows, 20)
        folder = tmp_path / "fish.headrace.handed"
        assert list(folder.iterdir()) == []
        # As if the file had not been removed: the same name, the same rows.
        name = f"{other._producer}-{0:012d}-answered%2Eby-http"
        with pa.OSFile(str(folder / f"{name}.draft"), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_batch(rows)
        (folder / f"{name}.draft").replace(folder / f"{name}.arrow")
        wait_until(lambda: not list(folder.iterdir()))
        assert len(app.topic("answered.by-http").read()) == 4
        with pytest.raises(HeadraceError, match="not declared to be appended to"):
            follower.record("other", rows, 20)
    with (
        following(fish(log, log_to="answered.by-http")) as follower,
        pytest.raises(HeadraceError, match="took no rows"),
    ):
        follower.record("answered.by-http", rows, 0.05)
    assert list(folder.iterdir()) == []


# -- the command ------------------------------------------------------------------------------------------------------


def write_file(tmp_path: Path, app: str, *, more: str = "") -> Path:
    file = tmp_path / "pipeline.py"
    file.write_text(
        FILE.format(tests=str(Path(__file__).parents[1]), root=str(Path(__file__).parents[2]), app=app, more=more)
    )
    return file


@contextlib.contextmanager
def command(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``headrace serve``, and where it answers."""
    process = Child(
        [HEADRACE, "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HEADRACE_SERVE_PORT": "0", "COLUMNS": "200", **environment},
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline() if "--json" in arguments else process.stderr.readline()
        while line and "http" not in line:
            line = process.stderr.readline()
        assert line, process.stderr.read()
        yield (
            process,
            json.loads(line)["url"]
            if "--json" in arguments
            else next(word for word in line.split() if word.startswith("http")),
        )
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, out + err


def test_the_command_runs_and_serves_and_others_follow(tmp_path: Path) -> None:
    log = tmp_path / "fish.headrace"
    with fish(log).start() as running:
        running.append("measured", FISH)
    file = str(write_file(tmp_path, f"fish({str(log)!r}, log_to='answered')"))
    # The port that the second one wants is free again when it turns from running to following.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    first, second = command(file, "--json"), command(file, "--json", "--port", port)
    with first as (_, url), second as (_, other), clients_of(url, other) as clients:
        found = [client.get("/prediction", **SEEDS) for client in clients]
        assert [item.status for item in found] == [200, 200]
        assert found[0].body == found[1].body
        assert found[0].headers["headrace-position"] == found[1].headers["headrace-position"]
        answered = fish(log, log_to="answered").topic("answered").read().to_arrow()
        assert answered.column("prediction").to_pylist() == [answered.column("prediction")[0].as_py()] * 2


@contextlib.contextmanager
def clients_of(*urls: str) -> Iterator[list[Client]]:
    clients = [Client(url) for url in urls]
    yield clients
    for client in clients:
        client.close()


REFUSED: dict[str, tuple[list[str], str]] = {
    "open to others": (["--host", "0.0.0.0"], "would let anybody ask"),
    "a port that is none": (["--port", "70000"], "port"),
    "nothing to follow": (["--no-run"], "there is no log"),
    "a rate that is none": (["--rate", "often"], "rate"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_command_refuses(tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    options, told = REFUSED[case]
    file = str(write_file(tmp_path, f"fish({str(tmp_path / 'fish.headrace')!r})"))
    done = headrace(capfd, "serve", file, *options)
    assert done.returncode in (1, 2)
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_log_in_memory_has_no_workers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = str(write_file(tmp_path, "fish('memory://')"))
    done = headrace(capfd, "serve", file, "--workers", "2", "--port", "0")
    assert (done.returncode, "one process" in done.stderr) == (2, True)


def test_the_environment_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SERVE_PORT", "0")
    with fish(tmp_path / "fish.headrace").start(serve=True) as running:
        assert running.server is not None
        assert Client(running.server.url).get("/v2").status == 200


def test_a_server_ends_with_its_pipeline(tmp_path: Path) -> None:
    threads = threading.active_count()
    with fish(tmp_path / "fish.headrace").start(serve=ServeSettings(port=0)) as running:
        assert running.server is not None
        port = running.server.port
    with pytest.raises(ConnectionRefusedError):
        Client(f"http://127.0.0.1:{port}").get("/v2")
    wait_until(lambda: threading.active_count() <= threads + 1)
