"""Who may import whom: every import of the package is read, function-local and type-checking ones included.

The arrows go one way: values, then stages, then what composes them. A stage knows values and its own folder; what it
needs of another stage it says as a small Protocol of its own, or it gets a row in a topic.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
PACKAGE = "headrace"

# The floors of the house, lowest first; the rooms are the folders of the package. What stands in no folder are values.
# A room imports its own modules, values, and rooms of lower floors: rooms of one floor do not know each other.
VALUES = "values"
STAGES = ("capture", "transform", "formats", "log", "learn", "grade", "registry", "sinks", "serve")
FLOORS = (
    (VALUES,),
    ("kafka",),
    STAGES,
    ("plan",),
    ("step",),
    ("inspect",),
    ("replay",),
    ("produce", "dataset"),
    ("ui",),
    ("engines",),
    ("pipeline",),
    ("testing",),
    ("",),  # the package itself: the public names
    ("demos",),
    ("cli",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# What is computed here depends on its arguments alone: no I/O, no clock, no threads.
PURE = ("plan", "step", "grade", "learn", "transform")
IMPURE = frozenset(
    {"apsw", "asyncio", "duckdb", "os", "pathlib", "psycopg", "socket", "subprocess", "threading", "time"}
)
# (the module, what it may import nevertheless) and why.
EXCEPTIONS = frozenset(
    {
        # A plan parses a database's address, to show it without its password; it opens nothing.
        ("headrace.plan.plan", "psycopg"),
        ("headrace.plan.plan", "psycopg.conninfo"),
        # The key that signs what has no safe form is read once, when such a model is declared.
        ("headrace.learn.adapters.installation_key", "os"),
        ("headrace.learn.adapters.installation_key", "pathlib"),
        # Which thread has limited the others is known to that thread.
        ("headrace.learn.adapters.threads", "threading"),
        ("headrace.learn.adapters.keras_programs", "threading"),
        # Keras takes its back end from the environment when it is first imported, in another process, too.
        ("headrace.learn.adapters.keras_programs", "os"),
        # A network is written to a directory for other programs.
        ("headrace.learn.adapters.keras_model", "pathlib"),
        ("headrace.learn.adapters.torch_module", "pathlib"),
        # How long copies take decides how often a learner is copied, and nothing that comes of it.
        ("headrace.learn.handover", "time"),
        # A file of rows is named when a model is declared, and read when it begins.
        ("headrace.learn.rows_file", "pathlib"),
    }
)


@dataclass(frozen=True)
class Import:
    """One imported module, where it is imported."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return (
            f"{path_of(self.importer).relative_to(SOURCE.parent)}:{self.line}: {self.importer} imports {self.imported}"
        )


def path_of(module: str) -> Path:
    """The file of a module of ours."""
    place = SOURCE.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def exists(module: str) -> bool:
    return path_of(module).is_file()


@cache
def modules() -> tuple[str, ...]:
    """Every module of the package, by its dotted name."""
    found = []
    for path in sorted((SOURCE / PACKAGE).rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return tuple(found)


@cache
def imports() -> tuple[Import, ...]:
    """Every import in the package, wherever it stands."""
    found = (read_import for module in modules() for read_import in read_imports(module, path_of(module).read_text()))
    return tuple(dict.fromkeys(found))


def read_imports(module: str, source: str) -> Iterator[Import]:
    """The imports in a module's source: statements, and calls of `import_module` with a constant."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield Import(module, name if exists(name) else base, node.lineno)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield Import(module, str(node.args[0].value), node.lineno)


def absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that a `from … import` names, relative or not."""
    if not node.level:
        return node.module or ""
    folder = module.split(".") if path_of(module).name == "__init__.py" else module.split(".")[:-1]
    return ".".join([*folder[: len(folder) - node.level + 1], *([node.module] if node.module else [])])


def room(module: str) -> str:
    """Return the room of a module of ours: its folder, `VALUES` where it is in none, "" for the package itself.

    >>> room("headrace.capture.postgres.source"), room("headrace.batch"), room("headrace")
    ('capture', 'values', '')
    """
    if module == PACKAGE:
        return ""
    name = module.split(".")[1]
    return name if (SOURCE / PACKAGE / name).is_dir() else VALUES


def own(found: Import) -> bool:
    return found.imported == PACKAGE or found.imported.startswith(f"{PACKAGE}.")


def assert_none(wrong: list[Import], rule: str) -> None:
    assert not wrong, f"{rule}:\n" + "\n".join(f"  {found}" for found in wrong)


def test_every_room_has_a_floor() -> None:
    new = sorted({room(module) for module in modules()} - set(FLOOR_OF))
    assert not new, f"say in FLOORS of {Path(__file__).name} on which floor they are: {', '.join(new)}"


def test_every_arrow_points_down() -> None:
    wrong = [
        found
        for found in imports()
        if own(found)
        and room(found.importer) != room(found.imported)
        and FLOOR_OF[room(found.imported)] >= FLOOR_OF[room(found.importer)]
    ]
    assert_none(wrong, "a room imports rooms of lower floors, values and itself")


def test_modules_import_each_other_in_no_circle() -> None:
    """Imports for types count: who needs them to be read cannot be understood alone."""
    below: dict[str, set[str]] = {module: set() for module in modules()}
    for found in imports():
        if own(found) and found.imported != found.importer:
            below[found.importer].add(found.imported)
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(reversed(error.args[1]))}")


def test_what_is_computed_is_computed_without_io() -> None:
    wrong = [
        found
        for found in imports()
        if room(found.importer) in PURE
        and found.imported.partition(".")[0] in IMPURE
        and (found.importer, found.imported) not in EXCEPTIONS
    ]
    assert_none(wrong, "a pure module does no I/O, has no clock and starts no thread")


def test_nobody_inside_imports_the_package_root() -> None:
    """The root gathers public names from everywhere: importing it is importing everything. Demos are users."""
    wrong = [found for found in imports() if found.imported == PACKAGE and room(found.importer) != "demos"]
    assert_none(wrong, "modules import the module that defines a name, not the package")


def test_a_demos_pipeline_is_a_users_file() -> None:
    wrong = [
        found
        for found in imports()
        if room(found.importer) == "demos"
        and found.importer.endswith(".pipeline")
        and own(found)
        and found.imported != PACKAGE
    ]
    assert_none(wrong, "a demo's pipeline uses public names only")


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("from headrace.log.base import Log", "headrace.log.base"),
        ("from headrace.capture.postgres import catalog", "headrace.capture.postgres.catalog"),
        ("from headrace.log import open_log", "headrace.log"),
        ("def f():\n    import headrace.cli.main", "headrace.cli.main"),
        ("if TYPE_CHECKING:\n    from headrace.pipeline.app import App", "headrace.pipeline.app"),
        ("from ..errors import LogError", "headrace.errors"),
        ("from . import base", "headrace.log.base"),
        ("importlib.import_module('headrace.engines')", "headrace.engines"),
        ("import headrace as hr", "headrace"),
    ],
)
def test_an_import_is_seen_however_it_is_written(source: str, imported: str) -> None:
    assert [found.imported for found in read_imports("headrace.log.sqlite", source)] == [imported]
