"""Types of Arrow that no database gives and a program may append: kept, answered, looked at and verified."""

from __future__ import annotations

import contextlib
import json
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from typer.testing import CliRunner

import headrace as hr
from headrace.cli.main import app as command
from headrace.log import open_log
from headrace.replay.verify import verify

from .test_every_operator import WORDS


def numbers(kind: pa.DataType, *found: int) -> pa.Array:
    return pa.array(found, pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)


ARRAYS = [
    numbers(pa.timestamp("us", "UTC"), 2**63 - 1, -(2**63)),
    numbers(pa.timestamp("ns"), 1, 2**63 - 1),
    numbers(pa.timestamp("s", "Europe/Berlin"), 253_402_300_799),
    numbers(pa.duration("ns"), 1),
    numbers(pa.duration("s"), 2**63 - 1),
    numbers(pa.time32("s"), 86_400),
    numbers(pa.time64("ns"), 1),
    numbers(pa.date32(), 2**31 - 1),
    numbers(pa.date64(), 2**63 - 1),
    pa.array([1.5], pa.float16()),
    pa.array([2**64 - 1], pa.uint64()),
    pa.array([Decimal(10**75)]),
    pa.array([Decimal("1.5")], pa.decimal32(5, 2)),
    pa.array([b"a\xff"]).view(pa.string()),
    pa.array(["v"], pa.string_view()),
    pa.array([b"\xff"], pa.binary_view()),
    pa.array([b"abc"], pa.binary(3)),
    pa.array([pa.MonthDayNano([1, 2, 3])]),
    pa.array(["a"]).dictionary_encode(),
    pc.run_end_encode(pa.array([1, 1])),
    pa.array([[1]], pa.list_view(pa.int64())),
    pa.array([[1, 2]], pa.list_(pa.int64(), 2)),
    pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
    pa.array([{"a": None, "b": [{"c": 1}]}]),
    pa.array([{}]),
    pa.nulls(1),
    pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)], pa.binary(16))),
    pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}"])),
]


def test_any_type_that_is_appended_is_looked_at_and_verified(tmp_path: Path) -> None:
    log = tmp_path / "appended.headrace"
    app = hr.App("appended", log=log)
    rows = app.topic("in", append=True)
    model = app.model("m", hr.KMeans(1, initial_centers=[[0.0]]), features=["id"])
    model.learn(rows)
    model.predict(rows).to("scored")
    app.model("hostile", hr.KMeans(1, initial_centers=[[0.0]]), features=["v"]).learn(rows)
    for number, word in enumerate(WORDS.values()):
        word(rows, "v").to(f"derived{number}")
    rows.with_columns(said=hr.text("{v}")).to("said")
    rows.select("id", "v").to("chosen")
    rows.to_console(format="lines")
    rows.to_parquet(tmp_path / "lake")
    count = 0
    with app.start() as running:
        for array in ARRAYS:
            ids = pa.array([float(count + i) for i in range(len(array))])
            running.append("in", pa.table({"id": ids, "v": array}))
            count += len(array)
        running.wait(60)
    for topic in ("in", "scored"):
        found = app.topic(topic).read()
        assert len(found) == count
        assert repr(found) and found._repr_html_() and len(found.to_pandas()) == count
    with contextlib.closing(open_log(log, writer=False)) as held:
        assert verify(app.plan(), held).result == "equal"
    for arguments in (
        ("topics", "cat", "--all"),
        ("topics", "cat", "in", "--json"),
        ("topics", "show", "in"),
        ("sql", 'select * from "in"', "--json"),
        ("sql", 'select * from "in"', "--csv"),
    ):
        printed = CliRunner().invoke(command, [*arguments, "--log", str(log)])
        assert printed.exit_code == 0, (arguments, printed.exception)
        if "cat" in arguments:
            assert all(json.loads(line) for line in printed.stdout.rstrip("\n").split("\n"))
