"""Topics that others write, with everything in them that breaks: one broker, one pipeline, many topics."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import headrace as hr
from headrace.formats.topic_formats import codec_for
from headrace.log import open_log
from headrace.log.base import walk
from headrace.plain_values import values
from headrace.replay.verify import verify
from headrace.testing import KafkaBroker
from tests.processes import headrace

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]

Message = bytes | tuple[bytes | None, bytes | None]  # a value, or a key and a value


def declared(kind: str, payload: Any, **named: Any) -> bytes:
    """A row with its schema."""
    fields = [{"type": "int32", "field": "id"}, {"type": kind, "field": "x", **named}]
    return json.dumps({"schema": {"type": "struct", "fields": fields}, "payload": {"id": 1, "x": payload}}).encode()


DECIMAL = "org.apache.kafka.connect.data.Decimal"
ZONED = "io.debezium.time.ZonedTimestamp"
# By topic: messages, the values of «x» in the log, and the offsets of dead letters.
TOPICS: dict[str, tuple[list[Message], list[Any], list[int]]] = {
    "numbers": (
        [b'{"x":%s}' % n for n in (b"9007199254740993", b"0.5", b"1", b"1e400", b"18446744073709551615", b"null")],
        ["9007199254740993", "0.5", "1", "18446744073709551615", None],
        [3],
    ),
    "floats": (
        [b'{"x":%s}' % text for text in (b"1", b"0.5", b'"NaN"', b"-0", b"2e3")],
        [1, 0.5, "nan", -0.0, 2000.0],
        [],
    ),
    "kinds": (
        [b'{"x":%s}' % text for text in (b"null", b"1", b'"n/a"', b"true", b'[1,"a"]', b'{"a":1}', b"2")],
        [None, 1, "n/a", True, '[1,"a"]', {"a": 1}, 2],
        [],
    ),
    "poison": (
        [
            b'{"x":1}', b"[1]", b"5", b"", b"{", b'{"x":1,"x":2}', b'{"x":"\\ud800"}', b"\xff",
            b"\xff\xfe{\x00}\x00",
            b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}", b"\xef\xbb\xbf" + b'{"x":2}', b'{"x":"\\u0000"}',
        ],
        [1, 2, "\0"],
        [1, 2, 3, 4, 5, 6, 7, 8, 9],
    ),
    "unlucky": (
        [b"oops", b"oops", b'{"id":1,"x":1}', b"oops", (b'{"id":1}', None), (b"text", None), b'{"id":2,"x":2}'],
        [1, None, 2],
        [3, 5],
    ),
    "texts": ([b"hello", (b"k", None), (b"\xff", None), (b"k", b"world")], [], [2]),
    "widths": (
        [declared("int32", item) for item in (1, 3_000_000_000, 1.5, "abc", True, "7")] + [declared("int8", 300)],
        [1, 7],
        [1, 2, 3, 4, 6],
    ),
    "zoned": (
        [
            declared("string", item, name=ZONED)
            for item in ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00.123456789Z", "+99999999-01-01T00:00:00Z")
        ],
        ["2024-01-01 00:00:00+00:00"],
        [1, 2],
    ),
    "decimals": (
        [declared("bytes", "BQ==", name=DECIMAL, parameters={"scale": s}) for s in ("0", "x", "-2", "1000000000")],
        ["5", "500"],
        [1, 3],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def prefix(broker: KafkaBroker) -> str:
    """What the topics of this module begin with; all of their messages are there."""
    name = f"odd-{secrets.token_hex(3)}-"
    produce(broker, {f"{name}{topic}": messages for topic, (messages, _, _) in TOPICS.items()})
    return name


def produce(broker: KafkaBroker, messages: dict[str, list[Message]]) -> None:
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    known = admin.list_topics(timeout=30).topics
    new = [NewTopic(topic, 1, 1) for topic in messages if topic not in known]
    for made in admin.create_topics(new).values() if new else ():
        made.result()
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for topic, some in messages.items():
        for item in some:
            key, value = item if isinstance(item, tuple) else (None, item)
            producer.produce(topic, value=value, key=key)
    assert producer.flush(30) == 0


def pipeline(log: str, name: str, topics: Sequence[str]) -> hr.App:
    """A model for each topic, so that its rows are captured, predicted and learned."""
    app = hr.App(name, log=log)
    for topic in topics:
        model = app.model(f"of-{topic}", hr.KMeans(k=1, initial_centers=[[0.0]]), features=["x"])
        model.learn(app.topic(topic))
        model.predict(app.topic(topic)).to(f"{name}-{topic}")
    return app


def stored(log: str, name: str, topic: str) -> list[tuple[str, str, str]]:
    """Each row of a topic as the log has it: its type, value and operation."""
    with closing(open_log(log, writer=False, name=name, codec=codec_for())) as held:
        found = []
        for entry in walk(held, topic):
            own = [item for item in entry.records.schema.names if item[:2] != "__"]
            for row in range(entry.records.num_rows):
                some = entry.records.slice(row, 1).select(own)
                types = ", ".join(f"{field.name}: {field.type}" for field in some.schema)
                found.append(
                    (types, repr([values(column)[0] for column in some.columns]), str(entry.records["__op"][row]))
                )
        return found


def shown(log: str, name: str, topic: str) -> list[str]:
    """The values of «x», decimals without zeros at their end."""
    with closing(open_log(log, writer=False, name=name, codec=codec_for())) as held:
        found = [value for e in walk(held, topic) if "x" in e.records.schema.names for value in values(e.records["x"])]
    return [
        f"{item:f}".rstrip("0").rstrip(".")
        if isinstance(item, Decimal) and item % 1
        else str(int(item) if isinstance(item, Decimal) else item)
        for item in found
    ]


def test_a_pipeline_takes_everything_and_everything_can_be_looked_at(
    broker: KafkaBroker, prefix: str, tmp_path: Path
) -> None:
    log, topics = f"kafka://{broker.bootstrap}", [f"{prefix}{topic}" for topic in TOPICS]
    app = pipeline(log, f"{prefix}app", topics)
    with app.start() as running:
        running.wait(timeout=90)
    for topic, (messages, expected, refused) in TOPICS.items():
        read = app.topic(f"{prefix}{topic}").read()
        assert len(read) == len(messages) - len(refused), topic
        repr(read), read.to_pandas()
        if refused:
            letters = app.topic(f"{prefix}{topic}.dlq").read().to_arrow()
            decode = letters.filter(pa.compute.equal(letters["stage"], "decode"))
            assert decode["offset"].to_pylist() == refused and all(decode["reason"].to_pylist()), topic
        if expected:
            assert shown(log, app.name, f"{prefix}{topic}") == list(map(str, expected)), topic
    numbers = app.topic(f"{prefix}numbers").read().to_arrow()["x"]
    assert [str(number.as_py()).rstrip("0").rstrip(".") for number in numbers][:3] == ["9007199254740993", "0.5", "1"]
    with closing(open_log(log, writer=False, name=app.name, codec=codec_for())) as held:
        assert verify(app.plan(), held).result == "equal"
    for topic in ("numbers", "unlucky", "zoned"):  # as the log has them, and as they lie on the cluster
        for where in (f"{log}/{app.name}", log):
            headrace("topics", "cat", f"{prefix}{topic}", "--log", where, cwd=tmp_path)


def test_the_same_rows_give_the_same_values_however_they_are_fetched(broker: KafkaBroker, prefix: str) -> None:
    """A pipeline that saw each message alone, with restarts in between, against one that saw all at once."""
    chosen = ("numbers", "kinds", "unlucky")
    names = {topic: f"{prefix}slowly-{topic}" for topic in chosen}
    log = f"kafka://{broker.bootstrap}"
    at_once = pipeline(log, f"{prefix}once", [f"{prefix}{topic}" for topic in chosen])
    with at_once.start() as running:
        running.wait(timeout=90)
    slowly = pipeline(log, f"{prefix}slowly", list(names.values()))
    most = max(len(TOPICS[topic][0]) for topic in chosen)
    for start in (0, 3):
        with slowly.start() as running:
            for i in range(start, 3 if start == 0 else most):
                produce(broker, {names[t]: [TOPICS[t][0][i]] for t in chosen if i < len(TOPICS[t][0])})
                running.wait(timeout=90)
    for topic in chosen:
        assert stored(log, slowly.name, names[topic]) == stored(log, at_once.name, f"{prefix}{topic}")
    with closing(open_log(log, writer=False, name=slowly.name, codec=codec_for())) as held:
        assert verify(slowly.plan(), held).result == "equal"
        assert set(held.records("columns")) == set(names.values())
