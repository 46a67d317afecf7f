"""Tables that are renamed, moved and swapped, and publications that are altered: rows go on, or capture is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import psycopg
import pytest

from headrace.capture.base import KIND
from headrace.capture.postgres import catalog, drift
from headrace.capture.postgres.decode import Known
from headrace.capture.postgres.messages import Column, Relation
from headrace.capture.postgres.slot_binding import SourceRecord
from headrace.capture.postgres.table import table as stream_table
from headrace.errors import LogCorrupt, SourceRefused
from headrace.log.base import Log

from .conftest import Capture, CapturedDatabase, Engine

NEW_LOG = "begins with a new snapshot"


def refusal(database: CapturedDatabase, log: Log, **options: Any) -> str:
    """What a start says."""
    with pytest.raises(SourceRefused) as caught:
        database.source(**options).check(log)
    assert NEW_LOG in caught.value.advice
    return str(caught.value)


def refused_while_running(engine: Engine) -> str:
    """What the pipeline ends with; a wait must not say before that everything is in the log."""
    with pytest.raises(SourceRefused) as waited:
        engine.source.end()
    with pytest.raises(SourceRefused) as polled:
        engine.until(lambda: False)
    assert str(waited.value) == str(polled.value)
    engine.source.stop()
    return str(polled.value)


def keys(engine: Engine, topic: str) -> list[str]:
    entries = engine.log.read_topic(topic, limit=10**9)
    return [json.loads((entry.records.schema.metadata or {})[b"headrace.key"]) for entry in entries]


TABLES = (
    *("t_renamed", "t_once", "t_other", "t_moved", "t_left", "t_right"),
    *("t_part", "t_key", "t_full", "t_index", "t_columns", "t_dropped"),
)

# Each on its own table. The first part while capture runs, the second while it is stopped; ids count up from 1.
RUNNING = """
ALTER TABLE t_renamed RENAME TO t_tmp; INSERT INTO t_tmp VALUES (2); ALTER TABLE t_tmp RENAME TO t_renamed;
INSERT INTO t_renamed VALUES (3);
BEGIN; INSERT INTO t_once VALUES (2); ALTER TABLE t_once RENAME TO t_tmp; INSERT INTO t_tmp VALUES (3);
ALTER TABLE t_tmp RENAME TO t_once; INSERT INTO t_once VALUES (4); COMMIT;
ALTER TABLE t_other RENAME TO other; INSERT INTO other VALUES (2);
ALTER TABLE t_moved SET SCHEMA elsewhere; INSERT INTO elsewhere.t_moved VALUES (2);
BEGIN; ALTER TABLE t_left RENAME TO t_tmp; ALTER TABLE t_right RENAME TO t_left; ALTER TABLE t_tmp RENAME TO t_right;
INSERT INTO t_right VALUES (2); INSERT INTO t_left VALUES (3); COMMIT; INSERT INTO t_left VALUES (4);
ALTER TABLE whole ATTACH PARTITION t_part FOR VALUES FROM (0) TO (100); INSERT INTO t_part VALUES (2);
INSERT INTO whole VALUES (3); ALTER TABLE whole DETACH PARTITION t_part; INSERT INTO t_part VALUES (4);
ALTER TABLE t_key RENAME id TO number; INSERT INTO t_key VALUES (2); UPDATE t_key SET x = 1 WHERE number = 1;
ALTER TABLE t_full REPLICA IDENTITY FULL; ALTER TABLE t_full RENAME id TO number; INSERT INTO t_full VALUES (2);
ALTER TABLE t_index ALTER x SET NOT NULL; CREATE UNIQUE INDEX u ON t_index (x);
ALTER TABLE t_index REPLICA IDENTITY USING INDEX u; INSERT INTO t_index VALUES (2, 2);
UPDATE t_index SET id = 3 WHERE x = 2;
ALTER TABLE t_columns ADD y text; INSERT INTO t_columns VALUES (2, 1, 'z'); ALTER TABLE t_columns DROP x;
INSERT INTO t_columns VALUES (3, 'z'); ALTER TABLE t_columns ALTER y TYPE bytea USING 'a';
INSERT INTO t_columns VALUES (4, 'b');
"""
STOPPED = """
ALTER TABLE t_renamed RENAME TO t_tmp; INSERT INTO t_tmp VALUES (4); ALTER TABLE t_tmp RENAME TO t_renamed;
INSERT INTO t_renamed VALUES (5);
INSERT INTO t_once VALUES (5); ALTER TABLE t_once RENAME TO unlike;
INSERT INTO other VALUES (3);
ALTER TABLE elsewhere.t_moved RENAME TO away; INSERT INTO elsewhere.away VALUES (3);
ALTER SCHEMA elsewhere RENAME TO far; INSERT INTO far.away VALUES (4);
INSERT INTO t_right VALUES (5); ALTER TABLE t_right RENAME TO t_tmp2; ALTER TABLE t_left RENAME TO t_right;
ALTER TABLE t_tmp2 RENAME TO t_left; INSERT INTO t_right VALUES (6);
INSERT INTO t_dropped VALUES (2); DROP TABLE t_dropped;
INSERT INTO t_key VALUES (3); ALTER TABLE t_key RENAME number TO id; INSERT INTO t_key VALUES (4);
INSERT INTO t_full VALUES (3); ALTER TABLE t_full RENAME number TO other_number; INSERT INTO t_full VALUES (4);
"""
EXPECTED = {
    "t_renamed": [1, 2, 3, 4, 5],
    "t_once": [1, 2, 3, 4, 5],
    "t_other": [1, 2, 3],
    "t_moved": [1, 2, 3, 4],
    "t_left": [1, 2, 5],
    "t_right": [1, 3, 4, 6],
    "t_part": [1, 2, 3, 4],
    "t_dropped": [1, 2],
    "t_index": [1, 2, 3],
    "t_columns": [1, 2, 3, 4],
}


def statements(script: str) -> list[str]:
    return [statement.strip() for statement in script.split(";") if statement.strip()]


def run_script(database: CapturedDatabase, script: str) -> None:
    """One connection, each statement by itself."""
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        for statement in statements(script):
            connection.execute(statement.encode())


def test_rows_follow_their_table(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    database.execute("CREATE SCHEMA elsewhere; CREATE TABLE whole (id int, x float8) PARTITION BY RANGE (id)")
    for name in TABLES:
        database.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, x float8 DEFAULT 0)")
        database.execute(f"INSERT INTO {name} VALUES (1)")
    engine = capture()
    run_script(database, RUNNING)
    engine.catch_up()
    assert "table public.t_other is called public.other now" in caplog.text
    engine.source.stop()
    run_script(database, STOPPED)
    engine = capture(engine.log)
    engine.catch_up()
    for name, expected in EXPECTED.items():
        assert engine.ids(database.topic(name)) == expected, name
    assert sorted(engine.log.topics()) == sorted(database.topic(name) for name in TABLES)
    found = engine.log.read_topic(database.topic("t_key"), limit=10**9)
    columns = [entry.records.schema.names[0] for entry in found]
    assert [key[0] for key in keys(engine, database.topic("t_key"))] == columns
    assert set(columns) == {"id", "number"}
    found = engine.log.read_topic(database.topic("t_full"), limit=10**9)
    assert [key[0] for key in keys(engine, database.topic("t_full"))] == [e.records.schema.names[0] for e in found]
    assert set(map(tuple, keys(engine, database.topic("t_index")))) == {("id",)}


# What is done behind the capture's back, and what it says; {p} is its publication, {s} the tables' schema.
REFUSED = {
    "swapped": (
        "CREATE TABLE t_new (LIKE t INCLUDING ALL); INSERT INTO t_new VALUES (1, 1); ALTER TABLE t RENAME TO t_old; "
        "ALTER TABLE t_new RENAME TO t; INSERT INTO t VALUES (2, 2)",
        "public.t is another table now .* is called public.t_old now",
    ),
    "moved in": (
        "CREATE SCHEMA s; CREATE TABLE s.t (LIKE t); ALTER TABLE t RENAME TO t_old; ALTER TABLE s.t SET SCHEMA {s}",
        "public.t is another table now",
    ),
    "partitioned in its place": (
        "ALTER TABLE t RENAME TO t1; CREATE TABLE t (id int, x float8) PARTITION BY RANGE (id)",
        "public.t is another table now",
    ),
    "fewer operations": ("ALTER PUBLICATION {p} SET (publish = 'update')", "no longer publishes inserts, deletes, tr"),
    "no truncates": ("ALTER PUBLICATION {p} SET (publish = 'insert,update,delete')", "no longer publishes truncates"),
    "set back": (
        "ALTER PUBLICATION {p} SET (publish = 'update'); INSERT INTO t VALUES (1, 1); "
        "ALTER PUBLICATION {p} SET (publish = 'insert, update, delete, truncate')",
        "was altered, and set back",
    ),
    "by the root": ("ALTER PUBLICATION {p} SET (publish_via_partition_root = off)", "was altered .pubviaroot is False"),
    "row filter": ("ALTER PUBLICATION {p} SET TABLE ONLY t WHERE (id > 10)", "the row filter of table public.t"),
    "column list": ("ALTER PUBLICATION {p} SET TABLE ONLY t (id)", "the column list of table public.t"),
    "another table": ("ALTER PUBLICATION {p} ADD TABLE w", "has tables that the log does not have"),
    "a whole schema": ("ALTER PUBLICATION {p} ADD TABLES IN SCHEMA {s}", "has tables .*all of a schema"),
    "taken out": (
        "ALTER PUBLICATION {p} ADD TABLE w; ALTER PUBLICATION {p} DROP TABLE t",
        "no longer has table public.t",
    ),
    "put back": (
        "ALTER PUBLICATION {p} DROP TABLE t; INSERT INTO t VALUES (1, 1); ALTER PUBLICATION {p} ADD TABLE ONLY t",
        "public.t was taken out .* and put back",
    ),
    "dropped": ("DROP PUBLICATION {p}", "is gone"),
    "dropped and made": (
        "DROP PUBLICATION {p}; CREATE PUBLICATION {p} FOR TABLE ONLY t",
        "was dropped and made again",
    ),
    "renamed away and back": (
        "ALTER PUBLICATION {p} RENAME TO q; INSERT INTO t VALUES (1, 1); ALTER PUBLICATION q RENAME TO {p}",
        "was altered, and set back",
    ),
}


def test_what_is_done_behind_our_back_is_refused(database: CapturedDatabase, capture: Capture) -> None:
    """While it runs, at the next start, and at the one after it; each case with a schema and a pipeline of its own."""
    for number, (case, (done, says)) in enumerate(REFUSED.items()):
        app = f"case{number}"
        options = {"app": app, "prefix": app, "tables": [rf"{app}\.t.*"]}
        setting = f"CREATE SCHEMA {app}; SET search_path = {app}; CREATE TABLE t (id int PRIMARY KEY, x float8);"
        run_script(database, setting + "CREATE TABLE w (id int)")
        engine = capture(**options)
        run_script(database, f"INSERT INTO {app}.t VALUES (100, 1)")
        engine.catch_up()
        run_script(database, f"SET search_path = {app};" + done.format(p=f"headrace_{app}", s=app))
        error, says = refused_while_running(engine), says.replace("public.", f"{app}.")
        assert re.search(says, error), f"{case}: {error}"
        assert engine.ids(f"{app}.{app}.t") == [100], case
        for _ in range(2):
            assert re.search(says, refusal(database, engine.log, **options)), case
        database.drop_slots()


def test_names_that_are_given_back(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    run_script(database, REFUSED["swapped"][0].format(p="", s=""))
    assert "another table now" in refused_while_running(engine)
    database.execute("ALTER TABLE t RENAME TO new; ALTER TABLE t_old RENAME TO t; INSERT INTO t VALUES (3, 3)")
    engine = capture(engine.log)
    engine.catch_up()
    assert engine.ids(database.topic()) == [3]


def test_what_is_done_while_it_is_stopped_is_refused_before_anything_runs(
    database: CapturedDatabase, capture: Capture
) -> None:
    engine = capture()
    engine.source.stop()
    held = engine.log.records(KIND)
    run_script(database, REFUSED["set back"][0].format(p=f"headrace_{database.name}"))
    assert "set back" in refusal(database, engine.log)
    assert engine.log.records(KIND) == held
    with pytest.raises(SourceRefused, match="set back"):
        database.source().start(engine.log)


def test_a_look_now_and_then(database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits, nothing is inserted: it is seen all the same. A new table is only warned of, while it runs."""
    engine = capture()
    database.execute("CREATE TABLE t_new (id int); CREATE TABLE unlike (id int)")
    engine.until(lambda: "public.t_new matches tables" in caplog.text, 60)
    assert "unlike" not in caplog.text
    database.execute(f"ALTER PUBLICATION headrace_{database.name} SET (publish = 'insert')")
    with pytest.raises(SourceRefused, match="no longer publishes updates"):
        engine.until(lambda: False, 60)


def test_harmless_changes(database: CapturedDatabase, capture: Capture) -> None:
    role = f"owner_{database.name}"
    engine = capture()
    try:
        database.execute(f"CREATE ROLE {role} SUPERUSER; ALTER PUBLICATION headrace_{database.name} OWNER TO {role}")
        database.execute(f"ALTER TABLE t OWNER TO {role}; COMMENT ON TABLE t IS 'x'")
        database.execute("VACUUM FULL t")
        database.execute("VACUUM (FULL, FREEZE) pg_catalog.pg_publication")
        database.execute(f"ALTER PUBLICATION headrace_{database.name} SET TABLE ONLY t; ANALYZE")
        database.execute("VACUUM FULL pg_catalog.pg_publication_rel")
        database.execute("CREATE VIEW v AS SELECT * FROM t; CREATE TABLE unlike (id int)")
        database.execute("TRUNCATE t; INSERT INTO t VALUES (1, 1)")
        engine.catch_up()
        engine.source.stop()
        engine = capture(engine.log)
        database.execute("INSERT INTO t VALUES (2, 1)")
        engine.catch_up()
        assert engine.ids(database.topic()) == [None, 1, 2]
        engine.source.stop()
    finally:
        database.execute(f"REASSIGN OWNED BY {role} TO postgres; DROP ROLE {role}")


# --- publications of the user's ---


def test_other_tables_of_the_users_publication(database: CapturedDatabase, capture: Capture) -> None:
    """Those that are not wanted are left out, whatever they have; one that takes a name that is wanted joins."""
    database.execute("CREATE TABLE other (id int, __op int); CREATE PUBLICATION mine FOR ALL TABLES")
    engine = capture(publication="mine")
    database.execute("INSERT INTO other VALUES (7, 7); CREATE TABLE also (id int); INSERT INTO also VALUES (7)")
    database.execute("ALTER TABLE t RENAME TO u; INSERT INTO u VALUES (1, 1)")
    engine.catch_up()
    assert engine.ids(database.topic()) == [1]
    assert list(engine.log.topics()) == [database.topic()]
    database.execute("CREATE TABLE t5 (id int PRIMARY KEY); INSERT INTO t5 VALUES (7)")
    engine.catch_up()
    database.execute("INSERT INTO t5 VALUES (8)")
    engine.catch_up()
    assert engine.ids(database.topic("t5")) == [7, 8]
    engine.source.stop()
    database.execute("CREATE TABLE t6 (id int PRIMARY KEY); INSERT INTO t6 VALUES (1); INSERT INTO t5 VALUES (9)")
    engine = capture(engine.log, publication="mine")
    engine.catch_up()
    assert engine.ids(database.topic("t6")) == [1]
    assert engine.ids(database.topic("t5")) == [7, 8, 9]


def test_the_users_publication_is_altered(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    database.execute(
        "CREATE TABLE t2 (id int PRIMARY KEY); CREATE PUBLICATION mine FOR TABLE t (id) WHERE (id > 0), t2"
    )
    engine = capture(publication="mine")
    database.execute("ALTER TABLE t RENAME id TO number; ALTER TABLE t ADD y int; INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    assert engine.ids(database.topic(), "number") == [1]
    database.execute("ALTER PUBLICATION mine SET TABLE t (number) WHERE (number > 1)")
    # What it sends now is another part of the table: that is read, and the topic begins anew; the other one has left.
    engine.until(lambda: "table public.t2 is not in the publication any more" in caplog.text)
    database.execute("INSERT INTO t VALUES (2, 2, 2), (0, 0, 0); INSERT INTO t2 VALUES (1)")
    engine.catch_up()
    assert engine.ids(database.topic(), "number") == [1, None, 2]
    assert engine.ids(database.topic("t2")) == []
    database.execute("ALTER PUBLICATION mine ADD TABLE t2; INSERT INTO t2 VALUES (2)")
    engine.catch_up()
    assert engine.ids(database.topic("t2")) == [None, 1, 2]


def test_tables_of_a_published_schema(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    database.execute("CREATE SCHEMA s; CREATE PUBLICATION mine FOR TABLES IN SCHEMA public")
    engine = capture(publication="mine")
    database.execute("INSERT INTO t VALUES (1, 1); ALTER TABLE t SET SCHEMA s; INSERT INTO s.t VALUES (2, 2)")
    engine.catch_up()
    assert "table public.t is not in the publication any more" in caplog.text
    assert engine.ids(database.topic()) == [1]


def test_a_partition_under_a_published_root(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    """Its rows come as its root's from then on, where the publication says so; otherwise as its own."""
    database.execute(
        "CREATE TABLE whole (id int, x float8) PARTITION BY RANGE (id); ALTER TABLE t DROP CONSTRAINT t_pkey"
    )
    database.execute("CREATE PUBLICATION mine FOR TABLE t, whole")
    database.execute("CREATE PUBLICATION root FOR TABLE t, whole WITH (publish_via_partition_root = on)")
    engines = [capture(publication=name, app=name, tables=[r"public\.t"]) for name in ("mine", "root")]
    database.execute(
        "ALTER TABLE whole ATTACH PARTITION t FOR VALUES FROM (0) TO (100); INSERT INTO whole VALUES (1, 1)"
    )
    engines[0].catch_up()
    assert engines[0].ids(database.topic()) == [1]
    engines[1].catch_up()
    assert "table public.t is not in the publication any more" in caplog.text
    assert engines[1].ids(database.topic()) == []


def test_a_look_waits_for_no_lock(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    with psycopg.connect(database.dsn) as connection:
        connection.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        assert engine.catch_up() < 20


# --- rows of tables that nobody knows ---


def test_rows_of_an_unknown_table_in_our_own_publication(database: CapturedDatabase, capture: Capture) -> None:
    """Also where the catalog is as it was again, when they come."""
    engine = capture()
    engine.source.stop()
    publication = f"headrace_{database.name}"
    database.execute(f"CREATE TABLE u (id int); ALTER PUBLICATION {publication} ADD TABLE u")
    database.execute(f"INSERT INTO u VALUES (1); ALTER PUBLICATION {publication} DROP TABLE u")
    engine = capture(engine.log)
    with pytest.raises(SourceRefused, match=r"rows of table public\.u"):
        engine.catch_up()
    assert engine.log.topics() == {}


# --- logs made before this was kept ---


def test_a_log_without_oids_is_taken_up(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    engine.source.stop()
    forget(engine.log, database)
    database.execute("INSERT INTO t VALUES (2, 2)")
    engine = capture(engine.log)
    assert drift.Began.load(engine.log, database.name) is not None
    database.execute("ALTER TABLE t RENAME TO u; INSERT INTO u VALUES (3, 3)")
    engine.catch_up()
    assert engine.ids(database.topic()) == [1, 2, 3]
    held = SourceRecord.load(engine.log, database.name)
    assert held is not None
    assert held.last is not None


@pytest.mark.parametrize(
    ("done", "says"),
    [
        ("ALTER TABLE t RENAME TO u", "no longer has public.t"),
        ("DROP TABLE t; CREATE TABLE t (id int)", "no longer has public.t"),
        ("ALTER PUBLICATION {p} SET (publish = 'update')", "was altered"),
        ("ALTER PUBLICATION {p} SET TABLE ONLY t WHERE (id > 1)", "was altered"),
        ("DROP PUBLICATION {p}", "is gone"),
    ],
)
def test_a_log_without_oids_is_refused_where_names_may_mean_others(
    database: CapturedDatabase, capture: Capture, done: str, says: str
) -> None:
    engine = capture()
    engine.source.stop()
    forget(engine.log, database)
    database.execute(done.format(p=f"headrace_{database.name}"))
    assert says in refusal(database, engine.log)


def forget(log: Log, database: CapturedDatabase) -> None:
    """The records as they were before OIDs and the last commit were kept."""
    held = SourceRecord.load(log, database.name)
    assert held is not None
    with log.transaction() as transaction:
        transaction.put(KIND, database.name, held.head() + SourceRecord.rest(held.acknowledged, None))
        transaction.delete(drift.KIND, database.name)


def test_a_record_that_cannot_be_read(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    engine.source.stop()
    with engine.log.transaction() as transaction:
        transaction.put(drift.KIND, database.name, b'{"tables": 1}')
    with pytest.raises(LogCorrupt, match="cannot be read"):
        database.source().check(engine.log)


# --- keys, without a server ---


def relation(names: str, flagged: str, identity: str = "d") -> Relation:
    columns = tuple(Column(name, 23, -1, name in flagged.split()) for name in names.split())
    return Relation(1, "public", "t", identity, columns)


@pytest.mark.parametrize(
    ("names", "flagged", "identity", "key"),
    [
        ("id x y", "id", "d", ("id",)),
        ("id x", "id", "d", ("id",)),
        ("number x y", "number", "d", ("number",)),
        ("x id y", "x", "d", ("x",)),
        ("id x y", "", "n", ("id",)),
        ("number x y", "number x y", "f", ("number",)),
        ("id x", "id x", "f", ("id",)),
        ("number u y", "u", "i", ("number",)),
        ("number x y z", "number x y z", "f", ("number",)),
        ("number x", "number x", "f", ("number",)),
        ("number other", "number other", "f", ("number", "other")),
        ("u number x y", "u number x y", "f", ("u", "number", "x", "y")),
    ],
)
def test_the_key_of_a_relation(names: str, flagged: str, identity: str, key: tuple[str, ...]) -> None:
    known = Known(("public", "t"), ("id",), ("id", "x", "y"))
    assert known.key_of(relation(names, flagged, identity), None) == key


def test_a_key_that_was_renamed_before_columns_were_added() -> None:
    known = Known(("public", "t"), ("id",), ("id", "x", "y"))
    before = stream_table(relation("number x y", "number x y", "f"), "p", ("number",))
    assert known.key_of(relation("number x y z", "number x y z", "f"), before) == ("number",)


def test_the_order_of_a_key_is_the_catalogs() -> None:
    known = Known(("public", "t"), ("b", "a"), ("a", "b"))
    assert known.key_of(relation("a b", "a b"), None) == ("b", "a")


def test_tables_that_exchange_their_names_between_two_looks_keep_their_columns(database: CapturedDatabase) -> None:
    """What the catalog is asked for comes in several answers: they belong together by OID, whatever the names are."""
    database.execute("CREATE TABLE learned (id int PRIMARY KEY, x float8, y float8)")
    database.execute("CREATE TABLE other (id int PRIMARY KEY, x float8)")
    database.execute("CREATE PUBLICATION of_two FOR TABLE learned, other")
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        before = catalog.matching(catalog.all_tables(connection), [r"public\.(learned|other)"])
        for was, now in (("learned", "away"), ("other", "learned"), ("away", "other")):
            database.execute(f"ALTER TABLE {was} RENAME TO {now}")
        found = catalog.with_columns(connection, before, catalog.publication(connection, "of_two"))
    names = {table.name: [column.name for column in table.columns] for table in found}
    assert names == {"learned": ["id", "x", "y"], "other": ["id", "x"]}
