"""Run benchmarks: `python -m benchmarks NAME [--rows N] [--json] [--profile] [--tail-minutes N]`.

NAME is one of the table below; or `all`, those that need nothing but Python (they make environments of their own for
what stands beside, and leave out what cannot be installed); or `kafka`, those that need Java too. `debezium-engine` and
`flink` need Java, too.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import platform
import sys
from importlib.metadata import version
from typing import Any

# name -> (default rows, target ratio of each figure)
BENCHMARKS: dict[str, tuple[int, tuple[float | None, ...]]] = {
    "capture": (1_000_000, ()),
    "debezium-engine": (200_000, ()),
    "tables": (300_000, ()),
    "columns": (6_000_000, ()),
    "snapshot": (1_000_000, (0.5,)),
    "pushdown": (1_000_000, (None, None)),
    "pipeline": (1_000_000, (0.8,)),
    "latency": (30_000, (None, None)),
    "kmeans": (1_000_000, (0.5, 0.8)),
    "decode": (1_000_000, (None, None)),
    "memory": (10_000_000, (None,)),
    "transaction": (5_000_000, (None,)),
    # These say their targets with their figures.
    "adapters": (20_000, ()),
    "evaluate": (60_000, ()),
    "sinks": (1_000_000, ()),
    "grade": (500_000, ()),
    "serve": (10_000, ()),
    "steady": (180_000, ()),
    "workers": (20_000, ()),
    "ui": (10_000_000, ()),
    "kafka-read": (1_000_000, ()),
    "kafka-capture": (500_000, ()),
    "kafka-latency": (30_000, ()),
    "kafka-transactions": (1_000_000, ()),
    "kafka-memory": (10_000_000, ()),
    "flink": (2_000_000, ()),
    # In an environment of its own (`make test-spark` makes it): .venv-spark/bin/python -m benchmarks spark
    "spark": (2_000_000, ()),
}
GROUPS = {
    "all": (
        "capture",
        "tables",
        "columns",
        "snapshot",
        "pipeline",
        "latency",
        "kmeans",
        "adapters",
        "evaluate",
        "sinks",
        "grade",
        "serve",
    ),
    "kafka": ("kafka-read", "kafka-capture", "kafka-latency", "kafka-transactions"),
}


def machine() -> dict[str, Any]:
    """Describe the machine that the figures were measured on."""
    return {"cpus": os.cpu_count(), "machine": platform.machine(), "system": platform.platform()}


def versions() -> dict[str, str]:
    """Versions of what was measured."""
    names = ("headrace", "numpy", "pyarrow", "psycopg", "apsw", "adbc-driver-postgresql", "confluent-kafka", "fastavro")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def measure(name: str, rows: int | None, **options: Any) -> dict[str, Any]:
    """One benchmark's figures: the first one on top, the others under ``also``.

    Args:
        options: what it can be told beside its rows.
    """
    default, targets = BENCHMARKS[name]
    run = importlib.import_module(f"benchmarks.{name.replace('-', '_')}").run
    for option in options:
        if option not in inspect.signature(run).parameters:
            raise SystemExit(f"{name} has no --{option.replace('_', '-')}")
    found = run(rows or default, **options)
    for figure, target in zip(found, targets, strict=False):
        if target is not None:
            figure["target"] = target
    return {**found[0], "machine": machine(), "versions": versions(), "also": found[1:]}


def verdict(figure: dict[str, Any]) -> str:
    """Say whether a figure's ratio is where it should be; "" where nothing is asked.

    >>> verdict({"ratio": 0.5, "target": 0.4}), verdict({"ratio": 1.2, "at_most": 1.1}), verdict({"ratio": 1.0})
    ('target 0.4 PASS', 'target <= 1.1 MISS', '')
    """
    if "at_most" in figure:
        return f"target <= {figure['at_most']} {'PASS' if figure['ratio'] <= figure['at_most'] else 'MISS'}"
    if "target" in figure:
        return f"target {figure['target']} {'PASS' if figure['ratio'] >= figure['target'] else 'MISS'}"
    return ""


def show(result: dict[str, Any]) -> None:
    """A line for each figure."""
    for figure in (result, *result["also"]):
        print(
            f"{figure['name']:<20} ours {figure['ours']:>14,.1f}  reference {figure['reference']:>14,.1f} "
            f"{figure['unit']:<7} ratio {figure['ratio']:6.2f} {verdict(figure)}".rstrip()
        )
        for part in ("picture", "profile"):
            if figure.get(part):
                print(figure[part])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*BENCHMARKS, *GROUPS])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--json", action="store_true", help="one JSON object a benchmark on standard output")
    parser.add_argument(
        "--profile", action="store_true", help="the busiest functions of our side: group kafka, with py-spy"
    )
    parser.add_argument("--tail-minutes", type=float, help="only the memory of a dashboard that follows a topic: ui")
    arguments = parser.parse_args()
    given = {"profile": arguments.profile, "tail_minutes": arguments.tail_minutes}
    options = {option: value for option, value in given.items() if value}
    for name in GROUPS.get(arguments.name, (arguments.name,)):
        if not arguments.json:
            print(f"{name}, {arguments.rows or BENCHMARKS[name][0]:,} rows", flush=True)
        result = measure(name, arguments.rows, **options)
        if arguments.json:
            print(json.dumps(result))
        else:
            show(result)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
