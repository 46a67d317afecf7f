"""Where a log on Kafka is: locations, settings from file and environment, and that none of them is ever shown."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import DeclarationError
from headrace.kafka.settings import KafkaLocation, read_settings

SECRET = "tr0ub4dor&3"


@pytest.mark.parametrize(
    ("location", "bootstrap", "name", "partitions", "replication"),
    [
        ("kafka://a:9092", "a:9092", "app", 1, -1),
        ("kafka://a:9092/", "a:9092", "app", 1, -1),
        ("kafka://a:9092/iris", "a:9092", "iris", 1, -1),
        ("kafka://a:9092,b:9093/iris?partitions=4&replication=3", "a:9092,b:9093", "iris", 4, 3),
        ("kafka://[::1]:9092/iris", "[::1]:9092", "iris", 1, -1),
    ],
)
def test_locations(location: str, bootstrap: str, name: str, partitions: int, replication: int) -> None:
    place = KafkaLocation.parse(location, name="app", environ={})
    assert (place.bootstrap, place.name, place.partitions, place.replication) == (
        bootstrap,
        name,
        partitions,
        replication,
    )


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("kafka://", "names no broker"),
        ("kafka://host", "names no broker"),
        ("kafka://host:port", "names no broker"),
        (f"kafka://ann:{SECRET}@host:9092", "no user or password"),
        ("kafka://host:9092?partitions=0", "says nothing"),
        ("kafka://host:9092?colour=red", "says nothing"),
    ],
)
def test_wrong_locations(location: str, words: str) -> None:
    with pytest.raises(DeclarationError, match=words) as caught:
        KafkaLocation.parse(location, environ={})
    assert SECRET not in str(caught.value)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "client.properties"
    file.write_text(
        "# as Kafka's tools read it\n! so too\n\nbootstrap.servers=elsewhere:1\nsasl.mechanism = PLAIN\n"
        f"sasl.username=file\nsasl.password={SECRET}=x\n"
    )
    environment = {"HEADRACE_KAFKA_CONFIG": str(file), "HEADRACE_KAFKA_SASL_USERNAME": "environment", "OTHER": "1"}
    assert read_settings(environment) == {
        "sasl.mechanisms": "PLAIN",
        "sasl.username": "environment",
        "sasl.password": f"{SECRET}=x",
    }


@pytest.mark.parametrize("name", ["ISOLATION_LEVEL", "TRANSACTIONAL_ID", "ENABLE_IDEMPOTENCE", "AUTO_OFFSET_RESET"])
def test_what_exactly_once_depends_on_is_ours(name: str) -> None:
    with pytest.raises(DeclarationError, match="set by Headrace"):
        read_settings({f"HEADRACE_KAFKA_{name}": SECRET})


@pytest.mark.parametrize(("text", "words"), [(None, "No such file"), (f"a=b\n{SECRET}\n", ":2: not a line")])
def test_a_bad_file_is_said_without_its_content(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "client.properties"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DeclarationError, match=words) as caught:
        read_settings({"HEADRACE_KAFKA_CONFIG": str(file)})
    assert SECRET not in str(caught.value)


def secret_place() -> KafkaLocation:
    names = ("SASL_PASSWORD", "SSL_KEY_PASSWORD", "SASL_OAUTHBEARER_CLIENT_SECRET")
    environment: dict[str, Any] = {f"HEADRACE_KAFKA_{name}": SECRET for name in names}
    return KafkaLocation.parse("kafka://127.0.0.1:9/iris", environ=environment)


def test_settings_are_never_shown() -> None:
    place = secret_place()
    assert place.client()["sasl.password"] == SECRET
    for shown in (repr(place), str(place), place.url, f"{place}"):
        assert SECRET not in shown


def test_a_client_that_is_refused_shows_no_settings(capfd: pytest.CaptureFixture[str]) -> None:
    from headrace.errors import HeadraceError
    from headrace.kafka.cluster import Cluster

    environment = {
        "HEADRACE_KAFKA_SASL_PASSWORD": SECRET,
        "HEADRACE_KAFKA_SASL_USERNAME": "ann",
        "HEADRACE_KAFKA_SASL_MECHANISMS": "PLAIN",
        "HEADRACE_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    }
    place = KafkaLocation.parse("kafka://127.0.0.1:9/iris", environ=environment)
    with pytest.raises(HeadraceError) as caught:
        Cluster(place, patience=0.0).topics(patience=0.0)
    words = "".join(traceback.format_exception(caught.value)) + "".join(capfd.readouterr())
    assert SECRET not in words
