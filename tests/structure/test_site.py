"""The site: it builds with warnings as errors, asks no other host for anything, and has everything that is there."""

from __future__ import annotations

import ast
import html
import inspect
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from tests.structure.test_docs import ROOT, leaves

import headrace
from headrace.batch import META_FIELDS, STEP_COLUMNS
from headrace.capture.debezium.explanation import everything
from headrace.grade.interval_join.outcomes import STATUSES
from headrace.plan.task import PREDICTION_COLUMNS, SHADOW_COLUMNS

# It is built once.
pytestmark = pytest.mark.xdist_group("site")

DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "headrace"
SERVERS_ONLY = {"HEADRACE_WORKER_OF", "HEADRACE_WORKER_SOCKET"}  # one process of a server tells another
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
LOADING_LINKS = frozenset({"stylesheet", "preload", "prefetch", "preconnect", "dns-prefetch", "icon", "modulepreload"})


class Page(HTMLParser):
    """What a page of the site has, links to, and loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and LOADING_LINKS & set(given.get("rel", "").split()):
            self.loads.append(given["href"])
        if LOADED.get(tag, "") in given:
            self.loads.append(given[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    target = tmp_path_factory.mktemp("site")
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--doctree-dir", str(target.with_name("doctrees"))]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Every page of the site."""
    found = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    assert len(found) > 80
    return found


def test_every_link_and_anchor_leads_somewhere(pages: dict[Path, Page]) -> None:
    wrong = []
    for path, page in pages.items():
        for link in page.links:
            place, anchor = urldefrag(link)
            if urlsplit(place).scheme:
                continue
            target = (path.parent / unquote(place)).resolve() if place else path
            if not target.is_file() or (anchor and target in pages and unquote(anchor) not in pages[target].anchors):
                wrong.append(f"{path.name}: {link}")
    assert not wrong, wrong


def test_no_page_asks_another_host_for_anything(site: Path, pages: dict[Path, Page]) -> None:
    foreign = re.compile(r"^(?:[a-z]+:)?//", re.IGNORECASE)
    loads = [(path.name, load) for path, page in pages.items() for load in page.loads if foreign.match(load)]
    for sheet in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import\s+)['\"]?([^'\")\s;]+)", sheet.read_text())
        loads += [(sheet.name, load) for load in found if foreign.match(load)]
    assert not loads, loads


def test_every_page_is_in_the_navigation(site: Path, pages: dict[Path, Page]) -> None:
    """Sphinx warns of a page that no toctree has; here: each page of ``docs`` became one of the site."""
    there = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert there <= {path.relative_to(site) for path in pages}
    linked = {(site / "index.html").parent / link for link in pages[site / "index.html"].links}
    for folder in ("tutorials", "guide", "reference"):
        assert set((site / folder).glob("*.html")) <= linked


# -- the reference ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described(site: Path) -> set[str]:
    """Every Python object that has an entry, by its full name."""
    head, body = re.split(rb"(?<=zlib\.\n)", (site / "objects.inv").read_bytes(), maxsplit=1)
    assert head.startswith(b"# Sphinx inventory version 2")
    lines = zlib.decompress(body).decode().splitlines()
    return {line.split(" py:")[0] for line in lines if " py:" in line}


def public() -> Iterator[tuple[str, str]]:
    """Each public name, and the last word of its entry."""
    for name in headrace.__all__:
        value = getattr(headrace, name)
        if not isinstance(value, ModuleType):
            yield f"headrace.{name}", name
            continue
        names = getattr(value, "__all__", None) or [
            word for word, thing in vars(value).items() if getattr(thing, "__module__", "") == value.__name__
        ]
        yield from ((f"headrace.{name}.{word}", word) for word in names if not word.startswith("_"))


PRIVATE = {
    # What adapters and plots share with the rest of the package, and a user never calls.
    *("headrace.adapters.WithOptions", "headrace.plot.Evaluated", "headrace.metrics.as_metric"),
    "headrace.errors.near",
}


def test_every_public_name_has_its_entry(described: set[str]) -> None:
    words = {name.rpartition(".")[2] for name in described}
    missing = [name for name, word in public() if name not in PRIVATE and word not in words]
    assert not missing, missing


def test_every_method_that_a_user_calls_has_its_entry(described: set[str]) -> None:
    from headrace.engines.local.running import Running, RunningModel
    from headrace.pipeline.app import App
    from headrace.pipeline.model import Model
    from headrace.pipeline.stream import Stream, Windowed

    for kind in (App, Stream, Windowed, Model, Running, RunningModel):
        there = {name.rpartition(".")[2] for name in described if f".{kind.__name__}." in name}
        methods = {name for name, value in vars(kind).items() if not name.startswith("_") and inspect.getdoc(value)}
        methods = {name for name in methods if isinstance(vars(kind)[name], property) or callable(vars(kind)[name])}
        assert methods <= there, f"{kind.__name__}: {sorted(methods - there)}"


def test_every_command_has_its_entry(site: Path, pages: dict[Path, Page]) -> None:
    page = site / "reference" / "commands.html"
    text = page.read_text()
    for words, command in leaves():
        assert f"headrace-{'-'.join(words)}" in pages[page].anchors
        for parameter in command.params:
            for option in parameter.opts:
                assert not option.startswith("--") or f">{option}<" in text, f"{' '.join(words)} {option}"


# -- tables by hand ---------------------------------------------------------------------------------------------------


@cache
def source() -> str:
    """All of the package's source."""
    return "\n".join(path.read_text() for path in sorted(PACKAGE.rglob("*.py")))


def test_every_environment_variable_is_listed() -> None:
    page = (DOCS / "reference" / "environment.md").read_text()
    named = {name.rstrip("_") for name in re.findall(r"HEADRACE_[A-Z_]+", source())} - SERVERS_ONLY
    for name in named:
        known = name in page or name.startswith(("HEADRACE_KAFKA", "HEADRACE_SERVE"))
        assert known, f"{name} is not in reference/environment.md"


def test_every_property_of_debezium_is_listed(site: Path) -> None:
    text = html.unescape(re.sub("<[^>]*>", "", (site / "debezium-properties.html").read_text()))
    names = {line.name for _, line in everything()}
    assert len(names) > 300
    assert [name for name in names if name not in text] == []


def test_every_column_of_ours_is_listed() -> None:
    page = (DOCS / "reference" / "columns.md").read_text()
    names = [*PREDICTION_COLUMNS, *SHADOW_COLUMNS, *STEP_COLUMNS, *STATUSES, *(field.name for field in META_FIELDS)]
    decision = (DOCS / "decisions" / "0026-reserved-names.md").read_text()
    names += re.findall(
        r"`([a-z_]+)`", decision.partition("| grades |")[2].partition("| drift |")[0].split("refused")[0]
    )
    assert not [name for name in names if f"`{name}`" not in page]


def test_every_metric_is_listed() -> None:
    """Names that calls of `Gauge`, `Measure` and `Measurement` give, and those of the counters."""
    page = (DOCS / "reference" / "prometheus.md").read_text()
    found = {"requests_total", "request_seconds"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
                continue
            kind = node.func.id if isinstance(node.func, ast.Name) else ""
            if kind in ("Gauge", "Measure"):
                found.add(str(node.args[0].value))
            elif kind == "Measurement":
                found.add(f"capture_{node.args[0].value}")
                # How far a log is behind is said of every source, in the words of all.
                if re.match("lag|slot", str(node.args[0].value)):
                    found.add(f"source_{node.args[0].value}")
    from headrace.engines.local.serving.metrics import _COUNTERS

    found |= {f"model_{name}" for name in _COUNTERS}
    listed = set(re.findall(r"`headrace_(\w+)`", page))
    assert listed == found
