"""Which log a command means, and opening it: a file, a pipeline's log on a cluster, or the cluster as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from headrace.cli.console import talk
from headrace.errors import DeclarationError
from headrace.formats.topic_formats import codec_for
from headrace.kafka.settings import SCHEME, KafkaLocation
from headrace.log import open_log
from headrace.log.base import Log
from headrace.log.kafka import KafkaLog
from headrace.log.kafka_view import KafkaView
from headrace.plan.plan import Formats

LogOption = Annotated[
    str | None,
    typer.Option(
        "--log",
        envvar="HEADRACE_LOG",
        help="The log's file, kafka://host:port or kafka://host:port/NAME; the only *.headrace here if left out.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For scripts: JSON on standard output.")]


def location(log: str | None) -> str:
    """Where the log is.

    Raises:
        DeclarationError: it was not said, and there is not exactly one file in this directory.
    """
    if log is not None:
        return log
    here = sorted(Path.cwd().glob("*.headrace"))
    if len(here) != 1:
        found = ", ".join(path.name for path in here) or "none"
        raise DeclarationError(
            f"which log? *.headrace in this directory: {found}", advice="Give --log PATH, or --log kafka://host:port."
        )
    return str(here[0])


@contextmanager
def looking(log: str | None) -> Iterator[Log | KafkaView]:
    """A file's log, or a whole cluster, to look at topics."""
    where = location(log)
    if not where.startswith(SCHEME):
        with reading(where) as held:
            yield held
        return
    with KafkaView(KafkaLocation.parse(where), codec=codec_for()) as view:
        for warning in view.warnings:
            talk.print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)
        yield view


@contextmanager
def reading(log: str | None, *, name: str = "", formats: Formats | None = None) -> Iterator[Log]:
    """One pipeline's log.

    Args:
        name: the pipeline's, where the location does not say it.
        formats: as the pipeline declares them.
    """
    where = location(log)
    if where.startswith(SCHEME) and not KafkaLocation.parse(where, name=name).name:
        with looking(where) as view:
            assert isinstance(view, KafkaView)
            yield view.log
        return
    held = open_log(where, writer=False, name=name, codec=codec_for(formats))
    try:
        yield held
    finally:
        held.close()


@contextmanager
def writing(log: str | None) -> Iterator[Log]:
    """One pipeline's log, to change records in it."""
    where = location(log)
    with reading(where) as held:  # first: opening to write would make one where there is none
        name = held.location.name if isinstance(held, KafkaLog) else ""
    opened = open_log(where, writer=True, name=name, codec=codec_for())
    try:
        yield opened
    finally:
        opened.close()
