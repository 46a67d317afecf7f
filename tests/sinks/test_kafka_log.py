"""Sinks of a pipeline whose log is on a cluster: its own topics, and anybody's."""

from __future__ import annotations

import json
from typing import Any

from confluent_kafka import Producer

import headrace as hr
from headrace.testing.servers import KafkaBroker


def test_topics_of_a_cluster_are_delivered(broker: KafkaBroker, topic_prefix: str, dsn: str, query: Any) -> None:
    foreign = f"{topic_prefix}.foreign"
    broker.create_topic(foreign)
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for number in range(5):
        producer.produce(foreign, json.dumps({"id": number, "x": "no\0" if number == 3 else "yes"}).encode())
    producer.flush(30)
    app = hr.App(topic_prefix, log=f"kafka://{broker.bootstrap}")
    app.topic(foreign).to_table(dsn, "foreign", key="id").select("id").to(f"{topic_prefix}.own").to_table(dsn, "own")
    for _ in range(2):
        app.run(until="caught-up")
    assert query('select id from "foreign" order by id') == [(0,), (1,), (2,), (4,)]
    assert query("select id from own order by id") == [(number,) for number in range(5)]
    (letter,) = app.topic(f"{foreign}.dlq").read().to_arrow().to_pylist()
    assert letter["stage"] == "sink" and json.loads(letter["row"])["id"] == 3
