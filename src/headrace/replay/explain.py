"""The origin of a prediction: the version that made it, and the rows that it had learned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc

from headrace import plain_values
from headrace.errors import LogError
from headrace.log.base import Log, walk
from headrace.plan.plan import INTERNAL
from headrace.position import Position
from headrace.registry.models import read_model
from headrace.registry.versions import VersionList, VersionRecord
from headrace.replay.position_index import entry_of, find_row, reach_of

_WANTED = ("model", "model_version", "model_position")


def explain(log: Log, topic: str, offset: int) -> dict[str, Any]:
    """Return what is known of a prediction, as JSON values.

    ``learned`` lists, for each version that the model goes back to, oldest first, the offsets of the rows that it took;
    rows that were refused, had no label, or are updates are among them. ``hash`` is of the learner's state then, None
    where it was not recorded: `headrace models rebuild` computes it.

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
    finder = _Finder(log, versions)
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
        "learned": finder.learned(version, there),
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
    for entry in walk(log, f"{INTERNAL}.{app}.steps"):
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

    def learned(self, version: VersionRecord, at: Position | None) -> list[dict[str, Any]]:
        """Return ranges of offsets, those of the versions it goes back to before its own."""
        if version.training:
            return _trained(version)
        parts = [] if version.parent is None else self._of_parent(version)
        for topic in self._topics(version):
            first = int(version.began.get("offsets", {}).get(topic, 0))
            end = self._reach(version, topic, at)
            if end > first:
                parts.append(
                    {"version": version.version, "topic": topic, "first": first, "last": end - 1, "count": end - first}
                )
        return parts

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
            last |= {"last": part["last"], "count": last["count"] + part["count"], "to": part["version"]}
        else:
            joined.append({**part, "to": part["version"]})
    for part in joined:
        versions = f"version {part['version']}" + (f" to {part['to']}" if part["to"] != part["version"] else "")
        yield f"{part['topic']}: offsets {part['first']} to {part['last']} ({part['count']} rows), {versions}"
