"""Signals of Debezium's: rows that are inserted into a table of their own, and what they ask of snapshots.

https://debezium.io/documentation/reference/3.6/configuration/signalling.html. A row's columns are taken by their
places, whatever they are called: an id, a type, and data as JSON.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headrace import plain_values
from headrace.capture.debezium.expressions import expressions
from headrace.capture.postgres.catalog import Table
from headrace.capture.postgres.snapshot_progress import Progress, Wanted
from headrace.errors import DeclarationError
from headrace.event_log import event

logger = logging.getLogger("headrace")


@dataclass(frozen=True, slots=True)
class Signal:
    """One row of the table."""

    id: str
    type: str
    data: str


def signals_of(rows: pa.RecordBatch) -> list[Signal]:
    """Return the signals that inserted rows are; a row that is none is left out."""
    columns = [plain_values.texts(column) for column in rows.columns[:3]]
    if len(columns) < 3:
        return []
    return [Signal(id_ or "", kind or "", data or "") for id_, kind, data in zip(*columns, strict=True)]


def obeyed(progress: Progress, signal: Signal, tables: Sequence[Table], source: str) -> Progress:
    """Return how far snapshots are when a signal was obeyed; one that cannot be obeyed is warned of."""
    if signal.type in ("snapshot-window-open", "snapshot-window-close"):
        return progress
    try:
        data = json.loads(signal.data or "{}")
        if not isinstance(data, dict):
            raise ValueError("data is no object")
        return _obeyed(progress, signal, data, tables, source)
    except (ValueError, DeclarationError) as error:
        text = f"signal «{signal.id}» ({signal.type}) is left out: {error}"
        logger.warning("%s", text, extra=event("signal_refused", source=source, signal=signal.id))
        return progress


def _obeyed(
    progress: Progress, signal: Signal, data: Mapping[str, Any], tables: Sequence[Table], source: str
) -> Progress:
    if signal.type == "log":
        message = str(data.get("message", ""))
        logger.info("signal «%s»: %s", signal.id, message, extra=event("signal", source=source, signal=signal.id))
        return progress
    if signal.type == "execute-snapshot":
        return _executed(progress, signal, data, tables, source)
    if signal.type == "stop-snapshot":
        _kind(data)
        patterns = _texts(data, "data-collections", required=False)
        return progress.without({table.oid for table in matching(patterns, tables)} if patterns else None)
    if signal.type == "pause-snapshot":
        return progress.paused_now(True)
    if signal.type == "resume-snapshot":
        return progress.paused_now(False)
    raise ValueError("this type is not known")


def _executed(
    progress: Progress, signal: Signal, data: Mapping[str, Any], tables: Sequence[Table], source: str
) -> Progress:
    patterns = _texts(data, "data-collections")
    blocking = _kind(data) == "blocking"
    conditions = data.get("additional-conditions") or []
    if not isinstance(conditions, list) or not all(isinstance(condition, dict) for condition in conditions):
        raise ValueError("additional-conditions is no list of objects")
    every = data.get("additional-condition")
    chosen = matching(patterns, tables)
    if not chosen:
        raise ValueError(f"{', '.join(patterns)} matches none of the tables that are captured")
    wanted = []
    for table in chosen:
        found = [
            str(condition.get("filter", ""))
            for condition in conditions
            if matching([str(condition.get("data-collection", ""))], [table])
        ]
        where = found[0] if found else str(every or "")
        surrogate = str(data.get("surrogate-key") or "").strip()
        # Debezium's blocking snapshots have a whole query there, its incremental ones a condition.
        query = where.strip() if blocking and re.match(r"\s*SELECT\b", where, re.IGNORECASE) else ""
        where = "" if query else where.strip()
        wanted.append(Wanted(signal.id, table.oid, str(table), where, surrogate, blocking=blocking, query=query))
    return progress.with_wanted(wanted)


def _kind(data: Mapping[str, Any]) -> str:
    kind = str(data.get("type") or "incremental").lower()
    if kind not in ("incremental", "blocking"):
        raise ValueError(f"there is no snapshot of type «{kind}»")
    return kind


def _texts(data: Mapping[str, Any], name: str, *, required: bool = True) -> list[str]:
    found = data.get(name)
    if not found and not required:
        return []
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{name} is no list of texts, or has none")
    return [name.strip() for name in found]


def matching(patterns: Sequence[str], tables: Sequence[Table]) -> list[Table]:
    """Return the tables that expressions of Java's match, in the order of the expressions, each once."""
    found: dict[int, Table] = {}
    for pattern in patterns:
        for expression in expressions(pattern, split=False):
            for table in tables:
                if re.fullmatch(expression, str(table), re.IGNORECASE) or pattern == str(table):
                    found.setdefault(table.oid, table)
    return list(found.values())
