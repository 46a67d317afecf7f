"""Rows of numbers cut out where commas say: as Arrow's reader, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.formats.json_parse import read_numbers


def read(values: list[bytes]) -> pa.RecordBatch | None:
    data = b"\n".join(values)
    return read_numbers(data, np.append(0, np.flatnonzero(np.frombuffer(data, np.uint8) == 10) + 1))


def by_arrow(values: list[bytes]) -> pa.RecordBatch:
    table = pyarrow.json.read_json(pa.BufferReader(b"\n".join(values)))
    return table.combine_chunks().to_batches()[0]


NUMBERS = st.one_of(
    st.integers(-(10**15), 10**15).map(str),
    st.decimals(-(10**6), 10**6, places=4).map(lambda one: format(one, "f")),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["0", "-0", "-0.0", "0.1", "123456789012345678", "0.00000000000001", "-7", "10", "null"]),
    st.sampled_from(["1e5", "-1.5E-7", "1e+22", "0e0", "9223372036854775807", "-9223372036854775808", "0.1e1"]),
)
NAMES = st.lists(st.sampled_from(["id", "x", "a b", "ä", '"q"', "x.y"]), min_size=1, max_size=4, unique=True)


@given(NAMES, st.data())
def test_it_is_what_arrow_reads(names: list[str], data: Any) -> None:
    rows = data.draw(st.lists(st.tuples(*[NUMBERS for _ in names]), min_size=1, max_size=6))
    values = [
        ("{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in zip(names, row, strict=True)) + "}").encode()
        for row in rows
    ]
    found = read(values)
    if found is not None:
        wanted = by_arrow(values)
        assert found.schema.names == wanted.schema.names
        for mine, theirs in zip(found.columns, wanted.columns, strict=True):
            assert mine.type == theirs.type
            assert mine.is_valid().equals(theirs.is_valid())
            assert mine.drop_null().to_numpy(False).tobytes() == theirs.drop_null().to_numpy(False).tobytes()


def test_measurements_are_read() -> None:
    values = [b'{"id":%d,"x":%.3f,"y":%r,"z":null}' % (i, i / 7, -i / 3) for i in range(1000)]
    values[7] = b'{"id":7,"x":null,"y":1e-7,"z":1}'
    found = read(values)
    assert found is not None and found.equals(by_arrow(values))


@pytest.mark.parametrize(
    "values",
    [
        [b'{"a":1}', b'{"b":1}'],
        [b'{"a":1}', b'{"a": 1}'],
        [b'{"a":"1"}'],
        [b'{"a":01}'],
        [b'{"a":-01}'],
        [b'{"a":0x1F}'],
        [b'{"a":1.e5}', b'{"a":1}'],
        [b'{"a":1e}'],
        [b'{"a":1e5.5}'],
        [b'{"a":1 }'],
        [b'{"a":1}', b'{"a":nan}'],
        [b'{"a":1}', b'{"a":nulL}'],
        [b'{"a":1}', b'{"a":null }'],
        [b'{"a":1}', b'{"a":inf}'],
        [b'{"a":1}', b'{"a":Infinity}'],
        [b'{"a":1e999}'],
        [b'{"a":9223372036854775808}'],
        [b'{"a":0.5}', b'{"a":9223372036854775808}'],
        [b'{"a":00.5}'],
        [b'{"a":1.}'],
        [b'{"a":.5}'],
        [b'{"a":1.2.3}'],
        [b'{"a":-}'],
        [b'{"a":--1}'],
        [b'{"a":+1}'],
        [b'{"a":1-2}'],
        [b'{"a":1,"a":2}'],
        [b'{"a":1,"b":2}', b'{"a":1}'],
        [b'{"a":1}', b'{"a":1,"b":2}'],
        [b'{"a":1,"b":2}', b'{"a":1}', b'{"a":1,"b":2,"c":3}'],
        [b'{"a":1,"b":2}', b'{"b":1,"a":2}'],
        [b'{"a":{"b":1}}'],
        [b'{"a":[1,2]}'],
        [b"{}"],
        [b"[1]"],
        [b'{"a":1} '],
        [b'{"a":1}}'],
        [b'{"a":1', b'{"a":1}'],
    ],
    ids=repr,
)
def test_anything_else_is_left_to_a_parser(values: list[bytes]) -> None:
    assert read(values) is None
