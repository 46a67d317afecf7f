"""Appending rows by hand: a form, JSON, a file, a drawing; and what the models predict of a row, beside it."""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs

import fastapi
import pyarrow as pa
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.errors import DeclarationError, FormatError, HeadraceError
from headrace.inspect.health import read_status
from headrace.log.kafka import KafkaLog
from headrace.ui.appending import Appended, GivenRows, append, row_of_texts
from headrace.ui.guard import need
from headrace.ui.read.moment import now
from headrace.ui.read.produced import Form, form_of, predicted_topics, predictions_of, row_of_message
from headrace.ui.read.relations import Found
from headrace.ui.site import Name, Site

SCOPE = "produce"
WAIT_SECONDS = 30.0
FIRST_SECONDS = 3.0
LARGEST_FILE = 1 << 30
LARGEST_FORM = 16 << 20
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".pq", ".gz", ".bz2", ".zst")


def router(site: Site) -> fastapi.APIRouter:
    """Return the routes."""
    routes = fastapi.APIRouter()

    @routes.get("/topics/{topic}/produce")
    def form(request: fastapi.Request, topic: Name) -> Response:
        need(request, SCOPE)
        return site.page(
            request, "produce.html", topic=topic, form=_form(site, topic), token=secrets.token_hex(12),
            predicted=_predicted(site, topic),
        )  # fmt: skip

    @routes.post("/topics/{topic}/produce")
    async def append_rows(request: fastapi.Request, topic: Name) -> Response:
        need(request, SCOPE)
        values = await form_values(request)
        return await _outcome(site, request, topic, lambda: _append_given(site, topic, values))

    @routes.post("/topics/{topic}/produce/file")
    async def append_file(request: fastapi.Request, topic: Name, name: str, token: str) -> Response:
        need(request, SCOPE)
        ending = "".join(Path(name).suffixes[-2:] if Path(name).suffix in ENDINGS[-3:] else Path(name).suffixes[-1:])
        with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
            file = Path(folder) / f"rows{ending if ending.isascii() else ''}"
            await _store(request, file)
            key = await run_in_threadpool(lambda: _form(site, topic).key)
            given = GivenRows(file=file)
            return await _outcome(site, request, topic, lambda: append(site, topic, given, token, key=key))

    @routes.get("/topics/{topic}/{offset:int}/predicted")
    async def predicted(
        request: fastapi.Request,
        topic: Name,
        offset: int,
        message: Annotated[str, fastapi.Query(pattern=r"^(\d{1,9}:\d{1,18})?$")] = "",
    ) -> Response:
        begun = time.monotonic()
        found: list[Found] = []
        runs = True
        async with site.hub.watching():
            while True:
                outputs = await run_in_threadpool(_predicted, site, topic)
                found = await run_in_threadpool(_predictions, site, topic, offset, message)
                runs = await run_in_threadpool(_runs, site, topic)
                passed = time.monotonic() - begun
                # A pipeline that has never seen a row of this topic may be about to read its first.
                waits = passed < WAIT_SECONDS and runs if outputs else bool(message) and passed < FIRST_SECONDS
                if len(found) == len(outputs) > 0 or not waits or site.hub.ended or await request.is_disconnected():
                    break
                if not await site.hub.changed():
                    await asyncio.sleep(0)
        return site.page(
            request, "predicted.html", found=found, outputs=outputs, runs=runs, seconds=WAIT_SECONDS, topic=topic
        )

    return routes


def _form(site: Site, topic: str) -> Form:
    """Return the form of a topic, as a pipeline that reads it knows its rows.

    Of one that nobody has read it has no columns, and JSON and files are appended.
    """
    logs = site.subject.readers(topic)
    owner = site.subject.log_of(topic)
    for log in [*logs, *([owner] if owner is not None else [])]:
        form = form_of(now(log), topic)
        if form.fields:
            return form
    return Form(pa.schema([]), [], ())


def _predicted(site: Site, topic: str) -> list[str]:
    return [name for log in site.subject.readers(topic) for name in predicted_topics(now(log), topic)]


def _predictions(site: Site, topic: str, offset: int, message: str) -> list[Found]:
    """Return the predictions of a row that are there.

    Args:
        message: which one it is, where a pipeline that reads the topic has a number of its own for it.
    """
    found = []
    for log in site.subject.readers(topic):
        row = row_of_message(log, topic, message) if message and isinstance(log, KafkaLog) else offset
        if row is not None:
            found += predictions_of(now(log), topic, row)
    return found


def _runs(site: Site, topic: str) -> bool:
    """Return whether a pipeline that reads a topic may run."""
    if site.models is not None:
        return True
    statuses = [read_status(log) for log in site.subject.readers(topic)]
    # On a cluster one that has said nothing yet may run.
    return any(status.runs or not (status.parts or status.stopped or site.subject.view is None) for status in statuses)


async def form_values(request: fastapi.Request) -> dict[str, str]:
    """Return what a form has sent, URL-encoded.

    Raises:
        DeclarationError: it is too large.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_FORM:
            raise DeclarationError(f"a form holds at most {LARGEST_FORM >> 20} MiB", advice="Append a file.")
    given = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=10_000)
    return {name: values[0] for name, values in given.items()}


async def _store(request: fastapi.Request, file: Path) -> None:
    size = 0
    with file.open("wb") as stream:
        async for part in request.stream():
            size += len(part)
            if size > LARGEST_FILE:
                raise DeclarationError(
                    f"a file here holds at most {LARGEST_FILE >> 30} GiB", advice="headrace produce --file takes any."
                )
            await run_in_threadpool(stream.write, part)


def _append_given(site: Site, topic: str, values: dict[str, str]) -> Appended:
    """Append the row of a form, or the rows of its JSON."""
    token = values.get("token", "")
    form = _form(site, topic)
    if "json" not in values:
        texts: dict[str, str | None] = {
            name.removeprefix("column."): text for name, text in values.items() if name.startswith("column.")
        }
        return append(site, topic, GivenRows(row_of_texts(form.schema, texts)), token, key=form.key)
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text(json_lines(values["json"]))
        return append(site, topic, GivenRows(file=file), token, key=form.key)


def json_lines(text: str) -> str:
    """Return objects of JSON one a line: lines as they are, an array or an object over several lines taken apart.

    Raises:
        FormatError: there is nothing.

    >>> json_lines('[{"a": 1},\\n {"a": 2}]'), json_lines('{"a": 1.50}')
    ('{"a": 1}\\n{"a": 2}', '{"a": 1.50}')
    """
    text = text.strip()
    if not text:
        raise FormatError("there is no row", advice='Write {"column": value, …}.')
    if all(line.strip().startswith("{") and line.strip().endswith("}") for line in text.splitlines() if line.strip()):
        return text
    try:
        value = json.loads(text)
    except ValueError as error:
        raise FormatError(
            f"this is no JSON: {error}", advice="Write one object, an array of them, or one a line."
        ) from error
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in (value if isinstance(value, list) else [value]))


async def _outcome(site: Site, request: fastapi.Request, topic: str, work: Callable[[], Appended]) -> Response:
    """Do it, and say what came of it."""
    appended, wrong = None, None
    try:
        appended = await run_in_threadpool(work)
    except HeadraceError as error:
        wrong = error
    return site.page(
        request, "produced.html", topic=topic, appended=appended, wrong=wrong,
        token=secrets.token_hex(12) if appended is not None else "",
    )  # fmt: skip
