"""Topics of others whose schemas a registry has: a declaration is checked against them before anything runs."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from sklearn.linear_model import SGDRegressor

import headrace as hr
from headrace.batch import Batch
from headrace.errors import DeclarationError
from headrace.formats.registered import registered_format
from headrace.testing import KafkaBroker, SchemaRegistryServer

pytestmark = pytest.mark.timeout(90)

ROWS = pa.record_batch({"id": [1, 2], "weight": [1.5, 2.5], "kind": ["salmon", "walleye"]})


def sent(broker: KafkaBroker, registry: SchemaRegistryServer, topic: str, form: str, rows: pa.RecordBatch) -> None:
    """Write rows as messages of somebody else."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import NewTopic

    admin = broker.admin()  # held: its futures fail when it is collected
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    encoded = registered_format(form, registry=registry.url).encode(topic, Batch.of(rows, key=["id"]))
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for key, value, headers in zip(encoded.keys, encoded.values, encoded.headers, strict=True):
        producer.produce(topic, value, key, headers=list(headers))
    assert producer.flush(30) == 0


def declared(broker: KafkaBroker, name: str, url: str) -> hr.App:
    return hr.App(name, log=f"kafka://{broker.bootstrap}", registry=url)


def predicted(app: hr.App, topic: str, **more: Any) -> hr.Stream:
    model = app.model("m", SGDRegressor(), **{"features": ["weight"], "target": "id", **more})
    model.learn(app.topic(topic))
    return model.predict(app.topic(topic)).to(f"{app.name}-predicted")


MISTAKES: dict[str, tuple[Callable[[hr.App, str], object], tuple[str, ...]]] = {
    "a feature that is not there": (
        lambda app, topic: predicted(app, topic, features=["wieght"]),
        ("«wieght»", "did you mean «weight»?", "id, weight, kind"),
    ),
    "words as a number": (
        lambda app, topic: predicted(app, topic, features=["kind"]),
        ("«kind» is", "not a number", 'hr.category("kind")'),
    ),
    "a key that is not there": (
        lambda app, topic: (
            predicted(app, topic)
            .grade(app.topic(topic), on="ident", target="id", within="1 h")
            .to(f"{app.name}-graded")
        ),
        ("«ident»",),
    ),
    "a key of a sink that is not there": (
        lambda app, topic: app.topic(topic).to_table("postgresql://localhost:1/x", "fish", key="ident"),
        ("«ident»",),
    ),
}


@pytest.mark.parametrize("form", ["avro", "avro+envelope"])
def test_mistakes_are_refused_before_anything_runs(
    broker: KafkaBroker, registry: SchemaRegistryServer, topic_prefix: str, form: str
) -> None:
    topic = f"{topic_prefix}-fish"
    # The subject alone: no message is there yet.
    registered_format(form, registry=registry.url).encode(topic, Batch.of(ROWS, key=["id"]))
    for name, (declare, told) in MISTAKES.items():
        app = declared(broker, topic_prefix, registry.url)
        declare(app, topic)
        with pytest.raises(DeclarationError) as refusal:
            app.start().stop()
        assert all(text in str(refusal.value) for text in told), f"{name}: {refusal.value}"
    assert not [found for found in broker.admin().list_topics(timeout=10).topics if topic_prefix in found]


def test_the_newest_message_says_which_schema_counts(
    broker: KafkaBroker, registry: SchemaRegistryServer, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}-fish"
    sent(broker, registry, topic, "avro", ROWS)
    # Registered since, and not written yet.
    later = ROWS.append_column("length", pa.array([1.0, 2.0]))
    registered_format("avro", registry=registry.url).encode(topic, Batch.of(later, key=["id"]))
    app = declared(broker, topic_prefix, registry.url)
    predicted(app, topic, features=["length"])
    with pytest.raises(DeclarationError, match="«length»"):
        app.start().stop()
    app = declared(broker, topic_prefix, registry.url)
    stream = predicted(app, topic)
    with app.start() as running:
        running.wait(60)
    assert len(stream.read()) == 2


def test_a_json_schema_says_less_of_other_columns(
    broker: KafkaBroker, registry: SchemaRegistryServer, topic_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic = f"{topic_prefix}-fish"
    sent(broker, registry, topic, "jsonschema", ROWS)
    app = declared(broker, topic_prefix, registry.url)
    predicted(app, topic, features=["kind"])
    with pytest.raises(DeclarationError, match="«kind» is"):
        app.start().stop()
    app = declared(broker, topic_prefix, registry.url)
    predicted(app, topic, features=["wieght"])
    with caplog.at_level(logging.WARNING, "headrace"), app.start():
        assert "did you mean «weight»?" in caplog.text


def test_a_registry_that_is_away_is_said_and_not_asked_for_ever(
    broker: KafkaBroker, topic_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        app = declared(broker, topic_prefix, f"http://127.0.0.1:{taken.getsockname()[1]}")
        predicted(app, f"{topic_prefix}-fish")
        predicted_too = app.topic(f"{topic_prefix}-other", format="avro").to(f"{topic_prefix}-copy")
        with caplog.at_level(logging.WARNING, "headrace"), app.start():
            assert len(predicted_too.read()) == 0
    said = [record for record in caplog.records if "does not answer" in record.message]
    assert len(said) == 1 and "checked at its first row" in said[0].message


def test_a_topic_in_a_format_that_needs_a_registry_is_refused_where_none_is_given(
    broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEADRACE_SCHEMA_REGISTRY_URL", raising=False)
    app = hr.App("noregistry", log=f"kafka://{broker.bootstrap}")
    model = app.model("m", SGDRegressor(), features=["weight"], target="id")
    model.predict(app.topic("noregistry.fish", append=True)).to("noregistry.predicted", format="avro")
    with pytest.raises(DeclarationError, match=r"«noregistry\.predicted» is to be written as avro: no schema registry"):
        app.start()
