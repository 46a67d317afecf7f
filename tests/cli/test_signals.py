"""SIGINT ends every command that may take long within two seconds, SIGTERM within ten, without a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from headrace.log import open_log
from tests.databases import Database
from tests.processes import HEADRACE, Child, run_python
from tests.waiting import wait_until

SECONDS = 2.0
# What a busy machine takes to let a process run at all is not the process's: it is told to end, and that is timed.
SLACK = 6.0


LEARNING = """
import sys, threading
import numpy as np
import headrace as hr
from sklearn.neural_network import MLPClassifier

class Endless(MLPClassifier):
    def partial_fit(self, X, y, classes=None):
        open("learning", "w").close()
        big = np.ones((3000, 3000))
        while True:
            try:
                big = big @ big / 3000
            except KeyboardInterrupt:
                pass

app = hr.App("slow", log="slow.headrace")
rows = app.topic("rows")
m = app.model("m", Endless((4,), max_iter=1), features=["x"], target="y", classes=[0, 1])
m.learn(rows, every=10)
"""


def begin(*arguments: str, cwd: Path, **more: Any) -> subprocess.Popen[str]:
    """Start a command whose words are kept."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more}
    return Child([HEADRACE, *arguments], cwd=cwd, **streams)


def ended(process: subprocess.Popen[str], number: int, within: float = SECONDS) -> tuple[int, str, str]:
    """Send a signal, and return code and words of what ended in time."""
    begun = time.monotonic()
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
    seconds = time.monotonic() - begun
    assert seconds < within + SLACK, f"{seconds:.1f} s"
    assert "Traceback" not in err
    assert "KeyboardInterrupt" not in err
    return process.returncode, out, err


def told(stream: Any, words: str) -> None:
    """Wait until a process has said something; fail where it ends without it."""
    lines = []
    for line in stream:
        lines.append(line)
        if words in line:
            return
    pytest.fail(f"it ended without «{words}»: {''.join(lines)}")


def numbered(path: Path, rows: int) -> None:
    """Write rows into a topic of a log."""
    from headrace.batch import Batch

    columns = {"x": [float(n) for n in range(rows)], "y": [n % 2 for n in range(rows)]}
    with closing(open_log(path, writer=True)) as log, log.transaction() as txn:
        txn.append(
            "rows",
            Batch.of(pa.record_batch(columns)).records,
        )


@pytest.fixture
def silent() -> Iterator[int]:
    """A port at which connections are accepted, and nothing is ever said."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("number", "within"), [(signal.SIGINT, SECONDS), pytest.param(signal.SIGTERM, 10.0, marks=pytest.mark.slow)]
)
def test_while_a_learner_learns(number: int, within: float, tmp_path: Path) -> None:
    """It is cut off; nothing was committed of the round, and the next start learns it again."""
    (tmp_path / "slow.py").write_text(LEARNING)
    numbered(tmp_path / "slow.headrace", 50)
    process = begin("run", "slow.py", cwd=tmp_path)
    wait_until(lambda: (tmp_path / "learning").exists())
    assert ended(process, number, within)[0] == 128 + number
    with closing(open_log(tmp_path / "slow.headrace", writer=False)) as log:
        assert log.topics()["rows"].rows == 50


def test_a_query_that_takes_for_ever(tmp_path: Path) -> None:
    numbered(tmp_path / "a.headrace", 10)
    query = "select sum(a.range * b.range) from range(10000000) a, range(10000000) b"
    process = begin("sql", query, "--log", "a.headrace", cwd=tmp_path)
    wait_until(lambda: processor_seconds(process.pid) > 1.0)
    code, out, err = ended(process, signal.SIGINT)
    assert (code, out, err) == (130, "", "")


def test_a_tail_that_waits(tmp_path: Path) -> None:
    numbered(tmp_path / "a.headrace", 2)
    process = begin("topics", "cat", "rows", "-f", "--log", "a.headrace", cwd=tmp_path)
    assert process.stdout is not None
    assert [json.loads(process.stdout.readline())["x"] for _ in range(2)] == [0.0, 1.0]
    assert ended(process, signal.SIGINT)[::2] == (130, "")


@pytest.mark.parametrize("until", [[], ["--until-caught-up"]])
def test_a_server_that_does_not_answer(until: list[str], silent: int, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import headrace as hr\n"
        'app = hr.App("shop")\n'
        f'db = app.postgres("postgresql://u:secret@127.0.0.1:{silent}/x", tables="public.t")\n'
        'db["public.t"].to("copy")\n'
    )
    process = begin("run", "shop.py", *until, cwd=tmp_path)
    told(process.stderr, "still waiting")
    code, _, err = ended(process, signal.SIGINT)
    assert code in ((130,) if until else (0, 130))
    assert "secret" not in err


def test_a_broker_that_does_not_answer(silent: int, tmp_path: Path) -> None:
    process = begin("topics", "list", "--log", f"kafka://127.0.0.1:{silent}", cwd=tmp_path)
    time.sleep(1.0)
    assert process.poll() is None
    assert ended(process, signal.SIGINT)[0] == 130


def test_a_pipeline_that_has_nothing_to_do_ends_cleanly(tmp_path: Path) -> None:
    (tmp_path / "idle.py").write_text(
        'import headrace as hr\napp = hr.App("idle")\napp.topic("t", append=True).to("u")\n'
    )
    process = begin("run", "idle.py", cwd=tmp_path)
    told(process.stderr, "running")
    code, out, _ = ended(process, signal.SIGTERM)
    assert (code, out) == (0, "")


def test_a_python_program(tmp_path: Path) -> None:
    """`app.run()` in a program of the user's own ends likewise."""
    (tmp_path / "slow.py").write_text(LEARNING + "\napp.run()\n")
    numbered(tmp_path / "slow.headrace", 50)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = Child([sys.executable, "slow.py"], cwd=tmp_path, text=True, **streams)
    wait_until(lambda: (tmp_path / "learning").exists())
    assert ended(process, signal.SIGINT)[0] == 130


FORKING = """
import os, signal, time
from headrace.engines.local.signals import GRACE_SECONDS, Signals
with Signals() as signals:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    ended = os.waitpid(child, 0)[1]
    time.sleep(GRACE_SECONDS[signal.SIGINT] + 0.3)
    print(os.WTERMSIG(ended), signals.came)
"""


def test_a_signal_of_a_forked_child_is_not_its_parents(tmp_path: Path) -> None:
    """Data loaders fork, and end their workers by SIGTERM."""
    done = run_python([sys.executable, "-c", FORKING], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("15 0\n", 0), done.stderr


def test_a_demo_ends_with_its_servers(tmp_path: Path) -> None:
    """Where scikit-learn learns, in the main thread: it took KeyboardInterrupt for an early end of its training."""
    short = Path(tempfile.mkdtemp(prefix="hr-"))  # the path of a Unix socket may have 107 characters
    short.chmod(0o755)
    own = {**os.environ, "TMPDIR": str(short)}
    process = begin("demo", "mnist", "--model", "mlp", "--epochs", "500", cwd=tmp_path, env=own)
    told(process.stdout, "learning the topic")
    code, _, err = ended(process, signal.SIGINT)
    assert code == 130, err
    assert not list(short.glob("headrace-demo-pg-*"))
    shutil.rmtree(short)


def test_a_snapshot(database: Database, tmp_path: Path) -> None:
    """One that waits for a lock of somebody else's."""
    database.execute("create table big (id int primary key)")
    (tmp_path / "shop.py").write_text(
        "import headrace as hr\n"
        'app = hr.App("snap")\n'
        f'db = app.postgres("{database.dsn}", tables=r"public\\.big")\n'
        'db["public.big"].to("copy")\n'
    )
    with psycopg.connect(database.dsn) as other:
        other.execute("lock table big in access exclusive mode")
        process = begin("run", "shop.py", cwd=tmp_path)
        told(process.stderr, "still waiting")
        assert ended(process, signal.SIGINT)[0] in (0, 130)


@pytest.mark.parametrize("delay", [0.0, 0.15])
def test_while_it_is_imported(delay: float, tmp_path: Path) -> None:
    """A process of its own: one that is forked has imported everything."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([HEADRACE, "topics", "list"], cwd=tmp_path, text=True, **streams)
    # Before that it is Python that starts.
    wait_until(lambda: process.poll() is not None or "numpy" in Path(f"/proc/{process.pid}/maps").read_text())
    time.sleep(delay)
    code, out, err = ended(process, signal.SIGINT)
    assert code in (-signal.SIGINT, 130), err  # a shell calls both 130
    assert (out, err) == ("", "")


@pytest.mark.parametrize("what", ["log", "topics"])
def test_a_start_that_finds_no_broker_ends_when_it_is_told_to(what: str, silent: int, tmp_path: Path) -> None:
    cluster = f"kafka://127.0.0.1:{silent}"
    rows = {"log": 'app.topic("t", append=True)', "topics": f'app.debezium({cluster!r}, prefix="p")["public.t"]'}[what]
    log = cluster if what == "log" else "x.headrace"
    (tmp_path / "away.py").write_text(f'import headrace as hr\napp = hr.App("away", log={log!r})\n{rows}.to("u")\n')
    process, begun = begin("run", "away.py", "--start-timeout", "2", cwd=tmp_path), time.monotonic()
    out, err = process.communicate(timeout=60)
    # The client's own patience is half a minute; what a busy machine takes to start is not the wait.
    assert time.monotonic() - begun < 20
    assert (process.returncode, out) == (1, "")
    assert f"127.0.0.1:{silent}" in err and "cannot be reached" in err and "Traceback" not in err


def processor_seconds(pid: int) -> float:
    """Return how long a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
