"""Heartbeats come as often as they should, and a query of theirs that fails is said and ends nothing."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import pytest

from headrace.capture.postgres.heartbeats import HeartbeatOptions
from headrace.formats.debezium_writer import EventOptions
from headrace.inspect.debezium import event_lines

from .conftest import Capture, CapturedDatabase, Engine

TOPIC = "__debezium-heartbeat.shop"


def beats(engine: Engine) -> list[dict[str, Any]]:
    """Return the heartbeats of a log as rows."""
    return [row for entry in engine.log.read_topic(TOPIC) for row in entry.records.to_pylist()]


def test_a_heartbeat_and_its_query(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE tb (id int PRIMARY KEY, n int)")
    query = "INSERT INTO tb VALUES (1, 0) ON CONFLICT (id) DO UPDATE SET n = tb.n + 1"
    engine = capture(heartbeat=HeartbeatOptions(40, TOPIC, query), debezium={})
    engine.until(lambda: TOPIC in engine.log.topics() and len(beats(engine)) > 4)
    engine.until(lambda: len(engine.ids(database.topic("tb"))) > 2)
    engine.source.stop()
    rows = beats(engine)
    assert {row["serverName"] for row in rows} == {database.name}
    places = [(row["__lsn"], row["__index"]) for row in rows]
    assert places == sorted(set(places))
    assert abs(rows[-1]["ts_ms"] / 1000 - time.time()) < 60
    lines = [json.loads(line) for line in event_lines(engine.log, TOPIC)]
    assert lines[0] == {"topic": TOPIC, "key": {"serverName": database.name}, "value": {"ts_ms": rows[0]["ts_ms"]}}
    told = json.loads(next(event_lines(engine.log, TOPIC, options=EventOptions.of({}, schemas=True))))
    assert told["value"]["schema"]["name"] == "io.debezium.connector.common.Heartbeat"
    assert told["key"]["payload"] == {"serverName": database.name}
    # The log goes on from there, with nothing lost or doubled.
    before = engine.ids(database.topic("tb"))
    again = capture(engine.log, heartbeat=HeartbeatOptions(40, TOPIC), debezium={})
    again.catch_up()
    assert again.ids(database.topic("tb"))[: len(before)] == before
    assert len(again.ids(database.topic("tb"))) == 1 + (database.execute("SELECT n FROM tb")[0][0])


def test_a_query_that_fails_is_said_once(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    query = "INSERT INTO gone VALUES ('s3cret')"
    with caplog.at_level(logging.ERROR, logger="headrace"):
        engine = capture(heartbeat=HeartbeatOptions(20, TOPIC, query))
        engine.until(lambda: TOPIC in engine.log.topics() and len(beats(engine)) > 8)
        engine.until(lambda: bool(caplog.records))
    assert 'relation "gone" does not exist' in caplog.text
    assert len([record for record in caplog.records if "heartbeat" in record.message]) == 1
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    assert engine.ids(database.topic()) == [1]


def test_without_an_interval_there_are_none(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture(heartbeat=HeartbeatOptions(0, TOPIC, "SELECT 1 / 0"))
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    assert list(engine.log.topics()) == [database.topic()]
