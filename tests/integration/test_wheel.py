"""The package as others get it: a wheel, in an empty virtual environment, outside the checkout.

Needs a package index (PyPI, or what pip is configured for): the environment is empty, so that nothing of ours helps.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.xdist_group("wheel"), pytest.mark.timeout(600), pytest.mark.slow]

ROOT = Path(__file__).parents[2]
# What would let the checkout, or the environment that runs this test, shine through.
OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "HEADRACE_LOG", "HEADRACE_FAULT")


def run(*command: str, cwd: Path) -> str:
    """Standard output of a command that must succeed."""
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def outside() -> Iterator[Path]:
    """A directory outside the checkout; removed, since an environment takes half a gigabyte."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-wheel-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def wheel(outside: Path) -> Path:
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(outside / "dist"), str(ROOT), cwd=outside)
    (built,) = (outside / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def binaries(outside: Path, wheel: Path) -> Path:
    """Where the programs of an environment are that holds the wheel and what it asks for, and nothing else."""
    venv.create(outside / "empty", with_pip=True)
    programs = outside / "empty" / "bin"
    run(str(programs / "python"), "-m", "pip", "install", "--quiet", str(wheel), cwd=outside)
    return programs


def test_the_wheel_holds_the_package_and_its_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    shipped = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert {name.partition("/")[0] for name in shipped} == {"headrace"}
    assert "headrace/py.typed" in names
    assert {f"headrace/demos/iris/data/{name}.csv" for name in ("train1", "train2", "test")} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    here = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "headrace").rglob("*.py")}
    assert {name for name in shipped if name.endswith(".py")} == here


def test_the_demo_runs_from_the_wheel(binaries: Path, outside: Path) -> None:
    empty = outside / "nothing here"
    empty.mkdir()
    where = run(str(binaries / "python"), "-c", "import headrace; print(headrace.__file__)", cwd=empty)
    assert Path(where.strip()).is_relative_to(outside / "empty")
    out = run(str(binaries / "headrace"), "demo", "iris", "--json", cwd=empty)
    result = json.loads(out)
    assert out.count("\n") == 1
    assert [round_["correct"] for round_ in result["rounds"]] == [5, 7, 9]
    log = result["log"]
    rows = run(str(binaries / "headrace"), "topics", "cat", "iris_predictions", "--log", log, cwd=empty).splitlines()
    assert len(rows) == 33
    assert list(empty.iterdir()) == []
    shutil.rmtree(Path(log).parent)
