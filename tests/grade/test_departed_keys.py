"""Keys that have left: found as in a dict, whatever they are, for few bytes each where they are whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.grade.interval_join import departed_keys
from headrace.grade.interval_join.departed_keys import DepartedKeys

EVER = 2**40
WHOLE = st.integers(0, 30) | st.sampled_from([2**61 - 2, 2**61 - 1, 2**61, 2**63 - 1, 2**64, -(2**62), -(2**63)])
KEYS = {
    "whole numbers": st.integers(0, 30),
    "large and small": WHOLE | st.integers(-3, -1),
    "text": st.sampled_from(["", "a", "1", "é"]),
    "mixed": WHOLE | st.sampled_from(["1", 0.5, b"1", True, ("numeric", "NaN"), (1, "a")]),
}
ASKED: list[Any] = [
    *range(-3, 31),
    2**61 - 2,
    2**61 - 1,
    2**61,
    2**63 - 1,
    2**64,
    1.0,
    True,
    0.5,
    float("inf"),
    "1",
    "a",
]


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("few", [0, 1000])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_keys_are_found_as_in_a_dict(kind: str, few: int, monkeypatch: pytest.MonkeyPatch, data: st.DataObject) -> None:
    monkeypatch.setattr(departed_keys, "_LEAST", 3)
    monkeypatch.setattr(departed_keys, "_FEW", few)
    keys, expected = DepartedKeys(keep_us=EVER, limit=EVER), {}
    for several in data.draw(st.lists(st.lists(KEYS[kind], max_size=6), max_size=12)):
        first = keys.append(np.arange(len(several)) + keys.count)
        keys.publish(several, first)
        expected.update(zip(several, range(first, first + len(several)), strict=True))
    wanted = [expected.get(key, -1) for key in ASKED]
    assert keys.ordinals(ASKED).tolist() == wanted
    assert [keys.older(key, EVER, 0, keys.count) for key in ASKED] == [ordinal >= 0 for ordinal in wanted]
    names, ordinals, times = keys.entries()
    assert dict(zip(names, ordinals.tolist(), strict=True)) == expected
    assert ordinals.tolist() == sorted(expected.values()) == times.tolist()
    again = DepartedKeys(keep_us=EVER, limit=EVER)
    again.restore(names, ordinals, times, keys.count)
    assert again.ordinals(ASKED).tolist() == wanted


def test_a_whole_number_takes_twenty_bytes() -> None:
    keys, count = DepartedKeys(keep_us=EVER, limit=EVER), 200_000
    for begin in range(0, count, 1000):
        keys.publish(list(range(begin, begin + 1000)), keys.append(np.arange(begin, begin + 1000)))
    packed = [item for item in keys._generations if isinstance(item, departed_keys._Packed)]
    assert len(packed) <= 25
    assert sum(map(len, packed)) >= 0.75 * count
    assert sum(item.nbytes for item in packed) == 12 * sum(map(len, packed))
    assert len(keys._times) <= 1.5 * count
