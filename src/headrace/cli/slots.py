"""``headrace slots …`` and ``headrace down``: what pipelines leave on servers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.capture.postgres.catalog import quote
from headrace.capture.postgres.client import Server
from headrace.capture.postgres.slot_binding import log_state
from headrace.capture.postgres.slots import KeptSlot, drop_slot, find_slot, publications_of, slots_of
from headrace.cli.arguments import JsonOption, WideOption, load_app
from headrace.cli.console import print_result, print_rows, report, talk
from headrace.engines.local.removal import leftovers
from headrace.errors import DeclarationError, SourceError
from headrace.inspect.messages import to_json
from headrace.units import bytes_text

slots = typer.Typer(help="Replication slots of Headrace on PostgreSQL servers.", no_args_is_help=True)
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
_STATES = {"gone": "gone", "elsewhere": "on another host"}


@slots.command("list")
def slots_list(
    where: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DSN|FILE]...", help="Connection strings, or pipelines' files; or HEADRACE_DSN."),
    ] = None,
    as_json: JsonOption = False,
    wide: WideOption = False,
) -> None:
    """List Headrace's replication slots on a server, how much WAL each keeps, and which log it belongs to.

    A slot that nobody reads keeps WAL until it is dropped, or the server's disk is full.

    Example: headrace slots list postgresql://localhost/shop
    """
    found = [(dsn, slot) for dsn in _servers(where or []) for slot in slots_of(Server(dsn, "headrace")) if slot.ours]
    rows = [_about(dsn, slot) for dsn, slot in found]
    print_rows(rows, as_json=as_json, title="slots", short=_short, wide=wide)
    if as_json:
        return
    for dsn, slot in found:
        kept = f" and keeps {bytes_text(slot.retained_bytes)} of WAL" if slot.retained_bytes is not None else ""
        if slot.owner is not None and log_state(slot.owner) == "gone" and slot.pid is None:
            report(f"The log of {slot.name}, {slot.owner.place}, is not there any more; the slot stays{kept}.")
            report(f"  headrace slots drop {slot.name} {Server(dsn).address!r}")
        elif slot.wal_status == "lost":
            place = slot.owner.place if slot.owner is not None else "PATH"
            report(f"The WAL of {slot.name} is lost: headrace capture resync --log {place}")


@slots.command("drop")
def slots_drop(
    name: Annotated[str, typer.Argument(help="The slot's name.")],
    dsn: Annotated[str, typer.Argument(envvar="HEADRACE_DSN", help="The server, by any of its databases.")],
    force: Annotated[bool, typer.Option("--force", help="Also one that is not Headrace's.")] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Drop a replication slot: the server need not keep WAL for it any more, and its log cannot go on from it.

    A log that it belonged to is taken on by `headrace capture resync`.

    Example: headrace slots drop headrace_iris postgresql://localhost/shop
    """
    server = Server(dsn, "headrace")
    slot = find_slot(server, name, force=force)
    whose = f", which belongs to {slot.owner}" if slot.owner is not None else ""
    ask([f"slot {slot.name} of {server}{whose}"], yes=yes)
    drop_slot(server, name)
    line = f"slot {name} is dropped; the server need not keep {bytes_text(slot.retained_bytes or 0)} of WAL any more"
    print_result(_about(dsn, slot), line, as_json=as_json)
    if slot.ours and not as_json:
        _say_publication(server, slot)


def _say_publication(server: Server, slot: KeptSlot) -> None:
    """Say that a slot's publication is still there, where it is."""
    there = replace(server, dsn=server.conninfo(dbname=slot.database))
    with suppress(SourceError):
        for name in publications_of(there, [slot.name]):
            report(f"publication {name} of database {slot.database} stays: DROP PUBLICATION {quote(name)};")


def down(
    file: Annotated[str, typer.Argument(help="The pipeline's file, or FILE:NAME.")],
    log: Annotated[str | None, typer.Option("--log", help="The log, in place of the file's.")] = None,
    log_too: Annotated[
        bool, typer.Option("--log-too", help="Delete the log too, with its models, and the positions of its sinks.")
    ] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what a pipeline has made on servers: its replication slots and publications. Stop it first.

    The log stays, and with it models and history; so do the results in other databases. `headrace capture resync` lets
    the log go on later.

    Example: headrace down iris.py
    """
    app = load_app(file)
    app.log = log or app.log
    found = leftovers(app.plan(), log_too=log_too)
    removed = [left for left in found if not left.why]
    kept = [left for left in found if left.why]
    if removed:
        ask([str(left) for left in removed], yes=yes)
    for left in removed:
        left.remove()
    if as_json:
        about = {"app": app.name, "log": app.log}
        print(to_json({**about, "removed": [x.to_dict() for x in removed], "kept": [x.to_dict() for x in kept]}))
        return
    for left in removed:
        report(f"removed: {left}")
    for left in kept:
        report(f"stays:   {left}")
    if not removed:
        report("nothing of this pipeline is left to be removed")


def ask(what: Iterable[str], *, yes: bool) -> None:
    """Ask whether something may be removed.

    Raises:
        DeclarationError: nobody can be asked.
    """
    if yes:
        return
    lines = list(what)
    if not talk.is_terminal:
        raise DeclarationError(f"this would remove {'; '.join(lines)}", advice="--yes does it without asking.")
    for line in lines:
        report(f"to be removed: {line}")
    typer.confirm("Remove?", abort=True, err=True)


def _servers(where: list[str]) -> list[str]:
    """Return connection strings, one for each server.

    Raises:
        DeclarationError: none was named.
    """
    named = where or [os.environ.get("HEADRACE_DSN", "")]
    found: dict[str, str] = {}
    for name in named:
        is_file = name.endswith(".py") or ".py:" in name or Path(name).is_file()
        for dsn in [source.dsn for source in load_app(name).plan().sources] if is_file else [name]:
            found.setdefault(str(Server(dsn)).rpartition("/")[0], dsn)
    if not any(found.values()) and not os.environ.get("PGHOST"):
        raise DeclarationError(
            "which server? no connection string was given",
            advice="Give postgresql://HOST/DATABASE, or a pipeline's file.",
        )
    return list(found.values())


def _about(dsn: str, slot: KeptSlot) -> dict[str, Any]:
    owner = slot.owner
    return {
        "name": slot.name,
        "server": str(Server(dsn)),
        "database": slot.database,
        "active": slot.pid is not None,
        "pid": slot.pid,
        "retained_bytes": slot.retained_bytes,
        "wal_status": slot.wal_status or None,
        "idle_since": slot.idle_since or None,
        "app": owner.app if owner else None,
        "log": owner.place if owner else None,
        "host": owner.host if owner else None,
        "last_started": owner.seen or None if owner else None,
        "log_state": log_state(owner) if owner else "unknown",
    }


def _short(about: dict[str, Any]) -> dict[str, Any]:
    state = _STATES.get(about["log_state"], "")
    log = about["log"] or "?"
    log = log if "://" in log else Path(log).name
    return {
        "slot": about["name"],
        "active": "" if about["pid"] is None else f"pid {about['pid']}",
        "WAL": "" if about["retained_bytes"] is None else bytes_text(about["retained_bytes"]),
        "status": about["wal_status"] or "",
        "app": about["app"] or "?",
        "log": f"{log} ({state})" if state else log,
    }
