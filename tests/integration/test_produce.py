"""`headrace produce` as a user runs it: every input, throttled, keyed, timed, and once each, killed or not."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from headrace.batch import Batch
from headrace.errors import DeclarationError, FormatError, LogMissing
from headrace.log import open_log
from headrace.produce.files import count_rows, event_times, read_json_lines, read_rows
from headrace.produce.producer import Throttle, parse_rate
from headrace.testing.servers import KafkaBroker
from tests.processes import HEADRACE, Child, headrace, run_python
from tests.waiting import wait_until

LOG = "a.headrace"
DEADLINE = 60.0


def produce(*arguments: str, cwd: Path, log: str = LOG) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(headrace("produce", *arguments, "--log", log, "--json", cwd=cwd))
    return found


def refused(*arguments: str, cwd: Path, log: str = LOG, code: int = 1) -> str:
    command = [HEADRACE, "produce", *arguments, "--log", log]
    done = run_python(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def rows(topic: str, cwd: Path, log: str = LOG) -> list[dict[str, Any]]:
    return [json.loads(line) for line in headrace("topics", "cat", topic, "--log", log, cwd=cwd).splitlines()]


def numbers(path: Path, count: int) -> Path:
    path.write_text("".join(f'{{"n": {n}}}\n' for n in range(count)))
    return path


def written(cwd: Path, topic: str = "t") -> int:
    """Rows in the log now; 0 while there is none."""
    if not (cwd / LOG).exists():
        return 0
    with closing(open_log(cwd / LOG, writer=False)) as log:
        known = log.topics().get(topic)
        return known.rows if known is not None else 0


def at_least(count: int, cwd: Path) -> bool:
    return written(cwd) >= count


# -- inputs -----------------------------------------------------------------------------------------------------------


def _json(path: Path) -> None:
    path.write_text('{"id": 1, "name": "a"}\n\n{"id": 2, "name": null, "x": 0.5}\n{"id": 3}')


def _json_gz(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"id": 1, "name": "a"}\n{"id": 2, "x": 0.5}\n{"id": 3}\n'))


def _csv(path: Path) -> None:
    path.write_text('id,name,x\n1,"a",\n2,,0.5\n3,,\n')


def _parquet(path: Path) -> None:
    found = [{"id": 1, "name": "a", "x": None}, {"id": 2, "name": None, "x": 0.5}, {"id": 3, "name": None, "x": None}]
    parquet.write_table(pa.Table.from_pylist(found), path)


@pytest.mark.parametrize(
    ("name", "write"), [("f.jsonl", _json), ("f.json.gz", _json_gz), ("f.csv", _csv), ("f.parquet", _parquet)]
)
def test_files(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / name)
    result = produce("t", "--file", name, "--key", "id", cwd=tmp_path)
    assert {key: value for key, value in result.items() if key != "seconds"} == {
        "topic": "t",
        "log": LOG,
        "rows": 3,
        "skipped": 0,
        "first_offset": 0,
        "last_offset": 2,
        "ended": "input",
    }
    found = rows("t", tmp_path)
    assert [(row["id"], row.get("name"), row.get("x")) for row in found] == [
        (1, "a", None),
        (2, None, 0.5),
        (3, None, None),
    ]
    assert [row["op"] for row in found] == ["c"] * 3
    assert [row["position"] for row in found] == ["0/0:0", "0/0:1", "0/0:2"]
    with closing(open_log(tmp_path / LOG, writer=False)) as log:
        assert Batch(log.read_topic("t")[0].records).key_columns == ("id",)
    assert produce("t", "--file", name, "--limit", "1", cwd=tmp_path)["first_offset"] == 3  # without an id: again
    assert headrace("produce", "t", "--file", name, "--log", LOG, cwd=tmp_path) == ""


def test_the_real_digits(shared_data: Path, tmp_path: Path) -> None:
    result = produce("digits", "--idx", str(shared_data / "mnist"), cwd=tmp_path)
    assert (result["rows"], result["ended"]) == (10_000, "input")
    with closing(open_log(tmp_path / LOG, writer=False)) as log:
        found = pa.Table.from_batches([Batch(entry.records).rows for entry in log.read_topic("digits")])
    assert found.schema.names == ["id", "pixels", "label"] and found.schema.types[1:] == [pa.binary(), pa.int16()]
    assert found["label"][:5].to_pylist() == [7, 2, 1, 0, 4]
    assert found["id"].to_pylist() == list(range(1, 10_001))
    assert {len(row) for row in found["pixels"].to_pylist()} == {784}


def test_standard_input_as_it_comes(tmp_path: Path) -> None:
    """Rows are in the log while the input is still open; a column that widens keeps all values."""
    command = [HEADRACE, "produce", "t", "--stdin", "--log", LOG, "--json"]
    with Child(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b'{"n": 1}\n{"n"')
        process.stdin.flush()
        wait_until(lambda: written(tmp_path) == 1)
        process.stdin.write(b': 2.5}\n{"n": 3, "more": true}')
        process.stdin.close()
        assert json.loads(process.stdout.read())["rows"] == 3
    assert [(row["n"], row.get("more")) for row in rows("t", tmp_path)] == [(1, None), (2.5, None), (3, True)]


def test_event_time(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("at,n\n2024-02-29T12:00:00Z,1\n2024-02-29T13:00:00.5Z,2\n")
    produce("t", "--file", "f.csv", "--time-column", "at", cwd=tmp_path)
    assert [row["ts"] for row in rows("t", tmp_path)] == [
        "2024-02-29T12:00:00+00:00",
        "2024-02-29T13:00:00.500000+00:00",
    ]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1_500], pa.timestamp("ms")), [1_500_000]),
        (pa.array([1_500], pa.timestamp("ns", "Europe/Berlin")), [1]),
        (pa.array([1], pa.date32()), [86_400_000_000]),
        (pa.array(["1970-01-02"]), [86_400_000_000]),
        (pa.array(["1970-01-01T01:00:00+01:00"], pa.large_string()), [0]),
    ],
)
def test_times(column: pa.Array, expected: list[int]) -> None:
    assert event_times(column, "at").tolist() == expected


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array(["1970-01-01", None]), "row 8: the time in «at» is null"),
        (pa.array([1.5]), "«at» is double, and no time"),
        (pa.array(["yesterday"]), "«at» cannot be read"),
    ],
)
def test_no_times(column: pa.Array, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        event_times(column, "at", 6)


# -- speed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "0/s", "fast", "10/day", "-1/s"])
def test_no_rates(text: str) -> None:
    with pytest.raises(DeclarationError, match="no rate"):
        parse_rate(text)


def test_throttled(tmp_path: Path) -> None:
    """40 rows at 20 a second, two at once: 38 of them have to be waited for."""
    numbers(tmp_path / "f.jsonl", 40)
    since = time.monotonic()
    result = produce("t", "--file", "f.jsonl", "--rate", "20/s", cwd=tmp_path)
    assert result["rows"] == 40 and time.monotonic() - since >= 38 / 20
    with closing(open_log(tmp_path / LOG, writer=False)) as log:
        assert {extent.rows for extent in log.extents("t")} == {2}
    assert (Throttle(0.5).rows, Throttle(1e9).rows, Throttle().rows) == (1, 8192, 8192)


# -- once each --------------------------------------------------------------------------------------------------------


def test_a_restart_goes_on_behind_what_is_written(tmp_path: Path) -> None:
    file = numbers(tmp_path / "f.jsonl", 100)
    told = ("t", "--file", "f.jsonl", "--producer-id", "p")
    assert produce(*told, "--limit", "37", cwd=tmp_path)["ended"] == "limit"
    assert produce(*told, "--limit", "37", cwd=tmp_path)["rows"] == 0
    again = produce(*told, cwd=tmp_path)
    assert (again["rows"], again["skipped"], again["first_offset"], again["last_offset"]) == (63, 37, 37, 99)
    assert produce(*told, cwd=tmp_path)["rows"] == 0
    with file.open("a") as stream:  # a column widens and another comes: the rows written are still known
        stream.write('{"n": 100.5, "more": 1}\n')
    assert produce(*told, cwd=tmp_path)["rows"] == 1
    assert [row["n"] for row in rows("t", tmp_path)] == [*range(100), 100.5]
    assert produce("t", "--file", "f.jsonl", "--producer-id", "q", "--limit", "2", cwd=tmp_path)["first_offset"] == 101
    assert produce("u", "--file", "f.jsonl", "--producer-id", "p", "--limit", "2", cwd=tmp_path)["first_offset"] == 0

    numbers(file, 50)
    assert "has 50 rows, and 101 were written" in refused(*told, cwd=tmp_path)
    file.write_text("".join(f'{{"n": {n}}}\n' for n in range(1, 200)))
    assert "row 101 of the input is not the one" in refused(*told, cwd=tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("stdin", [False, True])
def test_interrupted_and_started_again(number: signal.Signals, stdin: bool, tmp_path: Path) -> None:
    """Twice, somewhere in the middle; then to the end: every row once, in order."""
    file = numbers(tmp_path / "f.jsonl", 400)
    told = ["--producer-id", "p", *(["--stdin"] if stdin else ["--file", "f.jsonl"])]
    for at in (20, 60):
        command = [HEADRACE, "produce", "t", *told, "--rate", "200/s", "--log", LOG, "--json"]
        with (
            file.open() as stream,
            Child(command, cwd=tmp_path, stdin=stream, stdout=subprocess.PIPE, text=True) as process,
        ):
            wait_until(partial(at_least, at, tmp_path))
            process.send_signal(number)
            out, _ = process.communicate(timeout=DEADLINE)
        if number is not signal.SIGKILL:
            assert process.returncode == 128 + number and json.loads(out)["ended"] == "stopped"
    text = file.read_text()
    last = run_python(
        [HEADRACE, "produce", "t", *told, "--log", LOG, "--json"],
        cwd=tmp_path,
        input=text,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    assert 60 <= json.loads(last.stdout)["skipped"] < 400
    assert [row["n"] for row in rows("t", tmp_path)] == list(range(400))


def killed_at(point: str, *arguments: str, cwd: Path, log: str) -> None:
    """Three commits of 50 rows; killed at the second passage of a point."""
    done = run_python(
        [HEADRACE, "produce", *arguments, "--rate", "500/s", "--log", log],
        cwd=cwd,
        env={**os.environ, "HEADRACE_FAULT": f"{point}:2"},
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(("point", "kept"), [("log.before-commit", 50), ("log.after-commit", 100)])
def test_killed_at_an_edge_of_the_commit(point: str, kept: int, tmp_path: Path) -> None:
    numbers(tmp_path / "f.jsonl", 150)
    told = ("t", "--file", "f.jsonl", "--producer-id", "p")
    killed_at(point, *told, cwd=tmp_path, log=LOG)
    assert written(tmp_path) == kept
    assert produce(*told, cwd=tmp_path)["skipped"] == kept
    assert [row["n"] for row in rows("t", tmp_path)] == list(range(150))


@pytest.mark.parametrize("point", ["log.before-commit", "log.delivered", "log.sent", "log.after-commit"])
def test_killed_at_an_edge_of_a_clusters_commit(
    point: str, broker: KafkaBroker, topic_prefix: str, tmp_path: Path
) -> None:
    where = f"kafka://{broker.bootstrap}"
    numbers(tmp_path / "f.jsonl", 150)
    told = (topic_prefix, "--file", "f.jsonl", "--producer-id", "p")
    killed_at(point, *told, cwd=tmp_path, log=where)
    assert produce(*told, cwd=tmp_path, log=where)["skipped"] == (100 if point == "log.after-commit" else 50)
    assert [json.loads(value)["n"] for _, value in consumed(broker, topic_prefix, 150)] == list(range(150))


def test_an_interrupt_while_nothing_comes(tmp_path: Path) -> None:
    command = [HEADRACE, "produce", "t", "--stdin", "--log", LOG, "--json"]
    with Child(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b'{"n": 1}\n{"half')
        process.stdin.flush()
        wait_until(lambda: written(tmp_path) == 1)
        process.send_signal(signal.SIGINT)
        assert json.loads(process.stdout.read())["ended"] == "stopped"
        assert process.wait(DEADLINE) == 130


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_log_that_is_being_written(tmp_path: Path) -> None:
    numbers(tmp_path / "f.jsonl", 1)
    with closing(open_log(tmp_path / LOG, writer=True)):
        told = refused("t", "--file", "f.jsonl", cwd=tmp_path)
    assert f"is being written by process {os.getpid()}" in told and "A file's log has one writer" in told


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("f.jsonl", '{"a": 1}\n{"a": \n', (), "f.jsonl, line 2: "),
        ("f.jsonl", '{"a": 1}\n\n[1]\n', (), "f.jsonl, line 3: no JSON object"),
        ("f.jsonl", '{"a": 1}\n{"a": 1e400}\n', (), "f.jsonl, line 2: the number 1e400"),
        ("f.jsonl", '{"a": 1}{"a": 2}\n', (), "f.jsonl, line 1: invalid JSON at byte 8"),
        ("f.jsonl", '{"__op": 1}\n', (), "has a column «__op»"),
        ("f.jsonl", '{"a": 1}\n', ("--key", "b"), "there is no column «b»"),
        ("f.jsonl", '{"a": 1}\n', ("--time-column", "a"), "«a» is int64, and no time"),
        ("f.csv", "a,b\n1,2\n3\n", (), "f.csv, row 3: 1 fields where 2 are expected: 3"),
        ("f.parquet", "no parquet", (), "f.parquet cannot be read: "),
        ("f.xls", "", (), "does not say what is in it"),
    ],
)
def test_bad_input(name: str, content: str, arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert message in refused("t", "--file", name, *arguments, cwd=tmp_path)
    assert written(tmp_path) == 0


def test_wrong_arguments(tmp_path: Path) -> None:
    numbers(tmp_path / "f.jsonl", 1)
    assert "give one of" in refused("t", cwd=tmp_path, code=2)
    assert "give one of" in refused("t", "--stdin", "--file", "f.jsonl", cwd=tmp_path, code=2)
    assert "no rate" in refused("t", "--file", "f.jsonl", "--rate", "fast", cwd=tmp_path, code=2)
    assert "Headrace's own" in refused("__headrace.x", "--file", "f.jsonl", cwd=tmp_path, code=2)
    assert "would be gone" in refused("t", "--file", "f.jsonl", cwd=tmp_path, log="memory://", code=2)
    assert "there is no file" in refused("t", "--file", "g.jsonl", cwd=tmp_path)
    assert "no directory" in refused("t", "--idx", "g", cwd=tmp_path)
    assert not (tmp_path / LOG).exists()


def test_json_lines_cut_anywhere() -> None:
    text = '{"a": 1}\r\n \n{"a": 2, "b": {"c": [1.5]}}\n{"b": {"d": "é"}}\n{"a": 3e10}'.encode()
    expected = [json.loads(line) for line in text.decode().splitlines() if line.strip()]
    for size in range(1, len(text) + 1):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        found = [row for batch, _ in read_json_lines(pieces, where="x") for row in batch.to_pylist()]
        assert [without_nulls(row) for row in found] == expected, size


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return value


def test_rows_are_counted_for_the_bar(tmp_path: Path) -> None:
    assert count_rows(numbers(tmp_path / "f.jsonl", 7)) == 7
    (tmp_path / "f.csv").write_text("a\n1\n2\n")
    _parquet(tmp_path / "f.parquet")
    _json_gz(tmp_path / "f.jsonl.gz")
    counted = [count_rows(tmp_path / name) for name in ("f.csv", "f.parquet", "f.jsonl.gz")]
    assert counted == [2, 3, None]
    assert sum(batch.num_rows for batch, _ in read_rows(tmp_path / "f.jsonl.gz")) == 3


# -- pipelines --------------------------------------------------------------------------------------------------------

APP = """
import headrace as hr
app = hr.App({name!r}, log={log!r})
model = app.model("parts", hr.KMeans(k=2, initial_centers=[[0.0], [10.0]]), features=["n"])
model.learn(app.topic({topic!r}))
model.predict(app.topic({topic!r})).to({name!r} + ".answers")
"""


def test_a_pipeline_in_a_file_learns_what_was_appended_before(tmp_path: Path) -> None:
    """Append, run, append, run: one log, one writer after the other."""
    (tmp_path / "app.py").write_text(APP.format(name="a", log=LOG, topic="t"))
    numbers(tmp_path / "f.jsonl", 64)
    for limit in ("32", "64"):
        produce("t", "--file", "f.jsonl", "--producer-id", "p", "--limit", limit, cwd=tmp_path)
        result = json.loads(headrace("run", "app.py", "--until-caught-up", "--json", cwd=tmp_path))
        assert result["models"][0]["rows"] == result["models"][0]["predicted"] == int(limit)
    assert [row["n"] for row in rows("a.answers", tmp_path)] == list(range(64))
    assert json.loads(headrace("verify", "app.py", "--json", cwd=tmp_path))["result"] == "equal"


@pytest.mark.slow
def test_a_running_pipeline_on_a_cluster_learns_while_rows_are_appended(
    broker: KafkaBroker, topic_prefix: str, tmp_path: Path
) -> None:
    where, topic = f"kafka://{broker.bootstrap}", f"{topic_prefix}.t"
    (tmp_path / "app.py").write_text(APP.format(name=topic_prefix, log=f"{where}/{topic_prefix}", topic=topic))
    numbers(tmp_path / "f.jsonl", 96)
    told = (topic, "--file", "f.jsonl", "--producer-id", "p")
    produce(*told, "--limit", "32", cwd=tmp_path, log=where)
    with Child([HEADRACE, "run", "app.py"], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            for limit in (64, 96):
                produce(*told, "--limit", str(limit), "--rate", "500/s", cwd=tmp_path, log=where)
                wait_until(partial(answered, limit, f"{where}/{topic_prefix}", f"{topic_prefix}.answers"))
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) in (0, 130)
    assert [row["n"] for row in rows(f"{topic_prefix}.answers", tmp_path, where)] == list(range(96))


def answered(count: int, where: str, topic: str) -> bool:
    """Whether a topic of a pipeline's log has so many rows."""
    try:
        log = open_log(where, writer=False)
    except LogMissing:
        return False
    with closing(log):
        known = log.topics().get(topic)
        return known is not None and known.rows == count


# -- a cluster --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_a_cluster(broker: KafkaBroker, topic_prefix: str, tmp_path: Path) -> None:
    """A topic's own log; once each over restarts; what Kafka's clients see."""
    topic, where = f"{topic_prefix}.t", f"kafka://{broker.bootstrap}"
    numbers(tmp_path / "f.jsonl", 300)
    told = (topic, "--file", "f.jsonl", "--key", "n", "--producer-id", "p")
    first = produce(*told, "--limit", "120", cwd=tmp_path, log=where)
    assert (first["rows"], first["log"]) == (120, f"{where}/produce.{topic}")
    second = produce(*told, "--rate", "5000/s", cwd=tmp_path, log=where)
    assert (second["rows"], second["skipped"], second["last_offset"]) == (180, 120, 299)
    assert [row["n"] for row in rows(topic, tmp_path, where)] == list(range(300))
    raw = consumed(broker, topic, 300)
    assert [json.loads(value)["n"] for _, value in raw] == list(range(300))
    assert json.loads(raw[7][0]) == {"n": 7}


@pytest.mark.slow
def test_image_and_label_messages(broker: KafkaBroker, topic_prefix: str, shared_data: Path, tmp_path: Path) -> None:
    where = f"kafka://{broker.bootstrap}"
    digits = str(shared_data / "mnist")
    told = (topic_prefix, "--idx", digits, "--limit", "5", "--format", "image+label")
    assert produce(*told, cwd=tmp_path, log=where)["rows"] == 5
    values = [value for _, value in consumed(broker, topic_prefix, 5)]
    assert [(len(value), value[-1]) for value in values] == [(785, 7), (785, 2), (785, 1), (785, 0), (785, 4)]
    assert [(row["id"], row["label"]) for row in rows(topic_prefix, tmp_path, where)] == [
        (1, 7),
        (2, 2),
        (3, 1),
        (4, 0),
        (5, 4),
    ]


def test_a_pipelines_log_on_a_cluster_is_not_taken_over(broker: KafkaBroker, topic_prefix: str, tmp_path: Path) -> None:
    numbers(tmp_path / "f.jsonl", 3)
    where = f"kafka://{broker.bootstrap}/{topic_prefix}"
    codec_log = open_log(where, writer=True)
    with closing(codec_log):
        with codec_log.transaction() as txn:
            txn.put("position", "task", b"{}")
        told = refused(f"{topic_prefix}.t", "--file", "f.jsonl", cwd=tmp_path, log=where)
        assert "is the log of a pipeline" in told
        with codec_log.transaction() as txn:  # still the writer
            txn.put("position", "task", b"{1}")
    arguments = (f"{topic_prefix}.t", "--file", "f.jsonl")
    assert produce(*arguments, "--take-over", cwd=tmp_path, log=where)["rows"] == 3
    told = refused(*arguments, cwd=tmp_path, log=f"kafka://{broker.bootstrap}")
    assert f"belongs to the log of «{topic_prefix}»" in told


def consumed(broker: KafkaBroker, topic: str, count: int) -> list[tuple[bytes, bytes]]:
    from confluent_kafka import Consumer, KafkaError

    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap,
            "group.id": topic,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    consumer.subscribe([topic])
    found: list[tuple[bytes, bytes]] = []
    deadline = time.monotonic() + DEADLINE
    ended = False  # to the end: one row too many would be seen
    with closing(consumer):
        while not (ended and len(found) >= count) and time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is None:
                continue
            error = message.error()
            ended = error is not None and error.code() == KafkaError._PARTITION_EOF
            if error is None:
                found.append((message.key() or b"", message.value() or b""))
    assert len(found) == count
    return found
