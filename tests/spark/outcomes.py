"""What a pipeline has left, and what Spark has done for it."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from headrace.testing.servers import KafkaBroker
from tests.crash import harness

from . import pipelines


def outcome(broker: KafkaBroker, name: str, prefix: str) -> dict[str, Any]:
    """Return what two runs of the pipeline must agree on: messages of its outputs, in order, its models and counters.

    Which version predicts a row that is learned too depends on what arrived together: a replay of what each run has
    recorded compares these.
    """
    log = f"kafka://{broker.bootstrap}"
    models = ("species", "cheap")
    held = harness.contents(log, name=name, outputs=(), models=models, positions=False)
    rows = [json.loads(value) for _, value, _ in messages(broker, f"{name}-out")]
    outputs: dict[str, Any] = {
        "out rows": [(row["id"], row["x"], row["y"], row["status"]) for row in rows],
        "cheap rows": messages(broker, f"{name}-cheap"),
    }
    harness.verify(pipelines.build(log, name, prefix))
    return outputs | {model: held[model] for model in models}


def messages(broker: KafkaBroker, topic: str) -> list[Any]:
    """Return the committed messages of a topic; the time at which rows came is the same wherever they went."""
    if topic not in broker.admin().list_topics(timeout=10).topics:
        return []
    return harness.committed(broker.bootstrap, topic, at=_all_of)


def _all_of(message: Any) -> tuple[Any, ...]:
    return message.key(), message.value(), message.headers()


def gauges(context: Any, app: str) -> dict[str, int]:
    """Return a pipeline's own numbers, as Spark's page has them."""
    with urllib.request.urlopen(f"{context.uiWebUrl}/metrics/json/", timeout=10) as response:
        found = json.load(response)["gauges"]
    own = f"headrace.{app}."
    return {name.rpartition(own)[2]: gauge["value"] for name, gauge in found.items() if own in name}


def jobs(context: Any) -> list[str]:
    """Return descriptions of all jobs, the newest first, as Spark's page shows them."""
    url = f"{context.uiWebUrl}/api/v1/applications/{context.applicationId}/jobs"
    with urllib.request.urlopen(url, timeout=10) as response:
        return [job["description"] for job in json.load(response)]
