"""What a capture needs on the server: checked first, then made (publication and slot)."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from headrace.batch import is_meta
from headrace.capture.postgres import catalog, drift, slot_binding
from headrace.capture.postgres.catalog import Publication, Slot, SqlConnection, Table, quote
from headrace.capture.postgres.client import Replication, Server
from headrace.capture.postgres.drift import Began, Look
from headrace.capture.postgres.slot_binding import Identity
from headrace.errors import SourceRefused
from headrace.position import parse_lsn

OLDEST_VERSION = 140000
IN_USE_SECONDS = 30.0


def identify(replication: Replication) -> Identity:
    """System identifier, timeline and database of the server at the other end."""
    (row,) = replication.command("IDENTIFY_SYSTEM")
    return Identity(row["systemid"] or "", int(row["timeline"] or 0), row["dbname"] or "")


def check_server(connection: SqlConnection, server: Server) -> None:
    """Refuse a server that cannot do logical replication.

    Raises:
        SourceRefused: it is too old, or wal_level is not logical.
    """
    version = connection.info.server_version
    if version < OLDEST_VERSION:
        raise SourceRefused(
            f"PostgreSQL at {server} has version {version // 10000}; capture needs {OLDEST_VERSION // 10000} or newer"
        )
    wal_level = catalog.settings(connection, "wal_level")["wal_level"]
    if wal_level != "logical":
        raise SourceRefused(
            f"PostgreSQL at {server} has wal_level «{wal_level}»; capture needs «logical»",
            advice="ALTER SYSTEM SET wal_level = logical; then restart the server.",
        )


def choose_tables(
    connection: SqlConnection, server: Server, patterns: Sequence[str], left_out: Collection[tuple[str, str]] = ()
) -> list[Table]:
    """The tables to capture, in name order, without their columns.

    Args:
        left_out: tables (schema, name) that match and are not captured: this pipeline's sinks write them.

    Raises:
        SourceRefused: none matches, or one that matches cannot be captured.
    """
    existing = [one for one in catalog.all_tables(connection) if (one.schema, one.name) not in left_out]
    chosen = catalog.matching(existing, patterns)
    if not chosen:
        near = catalog.near_misses(existing, patterns)
        hint = f"There are {', '.join(near)}. " if near else "There are no tables at all. "
        wanted = ", ".join(f"«{pattern}»" for pattern in patterns)
        raise SourceRefused(
            f"no table of {server} matches {wanted}",
            advice=f"{hint}A pattern is a regular expression that matches the whole of schema.table.",
        )
    for table in chosen:
        check_kind(table, server)
    return chosen


def check_kind(table: Table, server: Server) -> None:
    """Refuse a table whose changes cannot be captured.

    Raises:
        SourceRefused: it is partitioned, or its changes are not in the server's log.
    """
    if table.kind == "p":
        raise SourceRefused(
            f"table {table} of {server} is partitioned; capture of partitioned tables is not built yet",
            advice="Narrow tables=… to its partitions, which are captured as tables of their own.",
        )
    if table.persistence != "p":
        raise SourceRefused(
            f"table {table} of {server} is unlogged or temporary: its changes are not in the server's log",
            advice=f"ALTER TABLE {table.sql} SET LOGGED; or narrow tables=… to leave it out.",
        )


def known_tables(
    connection: SqlConnection, patterns: Sequence[str], began: Began, left_out: Collection[tuple[str, str]] = ()
) -> list[Table]:
    """The tables that a log has, found by OID whatever they are called now, in name order, without their columns.

    Args:
        left_out: tables (schema, name) that are not captured though they match.

    Raises:
        SourceRefused: the patterns no longer mean one of them, or mean one that the log does not have.
    """
    known = {table.oid: (table.schema, table.name) for table in began.tables}
    existing = catalog.all_tables(connection)
    found = [replace(table, captured_as=known[table.oid]) for table in existing if table.oid in known]
    meant = {table.oid for table in catalog.matching(existing, patterns) if (table.schema, table.name) not in left_out}
    meant |= {table.oid for table in found if catalog.matches(".".join(table.label), patterns)}
    slot_binding.check_tables(
        [str(table) for table in began.tables],
        new=[str(table) for table in existing if table.oid in meant - known.keys()],
        left=[".".join(table.label) for table in found if table.oid not in meant],
    )
    return found


def check_columns(tables: Sequence[Table]) -> None:
    """Refuse tables that have nothing to capture, or a column named as one of ours.

    Raises:
        SourceRefused: naming the table.
    """
    for table in tables:
        reserved = [column.name for column in table.columns if is_meta(column.name)]
        if reserved:
            raise SourceRefused(
                f"table {table} has a column «{reserved[0]}», a name that events use",
                advice="Rename it, leave it out by a column list of a publication of your own, or leave out the table.",
            )
        if not table.columns:
            raise SourceRefused(f"table {table} has no columns", advice="Narrow tables=… to leave it out.")


def check_rights(
    connection: SqlConnection, server: Server, tables: Sequence[Table], *, reads: bool, publishes: bool
) -> None:
    """Refuse what the role may not do: read the tables for a snapshot, make the publication.

    Raises:
        SourceRefused: with the GRANT that is missing.
    """
    query = "SELECT current_user::text, has_database_privilege(current_database(), 'CREATE')"
    role, may_create = connection.execute(query).fetchone() or ("", False)
    unreadable = [table for table in tables if "SELECT" in table.missing]
    if reads and unreadable:
        names = ", ".join(table.sql for table in unreadable)
        raise SourceRefused(
            f"role «{role}» may not read {', '.join(map(str, unreadable))} of {server}",
            advice=f"GRANT SELECT ON {names} TO {quote(role)};",
        )
    foreign = [table for table in tables if "owner" in table.missing]
    if publishes and foreign:
        names = ", ".join(table.sql for table in tables)
        raise SourceRefused(
            f"role «{role}» does not own {', '.join(map(str, foreign))} of {server} and so cannot publish them",
            advice=f"Let their owner CREATE PUBLICATION … FOR TABLE {names}; and name it with publication=….",
        )
    if publishes and not may_create:
        raise SourceRefused(
            f"role «{role}» may not create a publication in {server}",
            advice=f"GRANT CREATE ON DATABASE … TO {quote(role)}; or name an existing one with publication=….",
        )


def check_updates(tables: Sequence[Table], failing: Mapping[int, str], server: Server) -> None:
    """Refuse to publish tables whose UPDATE and DELETE would fail from then on, as `catalog.failing_updates` says.

    Raises:
        SourceRefused: naming each table, with the statements that change it.
    """
    named = [table for table in tables if table.oid in failing]
    if not named:
        return
    said = "; ".join(f"{table}: {failing[table.oid]}" for table in named)
    # FULL is no way on where FULL is what fails.
    mended = " ".join(f"ALTER TABLE {table.sql} REPLICA IDENTITY FULL;" for table in named if table.identity != "f")
    index = "USING INDEX a unique index over NOT NULL columns that are not generated"
    ways = f"{mended} (or REPLICA IDENTITY {index})" if mended else f"ALTER TABLE … REPLICA IDENTITY {index}"
    raise SourceRefused(
        f"capturing these tables of {server} would make the application's own UPDATE and DELETE on them fail ({said})",
        advice=f"{ways} lets them work. Where rows are only ever inserted, say so: "
        "app.postgres(…, allow_failing_updates=True).",
    )


def check_room(connection: SqlConnection, server: Server) -> None:
    """Refuse when no slot is free.

    Raises:
        SourceRefused: max_replication_slots is reached.
    """
    most = int(catalog.settings(connection, "max_replication_slots")["max_replication_slots"])
    (used,) = connection.execute("SELECT count(*) FROM pg_replication_slots").fetchone() or (0,)
    if used >= most:
        raise SourceRefused(
            f"all {most} replication slots of {server} are taken",
            advice="Drop one that nobody needs (pg_replication_slots), or raise max_replication_slots and restart.",
        )


def check_publication(publication: Publication, tables: Sequence[Table], server: Server) -> None:
    """Refuse a publication that the user named and that does not have what is to be captured.

    Raises:
        SourceRefused: with the ALTER PUBLICATION that is missing.
    """
    lacking = [table for table in tables if (table.schema, table.name) not in publication.tables]
    if lacking:
        names = ", ".join(table.sql for table in lacking)
        raise SourceRefused(
            f"publication «{publication.name}» of {server} does not have {', '.join(map(str, lacking))}",
            advice=f"ALTER PUBLICATION {quote(publication.name)} ADD TABLE {names}; or narrow tables=….",
        )
    if "insert" not in publication.operations:
        raise SourceRefused(
            f"publication «{publication.name}» of {server} does not publish inserts",
            advice=f"ALTER PUBLICATION {quote(publication.name)} SET (publish = 'insert, update, delete, truncate');",
        )


def right_shape(now: Look, tables: Sequence[Table]) -> bool:
    """Whether our own publication is as we would make it."""
    return now.only_ours and now.entries.keys() == {table.oid for table in tables}


def ensure_publication(
    connection: SqlConnection, server: Server, name: str, tables: Sequence[Table], *, own: bool
) -> Look:
    """Have a publication with these tables for a log that is new: our ``own`` is made anew when it is not as wanted.

    Returns:
        The publication as it is now.

    Raises:
        SourceRefused: the server refuses, or the user's publication lacks something.
    """
    existing = catalog.publication(connection, name)
    if existing and not own:
        check_publication(existing, tables, server)
    elif not right_shape(drift.look(connection, name), tables):
        statements = drift.recreated(name, [table.sql for table in tables])
        with server.translated(f"to make publication «{name}»"), connection.transaction():
            for statement in statements:
                connection.execute(statement.encode())
    return drift.look(connection, name, oids=[table.oid for table in tables])


def wait_until_free(
    connection: SqlConnection,
    name: str,
    cancelled: Callable[[], bool],
    say: Callable[[str], None],
) -> Slot | None:
    """The slot once nobody reads it: after a SIGKILL the server holds it until it notices that its reader is dead.

    What is waited for is told to ``say``.

    Raises:
        SourceRefused: it is still in use after 30 seconds.
    """
    until = time.monotonic() + IN_USE_SECONDS
    while True:
        slot = catalog.replication_slot(connection, name)
        if slot is None or slot.active_pid is None:
            return slot
        if time.monotonic() > until or cancelled():
            raise in_use(slot)
        say(f"waiting for slot «{name}», which {reader(slot)} still reads")
        time.sleep(0.05)


def reader(slot: Slot) -> str:
    """Who reads a slot now."""
    return f"server process {slot.active_pid}{f' («{slot.reader}»)' if slot.reader else ''}"


def in_use(slot: Slot) -> SourceRefused:
    """The error for a slot that another connection keeps reading."""
    return SourceRefused(
        f"slot «{slot.name}» is being read by another connection ({reader(slot)})",
        advice="Stop the other pipeline, or give this one a name of its own (App's name, prefix=… or slot=…).",
    )


def drop_slot(connection: SqlConnection, server: Server, name: str) -> None:
    with server.translated(f"to drop slot «{name}»"):
        connection.execute("SELECT pg_drop_replication_slot(%s)", [name])


def create_slot(replication: Replication, name: str, cancelled: Callable[[], bool]) -> tuple[int, str]:
    """Make a slot for `pgoutput`: its consistent point and the name of its exported snapshot.

    The snapshot can be imported until the connection runs another command or ends. Waits for transactions that are
    open now and have written.

    Raises:
        CommandError: the server refuses.
    """
    modern = replication.pgconn.server_version >= 150000
    export = "(SNAPSHOT 'export')" if modern else "EXPORT_SNAPSHOT"
    command = f"CREATE_REPLICATION_SLOT {quote(name)} LOGICAL pgoutput {export}"
    (row,) = replication.command(command, cancelled=cancelled)
    return parse_lsn(row["consistent_point"] or "0/0"), row["snapshot_name"] or ""
