"""What others have written down: accessible pages (axe: WCAG 2.2 AA), and JavaScript whose types hold (tsc)."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

import pytest

from headrace.ui.site import NAV

from .conftest import Opener

AXE = "axe-core@4.14.1"
TYPESCRIPT = "typescript@5.9.3"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
MORE = (
    "/topics/machine-measurement/produce",
    "/topics/weight-diff?filter=1=2",
    "/topics/weight-diff?order=oldest",
    "/sql?q=select 1 as a, 2 as b&show=line",
    "/topics/weight-diff",
    "/topics/weight-diff/3",
    "/models/weight",
    "/topics?at=slice:20",
    "/sign-in",
)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of packages of npm that only tests use; skips where npm has none."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("npm")
    for package in (AXE, TYPESCRIPT):
        packed = subprocess.run(
            [npm, "pack", "--silent", package], cwd=folder, capture_output=True, text=True, timeout=120
        )
        if packed.returncode:
            pytest.skip(f"npm has no {package}: {packed.stderr.strip()[:200]}")
        with tarfile.open(folder / packed.stdout.strip().splitlines()[-1]) as archive:
            archive.extractall(folder / package.partition("@")[0], filter="data")
    return folder


@pytest.fixture(scope="session")
def axe(packages: Path) -> str:
    return (packages / "axe-core/package/axe.min.js").read_text()


def test_axe_finds_nothing(opener: Opener, fish_dashboard: str, axe: str) -> None:
    check_pages(opener, fish_dashboard, axe, ("/", "/models/weight"))


@pytest.mark.slow
def test_axe_finds_nothing_on_any_page(opener: Opener, fish_dashboard: str, axe: str) -> None:
    check_pages(opener, fish_dashboard, axe, [*(path for _, path in NAV), *MORE])


def check_pages(opener: Opener, dashboard: str, axe: str, paths: Iterable[str]) -> None:
    """Let axe look at pages in light, and at their colours in dark mode."""
    # The page's own policy lets no script in from outside.
    page = opener(bypass_csp=True)
    found = []
    for path in paths:
        page.goto(f"{dashboard}{path}")
        if page.locator("section.travel").count():
            page.locator(".travel input").wait_for()
        page.evaluate(axe)
        for scheme, rules in (("light", {"type": "tag", "values": RULES}), ("dark", ["color-contrast"])):
            page.emulate_media(color_scheme=scheme)
            result = page.evaluate("rules => axe.run({ runOnly: rules })", rules)
            found += [
                f"{path} {scheme}: {wrong['id']}: {wrong['help']}: {node['html'][:200]}"
                for wrong in result["violations"]
                for node in wrong["nodes"]
            ]
    assert not found, "\n".join(found)


def test_types_of_javascript_hold(packages: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    scripts = Path(str(files("headrace.ui") / "static"))
    command = [node, str(packages / "typescript/package/bin/tsc"), "--noEmit", "--allowJs", "--checkJs", "--strict"]
    command += ["--target", "es2022", "--lib", "es2022,dom,dom.iterable"]
    done = subprocess.run(
        [*command, *map(str, sorted(scripts.glob("*.js")))], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout


def test_our_javascript_is_short() -> None:
    scripts = Path(str(files("headrace.ui") / "static"))
    assert sum(len(path.read_text().splitlines()) for path in scripts.glob("*.js")) < 600
