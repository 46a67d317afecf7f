"""A sink onto what the pipeline reads: refused before anything runs, or left out of capture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import headrace as hr
from headrace.errors import DeclarationError
from headrace.log import open_log
from headrace.plan.plan import Plan, TopicsPlan
from headrace.plan.task import OutputPlan, StreamPlan, StreamTask
from headrace.testing.servers import PostgresServer

from .events import app_on, events, letters, write

DROP_SLOTS = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = current_database()"
Query = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def source(dsn: str, query: Query) -> Iterator[str]:
    """A database that may be captured: its slots go with it."""
    yield dsn
    deadline = time.monotonic() + 60
    while query("select 1 from pg_replication_slots where database = current_database() and active"):
        assert time.monotonic() < deadline, "a slot is still read"
        time.sleep(0.02)
    query(DROP_SLOTS)


SCHEMA = """
create table orders (id int primary key, x float8);
create table "Orders" (id int primary key, x float8);
create table child (primary key (id)) inherits (orders);
create view seen as select id, x from orders;
create view twice as select * from seen where id > 0;
create table ruled (id int primary key, x float8);
create rule r as on insert to ruled do instead insert into orders values (new.id, new.x);
create table parts (id int primary key, x float8) partition by range (id);
create table part partition of parts for values from (0) to (10);
create table customers (id int primary key, x float8);
create table referred (id int primary key, x float8);
create table cascading (x float8, id int primary key references referred on delete cascade);
create materialized view kept as select * from orders;
create schema other; create table other.orders (id int primary key, x float8);
"""
# What is captured, what a sink writes, and what is said of it; None: it may.
ONTO: dict[str, tuple[str, str, str | None]] = {
    "itself": ("public.orders", "orders", "writes the table public.orders"),
    "itself, with its schema": ("public.orders", "public.orders", "writes the table public.orders"),
    "in capitals": ('public.orders', "Orders", "writes the table public.Orders"),
    "a view": ("public.orders", "seen", "through it public.orders"),
    "a view of a view": ("public.orders", "twice", "through it public.orders"),
    "a rule": ("public.orders", "ruled", "through it public.orders"),
    "a child": ("public.orders", "child", "through it public.orders"),
    "a parent": ("public.child", "orders", "through it public.child"),
    "the partitioned table": ("public.part", "parts", "through it public.part"),
    "a partition": ("public.part", "part", "writes the table public.part"),
    "what cascades": ("public.cascading", "referred", "through it public.cascading"),
    "another that matches": (r"public\.(orders|customers)", "customers", "writes the table public.customers"),
    "another schema": ("public.orders", "other.orders", None),
    "a materialized view": ("public.customers", "kept", "a materialized view"),
    "one that is not there, and named": (r"public.orders,public\.made", "made", "the same table"),
}  # fmt: skip


def spelled(server: PostgresServer, dsn: str) -> Iterator[str]:
    """The same database, otherwise."""
    name = dsn.partition("@/")[2].partition("?")[0]
    while True:
        yield f"postgresql://postgres@127.0.0.1:{server.port}/{name}"
        yield f"host={server.directory} port={server.port} user=postgres dbname={name} options='-c search_path=public'"
        yield f"postgresql://postgres@localhost:{server.port},127.0.0.1:{server.port}/{name}?application_name=x"


def test_a_sink_onto_a_captured_table_is_refused(source: str, query: Query, server: PostgresServer) -> None:
    query(SCHEMA)
    before = query("select attrelid::regclass::text, attname from pg_attribute where attnum > 0 order by 1, 2")
    spellings = spelled(server, source)
    for case, (tables, table, words) in ONTO.items():
        app = hr.App("shop", log="memory://")
        db = app.postgres(source, tables=tables.split(","))
        stream = db[tables.split(",")[0] if "(" not in tables else "public.orders"]
        model = app.model("m", hr.LinearRegression(), features=["id"], target="x")
        model.learn(stream)
        model.predict(stream).to("p").select("id", "x").to_table(next(spellings), table, key="id")
        if words is None:
            app.start().stop()
            query(DROP_SLOTS)
            query("drop publication headrace_shop")
            continue
        with pytest.raises(DeclarationError, match=words):
            app.start()
            pytest.fail(case)
    assert (
        not query("select 1 from pg_namespace where nspname = 'headrace'")
        or query("drop schema headrace cascade") == []
    )
    after = query("select attrelid::regclass::text, attname from pg_attribute where attnum > 0 order by 1, 2")
    assert after == before


def test_a_table_of_the_second_source_of_a_database_is_captured_too(source: str, query: Query) -> None:
    query("create table orders (id int primary key); create table customers (id int primary key)")
    app = hr.App("shop", log="memory://")
    customers = app.postgres(source, tables="public.customers", prefix="one")["public.customers"]
    app.postgres(source, tables="public.orders", prefix="two")
    customers.to_table(source, "orders", key="id")
    with pytest.raises(DeclarationError, match=r"public\.orders .*which source «two» captures"):
        app.start()


def test_a_role_that_may_not_look_is_told_so(source: str, query: Query, server: PostgresServer, tmp_path: Path) -> None:
    query("create table orders (id int primary key); create schema headrace; create role blind login")
    query("create table headrace.sinks (app text, sink text, topic text, log text, destination text, made boolean)")
    try:
        app = hr.App("shop", log=tmp_path / "log")
        stream = app.postgres(source, tables="public.orders")["public.orders"]
        stream.to_table(source.replace("postgres@", "blind@"), "out", key="id", name="s")
        with app.start() as running:
            query("insert into orders values (1)")
            with pytest.raises(hr.errors.WaitTimeout, match=r"permission denied for schema headrace .*Grant"):
                running.wait(2)
    finally:
        server.execute("drop role blind")


def test_a_sink_beside_its_source_is_left_out_of_it(source: str, query: Query, tmp_path: Path) -> None:
    query("create table orders (id int primary key, x float8); insert into orders values (1, 0.5)")
    app = hr.App("shop", log=tmp_path / "log")
    orders = app.postgres(source, tables=r"public\..*")["public.orders"]
    orders.to_table(source, "copied", key="id").to_table(source, "ADDED", name="more")
    for number in range(2, 5):
        app.run(until="caught-up")
        query(f"insert into orders values ({number}, 0.5)")
    app.run(until="caught-up")
    assert query("select count(*) from copied") == query('select count(*) from "ADDED"') == [(4,)]
    held = open_log(tmp_path / "log", writer=False)
    try:
        assert {name for name in held.topics() if not name.startswith("__")} == {"shop.public.orders"}
    finally:
        held.close()
    # A table of the user's is never left out, nor written.
    query("create table customers (id int primary key)")
    app = hr.App("other", log=tmp_path / "other")
    app.postgres(source, tables=r"public\.(orders|customers)")["public.orders"].to_table(source, "customers")
    with pytest.raises(DeclarationError, match=r"public\.customers .*which source «other» captures"):
        app.start()


def test_positions_of_an_older_version_go_on(source: str, query: Query, tmp_path: Path) -> None:
    """Also where its table of positions matches what is captured."""
    query("create table orders (id int primary key); insert into orders values (1), (2), (3)")
    app = hr.App("shop", log=tmp_path / "log")
    app.postgres(source, tables=r"public\..*")["public.orders"].to_table(source, "copied")
    app.run(until="caught-up")
    for statement in (
        "create table headrace_sinks (app text, sink text, topic text, log text not null, next_offset bigint not null,"
        " updated timestamptz not null default now(), primary key (app, sink, topic))",
        "insert into headrace_sinks select app, sink, topic, log, next_offset from headrace.sinks",
        "drop schema headrace cascade",
        "insert into orders values (4)",
    ):
        query(statement)
    for _ in range(2):
        app.run(until="caught-up")
    assert query("select id from copied order by 1") == [(1,), (2,), (3,), (4,)]
    assert query("select sink, destination, next_offset, made from headrace.sinks") == [
        ("postgres:copied", "public.copied", 4, True)
    ]
    assert query("select count(*) from headrace_sinks") == [(0,)]


def test_no_column_is_added_to_a_table_of_the_user_s(source: str, query: Query, tmp_path: Path) -> None:
    query(
        "create table orders (id int primary key, x float8); create table mine (id int primary key, prediction float8)"
    )
    app = hr.App("shop", log="memory://")
    orders = app.postgres(source, tables="public.orders")["public.orders"]
    model = app.model("m", hr.LinearRegression(), features=["id"], target="x")
    model.predict(orders).to("p").to_table(source, "mine", key="id")
    with pytest.raises(DeclarationError, match="has no column x, status, model, model_version, model_position"):
        app.start()
    # Of other topics it is known when rows come: they go to the dead letters, and none waits for them.
    write(tmp_path / "log", events("op id prediction\nc 1 0.5"), events("op id prediction y\nc 2 0.5 a\nc 3 0.5 -"))
    app, stream = app_on(tmp_path / "log")
    stream.to_table(source, "mine", key="id")
    app.run(until="caught-up")
    assert query("select * from mine order by 1") == [(1, 0.5), (3, 0.5)]
    (letter,) = letters(tmp_path / "log")
    assert 'ALTER TABLE "public"."mine" ADD COLUMN "y" text' in letter


def test_a_role_that_may_make_no_schema_is_told_what_to_do(
    source: str, query: Query, server: PostgresServer, tmp_path: Path
) -> None:
    query("create role small login; grant create, usage on schema public to small")
    try:
        write(tmp_path / "log", events("op id\nc 1"))
        app, stream = app_on(tmp_path / "log")
        stream.to_table(source.replace("postgres@", "small@"), "out", key="id")
        with app.start() as running:
            with pytest.raises(hr.errors.WaitTimeout, match="CREATE SCHEMA headrace AUTHORIZATION"):
                running.wait(1)
            query("create schema headrace authorization small")
            running.wait(60)
        assert query("select * from out") == [(1,)]
    finally:
        query("drop owned by small cascade")
        server.execute("drop role small")


CIRCLES: dict[str, Callable[[hr.App], object]] = {
    "a topic to itself": lambda app: app.topic("a").select("x").to("a"),
    "two": lambda app: (app.topic("a").to("b"), app.topic("b").to("a")),
    "three": lambda app: (app.topic("a").to("b"), app.topic("b").to("c"), app.topic("c").select("x").to("a")),
    "a model": lambda app: (
        app.model("m", hr.LinearRegression(), features=["x"], target="y").predict(app.topic("a")).to("b"),
        app.topic("b").to("a"),
    ),
    "what is derived": lambda app: (app.topic("a").window("1 s").mean("x").to("b"), app.topic("b").to("a")),
    "answers of a receiver": lambda app: app.topic("a").to_http("http://h/", success_topic="a"),
    "and of its other topic": lambda app: (
        app.topic("a").to_http("http://h/", error_topic="b"), app.topic("b").to("a")
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CIRCLES)
def test_topics_in_a_circle_are_refused(case: str) -> None:
    app = hr.App("shop", log="kafka://localhost:1")
    CIRCLES[case](app)
    with pytest.raises(DeclarationError, match=r"come back to it|which «.*» writes"):
        app.plan().check()


def test_a_model_may_learn_from_what_is_made_of_its_predictions() -> None:
    app = hr.App("shop", log="kafka://localhost:1")
    model = app.model("m", hr.LinearRegression(), features=["x"], target="y")
    model.predict(app.topic("a")).to("b").select("x", y="prediction").to("c")
    app.topic("c").filter("x").to("d")
    model.learn(app.topic("d"))
    app.plan().check()


def test_topics_that_debezium_writes_are_not_written() -> None:
    task = StreamTask("t", StreamPlan("x"), (OutputPlan("shop.public.orders"),))
    plan = Plan("shop", "kafka://h:1", tasks=(task,), topics=(TopicsPlan("d", "", "shop", ("public.orders",)),))
    with pytest.raises(DeclarationError, match="come back as input"):
        plan.check()


def test_a_sink_whose_server_is_away_is_looked_at_later(source: str, query: Query, tmp_path: Path) -> None:
    """The role of its connection string is made only afterwards."""
    query("create table orders (id int primary key)")
    app = hr.App("shop", log=tmp_path / "log")
    late = source.replace("postgres@", "late@")
    app.postgres(source, tables="public.orders")["public.orders"].to_table(late, "orders", key="id", name="s")
    query("drop role if exists late")
    with app.start() as running:
        try:
            query("create role late superuser login; insert into orders values (1)")
            with pytest.raises(hr.errors.WaitTimeout):
                running.wait(1)
            deadline = 600
            while "captures" not in running.sinks["s"].status and deadline:
                running.join(0.1)
                deadline -= 1
            assert "which source «shop» captures" in running.sinks["s"].status
        finally:
            running.stop()
            query("drop role late")  # which owns nothing: it was refused before it made its schema
    with psycopg.connect(source) as connection:
        assert connection.execute("select count(*) from orders").fetchone() == (1,)
