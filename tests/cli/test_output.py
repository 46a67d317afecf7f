"""What commands write: tables for terminals and pipes, events as lines, errors without tracebacks."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyte
import pytest
from rich.console import Console, Group

import headrace as hr
from headrace.batch import Batch
from headrace.cli.ascii import ESCAPED
from headrace.cli.console import DrawnLine, RunningLine, Talk, print_utf8
from headrace.log import open_log
from tests.databases import Database
from tests.processes import HEADRACE, Child, run_python

PIPELINE = """
import headrace as hr
app = hr.App("shop", log="shop.headrace")
db = app.postgres({dsn!r}, tables=r"public\\.t")
model = app.model("m", hr.KMeans(k=2, seed=1), features=["x"])
model.learn(db["public.t"], every=10)
model.predict(db["public.t"]).to("answers")
"""
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) shop \S.*")


def done(*arguments: str, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command, its streams being pipes."""
    return run_python([HEADRACE, *arguments], cwd=cwd, capture_output=True, text=True, **more)


def seen(*arguments: str, cwd: Path, columns: int = 80, **environment: str) -> list[str]:
    """Return the lines that a command shows in a terminal, without colours."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    command = [HEADRACE, *arguments]
    own = {**plain, "TERM": "xterm", **environment}
    with Child(command, cwd=cwd, stdin=slave, stdout=slave, stderr=slave, env=own) as process:
        os.close(slave)
        shown = b"".join(_pieces(master))
        assert process.wait(60) == 0, shown.decode()
    os.close(master)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r\n", "\n").splitlines()


def _pieces(master: int) -> Iterator[bytes]:
    while True:
        try:
            piece = os.read(master, 65_536)
        except OSError:  # the other end is closed
            return
        if not piece:
            return
        yield piece


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a log: a topic with a long name, and values that need care."""
    folder = tmp_path_factory.mktemp("held")
    rows = {"id": [1, 2], "naïve note": ["a\tb\nc\\d «ä»", None], "wide": ["x" * 200, "y"], "n": [1.5, None]}
    rows |= {f"column_{number}": [number, number] for number in range(12)}
    with closing(open_log(folder / "a.headrace", writer=True)) as log, log.transaction() as txn:
        txn.append("shop.public.a_table_with_a_rather_long_name_of_its_own", Batch.of(pa.record_batch(rows)).records)
        txn.append("t", Batch.of(pa.record_batch({"id": [1]})).records)
    return folder


# -- tables -----------------------------------------------------------------------------------------------------------


def test_a_list_fits_eighty_columns(held: Path) -> None:
    lines = seen("topics", "list", cwd=held)
    assert max(map(len, lines)) <= 80
    assert "2026" in "".join(lines) or "20" in "".join(lines)
    assert any(line.startswith("t ") for line in lines)


def test_wide_rows_are_in_one_line(held: Path) -> None:
    lines = seen("topics", "list", "--wide", cwd=held)
    assert any("a_table_with_a_rather_long_name_of_its_own" in line and "T" in line for line in lines)


def test_a_pipe_gets_whole_values_in_the_format_of_copy(held: Path) -> None:
    query = 'select * from "shop.public.a_table_with_a_rather_long_name_of_its_own" order by id'
    head, first, second = done("sql", query, cwd=held).stdout.splitlines()
    names = head.split("\t")
    assert names[:4] == ["id", "naïve note", "wide", "n"]
    found = dict(zip(names, first.split("\t"), strict=True))
    assert found["naïve note"] == r"a\tb\nc\\d «ä»"
    assert found["wide"] == "x" * 200
    assert dict(zip(names, second.split("\t"), strict=True))["naïve note"] == r"\N"
    assert done("sql", query, cwd=held, env={**os.environ, "COLUMNS": "20"}).stdout.splitlines()[1] == first


def test_many_columns_are_shown_one_below_the_other(held: Path) -> None:
    lines = seen("sql", 'select * from "shop.public.a_table_with_a_rather_long_name_of_its_own"', cwd=held)
    assert "row 1" in lines and "  column_7 7" in lines


@pytest.mark.parametrize("soft_wrap", [False, True], ids=["alone", "under an event"])
def test_what_a_pipeline_does_takes_one_line(soft_wrap: bool, tmp_path: Path) -> None:
    app = hr.App("shop", log=tmp_path / "shop.headrace")
    app.starting = f"waiting for /tmp/{'a-socket-' * 5}:5432/{'a-database-' * 5}"
    written = io.StringIO()
    Console(width=80, file=written).print(Group(RunningLine(app)()), soft_wrap=soft_wrap)
    assert written.getvalue() == f"{f'{app.starting} …'[:79]}…\n"


@pytest.mark.slow
def test_a_first_snapshot_has_a_bar(database: Database, tmp_path: Path) -> None:
    database.execute("create table big (id int primary key, s text)")
    database.execute("insert into big select generate_series(1, 400000)")
    database.execute("analyze big")
    slowly = (
        "select id, repeat('x', 100) as s from public.big, lateral (select pg_sleep((id % 50000 = 1)::int * 0.2)) s"
    )
    overrides = "snapshot.select.statement.overrides"
    settings = [f"{overrides}=public.big", f"{overrides}.public.big={slowly}"]
    command = ["capture", database.dsn, "--tables", "public[.]big", "--prefix", "shop", "--until-caught-up"]
    command += [part for setting in settings for part in ("--set", setting)]
    shown = "\n".join(seen(*command, "--log", "shown.headrace", cwd=tmp_path))
    bar = r"━ \d00,000/400,000 rows, [\d,]+ rows/s, 0:\d\d:\d\d left public.big"
    assert re.search(bar, shown), shown
    assert "400,000 rows of 1 tables" in shown
    database.drop_slots()
    assert "rows/s" not in "".join(seen(*command, "--log", "json.headrace", "--json", cwd=tmp_path))
    database.drop_slots()
    piped = done(*command, "--log", "piped.headrace", cwd=tmp_path)
    assert piped.returncode == 0 and "rows/s" not in piped.stdout + piped.stderr


def test_a_bar_leaves_out_what_is_not_known_and_cuts_names(tmp_path: Path) -> None:
    app = hr.App("shop", log=tmp_path / "shop.headrace")
    line = RunningLine(app)

    def drawn(*reading: Any) -> str:
        app.reading = reading
        written = io.StringIO()
        Console(width=60, file=written).print(Group(line()), soft_wrap=True)
        return written.getvalue()

    assert re.fullmatch(r"\S+ 0 rows public\.\[b\]t *\n", drawn("public.[b]t", 0, 0))
    assert re.fullmatch(r"\S+ 7 rows public\.\[b\]t *\n", drawn("public.[b]t", 7, 7))
    assert re.fullmatch(r"\S+ 9 rows, [\d,]+ rows/s public\.\S+ *\n", drawn("public.[b]t", 9, 9))
    name = f"public.{'long' * 20}"
    assert re.fullmatch(r"\S+ +1/3 rows public\.(long)+\w*… *\n", drawn(name, 1, 3))
    assert len(drawn(name, 2, 3)) == 61


def test_one_bar_is_over_all_tables(tmp_path: Path) -> None:
    app = hr.App("shop", log=tmp_path / "shop.headrace")
    line = RunningLine(app)

    def drawn(table: str, rows: int, estimated: int) -> str:
        app._say_read(table, rows, estimated)
        written = io.StringIO()
        Console(width=90, file=written).print(Group(line()), soft_wrap=True)
        return written.getvalue().lstrip("━╸ ")

    for table, estimated in (("a", 10), ("b", 0), ("c", 30), ("a", 10)):
        shown = drawn(table, 0, estimated)
    assert shown.split() == ["0/3", "tables,", "0/40", "rows", "a"]
    assert drawn("a", 4, 10).startswith("0/3 tables, 4/40 rows")
    assert drawn("a", 14, 14).startswith("0/3 tables, 14/44 rows")  # more than was estimated
    assert drawn("b", 0, 0).startswith("1/3 tables, 14/44 rows")
    assert drawn("c", 20, 30).startswith("2/3 tables, 34/44 rows")
    assert drawn("c", 30, 30).startswith("2/3 tables, 44 rows")


def test_why_a_hash_is_blank() -> None:
    from headrace.cli.console import short_hash

    assert short_hash({"hash": None, "rows": 0}) == "nothing learned"
    assert short_hash({"hash": None, "rows": 9}) == "at its next checkpoint"


# -- characters, colours, pipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{"PYTHONIOENCODING": "ascii"}, {"LANG": "C", "LC_ALL": "C"}])
def test_an_encoding_without_our_characters(changed: dict[str, str], held: Path) -> None:
    environment = {**os.environ, **changed}
    listed = done("topics", "show", "t", cwd=held, env=environment)
    assert (listed.returncode, listed.stderr) == (0, "")
    topic = "shop.public.a_table_with_a_rather_long_name_of_its_own"
    row = json.loads(done("topics", "cat", topic, "--limit", "1", cwd=held, env=environment).stdout)
    assert row["naïve note"] == "a\tb\nc\\d «ä»"
    refused = done("topics", "show", "nö", cwd=held, env=environment)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    if "PYTHONIOENCODING" in changed:
        assert 'the log has no topic "n\\u00f6"\n  -> ' in refused.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "ascii", "latin-1", "utf-16"])
def test_lines_of_json_in_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes come behind what was printed before them, and are JSON whatever the stream can hold."""
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding, errors=ESCAPED))
    print('"first"')
    print_utf8(memoryview('"é🐟"\n'.encode()))
    print('"last"', flush=True)
    assert [json.loads(line) for line in written.getvalue().decode(encoding).splitlines()] == ["first", "é🐟", "last"]


@pytest.mark.parametrize("changed", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_terminals_without_colours(changed: dict[str, str], held: Path) -> None:
    assert any("rows" in line for line in seen("topics", "list", cwd=held, **changed))


def test_a_reader_that_has_enough(held: Path) -> None:
    topic = "shop.public.a_table_with_a_rather_long_name_of_its_own"
    with Child(
        [HEADRACE, "topics", "cat", topic, "-f"], cwd=held, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as cat:
        assert cat.stdout is not None and cat.stderr is not None
        cat.stdout.close()
        assert cat.wait(60) == 0
        assert cat.stderr.read() == b""


def test_a_full_disk_behind_standard_output(held: Path) -> None:
    with (
        Path("/dev/full").open("w") as full,
        Child([HEADRACE, "topics", "list"], cwd=held, stdout=full, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stderr is not None
        assert process.wait(60) == 1
        assert process.stderr.read() == "error: No space left on device\n"


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "import headrace as hr\nfoo.bar()\n",
            "cannot be run: NameError: name 'foo' is not defined p.py, line 2: foo.bar()",
        ),
        ("import headrace as hr\nx = (\n", "p.py, line 2: SyntaxError: '(' was never closed x = ("),
        (
            "import nothing_such\n",
            "ModuleNotFoundError: No module named 'nothing_such' p.py, line 1: import nothing_such",
        ),
        ("raise SystemError\n", "p.py cannot be run: SystemError p.py, line 1: raise SystemError"),
        (
            'import headrace as hr\napp = hr.App("a")\napp.postgres("postgresql://x", tables="(")\n',
            "is not a regular expression: missing ), unterminated subpattern at position 0 p.py, line 3: app.postgres",
        ),
    ],
)
def test_a_file_that_cannot_be_run_shows_its_own_line(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(text)
    found = done("run", "p.py", cwd=tmp_path)
    assert found.returncode == 2
    assert told in found.stderr and "Traceback" not in found.stderr
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "nothing.py"], 2),
        (["topics", "list", "--log", "nothing.headrace"], 1),
        (["produce", "t", "--file", "nothing.jsonl", "--log", "x.headrace"], 1),
        (["demo", "iris", "--postgres", "postgresql://u:secret@127.0.0.1:1/x"], 1),
        (["demo", "iris", "--postgres", "this is no connection string"], 2),
        (["keys", "list", "--keys", "/dev/null/keys"], 2),
    ],
)
def test_what_is_not_there(arguments: list[str], code: int, tmp_path: Path) -> None:
    found = done(*arguments, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert found.returncode == code, found.stderr
    assert "Traceback" not in found.stderr and "secret" not in found.stderr


def test_a_database_that_cannot_be_reached_is_tried_again_for_a_while(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PIPELINE.format(dsn="postgresql://u:secret@127.0.0.1:1/x"))
    found = done("run", "shop.py", "--start-timeout", "1", cwd=tmp_path)
    assert found.returncode == 1
    first, last = found.stderr.splitlines()
    assert LINE.fullmatch(first) and "WARNING" in first and "it is tried again for 1 s" in first
    assert LINE.fullmatch(last) and "ERROR" in last and "secret" not in found.stderr
    assert "cannot be reached" in last and "Is it running" in last


# -- events -----------------------------------------------------------------------------------------------------------


def test_events_are_lines(database: Database, tmp_path: Path) -> None:
    database.execute("create table t (id int primary key, x float8)")
    database.execute("insert into t select i, i % 3 from generate_series(1, 20) i")
    (tmp_path / "shop.py").write_text(PIPELINE.format(dsn=database.dsn))
    found = done("run", "shop.py", "--until-caught-up", cwd=tmp_path)
    assert (found.returncode, found.stdout) == (0, "")
    lines = found.stderr.splitlines()
    assert all(map(LINE.fullmatch, lines)), lines
    assert [word for word in ("begins", "ended", "running") if any(word in line for line in lines)] == [
        "begins",
        "ended",
        "running",
    ]
    quiet = done("run", "shop.py", "--until-caught-up", "--log-level", "warning", cwd=tmp_path)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    told = done("run", "shop.py", "--until-caught-up", "--log-format", "json", cwd=tmp_path).stderr.splitlines()
    events = list(map(json.loads, told))
    assert all(list(line) == ["time", "level", "app", "event", "fields"] for line in events)
    assert {"running", "connected", "model"} <= {line["event"] for line in events}
    assert {line["app"] for line in events} == {"shop"}
    shown = seen("run", "shop.py", "--until-caught-up", cwd=tmp_path)
    assert any(re.match(r"\d\d:\d\d:\d\d running, log shop.headrace", line) for line in shown)


def test_what_is_lost_and_found_again_is_said(database: Database, tmp_path: Path) -> None:
    database.execute("create table t (id int primary key, x float8)")
    (tmp_path / "shop.py").write_text(PIPELINE.format(dsn=database.dsn))
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    command = [HEADRACE, "run", "shop.py", "--log-format", "json"]
    with Child(command, cwd=tmp_path, text=True, **streams) as process:
        assert process.stderr is not None
        events = (json.loads(line) for line in process.stderr)
        assert any(event["event"] == "caught_up" for event in events)
        walsenders = "select pg_terminate_backend(active_pid) from pg_replication_slots where database = %s"
        database.execute(walsenders, database.name)
        lost = next(event for event in events if event["event"] == "connection_lost")
        assert (lost["level"], lost["fields"]["source"]) == ("WARNING", "shop")
        again = next(event for event in events if event["event"] == "connected_again")
        assert again["fields"]["text"].startswith(f"connected again after {again['fields']['seconds']:.1f} s")
        assert any(event["event"] == "caught_up" for event in events)
        process.terminate()
        assert process.wait(60) == 0


def test_events_of_several_threads_do_not_tear_the_line_that_is_drawn_below_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without their lock, about one in thirty is torn."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")

    class Busy(io.StringIO):
        def write(self, text: str) -> int:
            time.sleep(0.001)
            return super().write(text)

    def say(terminal: Talk) -> None:
        for number in range(5):
            terminal.print(f"event {number}")

    for _ in range(100):
        terminal = Talk()
        terminal.file = written = Busy()
        with DrawnLine(terminal, get_renderable=lambda: "starting …", refresh_per_second=1000):
            threads = [threading.Thread(target=say, args=(terminal,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        shown = pyte.Screen(80, 60)
        shown.set_mode(pyte.modes.LNM)
        pyte.Stream(shown).feed(written.getvalue())
        lines = [line.strip() for line in shown.display if line.strip()]
        assert sorted(lines) == sorted(f"event {number}" for number in [*range(5)] * 3)
