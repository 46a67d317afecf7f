"""Versions of a model: what each was, where it came from, and the states of those that ended.

A version is the number that predictions carry. It spans from where it began to where the next one began. The current
one moves; one that has ended is fixed. Its state is kept as an *artifact*, so that one can go back to it, as long as
`VersionList.prune` leaves it.

=================  ===========================  =============================================================
kind               name                         value
=================  ===========================  =============================================================
``version``        NAME/000001                  `VersionRecord` (JSON)
``artifact``       NAME/000001                  the learner's state when it ended (`headrace.learn.state`)
``artifact``       NAME/000001@0/1932A28:3      its state at a position, which another version began with
=================  ===========================  =============================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypedDict

from headrace.errors import LogError

PIPELINE = "pipeline"
Pieces = Sequence[bytes | memoryview]


class Writes(Protocol):
    """The part of a log's transaction that the registry needs."""

    def put(self, kind: str, name: str, value: bytes | Pieces) -> None: ...

    def delete(self, kind: str, name: str) -> None: ...


class Reads(Protocol):
    """The part of a log that the registry needs."""

    def records(self, kind: str, prefix: str = "") -> dict[str, bytes]: ...


class TagChange(TypedDict):
    """When a tag was given, or taken away."""

    tag: str
    ts_us: int
    given: bool


@dataclass(slots=True)
class VersionRecord:
    """One version.

    Attributes:
        parent: the version that it goes on from; None for a first one, and after a reset.
        reason, by, ts_us: why it began, who asked for it, when.
        fingerprint: of the declaration; empty where it is that of version ``declared``.
        cut: the cut rule.
        began: ``position`` and ``rows`` that it began with, ``offsets`` of the topics it learns from there on, and
            ``artifact``, the stored state that it was given (None where it goes on with its parent's).
        ended_us: when it ended; None for the current one, of which all that follows is not known here.
        position, rows, hash, size, metrics, known: of its state then; ``rows`` counts those of its parents too.
        learned: topic -> offset after the last row that it took.
        libraries: under which it learned.
        tags: names that it was given; ``tagged``: when each was given, or taken away.
        kept: whether its state is in the log.
        training: of a version that was trained anew: the rows it was trained on; it has learned none of its parent's.
    """

    model: str
    version: int
    parent: int | None = None
    reason: str = ""
    ts_us: int = 0
    by: str = PIPELINE
    cut: str = ""
    declared: int = 0
    fingerprint: dict[str, Any] = field(default_factory=dict)
    began: dict[str, Any] = field(default_factory=dict)
    ended_us: int | None = None
    position: str | None = None
    learned: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    hash: str | None = None
    size: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    known: dict[str, int] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    kept: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    tagged: list[TagChange] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {name: getattr(self, name) for name in _NAMES}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VersionRecord:
        """Return what `to_dict` was made of; what an older record lacks is as if nothing was known."""
        return cls(**{name: value for name, value in values.items() if name in _NAMES})

    @property
    def artifact(self) -> str:
        """The name of its state."""
        return artifact_name(self.model, self.version)

    def then(self, ts_us: int) -> VersionRecord:
        """Return the version as it was at a time: one that had not ended had no end yet, and its tags were others."""
        tags = self._tags_then(ts_us)
        if self.ended_us is not None and self.ended_us <= ts_us:
            return replace(self, tags=tags)
        return replace(self, tags=tags, **{name: getattr(_NOT_ENDED, name) for name in _OF_ITS_END})

    def _tags_then(self, ts_us: int) -> list[str]:
        # Of a tag that was given before such changes were noted it is not known when.
        names = {*self.tags, *(change["tag"] for change in self.tagged)}
        held = []
        for name in names:
            changes = sorted((change["ts_us"], change["given"]) for change in self.tagged if change["tag"] == name)
            before = [given for at_us, given in changes if at_us <= ts_us]
            if before[-1] if before else not (changes and changes[0][1]):
                held.append(name)
        return sorted(held)


_NAMES = tuple(column.name for column in fields(VersionRecord))
_OF_ITS_END = ("ended_us", "position", "learned", "rows", "hash", "size", "metrics", "known", "kept")
_NOT_ENDED = VersionRecord("", 0)


def artifact_name(model: str, version: int, position: str = "") -> str:
    """Return the record of a version's last state, or of its state at a position.

    >>> artifact_name("m", 3), artifact_name("m", 3, "0/A:1")
    ('m/000003', 'm/000003@0/A:1')
    """
    return f"{model}/{version:06d}" + (f"@{position}" if position else "")


def put_version(txn: Writes, version: VersionRecord) -> None:
    txn.put("version", f"{version.model}/{version.version:06d}", json.dumps(version.to_dict()).encode())


def read_artifact(log: Reads, name: str) -> bytes | None:
    """Return a stored state, None where it is not kept."""
    return log.records("artifact", name).get(name)


class VersionList:
    """All versions of one model, as its log has them; changes go through a transaction.

    Args:
        model: its name.
        versions: of it.
    """

    def __init__(self, model: str, versions: Iterable[VersionRecord]) -> None:
        self.model = model
        self.versions = {record.version: record for record in versions}

    @classmethod
    def read(cls, log: Reads, model: str) -> VersionList:
        """Return the versions in a log; none of a model that it does not know."""
        found = log.records("version", f"{model}/").values()
        return cls(model, [VersionRecord.from_dict(json.loads(record)) for record in found])

    def then(self, ts_us: int) -> VersionList:
        """Return the versions that there were at a time, each as it was."""
        return VersionList(self.model, [version.then(ts_us) for version in self if version.ts_us <= ts_us])

    def __iter__(self) -> Any:
        return iter(sorted(self.versions.values(), key=lambda record: record.version))

    def __len__(self) -> int:
        return len(self.versions)

    @property
    def current(self) -> VersionRecord | None:
        """The newest one."""
        return self.versions[max(self.versions)] if self.versions else None

    @property
    def tags(self) -> dict[str, int]:
        """Tag -> version."""
        return {tag: record.version for record in self for tag in record.tags}

    def find(self, wanted: int | str) -> VersionRecord:
        """Return a version by its number or a tag.

        Raises:
            LogError: there is none; the message lists what there is.
        """
        text = str(wanted)
        number = int(text) if text.isdecimal() else self.tags.get(text)
        if number is not None and number in self.versions:
            return self.versions[number]
        tags = "".join(f", {tag} (version {number})" for tag, number in sorted(self.tags.items()))
        raise LogError(
            f"the model «{self.model}» has no version «{text}»", advice=f"It has: {_ranges(self.versions)}{tags}."
        )

    def fingerprint(self, version: VersionRecord) -> dict[str, Any]:
        """Return the declaration that a version learned under."""
        declared = self.versions.get(version.declared)
        return version.fingerprint or (declared.fingerprint if declared is not None else {})

    def lineage(self, version: VersionRecord) -> list[VersionRecord]:
        """Return a version and those that it goes on from, oldest first."""
        chain = [version]
        while chain[0].parent is not None and chain[0].parent in self.versions:
            chain.insert(0, self.versions[chain[0].parent])
        return chain

    # -- changes --------------------------------------------------------------------------------------------------

    def begin(self, txn: Writes, version: VersionRecord) -> None:
        """Note a new version."""
        before = self.versions.get(version.parent or 0)
        if before is not None and not version.fingerprint:
            version.declared = before.version if before.fingerprint else before.declared
        self.versions[version.version] = version
        put_version(txn, version)

    def end(self, txn: Writes, number: int, state: Pieces | None, **what: Any) -> None:
        """End a version: note what it was, and keep its state.

        Args:
            state: of its learner, in pieces; None where it is not known.
            what: fields of `VersionRecord`.
        """
        version = self.versions.setdefault(number, VersionRecord(self.model, number))
        for name, value in what.items():
            setattr(version, name, value)
        version.kept = state is not None
        put_version(txn, version)
        if state is not None:
            txn.put("artifact", version.artifact, state)

    def tag(self, txn: Writes, version: VersionRecord, tag: str, ts_us: int) -> None:
        """Give a version a tag; another one that has it loses it.

        Args:
            ts_us: when.
        """
        if not tag or tag.isdecimal() or tag != tag.strip():
            raise LogError(f"{tag!r} cannot be a tag", advice="Take a word; numbers are versions.")
        for other in self:
            if tag in other.tags and other is not version:
                self.untag(txn, other, tag, ts_us)
        if tag not in version.tags:
            version.tags = sorted([*version.tags, tag])
            version.tagged = [*version.tagged, {"tag": tag, "ts_us": ts_us, "given": True}]
            put_version(txn, version)

    def untag(self, txn: Writes, version: VersionRecord, tag: str, ts_us: int) -> None:
        """Take a tag away.

        Raises:
            LogError: the version does not have it.
        """
        if tag not in version.tags:
            raise LogError(
                f"version {version.version} of «{self.model}» has no tag «{tag}»",
                advice=f"Its tags: {', '.join(version.tags) or 'none'}.",
            )
        version.tags = [own for own in version.tags if own != tag]
        version.tagged = [*version.tagged, {"tag": tag, "ts_us": ts_us, "given": False}]
        put_version(txn, version)

    def prune(self, txn: Writes, last: int) -> list[int]:
        """Drop the states of ended versions but the newest ``last``, those with tags, and those others began with.

        Returns:
            The versions whose states were dropped.
        """
        used = {record.began.get("artifact") for record in self.versions.values()}
        ended = [record for record in self if record.ended_us is not None]
        dropped = []
        for record in ended[: max(0, len(ended) - last)]:
            if record.kept and not record.tags and record.artifact not in used:
                record.kept = False
                put_version(txn, record)
                txn.delete("artifact", record.artifact)
                dropped.append(record.version)
        return dropped


def ranges_of(numbers: Iterable[int]) -> list[list[int]]:
    """Return numbers as ranges of first and last.

    >>> ranges_of([3, 4, 5, 9])
    [[3, 5], [9, 9]]
    """
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


def _ranges(numbers: Iterable[int]) -> str:
    """Return numbers for people.

    >>> _ranges([1, 2, 3, 5])
    '1 to 3, 5'
    """
    return ", ".join(f"{a} to {b}" if a < b else str(a) for a, b in ranges_of(numbers)) or "none"
