"""What a pipeline has left, and what Spark has done for it."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from headrace.testing.servers import KafkaBroker
from tests.crash import harness


def outcome(broker: KafkaBroker, name: str) -> tuple[list[Any], str | None]:
    """Return the messages of a pipeline's output, and its model's hash."""
    log = f"kafka://{broker.bootstrap}"
    held = harness.contents(log, name=name, outputs=[f"{name}-out"], models=["species"], positions=False)
    return harness.committed(broker.bootstrap, f"{name}-out", at=_all_of), held["species"][0]


def _all_of(message: Any) -> tuple[Any, ...]:
    return message.key(), message.value(), message.headers()


def jobs(context: Any) -> list[str]:
    """Return descriptions of all jobs, the newest first, as Spark's page shows them."""
    url = f"{context.uiWebUrl}/api/v1/applications/{context.applicationId}/jobs"
    with urllib.request.urlopen(url, timeout=10) as response:
        return [job["description"] for job in json.load(response)]
