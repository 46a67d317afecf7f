"""Single predictions a second over HTTP, beside MLServer and BentoML on the same scikit-learn model; and hot swaps.

Each server is one process that nothing else asks, and `wrk` asks it over 8 connections, one row a request. MLServer and
BentoML live in environments of their own, made here when they are not there; one that cannot be installed is left out,
and said. ``--rows`` is how many thousand requests' worth of time each takes: 10,000 rows are 10 seconds.

The swaps: a model whose answers name their own version is swapped ten times a second while it is asked; `wrk` looks at
every answer. No request may fail, none may be mixed, and the 99th percentile may be 1.5 times of that without swaps.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from headrace.testing.servers.places import free_port

CONNECTIONS = 8
TIMES = 3.0
SLOWER = 1.5
ROUNDS = 5
MLSERVER = ("mlserver==1.7.*", "mlserver-sklearn==1.7.*")
BENTOML = ("bentoml==1.4.*", "scikit-learn")
BODY = '{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP64","data":[5.1,3.5,1.4,0.2]}]}'

MODEL = """
import numpy as np
from sklearn.linear_model import LinearRegression
rng = np.random.default_rng(0)
X = rng.random((100, 4))
model = LinearRegression().fit(X, X @ [1.0, 2.0, 3.0, 4.0] + 1.0)
"""
OURS = (
    MODEL
    + """
import headrace as hr
app = hr.App("linear", log="linear.headrace")
served = app.model("linear", model, features=["a", "b", "c", "d"], target="y")
served.predict(app.topic("rows", append=True)).to("answers")
served.serve()
"""
)
BENTO = (
    MODEL
    + """
import bentoml
@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Linear:
    @bentoml.api
    def predict(self, x: list[list[float]]) -> list[float]:
        return model.predict(np.asarray(x)).tolist()
"""
)
SWAPPED = """
import sys, threading, time
import numpy as np
import headrace as hr
from headrace.serve.settings import ServeSettings

class Counting:
    deterministic = True
    def __init__(self):
        self.rows = 0
        self.weights = np.zeros(1000)
    def learn(self, X, y=None):
        self.rows += len(X)
    def predict(self, X):
        return (X[:, 0] + 1.0) * self.rows
    ready = True
    def parameters(self):
        return {}
    def state(self):
        return {"rows": self.rows, "weights": self.weights.copy()}
    def restore(self, state):
        self.rows, self.weights = int(state["rows"]), np.asarray(state["weights"])

app = hr.App("swapped", log="swapped.headrace")
model = app.model("counting", Counting(), features=["x"], versions=1)
model.learn(app.topic("rows", append=True)).serve(output="y", model_time=False)
with app.start(serve=ServeSettings(port=int(sys.argv[1]))) as running:
    while True:
        if sys.argv[2] == "swaps":
            running.append("rows", [{"x": 1.0}])
        time.sleep(0.1)
"""
# Version n + 1 answers 2 n at x = 1: an answer of another version than its header says is seen.
CHECK = """
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() mixed, failed, newest = 0, 0, 0 end
function response(status, headers, body)
  local version = tonumber(headers["headrace-version"])
  local y = tonumber(string.match(body, '"y":([0-9.]+)'))
  if status ~= 200 or version == nil or y == nil then failed = failed + 1
  elseif y ~= 2 * (version - 1) then mixed = mixed + 1
  elseif version > newest then newest = version end
end
function done(summary, latency, requests)
  local m, f, n = 0, 0, 0
  for _, t in ipairs(threads) do m, f, n = m + t:get("mixed"), f + t:get("failed"), math.max(n, t:get("newest")) end
  local e = summary.errors
  f = f + e.connect + e.read + e.write + e.timeout
  io.write(string.format('RESULT {"mixed":%d,"failed":%d,"versions":%d,"p99":%.3f,"requests":%d}\\n',
    m, f, n, latency:percentile(99) / 1000, summary.requests))
end
"""


def run(rows: int) -> list[dict[str, Any]]:
    """Ours by the protocol that MLServer speaks, ours by GET, the others, and the swaps."""
    if shutil.which("wrk") is None:
        raise SystemExit("this needs wrk: apt-get install wrk")
    seconds = max(2, rows // 1000)
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        protocol, by_get = _ours(home, seconds)
        others = {"MLServer": _measured(_mlserver, home, seconds), "BentoML": _measured(_bentoml, home, seconds)}
        figures = [_figure(f"against {name}", protocol, found) for name, found in others.items()]
        found = [*figures, _figure("GET against MLServer", by_get, others["MLServer"])]
        return [item for item in found if item["reference"]] + [_swaps(home, seconds)]


def _figure(name: str, ours: float, reference: float | str) -> dict[str, Any]:
    if isinstance(reference, str):
        print(f"{name}: left out: {reference}", file=sys.stderr)
        return {"reference": 0}
    figure = {"name": name, "ours": ours, "reference": reference, "unit": "1/s", "ratio": ours / reference}
    return {**figure, "target": TIMES}


def _measured(server: Any, home: Path, seconds: int) -> float | str:
    """Requests a second of another server, or why there are none."""
    try:
        return float(server(home, seconds))
    except (subprocess.CalledProcessError, TimeoutError, OSError) as error:
        return f"{type(error).__name__}: {error}"


# -- the servers ------------------------------------------------------------------------------------------------------


def _ours(home: Path, seconds: int) -> tuple[float, float]:
    (home / "linear.py").write_text(OURS)
    port = free_port()
    command = [
        sys.executable,
        "-c",
        "from headrace.cli.main import main; main()",
        "serve",
        "linear.py",
        "--port",
        str(port),
    ]
    with _server(command, home, f"http://127.0.0.1:{port}/v2/health/ready"):
        protocol = _wrk(f"http://127.0.0.1:{port}/v2/models/linear/infer", home, seconds, body=BODY)
        return protocol, _wrk(f"http://127.0.0.1:{port}/prediction?a=5.1&b=3.5&c=1.4&d=0.2", home, seconds)


def _mlserver(home: Path, seconds: int) -> float:
    python = environment(*MLSERVER)
    folder = home / "mlserver"
    folder.mkdir()
    save = MODEL + "\nimport joblib; joblib.dump(model, 'model.joblib')"
    subprocess.run([python, "-c", save], cwd=folder, check=True)
    port = free_port()
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    settings = {"parallel_workers": 0, "host": "127.0.0.1", "debug": False, **ports}
    (folder / "settings.json").write_text(json.dumps(settings))
    about = {"name": "linear", "implementation": "mlserver_sklearn.SKLearnModel"}
    (folder / "model-settings.json").write_text(json.dumps({**about, "parameters": {"uri": "./model.joblib"}}))
    command = [str(python), "-m", "mlserver.cli.main", "start", "."]
    program = python.with_name("mlserver")
    command = [str(program), "start", "."] if program.exists() else command
    with _server(command, folder, f"http://127.0.0.1:{port}/v2/models/linear/ready"):
        return _wrk(f"http://127.0.0.1:{port}/v2/models/linear/infer", folder, seconds, body=BODY)


def _bentoml(home: Path, seconds: int) -> float:
    python = environment(*BENTOML)
    folder = home / "bentoml"
    folder.mkdir()
    (folder / "service.py").write_text(BENTO)
    port = free_port()
    command = [str(python.with_name("bentoml")), "serve", "service:Linear", "--port", str(port), "--host", "127.0.0.1"]
    with _server(command, folder, f"http://127.0.0.1:{port}/readyz"):
        return _wrk(f"http://127.0.0.1:{port}/predict", folder, seconds, body='{"x":[[5.1,3.5,1.4,0.2]]}')


@contextlib.contextmanager
def _server(command: list[str], folder: Path, ready: str) -> Iterator[None]:
    """A process, from when it answers; ended with the block, and its children with it."""
    variables = {**os.environ, "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder)}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=variables, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"{command[0]} does not answer: {(folder / 'server.log').read_text()[-800:]}")
            time.sleep(0.1)
        yield
    finally:
        # A session of its own: workers that it has begun are in its group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _wrk(url: str, folder: Path, seconds: int, *, body: str = "") -> float:
    """Requests a second, after a second of warming up.

    Raises:
        OSError: a request failed.
    """
    script = folder / "request.lua"
    lines = [f'wrk.method = "POST"; wrk.headers["Content-Type"] = "application/json"; wrk.body = [==[{body}]==]']
    script.write_text("\n".join(lines if body else []))
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", "-s", str(script)]
    subprocess.run([*command, "-d1s", url], check=True, capture_output=True)
    done = subprocess.run([*command, f"-d{seconds}s", url], check=True, capture_output=True, text=True)
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise OSError(f"requests to {url} failed:\n{done.stdout}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def _swaps(home: Path, seconds: int) -> dict[str, Any]:
    """The 99th percentile in milliseconds with swaps against that without; what failed or was mixed."""
    runs: dict[str, list[dict[str, Any]]] = {"calm": [], "swaps": []}
    for number in range(ROUNDS):
        for mode, found in runs.items():
            found.append(_asked_while(home, mode, number, max(2, seconds // 2)))
    for item in runs["swaps"]:
        assert item["versions"] > 5, item
        if item["failed"] or item["mixed"]:
            raise SystemExit(f"during swaps: {item}")
    calm, swapped = (statistics.median(item["p99"] for item in found) for found in runs.values())
    figure = {"name": "p99 during swaps", "ours": swapped, "reference": calm, "unit": "ms"}
    return {**figure, "ratio": swapped / calm, "at_most": SLOWER, "details": runs}


def _asked_while(home: Path, mode: str, number: int, seconds: int) -> dict[str, Any]:
    folder = home / f"{mode}-{number}"
    folder.mkdir()
    (folder / "swapped.py").write_text(SWAPPED)
    (folder / "check.lua").write_text(CHECK)
    port = free_port()
    command = [sys.executable, "swapped.py", str(port), mode]
    with _server(command, folder, f"http://127.0.0.1:{port}/v2/health/live"):
        url = f"http://127.0.0.1:{port}/prediction?x=1"
        wrk = ["wrk", "-t1", f"-c{CONNECTIONS}", "--latency", "-s", "check.lua"]
        subprocess.run([*wrk, "-d1s", url], check=True, capture_output=True, cwd=folder)
        done = subprocess.run([*wrk, f"-d{seconds}s", url], check=True, capture_output=True, text=True, cwd=folder)
    line = next(item for item in done.stdout.splitlines() if item.startswith("RESULT "))
    return dict(json.loads(line.removeprefix("RESULT ")))
