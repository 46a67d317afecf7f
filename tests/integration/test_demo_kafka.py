"""The Iris demo on a real broker, from Headrace's own capture and from real Debezium: both published tables."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.testing.servers import JavaMissing, KafkaBroker
from tests.processes import HEADRACE, headrace, run_python

from .test_demo import EXPECTED

pytestmark = pytest.mark.xdist_group("kafka")
TABLES = [("flink", [5, 7, 9]), pytest.param("spark", [5, 8, 11], marks=pytest.mark.slow)]


@pytest.fixture
def cluster() -> Iterator[KafkaBroker]:
    """A broker for one demo, that makes no topics by itself."""
    try:
        broker = KafkaBroker()
    except JavaMissing as error:
        pytest.skip(str(error))
    with broker:
        yield broker


def consumed(broker: KafkaBroker, topic: str) -> list[Any]:
    """Every committed message of a topic's only partition, as any client reads it."""
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap,
            "group.id": "test",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    found = []
    while (message := consumer.poll(30)) is not None:
        if message.error() is not None:
            assert message.error().code() == KafkaError._PARTITION_EOF
            break
        found.append(message)
    consumer.close()
    return found


def check(result: dict[str, Any], flavour: str, correct: list[int]) -> None:
    assert list(result) == ["flavour", "rounds", "log", "seconds"]
    for round_ in result["rounds"]:
        assert round_["predictions"] == EXPECTED[flavour][f"after_{round_['after']}"]
    assert [round_["correct"] for round_ in result["rounds"]] == correct


@pytest.mark.parametrize(("flavour", "correct"), TABLES)
def test_from_debezium(flavour: str, correct: list[int], cluster: KafkaBroker, tmp_path: Path) -> None:
    """Topics that are not there yet; 33 JSON messages, one for each inserted test row; and a second demo refused."""
    log = f"kafka://{cluster.bootstrap}"
    demo = ("demo", "iris", "--source", "debezium", "--flavour", flavour, "--log", log, "--json")
    result = json.loads(headrace(*demo, cwd=tmp_path))
    check(result, flavour, correct)
    assert result["log"] == f"{log}/iris"
    found = consumed(cluster, "iris_predictions")
    assert len(found) == 33
    assert None not in [message.value() for message in found], "no tombstones"
    values = [json.loads(message.value()) for message in found]
    assert [value["id"] for value in values] == list(range(1, 34))
    predictions = [value["prediction"] for value in values]
    assert predictions == [prediction for round_ in result["rounds"] for prediction in round_["predictions"]]
    assert [value["iris_class"] for value in values] == [label for r in result["rounds"] for label in r["labels"]]
    assert len(consumed(cluster, f"{flavour}.public.iris_train")) == 277
    assert "the demo's own" in " ".join(headrace(*demo, cwd=tmp_path, code=2).split())


@pytest.mark.slow
def test_on_a_broker_of_its_own(tmp_path: Path, cluster: KafkaBroker) -> None:
    del cluster  # skips where there is no Java
    result = json.loads(headrace("demo", "iris", "--log", "kafka", "--json", cwd=tmp_path))
    check(result, "flink", [5, 7, 9])
    assert result["log"].startswith("kafka://127.0.0.1:")


def test_without_java_it_says_so(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"} | {"PATH": "/nowhere"}
    command = [sys.executable, HEADRACE, "demo", "iris", "--log", "kafka"]
    done = run_python(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no Java on PATH" in done.stderr
    assert "Traceback" not in done.stderr
