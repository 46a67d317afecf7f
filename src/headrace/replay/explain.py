"""The origin of a prediction: the version that made it, and the rows that it had learned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc

from headrace import plain_values
from headrace.arrays import Ints
from headrace.batch import Batch, as_events, inserted
from headrace.errors import LogError
from headrace.log.base import Log, walk
from headrace.plan.plan import steps_topic_of
from headrace.position import Position
from headrace.registry.models import read_model
from headrace.registry.versions import VersionList, VersionRecord
from headrace.replay.position_index import entry_of, find_row, reach_of
from headrace.step.events import order_of
from headrace.step.labels import NO_LABEL, Memory, named
from headrace.step.operators import placed

_WANTED = ("model", "model_version", "model_position")


def explain(log: Log, topic: str, offset: int) -> dict[str, Any]:
    """Return what is known of a prediction, as JSON values.

    ``learned`` lists, for each version that the model goes back to, oldest first, the offsets between which it learned
    from a topic, and how many of the rows there it learned (``count``). Rows that were refused, have no label yet, or
    are updates that bring none are not counted; None where the count is not known, since something was done to the
    topic's rows first. ``rows`` is their sum. ``hash`` is of the learner's state then, None where it was not recorded:
    `headrace models rebuild` computes it.

    Raises:
        LogError: no model writes the topic, or it holds no row there.
    """
    row = _row(log, topic, offset)
    name, number, position = (row[column] for column in _WANTED)
    model = read_model(log, name)
    if model is None:
        raise LogError(f"the log has no model «{name}», which the row {offset} of «{topic}» names")
    versions = VersionList.read(log, name)
    version = versions.find(number)
    steps = list(_steps(log, model["app"], name))
    step = next((step for step in steps if _writes(step, topic, offset)), None)
    there = Position.parse(position) if position else None
    learned = _Finder(log, versions).learned(version, there)
    counts = [part["count"] for part in learned]
    return {
        "topic": topic,
        "offset": offset,
        "position": str(Position(row["__lsn"], row["__index"])),
        "prediction": row.get("prediction"),
        "status": row.get("status"),
        "model": name,
        "version": number,
        "model_position": position,
        "step": step["step"] if step else None,
        "cut": version.cut,
        "hash": _hash(steps, versions, position, number, step),
        "rows": None if None in counts else sum(counts),
        "learned": learned,
        "lineage": [
            {"version": of.version, "parent": of.parent, "reason": of.reason, "by": of.by, "began": of.began}
            for of in versions.lineage(version)
        ],
    }


def _row(log: Log, topic: str, offset: int) -> dict[str, Any]:
    info = log.topics().get(topic)
    if info is None:
        raise LogError(f"the log has no topic «{topic}»", advice=f"It has: {', '.join(log.topics()) or 'none'}.")
    if not info.first <= offset < info.end:
        raise LogError(
            f"the topic «{topic}» holds no row {offset}",
            advice=f"Its offsets: {info.first} to {info.end - 1}." if info.rows else "It is empty.",
        )
    entry = entry_of(log, topic, offset)
    assert entry is not None
    records = entry.records.slice(offset - entry.offset, 1)
    missing = [column for column in _WANTED if column not in records.schema.names]
    if missing:
        raise LogError(
            f"«{topic}» holds no predictions of a model: it has no column «{missing[0]}»",
            advice="Name the topic that a model's predictions are written to.",
        )
    return plain_values.rows(records)[0]


def _steps(log: Log, app: str, model: str) -> Iterator[dict[str, Any]]:
    """Yield the model's step records, what they hold as text still."""
    for entry in walk(log, steps_topic_of(app)):
        mine = entry.records.filter(pc.equal(entry.records.column("task"), model))
        yield from mine.select(["step", "outputs", "hash", "position"]).to_pylist()


def _writes(step: dict[str, Any], topic: str, offset: int) -> bool:
    if json.dumps(topic) not in step["outputs"]:
        return False
    first, end = json.loads(step["outputs"])[topic]
    return bool(first <= offset < end)


def _hash(
    steps: list[dict[str, Any]], versions: VersionList, position: str | None, number: int, writer: dict[str, Any] | None
) -> str | None:
    """Return the hash as recorded: with a step that ended with this model, before it wrote; or with a version."""
    until = writer["step"] if writer else steps[-1]["step"] + 1 if steps else 0
    for step in reversed(steps):
        if step["step"] < until and step["position"] == position and step["hash"]:
            return str(step["hash"])
    for version in (versions.versions[number], versions.versions.get(versions.versions[number].parent or 0)):
        if version is not None and version.position == position and version.hash:
            return version.hash
    return None


class _Finder:
    """Finds the rows that a version had learned at a position."""

    def __init__(self, log: Log, versions: VersionList) -> None:
        self._log = log
        self._versions = versions
        self._counted: dict[tuple[str, int], Ints] = {}

    def learned(self, version: VersionRecord, at: Position | None) -> list[dict[str, Any]]:
        """Return ranges of offsets, those of the versions it goes back to before its own."""
        if version.training:
            return _trained(version)
        parts = [] if version.parent is None else self._of_parent(version)
        for topic in self._topics(version):
            first = int(version.began.get("offsets", {}).get(topic, 0))
            end = self._reach(version, topic, at)
            if end > first:
                count = self._count(version, topic, first, end)
                parts.append(
                    {"version": version.version, "topic": topic, "first": first, "last": end - 1, "count": count}
                )
        return parts

    def _count(self, version: VersionRecord, topic: str, first: int, end: int) -> int | None:
        """Return how many rows of a topic it learned between two offsets; None where its declaration does not say."""
        fingerprint = self._versions.fingerprint(version)
        if topic not in fingerprint.get("inputs", []):
            return None
        root = self._versions.lineage(version)[0]
        start = int(root.began.get("offsets", {}).get(topic, 0))
        if (topic, start) not in self._counted:
            target = fingerprint.get("target")
            self._counted[topic, start] = learned_offsets(self._log, topic, target, version.model, start)
        return int(np.diff(np.searchsorted(self._counted[topic, start], [first, end]))[0])

    def _of_parent(self, version: VersionRecord) -> list[dict[str, Any]]:
        parent = self._versions.versions.get(version.parent or 0)
        began = version.began.get("position")
        return [] if parent is None or began is None else self.learned(parent, Position.parse(began))

    def _topics(self, version: VersionRecord) -> list[str]:
        """Return what it learns from, by its declaration: topics, before what is done to their rows."""
        return sorted({text.split(" │ ")[0] for text in self._versions.fingerprint(version).get("inputs", [])})

    def _reach(self, version: VersionRecord, topic: str, at: Position | None) -> int:
        """Return the offset after the last row of a topic that it had learned at a position."""
        if at is None or str(at) == version.began.get("position"):
            return 0
        if str(at) == version.position and version.ended_us is not None:
            return version.learned.get(topic, 0)
        for learned in self._topics(version):
            offset = find_row(self._log, learned, at)
            entry = None if offset is None else entry_of(self._log, learned, offset)
            if entry is not None and offset is not None:
                return offset + 1 if learned == topic else reach_of(self._log, topic, entry, at)
        raise LogError(
            f"the row at {at} is not in the log any more: what version {version.version} had learned is not known",
            advice="Keep topics longer (keep=…).",
        )


def learned_offsets(log: Log, topic: str, target: str | None, model: str, start: int) -> Ints:
    """Return the offsets of the rows that a model has learned from a topic, or would: those that it refused are not.

    Args:
        target: the column of the label; a row without one is learned where an update brings it.
        start: the offset that the model began at.
    """
    memory, found = Memory(), [np.empty(0, np.int64)]
    refused = _refused(log, topic, model)
    for entry in walk(log, topic, start):
        skipped = max(0, start - entry.offset)
        batch = as_events(entry.records.slice(skipped))
        offsets = np.arange(entry.offset + skipped, entry.offset + entry.records.num_rows)
        batch = placed(memory.follow(topic, batch), offsets)
        if target is None:
            batch = batch.filter(inserted(batch))
        elif target in batch.schema.names:
            batch = memory.waiting(named("learn", [topic], 0)).examples(batch, target, [target])
        else:
            continue  # all of them are refused
        memory.settle()
        places = zip(batch.lsn.tolist(), batch.index.tolist(), strict=True) if refused else ()
        at = [row for row, place in enumerate(places) if place in refused]
        found.append(np.delete(order_of(batch), at))
    return np.concatenate(found)


def _refused(log: Log, topic: str, model: str) -> set[tuple[int, int]]:
    """Return the positions of rows that a model has not learned, as dead letters say."""
    found: set[tuple[int, int]] = set()
    for entry in walk(log, f"{topic}.dlq"):
        letters = Batch(entry.records)
        mine = pc.and_(pc.equal(letters.column("stage"), "learn"), pc.equal(letters.column("model"), model))
        # Those of labels that did not come in time stand at the places of other rows.
        mine = pc.and_(mine, pc.invert(pc.starts_with(letters.column("reason"), NO_LABEL.partition("{")[0])))
        rows = letters.filter(np.asarray(mine.fill_null(False)))
        found |= set(zip(rows.lsn.tolist(), rows.index.tolist(), strict=True))
    return found


def _trained(version: VersionRecord) -> list[dict[str, Any]]:
    """Return rows that a version was trained on: of grades their numbers, of others how they were chosen."""
    training = version.training
    about = {"version": version.version, "topic": training.get("topic"), "selection": training.get("selection")}
    if "grades" not in training:
        return [{**about, "count": training.get("rows"), "hash": training.get("hash")}]
    return [{**about, "first": first, "last": last, "count": last - first + 1} for first, last in training["grades"]]


def range_text(parts: list[dict[str, Any]]) -> Iterator[str]:
    """Yield ranges for people; those of versions that follow each other are joined."""
    joined: list[dict[str, Any]] = []
    for part in parts:
        if "first" not in part:
            yield f"{part['selection']} ({part['count']} rows), version {part['version']}"
            continue
        last = next((before for before in reversed(joined) if before["topic"] == part["topic"]), None)
        if last is not None and last["last"] + 1 == part["first"]:
            known = None not in (last["count"], part["count"])
            count = last["count"] + part["count"] if known else None
            last |= {"last": part["last"], "count": count, "to": part["version"]}
        else:
            joined.append({**part, "to": part["version"]})
    for part in joined:
        span = part["last"] - part["first"] + 1
        counted = f"all {span} rows" if part["count"] == span else f"{part['count']} of {span} rows"
        counted = f"of {span} rows" if part["count"] is None else counted
        versions = f"version {part['version']}" + (f" to {part['to']}" if part["to"] != part["version"] else "")
        yield f"{part['topic']}: offsets {part['first']} to {part['last']} ({counted}), {versions}"
