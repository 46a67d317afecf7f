"""Values of PostgreSQL in the forms of Debezium's connector, one type at a time; whole events: the recorded cases."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.formats.debezium_types import TypeOptions, array_items, columns, java_string, kind_of


def about(name: str, typmod: int = -1, **more: Any) -> dict[str, Any]:
    return {"name": name, "typmod": typmod, **more}


def written(type_: dict[str, Any], *values: Any, kind: pa.DataType | None = None, **properties: str) -> list[Any]:
    """What a type's values are in JSON."""
    options = TypeOptions.of({name.replace("_", "."): value for name, value in properties.items()})
    found = kind_of(type_, options)
    assert found is not None
    texts = found.write(pa.array(values, kind or pa.string())).to_pylist()
    return [None if text is None else json.loads(text, parse_int=str, parse_float=str) for text in texts]


@given(st.lists(st.floats() | st.none(), min_size=1))
def test_doubles_read_back_as_the_same(values: list[float | None]) -> None:
    texts = written(about("float8"), *values, kind=pa.float64())
    for value, text in zip(values, texts, strict=True):
        if value is None:
            assert text is None
            continue
        assert repr(float(text)) == repr(value)
        mantissa, _, exponent = text.partition("E")
        if text not in ("NaN", "Infinity", "-Infinity"):
            assert "." in mantissa and not mantissa.endswith(".")
            assert bool(exponent) == (value != 0 and not 1e-3 <= abs(value) < 1e7)


@given(st.lists(st.floats(width=32), min_size=1))
def test_floats_read_back_as_the_same(values: list[float]) -> None:
    for value, text in zip(values, written(about("float4"), *values, kind=pa.float32()), strict=True):
        assert repr(np.float32(text)) == repr(np.float32(value))


def unscaled(text: str) -> int:
    return int.from_bytes(base64.b64decode(text), "big", signed=True)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=10).map(lambda value: f"{value:f}"))
def test_decimals_of_any_length(text: str) -> None:
    (found,) = written(about("numeric", (60 << 16 | 10) + 4), text)
    assert unscaled(found) == int(Decimal(text).scaleb(10)) or len(text) > 28
    (free,) = written(about("numeric"), text)
    assert Decimal(unscaled(free["value"])).scaleb(-int(free["scale"])) == Decimal(text) or len(text) > 28
    assert written(about("numeric"), text, decimal_handling_mode="string") == [text]


def test_the_longest_numbers() -> None:
    whole, fraction = "9" * 131_072, "1" * 16_383
    (found,) = written(about("numeric"), f"-{whole}.{fraction}")
    number = int.from_bytes(base64.b64decode(found["value"]), "big", signed=True)
    assert (found["scale"], number % 10, number < 0, number.bit_length()) == ("16383", 9, True, 489_835)
    (exact,) = written(about("numeric", (50 << 16 | 2) + 4), "1" * 48 + ".25")
    assert unscaled(exact) == int("1" * 48 + "25")


@pytest.mark.parametrize(
    ("text", "precise", "double"),
    [
        ("$1,234.50", 123_450, "1234.5"),
        ("-$0.05", -5, "-0.05"),
        ("($3.00)", -300, "-3.0"),
        ("1.234,50 €", 123_450, "1234.5"),
        ("¥1,000", 100_000, "1000.0"),
    ],
)
def test_money_in_the_forms_of_locales(text: str, precise: int, double: str) -> None:
    assert unscaled(written(about("money"), text)[0]) == precise
    assert written(about("money"), text, decimal_handling_mode="double") == [double]


@given(st.lists(st.none() | st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_arrays_of_any_text(values: list[str | None]) -> None:
    def item(value: str | None) -> str:
        return "NULL" if value is None else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    text = "{" + ",".join(map(item, values)) + "}"
    assert list(array_items(text)) == values
    assert written(about("_text", element=about("text")), text) == [values]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_texts_are_what_they_were(text: str) -> None:
    assert json.loads(java_string(text)) == text
    assert java_string(text).isprintable() or any(not c.isprintable() for c in text)
    assert written(about("text"), text, None) == [text, None]


@pytest.mark.parametrize(
    ("text", "micros", "iso"),
    [
        ("00:00:00", "0", "P0Y0M0DT0H0M0S"),
        ("1 year 2 mons 3 days 04:05:06.789012", "37091106789012", "P1Y2M3DT4H5M6.789012S"),
        ("-1 years +2 mons -3 days +04:00:00", None, "P-1Y2M-3DT4H0M0S"),
        ("-00:00:01.5", "-1500000", "P0Y0M0DT0H0M-1.5S"),
        ("1000000:00:00", "3600000000000000", "P0Y0M0DT1000000H0M0S"),
        ("178000000 years", None, "P178000000Y0M0DT0H0M0S"),
    ],
)
def test_intervals(text: str, micros: str | None, iso: str) -> None:
    assert written(about("interval"), text, interval_handling_mode="string") == [iso]
    if micros is not None:
        assert written(about("interval"), text) == [micros]


@given(st.text("01", max_size=80))
def test_bits_have_their_lowest_first(bits: str) -> None:
    (found,) = written(about("varbit"), bits)
    raw = base64.b64decode(found)
    assert int.from_bytes(raw, "little") == int(bits or "0", 2) and not raw.endswith(b"\0")


def test_columns_of_unknown_types_are_left_out_or_bytes() -> None:
    facts = {
        "schema": "public",
        "table": "t",
        "key": ["id"],
        "columns": [
            {"name": "id", "type": about("int4"), "not_null": True, "default": "nextval('t_id_seq'::regclass)"},
            {"name": "b", "type": about("box"), "not_null": False, "default": None},
            {"name": "c", "type": about("addr", kind="c"), "not_null": False, "default": None},
        ],
    }
    assert [column.name for column in columns(facts, TypeOptions())] == ["id"]
    assert columns(facts, TypeOptions())[0].schema == {"type": "int32", "optional": False, "default": 0, "field": "id"}
    known = {column.name: column for column in columns(facts, TypeOptions(unknown=True))}
    assert known["b"].cells(pa.array(["(1,1),(0,0)", None])).to_pylist() == ['"KDEuMCwxLjApLCgwLjAsMC4wKQ=="', "null"]
