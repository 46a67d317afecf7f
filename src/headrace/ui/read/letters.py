"""Dead letters: rows that a pipeline could not use, grouped by why; each with what came, and whether it was sent."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from headrace.batch import Batch
from headrace.log.base import Log
from headrace.plain_values import values
from headrace.produce.producer import KIND
from headrace.ui.read.moment import Moment
from headrace.ui.read.topics import row_of

ENDING, PRODUCER = ".dlq", "letter-"
LOOKED_AT = 100_000
MOST_GROUPS = 200
SHOWN = 100
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(slots=True)
class Group:
    """Dead letters of one topic with one reason, whatever the numbers in it.

    Attributes:
        topic: of the letters; ``origin``: of the rows.
        pattern: the reason, numbers as ``#``; ``reason``: of the newest one, in full.
        first_us, last_us: when the first and the last came.
    """

    topic: str
    origin: str
    pattern: str
    stage: str
    model: str
    reason: str = ""
    count: int = 0
    first_us: int = 0
    last_us: int = 0
    newest: int = 0


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter.

    Attributes:
        op: of the event.
        row: as JSON, where it could be read; ``raw``: the bytes that came, where they are kept.
        sent: whether it was sent again.
        about: the other columns, as the topic has them.
    """

    topic: str
    origin: str
    offset: int
    reason: str
    stage: str
    model: str
    op: str
    position: str
    ts_us: int
    row: str
    raw: bytes | None
    sent: bool
    about: dict[str, Any]


def pattern_of(reason: str) -> str:
    """Return a reason without its numbers, which would make a group of each row.

    >>> pattern_of("the image «p» has 12 bytes, not 784")
    'the image «p» has # bytes, not #'
    """
    return _NUMBERS.sub("#", reason)


def letter_topics(moment: Moment) -> list[str]:
    """Return the topics that hold dead letters."""
    return [name for name, info in moment.topics().items() if name.endswith(ENDING) and info.rows]


def groups_of(moment: Moment) -> tuple[list[Group], bool]:
    """Return dead letters by reason, those that came last first; and whether there are older ones not looked at."""
    found: dict[tuple[str, str, str, str], Group] = {}
    cut = False
    for topic in letter_topics(moment):
        info = moment.topic(topic)
        assert info is not None
        first = max(info.first, info.end - LOOKED_AT)
        cut = cut or first > info.first
        for offset, records in moment.rows(topic, first, info.end):
            for row, (reason, stage, model, ts_us) in enumerate(_told(records)):
                key = topic, pattern_of(reason), stage, model
                if key not in found:
                    found[key] = Group(topic, topic.removesuffix(ENDING), key[1], stage, model, first_us=ts_us)
                group = found[key]
                group.reason, group.newest, group.last_us = reason, offset + row, ts_us
                group.count += 1
    groups = sorted(found.values(), key=lambda group: -group.last_us)
    return groups[:MOST_GROUPS], cut or len(groups) > MOST_GROUPS


def _told(records: pa.RecordBatch) -> Iterator[tuple[str, str, str, int]]:
    columns = [_texts(records, name) for name in ("reason", "stage", "model")]
    times = Batch(records).ts_us.tolist() if "__ts" in records.schema.names else [0] * records.num_rows
    yield from zip(*columns, times, strict=True)


def _texts(records: pa.RecordBatch, name: str) -> list[str]:
    if name not in records.schema.names:
        return [""] * records.num_rows
    return ["" if value is None else str(value) for value in values(records.column(name))]


def letters_of(moment: Moment, topic: str, pattern: str) -> list[Letter]:
    """Return the newest dead letters of a group, the newest first."""
    info = moment.topic(topic)
    if info is None:
        return []
    found: list[int] = []
    end = info.end
    while end > max(info.first, info.end - LOOKED_AT) and len(found) < SHOWN:
        first = max(info.first, end - 4096)
        chunk = [
            offset + row
            for offset, records in moment.rows(topic, first, end)
            for row, (reason, *_) in enumerate(_told(records))
            if not pattern or pattern_of(reason) == pattern
        ]
        found, end = [*chunk, *found], first
    sent = sent_rows(moment.log, topic)
    letters = (letter_of(moment, topic, offset, sent) for offset in reversed(found[-SHOWN:]))
    return [letter for letter in letters if letter is not None]


def letter_of(moment: Moment, topic: str, offset: int, sent: set[str] | None = None) -> Letter | None:
    """Return one dead letter; None where there is none."""
    row = row_of(moment, topic, offset)
    if row is None or not topic.endswith(ENDING):
        return None
    sent = sent_rows(moment.log, topic) if sent is None else sent
    own = dict(row.values)
    named = {name: own.pop(name, None) or "" for name in ("reason", "stage", "model", "row")}
    raw = own.pop("value", None)
    records = next(iter(moment.rows(topic, offset, offset + 1)))[1]
    letter = Letter(
        topic,
        topic.removesuffix(ENDING),
        offset,
        str(named["reason"]),
        str(named["stage"]),
        str(named["model"]),
        str(row.headers.get("op", "")),
        str(row.headers.get("position", "")),
        int(Batch(records).ts_us[0]) if "__ts" in records.schema.names else 0,
        str(named["row"]),
        raw if isinstance(raw, bytes) else None,
        False,
        own,
    )
    return replace(letter, sent=producer_of(letter) in sent)


def producer_of(letter: Letter) -> str:
    """Return the name under which a letter's row is sent again: the same for all letters that one row has caused."""
    place = "\0".join((letter.topic, letter.position, str(letter.ts_us), letter.row))
    return f"{PRODUCER}{hashlib.sha256(place.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"


def sent_rows(log: Log, topic: str) -> set[str]:
    """Return the names under which rows of a topic's letters were sent again."""
    origin = f"{topic.removesuffix(ENDING)}/"
    return {name.removeprefix(origin) for name in log.records(KIND, f"{origin}{PRODUCER}")}
