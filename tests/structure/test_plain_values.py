"""Users' values become Python's in `plain_values` only: Arrow's own ways raise, round or depend on what is installed.

A call of `as_py` or `to_pylist` elsewhere is of values of ours: counts, offsets, names, texts and bytes that we made.
Each room says why, and how many there are. For values of a user take `plain_values.values`, `rows`, `texts` or `keys`.
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
ROOMS = {
    "plain_values.py": (99, "this is the place"),
    "capture": (13, "JSON of refused values; bytes and texts of keys; names of columns; words of infinity; prefixes"),
    "dataset": (1, "the order of rows"),
    "engines": (5, "a status; floats; an offset; what a training came to"),
    "grade": (5, "a boolean; numbers of a sum; keys that we packed; no times, and bytes of what is no text"),
    "inspect": (3, "counts, scores of a metrics topic, and lines of JSON that we made"),
    "learn": (2, "lengths of lists"),
    "produce": (5, "texts of a file; names of tasks"),
    "replay": (4, "records of steps; lines of a metrics topic: names, counts, floats"),
    "serve": (3, "lengths of texts; a status; numbers of a request"),
    "sinks": (3, "names of columns; an index, and a text"),
    "wire.py": (1, "bytes of messages that we made"),
    "step": (3, "errors, which are floats; a weight, which is a number"),
}


def test_users_values_become_pythons_in_one_place() -> None:
    found: Counter[str] = Counter()
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith(tuple(FOLDERS)):
            nodes = ast.walk(ast.parse(path.read_text()))
            found[name.partition("/")[0]] += sum(
                isinstance(node, ast.Attribute) and node.attr in NAMES for node in nodes
            )
    more = {name: count for name, count in found.items() if count > ROOMS.get(name, (0, ""))[0]}
    assert not more, (
        f"{more}: as_py and to_pylist raise where Python has no such value; take headrace.plain_values, or say why "
        "here the value cannot be a user's"
    )
