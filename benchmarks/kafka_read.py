"""Debezium's topics read, decoded and learned (k-means, every=1000), against a bare librdkafka loop and Quix Streams.

The bare loop is `consume(10000)` with the settings that make it fastest, and looks at the length of each value only.
Both are timed from the start of consuming to the last message; ours with its start, too, stands in the details.
Quix Streams 3 runs in an environment of its own, made at the first use, and is timed from its first message.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import headrace as hr
from benchmarks.environment import environment
from benchmarks.kafka_consumer import bare
from benchmarks.kafka_debezium import AVRO, AVRO_ENVELOPE, ENVELOPE, PLAIN, TABLE, fill, patterns
from benchmarks.kafka_profile import Sampler
from headrace.testing.servers import KafkaBroker, postgres, schema_registry

REPEATS = 3
QUIX = "quixstreams==3.28.1"
FEATURES = ["b", "c", "d", "e"]


def run(rows: int, *, profile: bool = False) -> list[dict[str, Any]]:
    """Messages a second: flattened JSON against both; the larger formats, with fewer rows, against the bare loop."""
    rows = max(1, rows // 1000) * 1000
    less = max(1, rows // 5000) * 1000
    python = quix_environment()
    with postgres() as server, KafkaBroker() as broker, schema_registry() as registry:
        found = patterns(broker, server, registry)
        results = []
        for number, kind in enumerate((PLAIN, AVRO, ENVELOPE, AVRO_ENVELOPE)):
            case = Case(broker, registry, kind, f"read{number}", rows if kind == PLAIN else less)
            fill(broker, case.topic, found[kind], case.rows)
            results += case.measure(profile=profile)
            if kind == PLAIN:
                results += case.against_quix(python, less, results[0]["ours"])
    targets = {PLAIN: 0.4, AVRO: 0.3, ENVELOPE: 0.3}
    for result in results:
        if result["name"] in targets:
            result["target"] = targets[result["name"]]
    return results


@dataclass(frozen=True, slots=True)
class Case:
    """A topic of one kind."""

    broker: KafkaBroker
    registry: str
    kind: str
    prefix: str
    rows: int

    @property
    def topic(self) -> str:
        return f"{self.prefix}.public.{TABLE}"

    def measure(self, *, profile: bool) -> list[dict[str, Any]]:
        """Pairs of a bare loop and ours."""
        bare(self.broker.bootstrap, self.topic, self.rows)
        reference, ours, whole = [], [], []
        for number in range(REPEATS):
            reference.append(bare(self.broker.bootstrap, self.topic, self.rows))
            start, seconds = self._learn(f"{self.prefix}-{number}")
            ours.append(seconds)
            whole.append(start + seconds)
        with Sampler(wanted=profile) as sampler:
            if profile:
                self._learn(f"{self.prefix}-profiled")
        details = {"rows": self.rows, "reference": "bare consume(10000)", "pairs": [reference, ours]}
        details["ours with its start, s"] = whole
        return [
            {
                "name": self.kind,
                "reference": self.rows / statistics.median(reference),
                "ours": self.rows / statistics.median(ours),
                "ratio": statistics.median(r / o for r, o in zip(reference, ours, strict=True)),
                "unit": "rows/s",
                "details": details,
                "profile": sampler.text,
            }
        ]

    def _learn(self, name: str) -> tuple[float, float]:
        """Seconds of the start, and from there to caught up, of a pipeline that learns the topic."""
        app = hr.App(name, log=f"kafka://{self.broker.bootstrap}", registry=self.registry)
        topics = app.debezium(prefix=self.prefix)
        model = app.model("m", hr.KMeans(k=3, decay=1.0), features=FEATURES)
        model.learn(topics[f"public.{TABLE}"], every=1000)
        began = time.perf_counter()
        with app.start() as running:
            started = time.perf_counter()
            running.wait(600)
            ended = time.perf_counter()
            assert running["m"].learned == self.rows, f"{running['m'].learned} of {self.rows} learned"
        return started - began, ended - started

    def against_quix(self, python: Path, rows: int, ours: float) -> list[dict[str, Any]]:
        """Against Quix Streams: learning each message by itself, as its users write it, and 1,000 at once as we do."""
        found = []
        script = Path(__file__).with_name("kafka_quix.py")
        for name, cut, target in (("json : quix", 1, {"target": 8.0}), ("json : quix 1,000", 1000, {})):
            command = [str(python), str(script), self.broker.bootstrap, self.topic, str(rows), str(cut)]
            speeds = []
            for _ in range(REPEATS):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
                speeds.append(rows / float(done.stdout.split()[-1]))
            reference = statistics.median(speeds)
            details = {"rows": rows, "reference": QUIX, "rows learned at once": cut, "speeds": speeds}
            found.append({"name": name, "reference": reference, "ours": ours, "ratio": ours / reference, **target})
            found[-1] |= {"unit": "rows/s", "details": details}
        return found


def quix_environment() -> Path:
    """The interpreter of an environment with Quix Streams, made when it is not there."""
    return environment(QUIX, "numpy")
