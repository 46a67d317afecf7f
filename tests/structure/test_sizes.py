"""Sizes that stay readable, and no loose ends."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "headrace"

FUNCTION_LINES = 60
PUBLIC_METHODS = 15
# A fluent class has a method for each word of its language.
FLUENT = ("Stream",)

LOOSE_END = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
# A reason is what stands after the rule's name: `# type: ignore[arg-type]  # the stubs lack bytes`.
BARE_IGNORE = re.compile(r"#\s*type:\s*ignore(?!\[[\w, -]+\]\s+#\s*\S)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> Iterator[tuple[str, str]]:
    """(path, text) of the Python files in some folders, except the test that names the loose ends."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path != Path(__file__):
                yield str(path.relative_to(ROOT)), path.read_text()


def nodes(kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> Iterator[tuple[str, ast.AST]]:
    for path, text in sources("src"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, kind):
                yield path, node


def test_functions_are_short() -> None:
    long = []
    for path, node in nodes((ast.FunctionDef, ast.AsyncFunctionDef)):
        assert isinstance(node, Function)
        lines = (node.end_lineno or node.lineno) - node.body[0].lineno + 1 - docstring_lines(node)
        if lines > FUNCTION_LINES:
            long.append(f"{path}:{node.lineno} {node.name}: {lines}")
    assert not long, f"bodies over {FUNCTION_LINES} lines: {', '.join(long)}"


def docstring_lines(node: Function) -> int:
    first = node.body[0]
    documented = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return (first.end_lineno or first.lineno) - first.lineno + 1 if documented else 0


def test_classes_are_narrow() -> None:
    wide = []
    for path, node in nodes(ast.ClassDef):
        assert isinstance(node, ast.ClassDef)
        methods = [
            statement.name
            for statement in node.body
            if isinstance(statement, Function) and not statement.name.startswith("_")
        ]
        properties = {
            statement.name for statement in node.body if isinstance(statement, Function) and is_property(statement)
        }
        public = [name for name in methods if name not in properties]
        if len(public) > PUBLIC_METHODS and node.name not in FLUENT:
            wide.append(f"{path} {node.name}: {len(public)}")
    assert not wide, f"over {PUBLIC_METHODS} public methods: {', '.join(wide)}"


def is_property(node: Function) -> bool:
    return any(getattr(decorator, "id", "") == "property" for decorator in node.decorator_list)


def test_there_are_no_loose_ends() -> None:
    found = [
        f"{path}:{number}"
        for path, text in sources("src", "tests", "benchmarks")
        for number, line in enumerate(text.splitlines(), 1)
        if LOOSE_END.search(line)
    ]
    assert not found, f"finish them, or file an issue: {', '.join(found)}"


def test_a_silenced_type_error_says_why() -> None:
    found = [
        f"{path}:{number}"
        for path, text in sources("src")
        for number, line in enumerate(text.splitlines(), 1)
        if BARE_IGNORE.search(line)
    ]
    assert not found, f"write `# type: ignore[rule]  # why`: {', '.join(found)}"
