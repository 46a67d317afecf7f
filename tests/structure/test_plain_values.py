"""Users' values become Python's in `plain_values` only: Arrow's own ways raise, round or depend on what is installed.

A call of `as_py` or `to_pylist` elsewhere is of values of ours: counts, offsets, names, texts and bytes that we made.
Each place says why, and how many there are. For values of a user take `plain_values.values`, `rows`, `texts` or `keys`.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "headrace"
NAMES = frozenset({"as_py", "to_pylist"})

FOLDERS = {
    "demos/": "rows of our own demos, whose types are known",
    "formats/": "texts, bytes and numbers of messages; users' values become text in json_text and column_text",
}
FILES = {
    "plain_values.py": (99, "this is the place"),
    "capture/postgres/snapshot.py": (1, "JSON of refused values, made by the server"),
    "cli_topics_change.py": (1, "names of tasks"),
    "comparison.py": (2, "errors, which are floats"),
    "dataset/examples.py": (1, "the order of rows"),
    "engines/local/explain.py": (1, "records of steps"),
    "engines/local/gauges.py": (2, "floats"),
    "engines/local/held.py": (1, "lines of a metrics topic: names, counts, floats"),
    "engines/local/lineage.py": (1, "lines of a metrics topic"),
    "engines/local/running.py": (1, "a status"),
    "engines/local/sinking.py": (1, "an offset"),
    "engines/local/steps.py": (1, "records of steps"),
    "engines/local/tasks.py": (1, "what a training came to"),
    "grade/compare.py": (1, "a boolean"),
    "grade/metrics.py": (1, "numbers of a sum: whole numbers, decimals and floats"),
    "grade/pairs/keys.py": (1, "keys that we packed"),
    "grade/spans/groups.py": (2, "no times, and bytes of what is no text"),
    "learn/images.py": (2, "lengths of lists"),
    "plot.py": (2, "counts, and scores of a metrics topic"),
    "serve/arrow.py": (1, "lengths of texts"),
    "serve/inference.py": (1, "a status"),
    "serve/tensors.py": (1, "numbers of a request"),
    "sinks/changes.py": (1, "names of columns"),
    "sinks/parquet.py": (2, "an index, and a text"),
    "step.py": (1, "a weight, which is a number"),
}


def test_users_values_become_pythons_in_one_place() -> None:
    found: Counter[str] = Counter()
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith(tuple(FOLDERS)):
            nodes = ast.walk(ast.parse(path.read_text()))
            found[name] += sum(isinstance(node, ast.Attribute) and node.attr in NAMES for node in nodes)
    more = {name: count for name, count in found.items() if count > FILES.get(name, (0, ""))[0]}
    assert not more, (
        f"{more}: as_py and to_pylist raise where Python has no such value; take headrace.plain_values, or say why "
        "here the value cannot be a user's"
    )
