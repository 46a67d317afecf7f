"""Events as lines: what happens is logged under a name, with fields, by the logger ``headrace``.

Outside a terminal each event is one line. Either as people read it, the time in UTC, level, pipeline, text::

    2026-11-29T15:04:19.696Z INFO shop connected again after 3.2 s

or as JSON with the keys ``time``, ``level``, ``app``, ``event`` (a name that stays the same between releases) and
``fields``, whose ``text`` is what people read::

    {"time": "2026-11-29T15:04:19.696Z", "level": "INFO", "app": "shop", "event": "connected_again", "fields": {…}}

A program that has set up logging itself gets these records like any others: nothing here happens at import.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from typing import TextIO

from headrace.errors import HeadraceError

logger = logging.getLogger("headrace")

LEVELS = ("debug", "info", "warning", "error")
UNNAMED = "message"


def event(name: str, **fields: object) -> dict[str, object]:
    """Return an event's name and fields as the ``extra`` of a logger's call.

    Args:
        name: words joined by ``_``; programs read it, so it stays.
        fields: what JSON can hold; anything else is written as text. ``app`` is the pipeline, where a process may have
            several.

    >>> event("caught_up", rows=3)
    {'event': 'caught_up', 'app': '', 'fields': {'rows': 3}}
    """
    return {"event": name, "app": fields.pop("app", ""), "fields": fields}


def failure(error: HeadraceError) -> dict[str, object]:
    """Return the name and fields of an error that ends a command."""
    return event("failed", error=type(error).__name__, advice=error.advice, exit_code=error.exit_code)


class EventFormatter(logging.Formatter):
    """Writes an event in one line.

    Args:
        app: the pipeline of events that name none.
    """

    def __init__(self, *, app: str = "") -> None:
        super().__init__()
        self.app = app

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: time, level, pipeline, text."""
        words = (utc(record.created), record.levelname, self._app(record), one_line(text_of(record)))
        return " ".join(word for word in words if word)

    def _app(self, record: logging.LogRecord) -> str:
        return str(record.__dict__.get("app") or self.app)


class JsonFormatter(EventFormatter):
    """Writes an event as a JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: an object with ``time``, ``level``, ``app``, ``event`` and ``fields``."""
        given: dict[str, object] = {"text": text_of(record), **record.__dict__.get("fields", {})}
        if record.exc_info and record.exc_info[0] is not None:
            given["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        line = {
            "time": utc(record.created),
            "level": record.levelname,
            "app": self._app(record),
            "event": record.__dict__.get("event", UNNAMED),
            "fields": given,
        }
        return json.dumps(line, ensure_ascii=False, default=str)


def text_of(record: logging.LogRecord) -> str:
    """Return what people read of an event; of an exception its type and message, and where it was raised."""
    text = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        frames = traceback.extract_tb(error.__traceback__)
        where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        text = f"{text}: {type(error).__name__}: {error}{where}"
    return text


def one_line(text: str) -> str:
    r"""Return a text without line breaks.

    >>> one_line("the topic is gone\n  → Create it again.")
    'the topic is gone → Create it again.'
    """
    return " ".join(part for part in map(str.strip, text.splitlines()) if part)


def utc(seconds: float) -> str:
    """Return a time in ISO 8601 with milliseconds.

    >>> utc(1795964659.6964)
    '2026-11-29T15:04:19.696Z'
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Lines(logging.StreamHandler[TextIO]):
    """Writes to standard error, whatever it is by then; what it cannot take is dropped in silence."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging calls it so)
        """Ignore that standard error is closed or full: the pipeline goes on."""


def event_lines(format_: str = "text", *, app: str = "") -> logging.Handler:
    """Return a handler that writes each event as a line on standard error."""
    handler = _Lines()
    handler.setFormatter(JsonFormatter(app=app) if format_ == "json" else EventFormatter(app=app))
    return handler


def install(handler: logging.Handler, level: str = "info") -> None:
    """Let a handler have the events of this process, in place of one that was installed before."""
    for old in [held for held in logger.handlers if held.get_name() == "headrace"]:
        logger.removeHandler(old)
    handler.set_name("headrace")
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False


def installed() -> logging.Handler | None:
    """Return the handler that `install` was given last; None before."""
    return next((held for held in logger.handlers if held.get_name() == "headrace"), None)


def name_app(app: str) -> None:
    """Let events that name no pipeline be of this one."""
    handler = installed()
    if handler is not None and isinstance(handler.formatter, EventFormatter):
        handler.formatter.app = app


def show_by_default(app: str) -> None:
    """Write events on standard error, as the environment says, in a program that has not set up logging itself."""
    if logger.handlers or logging.getLogger().handlers:
        return
    level = os.environ.get("HEADRACE_LOG_LEVEL", "info").lower()
    format_ = os.environ.get("HEADRACE_LOG_FORMAT", "text").lower()
    install(event_lines(format_, app=app), level if level in LEVELS else "info")
