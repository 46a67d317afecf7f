"""What the documents say is there: examples, commands and options, links, names of files."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

import headrace
from headrace.cli import main

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
PAGES = sorted((ROOT / "docs").rglob("*.md"))
GUIDE = ROOT / "docs" / "guide"
DOCUMENTS = [README, ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md", *PAGES]
COMMANDS: Any = typer.main.get_command(main.app)  # a click group; newer versions of typer bring a click of their own


def blocks(path: Path, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def leaves(command: Any = COMMANDS, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that call it."""
    for name, child in getattr(command, "commands", {}).items():
        yield from leaves(child, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


def find(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, and its arguments."""
    command: Any = COMMANDS
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands and hasattr(command, "unnamed"):
            words = [command.unnamed, *words]
        assert words[0] in command.commands, f"headrace has no command «{words[0]}»"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def parse(line: str) -> None:
    """Parse a command line as `headrace` would, without running it; an unknown command or option fails."""
    lexer = shlex.shlex(line.replace(" 2>", " >"), posix=True, punctuation_chars="<>|&")
    lexer.whitespace_split = True
    words = list(itertools.takewhile(lambda word: not set(word) <= set("<>|&"), lexer))
    assert words[0] == "headrace"
    command, arguments = find(words[1:])
    if arguments != ["--help"]:
        command.make_context(" ".join(words[:3]), arguments)


def command_lines(path: Path) -> list[str]:
    """The lines of a document's shell blocks, and what is typed in its terminals; continuation lines joined."""
    shell = "\n".join([*blocks(path, "sh"), *blocks(path, "shell")]).replace("\\\n", " ")
    terminals = "\n".join([*blocks(path, "console"), *blocks(path, r"\{code-block\} console")]).replace("\\\n", " ")
    typed = [line.removeprefix("$ ") for line in terminals.splitlines() if line.startswith("$ ")]
    return [line.strip() for line in [*shell.splitlines(), *typed] if line.strip()]


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 200


# -- the README's pipeline ------------------------------------------------------------------------------------------


def execute(source: str, name: str) -> dict[str, Any]:
    """Run a user's file as an import would: `app.run()` under its `__main__` guard is not called."""
    space: dict[str, Any] = {"__name__": "iris", "__file__": name}
    exec(compile(source, name, "exec"), space)
    return space


@pytest.mark.parametrize("path", [README, ROOT / "examples" / "iris.py"], ids=lambda path: path.name)
def test_the_example_builds_a_plan(path: Path) -> None:
    source = blocks(path, "python")[0] if path.suffix == ".md" else path.read_text()
    plan = execute(source, str(path))["app"].plan()
    plan.check()
    (model,) = plan.models
    assert (model.name, str(model.cut)) == ("species", "32 rows")
    assert [stream.topic for stream in model.learn] == ["flink.public.iris_train"]
    assert [predicted.stream.topic for predicted in model.predict] == ["flink.public.iris_test"]
    assert [output.topic for output in model.outputs] == ["iris_predictions"]
    assert "species" in str(plan)


def test_the_example_is_ten_lines_and_a_guard() -> None:
    source = blocks(README, "python")[0]
    declared = source.partition("if __name__")[0]
    words = [line for line in declared.splitlines() if line.strip() and line.strip() not in (")", "]")]
    assert len(words) <= 14, "the README promises about ten lines"


def test_the_fish_factory_of_the_guide_is_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ten lines, what is added to them page by page, and the file that holds them."""
    import river.drift

    training = files("headrace.demos.fish") / "data" / "training.csv"
    (tmp_path / "training.csv").write_text(training.read_text())
    monkeypatch.chdir(tmp_path)
    first, *added = [
        block for page in ("labels", "serving", "sinks") for block in blocks(GUIDE / f"{page}.md", "python")
    ]
    space: dict[str, Any] = {"hr": headrace, "river": river, "SECRET": "not told"}
    exec(compile(first, "labels.md", "exec"), space)
    (model,) = space["app"].plan().models
    theirs = execute((ROOT / "examples" / "fish.py").read_text(), "fish.py")["app"].plan().models[0]
    assert model.fingerprint() == theirs.fingerprint()
    for block in added:
        exec(compile(block, "guide", "exec"), space)
    plan = space["app"].plan()
    plan.check()
    assert [sink.spec.kind for sink in plan.sinks] == ["postgres", "mongo", "parquet", "http", "console"]
    assert {output.topic for output in plan.models[0].outputs} >= {"weight-prediction", "weight-alarm", "weight-drift"}


def test_every_status_of_a_grade_is_in_the_guide() -> None:
    from headrace.grade.interval_join.outcomes import STATUSES

    table = (GUIDE / "labels.md").read_text().partition("| `status` |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == sorted(STATUSES)


def test_the_extras_are_listed() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (ROOT / "docs" / "install.md").read_text().partition("| extra |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:]))) == set(declared)


@pytest.mark.parametrize("path", [README, *PAGES], ids=lambda path: path.name)
def test_python_blocks_compile(path: Path) -> None:
    for block in blocks(path, "python"):
        compile(block, str(path), "exec")


def test_the_readmes_example_is_the_demos_pipeline() -> None:
    from headrace.demos.iris import pipeline

    space = execute(blocks(README, "python")[0], str(README))
    assert space["CENTERS"] == pipeline.CENTERS
    mine = space["app"].plan().models[0].fingerprint()
    theirs = pipeline.captured("flink", "postgresql://localhost/shop", "memory://").plan().models[0].fingerprint()
    for part in ("learner", "features", "cut", "inputs"):
        assert mine[part] == theirs[part]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").iterdir()), ids=lambda path: path.name)
def test_an_example_uses_what_is_meant_for_users(path: Path) -> None:
    """Doubles and servers of tests are not: `hr.temporary_postgres` gives a database to try things with."""
    if path.is_file():
        assert "headrace.testing" not in path.read_text()


def test_the_recording_is_of_the_demo() -> None:
    """The table in the guide is the published one, row by row."""
    recording = (GUIDE / "demos.md").read_text().partition("<!-- demo -->")[2].partition("<!-- /demo -->")[0]
    data = files("headrace.demos.iris") / "data"
    expected = json.loads((data / "expected.json").read_text())
    rounds = [expected["flink"][f"after_{after}"] for after in ("train1", "train2", "train2_again")]
    rows = [line.split() for line in recording.splitlines() if re.match(r"\s+\[", line)]
    shown = [[int(word) for word in row if word.isdigit()] for row in rows]
    assert shown == [list(row) for row in zip(expected["labels"], *rounds, strict=True)]
    assert [int(count) for count in re.findall(r"(\d+) of 11 right", recording)] == [5, 7, 9]
    for line in recording.splitlines():
        if line.strip().startswith("headrace "):
            parse(line)


# -- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "command"), list(leaves()), ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_has_help_with_an_example_and_json(path: tuple[str, ...], command: Any) -> None:
    done = CliRunner().invoke(main.app, [*path, "--help"])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(main.app, [*path, "-h"]).output == done.output
    help_text = command.help or ""
    examples = re.findall(r"^\s*Example: (.+)$", help_text, re.MULTILINE)
    assert examples, f"headrace {' '.join(path)}: no «Example:» line"
    for example in examples:
        assert example.startswith(f"headrace {' '.join(path)}"), example
        parse(example)
    assert "--json" in {name for parameter in command.params for name in parameter.opts}


def test_the_version_is_told_and_short_options_work() -> None:
    for option in ("--version", "-V"):
        done = CliRunner().invoke(main.app, [option])
        assert (done.exit_code, done.output) == (0, f"headrace {headrace.__version__}\n")
    for group in ([], ["topics"], ["models"], ["keys"], ["demo"]):
        done = CliRunner().invoke(main.app, [*group, "-h"])
        assert done.exit_code == 0 and "Usage:" in done.output


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_in_the_documents_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in command_lines(path):
        if line.startswith("headrace "):
            parse(line)
        elif line.startswith("make "):
            words = shlex.split(line, comments=True)[1:]
            assert next(word for word in words if "=" not in word) in targets, line


def test_the_demos_options_are_listed() -> None:
    demo, _ = find(["demo", "iris"])
    options = {name for parameter in demo.params for name in parameter.opts if name.startswith("--")}
    section = (GUIDE / "demos.md").read_text().partition("headrace demo iris` takes")[2].partition("\n#")[0]
    listed = set(re.findall(r"^\| `(--[a-z-]+)", section, re.MULTILINE))
    # Every command that takes a while has the last two.
    assert listed == options - {"--log-level", "--log-format"}


# -- names and links ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)|<img[^>]* src=\"([^\"]+)\"", path.read_text()):
        place = next(filter(None, target))
        if "://" not in place:
            assert (path.parent / place).exists(), f"{path.name} links to {place}"


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if path.parent.name not in ("tutorials", "how-to")], ids=lambda path: path.name
)
def test_files_that_are_named_exist(path: Path) -> None:
    """Every `a/b.py` or `a/` in code marks, looked for from the repository's root and from the package."""
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]*\.?[a-z]*)(?:::\w+)?`", path.read_text()):
        assert any((root / name).exists() for root in (ROOT, ROOT / "src" / "headrace")), f"{path.name} names {name}"


def test_the_tree_in_the_architecture_is_the_tree_on_disk() -> None:
    tree = (ROOT / "ARCHITECTURE.md").read_text().partition("```text\nsrc/headrace/\n")[2].partition("```")[0]
    drawn = set(re.findall(r"^  ([\w]+(?:\.py|/))", tree, re.MULTILINE))
    package = ROOT / "src" / "headrace"
    there = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    there |= {path.name for path in package.glob("*.py")}
    assert drawn == there


def test_the_picture_is_fresh() -> None:
    command = [sys.executable, str(ROOT / "docs" / "picture.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_changelog_has_an_unreleased_section() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    section = text.partition("## Unreleased\n")[2].partition("\n## ")[0]
    assert section.strip()


def test_a_decision_has_context_decision_and_consequences() -> None:
    assert DECISIONS
    numbers = [int(path.name[:4]) for path in DECISIONS]
    assert len(set(numbers)) == len(numbers), "two decisions have one number"
    for path in DECISIONS:
        headings = re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences"], path.name
