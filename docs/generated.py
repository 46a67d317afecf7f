"""Parts of the site's pages that are made from the code: commands, errors, settings.

A page says ``<!-- generated: commands -->``; `fill` puts the function's Markdown there. Nothing is written to disk.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main

from headrace import errors
from headrace.capture.debezium.explanation import everything
from headrace.cli import main
from headrace.engines.limits import limits_table
from headrace.serve.settings import ServeSettings

ROOT = Path(__file__).parents[1]
_MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def fill(text: str) -> str:
    """Return a page's source with its generated parts."""
    return _MARKER.sub(lambda found: PARTS[found[1]](), text)


# -- commands ---------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Return a table of all commands, and a section for each, as its ``--help`` has it."""
    found = list(leaves(typer.main.get_command(main.app)))
    table = ["| command | |", "|---|---|"]
    for words, command in found:
        name, about = f"headrace {' '.join(words)}", _escaped((command.help or "").partition("\n\n")[0])
        table.append(f"| [{name}](#{name.replace(' ', '-')}) | {about.replace(chr(10), ' ')} |")
    return "\n".join([*table, "", *(_command(words, command) for words, command in found)])


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each command that does something, with the words that call it."""
    children = getattr(command, "commands", None)
    if children is None:
        yield words, command
        return
    for name in sorted(children):
        yield from leaves(children[name], (*words, name))


def _command(words: tuple[str, ...], command: Any) -> str:
    name = f"headrace {' '.join(words)}"
    text, example = re.subn(r"^\s*Example: (.+)$", r"\n```sh\n\1\n```\n", command.help or "", flags=re.MULTILINE)
    assert example, f"{name} has no example"
    usage = " ".join(command.collect_usage_pieces(command.make_context(name, [], resilient_parsing=True)))
    rows = [_parameter(parameter) for parameter in command.params if not parameter.hidden]
    table = ["| argument or option | takes | default | |", "|---|---|---|---|", *rows]
    prose, fence, rest = text.partition("\n```sh")
    return "\n".join([f"## {name}\n", _escaped(prose), fence + rest, f"```text\n{name} {usage}\n```\n", *table, ""])


def _parameter(parameter: Any) -> str:
    kind = parameter.type_descriptor.annotation
    if typing.get_origin(kind) is list:
        (kind,) = typing.get_args(kind)
    flag = getattr(parameter, "is_flag", False)
    names = [parameter.name.upper()] if parameter.param_type_name == "argument" else parameter.opts
    takes = "" if flag else ", ".join(f"`{word}`" for word in typing.get_args(kind)) or getattr(kind, "__name__", "")
    takes = {"str": "text", "int": "number", "float": "number", "Path": "path"}.get(takes, takes)
    default = "" if flag or parameter.default in (None, ()) else f"`{parameter.default}`"
    default = "required" if parameter.required else default
    about = _escaped(parameter.help or "").replace("|", r"\|").replace("\n", " ")
    about += f" Environment: `{parameter.envvar}`." if parameter.envvar else ""
    return f"| {', '.join(f'`{name}`' for name in names)} | {takes} | {default} | {about} |"


def _escaped(text: str) -> str:
    """Return plain text as Markdown that shows it."""
    return re.sub(r"([*_<\[])", r"\\\1", inspect.cleandoc(text))


# -- errors -----------------------------------------------------------------------------------------------------------


def error_table() -> str:
    """Return the error tree as a table: what each means, its exit code, whether it is tried again."""
    lines = ["| error | exit code | tried again | |", "|---|---|---|---|"]
    for depth, kind in _descendants(errors.HeadraceError):
        about = _escaped((inspect.getdoc(kind) or "").partition("\n")[0])
        name = f"{'&emsp;' * depth}`{kind.__name__}`"
        lines.append(f"| {name} | {kind.exit_code} | {'yes' if kind.retry else ''} | {about} |")
    return "\n".join(lines)


def _descendants(kind: type[errors.HeadraceError], depth: int = 0) -> Iterator[tuple[int, type[errors.HeadraceError]]]:
    yield depth, kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from _descendants(below, depth + 1)


# -- Debezium's properties --------------------------------------------------------------------------------------------


def debezium_properties() -> str:
    """Return every property of Debezium's connector, of converters and of transforms, in a table for each section."""
    lines: list[str] = []
    section = part = ""
    for heading, line in everything():
        if heading != section:
            section, part = heading, ""
            lines += ["", f"## {section}", "", *_BEHIND.get(section, ())]
            if not line.part:
                lines += _PROPERTIES
        if line.part != part:
            part = line.part
            lines += [
                "",
                f"### {part.rpartition('.')[2]}",
                "",
                f"`{part}`: **{line.state}**. {_cell(line.meaning.text)}",
                "",
            ]
            continue
        if lines[-1] == "":
            lines += _PROPERTIES
        default = f"`{line.default}`" if line.default else ""
        lines.append(f"| `{line.name}` | {default} | {line.state} | {_cell(line.meaning.text)} |")
    return "\n".join(lines)


_BEHIND = {
    "Transforms": [
        "Their names are in `transforms`, and their properties behind `transforms.NAME.`. Of every one:",
        "",
    ],
    "Predicates": ["Their names are in `predicates`, and their properties behind `predicates.NAME.`.", ""],
    "Converters": ["Their properties stand behind `key.converter.` and `value.converter.`.", ""],
    "Post processors": ["Their names are in `post.processors`, and their properties behind `NAME.`.", ""],
}
_PROPERTIES = ["| property | default | state | what it does here |", "|---|---|---|---|"]


def _cell(text: str) -> str:
    return _escaped(text).replace("|", r"\|").replace("${", r"\${")


# -- settings ---------------------------------------------------------------------------------------------------------


def serve_settings() -> str:
    """Return the server's settings as a table of environment variables."""
    lines = ["| variable | default |", "|---|---|"]
    for name, field in ServeSettings.model_fields.items():
        if name != "keys_at_start":  # the server tells its workers so
            default = "" if field.default in (None, "", ()) else f"`{field.default}`"
            lines.append(f"| `HEADRACE_SERVE_{name.upper()}` | {default} |")
    return "\n".join(lines)


# -- files of the repository's root -----------------------------------------------------------------------------------


def guarantees() -> str:
    """Return the README's table of guarantees."""
    section = (ROOT / "README.md").read_text().partition("## What it guarantees, and what shows it\n")[2]
    return section.partition("\n## ")[0].partition("\n\nSpeed is")[0].strip()


def architecture() -> str:
    """Return ARCHITECTURE.md, with links as they are seen from the site."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    return text.replace("](README.md)", "](index.md)").replace("](docs/", "](")


PARTS: dict[str, Callable[[], str]] = {
    "architecture": architecture,
    "commands": commands,
    "debezium_properties": debezium_properties,
    "errors": error_table,
    "engine_limits": limits_table,
    "guarantees": guarantees,
    "serve_settings": serve_settings,
}
