"""to_parquet: files that DuckDB reads, each row in exactly one of them."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

import headrace as hr
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
    folders = sorted(str(one.relative_to(tmp_path / "out")) for one in (tmp_path / "out").glob("species=*/big=*"))
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
        running.wait(10)
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
