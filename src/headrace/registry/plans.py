"""Plans as the log remembers them, for those who look at it: what there is in a pipeline, and where rows go.

=================  =======================  ==========================================================
kind               name                     value
=================  =======================  ==========================================================
``plan``           APP                      the graph of the plan that ran last (`headrace.plan.graph`), and ``keep``:
                                            for how long, or up to which size, its topics keep rows
=================  =======================  ==========================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from headrace.registry.versions import Reads, Writes

KIND = "plan"


def record_plan(log: Reads, txn: Writes, app: str, graph: Mapping[str, Any]) -> None:
    """Note what runs on a log, unless it is noted already."""
    text = json.dumps(graph).encode()
    if log.records(KIND, app).get(app) != text:
        txn.put(KIND, app, text)


def read_plans(log: Reads) -> dict[str, dict[str, Any]]:
    """Return the graphs of the pipelines that ran on a log, by their names; none of logs of earlier versions."""
    return {app: json.loads(value) for app, value in log.records(KIND).items()}
