"""How events are shown: lines outside a terminal, above the progress display in one; and options that say so."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from headrace import event_log
from headrace.cli.console import report, talk
from headrace.errors import HeadraceError
from headrace.event_log import event, failure, installed, text_of

STYLES = {"DEBUG": "dim", "WARNING": "yellow", "ERROR": "bold red", "CRITICAL": "bold red"}

logger = logging.getLogger("headrace")


class TerminalEvents(logging.Handler):
    """Prints events on a terminal, above the progress display, where one is shown.

    Attributes:
        console: the one that shows the display: whatever else writes to the terminal would tear it.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print the time, the level where it is worth a word, and the text."""
        line = Text(f"{datetime.fromtimestamp(record.created):%H:%M:%S} ", style="dim")
        if record.levelname in STYLES:
            line.append(f"{record.levelname} ", style=STYLES[record.levelname])
        line.append(text_of(record), style="default not dim")
        try:
            self.console.print(line, soft_wrap=True)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging calls it so)
        """Ignore that the terminal is gone: the pipeline goes on."""


def show_events() -> None:
    """Begin to show events: those of a command that has no options for them."""
    _show(None, None, quiet=True)


def _show(level: str | None, format_: str | None, *, quiet: bool) -> None:
    if level is None and format_ is None and talk.is_interactive:
        event_log.install(TerminalEvents(talk), "warning" if quiet else "info")
    else:
        event_log.install(event_log.event_lines(format_ or "text"), level or "info")


@contextmanager
def shown_on(console: Console) -> Iterator[None]:
    """Show events on the console that has a progress display, as long as it has one."""
    handler = installed()
    if not isinstance(handler, TerminalEvents):
        yield
        return
    before, handler.console = handler.console, console
    try:
        yield
    finally:
        handler.console = before


def tell(text: str, name: str, **fields: object) -> None:
    """Say what came of a command: as it is in a terminal, else as an event."""
    if as_lines():
        logger.info("%s", text, extra=event(name, **fields))
    else:
        report(text)


def tell_failure(error: HeadraceError) -> None:
    """Say what ended a command: as people read it; as an event where events are lines."""
    if as_lines() and _long:
        logger.error("%s", str(error), extra=failure(error))
    else:
        talk.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)


def as_lines() -> bool:
    """Return whether events are written as lines."""
    return not isinstance(installed(), TerminalEvents)


_long = False

LogLevelOption = Annotated[
    Literal["debug", "info", "warning", "error"] | None,
    typer.Option(
        "--log-level",
        envvar="HEADRACE_LOG_LEVEL",
        help="Events from this level on, as lines on standard error; outside a terminal it is info if left out.",
    ),
]
LogFormatOption = Annotated[
    Literal["text", "json"] | None,
    typer.Option(
        "--log-format",
        envvar="HEADRACE_LOG_FORMAT",
        help="How an event is written in its line: text, or a JSON object with time, level, app, event, fields.",
    ),
]


def with_events(command: Callable[..., None], *, quiet: bool = False) -> Callable[..., None]:
    """Return a command that takes a while with options that say which events are shown, and how.

    Args:
        quiet: on a terminal warnings only are shown: the command itself shows what it does.
    """

    @functools.wraps(command)
    def run(*, log_level: str | None, log_format: str | None, **arguments: Any) -> None:
        global _long
        _long = True
        _show(log_level, log_format, quiet=quiet)
        command(**arguments)

    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in (("log_level", LogLevelOption), ("log_format", LogFormatOption))
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]  # what Typer reads
    return run
