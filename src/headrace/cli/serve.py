"""Commands that serve: ``headrace serve`` and ``headrace keys``."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.arguments import (
    START_SECONDS,
    JsonOption,
    LogOption,
    StartTimeoutOption,
    WideOption,
    load_app,
    location,
)
from headrace.cli.console import print_result, print_rows, report, short_key
from headrace.engines.local.running import Running
from headrace.engines.local.signals import Signals, Stopped, start_patiently
from headrace.engines.local.startup import location_of
from headrace.errors import DeclarationError, LogLocked
from headrace.event_log import event
from headrace.pipeline.app import App

if TYPE_CHECKING:
    from headrace.engines.local.serving.service import ServerBinding
    from headrace.serve.keys import KeyFile
    from headrace.serve.settings import ServeSettings

keys = typer.Typer(help="API keys of `headrace serve`.", no_args_is_help=True)

WAIT_SECONDS = 0.2
Start = Callable[..., Running | None]
logger = logging.getLogger("headrace")


def serve(
    file: Annotated[str, typer.Argument(help="A Python file with one App in it, or FILE:NAME.")],
    host: Annotated[str | None, typer.Option("--host", help="Where to listen; 127.0.0.1 if left out.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="8000 if left out; 0: a free one.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that serve, on one port.")] = 1,
    no_run: Annotated[
        bool, typer.Option("--no-run", help="Only follow the log, which another process writes.")
    ] = False,
    log: Annotated[
        str | None, typer.Option("--log", help="A path or kafka://host:port/NAME, in place of the file's.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option("--keys", help="File of API keys; LOG.keys if left out.")] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="A certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its key, PEM.")] = None,
    rate: Annotated[str | None, typer.Option("--rate", help='Requests of one caller, such as "600/minute".')] = None,
    batch_window_ms: Annotated[
        float | None, typer.Option("--batch-window-ms", help="How long requests wait for others; 0 if left out.")
    ] = None,
    start_timeout: StartTimeoutOption = START_SECONDS,
    as_json: JsonOption = False,
) -> None:
    """Run the pipeline in a file, and serve it over HTTP: predictions, training, Open Inference Protocol, metrics.

    Where another process runs the pipeline, its log is followed. Every option can be an environment variable too:
    HEADRACE_SERVE_PORT, HEADRACE_SERVE_JWT_SECRET, and so on.

    Example: headrace serve fish.py --port 8000
    """
    pipeline = load_app(file)
    pipeline.log = pipeline.log if log is None else location(log)
    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "keys": key_file,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "rate": rate,
        "batch_window_ms": batch_window_ms,
    }
    named = {name: value for name, value in given.items() if value is not None}
    settings = read_settings(named)

    def start(**more: Any) -> Running | None:
        """Start the pipeline; None where another process runs it, or shall."""
        if no_run:
            return None
        try:
            running: Running = start_patiently(lambda: pipeline.start(**more), start_timeout)
            return running
        except LogLocked as error:
            text = f"{error.message}: following it"
            logger.info("%s", text, extra=event("following", log=pipeline.log))
            return None

    with Signals(expected=True) as signals:
        try:
            if workers > 1:
                _serve_by_workers(pipeline, settings, named, signals, file=file, count=workers, start=start)
            else:
                _serve_alone(pipeline, settings, signals, start=start, as_json=as_json)
        except Stopped:
            if pipeline.running is not None:
                pipeline.running.stop()


def read_settings(given: dict[str, Any]) -> ServeSettings:
    """Return options as given, the others from the environment.

    Raises:
        DeclarationError: one is wrong. Its value is not shown: it may be a secret.
    """
    from pydantic import ValidationError

    from headrace.serve.settings import ServeSettings

    try:
        return ServeSettings(**given)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors(include_input=False)]
        raise DeclarationError(f"serve: {'; '.join(told)}") from None


def _serve_alone(pipeline: App, settings: ServeSettings, signals: Signals, *, start: Start, as_json: bool) -> None:
    """Serve in this process: with the pipeline, or beside the one that runs it."""
    running = start(serve=settings)
    if running is None:
        _follow(pipeline, settings, signals, as_json=as_json)
        return
    with running:
        signals.stop = running.interrupt
        assert running.server is not None
        _say(running.server.url, as_json=as_json)
        while not running.join(WAIT_SECONDS):
            pass


def _follow(pipeline: App, settings: ServeSettings, signals: Signals, *, as_json: bool) -> None:
    from headrace.engines.local.serving.replica import Replica
    from headrace.engines.local.serving.service import ServerBinding
    from headrace.engines.local.serving.workers import PARENT, end_with_parent, inherited_socket

    ended = threading.Event()
    with ExitStack() as stack:
        place = ServerBinding.of(pipeline.plan(), settings, listening=inherited_socket())
        stack.callback(place.close)
        follower = Replica.of(pipeline.plan())
        stack.callback(follower.stop)
        server = place.serving(follower, follower.log, location=location_of(pipeline.plan()))
        stack.callback(server.stop)
        follower.start()
        # Before the server listens: a signal that came in between would end the process under its first requests.
        signals.stop = ended.set
        server.start()
        end_with_parent(ended.set)
        _say(server.url, as_json=as_json or PARENT in os.environ)
        while not ended.wait(WAIT_SECONDS):
            pass


def _serve_by_workers(
    pipeline: App,
    settings: ServeSettings,
    named: dict[str, Any],
    signals: Signals,
    *,
    file: str,
    count: int,
    start: Start,
) -> None:
    """Start processes that follow, and serve; this one runs the pipeline, unless another one does."""
    from headrace.engines.local.serving.service import ServerBinding
    from headrace.engines.local.serving.workers import is_file, workers
    from headrace.serve.settings import SOME_KEY

    if not is_file(pipeline.log) and not pipeline.log.startswith("kafka://"):
        raise DeclarationError("a log in memory has one process", advice="Give the app a file, or leave --workers out.")
    ended = threading.Event()
    with ExitStack() as stack:
        place: ServerBinding = ServerBinding.of(pipeline.plan(), settings)
        stack.callback(place.close)
        running = start()
        if running is not None:
            stack.enter_context(running)
        number = place.listening.getsockname()[1]
        options = {**named, "port": number, "host": settings.host}
        if place.keys is not None:
            options["keys_at_start"] = SOME_KEY if place.keys.some() else place.keys.identity()
        environment = {f"HEADRACE_SERVE_{name.upper()}": str(value) for name, value in options.items()}
        arguments = ["serve", file, "--no-run", "--log", pipeline.log]
        look = stack.enter_context(workers(place.listening, count, arguments, environment))
        signals.stop = ended.set
        scheme = "http" if settings.tls_cert is None else "https"
        _say(f"{scheme}://{settings.host}:{number}", as_json=False)
        while not ended.wait(WAIT_SECONDS):
            look()
            if running is not None and running.join(0):
                return


def _say(url: str, *, as_json: bool) -> None:
    from headrace.serve.server import announce

    if as_json:
        print(json.dumps({"url": url}), flush=True)
    else:
        announce(url)


# -- keys -------------------------------------------------------------------------------------------------------------


FileOption = Annotated[Path | None, typer.Option("--keys", help="The file of keys; LOG.keys if left out.")]


def _opened(log: str | None, file: Path | None) -> KeyFile:
    from headrace.serve.keys import KeyFile, keys_beside

    where = location(log) if file is None else ""
    path = file or keys_beside(where)
    if file is None and path is not None and not Path(where).exists():
        report(f"there is no log at {where} yet: the keys are for one that will be there")
    if path is None:
        raise DeclarationError(
            "this log has no place for keys beside it", advice="Give --keys FILE, here and to serve."
        )
    return KeyFile(path)


@keys.command("create")
def create(
    scope: Annotated[
        list[str],
        typer.Option("--scope", help="predict, train, metrics, read, produce or admin; may be given often."),
    ],
    name: Annotated[str, typer.Option("--name", help="What you call it.")] = "",
    log: LogOption = None,
    file: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key. It is shown once: only its hash is kept.

    Example: headrace keys create --scope predict --scope train --name till
    """
    key, text = _opened(log, file).create(name, scope)
    if as_json:
        print(json.dumps({"id": key.id, "name": key.name, "scopes": list(key.scopes), "key": text}))
    else:
        report("keep it: it is not shown again")
        print(text)


@keys.command("list")
def list_(
    log: LogOption = None, file: FileOption = None, as_json: JsonOption = False, wide: WideOption = False
) -> None:
    """Show the keys, without their secrets.

    Example: headrace keys list
    """
    found = [
        {"id": key.id, "name": key.name, "scopes": list(key.scopes), "created": key.created}
        for key in _opened(log, file).all()
    ]
    print_rows(found, as_json=as_json, title="keys", short=short_key, wide=wide)


@keys.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="The key's id.")],
    log: LogOption = None,
    file: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a key away. Servers that run refuse it within a second.

    Example: headrace keys revoke 3f9a1c2b7d10
    """
    found = _opened(log, file).revoke(key)
    print_result({"revoked": found.id}, f"revoked {found.id} {found.name}".rstrip(), as_json=as_json)
