"""From COMMIT returning to the prediction being readable on a Kafka topic, at 1,000 one-row transactions a second.

Beside it Debezium in Kafka Connect, as shipped and tuned for delay, from COMMIT to its message of the row: a
prediction from it could only come later. One consumer program, with the same settings, measures all three.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import headrace as hr
from benchmarks.kafka_capture import drop_slots, streams
from benchmarks.kafka_consumer import Reader, stamp
from benchmarks.kafka_debezium import FLAT, NO_SCHEMAS, first_message, wait_until
from benchmarks.kafka_profile import Sampler
from benchmarks.latency import _histogram, _write
from headrace.testing.servers import (
    LOW_LATENCY,
    KafkaBroker,
    KafkaConnect,
    PostgresServer,
    debezium_source,
    kafka_connect,
    postgres,
)

TARGET_MS = 20.0
Delays = npt.NDArray[np.float64]


def run(rows: int, *, profile: bool = False) -> list[dict[str, Any]]:
    """Percentiles in milliseconds; the ratio is how many times below the reference ours is."""
    with postgres() as server, KafkaBroker() as broker:
        server.execute("create table l_test (id bigint primary key, x float8, y float8)")
        with Sampler(wanted=profile) as sampler:
            ours = _ours(server, broker, rows)
        with kafka_connect(broker.bootstrap, ("debezium-postgres",)) as connect:
            shipped = _debezium(server, broker, connect, "shipped", {}, rows)
            tuned = _debezium(server, broker, connect, "tuned", LOW_LATENCY, rows)
    found = [_figure("p50 : 20 ms", np.array([TARGET_MS]), ours, 50, rows, target=1.0)]
    found[0] |= {"profile": sampler.text, "picture": _histogram(np.sort(ours))}
    for name, other in (("shipped", shipped), ("tuned", tuned)):
        for q in (50, 99):
            target = 10.0 if (name, q) == ("shipped", 50) else None
            found.append(_figure(f"p{q} : {name}", other, ours, q, rows, target=target))
    return found


def _figure(
    name: str, reference: Delays, ours: Delays, percentile: int, rows: int, *, target: float | None
) -> dict[str, Any]:
    theirs, mine = (float(np.percentile(delays, percentile)) for delays in (reference, ours))
    figure = {"name": name, "reference": theirs, "ours": mine, "ratio": theirs / mine, "unit": "ms"}
    figure["details"] = {"rows": rows, "max_ms": [float(reference.max()), float(ours.max())]}
    return figure if target is None else figure | {"target": target}


def _ours(server: PostgresServer, broker: KafkaBroker, rows: int) -> Delays:
    app = hr.App("latency", log=f"kafka://{broker.bootstrap}")
    db = app.postgres(server.dsn, tables=r"public\.l_.*", prefix="b", allow_failing_updates=True)
    model = app.model("m", hr.KMeans(k=2, initial_centers=[[0.0, 0.0], [9.0, 6.0]], decay=1.0), features=["x", "y"])
    model.learn(db["public.l_test"], every=100)
    model.predict(db["public.l_test"]).to("predicted")
    with app.start() as running:
        server.execute("insert into l_test values (-1, 0, 0)")
        running.wait(60)
        delays = _delays(server, broker, "predicted", rows)
        running.wait(60)
    drop_slots(server)
    return delays


def _debezium(
    server: PostgresServer, broker: KafkaBroker, connect: KafkaConnect, name: str, settings: dict[str, str], rows: int
) -> Delays:
    server.execute("truncate l_test")
    config = debezium_source(server, prefix=name, tables="public.l_test", slot=name)
    connect.create(name, config | FLAT | NO_SCHEMAS | {"snapshot.mode": "no_data"} | settings)
    connect.wait_running(name)
    wait_until(lambda: streams(server, name), f"Debezium's slot «{name}»")
    server.execute("insert into l_test values (-1, 0, 0)")
    first_message(broker.bootstrap, f"{name}.public.l_test")
    delays = _delays(server, broker, f"{name}.public.l_test", rows)
    connect.delete(name)
    wait_until(lambda: not streams(server, name), f"the end of Debezium's slot «{name}»")
    return delays


def _delays(server: PostgresServer, broker: KafkaBroker, topic: str, rows: int) -> Delays:
    """Milliseconds of each row from its commit until the consumer has its message."""
    reader = Reader(stamp, broker.bootstrap, topic, rows)
    committed = _write(server, rows)
    readable = reader.finish()
    assert not np.isnan(readable).any()
    return np.asarray((readable - committed) * 1000)
