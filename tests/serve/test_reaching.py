"""`at_least=LSN`: a model that has learned what was committed up to there, here and in a follower."""

from __future__ import annotations

from pathlib import Path

import headrace as hr
from headrace.engines.local.serving.replica import Replica
from headrace.position import Position
from headrace.serve.models import AtLeast
from headrace.serve.settings import ServeSettings
from tests.databases import Database
from tests.waiting import wait_until

from .client import Client


def weights(dsn: str, log: Path) -> hr.App:
    app = hr.App("fish", log=log)
    db = app.postgres(dsn, tables=r"public\.fish")
    model = app.model("weight", hr.LinearRegression(), features=["length"], target="weight")
    model.learn(db["public.fish"])
    model.serve()
    return app


def now(database: Database) -> str:
    return str(database.execute("select pg_current_wal_insert_lsn()")[0][0])


def test_what_was_committed_is_learned(database: Database, tmp_path: Path) -> None:
    database.execute("create table fish (id int primary key, length float8, weight float8)")
    database.execute("create table other (id int)")
    database.execute("insert into fish values (-2, 1, 1), (-1, 2, 2)")
    log = tmp_path / "fish.headrace"
    with weights(database.dsn, log).start(serve=ServeSettings(port=0)) as running:
        assert running.server is not None
        client = Client(running.server.url)
        follower = Replica.of(weights(database.dsn, log).plan())
        follower.start()
        for i in range(10):
            database.execute("insert into fish values (%s, %s, %s)", i, float(i), 3.0 * i)
            lsn = now(database)
            got = client.get("/prediction", length=7, at_least=lsn)
            assert got.status == 200, got.body
            # The very row is learned: nothing else has been committed since.
            assert got.json["weight"] == float(running["weight"].predict([[7.0]])[0])
            assert running["weight"].learned == i + 3
            committed = running["weight"].position
            assert got.headers["headrace-position"] == committed
            wanted = AtLeast(lsn=Position.parse(str(committed)).lsn)
            found = wait_until(lambda wanted=wanted: follower.reached("weight", wanted))
            assert found.info.position == committed
        # Nothing of this table, but the database has gone on: the model has still learned all there was.
        database.execute("insert into other values (1)")
        got = client.get("/prediction", length=7, at_least=now(database))
        assert (got.status, got.headers["headrace-position"]) == (200, committed)
        late = client.get("/prediction", length=7, at_least="FFFF/0", deadline=0.1)
        assert (late.status, late.json["position"]) == (504, committed)
        client.close()
        follower.stop()
