"""The dashboard of a log: ``headrace ui``."""

from __future__ import annotations

import json
import logging
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.arguments import JsonOption, LogOption, location, looking
from headrace.cli.serve import WAIT_SECONDS, read_settings
from headrace.engines.local.signals import Signals, Stopped
from headrace.errors import HeadraceError
from headrace.event_log import event
from headrace.kafka.settings import SCHEME, KafkaLocation

if TYPE_CHECKING:
    import socket

    from headrace.serve.settings import ServeSettings

PORT = 8080
PORTS_TRIED = 20
logger = logging.getLogger("headrace")


def ui(
    log: LogOption = None,
    host: Annotated[str | None, typer.Option("--host", help="Where to listen; 127.0.0.1 if left out.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="8080 if left out, or the next free one; 0: any free one.")
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the browser.")] = False,
    key_file: Annotated[Path | None, typer.Option("--keys", help="File of API keys; LOG.keys if left out.")] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="A certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its key, PEM.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at a log in the browser, whether its pipeline runs or not: topics, models, alarms, SQL, time travel.

    A cluster is looked at as a whole, or one pipeline's log on it. Without keys only this machine is answered.

    Example: headrace ui --log iris.headrace
    """
    given: dict[str, Any] = {
        "host": host, "port": PORT if port is None else port, "keys": key_file, "tls_cert": tls_cert, "tls_key": tls_key
    }  # fmt: skip
    settings = read_settings({name: value for name, value in given.items() if value is not None})
    where = location(log)
    shown = KafkaLocation.parse(where).url if where.startswith(SCHEME) else where
    ended = threading.Event()
    with Signals(expected=True) as signals, looking(where) as held:
        from headrace.serve.server import Server, open_keys
        from headrace.ui.application import Dashboard
        from headrace.ui.subject import Subject

        keys = open_keys(settings, where)
        settings.check(keys=keys is not None and keys.some())
        listening = _socket(settings, patient=port is None)
        title = shown if where.startswith(SCHEME) else Path(where).name
        pages = Dashboard(Subject(held, title, shown), settings, keys)
        server = Server(pages, settings, listening=listening, ending=pages.end)
        signals.stop = ended.set
        try:
            server.start()
            address = f"{server.url}/ui/"
            if as_json:
                print(json.dumps({"url": address}), flush=True)
            else:
                announce_page(address)
            if not no_open and not as_json:
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
            while not ended.wait(WAIT_SECONDS):
                pass
        except Stopped:
            pass
        finally:
            server.stop()


def announce_page(address: str) -> None:
    """Say where the dashboard is."""
    logger.info("the dashboard is at %s", address, extra=event("dashboard", url=address))


def _socket(settings: ServeSettings, *, patient: bool) -> socket.socket:
    """Bind the port, or one of the next where it is taken and nobody asked for it."""
    from headrace.serve.server import open_socket

    for tried in range(PORTS_TRIED):
        try:
            return open_socket(settings.model_copy(update={"port": settings.port + tried}))
        except HeadraceError:
            if not patient:
                raise
    return open_socket(settings.model_copy(update={"port": 0}))
