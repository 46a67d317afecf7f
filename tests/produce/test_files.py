"""Files and streams of text with everything in them that breaks: exact values, or an error that says the place."""

from __future__ import annotations

import gzip
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.errors import FormatError
from headrace.formats import decimals
from headrace.produce.files import read_json_lines, read_rows


def table(path: Path) -> tuple[dict[str, list[Any]], list[pa.Schema]]:
    columns: dict[str, list[Any]] = {}
    schemas = []
    for batch, _ in read_rows(path):
        schemas.append(batch.schema)
        for name in batch.schema.names:
            columns.setdefault(name, []).extend(batch.column(name).to_pylist())
    return columns, schemas


def csv(tmp_path: Path, *fields: str) -> tuple[list[Any], str]:
    """A column of a CSV with these fields: values and type."""
    path = tmp_path / "f.csv"
    path.write_text("id,x\n" + "".join(f"{i},{field}\n" for i, field in enumerate(fields)))
    columns, schemas = table(path)
    return columns["x"], str(schemas[0].field("x").type)


@pytest.mark.parametrize(
    ("fields", "values", "kind"),
    [
        (["1", "-2", ""], [1, -2, None], "int64"),
        (["01234", "1"], ["01234", "1"], "string"),
        (["+5"], ["+5"], "string"),
        (["1_000"], ["1_000"], "string"),
        (["0x10"], ["0x10"], "string"),
        ([" 7 ", "7"], [" 7 ", "7"], "string"),
        (["1e5", "2"], [100000.0, 2.0], "double"),
        (["9223372036854775808", "1"], [2**63, 1], "decimal128(38, 0)"),
        (["18446744073709551615"], [2**64 - 1], "decimal128(38, 0)"),
        ([str(10**60)], [10**60], "decimal256(76, 0)"),
        (["9" * 100], ["9" * 100], "string"),
        (["9007199254740993", "0.5"], [9007199254740993, Decimal("0.5")], "decimal256(76, 38)"),
        (["9007199254740992", "0.5"], [2.0**53, 0.5], "double"),
        (["0.1234567890123456789"], [Decimal("0.1234567890123456789")], "decimal256(76, 38)"),
        (["0.30000000000000004", "NaN", "-inf"], [0.30000000000000004, "nan", float("-inf")], "double"),
        (["1e400"], ["1e400"], "string"),
        (["-0", "0"], [0, 0], "int64"),
        ([".5", "1."], [".5", "1."], "string"),
        (["true", "false", ""], [True, False, None], "bool"),
        (["true", "True"], ["true", "True"], "string"),
        (["1", "NA", "null"], [1, None, None], "int64"),
        (["a", "NA", ""], ["a", "NA", None], "string"),
        (["NA", "NA"], ["NA", "NA"], "string"),
        (['""', "", "a"], ["", None, "a"], "string"),
        (["2026-01-31"], [date(2026, 1, 31)], "date32[day]"),
        (["2026-02-31"], ["2026-02-31"], "string"),
        (["2026-01-31 12:00:00"], [datetime(2026, 1, 31, 12)], "timestamp[s]"),
        (["2026-01-31", "n/a?"], ["2026-01-31", "n/a?"], "string"),
        (['"a\nb"', '"say ""x"""', "é"], ["a\nb", 'say "x"', "é"], "string"),
        (["", ""], [None, None], "null"),
        (["x" * 300_000], ["x" * 300_000], "string"),
        (["a\0b"], ["a\0b"], "string"),
    ],
)
def test_what_a_column_of_a_csv_is(fields: list[str], values: list[Any], kind: str, tmp_path: Path) -> None:
    found, type_ = csv(tmp_path, *fields)
    assert type_ == kind
    assert [item if item == item else "nan" for item in found] == values


def test_a_type_is_that_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of its first block."""
    monkeypatch.setattr("headrace.produce.files.BLOCK_BYTES", 200)
    path = tmp_path / "f.csv.gz"
    path.write_bytes(gzip.compress(b"id,x\n" + b"".join(b"%d,%d\n" % (i, i) for i in range(99)) + b"99,late\n"))
    columns, schemas = table(path)
    assert {str(schema.field("x").type) for schema in schemas} == {"string"} and len(schemas) > 1
    assert columns["x"][98:] == ["98", "late"] and columns["id"] == list(range(100))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_marks_and_newlines(newline: str, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes(b"\xef\xbb\xbf" + f"id,x{newline}1,a{newline}{newline}2,b".encode())
    assert table(tmp_path / "f.csv")[0] == {"id": [1, 2], "x": ["a", "b"]}
    (tmp_path / "f.jsonl").write_bytes(b"\xef\xbb\xbf" + f'{{"id": 1}}{newline}{newline}{{"id": 2}}'.encode())
    assert table(tmp_path / "f.jsonl")[0] == {"id": [1, 2]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.csv", b"id,x,x\n1,2,3\n", "columns 2 and 3 are both named «x»"),
        ("f.csv", b"", "is empty"),
        ("f.csv", b"\xff\xfei\0d\0", "line 1, byte 0: the text is UTF-16"),
        ("f.csv", "id,né\n1,2\n".encode("latin1"), "line 1, byte 4: 0xe9 is no UTF-8"),
        ("f.csv", b"id,x\n1,a\n2,b\xe9c\n", "line 3, byte 3: 0xe9 is no UTF-8"),
        ("f.csv", b"id,x\n1,ab\xc3", "line 2, byte 4: 0xc3 is no UTF-8"),
        ("f.csv", b"id,x\n1,2\n3\n", "row 3: 1 fields where 2 are expected"),
        ("f.csv", b"id,x\n1,2\n3,4,5\n", "row 3: 3 fields where 2 are expected"),
        ("f.csv", b'id,x\n1,"abc\n3,4\n', "a quote is not closed"),
        ("f.csv", b'id,x\n1,2\n3,"abc', "a quote is not closed"),
        ("f.jsonl", b"\xff\xfe{\0}\0", "line 1, byte 0: the text is UTF-16"),
        ("f.jsonl", b'{"a":1}\n{"n":"\xe9"}', "line 2: invalid UTF-8 at byte 6"),
        ("f.jsonl", b'{"a":1}\n\xe9', "line 2, byte 0: 0xe9 is no UTF-8"),
        ("f.jsonl", b'{"a":1}\n5', "line 2: no JSON object"),
        ("f.jsonl", b'{"a":1}\n[{"a":1}]', "line 2: no JSON object"),
        ("f.jsonl", b'{"a":1,"a":2}', "line 1: the name «a» stands twice"),
        ("f.jsonl", b'{"a":"\\ud800"}', "line 1: a surrogate"),
        ("f.jsonl", b'{"a":' + b"[" * 9000 + b"]" * 9000 + b"}", "line 1: invalid JSON: nested too deep"),
        ("f.jsonl", b'{"a":1e400}', "line 1: the number 1e400"),
        ("f.jsonl", b'{"a":1} {"a":2}', "line 1: invalid JSON"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=message.replace("(", r"\(")):
        table(tmp_path / name)


def test_only_a_header_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("id,x\n")
    assert table(tmp_path / "f.csv") == ({}, [])
    (tmp_path / "f.jsonl").write_text("\n \n")
    assert table(tmp_path / "f.jsonl") == ({}, [])


@pytest.mark.parametrize("cut", [1, 9, 30, 10_000])
def test_lines_are_decided_one_by_one(cut: int) -> None:
    text = b'{"d":"2024-01-01"}\n{"d":"n/a"}\n{"n":18446744073709551615}\n{"n":null}\n{"n":1,"d":5}\n{}\n'
    pieces = [text[i : i + cut] for i in range(0, len(text), cut)]
    found = [
        (str(batch.schema), repr(row)) for batch, _ in read_json_lines(pieces, where="x") for row in batch.to_pylist()
    ]
    whole = [(str(b.schema), repr(r)) for b, _ in read_json_lines([text[:-3]], where="x") for r in b.to_pylist()]
    assert found[: len(whole)] == whole[: len(found)]
    assert "Decimal('18446744073709551615')" in found[2][1] and "d: string" in found[0][0]


@pytest.mark.parametrize("text", ["1" + "0" * 60, "1" * 45, "9" * 39, "1e60", "1" * 300, "0." + "1" * 39])
def test_arrows_cast_never_wraps_around(text: str) -> None:
    """Its own makes -53988160564045579057371199750308626432 of 10^60."""
    with pytest.raises((ValueError, pa.ArrowInvalid)):
        decimals.from_text(pa.array([text, "1"]), pa.decimal128(38, 0))
    assert decimals.from_text(pa.array(["1." + "0" * 90, None]), pa.decimal128(5, 2)).to_pylist() == [Decimal(1), None]
