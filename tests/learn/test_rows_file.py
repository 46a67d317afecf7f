"""CSV rows: renamed, described by what is in the file, read when asked, refused with the path and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.errors import DeclarationError
from headrace.learn.rows_file import csv

FISH = "species,id,length\nsalmon,1,88.424\nwalleye,2,89\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "training.csv"
    path.write_text(FISH)
    return path


@pytest.mark.parametrize(
    ("rename", "names"),
    [
        pytest.param(None, ["species", "id", "length"], id="as they are"),
        pytest.param(str.capitalize, ["Species", "Id", "Length"], id="a function"),
        pytest.param({"id": "Fish_Id"}, ["species", "Fish_Id", "length"], id="some of them"),
        pytest.param({"id": "length", "length": "id"}, ["species", "length", "id"], id="exchanged"),
    ],
)
def test_columns_are_renamed(file: Path, rename: Any, names: list[str]) -> None:
    rows = csv(file, rename=rename).read()
    assert rows.schema.names == names
    assert rows.schema.types == [pa.string(), pa.int64(), pa.float64()]
    assert rows.to_pylist()[1] == dict(zip(names, ["walleye", 2, 89.0], strict=True))


def test_the_training_rows(shared_data: Path) -> None:
    rows = csv(str(shared_data / "fish" / "training.csv"), rename=str.capitalize).read()
    assert isinstance(rows, pa.RecordBatch)
    assert (rows.num_rows, rows.schema.names) == (100, ["Species", "Id", "Length", "Height", "Weight"])
    assert rows.column("Weight")[0].as_py() == 4.718990000000001


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        pytest.param("a,b\r\n1,2\r\n", [{"a": 1, "b": 2}], id="lines of Windows"),
        pytest.param("\ufeffa,b\n1,2\n", [{"a": 1, "b": 2}], id="a byte order mark"),
        pytest.param('a,b\n"x, y","z"\n', [{"a": "x, y", "b": "z"}], id="commas in quotes"),
        pytest.param("a,b\n1,\n,2\n", [{"a": 1, "b": None}, {"a": None, "b": 2}], id="values left out"),
        pytest.param("a,b\n", [], id="no rows"),
    ],
)
def test_what_files_look_like(tmp_path: Path, text: str, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode())
    assert csv(path).read().to_pylist() == rows


def test_many_rows_are_one_batch(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,word\n" + "".join(f"{i},word {i}\n" for i in range(200_000)))
    rows = csv(path).read()
    assert rows.num_rows == 200_000
    assert rows.column("a")[199_999].as_py() == 199_999


def test_a_description_is_of_what_is_in_the_file(file: Path, tmp_path: Path) -> None:
    described = csv(file, rename=str.capitalize).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["csv"] == "training.csv"
    assert described["columns"] == ["Species", "Id", "Length"]
    (tmp_path / "moved").mkdir()
    moved = file.rename(tmp_path / "moved" / "training.csv")
    assert csv(moved, rename=str.capitalize).describe() == described
    assert csv(moved).describe() != described
    moved.write_text(FISH.replace("89", "90"))
    assert csv(moved, rename=str.capitalize).describe() != described


def test_the_file_is_read_when_asked(tmp_path: Path) -> None:
    rows = csv(tmp_path / "later.csv")
    (tmp_path / "later.csv").write_text("a\n1\n")
    assert rows.read().to_pydict() == {"a": [1]}


def test_a_mapping_is_that_of_the_declaration(file: Path) -> None:
    names = {"id": "Fish_Id"}
    rows = csv(file, rename=names)
    names.clear()
    assert rows.read().schema.names[1] == "Fish_Id"


@pytest.mark.parametrize(
    ("content", "rename", "says"),
    [
        pytest.param(None, None, "No such file", id="no file"),
        pytest.param(b"", None, "Empty CSV", id="no columns"),
        pytest.param(b"a,b\n1\n", None, "Expected 2 columns, got 1", id="a value missing"),
        pytest.param("a,größe\n1,ä\n".encode("latin-1"), None, "utf-8", id="names that are not UTF-8"),
        pytest.param("a,b\n1,ä\n".encode("latin-1"), None, r"columns \['b'\] hold bytes", id="text that is not UTF-8"),
        pytest.param(b"a,a\n1,2\n", None, r"two columns are called \['a'\]", id="a name twice"),
        pytest.param(b"a,A\n1,2\n", str.upper, r"two columns are called \['A'\]", id="renamed alike"),
        pytest.param(b"a,b\n1,2\n", {"a": "b"}, r"two columns are called \['b'\]", id="renamed to another"),
        pytest.param(b"a,b\n1,2\n", {"c": "d"}, r"does not have: \['c'\]", id="renames what is not there"),
        pytest.param(b"a,b\n1,2\n", lambda name: 7, "rename gave 7", id="a name that is no text"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes | None, rename: Any, says: str) -> None:
    path = tmp_path / "training.csv"
    if content is not None:
        path.write_bytes(content)
    rows = csv(path, rename=rename)
    for ask in (rows.read, rows.describe):
        with pytest.raises(DeclarationError, match=says) as refused:
            ask()
        assert "training.csv" in str(refused.value)
        assert refused.value.advice


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match="directory"):
        csv(tmp_path).read()


def test_a_rename_that_is_neither_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"csv\(rename='upper'\): a function, a dict or None is wanted"):
        csv("training.csv", rename="upper")  # type: ignore[arg-type]  # what a user might write
