"""What a pipeline leaves on servers and disks, and its removal: `headrace down`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.capture.postgres import slots
from headrace.capture.postgres.client import Server
from headrace.capture.postgres.slot_binding import OURS, SourceRecord, derived_name, known_sources, where
from headrace.capture.postgres.slots import KeptSlot
from headrace.engines.local.sink_runner import KIND as SINKS
from headrace.errors import DeclarationError
from headrace.kafka.settings import KafkaLocation
from headrace.log import open_log
from headrace.plan.plan import Plan, SourcePlan
from headrace.plan.sinks import SinkPlan
from headrace.units import bytes_text

# The files of a log, behind its name; see `headrace.log.layout` and `headrace.serve.settings`.
_FILES = ("", "-wal", "-shm", ".lock", ".keys", ".health", ".history", ".groups", ".groups-wal", ".groups-shm")


def _nothing() -> None:
    """Remove nothing."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing that a pipeline has made, or writes to.

    Attributes:
        kind: ``slot``, ``publication``, ``positions``, ``log``, ``results``.
        why: why it stays; "" where it is removed.
        bytes: WAL that it keeps, or its size; None where that means nothing.
    """

    kind: str
    name: str
    where: str
    why: str = ""
    bytes: int | None = None
    remove: Callable[[], object] = field(default=_nothing, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        about = {"kind": self.kind, "name": self.name, "where": self.where, "bytes": self.bytes}
        return about | ({"why": self.why} if self.why else {})

    def __str__(self) -> str:
        kept = f" ({bytes_text(self.bytes)})" if self.bytes is not None else ""
        return f"{self.kind} {self.name} of {self.where}{kept}{f': {self.why}' if self.why else ''}"


def leftovers(plan: Plan, *, log_too: bool) -> list[Leftover]:
    """Return what a pipeline has made on servers and disks: what is removed, and what stays. Changes nothing.

    Raises:
        DeclarationError: ``log_too``, and the log is on a cluster.
        SourceRefused: the pipeline runs; LogLocked: its log is being written.
        SourceError: a database cannot be asked.
    """
    if log_too and plan.on_kafka:
        raise DeclarationError(
            "the log is on a cluster, whose topics others may read", advice="Delete them by headrace topics delete."
        )
    known, log_id, files = _log_of(plan)
    found = [left for source in plan.sources for left in _of_source(plan, source, known.get(source.prefix))]
    for sink in plan.sinks:
        found += _of_sink(plan.app, sink, log_id, log_too=log_too)
    why = "" if log_too else "it stays as it is, with its models; --log-too deletes it"
    if plan.on_kafka:
        place = KafkaLocation.parse(plan.log, name=plan.app)
        found.append(Leftover("log", place.name, place.bootstrap, "its topics stay: headrace topics delete"))
    elif files:
        held = sum(file.stat().st_size for file in files)
        remove = _deleting(files) if log_too else _nothing
        found.append(Leftover("log", files[0].name, str(files[0].parent.resolve()), why, held, remove))
    return found


def _log_of(plan: Plan) -> tuple[dict[str, SourceRecord], str, list[Path]]:
    """Return the sources that the log knows, its name for sinks, and its files; the log is not being written then."""
    if plan.on_kafka or plan.log.startswith("memory:") or not Path(plan.log).exists():
        return {}, "", []
    with closing(open_log(plan.log, writer=True)) as log:
        known = known_sources(log)
        log_id = log.records(SINKS, "log").get("log", b"").decode()
    path = Path(plan.log)
    files = [path.with_name(path.name + end) for end in _FILES]
    return known, log_id, [file for file in files if file.exists()]


def _deleting(files: Sequence[Path]) -> Callable[[], None]:
    def delete() -> None:
        for file in files:
            file.unlink(missing_ok=True)

    return delete


def _of_source(plan: Plan, source: SourcePlan, record: SourceRecord | None) -> list[Leftover]:
    """Return slot and publication of a database."""
    server = Server(source.dsn, f"headrace {plan.app}")
    derived = derived_name(plan.app, source.prefix)
    slot = record.slot if record else source.slot or derived
    publication = record.publication if record else source.publication or derived
    found = []
    there = next((kept for kept in slots.slots_of(server) if kept.name == slot), None)
    if there is not None:
        found.append(_slot(plan, server, there))
    if slots.publications_of(server, [publication]):
        own = publication.startswith(OURS)
        why = "" if own else "it was not made by Headrace"
        if own and found and found[0].why:
            why = found[0].why
        remove = (lambda: slots.drop_publication(server, publication)) if not why else _nothing
        found.append(Leftover("publication", publication, str(server), why, remove=remove))
    return found


def place_of(plan: Plan) -> str:
    """Return where a plan's log is, as a slot's owner says it."""
    return where(KafkaLocation.parse(plan.log, name=plan.app).url if plan.on_kafka else plan.log)


def _slot(plan: Plan, server: Server, slot: KeptSlot) -> Leftover:
    slots.check_idle(slot, server)
    owner, why = slot.owner, ""
    if not slot.ours:
        why = "it was not made by Headrace"
    elif owner is not None and owner.place != place_of(plan):
        why = f"it belongs to another log: {owner}"
    remove = (lambda: slots.drop_slot(server, slot.name)) if not why else _nothing
    return Leftover("slot", slot.name, str(server), why, slot.retained_bytes, remove)


def _of_sink(app: str, sink: SinkPlan, log_id: str, *, log_too: bool) -> list[Leftover]:
    """Return what a sink has written, which stays, and its position there, which means nothing without the log."""
    spec = sink.spec
    found = [Leftover("results", sink.name, spec.where, "results stay where they were written")]
    if spec.positions:
        why = "" if log_too and log_id else "the log goes on from there"
        if log_too and not log_id:
            why = "which of them are of this log, which is not there any more, cannot be told"
        remove = (lambda: spec.forget(app, log_id)) if not why else _nothing
        found.append(Leftover("positions", f"{spec.positions}, of {sink.name}", spec.where, why, remove=remove))
    return found
