"""The Iris demo as a user runs it: both published tables, row by row, from real rows."""

from __future__ import annotations

import csv
import json
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.databases import Database
from tests.processes import headrace

EXPECTED = json.loads((files("headrace.demos.iris") / "data" / "expected.json").read_text())


@pytest.mark.parametrize(("flavour", "correct"), [("flink", [5, 7, 9]), ("spark", [5, 8, 11])])
def test_the_published_table_comes_from_real_rows(flavour: str, correct: list[int], tmp_path: Path) -> None:
    out = headrace("demo", "iris", "--flavour", flavour, "--json", "--log", "iris.headrace", cwd=tmp_path)
    result = json.loads(out)
    assert list(result) == ["flavour", "rounds", "log", "seconds"]
    assert [round_["after"] for round_ in result["rounds"]] == ["train1", "train2", "train2_again"]
    for round_ in result["rounds"]:
        assert round_["predictions"] == EXPECTED[flavour][f"after_{round_['after']}"]
        assert round_["labels"] == EXPECTED["labels"]
    assert [round_["correct"] for round_ in result["rounds"]] == correct
    lines = headrace("topics", "cat", "iris_predictions", cwd=tmp_path).splitlines()
    assert len(lines) == 33
    last = json.loads(lines[-1])
    assert (last["petal_width"], last["status"], last["model"], last["model_version"]) == (1.2, "ok", "species", 1)
    sentence = json.loads(headrace("topics", "cat", "iris_sentences", "--limit", "1", cwd=tmp_path))["sentence"]
    assert sentence == f"[5.4, 3.7, 1.5, 0.2] is classified as {result['rounds'][0]['predictions'][0]}"


def test_it_shows_the_table_and_what_to_try_next(tmp_path: Path) -> None:
    out = headrace("demo", "iris", "--pause", "0.01", cwd=tmp_path)
    assert "9 of 11" in out
    assert out.count("✗") == 6 + 4 + 2
    log = out.split("The log stays at ")[1].split(". Next:")[0]
    for command in ("topics list", "topics cat iris_predictions", "sql '"):
        assert f"headrace {command}" in out
    assert len(headrace("topics", "cat", "iris_predictions", "--log", log, cwd=tmp_path).splitlines()) == 33
    headrace("demo", "iris", "--log", log, cwd=tmp_path, code=2)


def test_other_data_and_a_server_that_is_there(database: Database, tmp_path: Path) -> None:
    rows = list(csv.reader((files("headrace.demos.iris") / "data" / "train2.csv").read_text().splitlines()))
    for name, part in (("train1", rows[1:30]), ("train2", rows[30:120]), ("test", rows[120:127])):
        with (tmp_path / f"{name}.csv").open("w") as file:
            csv.writer(file).writerows([rows[0], *part])
    out = headrace("demo", "iris", "--data", ".", "--postgres", database.dsn, "--json", cwd=tmp_path)
    result = json.loads(out)
    assert [len(round_["predictions"]) for round_ in result["rounds"]] == [7, 7, 7]
    assert database.execute("select count(*) from iris_train") == [(29 + 90 + 90,)]
    assert database.execute("select slot_name from pg_replication_slots where database = current_database()") == []


def test_the_seeds_sql_files(database: Database, tmp_path: Path) -> None:
    headrace("demo", "iris", "--write-sql", "sql", cwd=tmp_path)
    psql = str(database.server.bin / "psql")
    for name in ("train1", "test", "train2"):
        command = [psql, "-q", "-v", "ON_ERROR_STOP=1", "-d", database.dsn, "-f", str(tmp_path / "sql" / f"{name}.sql")]
        subprocess.run(command, check=True, capture_output=True)
    assert database.execute("select count(*), sum(iris_class) from iris_train") == [(139, _classes("train1", "train2"))]
    assert database.execute("select count(*) from iris_test") == [(11,)]


def _classes(*names: str) -> int:
    total = 0
    for name in names:
        text = (files("headrace.demos.iris") / "data" / f"{name}.csv").read_text()
        total += sum(int(row["iris_class"]) for row in csv.DictReader(text.splitlines()))
    return total


def test_wrong_data_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "train1.csv").write_text("a,b\n1,2\n")
    headrace("demo", "iris", "--data", ".", cwd=tmp_path, code=2)


def test_the_shipped_data_is_the_shared_data(shared_data: Path) -> None:
    for name in ("train1.csv", "train2.csv", "test.csv", "expected.json"):
        shipped: Any = files("headrace.demos.iris") / "data" / name
        assert shipped.read_text() == (shared_data / "iris" / name).read_text()
