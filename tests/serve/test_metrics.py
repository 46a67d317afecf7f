"""Numbers for Prometheus, and traces."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sklearn.linear_model import LinearRegression

import headrace as hr

from .client import FISH, SEEDS, fish, serving


def numbers(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def test_requests_are_counted_and_models_described(tmp_path: Path) -> None:
    with serving(fish(tmp_path / "fish.headrace"), FISH) as (_, client):
        for _ in range(3):
            client.get("/prediction", **SEEDS)
        client.get("/prediction", length="x")
        client.get("/v2/models/weight")
        client.get("/secret-path")
        got = client.get("/metrics")
    assert got.headers["content-type"].startswith("text/plain")
    assert "secret-path" not in got.body.decode()
    found = numbers(got.body.decode())

    def number(name: str, **labels: str) -> float:
        return found[f"headrace_{name}", frozenset(labels.items())]

    assert number("requests_total", route="/prediction", status="200") == 3
    assert number("requests_total", route="/prediction", status="422") == 1
    assert number("requests_total", route="/v2/models/{model}", status="200") == 1
    assert number("requests_total", route="other", status="404") == 1
    assert number("request_seconds_count", route="/prediction") == 4
    assert number("model_version", model="weight") == 1
    assert number("model_learned", model="weight") == 6
    assert number("model_offset", model="weight", topic="measured") == 6
    assert number("model_lag_rows", model="weight", topic="measured") == 0


def test_dead_letters_are_counted(tmp_path: Path) -> None:
    rows = [*FISH, {**FISH[0], "Species": "pike"}]
    with serving(fish(tmp_path / "fish.headrace"), rows) as (_, client):
        found = numbers(client.get("/metrics").body.decode())
    assert found["headrace_dead_letters", frozenset({("topic", "measured.dlq")})] == 1
    assert found["headrace_model_rejected", frozenset({("model", "weight")})] == 1


def test_grades_errors_and_alarms_are_told(tmp_path: Path) -> None:
    app = hr.App("fish", log=tmp_path / "fish.headrace")
    measured, weighed = app.topic("measured", append=True), app.topic("weighed", append=True)
    estimator = LinearRegression().fit([[1.0], [2.0]], [1.0, 2.0])
    model = app.model("weight", estimator, features=["Length"], target="Weight")
    predicted = model.predict(measured).to("predicted")
    metric = hr.metrics.relative_error
    graded = predicted.grade(weighed, on="Fish_Id", within="1 min", metric=metric).to("graded")
    windows = graded.window(2).agg(mean=hr.metrics.mean("error")).to("windows")
    windows.above(0.15, column="mean").to("alarms")
    with serving(app) as (running, client):
        for i in range(5):
            running.append("measured", [{"Fish_Id": i, "Length": 4.0}])
            if i < 4:
                running.append("weighed", [{"Fish_Id": i, "Weight": 5.0}])
        running.wait()
        found = numbers(client.get("/metrics").body.decode())
    of = {name: value for (name, labels), value in found.items() if not dict(labels).get("status")}
    assert of["headrace_windowed_error"] == pytest.approx(0.2)
    assert of["headrace_window_value"] == pytest.approx(0.2)
    assert of["headrace_alarms"] >= 1
    # All five stay until their time is over: a label may be corrected.
    assert of["headrace_pending_labels"] == 5
    assert [value for (name, labels), value in found.items() if dict(labels).get("status") == "graded"] == [4]


TRACED = """
import sys
sys.path.insert(0, {tests!r})
from serve.client import FISH, SEEDS, fish, serving
app = fish({log!r})
parent = {{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}
with serving(app, FISH) as (_, client):
    assert client.get("/prediction", parent, **SEEDS).status == 200
"""


def test_traces_go_to_the_collector(tmp_path: Path) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    try:
        script = TRACED.format(tests=str(Path(__file__).parents[1]), log=str(tmp_path / "fish.headrace"))
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}", "PATH": ""}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    finally:
        collector.shutdown()
        collector.server_close()
    spans = [span for message in received for r in message.resource_spans for s in r.scope_spans for span in s.spans]
    assert Counter(item.name for item in spans) == {"GET /prediction": 1, "predict": 1, "commit to prediction": 6}
    request = next(item for item in spans if item.name == "GET /prediction")
    predict = next(item for item in spans if item.name == "predict")
    assert request.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert predict.parent_span_id == request.span_id
    about = {attribute.key: attribute.value for attribute in predict.attributes}
    assert about["headrace.version"].int_value == 1
    rounds = [item for item in spans if item.name == "commit to prediction"]
    assert all(item.start_time_unix_nano <= item.end_time_unix_nano for item in rounds)
