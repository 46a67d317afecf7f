"""Captured, learned (every=1000) and every tenth row predicted, against `pg_recvlogical -f /dev/null`."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import headrace as hr
from benchmarks import workload
from headrace.testing.servers import PostgresServer, postgres

REPEATS = 3
FEATURES = ["b", "c", "d", "e"]


def run(rows: int) -> list[dict[str, Any]]:
    """Rows a second of both tables together, through to stored predictions."""
    with postgres(settings={"max_wal_size": "8GB"}) as server, tempfile.TemporaryDirectory() as directory:
        server.execute(f"create table p_train ({workload.NUMBERS})")
        server.execute(f"create table p_test ({workload.NUMBERS})")
        apps = [_app(server, f"pipe{i}", Path(directory)) for i in range(REPEATS)]
        for i, app in enumerate(apps):
            workload.prepare(app)
            workload.reference_slot(server, f"ref{i}")
        values = workload.NUMBER_VALUES
        server.execute(
            f"do $$ begin for k in 0..{rows // 1000 - 1} loop "
            f"insert into p_train select {values} from generate_series(k * 1000, k * 1000 + 899) i; "
            f"insert into p_test select {values} from generate_series(k * 1000 + 900, k * 1000 + 999) i; "
            "commit; end loop; end $$"
        )
        server.execute("checkpoint")
        publication = server.execute("select pubname from pg_publication where pubname like '%pipe0%'")[0][0]
        reference, ours = [], []
        for i, app in enumerate(apps):
            reference.append(workload.pg_recvlogical(server, f"ref{i}", publication))
            ours.append(workload.catch_up(app))
            assert len(app.topic("predicted").read()) == rows // 10
    return [
        {
            "name": "pipeline",
            "reference": rows / statistics.median(reference),
            "ours": rows / statistics.median(ours),
            "ratio": statistics.median(r / o for r, o in zip(reference, ours, strict=True)),
            "unit": "rows/s",
            "details": {"rows": rows, "reference": "pg_recvlogical -f /dev/null", "pairs": [reference, ours]},
        }
    ]


def _app(server: PostgresServer, name: str, directory: Path) -> hr.App:
    app = hr.App(name, log=directory / f"{name}.headrace")
    db = app.postgres(server.dsn, tables=r"public\.p_.*", prefix="b", allow_failing_updates=True)
    model = app.model("m", hr.KMeans(k=3, decay=1.0), features=FEATURES)
    model.learn(db["public.p_train"], every=1000)
    model.predict(db["public.p_test"]).to("predicted")
    return app
