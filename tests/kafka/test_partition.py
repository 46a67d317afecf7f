"""Partitions and places: the Java client's hash, and messages as ranges of offsets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.kafka.partition import murmur2, partitions_of
from headrace.kafka.ranges import MessageRange, pack_spread, ranges_of, unpack_spread

# org.apache.kafka.common.utils.UtilsTest.testMurmur2
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


def test_the_hashes_that_javas_own_tests_expect() -> None:
    assert murmur2(list(JAVA)).astype(np.int32).tolist() == list(JAVA.values())


def reference(data: bytes) -> int:
    """Kafka's `Utils.murmur2`, line by line."""
    m, h = 0x5BD1E995, 0x9747B28C ^ len(data)
    for at in range(0, len(data) & ~3, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & 0xFFFFFFFF
        k ^= k >> 24
        h = (h * m & 0xFFFFFFFF) ^ (k * m & 0xFFFFFFFF)
    rest = data[len(data) & ~3 :]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & 0xFFFFFFFF
    h = (h ^ h >> 13) * m & 0xFFFFFFFF
    return h ^ h >> 15


@given(st.lists(st.one_of(st.none(), st.binary(max_size=40)), max_size=30), st.integers(1, 50), st.data())
def test_partitions_are_those_of_the_java_client(keys: list[bytes | None], count: int, data: st.DataObject) -> None:
    keyless = data.draw(st.integers(0, count - 1))
    found = partitions_of(keys, count, keyless=keyless)
    assert found.tolist() == [keyless if key is None else (reference(key) & 0x7FFFFFFF) % count for key in keys]


@given(st.lists(st.integers(0, 65_535), min_size=1))
def test_a_spread_comes_back(partitions: list[int]) -> None:
    assert unpack_spread(pack_spread(np.array(partitions))).tolist() == partitions


@pytest.mark.parametrize(
    ("offsets", "chosen", "expected"),
    [
        ([], [], ()),
        ([3], [], ()),
        ([3], [0], (MessageRange(7, 3, 3, 1),)),
        ([3, 4, 9], [0, 1, 2], (MessageRange(7, 3, 9, 3),)),  # a marker between them is no message
        ([3, 4, 5], [0, 2], (MessageRange(7, 3, 3, 1), MessageRange(7, 5, 5, 1))),
        ([3, 4, 5, 6], [1, 2], (MessageRange(7, 4, 5, 2),)),
    ],
)
def test_places(offsets: list[int], chosen: list[int], expected: tuple[MessageRange, ...]) -> None:
    assert ranges_of(np.array(offsets, np.int64), 7, np.array(chosen, np.int64)) == expected
