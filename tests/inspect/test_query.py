"""`headrace sql`: every form of DuckDB's queries over topics gives what it gives over plain tables."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from tests.serve.client import headrace

from headrace.batch import Batch
from headrace.errors import LogError
from headrace.inspect.query import Bounds, query_results, query_topics, topic_table
from headrace.log import open_log
from headrace.log.base import Log

ROWS: dict[str, dict[str, list[Any]]] = {
    "orders": {"id": [1, 2, 3, 4], "who": ["a", "b", "a", None], "kg": [1.5, 2.0, 4.0, 0.5], "day": [1, 1, 2, 2]},
    "labels": {"id": [1, 2, 3], "took": [3, 5, 8]},
    "shop.public.orders": {"id": [1, 2], "note": ["x", "ö"]},
    "Täble mit «Namen»": {"id": [7], "größe": [1.0]},
    'say "hi"': {"id": [1], "n": [2]},
    "select": {"id": [9]},
    "orders.csv": {"id": [5]},
    "sales": {"q": ["q1", "q2", "q1"], "year": [2000, 2000, 2001], "amount": [10, 20, 30]},
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    held = open_log(str(tmp_path_factory.mktemp("queried") / "shop.headrace"), writer=True)
    for number, (topic, columns) in enumerate(ROWS.items()):
        records = pa.RecordBatch.from_pydict(columns)
        with held.transaction() as transaction:
            half = records.num_rows // 2
            for part in (records.slice(0, half), records.slice(half)):
                transaction.append(topic, Batch.of(part, lsn=number + 1).records)
    yield held
    held.close()


QUERIES = [
    "select * from orders order by id",
    "from orders",
    "table labels",
    "select who, sum(kg) from orders group by all order by all",
    'select * exclude (op, position, ts, "offset") from orders order by kg desc limit 2',
    "select * replace (kg * 2 as kg) from orders",
    "select * rename (kg as weight) from orders",
    "select columns('i.*') from orders",
    "select min(columns(lambda c: c in ('kg', 'id'))) from orders",
    "select columns(* exclude (op, position, ts)) from labels",
    "select o.id, took from orders o join labels l using (id) order by 1",
    "select id, took from orders join labels using (id) order by 1",
    "select id, took from orders left join labels using (id) order by 1",
    'select id, took from orders full join labels using (id, "offset") order by 1, 2',
    "select * from (select id, kg from orders) natural join (select id, took from labels) order by 1",
    "select count(*) from orders natural join labels",
    "select o.id from orders o semi join labels using (id) order by 1",
    "select o.id from orders o anti join labels using (id) order by 1",
    "select count(*) from orders, labels",
    "select o.id, l.took from orders o asof join labels l on o.id >= l.id order by 1",
    "select * from (select id from orders) positional join (select took from labels)",
    "select o.id, x.took from orders o, lateral (select took from labels where id = o.id) x order by 1",
    "select id, (select max(took) from labels l where l.id = o.id) as t from orders o order by 1",
    "select id from orders where id in (select id from labels) order by 1",
    "select id from orders o where exists (from labels where id = o.id and took > 4) order by 1",
    "with heavy as (select * from orders where kg > 1) select count(*) from heavy",
    "with labels as (select 1 as only) select * from labels",
    "with recursive n(i) as (select 1 union all select i + 1 from n where i < 4) select * from n join labels on id = i",
    "with a as materialized (from orders), b as (from a) select count(*) from a, b",
    "select id from orders union select id from labels order by 1",
    "select id from orders except select id from labels order by 1",
    "select id, kg from orders union all by name select took, id from labels order by all",
    "select id from orders intersect all select id from labels order by 1",
    "pivot sales on year using sum(amount) group by q order by q",
    "pivot (select q, year, amount from sales) on q in ('q1', 'q2') using sum(amount) order by all",
    "select * from (pivot (select q, year, amount from sales) on year using sum(amount)) order by q",
    "unpivot (select id, kg, day from orders) on kg, day into name n value v order by all",
    "select id, row_number() over (partition by who order by id) as r from orders order by 1",
    "select id, sum(kg) over w from orders window w as (order by id rows 1 preceding) order by 1",
    "select who, id from orders qualify row_number() over (partition by who order by kg desc) = 1 order by all",
    "select day, who, count(*) from orders group by grouping sets ((day), (who), ()) order by all",
    "select day, count(*) from orders group by rollup (day) order by all",
    "select list(id order by id), {'a': max(kg)} as s, map {'k': min(kg)} as m from orders",
    "select unnest([1, 2]) as u, id from orders order by all limit 3",
    "select histogram(day) from orders",
    "select id, case when kg > 1 then 'heavy' else 'light' end from orders order by 1",
    "select id::varchar || '!' as t, try_cast(who as int) from orders order by 1",
    "select [x * 2 for x in list(id) if x > 1] from labels",
    "select count(*) filter (where kg > 1), approx_count_distinct(who) from orders",
    "select distinct on (who) who, id from orders order by who, id",
    "select * from orders using sample 2 rows (reservoir, 1)",
    "values (1, 'a'), (2, 'b')",
    "select * from range(3)",
    "describe orders",
    "describe select id, kg from orders",
    "show orders",
    "summarize labels",
    "pragma table_info('orders')",
    "select * from query_table('labels') order by 1",
    "select * from query('from labels') order by 1",
    'select note from "shop.public.orders" order by id',
    'select s.id, l.took from "shop.public.orders" s join labels l using (id) order by 1',
    'select "größe" from "Täble mit «Namen»"',
    'select n from "say ""hi"""',
    'select * from "select"',
    'from "orders.csv"',
    "from 'orders.csv'",
    "select count(*) from main.orders",
    "select count(*) from ORDERS, Labels",
    "create table kept as select id from orders; select count(*) from kept",
    "create temp view v as from labels; select sum(took) from v;",
    "create macro twice(x) as x * 2; select twice(kg) from orders order by 1",
    "set variable least = 2; select id from orders where id > getvariable('least') order by 1",
    "prepare p as select id from orders where id > $1 order by 1; execute p(2)",
    "begin; create table t (a int); insert into t values (1); commit; from t",
    "-- a comment\nselect 1 /* and one more */; -- the end",
    "select current_setting('TimeZone')",
    "explain analyze select count(*) from orders",
]


def plainly(log: Log, query: str) -> pa.Table:
    """What DuckDB gives where topics are tables before anything is asked."""
    with duckdb.connect(":memory:") as connection:
        connection.execute("set TimeZone = 'UTC'")
        for topic in ROWS:
            connection.register(topic, topic_table(log, topic))
        found = None
        for statement in connection.extract_statements(query):
            found = connection.sql(statement)
        assert found is not None
        return found.to_arrow_table()


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_gives_what_it_gives_over_plain_tables(log: Log, query: str) -> None:
    mine, theirs = query_topics(log, query), plainly(log, query)
    if query.startswith("explain"):
        assert mine.num_rows == 1  # with times of its own
        return
    assert mine.schema == theirs.schema
    # Its last digit depends on the order in which DuckDB's threads add.
    mine, theirs = (
        table.drop_columns([name for name in table.column_names if name == "std"]) for table in (mine, theirs)
    )
    assert mine.to_pylist() == theirs.to_pylist()
    assert mine.num_rows


def test_only_the_topics_of_a_query_are_read(log: Log) -> None:
    read: list[str] = []

    def reading(_: Any, topic: str) -> pa.Table:
        read.append(topic)
        return topic_table(log, topic)

    for query, wanted in {
        "select labels from (select 1 as labels)": [],
        "select id as labels from orders": ["orders"],
        "with labels as (select 1) select * from labels, orders": ["orders"],
        "select 'labels' from orders o join orders p using (id)": ["orders"],
        "create table labels as select 1; select * from labels": [],
        "select * from orders join labels using (id)": ["orders", "labels"],
    }.items():
        read.clear()
        query_topics(log, query, reading)
        assert sorted(read) == sorted(wanted), query


def test_tables_are_shown_without_being_read(log: Log) -> None:
    def reading(_: Any, topic: str) -> pa.Table:
        raise AssertionError(f"{topic} is read")

    for query in ("show tables", "SHOW TABLES;", "pragma show_tables"):
        (found,) = query_results(log, query, reading, lambda log, topic: topic_table(log, topic).slice(0, 0))
        assert sorted(found.column("name").to_pylist()) == sorted(ROWS)
    columns = query_topics(log, "select column_name from information_schema.columns where table_name = 'labels'")
    assert columns.column(0).to_pylist() == ["id", "took", "op", "position", "ts", "offset"]
    assert query_topics(log, "select count(*) n from duckdb_views() v, orders where not internal").to_pylist() == [
        {"n": 4 * len(ROWS)}
    ]
    both = list(query_results(log, "show tables; select count(*) as n from labels"))
    assert both[1].to_pylist() == [{"n": 3}], "what was shown without rows has them"
    assert query_topics(log, "describe").num_rows == len(ROWS)


def test_each_query_of_several_has_its_result(log: Log) -> None:
    found = list(query_results(log, "select 1 as a; create table t as select 2 as b; from t; drop table t"))
    assert [table.to_pylist() for table in found] == [[{"a": 1}], [{"b": 2}]]
    assert list(query_results(log, "")) == [] and list(query_results(log, "-- nothing")) == []
    assert query_topics(log, " ; ").num_rows == 0


WRONG = {
    "select * from ordres": 'Did you mean "orders"?',
    "select * from nobody": 'Topics: "Täble mit «Namen»", "labels", "orders"',
    "select * from shop.public.orders": 'Write "shop.public.orders", in double quotes.',
    "insert into orders values (1)": "Topics are only read here",
    "update orders set kg = 1": "Topics are only read here",
    "delete from orders": "Topics are only read here",
    "selec 1": "",
    "select nothing from orders": "",
    "select * from orders where": "",
    "select who::int from orders": "",
    "select nothing(1)": "",
}


@pytest.mark.parametrize("query", WRONG)
def test_a_mistake_is_told_in_duckdbs_words_with_advice_where_there_is_some(log: Log, query: str) -> None:
    with pytest.raises(LogError, match="the query failed: ") as refused:
        query_topics(log, query)
    advice = WRONG[query]
    assert refused.value.advice.startswith(advice) and bool(refused.value.advice) == bool(advice)
    with pytest.raises(duckdb.Error) as theirs:
        plainly(log, query)
    told = str(theirs.value)
    if "Did you mean" not in told:
        assert refused.value.message == f"the query failed: {told.strip()}"
    assert "pg_" not in refused.value.message and "sqlite_" not in refused.value.message
    if query == "selec 1":
        assert "LINE 1: selec 1\n        ^" in refused.value.message


@pytest.mark.parametrize(
    "query",
    [
        "copy orders to '{log}'",
        "copy (select 1) to '{folder}/../{name}/shop.headrace' (format csv)",
        "COPY orders TO '{log}-wal'",
        "attach '{log}' as it (type sqlite)",
        "prepare p as copy orders to 'file://{log}'; execute p",
        "copy orders to '{folder}' (format parquet, partition_by (id), overwrite true)",
    ],
)
def test_the_log_is_never_written(log: Any, query: str) -> None:
    before = log.path.read_bytes()
    text = query.format(log=log.path, folder=log.path.parent, name=log.path.parent.name)
    with pytest.raises(LogError, match="is the log's own"):
        query_topics(log, text)
    assert log.path.read_bytes() == before


def test_rows_can_be_copied_elsewhere(log: Log, tmp_path: Path) -> None:
    found = query_topics(log, f"copy (select id from orders) to '{tmp_path}/orders.parquet'")
    assert found.to_pylist() == [{"Count": 4}]
    assert query_topics(log, f"select count(*) as n from '{tmp_path}/orders.parquet'").to_pylist() == [{"n": 4}]


def test_no_variable_of_ours_is_a_table(log: Log) -> None:
    for name in ("found", "query", "statement", "table_of", "session", "topic"):
        with pytest.raises(LogError, match=f"Table with name {name} does not exist"):
            query_topics(log, f"select * from {name}")


def test_the_command_shows_each_result(log: Any, capfd: pytest.CaptureFixture[str]) -> None:
    given = ("sql", "select 1 as first; select id, took from labels", "--log", str(log.path))
    shown = headrace(capfd, *given)
    assert shown.returncode == 0
    assert "first" in shown.stdout and "took" in shown.stdout
    assert headrace(capfd, *given, "--json").stdout.strip() == (
        '[{"id": 1, "took": 3}, {"id": 2, "took": 5}, {"id": 3, "took": 8}]'
    )
    assert headrace(capfd, *given, "--csv").stdout.splitlines()[0] == '"id","took"'
    wrong = headrace(capfd, "sql", "selec 1", "--log", str(log.path))
    assert wrong.returncode == 1
    assert "syntax error" in wrong.stderr and "LINE 1: selec 1" in wrong.stderr and "→" not in wrong.stderr


# -- queries that anybody wrote --------------------------------------------------------------------------------------


def bounded(log: Log, query: str, **limits: Any) -> tuple[pa.Table, Bounds]:
    bounds = Bounds(**limits)
    found = pa.table({})
    for found in query_results(log, query, bounds=bounds):  # noqa: B007 (the last one counts)
        pass
    return found, bounds


def test_a_bounded_query_reads_topics(log: Log) -> None:
    found, bounds = bounded(
        log, "create temp table t as from orders; select who, sum(kg) as kg from t group by 1 order by 1"
    )
    assert found.to_pylist()[0] == {"who": "a", "kg": 5.5} and not bounds.more
    assert bounded(log, "pivot sales on q using sum(amount) group by year")[0].num_rows == 2
    assert bounded(log, "from range(3)")[0].num_rows == 3
    assert "orders" in bounded(log, "show tables")[0].column(0).to_pylist()


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_csv('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select * from read_text('/etc/passwd')",
        "select * from glob('/etc/*')",
        "select * from read_parquet('https://example.org/x.parquet')",
        "copy orders to 'copied.csv'",
        "export database 'copied'",
        "attach 'copied.db'",
        "attach ':memory:' as other",
        "install httpfs",
        "load httpfs",
        "set memory_limit = '99GB'",
        "reset memory_limit",
        "set variable x = 1",
        "pragma threads = 9",
        "pragma database_list",
        "call pragma_version()",
        "checkpoint",
        "begin",
        "drop table orders",
        "insert into orders values (1)",
        "select repeat('x', 4000000000)",
        "select 'x'.repeat(4000000000)",
        "select \"repeat\" /* ' */ ('x', 4000000000)",
        "from query('select repea' || 't(1, 2)')",
        "select lpad('x', 2000000000, 'y')",
        "select printf('%2000000000d', 1)",
        "select list_resize([1], 2000000000)",
        "select range(2000000000)",
        "from arrow_scan(1, 2, 3)",
    ],
)
def test_a_bounded_query_does_nothing_else(
    log: Log, query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LogError):
        bounded(log, query)
    assert not list(tmp_path.iterdir())


def test_a_bounded_query_ends_in_time(log: Log) -> None:
    since = time.monotonic()
    with pytest.raises(LogError, match=r"took longer than 0\.3 s"):
        bounded(log, "select count(*) from range(100000000000000) where hash(range) = 1", seconds=0.3)
    assert time.monotonic() - since < 5


def test_a_bounded_query_has_so_much_memory(log: Log) -> None:
    with pytest.raises(LogError, match="Out of Memory"):
        bounded(log, "select * from range(100000000000) order by hash(range)", memory=64 << 20)


def test_a_bounded_query_gives_so_many_rows(log: Log) -> None:
    found, bounds = bounded(log, "from range(100000000000)", rows=5000)
    assert found.num_rows == 5000 and bounds.more
    found, bounds = bounded(log, "select range, 'x' || range from range(100000000000)", rows=10**9, bytes=1 << 20)
    assert found.nbytes < 3 << 20 and bounds.more


def test_a_bounded_query_is_cancelled(log: Log) -> None:
    bounds = Bounds()
    threading.Timer(0.2, bounds.cancel).start()
    with pytest.raises(LogError, match="cancelled"):
        list(query_results(log, "select count(*) from range(100000000000000) where hash(range) = 1", bounds=bounds))
