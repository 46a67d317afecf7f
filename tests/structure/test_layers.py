"""Who may import whom: every import of the package is read, function-local and type-checking ones included.

The arrows go one way: ground floor, then stages, then what composes them. A stage knows the ground floor and its
own folder; what it needs of another stage it says as a small Protocol of its own, or it gets a row in a topic.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
PACKAGE = "headrace"

# In this order: each may import those before it.
GROUND = ("errors", "clock", "faults", "position", "plain_values", "batch", "wire", "kafka")
STAGES = ("capture", "transform", "formats", "log", "learn", "grade", "registry", "sinks", "serve")
# What happens to rows: composed of learners and transforms, with no I/O. Each may import those before it.
PURE = (
    *("events", "event_time", "row_identity", "labels"),
    *("flow", "task", "sink_plan", "plan", "flow_state", "state", "answers"),
    *(
        "comparison",
        "derive",
        "idle",
        "learning",
        "scoring",
        "outputs",
        "training",
        "retraining",
        "derived_step",
        "step",
    ),
)
PURE_STAGES = ("grade", "learn", "transform")
# Imports that would give a pure module I/O, a clock of its own or a thread.
IMPURE = frozenset(
    {"apsw", "asyncio", "duckdb", "os", "pathlib", "psycopg", "socket", "subprocess", "threading", "time"}
)
# A plan parses a database's address, to show it without its password; it opens nothing.
PARSED = frozenset({("headrace.plan", "psycopg"), ("headrace.plan", "psycopg.conninfo")})
# The key that signs what has no safe form is read once, when such a model is declared.
KEY = frozenset(("headrace.learn.adapters.installation_key", one) for one in ("os", "pathlib"))
# Which thread has limited the others is known to that thread; a network is written to a directory for other programs.
KEPT = frozenset(
    {("headrace.learn.adapters.threads", "threading"), ("headrace.learn.adapters.keras_programs", "threading")}
)
WRITTEN = frozenset((f"headrace.learn.adapters.{one}", "pathlib") for one in ("keras_model", "torch_module"))
# How long copies take decides how often a learner is copied, and nothing that comes of it.
TIMED = frozenset({("headrace.learn.handover", "time")})
# A file of rows is named when a model is declared, and read when it begins.
NAMED = frozenset({("headrace.learn.rows_file", "pathlib")})
# The faces: nothing below them knows them.
COMMANDS = (
    *("cli", "cli_asked", "cli_demo", "cli_file", "cli_log", "cli_models", "cli_produce", "cli_serve", "cli_topics"),
    *("cli_topics_change", "cli_training"),
)
FACES = (*COMMANDS, "console", "scoreboard", "demos", "dashboard")


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
    found = (one for module in modules() for one in read_imports(module, path_of(module).read_text()))
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
    """The top-level room that a module of ours belongs to; the package itself is «».

    >>> room("headrace.capture.postgres.source"), room("headrace")
    ('capture', '')
    """
    return module.split(".")[1] if "." in module else ""


def own(one: Import) -> bool:
    return one.imported == PACKAGE or one.imported.startswith(f"{PACKAGE}.")


def inside(rooms: tuple[str, ...]) -> Iterator[Import]:
    """Imports of ours in some rooms, those of their own room left out."""
    for one in imports():
        if own(one) and room(one.importer) in rooms and room(one.importer) != room(one.imported):
            yield one


def assert_none(wrong: list[Import], rule: str) -> None:
    assert not wrong, f"{rule}:\n" + "\n".join(f"  {one}" for one in wrong)


def test_the_ground_floor_imports_only_downward() -> None:
    wrong = [
        one
        for one in inside(GROUND)
        if room(one.imported) not in GROUND or GROUND.index(room(one.imported)) > GROUND.index(room(one.importer))
    ]
    assert_none(wrong, f"the ground floor imports nothing of ours but, in this order, {', '.join(GROUND)}")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_the_ground_floor_and_its_own_folder(stage: str) -> None:
    wrong = [one for one in inside((stage,)) if room(one.imported) not in GROUND]
    assert_none(wrong, f"{stage} imports only the ground floor and its own folder")


def test_what_happens_to_rows_is_composed_without_io() -> None:
    allowed = {one: {*GROUND, *PURE_STAGES, *PURE[:i]} for i, one in enumerate(PURE)}
    wrong = [one for one in inside(PURE) if room(one.imported) not in allowed[room(one.importer)]]
    assert_none(wrong, f"{', '.join(PURE)} import the ground floor, {', '.join(PURE_STAGES)} and those before them")


def test_what_happens_to_rows_has_no_clock_and_no_threads() -> None:
    wrong = [
        one
        for one in imports()
        if room(one.importer) in (*PURE, *PURE_STAGES)
        and one.imported.partition(".")[0] in IMPURE
        and (one.importer, one.imported) not in PARSED | KEY | KEPT | WRITTEN | NAMED | TIMED
    ]
    assert_none(wrong, "a pure module does no I/O, has no clock and starts no thread")


def test_engines_know_no_face_and_the_app_only_for_its_type() -> None:
    wrong = [one for one in inside(("engines", *PURE, "app")) if room(one.imported) in FACES]
    wrong += [one for one in inside(("engines",)) if room(one.imported) == "app" and "TYPE_CHECKING" not in guard(one)]
    assert_none(wrong, "an engine runs a plan: it imports no command line, no demo, and App only to name its type")


def guard(one: Import) -> str:
    """The line of the `if` that an import stands under, if it stands under one."""
    lines = path_of(one.importer).read_text().splitlines()
    indent = len(lines[one.line - 1]) - len(lines[one.line - 1].lstrip())
    above = (line for line in reversed(lines[: one.line - 1]) if line.strip())
    return next((line for line in above if len(line) - len(line.lstrip()) < indent), "")


def test_testing_is_imported_by_the_faces_only() -> None:
    """`headrace.testing` may import anything; of the package only the root, the demos and itself import it."""
    wrong = [
        one
        for one in imports()
        if room(one.imported) == "testing" and room(one.importer) not in ("", "testing", "demos")
    ]
    assert_none(wrong, "headrace.testing is for tests and demos")


def test_nobody_inside_imports_the_package_root() -> None:
    """The root gathers public names from everywhere: importing it is importing everything. Demos are users."""
    wrong = [one for one in imports() if one.imported == PACKAGE and room(one.importer) != "demos"]
    assert_none(wrong, "modules import the module that defines a name, not the package")


def test_a_demos_pipeline_is_a_users_file() -> None:
    wrong = [one for one in imports() if one.importer.endswith(".pipeline") and own(one) and one.imported != PACKAGE]
    assert_none([one for one in wrong if room(one.importer) == "demos"], "a demo's pipeline uses public names only")


def test_every_room_is_known() -> None:
    """A new room is a decision: it belongs to one of the floors above."""
    known = {
        "",
        *GROUND,
        *STAGES,
        *PURE,
        *FACES,
        "app",
        "model",
        "streams",
        "declared",
        "delivered",
        "derivable",
        "initial",
        "windows",
        "engines",
        "testing",
        "messages",
        "query",
        "tables",
        "blueprint",
        "codec",
        "dataset",
        "export",
        "plot",
        "rows",
    }
    new = sorted({room(module) for module in modules()} - known)
    assert not new, f"say in {Path(__file__).name} which floor they belong to: {', '.join(new)}"


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("from headrace.log.base import Log", "headrace.log.base"),
        ("from headrace.capture.postgres import catalog", "headrace.capture.postgres.catalog"),
        ("from headrace.log import open_log", "headrace.log"),
        ("def f():\n    import headrace.cli", "headrace.cli"),
        ("if TYPE_CHECKING:\n    from headrace.app import App", "headrace.app"),
        ("from ..errors import LogError", "headrace.errors"),
        ("from . import base", "headrace.log.base"),
        ("importlib.import_module('headrace.engines')", "headrace.engines"),
        ("import headrace as hr", "headrace"),
    ],
)
def test_an_import_is_seen_however_it_is_written(source: str, imported: str) -> None:
    assert [one.imported for one in read_imports("headrace.log.sqlite", source)] == [imported]
