"""The dashboard of a log: ``headrace ui``."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.cli.arguments import JsonOption, LogOption, location, looking
from headrace.cli.serve import WAIT_SECONDS, read_settings
from headrace.engines.local.signals import Signals, Stopped
from headrace.kafka.settings import SCHEME, KafkaLocation


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
        "host": host, "port": port, "keys": key_file, "tls_cert": tls_cert, "tls_key": tls_key
    }  # fmt: skip
    settings = read_settings({name: value for name, value in given.items() if value is not None})
    where = location(log)
    shown = KafkaLocation.parse(where).url if where.startswith(SCHEME) else where
    ended = threading.Event()
    with Signals(expected=True) as signals, looking(where) as held:
        from headrace.serve.server import Server, open_free_socket, open_keys, open_socket
        from headrace.ui.application import Dashboard, announce, open_browser
        from headrace.ui.subject import Subject

        keys = open_keys(settings, where)
        settings.check(keys=keys is not None and keys.some())
        listening = open_socket(settings) if "port" in settings.model_fields_set else open_free_socket(settings)
        title = shown if where.startswith(SCHEME) else Path(where).name
        pages = Dashboard(Subject(held, title, shown), settings, keys)
        server = Server(pages, settings, listening=listening, ending=pages.end)
        signals.stop = ended.set
        try:
            server.start()
            address = announce(server.url)
            if as_json:
                print(json.dumps({"url": address}), flush=True)
            elif not no_open:
                open_browser(address)
            while not ended.wait(WAIT_SECONDS):
                pass
        except Stopped:
            pass
        finally:
            server.stop()
