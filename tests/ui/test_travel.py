"""A page at a place in time stays as it is, byte for byte, while the pipeline goes on."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from headrace.demos.fish import pipeline
from headrace.demos.fish.events import read_data
from headrace.serve.settings import ServeSettings
from tests.serve.client import Client

MODEL = "/models/weight"
PATHS = (
    "/",
    "/topics",
    "/topics/weight-diff",
    "/topics/weight-prediction?order=oldest",
    "/topics/weight-diff/40",
    "/topics/weight-diff/40/origin",
    "/topics/weight-diff/export?form=csv",
    "/models",
    MODEL,
    f"{MODEL}/1",
    f"{MODEL}/charts",
    f"{MODEL}/charts?x=time",
    f"{MODEL}/parameters",
    f"{MODEL}/compare?a=1&b=1",
    f"{MODEL}/ask?f.Species=salmon&f.Length=60&f.Height=12",
    "/alarms",
    "/sql?q=select+1",
    "/sql/result?q=select+count(*)%2C+max(error)+from+%22weight-diff%22",
)
COUNT, MORE = 180, 3_000


def pages(client: Client, at: str) -> dict[str, bytes]:
    found = {}
    for path in PATHS:
        got = client.get(f"/ui{path}{'&' if '?' in path else '?'}at={quote(at)}", {"Accept": "text/html"})
        assert got.status == 200, (path, got.status, got.body[:300])
        found[path] = got.body
    return found


def test_pages_of_then_stay_byte_for_byte_while_rows_come(tmp_path: Path) -> None:
    """Before the fish's retraining, and after it; thousands of rows later nothing in either is another."""
    data = read_data(None)
    app = pipeline.from_topics(tmp_path / "fish.headrace", data.training)
    with app.start(serve=ServeSettings(port=0)) as running:
        assert running.server is not None
        client = Client(running.server.url)
        for start in range(0, COUNT, 20):
            for machine, sent in data.sent.items():
                running.append(machine, sent.rows.slice(start, 20), key=["Fish_Id"])
            running.wait()
        before, after = "weight-diff:70", "weight-prediction:120"
        first = {at: pages(client, at) for at in (before, after)}
        assert b'data-live="model:weight/version">v1<' in first[before][MODEL]
        assert b'data-live="model:weight/version">v2<' in first[after][MODEL]
        assert b">v1</text>" in first[before]["/"] and b">v2</text>" in first[after]["/"]
        assert b"80 rows" in first[before][f"{MODEL}/charts"]
        assert first[before]["/alarms"] != first[after]["/alarms"]
        for number, start in enumerate(range(0, MORE, 2 * COUNT)):
            for machine, sent in data.sent.items():
                ids = pa.array(np.arange(10_000 + start, 10_000 + start + sent.rows.num_rows))
                at = sent.rows.schema.get_field_index("Fish_Id")
                rows = sent.rows.set_column(at, "Fish_Id", ids.cast(sent.rows.schema.field(at).type))
                running.append(machine, rows, key=["Fish_Id"])
            if not number:
                running.append("machine-measurement", [{"Fish_Id": "no number"}])
        running.wait(60)
        running.retrain("weight")
        for at, was in first.items():
            now = pages(client, at)
            assert [path for path in PATHS if now[path] != was[path]] == []
        assert pages(client, "")["/models"] != first[after]["/models"]
        health = client.get("/ui/health?at=weight-diff:70", {"Accept": "text/html"}).body
        assert b"A process is seen as it is now" in health  # the only page that says nothing of then
        client.close()
