"""Rows that a program appends while its pipeline runs: written once, learned with the same transaction."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import headrace as hr
from headrace.errors import DeclarationError, HeadraceError, LogError, WaitTimeout
from headrace.log import open_log
from headrace.produce.producer import fingerprint, last_of
from headrace.testing.servers import KafkaBroker
from tests.processes import HEADRACE, run_python

ROWS = [{"id": i, "x": float(i % 7), "raw": bytes([i % 256])} for i in range(60)]


def declared(log: Path | str, *, every: int = 8) -> hr.App:
    app = hr.App("own", log=log)
    rows = app.topic("rows", append=True)
    model = app.model("m", hr.KMeans(k=2, initial_centers=[[0.0], [6.0]], decay=1.0), features=["x"])
    model.learn(rows, every=every)
    model.predict(rows).to("answers")
    return app


def ids(app: hr.App, topic: str = "rows") -> list[int]:
    return app.topic(topic).read().to_arrow().column("id").to_pylist()


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(ROWS[:3], id="dicts"),
        pytest.param(pa.Table.from_pylist(ROWS[:3]), id="table"),
        pytest.param(pa.RecordBatch.from_pylist(ROWS[:3]), id="batch"),
        pytest.param(pd.DataFrame(ROWS[:3]), id="frame"),
    ],
)
def test_rows_are_durable_learned_and_answered_when_it_returns(rows: Any, tmp_path: Path) -> None:
    app = declared(tmp_path / "own.headrace", every=3)
    with app.start() as running:
        assert running.append("rows", rows, key=["id"]) == 3
        assert running["m"].learned == 3
        running.wait()
    assert ids(app) == ids(app, "answers") == [0, 1, 2]


def test_each_call_is_a_transaction_and_an_empty_one_is_none(tmp_path: Path) -> None:
    app = declared(tmp_path / "own.headrace")
    with app.start() as running:
        for i in range(0, 12, 4):
            running.append("rows", ROWS[i : i + 4])
        assert running.append("rows", pa.RecordBatch.from_pylist([], schema=pa.schema([("id", pa.int64())]))) == 0
    log = open_log(app.log, writer=False)
    assert [entry.records.num_rows for entry in log.read_topic("rows")] == [4, 4, 4]
    log.close()


ODD: list[dict[str, Any]] = [
    {"id": 2**53 + 1, "x": 1},
    {"id": 0.5, "x": None, "more": "n"},
    {"id": 2**64 - 1, "x": 2.5, "raw": b"\xff"},
    {"id": "text", "x": float("nan"), "more": 5},
    {"id": True, "x": np.float32(0.5), "more": [1, "a"]},
    {"id": {"a": [1]}, "x": np.int64(7), "more": {}},
]


def test_rows_of_python_are_exact_however_they_are_appended(tmp_path: Path) -> None:
    found = []
    for name, calls in (("once", [ODD]), ("each", [[row] for row in ODD])):
        app = declared(tmp_path / f"{name}.headrace")
        for some in (calls[: len(calls) // 2], calls[len(calls) // 2 :]):  # with a restart between
            with app.start() as running:
                for rows in some:
                    assert running.append("rows", rows, producer_id="p") == len(rows)
        read = app.topic("rows").read()
        assert len(read) == len(ODD) and repr(read) and len(read.to_pandas()) == len(ODD)
        log = open_log(app.log, writer=False)
        rows = [row for e in log.read_topic("rows") for row in e.records.select(["id", "x"]).to_pylist()]
        types = [str(e.records["id"].type) for e in log.read_topic("rows") for _ in range(e.records.num_rows)]
        assert set(log.records("columns")) == {"rows"}
        log.close()
        found.append((repr(rows), types))
    assert found[0] == found[1]
    assert "9007199254740993" in found[0][0] and "18446744073709551615" in found[0][0]
    with app.start() as running:
        for row in ({"id": 10**90}, {"id": "\ud800"}, {"x": [b"", 1]}):
            with pytest.raises(DeclarationError, match="Nothing was appended"):
                running.append("rows", row)
        assert (
            running.append("rows", ODD[:2], producer_id="p", sequence=0) == 0
        )  # the same rows, with wider columns now


def test_a_producer_goes_on_and_what_is_there_is_skipped(tmp_path: Path) -> None:
    app = declared(tmp_path / "own.headrace")
    with app.start() as running:
        assert running.append("rows", ROWS[:20], producer_id="p", sequence=0) == 20
        assert running.append("rows", ROWS[10:30], producer_id="p", sequence=10) == 10
        assert running.append("rows", ROWS[:5], producer_id="p", sequence=0) == 0
        assert running.append("rows", ROWS[30:31], producer_id="p") == 1
    with app.start() as running:
        assert running.appended("rows", "p") == 31
        assert running.append("rows", ROWS[:40], producer_id="p", sequence=0) == 9
        with pytest.raises(LogError, match="rows 40 to 41"):
            running.append("rows", ROWS[42:43], producer_id="p", sequence=42)
        assert running.append("rows", ROWS[:2], producer_id="other", sequence=0) == 2
    assert ids(app) == [*range(40), 0, 1]


@pytest.mark.parametrize("size", [1, 7, 40])
def test_other_rows_in_place_of_those_that_are_there_are_refused(size: int, tmp_path: Path) -> None:
    app = declared(tmp_path / "own.headrace")
    with app.start() as running:
        running.append("rows", ROWS[:40], producer_id="p", sequence=0)
    changed = [*ROWS[:39], {**ROWS[39], "x": 99.0}, *ROWS[40:]]
    with app.start() as running, pytest.raises(LogError, match="row 40 of the producer"):
        for i in range(0, 60, size):
            running.append("rows", changed[i : i + size], producer_id="p", sequence=i)
    assert ids(app) == list(range(40))


@pytest.mark.parametrize("first", [5, 20])
def test_headrace_produce_goes_on_where_the_program_stopped_and_back(first: int, tmp_path: Path) -> None:
    app = declared(tmp_path / "own.headrace")
    rows = [{name: row[name] for name in ("id", "x")} for row in ROWS]
    with app.start() as running:
        running.append("rows", rows[:first], producer_id="p", sequence=0)
    with app.start() as running:
        running.append("rows", rows[first : first + 3], producer_id="p")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [HEADRACE, "produce", "rows", "--file", str(file), "--producer-id", "p", "--limit", "50", "--json"]
    done = run_python([*command, "--log", app.log], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["skipped"] == first + 3
    with app.start() as running:
        assert running.append("rows", rows[30:], producer_id="p", sequence=30) == 10
        running.wait()
    assert ids(app) == ids(app, "answers") == list(range(60))


def test_many_threads_append_and_every_row_is_there_once(tmp_path: Path) -> None:
    app = declared(tmp_path / "own.headrace", every=10)
    with app.start() as running:
        parts = [ROWS[i::4] for i in range(4)]

        def send(number: int) -> None:
            for row in parts[number]:
                running.append("rows", row, producer_id=str(number))

        threads = [threading.Thread(target=send, args=[i]) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert running["m"].learned == 60
    assert sorted(ids(app)) == list(range(60))


WRONG: list[tuple[str, Callable[[Any], Any], str]] = [
    ("another topic", lambda r: r.append("answers", ROWS), 'app.topic("answers", append=True)'),
    ("no rows", lambda r: r.append("rows", [1, 2]), "Give Arrow, dicts, or a DataFrame"),
    ("a column of ours", lambda r: r.append("rows", [{"__op": 1}]), "«__op»"),
    ("a key that is none", lambda r: r.append("rows", ROWS, key=["nr"]), "no such column"),
    ("sequence alone", lambda r: r.append("rows", ROWS, sequence=0), "producer_id"),
]


@pytest.mark.parametrize(("call", "words"), [(c, w) for _, c, w in WRONG], ids=[name for name, _, _ in WRONG])
def test_a_wrong_call_says_what_is_wrong(call: Callable[[Any], Any], words: str, tmp_path: Path) -> None:
    app = declared(tmp_path / "own.headrace")
    with app.start() as running, pytest.raises(DeclarationError) as error:
        call(running)
    assert words in str(error.value)


def test_an_appended_topic_has_one_writer() -> None:
    app = declared("memory://")
    app.topic("other").to("rows")
    with pytest.raises(DeclarationError, match="written twice"):
        app.start()
    app = hr.App("none", log="memory://")
    app.model("m", hr.KMeans(k=2), features=["x"]).learn(app.topic("rows"))
    with pytest.raises(DeclarationError, match="which nobody writes"):
        app.start()


def test_a_pipeline_that_has_ended_writes_nothing_more(tmp_path: Path) -> None:
    app = declared(tmp_path / "own.headrace")
    with app.start() as running:
        running.append("rows", ROWS[:1])
    with pytest.raises(HeadraceError, match="has ended"):
        running.append("rows", ROWS[1:2])
    assert ids(app) == [0]


def test_a_deadline_is_kept_and_the_rows_stay_queued(tmp_path: Path) -> None:
    app = declared(tmp_path / "own.headrace")
    with app.start() as running:
        with running.engine.guard, pytest.raises(WaitTimeout, match="stay queued"):
            running.append("rows", ROWS[:4], producer_id="p", sequence=0, timeout=0.05)
        assert running.append("rows", ROWS[:4], producer_id="p", sequence=0) == 0
    assert ids(app) == [0, 1, 2, 3]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import importlib
own = importlib.import_module("tests.integration.test_append")
app = own.declared({log!r})
with app.start() as running:
    for i in range(0, 60, 5):
        running.append("rows", own.ROWS[i:i + 5], producer_id="p", sequence=i)
"""


@pytest.mark.parametrize("edge", ["engine.captured", "engine.stepped", "engine.committed", "engine.acknowledged"])
def test_killed_anywhere_and_repeated_every_row_is_there_once(edge: str, tmp_path: Path) -> None:
    import os
    import signal

    whole, killed = tmp_path / "whole.headrace", tmp_path / "killed.headrace"
    root = str(Path(__file__).parents[2])
    for log, faults in ((whole, [""]), (killed, [f"{edge}:4", f"{edge}:3", ""])):
        for fault in faults:
            script = KILLED.format(tests=root, log=str(log))
            environment = {**os.environ, "HEADRACE_FAULT": fault}
            done = run_python([sys.executable, "-c", script], env=environment, timeout=60, capture_output=True)
            assert done.returncode == (-signal.SIGKILL if fault else 0), done.stderr.decode()
    expected, found = declared(whole), declared(killed)
    assert ids(found) == ids(found, "answers") == list(range(60))
    columns = ["id", "prediction", "model_position"]
    tables = [app.topic("answers").read().to_arrow().select(columns).to_pylist() for app in (expected, found)]
    assert tables[0] == tables[1]


def test_on_kafka_the_same(broker: KafkaBroker) -> None:
    app = declared(f"kafka://{broker.bootstrap}")
    app.name = "own-appended"
    with app.start() as running:
        assert running.append("rows", ROWS[:20], producer_id="p", sequence=0) == 20
    with app.start() as running:
        assert running.append("rows", ROWS[:24], producer_id="p", sequence=0) == 4
        running.wait()
        assert running["m"].learned == 24
        assert ids(app) == ids(app, "answers") == list(range(24))


def test_the_last_rows_are_the_same_however_they_were_cut() -> None:
    whole = pa.RecordBatch.from_pylist(ROWS)
    for size in (1, 3, 16, 60):
        kept: list[pa.RecordBatch] = []
        for start in range(0, 60, size):
            kept = last_of([*kept, whole.slice(start, size)])
        assert fingerprint(kept) == fingerprint([whole])
