"""Signals by a file and by a topic: each is obeyed once, whatever is killed, and then deleted from its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.capture.conftest import Capture, CapturedDatabase, Engine

from headrace.capture.debezium.configuration import Configuration
from headrace.capture.debezium.options import snapshots_of
from headrace.capture.postgres.signal_channels import SignalFile, _mark
from headrace.capture.postgres.snapshot_options import ChannelOptions, SnapshotOptions
from headrace.capture.postgres.snapshot_progress import Progress
from headrace.capture.postgres.source import PostgresSource
from headrace.errors import DeclarationError
from headrace.log.base import Log
from headrace.log.memory import MemoryLog
from headrace.testing.servers import KafkaBroker


def line(name: str, kind: str = "execute-snapshot", **data: Any) -> str:
    return json.dumps({"id": name, "type": kind, "data": data}) + "\n"


def told(channels: ChannelOptions, **more: Any) -> dict[str, Any]:
    return {"snapshot": "never", "snapshots": SnapshotOptions(chunk_rows=3, channels=channels, **more)}


def ids(engine: Engine, topic: str) -> list[Any]:
    return engine.ids(topic) if topic in engine.log.topics() else []


def progress(engine: Engine) -> Progress:
    source = engine.source
    assert isinstance(source, PostgresSource)
    return source._snapshots._stored


def emptied(engine: Engine, path: Path) -> bool:
    """Nothing is read, deleted or stored any more of what the file had."""
    return path.read_text() == "" and progress(engine).channels.get("file") == ""


def test_a_file_is_read_and_emptied(database: CapturedDatabase, capture: Capture, tmp_path: Path) -> None:
    database.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 7) i")
    path = tmp_path / "signals.txt"
    engine = capture(**told(ChannelOptions(file=str(path), poll_s=0.05)))
    bad = 'no json\n\n   \n{"type": 7}\n' + line("1", "nothing-like-it")
    path.write_text(bad + line("2", "log", message="hello") + line("3", **{"data-collections": ["public.t"]}))
    engine.until(lambda: ids(engine, database.topic()) == [1, 2, 3, 4, 5, 6, 7])
    engine.until(lambda: emptied(engine, path))
    # The same text once more is another signal.
    with path.open("a") as file:
        file.write(line("3", **{"data-collections": ["public.t"], "additional-conditions": []}).rstrip("\n"))
    engine.until(lambda: ids(engine, database.topic()) == [1, 2, 3, 4, 5, 6, 7] * 2)
    engine.until(lambda: path.read_text() == "")


def test_pause_resume_and_stop_by_a_file(database: CapturedDatabase, capture: Capture, tmp_path: Path) -> None:
    database.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 7) i")
    path = tmp_path / "signals.txt"
    engine = capture(**told(ChannelOptions(file=str(path), poll_s=0.05)))
    path.write_text(line("1", **{"data-collections": ["public.t"]}) + line("2", "pause-snapshot"))
    engine.until(lambda: progress(engine).paused and emptied(engine, path))
    assert ids(engine, database.topic()) == []
    path.write_text(line("3", "stop-snapshot", **{"data-collections": ["public.t"], "type": "incremental"}))
    engine.until(lambda: not progress(engine).queue and emptied(engine, path))
    path.write_text(line("4", "pause-snapshot") + line("5", **{"data-collections": ["public.t"]}))
    engine.until(lambda: len(progress(engine).ended) == 2)
    assert ids(engine, database.topic()) == [1, 2, 3, 4, 5, 6, 7]
    assert [entry.reason for entry in progress(engine).ended] == ["it was stopped", ""]


@pytest.mark.parametrize("deleted", [True, False])
def test_a_signal_that_was_obeyed_before_a_kill_is_not_obeyed_again(
    database: CapturedDatabase, capture: Capture, tmp_path: Path, deleted: bool
) -> None:
    database.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 4) i")
    path, log = tmp_path / "signals.txt", MemoryLog()
    options = told(ChannelOptions(file=str(path), poll_s=0.05))
    first = line("1", **{"data-collections": ["public.t"]})
    engine = capture(log, **options)
    path.write_text(first)
    engine.until(lambda: ids(engine, database.topic()) == [1, 2, 3, 4] and path.read_text() == "")
    engine.source.stop()
    # As a kill leaves it that came before the lines were deleted, or just behind that.
    name = engine.source.name
    with log.transaction() as txn:
        marked = Progress(**{**vars_of(Progress.load(log, name)), "channels": {"file": _mark(first.encode())}})
        txn.put("snapshots", name, marked.to_json())
    path.write_text(("" if deleted else first) + line("2", "log", message="x"))
    engine = capture(log, **options)
    engine.until(lambda: path.read_text() == "" and progress(engine).channels["file"] == "")
    assert ids(engine, database.topic()) == [1, 2, 3, 4]


def vars_of(progress: Progress) -> dict[str, Any]:
    return {name: getattr(progress, name) for name in progress.__dataclass_fields__}


def test_lines_that_come_while_others_are_deleted_stay(tmp_path: Path) -> None:
    path = tmp_path / "s"
    channel = SignalFile(str(path))
    assert channel.read("") == ([], "")
    path.write_bytes(line("1", "log").encode() + b'{"id": "half')
    signals, mark = channel.read("")
    assert [signal.id for signal in signals] == ["1"]
    path.write_bytes(path.read_bytes() + b'", "type": "log"}\n')
    assert channel.taken(mark) == ""
    assert [signal.id for signal in channel.read("")[0]] == ["half"]
    assert channel.taken(mark) == ""  # they are gone: nothing else is deleted
    assert path.read_bytes() == b'{"id": "half", "type": "log"}\n'


def test_a_topic_of_signals(database: CapturedDatabase, capture: Capture, broker: KafkaBroker) -> None:
    from confluent_kafka import Producer

    database.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 4) i")
    topic, log = f"signals_{database.name}", MemoryLog()
    broker.create_topic(topic)
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    channels = ChannelOptions(topic=topic, bootstrap=broker.bootstrap, group=topic, poll_s=0.05)

    def send(key: str, value: str) -> None:
        producer.produce(topic, key=key, value=value)
        assert producer.flush(10) == 0

    engine = capture(log, **told(channels))
    prefix = engine.source.name
    send("another", line("0", **{"data-collections": ["public.t"]}))
    send(prefix, "no json")
    send(prefix, line("1", **{"data-collections": ["public.t"]}))
    engine.until(lambda: ids(engine, database.topic()) == [1, 2, 3, 4])
    assert progress(engine).channels == {"kafka": "3"}
    engine.source.stop()
    send(
        prefix,
        line(
            "2",
            **{
                "data-collections": ["public.t"],
                "additional-conditions": [{"data-collection": "public.t", "filter": "id > 3"}],
            },
        ),
    )
    engine = capture(log, **told(channels))
    engine.until(lambda: ids(engine, database.topic()) == [1, 2, 3, 4, 4])
    engine.until(lambda: progress(engine).channels == {"kafka": "4"})
    engine.source.stop()
    # A log that has not read it begins behind the group's offset, as Debezium's own connector would.
    fresh = capture(MemoryLog(), snapshot="initial", snapshots=SnapshotOptions(chunk_rows=3, channels=channels))
    send(
        prefix,
        line(
            "3",
            **{
                "data-collections": ["public.t"],
                "additional-conditions": [{"data-collection": "public.t", "filter": "id = 1"}],
            },
        ),
    )
    fresh.until(lambda: ids(fresh, database.topic()) == [1, 2, 3, 4, 1])


def test_what_a_configuration_says() -> None:
    def of(**given: str) -> SnapshotOptions:
        named = {name.replace("_", "."): value for name, value in given.items()}
        return snapshots_of(Configuration({"topic.prefix": "shop", **named}, "here"))

    assert of().channels == ChannelOptions()
    assert of(signal_data_collection="a.b", signal_enabled_channels="file").obeys_table is False
    assert of(signal_enabled_channels="source,file", signal_poll_interval_ms="100").channels == ChannelOptions(
        file="file-signals.txt", poll_s=0.1
    )
    kafka = of(signal_enabled_channels="kafka", signal_kafka_bootstrap_servers="b:1").channels
    assert (kafka.topic, kafka.bootstrap, kafka.group) == ("shop-signal", "b:1", "kafka-signal")
    with pytest.raises(DeclarationError, match=r"bootstrap\.servers is not there"):
        of(signal_enabled_channels="kafka")
    with pytest.raises(DeclarationError, match="a store of Java's"):
        of(signal_consumer_ssl_truststore_location="x.jks")
    secret = of(signal_consumer_sasl_jaas_config='x required username="a" password="s3cret";')
    assert "s3cret" not in repr(secret)


def test_the_log_knows_channels_of_records_that_were_stored_before(database: CapturedDatabase) -> None:
    log: Log = MemoryLog()
    stored = json.loads(Progress(lsn=7).to_json())
    del stored["channels"]
    with log.transaction() as txn:
        txn.put("snapshots", "p", json.dumps(stored).encode())
    assert Progress.load(log, "p") == Progress(lsn=7)
