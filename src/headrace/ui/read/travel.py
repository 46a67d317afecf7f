"""The way through a log's time: its slices, with marks at versions, trainings and alarms."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.log.base import Log
from headrace.ui.read.models import marks_of
from headrace.ui.read.moment import now, slice_at
from headrace.ui.read.relations import Finder

MOST = 200
WIDTH = 1000


@dataclass(frozen=True, slots=True)
class Stop:
    """Something that happened, at its place on the way.

    Attributes:
        kind: ``version``, ``tag``, ``rollback``, ``training``, ``alarm`` or ``drift``.
        x: from 0, the log's first slice, to `WIDTH`, its newest one.
    """

    kind: str
    text: str
    slice: int
    ts_us: int
    x: int


def stops_of(log: Log) -> list[Stop]:
    """Return what happened to the models of a log, oldest first; the newest `MOST`."""
    newest = log.newest_slice()
    finder = Finder(now(log))
    found: dict[tuple[str, int], Stop] = {}
    for model in log.records("model"):
        for mark in marks_of(finder, model):
            number = min(newest, mark.slice or slice_at(log, mark.ts_us) + 1)
            x = round((WIDTH - 4) * (number - 1) / max(1, newest - 1))
            found[mark.text, number] = Stop(mark.kind, mark.text, number, mark.ts_us, x)
    return sorted(found.values(), key=lambda stop: stop.slice)[-MOST:]
