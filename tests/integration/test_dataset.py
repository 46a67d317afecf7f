"""Data sets of captured tables, while the pipeline runs, of other pipelines' topics and of anybody's on Kafka."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from sklearn.linear_model import SGDClassifier

import headrace as hr
from headrace.errors import LogError
from headrace.testing.servers import KafkaBroker
from tests.databases import Database

RNG = np.random.default_rng(8)
IMAGE = hr.image("pixels", shape=(4, 4), scale=1 / 255)


def digits(rows: int) -> list[tuple[bytes, int]]:
    """Noise with a bright corner that says the label."""
    found = []
    for i in range(rows):
        pixels = RNG.integers(0, 90, (4, 4)).astype(np.uint8)
        label = i % 4
        pixels[(label // 2) * 3, (label % 2) * 3] = 255
        found.append((pixels.tobytes(), label))
    return found


def create(database: Database, table: str) -> None:
    database.execute(f"create table {table} (id serial primary key, pixels bytea, labels smallint)")


def insert(database: Database, table: str, rows: list[tuple[bytes, int]]) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.executemany(f"insert into {table} (pixels, labels) values (%s, %s)", rows)


def notebook(database: Database, app: hr.App) -> None:
    """The seed's notebook: train on what is there, evaluate what comes, go on with the group, read with another."""
    create(database, "mnist_train")
    create(database, "mnist_test")
    trained = digits(400)
    insert(database, "mnist_train", trained)
    db = app.postgres(database.dsn, tables=r"public\.mnist_.*", prefix="tf")
    with app.start() as running:
        running.wait(60)
        model = SGDClassifier(random_state=0)
        train = db["public.mnist_train"].dataset(64, features=[IMAGE], target="labels", epochs=3, shuffle=True)
        rows = 0
        for X, y in train:
            assert X.shape[1:] == (4, 4) and X.dtype == np.float32 and y.dtype == np.int16
            model.partial_fit(X.reshape(len(X), -1), y, classes=range(4))
            rows += len(X)
        assert rows == 3 * 400

        # The table is empty, and its topic not there yet.
        test = db["public.mnist_test"]
        tested = digits(230)
        writing = threading.Thread(target=insert, args=(database, "mnist_test", tested))
        data = test.dataset(64, features=[IMAGE], target="labels", wait=True, idle_timeout="9 s", group="mnistcg")
        writing.start()
        found, right = 0, 0
        for X, y in data:
            found, right = found + len(X), right + int((model.predict(X.reshape(len(X), -1)) == y).sum())
            if found == 192:
                break
        writing.join(60)
        assert found == 192 and right > 180
        # The last batch was in hand at the break: the group has it again, with the rest, and then nothing.
        again = test.dataset(64, features=[IMAGE], target="labels", group="mnistcg")
        assert [len(y) for _, y in again] == [64, 38] and list(again) == []
        assert sum(len(y) for _, y in test.dataset(100, features=[IMAGE], target="labels", group="mnistcg2")) == 230


def test_the_notebook_on_a_file(database: Database, tmp_path: Path) -> None:
    app = hr.App("digits", log=tmp_path / "digits.headrace")
    notebook(database, app)
    # The pipeline does not run any more.
    batches = list(app.topic("tf.public.mnist_train").select("pixels", "labels").dataset(64))
    assert sum(batch.num_rows for batch in batches) == 400


def test_the_notebook_in_memory(database: Database) -> None:
    notebook(database, hr.App("digits", log="memory://"))


def test_a_network_of_keras_is_trained_and_evaluated(database: Database, tmp_path: Path) -> None:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    create(database, "mnist_train")
    insert(database, "mnist_train", digits(300))
    app = hr.App("digits", log=tmp_path / "digits.headrace")
    db = app.postgres(database.dsn, tables=r"public\.mnist_.*", prefix="tf")
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4, activation="softmax")])
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    with app.start() as running:
        running.wait(60)
        train = db["public.mnist_train"].dataset(30, features=[IMAGE], target="labels", drop_remainder=True)
        model.fit(train.keras(), epochs=4, verbose=0)
        assert model.evaluate(train.keras(), verbose=0)[1] > 0.95


# -- Kafka ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def log_name() -> str:
    return f"digits-{secrets.token_hex(4)}"


@pytest.mark.parametrize("partitions", [1, 3])
def test_the_notebook_on_kafka(database: Database, broker: KafkaBroker, log_name: str, partitions: int) -> None:
    place = f"kafka://{broker.bootstrap}/{log_name}"
    prefix = f"tf{secrets.token_hex(3)}"
    app = hr.App(log_name, log=f"{place}?partitions={partitions}")
    create(database, "mnist_train")
    rows = digits(300)
    insert(database, "mnist_train", rows)
    db = app.postgres(database.dsn, tables=r"public\.mnist_.*", prefix=prefix)
    stream = db["public.mnist_train"]
    topic = f"{prefix}.public.mnist_train"
    seen: list[int] = []

    def follow() -> None:
        """In the same process, before the pipeline has begun."""
        live = stream.dataset(50, wait=True, idle_timeout="20 s", group=f"{log_name}-live")
        for batch in live:
            seen.extend(batch.column("labels").to_pylist())
            if len(seen) >= 350:
                break

    following = threading.Thread(target=follow)
    following.start()
    with app.start() as running:
        running.wait(60)
        insert(database, "mnist_train", digits(50))
        running.wait(60)
        following.join(60)
    assert seen == [i % 4 for i in range(300)] + [i % 4 for i in range(50)]
    # Another app, as a notebook has: it finds the pipeline that writes the topic, and BYTEA is bytes.
    elsewhere = hr.App("notebook", log=f"kafka://{broker.bootstrap}").topic(topic)
    X, y = next(iter(elsewhere.dataset(300, features=[IMAGE], target="labels")))
    assert X.shape == (300, 4, 4) and y.tolist() == [label for _, label in rows]
    assert np.array_equal(X[7].ravel(), np.frombuffer(rows[7][0], np.uint8) * np.float32(1 / 255))
    group = f"{log_name}-g"
    data = elsewhere.dataset(100, features=[IMAGE], target="labels", group=group)
    for number, _ in enumerate(data):
        if number == 2:
            break
    # Kafka's tools see how far it is: 200 messages, and perhaps the mark of a transaction's end.
    assert 200 <= sum(offsets(broker, group, topic).values()) <= 203
    assert [len(one) for _, one in data] == [100, 50] and list(data) == []
    # Somebody resets the group with Kafka's tools.
    reset(broker, group, topic)
    assert sum(len(one) for _, one in data) == 350
    reset(broker, group, topic, 50 // partitions)
    assert 300 <= sum(len(one) for _, one in data) <= (300 if partitions == 1 else 349)
    with pytest.raises(LogError, match="no topic"):
        list(app.topic(f"{prefix}.public.nothing").dataset())


def offsets(broker: KafkaBroker, group: str, topic: str) -> dict[int, int]:
    """A group's offsets, as `kafka-consumer-groups.sh` shows them."""
    from confluent_kafka import ConsumerGroupTopicPartitions
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    asked = [ConsumerGroupTopicPartitions(group)]
    found = admin.list_consumer_group_offsets(asked)[group].result().topic_partitions
    return {item.partition: item.offset for item in found if item.topic == topic}


def reset(broker: KafkaBroker, group: str, topic: str, offset: int = 0) -> None:
    """As `kafka-consumer-groups.sh --reset-offsets --to-offset` does it."""
    from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    back = [TopicPartition(topic, number, offset) for number in offsets(broker, group, topic)]
    admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, back)])[group].result()


@pytest.fixture
def produced(broker: KafkaBroker, topic_prefix: str) -> Iterator[Any]:
    """A topic of two partitions, and what appends JSON to it."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    admin.create_topics([NewTopic(topic_prefix, 2, 1)])[topic_prefix].result()
    producer = Producer({"bootstrap.servers": broker.bootstrap})

    def produce(first: int, stop: int) -> None:
        for i in range(first, stop):
            producer.produce(topic_prefix, json.dumps({"id": i, "a": i / 2}).encode(), partition=i % 2)
        producer.flush()

    yield produce
    producer.flush()


def test_a_topic_that_others_write(broker: KafkaBroker, topic_prefix: str, produced: Any) -> None:
    app = hr.App(f"reader-{topic_prefix}", log=f"kafka://{broker.bootstrap}")
    stream = app.topic(topic_prefix)
    assert list(stream.dataset(8)) == []
    produced(0, 100)

    def ids(data: Any) -> list[int]:
        return [value for batch in data for value in batch.column("id").to_pylist()]

    everything = ids(stream.dataset(8))
    assert sorted(everything) == list(range(100))
    for parity in (0, 1):
        assert [i for i in everything if i % 2 == parity] == list(range(parity, 100, 2)), "each partition in its order"
    twice = ids(stream.dataset(8, epochs=2, start=10))
    assert sorted(twice) == sorted([*range(20, 100)] * 2)
    group = f"{topic_prefix}-g"
    data = stream.dataset(10, group=group)
    first = []
    for number, batch in enumerate(data):
        if number == 3:
            break
        first += batch.column("id").to_pylist()
    assert sum(offsets(broker, group, topic_prefix).values()) == 30
    produced(100, 120)
    rest = ids(data)
    assert sorted(first + rest) == list(range(120)) and ids(data) == []
    assert offsets(broker, group, topic_prefix) == {0: 60, 1: 60}
    live = stream.dataset(1, idle_timeout="5 s", start="latest", features=["a"])
    seen = []
    writing = threading.Timer(1.0, lambda: produced(120, 126))
    writing.start()
    for (X,) in zip(live, strict=False):
        seen.append(float(X[0, 0]))
        if len(seen) == 6:
            break
    writing.join()
    assert sorted(seen) == [i / 2 for i in range(120, 126)]


def test_what_cannot_be_decoded_is_skipped(broker: KafkaBroker, topic_prefix: str, produced: Any) -> None:
    from confluent_kafka import Producer

    produced(0, 4)
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    producer.produce(topic_prefix, b"{torn", partition=0)
    producer.flush()
    produced(4, 8)
    data = hr.App(f"reader-{topic_prefix}", log=f"kafka://{broker.bootstrap}").topic(topic_prefix).dataset(64)
    assert sorted(value for batch in data for value in batch.column("id").to_pylist()) == list(range(8))
    assert data.skipped == 1
