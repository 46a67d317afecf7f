"""What Flink's operators do, without Flink: frames as Java writes them, their order, what is read again."""

from __future__ import annotations

import pickle
import secrets
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import headrace as hr
from headrace.capture.topics.reader import Offsets
from headrace.engines.flink import jars
from headrace.engines.flink.ahead import AheadOperator, read_ahead
from headrace.engines.flink.frames import Frame, read_frame
from headrace.engines.flink.job import FlinkJob, TopicDecoder, error_of, verdict
from headrace.engines.flink.operators import FramesInOrder
from headrace.engines.flink.reader import FlinkFeed, FlinkReader
from headrace.engines.local.startup import start
from headrace.errors import LogLocked, LogTruncated
from headrace.formats.base import Decoded
from headrace.formats.topic_formats import DecodedMessages, ForeignFormats, codec_for
from headrace.kafka.cluster import Cluster
from headrace.kafka.settings import KafkaLocation
from headrace.testing.servers import KafkaBroker
from headrace.wire import Headers, WireMessages
from tests.crash import harness
from tests.waiting import wait_until

Message = tuple[int, int, bytes | None, bytes | None, Headers]  # offset, milliseconds, key, value, headers


def sized(data: bytes | None) -> bytes:
    return struct.pack(">i", -1) if data is None else struct.pack(">i", len(data)) + data


def frame(number: int, groups: dict[tuple[str, int], Sequence[Message]], *, source: int = 0) -> bytes:
    """Bytes as ``Batcher.java`` writes them."""
    written = [struct.pack(">iqi", source, number, len(groups))]
    for (topic, partition), messages in groups.items():
        offsets, times, keys, values, headers = zip(*messages, strict=True)
        n = len(messages)
        told = [
            struct.pack(">i", len(some)) + b"".join(sized(name.encode()) + sized(value) for name, value in some)
            for some in headers
        ]
        written += [
            sized(topic.encode()),
            struct.pack(">ii", partition, n),
            struct.pack(f">{n}q", *offsets),
            struct.pack(f">{n}q", *times),
            struct.pack(f">{n}i", *(-1 if key is None else len(key) for key in keys)),
            struct.pack(f">{n}i", *(-1 if value is None else len(value) for value in values)),
            sized(b"".join(key or b"" for key in keys)),
            sized(b"".join(value or b"" for value in values)),
            sized(b"".join(told) if any(headers) else b""),
        ]
    return b"".join(written)


def test_a_frame_is_read_as_it_was_written() -> None:
    """NULL, empty and long values, keys and headers, names that are not ASCII, several partitions; a sign of life."""
    first: list[Message] = [
        (4, 1_000, b"a", b"{}", ()),
        (7, 1_001, None, None, (("op", b"d"), ("größe", None), ("", b""))),
        (8, -1, b"", b"x" * 70_000, ()),
    ]
    read = read_frame(frame(3, {("tépic", 2): first, ("other", 0): [(0, 5, None, b"", ())]}, source=1))
    assert (read.source, read.number, list(read.arrived)) == (1, 3, [("tépic", 2), ("other", 0)])
    messages = read.arrived["tépic", 2]
    assert messages.offsets.tolist() == [4, 7, 8]
    assert messages.ts_ms.tolist() == [1_000, 1_001, -1]
    assert list(messages.keys) == [b"a", None, b""]
    assert list(messages.values) == [b"{}", None, b"x" * 70_000]
    assert [list(some) for some in messages.headers] == [[], [("op", b"d"), ("größe", None), ("", b"")], []]
    assert list(read.arrived["other", 0].values) == [b""]
    assert list(read.arrived["other", 0].headers) == [()]
    assert read_frame(frame(0, {})) == Frame(0, 0, {})


def test_frames_of_parallel_operators_are_put_in_order() -> None:
    order = FramesInOrder()
    came = [(0, 1), (1, 0), (0, 2), (0, 0), (1, 1), (0, 3)]
    given = [[(due.source, due.number) for due in order.take(Frame(source, number, {}))] for source, number in came]
    assert given == [[], [(1, 0)], [], [(0, 0), (0, 1), (0, 2)], [(1, 1)], [(0, 3)]]


def test_what_was_decoded_ahead_is_taken_where_both_knew_the_same_of_the_topic() -> None:
    """Another decoder that began elsewhere is not believed; what comes of it is the same."""
    data = frame(0, {("t", 0): [(i, 0, None, b'{"b": %d}' % i, ()) for i in range(3)]})
    ahead, engine = (ForeignFormats(codec_for(None)) for _ in range(2))
    messages = read_frame(data).arrived["t", 0]
    form, decoded = ahead(messages)
    made = (b"", ahead.records()["t"], form, [(batch.records, rows) for batch, rows in decoded.parts], [], [], ())
    (read,) = read_ahead(pickle.dumps((data, {("t", 0): made}))).arrived.values()
    assert isinstance(read, DecodedMessages)
    assert engine(read)[1] is read.decoded
    assert engine.records() == ahead.records()
    another = ForeignFormats(codec_for(None))
    another(WireMessages("t", [b'{"a": 1}'], offsets=np.array([0])))
    taken = another(read)[1]
    assert isinstance(taken, Decoded)
    assert taken is not read.decoded
    assert taken.parts[0][0].schema.names[:2] == ["a", "b"]


def wire(topic: str, offsets: Sequence[int]) -> WireMessages:
    return WireMessages(topic, [b"{}"] * len(offsets), offsets=np.array(offsets))


@pytest.fixture
def topic(broker: KafkaBroker) -> str:
    """A topic with offsets 0 to 9."""
    from confluent_kafka import Producer

    name = f"flink-{secrets.token_hex(6)}"
    broker.create_topic(name)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    for i in range(10):
        producer.produce(name, b'{"a": %d}' % i)
    producer.flush(30)
    return name


def reader_at(broker: KafkaBroker, topic: str, offset: int | None) -> tuple[FlinkFeed, FlinkReader]:
    location = KafkaLocation.parse(f"kafka://{broker.bootstrap}/app")
    feed = FlinkFeed()
    positions = {} if offset is None else {(topic, 0): offset}
    return feed, feed.reader(location, Cluster(location), [topic], positions, {})


def received(reader: FlinkReader, until: int) -> list[int]:
    found: list[int] = []
    while reader.positions().get(next(iter(reader.topics)), 0) != until and (not found or found[-1] + 1 < until):
        for messages in reader.receive(5.0).values():
            found += messages.offsets.tolist()
    return found


def test_what_the_log_has_is_left_out(broker: KafkaBroker, topic: str) -> None:
    """Flink went back to an older checkpoint."""
    feed, reader = reader_at(broker, topic, 6)
    feed.put(broker.bootstrap, {(topic, 0): wire(topic, range(4))})
    feed.put(broker.bootstrap, {(topic, 0): wire(topic, range(4, 8))})
    feed.put("elsewhere:9092", {(topic, 0): wire(topic, range(8, 10))})
    assert received(reader, 8) == [6, 7]
    assert reader.read() == Offsets({(topic, 0): 8})
    reader.close()


@pytest.mark.parametrize("log", [3, None])
def test_what_was_on_its_way_when_a_process_died_is_fetched(broker: KafkaBroker, topic: str, log: int | None) -> None:
    """Flink's checkpoint counts rows that the log has not."""
    feed, reader = reader_at(broker, topic, log)
    feed.put(broker.bootstrap, {(topic, 0): wire(topic, [8, 9])})
    assert received(reader, 10) == list(range(log or 0, 10))
    reader.close()


def test_what_is_gone_from_the_topic_is_refused(broker: KafkaBroker, topic: str) -> None:
    Cluster(KafkaLocation.parse(f"kafka://{broker.bootstrap}")).delete_before(topic, {0: 5})
    feed, reader = reader_at(broker, topic, 3)
    feed.put(broker.bootstrap, {(topic, 0): wire(topic, [8, 9])})
    with pytest.raises(LogTruncated, match="does not hold offset 3"):
        received(reader, 10)
    reader.close()


def test_predictions_made_ahead_are_taken_by_the_engine(broker: KafkaBroker, topic_prefix: str) -> None:
    """A model that stands still: the engine predicts none of the rows itself, and writes what it would have written."""
    from confluent_kafka import Producer

    train, ask = f"{topic_prefix}-train", f"{topic_prefix}-ask"
    producer = Producer({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    for topic, count in ((train, 64), (ask, 200)):
        broker.create_topic(topic)
        for i in range(count):
            producer.produce(topic, b'{"id": %d, "a": %d.5}' % (i, i % 7), timestamp=5)
    producer.flush(30)

    def declared(name: str) -> hr.App:
        app = hr.App(name, log=f"kafka://{broker.bootstrap}")
        model = app.model("m", hr.KMeans(k=2, initial_centers=[[0.0], [5.0]]), features=["a"])
        model.learn(app.topic(train), every=32)
        model.predict(app.topic(ask)).to(f"{name}-out")
        return app

    app = declared(topic_prefix)
    with declared(f"{topic_prefix}-local").start() as running:
        running.wait(60)
    plan, feed = app.plan(), FlinkFeed()
    job = FlinkJob.of(plan, [broker.bootstrap], [TopicDecoder(broker.bootstrap, (train, ask), {}, True)])
    rows = {name: [(i, 5, None, b'{"id": %d, "a": %d.5}' % (i, i % 7), ()) for i in range(n)] for name, n in
            ((train, 64), (ask, 200))}  # fmt: skip
    with start(plan, reader=feed.reader) as running:
        ahead = AheadOperator(job, alone=True)
        feed.put(broker.bootstrap, read_ahead(ahead.take(frame(0, {(train, 0): rows[train]}))).arrived)
        wait_until(lambda: ahead.known("m") is not None and running["m"].learned == 64, "the model")
        feed.put(broker.bootstrap, read_ahead(ahead.take(frame(1, {(ask, 0): rows[ask]}))).arrived)
        wait_until(lambda: running["m"].counters["predicted"] == 200, "predictions")
        foreseen = running.engine.runners[0].foreseen
        assert (foreseen.offered, foreseen.taken) == (200, 200)
        ahead.close()

    def answers(name: str) -> list[tuple[int, int, str]]:
        found = declared(name).topic(f"{name}-out").read().to_arrow()
        return [tuple(row.values()) for row in found.select(["id", "prediction", "status"]).to_pylist()]

    assert len(answers(topic_prefix)) == 200
    assert {row[1] for row in answers(topic_prefix)} == {0, 1}
    harness.verify(app)


def test_an_error_goes_through_java_and_back() -> None:
    error = LogLocked("another run has taken over «a\nb»", advice="Stop one.")
    found = error_of(f"x.SuppressRestartsException: y\nCaused by: z: {verdict(error).decode()}\n\tat headrace.flink")
    assert type(found) is LogLocked
    assert (found.message, found.advice) == (error.message, error.advice)
    assert str(error_of(verdict(KeyError("k")).decode())) == "KeyError: 'k'"
    assert error_of("org.apache.flink.Whatever") is None


def test_a_job_takes_the_users_own_code_and_secrets_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module beside the pipeline is not installed on the cluster; a file of properties does not lie there."""
    (tmp_path / "own_features.py").write_text("def squares(batch):\n    return batch\n")
    (tmp_path / "kafka.properties").write_text("sasl.password=s3cret\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HEADRACE_KAFKA_CONFIG", str(tmp_path / "kafka.properties"))
    import own_features  # type: ignore[import-not-found]  # it was written a moment ago

    app = hr.App("a", log="kafka://nowhere:9092")
    app.model("m", hr.KMeans(k=2), features=own_features.squares).learn(app.topic("t"))
    job = FlinkJob.of(app.plan(), ["nowhere:9092"], [])
    assert job.environment["HEADRACE_KAFKA_SASL_PASSWORD"] == "s3cret"
    assert "s3cret" not in repr(job)
    monkeypatch.undo()
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).models[0].features('rows'))"
    done = subprocess.run([sys.executable, "-c", code], input=job.plan, capture_output=True, timeout=60, check=False)
    assert done.stdout.decode() == "rows\n", done.stderr.decode()


@pytest.mark.flink
@pytest.mark.skipif(shutil.which("javac") is None, reason="there is no Java compiler")
def test_the_jar_is_what_its_sources_say(tmp_path: Path) -> None:
    import pyflink

    libraries = Path(pyflink.__file__).parent / "lib"
    classpath = [*libraries.glob("*.jar"), *(jar for jar in jars.job_jars({}, [libraries]) if jar != jars.OURS)]
    jars.build(classpath, tmp_path / "made.jar")
    assert (tmp_path / "made.jar").read_bytes() == jars.OURS.read_bytes()
