"""Sinks beside a pipeline: each for itself, in its own time, from its own position."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.errors import WaitTimeout
from headrace.log import open_log
from headrace.testing.servers import PostgresServer, free_port, postgres

from .events import app_on, events, letters, write


def test_a_sink_that_is_down_holds_back_only_itself(dsn: str, query: Any, tmp_path: Path) -> None:
    app = hr.App("shop", log=tmp_path / "log")
    stream = app.topic("in", append=True)
    stream.to_table(f"postgresql://postgres@127.0.0.1:{free_port()}/nowhere", "out", name="down")
    stream.to_table(dsn, "out", name="up")
    stream.select("id").to("copied")
    with app.start() as running:
        for number in range(3):
            running.append("in", [{"id": number}])
            running.wait(60, sinks=False)
        with pytest.raises(WaitTimeout, match=r"«down» has delivered in up to offset 0 of 3 \(waiting: "):
            running.wait(2)
        assert query("select count(*) from out") == [(3,)]
        assert running.sinks["up"].delivered == 3 and not running.sinks["up"].waiting
        assert len(app.topic("copied").read()) == 3


@pytest.mark.slow
def test_a_server_that_restarts_misses_nothing(tmp_path: Path) -> None:
    with postgres(settings={"fsync": "off"}) as server:
        app = hr.App("shop", log=tmp_path / "log")
        app.topic("in", append=True).to_table(server.dsn, "out")
        with app.start() as running:
            for number in range(4):
                running.append("in", [{"id": number}])
                running.wait(60)
                server.kill()
                running.append("in", [{"id": 10 + number}])
                server.start()
            running.wait(60)
        found = sorted(row for (row,) in server.execute("select id from out"))
        assert found == [0, 1, 2, 3, 10, 11, 12, 13]


def test_a_server_that_hangs_does_not_hold_up_the_end(server: PostgresServer, dsn: str, tmp_path: Path) -> None:
    app = hr.App("shop", log=tmp_path / "log")
    app.topic("in", append=True).to_table(dsn, "out", name="out")
    with app.start() as running:
        running.append("in", [{"id": 1}])
        running.wait(60)
        (backend,) = server.execute("select pid from pg_stat_activity where application_name = 'headrace sink'")[0]
        os.kill(backend, signal.SIGSTOP)
        try:
            running.append("in", [{"id": 2}])
            began = time.monotonic()
            running.stop()
            assert time.monotonic() - began < 20
            assert running.sinks["out"].status == "stopped"
        finally:
            os.kill(backend, signal.SIGCONT)
    app.run(until="caught-up")
    assert server.execute("select 1") == [(1,)]


def test_two_processes_of_one_sink_do_not_double_rows(dsn: str, query: Any, tmp_path: Path) -> None:
    write(tmp_path / "log", *(events(f"op id\nc {number}") for number in range(5)))
    app, stream = app_on(tmp_path / "log")
    stream.to_table(dsn, "out")
    spec = app.plan().sinks[0].spec
    app.run(until="caught-up")
    from headrace.batch import Batch
    from headrace.errors import SinkUnavailable
    from headrace.sinks.base import SinkBatch

    class Journal:
        app, sink, topic = "shop", "postgres:out", "in"
        log_id = query("select log from headrace.sinks")[0][0]

    late = spec.sink(Journal())
    assert late.open() == 5
    rows = Batch.of({"id": [4]})
    import numpy as np

    with pytest.raises(SinkUnavailable, match="another process has moved the position"):
        late.deliver(SinkBatch("in", 4, 5, rows, np.array([4])))
    late.close()
    assert query("select count(*) from out") == [(5,)]


def test_rows_that_no_sink_has_delivered_are_kept(tmp_path: Path) -> None:
    app = hr.App("shop", log=tmp_path / "log", keep="1 s")
    stream = app.topic("in", append=True)
    stream.to_parquet(tmp_path / "out", name="files")
    stream.to_http(f"http://127.0.0.1:{free_port()}/", name="down")
    with app.start() as running:
        running.append("in", [{"id": 1}])
        with pytest.raises(WaitTimeout):
            running.wait(1)
        assert running.sinks["files"].position == 1
        assert running.engine.needed()["in"] == 0


def test_operations_are_applied_and_what_they_refuse_is_said(dsn: str, query: Any, tmp_path: Path) -> None:
    def chosen(batch: hr.Batch) -> hr.Batch:
        ids = batch.column("id").to_pylist()
        if 7 in ids:
            raise ValueError("no sevens")
        kept = [id_ for id_ in ids if id_ % 2]
        return hr.Batch.of({"id": kept, "tens": [10 * number for number in kept]})

    write(tmp_path / "log", hr.Batch.of({"id": list(range(10))}))
    app, stream = app_on(tmp_path / "log")
    stream.transform(chosen).to_table(dsn, "out", key="id").to_http("http://127.0.0.1:1/", name="unused", retries=0,
                                                                    backoff="1 ms")  # fmt: skip
    app.run(until="caught-up")
    assert query("select * from out order by id") == [(item, 10 * item) for item in (1, 3, 5, 9)]
    found = [letter for letter in letters(tmp_path / "log") if letter.startswith("postgres:out")]
    assert found == ['postgres:out: ValueError: no sevens | {"id": 7}']
    sent = [json.loads(letter.partition(" | ")[2]) for letter in letters(tmp_path / "log") if "no answer" in letter]
    assert sent == [{"id": item, "tens": 10 * item} for item in (1, 3, 5, 9)]


def test_a_filter_that_drops_everything_still_moves_the_position(dsn: str, query: Any, tmp_path: Path) -> None:
    write(tmp_path / "log", hr.Batch.of({"id": list(range(10))}))
    app, stream = app_on(tmp_path / "log")
    stream.filter(lambda batch: [False] * batch.num_rows).to_table(dsn, "out")
    app.run(until="caught-up")
    assert query("select next_offset from headrace.sinks") == [(10,)]


def test_the_console_prints_each_row_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "log", events("op id x\nc 1 [red]\nc 2 -"))
    for kind in ("lines", "table"):
        app, stream = app_on(tmp_path / "log")
        stream.to_console(format=kind, name=kind)
        for _ in range(2):
            app.run(until="caught-up")
        out = capsys.readouterr().out
        if kind == "lines":
            assert out == '{"id":1,"x":"[red]"}\n{"id":2,"x":null}\n'
        else:
            assert [line.split() for line in out.splitlines() if line.strip(" ─")] == [
                ["in"], ["id", "x"], ["1", "[red]"], ["2"],
            ]  # fmt: skip


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6), data=st.data())
def test_however_rows_come_the_table_is_the_same(sizes: list[int], data: st.DataObject, dsn: str, query: Any) -> None:
    query("drop table if exists out, headrace.sinks")
    app = hr.App("shop", log="memory://")
    app.topic("in", append=True).to_table(dsn, "out", key="id").to_table(dsn, "all_rows", name="all")
    query("drop table if exists all_rows")
    expected: dict[int, int] = {}
    count = 0
    with app.start() as running:
        for size in sizes:
            ids = data.draw(st.lists(st.integers(0, 5), min_size=size, max_size=size))
            rows = [{"id": identifier, "n": count + number} for number, identifier in enumerate(ids)]
            count += size
            expected |= {row["id"]: row["n"] for row in rows}
            running.append("in", rows)
        running.wait(60)
    assert dict(query("select id, n from out")) == expected
    assert query("select n from all_rows order by n") == [(number,) for number in range(count)]


def test_a_log_says_what_its_sinks_have_stored(tmp_path: Path) -> None:
    write(tmp_path / "log", events("op id\nc 1"))
    app, stream = app_on(tmp_path / "log")
    stream.to_console(format="lines")
    app.run(until="caught-up")
    held = open_log(tmp_path / "log", writer=False)
    try:
        assert json.loads(held.records("sink")["shop/console:in/in"]) == {"next": 1}
    finally:
        held.close()
