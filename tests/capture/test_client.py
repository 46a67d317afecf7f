"""The connections: parameters, errors, commands, the stream's own protocol."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tests.waiting import BUSY_S, wait_until

from headrace.capture.postgres.client import CommandError, Connecting, Replication, Server
from headrace.capture.postgres.receiver import Receiver
from headrace.capture.postgres.slot_binding import derived_name
from headrace.capture.postgres.stream import ReplicationStream, Wake
from headrace.capture.read_ahead import ReadAhead
from headrace.errors import SourceRefused, SourceUnavailable

from .conftest import CapturedDatabase


@pytest.fixture
def replication(database: CapturedDatabase) -> Iterator[Replication]:
    with contextlib.closing(Replication.open(Server(database.dsn))) as made:
        yield made


def slot_and_publication(database: CapturedDatabase) -> None:
    database.execute("CREATE PUBLICATION p FOR TABLE t")
    database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", database.name)


def started(database: CapturedDatabase, replication: Replication) -> ReplicationStream:
    return ReplicationStream.start(replication, slot=database.name, lsn=0, publication="p", binary=True)


# --- parameters ---


def test_settings_that_text_forms_depend_on(database: CapturedDatabase) -> None:
    database.server.execute(f"ALTER DATABASE {database.name} SET datestyle = 'German'")
    with contextlib.closing(Server(database.dsn).sql()) as connection:
        shown = connection.execute("SELECT '2024-02-29'::date::text, 0.1::float4::text, '1 day'::interval::text")
        assert shown.fetchone() == ("2024-02-29", "0.1", "1 day")
        assert connection.execute("SHOW timezone").fetchone() == ("UTC",)


def test_options_of_the_user_stay() -> None:
    options = Server("host=/tmp options='-c search_path=x' application_name=mine").parameters()
    assert options["options"].startswith("-c search_path=x -c ")
    assert options["application_name"] == "mine"


@pytest.mark.parametrize("dsn", ["host=a password=secret port=1", "postgresql://u:secret@a:1/d"])
def test_passwords_are_not_shown(dsn: str) -> None:
    server = Server(dsn)
    assert "secret" not in f"{server} {server!r} {server.lost(OSError('gone'))}"


def test_derived_names() -> None:
    assert derived_name("Iris", "flink") == "headrace_iris_flink"
    long = derived_name("a" * 80, "p")
    assert len(long) == 63
    assert long != derived_name("a" * 81, "p")


# --- connecting ---


def test_connecting_step_by_step(database: CapturedDatabase) -> None:
    connecting = Connecting(Server(database.dsn))
    made = None
    while made is None:
        made = connecting.step(0.1)
    made.close()
    made.close()


def test_connecting_never_waits_longer_than_told() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        connecting = Connecting(Server(f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x"))
        begun = time.monotonic()
        assert connecting.step(0.1) is None
        assert time.monotonic() - begun < BUSY_S
        wake = Wake()
        threading.Timer(0.1, wake.set).start()
        assert connecting.step(60, wake.fd) is None
        assert time.monotonic() - begun < 2 * BUSY_S
        connecting.close()
        with pytest.raises(SourceUnavailable, match="interrupted"):
            Replication.open(connecting._server, cancelled=lambda: True)


# --- commands ---


def test_commands_give_rows(replication: Replication, database: CapturedDatabase) -> None:
    (row,) = replication.command("IDENTIFY_SYSTEM")
    assert row["dbname"] == database.name
    assert replication.command("SELECT NULL AS a") == [{"a": None}]


def test_a_refused_command(replication: Replication) -> None:
    with pytest.raises(CommandError, match="does not exist") as caught:
        replication.command("DROP_REPLICATION_SLOT nowhere")
    assert caught.value.code == "42704"
    assert isinstance(caught.value, SourceRefused)
    assert replication.command("SELECT 1 AS a") == [{"a": "1"}]


def test_a_command_whose_connection_breaks(replication: Replication) -> None:
    with pytest.raises(SourceUnavailable):
        replication.command("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(SourceUnavailable):
        replication.command("SELECT 1")


def test_a_command_is_interrupted(replication: Replication) -> None:
    begun = time.monotonic()
    with pytest.raises(SourceUnavailable, match="interrupted"):
        replication.command("SELECT pg_sleep(30)", cancelled=lambda: True)
    assert time.monotonic() - begun < BUSY_S


# --- the stream ---


def test_stream_of_one_transaction(database: CapturedDatabase, replication: Replication) -> None:
    slot_and_publication(database)
    database.execute("INSERT INTO t VALUES (1, 1)")
    stream = started(database, replication)
    kinds = b""
    while not kinds.endswith(b"C"):
        kinds += bytes(message[25] for message in stream.read(1.0))
    assert kinds == b"BRIC"
    assert stream.size > 0
    stream.finish()
    stream.close()


def test_keepalives_on_request(database: CapturedDatabase, replication: Replication) -> None:
    slot_and_publication(database)
    stream = started(database, replication)
    while not stream.wal_end:
        stream.send_status(received=0, flushed=0, ask=True)
        assert stream.read(1.0) == []
    stream.close()


def test_the_stream_ends_with_its_server_process(database: CapturedDatabase, replication: Replication) -> None:
    slot_and_publication(database)
    stream = started(database, replication)
    database.execute("SELECT pg_terminate_backend(%s)", database.slot(database.name)["active_pid"])
    with pytest.raises(SourceUnavailable, match="terminating connection"):
        while True:
            stream.read(1.0)
    stream.close()


def test_receiver_gives_out_what_came_before_the_error(database: CapturedDatabase, replication: Replication) -> None:
    slot_and_publication(database)
    database.execute("INSERT INTO t SELECT g, 1 FROM generate_series(1, 5000) g")
    stream, ready = started(database, replication), Wake()
    receiver = Receiver(stream, ready)
    database.execute("SELECT pg_sleep(0.5)")
    database.execute("SELECT pg_terminate_backend(%s)", database.slot(database.name)["active_pid"])
    messages: list[bytes] = []
    with pytest.raises(SourceUnavailable):
        while True:
            messages += receiver.read(1.0)
    assert len(messages) == 5003
    receiver.close()
    receiver.close()


def test_receiver_stops_reading_when_nobody_takes(
    database: CapturedDatabase, replication: Replication, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is bounded: the rest stays in the server."""
    monkeypatch.setattr("headrace.capture.postgres.receiver.MOST_BYTES", 1 << 20)
    slot_and_publication(database)
    database.execute("CREATE TABLE wide (id int PRIMARY KEY, s text); ALTER PUBLICATION p ADD TABLE wide")
    database.execute("INSERT INTO wide SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g")
    stream, ready = started(database, replication), Wake()
    receiver = Receiver(stream, ready)
    wait_until(lambda: receiver._waiting > 1 << 20)
    time.sleep(0.5)
    assert receiver._waiting < 10 << 20
    count = 0
    while count < 20_003:
        count += len(receiver.read(5.0))
    receiver.close()


def test_receiver_closes_while_it_is_full(
    database: CapturedDatabase, replication: Replication, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.capture.postgres.receiver.MOST_BYTES", 1000)
    slot_and_publication(database)
    database.execute("INSERT INTO t SELECT g, 1 FROM generate_series(1, 5000) g")
    ready = Wake()
    receiver = Receiver(started(database, replication), ready)
    time.sleep(0.3)
    begun = time.monotonic()
    receiver.close()
    assert time.monotonic() - begun < BUSY_S


# --- reading ahead ---


def test_read_ahead_raises_after_what_came_before() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("end")

    got = []
    with pytest.raises(KeyError):
        for item in ReadAhead(lambda _: items(), "headrace-ahead"):
            got.append(item)
    assert got == [1, 2]


def test_read_ahead_closed_early_ends_its_thread() -> None:
    made = []

    def items() -> Iterator[int]:
        for item in range(1000):
            made.append(item)
            yield item

    reader = ReadAhead(lambda _: items(), "headrace-ahead", depth=2)
    assert reader.take(60) == 0
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "headrace-ahead"]
    assert len(made) < 10
