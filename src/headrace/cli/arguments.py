"""Arguments that commands share, and what they name: a log, or the pipeline in a Python file.

A log is a file, a pipeline's log on a cluster, or the cluster as a whole.
"""

from __future__ import annotations

import builtins
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import typer
from rich.text import Text

from headrace.cli.console import talk
from headrace.errors import DeclarationError, HeadraceError, near
from headrace.event_log import name_app
from headrace.formats.topic_formats import Formats, codec_for
from headrace.kafka.settings import SCHEME, KafkaLocation
from headrace.log import open_log
from headrace.log.base import Log
from headrace.log.kafka import KafkaLog
from headrace.log.kafka_view import KafkaView
from headrace.pipeline.app import App

_PACKAGE = Path(__file__).resolve().parents[1]

LogOption = Annotated[
    str | None,
    typer.Option(
        "--log",
        envvar="HEADRACE_LOG",
        help="The log's file, kafka://host:port or kafka://host:port/NAME; the only *.headrace here if left out.",
    ),
]
MetricsOption = Annotated[
    str | None,
    typer.Option(
        "--metrics-port",
        metavar="[HOST:]PORT",
        help="Serve /metrics for Prometheus there, from the first snapshot on; on this machine only without a host.",
    ),
]
OnGapOption = Annotated[
    Literal["fail", "snapshot", "accept"] | None,
    typer.Option(
        "--on-gap",
        help="Where the slot has lost rows that the log does not have: fail; snapshot, read the tables anew and append "
        "what differs; accept, go on without them.",
    ),
]
StartTimeoutOption = Annotated[
    float,
    typer.Option(
        "--start-timeout",
        min=0,
        metavar="SECONDS",
        help="How long the start is tried again while a database or a broker cannot be reached.",
    ),
]
START_SECONDS = 30.0
WideOption = Annotated[
    bool, typer.Option("--wide", help="All columns and whole values on a terminal too, a line for each row.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For scripts: JSON on standard output.")]


def location(log: str | None) -> str:
    """Return the location of the log.

    Raises:
        DeclarationError: it was not said, and there is not exactly one file in this directory.
    """
    if log == "":
        raise DeclarationError("--log names nothing", advice="Give --log PATH, or --log kafka://host:port.")
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
    """Open a file's log, or a whole cluster, to look at topics."""
    where = location(log)
    if not where.startswith(SCHEME):
        with reading(where) as held:
            yield held
        return
    with KafkaView(KafkaLocation.parse(where), codec=codec_for()) as view:
        yield view
        for warning in view.warnings:
            talk.print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)


@contextmanager
def reading(log: str | None, *, name: str = "", formats: Formats | None = None) -> Iterator[Log]:
    """Open one pipeline's log.

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
def writing(log: str | None, *, name: str = "", formats: Formats | None = None) -> Iterator[Log]:
    """Open one pipeline's log, to change it; see `reading`."""
    where = location(log)
    # First: opening to write would make one where there is none.
    with reading(where, name=name, formats=formats) as held:
        name = held.location.name if isinstance(held, KafkaLog) else ""
    opened = open_log(where, writer=True, name=name, codec=codec_for(formats))
    try:
        yield opened
    finally:
        opened.close()


def load_app(file: str) -> App:
    """Return the one App in a Python file; ``file.py:name`` chooses among several.

    Raises:
        DeclarationError: no such file, no App, several and none chosen; or the file cannot be run, and where.
    """
    path, _, name = file.partition(".py:")
    source = Path(f"{path}.py" if name else file)
    if not source.is_file():
        what = "is a directory" if source.is_dir() else "is not there"
        raise DeclarationError(f"the file {source} {what}", advice="Name the Python file that declares the app.")
    apps = {key: value for key, value in vars(_run_file(source)).items() if isinstance(value, App)}
    if name and name not in apps:
        raise DeclarationError(f"{source} has no App named «{name}»", advice=f"It has: {', '.join(apps) or 'none'}.")
    distinct = {id(value): value for value in ([apps[name]] if name else apps.values())}
    if not distinct:
        raise DeclarationError(f"{source} holds no App", advice='Declare one in it: app = hr.App("shop").')
    if len(distinct) != 1:
        raise DeclarationError(
            f"{source} holds {len(distinct)} Apps", advice=f"Choose one as {source}:NAME ({', '.join(apps)})."
        )
    (app,) = distinct.values()
    name_app(app.name)
    return app


def _run_file(source: Path) -> ModuleType:
    """Run a user's file, and return it as a module."""
    spec = importlib.util.spec_from_file_location("__headrace_app__", source)
    if spec is None or spec.loader is None:
        raise DeclarationError(f"{source} is no Python file", advice="Name the file that declares the app.")
    module = importlib.util.module_from_spec(spec)
    sys.modules["__headrace_app__"] = module
    sys.path.insert(0, str(source.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except HeadraceError as error:
        error.message += _line_of(error, source)
        raise
    except SyntaxError as error:
        where = f"{error.filename or source}, line {error.lineno}"
        code = f"\n    {error.text.strip()}" if error.text else ""
        raise DeclarationError(f"{where}: {type(error).__name__}: {error.msg}{code}") from error
    except Exception as error:
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if isinstance(error, AttributeError | NameError) and error.name:
            known = dir(error.obj) if isinstance(error, AttributeError) else [*vars(module), *vars(builtins)]
            told += near(error.name, [name for name in known if not name.startswith("_")])
        raise DeclarationError(f"{source} cannot be run: {told}{_line_of(error, source)}") from error
    return module


def _line_of(error: Exception, source: Path) -> str:
    """Return the lines of the user's own files that led to an error, the innermost last."""
    own = source.resolve().parent
    lines = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename).resolve()
        library = frame.filename.startswith("<") or "site-packages" in path.parts or path.is_relative_to(_PACKAGE)
        if path.is_relative_to(own) and not library:
            lines += f"\n    {path.name}, line {frame.lineno}: {frame.line}"
    return lines


def properties(given: Sequence[str] | None, *, option: str = "--conf") -> dict[str, str]:
    """Return options of the form ``NAME=VALUE`` as a dict.

    Raises:
        DeclarationError: one has another form.

    >>> properties(["spark.executor.memory=2g"])
    {'spark.executor.memory': '2g'}
    """
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise DeclarationError(f"{option} {name}: this is not NAME=VALUE", advice=f"Write {option} NAME=VALUE.")
        found[name.strip()] = value
    return found


def metrics_place(given: str | None) -> tuple[str, int] | None:
    """Return host and port of ``--metrics-port``.

    >>> metrics_place("9400"), metrics_place("0.0.0.0:9400"), metrics_place("[::1]:9400")
    (('127.0.0.1', 9400), ('0.0.0.0', 9400), ('::1', 9400))
    """
    if given is None:
        return None
    host, _, port = given.rpartition(":")
    if not port.isdigit() or int(port) > 65_535:
        raise typer.BadParameter("--metrics-port is PORT or HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)
