"""Misconfigurations planted in real servers, each found by the doctor, and gone after the SQL that it says."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.databases import Database, debian_binaries, fresh_database
from tests.waiting import wait_until

from headrace.capture.postgres import checks
from headrace.capture.postgres.checks import Heartbeat, KeptWal, OpenTransaction
from headrace.capture.postgres.client import Replication, Server
from headrace.capture.postgres.doctor import Examination, Facts, diagnose, examine, read_facts, repair, statements
from headrace.capture.postgres.source import PostgresSource
from headrace.errors import SourceRefused
from headrace.findings import Finding, Severity
from headrace.log.memory import MemoryLog
from headrace.testing.servers import PostgresServer, free_port, postgres

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
LARGE = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 2000) i)"


@dataclass(frozen=True)
class Planted:
    """Something wrong: statements that plant it (``ROLE`` is a login of the test's own), and what is to be found.

    Attributes:
        options: of the examination.
        as_role: the examination's connection is the role's.
        sql: what a repairing statement has in it; "" where there is none.
        mends: the statements take it away.
    """

    statements: tuple[str, ...]
    check: str
    severity: Severity
    says: str
    sql: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    as_role: bool = False
    mends: bool = True


ALL = ("GRANT SELECT ON ALL TABLES IN SCHEMA public TO ROLE",)
BEAT = "CREATE TABLE beat (id int PRIMARY KEY, ts timestamptz)"
BEATS = Heartbeat("INSERT INTO public.beat (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET ts = now()", 10_000)
MINE = {"publication": "mine", "own_publication": False}
PLANTED = {
    "no replication": Planted(
        ("ALTER ROLE ROLE NOREPLICATION", *ALL), "replication", ERROR, "REPLICATION", "ALTER ROLE", as_role=True
    ),
    "no select": Planted((), "select", ERROR, "may not read public.t", "GRANT SELECT ON", as_role=True),
    "no usage": Planted(
        ('CREATE SCHEMA "Größe"', 'CREATE TABLE "Größe"."t ""x" (id int PRIMARY KEY)'),
        "select",
        ERROR,
        'Größe.t "x',
        'GRANT USAGE ON SCHEMA "Größe" TO',
        as_role=True,
    ),
    "row security": Planted(
        ("ALTER TABLE t ENABLE ROW LEVEL SECURITY", *ALL), "row_security", ERROR, "public.t", "BYPASSRLS", as_role=True
    ),
    "not the owner": Planted(
        ALL, "publication_right", ERROR, "does not own public.t", 'CREATE PUBLICATION', as_role=True, mends=False
    ),
    "no create": Planted(
        ("ALTER TABLE t OWNER TO ROLE",), "publication_right", ERROR, "may not create", "GRANT CREATE", as_role=True
    ),
    "no table matches": Planted((), "tables", ERROR, "There are public.t", options={"patterns": (r"public\.tt",)}),
    "unlogged": Planted(("ALTER TABLE t SET UNLOGGED",), "unlogged", ERROR, "public.t", "SET LOGGED"),
    "reserved column": Planted(("ALTER TABLE t ADD COLUMN __op int",), "columns", ERROR, "«__op»"),
    "no columns": Planted(("CREATE TABLE empty ()",), "columns", ERROR, "no columns"),
    "no primary key": Planted(
        ("CREATE TABLE bare (id int)",), "replica_identity", ERROR, "public.bare", '"bare" REPLICA IDENTITY FULL'
    ),
    "only a unique index": Planted(
        ("CREATE TABLE uq (id int NOT NULL UNIQUE)",), "replica_identity", ERROR, "public.uq", 'USING INDEX "uq_id_key"'
    ),
    "identity nothing": Planted(
        ("ALTER TABLE t REPLICA IDENTITY NOTHING",), "replica_identity", ERROR, "is NOTHING", "REPLICA IDENTITY"
    ),
    "no key": Planted(
        ("CREATE TABLE uq (id int NOT NULL UNIQUE)", "ALTER TABLE uq REPLICA IDENTITY FULL"),
        "no_key",
        WARNING,
        "public.uq",
        'ADD PRIMARY KEY ("id")',
    ),
    "TOAST": Planted(
        ("CREATE TABLE docs (id int PRIMARY KEY, body text)", f"INSERT INTO docs SELECT 1, {LARGE}"),
        "toast",
        WARNING,
        "public.docs: body",
        "REPLICA IDENTITY FULL",
    ),
    "TOAST one day": Planted(
        ("CREATE TABLE docs (id text PRIMARY KEY, body text)",), "toast", NOTE, "public.docs: body", "IDENTITY FULL"
    ),
    "no publication": Planted((), "publication", ERROR, "no publication «mine»", "CREATE PUBLICATION", MINE),
    "publication without the table": Planted(
        ("CREATE TABLE b (id int PRIMARY KEY)", "CREATE PUBLICATION mine FOR TABLE b"),
        "publication_tables",
        ERROR,
        "does not have public.t",
        'ADD TABLE "public"."t"',
        MINE,
    ),
    "publication of updates": Planted(
        ("CREATE PUBLICATION mine FOR TABLE t WITH (publish = 'update')",),
        "publication_operations",
        ERROR,
        "does not publish inserts, deletes",
        "SET (publish =",
        MINE,
    ),
    "publication of inserts": Planted(
        ("CREATE PUBLICATION mine FOR TABLE t WITH (publish = 'insert')",),
        "publication_operations",
        WARNING,
        "does not publish updates, deletes",
        "SET (publish =",
        MINE,
    ),
    "publication of some columns": Planted(
        ("CREATE PUBLICATION mine FOR TABLE t (id)",), "publication_parts", NOTE, "columns x of public.t", options=MINE
    ),
    "publication of some rows": Planted(
        ("CREATE PUBLICATION mine FOR TABLE t WHERE (id > 5)",), "publication_parts", NOTE, "(id > 5)", options=MINE
    ),
    "updates that fail elsewhere": Planted(
        ("CREATE TABLE bare (id int)", "CREATE PUBLICATION every FOR ALL TABLES"),
        "replica_identity",
        ERROR,
        "publication «every»",
        'ALTER TABLE "public"."bare"',
        {"patterns": (r"public\.t",)},
    ),
    "idle slot": Planted(
        ("SELECT pg_create_logical_replication_slot('idle_DB', 'pgoutput')",),
        "slot_idle",
        WARNING,
        "idle_",
        "pg_drop_replication_slot('idle_",
    ),
    "slot of another plugin": Planted(
        ("SELECT pg_create_physical_replication_slot('x_DB')",), "slot", ERROR, "no plugin", options={"slot": "x_DB"}
    ),
    "heartbeat outside the publication": Planted(
        (BEAT, "CREATE PUBLICATION mine FOR TABLE t"),
        "heartbeat",
        ERROR,
        "is not in publication «mine»",
        'ADD TABLE "public"."beat"',
        {**MINE, "heartbeat": BEATS, "patterns": (r"public\.t",)},
    ),
    "heartbeat without a table": Planted(
        (), "heartbeat", ERROR, "does not have", "CREATE TABLE public.beat", {"heartbeat": BEATS}
    ),
    "heartbeat without the right": Planted(
        (BEAT, *ALL), "heartbeat", ERROR, "may not INSERT", "GRANT INSERT", {"heartbeat": BEATS}, as_role=True
    ),
    "heartbeat that nobody captures": Planted(
        (BEAT,), "heartbeat", WARNING, "is not captured", options={"heartbeat": BEATS, "patterns": (r"public\.t",)}
    ),
    "heartbeat that is never run": Planted(
        (BEAT,), "heartbeat", WARNING, "never run", options={"heartbeat": replace(BEATS, interval_ms=0)}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(server: PostgresServer) -> Iterator[Database]:
    """One database for all tests of this module, and a role of the same name that may replicate and nothing else."""
    with fresh_database(server, "doctor") as made:
        made.execute(f"CREATE ROLE {made.name} LOGIN REPLICATION")
        yield made
        made.execute(f"DROP OWNED BY {made.name} CASCADE")
        made.execute(f"DROP ROLE {made.name}")


EMPTY = """
DO $$ DECLARE name text; BEGIN
    FOR name IN SELECT pubname FROM pg_publication LOOP EXECUTE format('DROP PUBLICATION %I', name); END LOOP;
    FOR name IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', name);
    END LOOP;
END $$;
CREATE SCHEMA public;
GRANT USAGE ON SCHEMA public TO public;
CREATE TABLE t (id int PRIMARY KEY, x float8);
"""


@pytest.fixture
def database(shared: Database) -> Database:
    """The module's database with a table and nothing else, and its role as it was made."""
    role = f"DROP OWNED BY {shared.name} CASCADE; ALTER ROLE {shared.name} REPLICATION NOBYPASSRLS;"
    physical = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE plugin IS NULL;"
    shared.drop_slots()
    shared.execute(f"{role} {physical} {EMPTY}")
    return shared


def of(found: Sequence[Finding], check: str, says: str = "") -> list[Finding]:
    return [finding for finding in found if finding.check == check and says in finding.message + finding.ways]


def examination_of(database: Database, planted: Planted) -> Examination:
    dsn = database.dsn.replace("postgres@", f"{database.name}@") if planted.as_role else database.dsn
    options = dict(planted.options)
    if "slot" in options:
        options["slot"] = options["slot"].replace("DB", database.name)
    return Examination(Server(dsn), **options)


@pytest.mark.parametrize("name", PLANTED)
def test_planted(database: Database, name: str) -> None:
    planted = PLANTED[name]
    for statement in planted.statements:
        database.execute(
            statement.replace("ROLE ROLE", f"ROLE {database.name}")
            .replace("TO ROLE", f"TO {database.name}")
            .replace("DB", database.name)
        )
    examination = examination_of(database, planted)
    found = of(examine(examination), planted.check, planted.says)
    assert [finding.severity for finding in found] == [planted.severity], found
    assert planted.sql in " ".join(found[0].sql)
    assert bool(found[0].sql) == bool(planted.sql)
    if planted.sql and planted.mends:
        for statement in found[0].sql:
            database.execute(statement)
        assert not of(examine(examination), planted.check, planted.says)


def test_nothing_is_wrong(database: Database) -> None:
    database.server.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'")
    database.server.execute("SELECT pg_reload_conf()")
    try:
        # Slots are of the whole server, and other tests have some.
        wait_until(lambda: {finding.check for finding in examine(Examination(Server(database.dsn)))} <= {"slot_idle"})
    finally:
        database.server.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        database.server.execute("SELECT pg_reload_conf()")


def test_a_start_says_the_same(database: Database) -> None:
    """Every error that the doctor finds of tables and rights is what a start refuses, in the same words."""
    for plant, mend in (
        ("ALTER TABLE t SET UNLOGGED", "ALTER TABLE t SET LOGGED"),
        ("ALTER TABLE t REPLICA IDENTITY NOTHING", "ALTER TABLE t REPLICA IDENTITY DEFAULT"),
        ("ALTER TABLE t ADD __op int", "ALTER TABLE t DROP __op"),
    ):
        database.execute(plant)
        (found,) = [finding for finding in examine(Examination(Server(database.dsn))) if finding.severity is ERROR]
        with pytest.raises(SourceRefused) as refused:
            PostgresSource(database.dsn, app="x", prefix="x", tables=[".*"]).check(MemoryLog())
        assert (refused.value.message, refused.value.advice) == (found.message, found.ways)
        database.execute(mend)


def test_repair_runs_what_is_safe(database: Database) -> None:
    database.execute("CREATE TABLE bare (id int)")
    database.execute("ALTER TABLE t SET UNLOGGED")
    examination = Examination(Server(database.dsn.replace("postgres@", f"{database.name}@")))
    found = examine(examination)
    assert not [statement for statement in statements(found) if "LOGGED" in statement or "DROP" in statement.upper()]
    done = dict(repair(examination.server, found))
    assert "must be owner" in done['ALTER TABLE "public"."bare" REPLICA IDENTITY FULL;']
    assert not any(dict(repair(Server(database.dsn), found)).values())
    left = examine(examination)
    assert not of(left, "select")
    assert of(left, "unlogged")


def test_no_password_is_shown(database: Database) -> None:
    port = free_port()
    (found,) = examine(Examination(Server(f"postgresql://me:geheim@127.0.0.1:{port}/shop")))
    assert found.check == "connection"
    assert f"127.0.0.1:{port}/shop" in found.message
    (tls,) = examine(Examination(Server(f"{database.server.tcp_dsn}?sslmode=require&password=geheim")))
    assert tls.check == "ssl"
    (unknown,) = examine(Examination(Server(database.server.tcp_dsn.replace("postgres@", "nobody:geheim@"))))
    assert (unknown.check, unknown.severity) == ("connection", ERROR)
    assert "geheim" not in f"{found}{tls}{unknown}"


def test_a_log_that_cannot_go_on(database: Database) -> None:
    log = MemoryLog()
    source = PostgresSource(database.dsn, app=database.name, prefix=database.name, tables=[r"public\.t"])
    source.check(log)
    source.start(log)
    source.stop()
    examination = Examination(Server(database.dsn), slot=source.declared.slot, log=log, source=database.name)
    assert not of(examine(examination), "log")
    database.execute(f"DROP PUBLICATION {source.declared.publication}")
    assert "is gone" in of(examine(examination), "log")[0].message
    wait_until(
        lambda: (
            not database.execute("SELECT 1 FROM pg_replication_slots WHERE active AND slot_name = %s", examination.slot)
        )
    )
    database.drop_slots()
    (gone,) = of(examine(examination), "log")
    assert examination.slot in gone.message
    assert gone.advice


# --- servers that are set up otherwise ---


def test_a_narrow_server(tmp_path: Path) -> None:
    """One walsender, two slots, hardly any WAL for them; then a standby of wal_level replica."""
    settings = {"max_wal_senders": "1", "max_replication_slots": "2", "max_slot_wal_keep_size": "1MB", "fsync": "off"}
    settings |= {"idle_replication_slot_timeout": "1d", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    with postgres(settings=settings) as narrow:
        narrow.execute("CREATE TABLE t (id int PRIMARY KEY)")
        for name in ("one", "two"):
            narrow.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", name)
        with contextlib.closing(Replication.open(Server(narrow.dsn))) as replication:
            replication.command("IDENTIFY_SYSTEM")
            found = examine(Examination(Server(narrow.dsn)))
        assert "max_replication_slots" in of(found, "replication_slots")[0].advice
        assert "max_wal_senders = 11" in of(found, "wal_senders")[0].sql[0]
        assert of(found, "max_slot_wal_keep_size", "1.0 MB")
        assert of(found, "idle_replication_slot_timeout", "1 d")
        for _ in range(4):
            narrow.execute("INSERT INTO t SELECT max(id) + 1 FROM (SELECT id FROM t UNION SELECT 0)")
            narrow.execute("SELECT pg_switch_wal()")
        found = examine(Examination(Server(narrow.dsn), slot="one"))
        assert of(found, "slot_unreserved") or of(found, "slot_lost")
        narrow.execute("CHECKPOINT")
        found = examine(Examination(Server(narrow.dsn), slot="one", place="x.headrace"))
        assert [finding.severity for finding in of(found, "slot_lost")] == [ERROR, WARNING]
        assert "headrace capture resync --log x.headrace" in of(found, "slot_lost")[0].advice
        for name in ("one", "two"):
            narrow.execute("SELECT pg_drop_replication_slot(%s)", name)
        narrow.stop()
        narrow.settings["wal_level"] = "replica"
        (narrow.data / "standby.signal").touch()
        narrow.start()
        found = examine(Examination(Server(narrow.dsn)))
        assert of(found, "standby")
        assert of(found, "wal_level")[0].sql == ("ALTER SYSTEM SET wal_level = logical;",)
        with pytest.raises(SourceRefused, match="is a standby"):
            PostgresSource(narrow.dsn, app="x", prefix="x", tables=[".*"]).check(MemoryLog())


def test_debian(tmp_path: Path) -> None:
    with postgres(settings={"fsync": "off"}, binaries=debian_binaries()) as old:
        old.execute("CREATE TABLE bare (id int, body text)")
        old.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        old.execute("SELECT pg_create_logical_replication_slot('idle', 'pgoutput')")
        found = examine(Examination(Server(old.dsn)))
        assert {finding.check for finding in found} >= {"replica_identity", "no_key", "slot_idle", "toast"}
        assert of(examine(Examination(Server(old.dsn.replace("/postgres?", "/ascii?")))), "encoding")
        assert not any(dict(repair(Server(old.dsn), found)).values())
        assert not of(examine(Examination(Server(old.dsn))), "replica_identity")


@pytest.mark.parametrize("ignored", ["", "ignore_startup_parameters = options"])
def test_pgbouncer(server: PostgresServer, tmp_path: Path, ignored: str) -> None:
    """A pooler is told, whether it refuses our settings or swallows them; a start refuses it, too."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    port = free_port()
    config = server.directory / f"pgbouncer{port}.ini"
    config.write_text(
        f"[databases]\npostgres = host=127.0.0.1 port={server.port} user=postgres\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\npool_mode = transaction\n"
        f"unix_socket_dir =\n{ignored}\n"
    )
    with subprocess.Popen([program, str(config)], user="nobody", stderr=subprocess.DEVNULL) as process:
        try:
            dsn = f"postgresql://postgres@127.0.0.1:{port}/postgres"
            plain = f"{dsn}?connect_timeout=5"
            wait_until(lambda: not of(examine(Examination(Server(plain))), "connection"))
            found = of(examine(Examination(Server(plain))), "pooler")
            assert [finding.severity for finding in found] == [ERROR]
            assert "own host and port" in found[0].ways
            with pytest.raises(SourceRefused, match=r"pooler|startup parameter"):
                PostgresSource(plain, app="x", prefix="x", tables=[".*"]).check(MemoryLog())
        finally:
            process.terminate()


# --- what no server here can be brought to, by facts ---


@pytest.fixture(scope="module")
def facts(server: PostgresServer) -> Facts:
    """The facts of a server that is in order."""
    with fresh_database(server, "facts") as database:
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")
        examination = Examination(Server(database.dsn))
        with contextlib.closing(examination.server.sql()) as connection:
            return replace(read_facts(connection, examination), slots=(), where="db:5432/shop")


def found_of(facts: Facts, check: str, **changed: Any) -> list[Finding]:
    examination = Examination(Server("host=db dbname=shop"), slot="mine")
    assert not of(diagnose(facts, examination), check)
    return of(diagnose(replace(facts, **changed), examination), check)


def test_facts_of_other_servers(facts: Facts) -> None:
    libraries = {**facts.settings, "output_plugin_libraries": "test_decoding"}
    (plugin,) = found_of(facts, "output_plugin_libraries", settings=libraries)
    assert plugin.sql[0] == 'ALTER SYSTEM SET output_plugin_libraries = pgoutput, "test_decoding";'
    assert found_of(facts, "version", version=130005)[0].severity is ERROR
    assert found_of(facts, "ssl", encrypted=False, local=False)[0].severity is WARNING
    old = OpenTransaction("prepared transaction 'x'", 4000.0, "ROLLBACK PREPARED 'x';")
    assert "1 h" in found_of(facts, "open_transaction", transactions=(old,))[0].message
    managed = replace(facts.role, replicates=False, managed="rds_replication")
    assert 'GRANT "rds_replication" TO' in found_of(facts, "replication", role=managed)[0].sql[0]


def test_a_reader_that_is_behind(facts: Facts, database: Database) -> None:
    database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", f"s_{database.name}")
    with contextlib.closing(Server(database.dsn).sql()) as connection:
        examination = Examination(Server(database.dsn))
        (kept,) = [kept for kept in read_facts(connection, examination).slots if kept.slot.database == database.name]
    mine = replace(kept.slot, name="mine", active_pid=7)
    behind = KeptWal(mine, "extended", 3 << 30, 2 << 30, None, 95.0, None)
    (lag,) = found_of(facts, "slot_lag", slots=(behind,))
    assert "2.1 GB of WAL behind, and 1 min" in lag.message
    limited = {**facts.settings, "max_slot_wal_keep_size": "4096"}
    near = replace(behind, safe=100_000_000)
    (danger,) = found_of(facts, "slot_unreserved", slots=(near,), settings=limited)
    assert (danger.severity, danger.sql[0]) == (ERROR, "ALTER SYSTEM SET max_slot_wal_keep_size = '8192MB';")
    lost = replace(behind, slot=replace(mine, lost="wal_removed"), wal_status="lost", retained=None)
    assert found_of(facts, "slot_lost", slots=(lost,))[0].severity is ERROR


def test_open_transactions_are_seen(database: Database) -> None:
    with psycopg.connect(database.dsn) as writer, contextlib.closing(Server(database.dsn).sql()) as connection:
        writer.execute("INSERT INTO t VALUES (1, 1)")
        facts = read_facts(connection, Examination(Server(database.dsn)))
        assert [each.sql for each in facts.transactions] == [f"SELECT pg_terminate_backend({writer.info.backend_pid});"]
        assert not checks.transactions(facts.transactions, "here")
        writer.rollback()
