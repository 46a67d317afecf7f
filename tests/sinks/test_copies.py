"""Copies by key are what their source is: keys that move, large values that are not sent, every replica identity."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.compute as pc
import pytest

import headrace as hr
from headrace.errors import DeclarationError, SinkUnavailable
from headrace.log import open_log
from headrace.retry import Backoff
from headrace.testing.servers import MongoDbServer

from .events import events, letters, write
from .receiver import Receiver
from .test_circles import source
from .test_table import CASES

__all__ = ["source"]
Query = Callable[..., list[tuple[Any, ...]]]
SEED = int(os.environ.get("HEADRACE_COPIES_SEED", "11"))
BIG = 3_000  # characters: more than a page's row may have, so that they are kept apart, and not sent when they stay

TABLE = """
create table {name} (id int primary key, u int not null unique, x int, big text, doc jsonb);
alter table {name} alter big set storage external, alter doc set storage external;
alter table {name} replica identity {identity}
"""
# What identifies a row of a table, and its copies' key.
IDENTITIES = {"usual": ("default", "id"), "whole": ("full", "id"), "indexed": ("using index indexed_u_key", "u")}


class Workload:
    """Statements of one table, at random."""

    def __init__(self, name: str, key: str, chance: random.Random) -> None:
        self.name, self.key, self.chance = name, key, chance

    def big(self) -> str:
        return "".join(self.chance.choices("abcdefghij", k=BIG))

    def transaction(self) -> str:
        return ";".join(self.statement() for _ in range(self.chance.randint(1, 6)))

    def statement(self) -> str:
        pick, other = self.chance.randint(0, 9), self.chance.randint(0, 9)
        x, key, name = self.chance.randint(0, 99), self.key, self.name
        free = f"not exists (select from {name} where id = {other} or u = {other})"
        moved = f"update {name} set id = {other}, u = {other}"
        doc = f"""'{{"a": "{self.big()}"}}'"""
        return self.chance.choice(
            (
                f"insert into {name} values ({pick}, {pick}, {x}, '{self.big()}', {doc}) on conflict do nothing",
                f"insert into {name} values ({pick}, {pick}, {x}, '{self.big()}', null) on conflict do nothing",
                f"update {name} set x = {x} where {key} = {pick}",
                f"update {name} set x = {x}",
                f"update {name} set big = '{self.big()}' where {key} = {pick}",
                f"update {name} set big = null, x = {x} where {key} = {pick}",
                f"update {name} set doc = {doc} where {key} = {pick}",
                f"{moved} where {key} = {pick} and {free}",
                f"{moved}, x = {x} where {key} = {pick} and {free}",
                f"{moved}, big = '{self.big()}' where {key} = {pick} and {free}",
                # Two rows change places.
                f"update {name} set id = -1, u = -1 where {key} = {pick};"
                f"{moved.replace(str(other), str(pick))} where {key} = {other} and {pick} <> {other};"
                f"{moved} where {key} = -1",
                f"delete from {name} where {key} = {pick}",
                f"delete from {name} where {key} = {pick};"
                f"insert into {name} values ({pick}, {pick}, {x}, 'small', null) on conflict do nothing",
                f"truncate {name}" if self.chance.random() < 0.1 else f"update {name} set x = {x} where x is null",
            )
        )


@pytest.fixture
def collections(mongo: MongoDbServer) -> Iterator[Any]:
    pymongo = pytest.importorskip("pymongo")
    client: Any = pymongo.MongoClient(mongo.uri)
    client.drop_database("copies")
    yield client["copies"]
    client.close()


def test_copies_are_what_their_sources_are(
    source: str, query: Query, mongo: MongoDbServer, collections: Any, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    works = []
    app = hr.App("copies", log=tmp_path / "log")
    for name, (identity, _) in IDENTITIES.items():
        query(TABLE.format(name=name, identity=identity))
    db = app.postgres(source, tables=[f"public.{name}" for name in IDENTITIES])
    for name, (_, key) in IDENTITIES.items():
        works.append(Workload(name, key, chance))
        stream = db[f"public.{name}"]
        stream.to_table(source, f"{name}_copy", key=key, name=name)
        renamed = stream.select("x", large="big", number=key, more=pc.add(pc.field("x"), 1))
        renamed.to_table(source, f"{name}_named", key="number", name=f"{name} named")
        stream.to_mongo(mongo.uri, f"copies.{name}", key=key, name=f"{name} in mongo")
        stream.select("id", "u", large="big").to(f"{name}-topic")
        app.topic(f"{name}-topic").to_table(source, f"{name}_chained", key=key, name=f"{name} chained")
        odd = stream.filter(lambda batch: pc.greater(batch.column("x"), -1))
        odd.to_table(source, f"{name}_filtered", key=key, name=f"{name} filtered")
    for _ in range(2):
        # Some while it is stopped, some while it runs.
        for work in works:
            query(work.transaction())
        with app.start() as running:
            for _ in range(12):
                for work in works:
                    query(work.transaction())
                if chance.random() < 0.3:
                    running.wait(60)
            running.wait(60)
            running.wait(60)  # the topics that were made of them too
        for name, (_, key) in IDENTITIES.items():
            rows = query(f"select id, u, x, big, doc::text from {name} order by id")
            assert query(f"select id, u, x, big, doc from {name}_copy order by id") == rows, name
            named = query(f"select {key}, x, big, x + 1 from {name} order by 1")
            assert query(f"select number, x, large, more from {name}_named order by 1") == named, name
            assert query(f"select id, u, x, big, doc from {name}_filtered order by id") == [
                row for row in rows if row[2] is not None
            ], name
            chained = query(f"select id, u, large from {name}_chained order by id")
            assert chained == [(row[0], row[1], row[3]) for row in rows], name
            found = [
                tuple(row[column] for column in ("id", "u", "x", "big", "doc")) for row in collections[name].find()
            ]
            assert sorted(found, key=lambda row: row[0]) == rows, name
    held = open_log(tmp_path / "log", writer=False)
    try:
        assert not [name for name in held.topics() if name.endswith(".dlq")]
    finally:
        held.close()


def test_a_value_that_is_not_sent_is_never_told_as_null(
    source: str, query: Query, mongo: MongoDbServer, collections: Any, receiver: Receiver, tmp_path: Path
) -> None:
    """Where nothing is known of it, it is left out and said so, or the row is refused."""
    for statement in TABLE.format(name="t", identity="default").split(";"):
        query(statement)
    query(f"insert into t values (1, 1, 1, repeat('x', {BIG}), null), (2, 2, 2, repeat('y', {BIG}), null)")
    app = hr.App("shop", log=tmp_path / "log")
    stream = app.postgres(source, tables="public.t", snapshot="never")["public.t"]
    stream.to_table(source, "added", name="added").to_table(source, "keyed", key="id", name="keyed")
    stream.to_mongo(mongo.uri, "copies.keyed", key="id", name="mongo").to_http(receiver.url, name="http")
    stream.to_mongo(mongo.uri, "copies.added", name="mongo_added").to_parquet(tmp_path / "files", name="files")
    with app.start() as running:
        query("update t set x = 7 where id = 1")
        query("update t set id = 3 where id = 2")
        query("insert into t values (5, 5, 5, 'z', null)")
        running.wait(60)
    held = open_log(tmp_path / "log", writer=False)
    try:
        letters = [row for entry in held.read_topic("shop.public.t.dlq") for row in entry.records.to_pylist()]
    finally:
        held.close()
    assert sorted((row["reason"].partition(":")[0], json.loads(row["row"])["id"]) for row in letters) == [
        (sink, id) for sink in ("added", "keyed", "mongo") for id in (1, 3)
    ]
    assert {"the source did not send «big»" in row["reason"] for row in letters} == {True}, letters
    assert query("select id from added") == query("select id from keyed") == [(5,)]
    assert [sorted(request.row) for request in receiver.requests] == [["doc", "id", "u", "x"]] * 2 + [
        ["big", "doc", "id", "u", "x"]
    ]
    assert sorted("big" in row for row in collections["added"].find()) == [False, False, True]
    files = f"read_parquet('{tmp_path}/files/*.parquet', union_by_name = true)"
    found = duckdb.sql(f'select id, big, "__unchanged" from {files} order by "__offset"').fetchall()
    assert [row[:2] for row in found] == [(1, None), (3, None), (5, "z")]
    assert [list(row[2] or []) for row in found] == [["big"], ["big"], []]


REFUSED: dict[str, tuple[str, Any, str | None]] = {
    "a primary key beside the identity's index": ("using index t_u_key", "id", "its replica identity says «u» only"),
    "two columns, one of them": ("using index t_u_key", ["u", "x"], "by «x»"),
    "a unique column beside the primary key": ("default", "u", "its replica identity says «id» only"),
    "another name of it": ("default", "renamed", "by «u»"),
    "all of it": ("full", "u", None),
    "the primary key": ("default", "id", None),
    "the index": ("using index t_u_key", "u", None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_key_that_deletes_do_not_tell_is_refused(case: str, source: str, query: Query) -> None:
    identity, key, words = REFUSED[case]
    query("create table t (id int primary key, u int not null unique, x int not null)")
    query(f"alter table t replica identity {identity}")
    app = hr.App("shop", log="memory://")
    stream = app.postgres(source, tables="public.t")["public.t"]
    (stream.with_columns(renamed="u") if key == "renamed" else stream).to_table(source, "copied", key=key)
    if words is None:
        app.start().stop()
    else:
        with pytest.raises(DeclarationError, match=words) as caught:
            app.start()
        assert "REPLICA IDENTITY FULL" in caught.value.advice


@pytest.mark.parametrize("kind", ["table", "mongo"])
def test_a_delivery_that_is_broken_off_is_repeated_without_harm(
    kind: str, dsn: str, query: Query, mongo: MongoDbServer, collections: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """At every passage of each point, once: rows that keep values are read where they were."""
    import headrace.engines.local.sink_runner
    import headrace.sinks.mongo
    import headrace.sinks.table

    monkeypatch.setattr(headrace.engines.local.sink_runner, "Backoff", partial(Backoff, first=0.001, most=0.005))
    keeping = {name: case for name, case in CASES.items() if "~" in case[0]}
    for number, (grid, expected) in enumerate(keeping.items()):
        passages = {"sink.written": 0, "sink.committed": 0}

        def broken(point: str, passages: dict[str, int] = passages) -> None:
            passages[point] = passages.get(point, 0) + 1
            if passages[point] % 2:
                raise SinkUnavailable("broken off")

        monkeypatch.setattr(headrace.sinks.mongo, "fault", broken)
        monkeypatch.setattr(headrace.sinks.table, "fault", broken)
        log = tmp_path / f"log{number}"
        rows, wanted = events(expected[0]), expected[1]
        write(log, rows)
        app = hr.App("shop", log=log)
        stream = app.topic("in")
        if kind == "table":
            stream.to_table(dsn, f"out{number}", key="id")
        else:
            stream.to_mongo(mongo.uri, f"copies.out{number}", key="id")
        app.run(until="caught-up")
        names = rows.column_names
        if kind == "table":
            found = query(f"select {', '.join(names)} from out{number} order by id")
        else:
            found = sorted(tuple(row[name] for name in names) for row in collections[f"out{number}"].find())
        assert found == wanted, grid
        assert passages["sink.written"] >= 2 and passages["sink.committed"]
        assert letters(log) == [], grid


def test_a_key_under_another_name_of_a_topic_is_refused(source: str, query: Query) -> None:
    query("create table t (id int primary key)")
    app = hr.App("shop", log="memory://")
    app.postgres(source, tables="public.t")["public.t"].select(number="id").to("c")
    app.topic("c").to_table(source, "copied", key="number")
    with pytest.raises(DeclarationError, match="by another name that"):
        app.start()


def test_an_identity_that_changes_meanwhile_is_noticed(source: str, query: Query, tmp_path: Path) -> None:
    """An update of which the old key is not told goes to the dead letters: it is no new row."""
    query("create table t (id int primary key, u int not null unique, x int); alter table t replica identity full")
    query("insert into t values (1, 10, 0), (2, 20, 0)")
    app = hr.App("shop", log=tmp_path / "log")
    app.postgres(source, tables="public.t")["public.t"].select("id", "x", key="u").to_table(source, "c", key="key")
    with app.start() as running:
        query("update t set u = 11 where id = 1")
        running.wait(60)
        assert query("select key, id from c order by 1") == [(11, 1), (20, 2)]
        query("alter table t replica identity default")
        query("update t set u = 12 where id = 1")
        query("update t set id = 3 where id = 2")
        query("insert into t values (4, 40, 0)")
        running.wait(60)
    assert query("select key, id from c order by 1") == [(11, 1), (20, 2), (40, 4)]
    held = open_log(tmp_path / "log", writer=False)
    try:
        found = [row["reason"] for entry in held.read_topic("shop.public.t.dlq") for row in entry.records.to_pylist()]
    finally:
        held.close()
    assert ["the replica identity tells only «id»" in reason for reason in found] == [True, True]
