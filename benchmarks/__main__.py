"""Run benchmarks: `python -m benchmarks NAME [--rows N] [--json]`; NAME is one of the table below, or `all`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from importlib.metadata import version
from typing import Any

# name -> (default rows, target ratio of each figure)
BENCHMARKS: dict[str, tuple[int, tuple[float | None, ...]]] = {
    "capture": (1_000_000, (0.9, 0.7, 0.7)),
    "snapshot": (1_000_000, (0.5,)),
    "pipeline": (1_000_000, (0.8,)),
    "latency": (30_000, (None, None)),
    "kmeans": (1_000_000, (0.5, 0.8)),
    "decode": (1_000_000, (None, None)),
    "memory": (10_000_000, (None,)),
    "transaction": (5_000_000, (None,)),
}
IN_ALL = ("capture", "snapshot", "pipeline", "latency", "kmeans")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"cpus": os.cpu_count(), "machine": platform.machine(), "system": platform.platform()}


def versions() -> dict[str, str]:
    """Versions of what was measured."""
    names = ("headrace", "numpy", "pyarrow", "psycopg", "apsw", "adbc-driver-postgresql")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def measure(name: str, rows: int | None) -> dict[str, Any]:
    """One benchmark's figures: the first one on top, the others under ``also``."""
    default, targets = BENCHMARKS[name]
    found = importlib.import_module(f"benchmarks.{name}").run(rows or default)
    for figure, target in zip(found, targets, strict=False):
        if target is not None:
            figure["target"] = target
    return {**found[0], "machine": machine(), "versions": versions(), "also": found[1:]}


def show(result: dict[str, Any]) -> None:
    """A line for each figure."""
    for figure in (result, *result["also"]):
        target = f" (target {figure['target']})" if "target" in figure else ""
        print(
            f"{figure['name']:<16} ours {figure['ours']:>14,.1f}  reference {figure['reference']:>14,.1f} "
            f"{figure['unit']:<7} ratio {figure['ratio']:.2f}{target}"
        )
        if "picture" in figure:
            print(figure["picture"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--json", action="store_true", help="one JSON object a benchmark on standard output")
    arguments = parser.parse_args()
    for name in IN_ALL if arguments.name == "all" else (arguments.name,):
        result = measure(name, arguments.rows)
        if arguments.json:
            print(json.dumps(result))
        else:
            show(result)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
