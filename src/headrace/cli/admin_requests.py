"""Asking a pipeline for another version: it takes the request while it runs, or finds it in its log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.cli.log import location, writing
from headrace.errors import LogLocked
from headrace.kafka.settings import SCHEME
from headrace.log.base import Log
from headrace.registry.requests import Request, ask, folder_of
from headrace.registry.versions import Pieces

StoppedOption = Annotated[
    bool, typer.Option("--stopped", help="On Kafka: the pipeline does not run. One that does would be stopped by this.")
]


def asked(
    log: str | None,
    request: Request,
    state: Pieces | None,
    store: Callable[[Log], dict[str, Any]],
    *,
    stopped: bool,
    timeout: float = 30.0,
) -> dict[str, Any]:
    """Change the log of a pipeline that is stopped, or ask the one that runs."""
    where = location(log)
    if where.startswith(SCHEME) and not stopped:
        raise LogLocked(
            f"writing to {where} would stop the pipeline that writes it, if one runs",
            advice="Stop the pipeline, then say so: --stopped. (In Python: running.rollback(…), while it runs.)",
        )
    try:
        with _writing(where) as held:
            return store(held)
    except _Busy:
        return ask(folder_of(Path(where).resolve()), request, state, timeout=timeout)


class _Busy(Exception):
    """Another process writes the log."""


@contextmanager
def _writing(where: str) -> Iterator[Log]:
    opened = writing(where)
    try:
        held = opened.__enter__()
    except LogLocked as error:
        raise _Busy from error
    try:
        yield held
    finally:
        opened.__exit__(None, None, None)
