"""SIGKILL at the edges of a commit that carries what a pipeline on Kafka says of itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest

import headrace as hr
from headrace.formats.topic_formats import codec_for
from headrace.inspect.health import SILENT_SECONDS, read_status
from headrace.kafka.settings import KafkaLocation
from headrace.log.kafka import KafkaLog
from headrace.replay.verify import verify
from headrace.testing import KafkaBroker
from tests.processes import Child
from tests.waiting import wait_until

PROGRAM = """
import sys
import headrace as hr
name, log = sys.argv[1:]
app = hr.App(name, log=log)
app.model("line", hr.LinearRegression(), features=["x"], target="y").learn(app.topic(f"{name}.rows", append=True))
with app.start() as running:
    for number in range(1000):
        running.append(f"{name}.rows", [{"x": float(number), "y": 2.0 * number}])
"""


def declared(name: str, log: str) -> hr.App:
    app = hr.App(name, log=log)
    app.model("line", hr.LinearRegression(), features=["x"], target="y").learn(app.topic(f"{name}.rows", append=True))
    return app


@pytest.mark.parametrize(
    "edge",
    [
        pytest.param("engine.stepped", marks=pytest.mark.slow),
        "log.sent",
        pytest.param("log.after-commit", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_leaves_a_log_that_goes_on(broker: KafkaBroker, topic_prefix: str, edge: str) -> None:
    where, name = f"kafka://{broker.bootstrap}", topic_prefix
    variables = {**os.environ, "HEADRACE_FAULT": f"{edge}:6"}
    with Child([sys.executable, "-c", PROGRAM, name, where], env=variables, stderr=subprocess.PIPE) as child:
        assert child.wait(60) == -signal.SIGKILL
    location = KafkaLocation.parse(f"{where}/{name}")
    with closing(KafkaLog(location, writer=False, codec=codec_for())) as seen:
        said = read_status(seen)
        assert said.parts and not said.stopped and not said.failed  # the last word of a run that was killed
        assert verify(declared(name, where).plan(), seen).exit_code == 0
        with declared(name, where).start() as running:
            wait_until(lambda: read_status(seen).runs and str(os.getpid()) in read_status(seen).where)
            running.append(f"{name}.rows", [{"x": 1.0, "y": 2.0}])
            running.wait(60)
        # A broker answers a commit before its readers see what was committed.
        wait_until(lambda: read_status(seen).stopped)
        assert verify(declared(name, where).plan(), seen).exit_code == 0


@pytest.mark.slow
def test_a_killed_run_is_not_heard_of(broker: KafkaBroker, topic_prefix: str) -> None:
    where = f"kafka://{broker.bootstrap}"
    variables = {**os.environ, "HEADRACE_FAULT": "log.sent:6"}
    with Child([sys.executable, "-c", PROGRAM, topic_prefix, where], env=variables, stderr=subprocess.PIPE) as child:
        child.wait(60)
    with closing(KafkaLog(KafkaLocation.parse(f"{where}/{topic_prefix}"), writer=False, codec=codec_for())) as seen:
        begun = time.monotonic()
        wait_until(lambda: read_status(seen).silent)
        assert time.monotonic() - begun < read_status(seen).within + SILENT_SECONDS + 5
