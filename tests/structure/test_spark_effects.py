"""Nothing under engines/spark has effects: what an executor does may be done twice, or by a task that was given up."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SPARK = Path(__file__).parents[2] / "src" / "headrace" / "engines" / "spark"
WRITERS = ("headrace.kafka.producer", "headrace.log", "headrace.produce", "headrace.sinks", "headrace.registry")
WRITING = {"transaction", "append", "append_encoded", "adopt", "commit", "produce", "send", "store", "acknowledge"}
MODULES = sorted(SPARK.glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=[path.stem for path in MODULES])
def test_no_module_of_spark_can_write(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert [name for name in imported if name.startswith(WRITERS)] == []


def test_an_executor_calls_nothing_that_writes() -> None:
    tree = ast.parse((SPARK / "executor.py").read_text())
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    written = [call.attr for call in calls if isinstance(call, ast.Attribute) and call.attr in WRITING]
    # Lists grow, too.
    assert set(written) <= {"append"}
