"""to_parquet: files that DuckDB reads, each row in exactly one of them."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

import duckdb
import pyarrow as pa
import pytest
from pyarrow import dataset

import headrace as hr
from headrace import plain_values
from headrace.errors import WaitTimeout

from .events import app_on, events, letters, write


def read(folder: Path, columns: str = "*", order: str = '"__offset"') -> list[tuple[object, ...]]:
    source = f"read_parquet('{folder}/**/*.parquet', hive_partitioning = true, union_by_name = true)"
    return duckdb.sql(f"select {columns} from {source} order by {order}").fetchall()


def test_every_event_is_a_row(tmp_path: Path) -> None:
    write(tmp_path / "log", events("op id x\nc 1 a\nu 1 b\nd 1 -"), events("op id y\nc 2 1.5"))
    app, stream = app_on(tmp_path / "log")
    stream.to_parquet(tmp_path / "out")
    for _ in range(2):
        app.run(until="caught-up")
    assert read(tmp_path / "out", 'id, x, y, "__op", "__offset"') == [
        (1, "a", None, "c", 0),
        (1, "b", None, "u", 1),
        (1, None, None, "d", 2),
        (2, None, 1.5, "c", 3),
    ]
    names = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert names == [f"in-{first:020d}-{last:020d}.parquet" for first, last in ((0, 2), (3, 3))]


def test_files_have_so_many_rows(tmp_path: Path) -> None:
    write(tmp_path / "log", *(hr.Batch.of({"id": list(range(7 * i, 7 * i + 7))}) for i in range(10)))
    app, stream = app_on(tmp_path / "log")
    stream.to_parquet(tmp_path / "out", rows_per_file=20)
    app.run(until="caught-up")
    assert read(tmp_path / "out", "id") == [(i,) for i in range(70)]
    sizes = duckdb.sql(
        f"select count(*) from read_parquet('{tmp_path}/out/*.parquet', filename = true) "
        "group by filename order by filename"
    )
    assert sizes.fetchall() == [(20,), (20,), (20,), (10,)]


def test_columns_become_folders(tmp_path: Path) -> None:
    columns = {
        "id": pa.array([1, 2, 3, 4]),
        "species": pa.array(["Bream", "../x y", None, "Bream"]),
        "big": pa.array([True, True, False, True]),
    }
    write(tmp_path / "log", hr.Batch.of(pa.RecordBatch.from_pydict(columns)), events("op id\nc 9"))
    app, stream = app_on(tmp_path / "log")
    stream.to_parquet(tmp_path / "out", partition_by=["species", "big"])
    app.run(until="caught-up")
    # A folder's name is text to DuckDB, where it is no number and no day.
    expected = [(1, "Bream", "true"), (2, "../x y", "true"), (3, None, "false"), (4, "Bream", "true")]
    assert read(tmp_path / "out", "id, species, big", "id") == expected
    folders = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").glob("species=*/big=*"))
    assert folders == ["species=..%2Fx%20y/big=true", "species=Bream/big=true",
                       "species=__HIVE_DEFAULT_PARTITION__/big=false"]  # fmt: skip
    (letter,) = letters(tmp_path / "log")
    assert "no column «species» to partition by" in letter


def test_few_rows_wait_for_more_until_somebody_waits_or_it_stops(tmp_path: Path) -> None:
    app = hr.App("shop", log=tmp_path / "log")
    stream = app.topic("in", append=True)
    stream.to_parquet(tmp_path / "out", rows_per_file=5, every="1 h", name="files")
    with app.start() as running:
        running.append("in", [{"id": i} for i in range(7)])
        while (running.sinks["files"].position or 0) < 5:
            running.join(0.01)
        assert [path.name for path in (tmp_path / "out").glob("*.parquet")] == [f"files-in-{0:020d}-{4:020d}.parquet"]
        running.wait(60)
        assert len(read(tmp_path / "out", "id")) == 7
        running.append("in", [{"id": 7}])
    assert len(read(tmp_path / "out", "id")) == 8


def test_files_of_another_log_are_not_added_to(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, events("op id\nc 1"))
    app, stream = app_on(tmp_path / "one")
    stream.to_parquet(tmp_path / "out")
    app.run(until="caught-up")
    app, stream = app_on(tmp_path / "two")
    stream.to_parquet(tmp_path / "out")
    with app.start() as running, pytest.raises(WaitTimeout, match="another log"):
        running.wait(1)
    assert read(tmp_path / "out", "id") == [(1,)]


# A partition's value, and whether it has a folder of its own that readers take for the same value.
FOLDERS: dict[str, tuple[pa.Array, bool]] = {
    "null": (pa.array([None], pa.string()), True),
    "what stands for null": (pa.array(["__HIVE_DEFAULT_PARTITION__"]), False),
    "nothing known": (pa.nulls(1), True),
    "an empty struct that is null": (pa.array([None], pa.struct([])), True),
    "nearly": (pa.array(["__hive_default_partition__"]), True),
    "empty": (pa.array([""]), True),
    "up": (pa.array([".."]), True),
    "down": (pa.array(["a/../b"]), True),
    "percent": (pa.array(["%2F"]), True),
    "a line": (pa.array(["a\nb=c"]), True),
    "zero": (pa.array(["a\0b"]), True),
    "small": (pa.array(["k"]), True),
    "capital": (pa.array(["K"]), True),
    "kelvin": (pa.array(["\u212a"]), True),
    "fifty é": (pa.array(["é" * 50]), True),
    "fifty é and a slash": (pa.array(["é/" * 40]), True),
    "two hundred é": (pa.array(["é" * 200]), False),
    "no UTF-8": (pa.array([b"\xff"]).view(pa.string()), False),
    "bytes": (pa.array([b"ab"]), True),
    "no text": (pa.array([b"\xff"]), False),
    "a list": (pa.array([["a"]]), False),
    "a struct": (pa.array([{"a": 1}]), False),
    "an empty struct": (pa.array([{}], pa.struct([])), False),
    "a number": (pa.array([-7]), True),
    "a boolean": (pa.array([False]), True),
    "a decimal": (pa.array([Decimal("1.50")]), True),
    "not a number": (pa.array([float("nan")]), True),
    "a time": (pa.array([dt.datetime(2024, 2, 29, 1, 2, 3, 4, dt.UTC)]), True),
    "infinity": (pa.array([2**63 - 1], pa.int64()).view(pa.timestamp("us", "UTC")), True),
    "before Christ": (pa.array([-735_160], pa.int32()).view(pa.date32()), True),
    "a code": (pa.array(["red"]).dictionary_encode(), True),
    "no code": (pa.array([None], pa.string()).dictionary_encode(), True),
}  # fmt: skip


def test_every_value_has_a_folder_or_is_refused(tmp_path: Path) -> None:
    batches, expected = [], {}
    for id, (name, (value, folder)) in enumerate(FOLDERS.items()):
        columns = {"id": pa.array([id]), "x": value, "y": pa.array(["b"])}
        batches.append(hr.Batch.of(pa.RecordBatch.from_pydict(columns)))
        if folder:
            text = plain_values.texts(value)[0]
            expected[id] = "ab" if name == "bytes" else text
    write(tmp_path / "log", *batches)
    app, stream = app_on(tmp_path / "log")
    stream.to_parquet(tmp_path / "out", partition_by=["x", "y"], every="10 ms")
    for _ in range(2):
        app.run(until="caught-up")
    flavour = pa.schema([("x", pa.string()), ("y", pa.string())])
    found = dataset.dataset(
        tmp_path / "out", format="parquet", partitioning=dataset.partitioning(flavour, flavor="hive"),
        exclude_invalid_files=True,
    ).to_table(columns=["id", "x", "y"]).to_pylist()  # fmt: skip
    assert {row["id"] for row in found} == expected.keys()
    usual = {row["id"]: row["x"] for row in found}
    for id, name in enumerate(FOLDERS):
        if name not in ("a time", "not a number"):  # as Arrow writes them, as ever
            assert usual.get(id) == expected.get(id), name
    assert usual[list(FOLDERS).index("a time")] == "2024-02-29 01:02:03.000004Z"
    pattern = f"{tmp_path}/out/**/*.parquet"
    query = f"select id, x from read_parquet('{pattern}', hive_partitioning = true, hive_types = {{'x': VARCHAR}})"
    assert dict(duckdb.sql(query).fetchall()) == usual
    assert len(letters(tmp_path / "log")) == len(FOLDERS) - len(expected)


def test_values_in_one_part_are_not_mixed_up(tmp_path: Path) -> None:
    values = [None, "__HIVE_DEFAULT_PARTITION__", "k", "K", "é" * 200, None, "k"]
    write(tmp_path / "log", hr.Batch.of({"id": list(range(7)), "x": values}))
    app, stream = app_on(tmp_path / "log")
    stream.to_parquet(tmp_path / "out", partition_by="x")
    app.run(until="caught-up")
    assert read(tmp_path / "out", "id, x", "id") == [(0, None), (2, "k"), (3, "K"), (5, None), (6, "k")]
    names = [path.name.casefold() for path in (tmp_path / "out").rglob("*.parquet")]
    places = [str(path).casefold() for path in (tmp_path / "out").rglob("*.parquet")]
    assert len(set(names)) == 2 and len(set(places)) == 3
    assert len(letters(tmp_path / "log")) == 2


def test_long_names_and_what_an_older_version_has_left(tmp_path: Path) -> None:
    """A directory and a topic as long as may be; a committed move to a folder whose name is too long."""
    place = tmp_path / ("d" * 120) / ("e" * 120)
    write(tmp_path / "log", events("op id\nc 1"), topic="t" * 240)
    app = hr.App("shop", log=tmp_path / "log")
    app.topic("t" * 240).to_parquet(place)
    app.run(until="caught-up")
    assert read(place, "id") == [(1,)]
    (manifest,) = (place / ".headrace").glob("*/manifest.json")
    stored = json.loads(manifest.read_text())
    (file,) = place.glob("*.parquet")
    file.rename(manifest.parent / "0-0.tmp")
    stored["moves"] = [["0-0.tmp", f"x={quote('é' * 50)}/{file.name}"]]
    manifest.write_text(json.dumps(stored))
    app.run(until="caught-up")
    assert read(place, "id, x") == [(1, "é" * 50)]


def test_columns_with_names_of_ours_are_partitioned_by_too(tmp_path: Path) -> None:
    write(tmp_path / "log", hr.Batch.of({"id": [1, 2], "__offset": ["a", "b"]}))
    app, stream = app_on(tmp_path / "log")
    stream.to_parquet(tmp_path / "out", partition_by="__offset")
    app.run(until="caught-up")
    assert read(tmp_path / "out", 'id, "__offset_input", "__offset"') == [(1, "a", 0), (2, "b", 1)]
