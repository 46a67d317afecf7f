"""The index of places by hashes: against a dict, with runs in memory and in files."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.capture.postgres import row_places
from headrace.capture.postgres.row_places import RowPlaces


@pytest.mark.parametrize("limits", [(1 << 16, 1 << 20), (8, 16)], ids=["as it is", "in files and windows"])
def test_the_newest_place_of_each(limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_places, "_IN_MEMORY", limits[0])
    monkeypatch.setattr(row_places, "_WINDOW", limits[1])
    rng = np.random.default_rng(5)
    ends = np.array([0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1], np.uint64)
    keys = np.concatenate([ends, rng.integers(0, 1 << 64, 500, np.uint64)])
    places, expected, place = RowPlaces(), {}, 0
    assert places.find(keys).tolist() == [-1] * keys.size
    for size in rng.integers(0, 90, 120).tolist():
        some = rng.choice(keys[::2], size)
        places.add(some, np.arange(place, place + size))
        expected.update(zip(some.tolist(), range(place, place + size), strict=True))
        place += size
    assert places.find(keys).tolist() == [expected.get(key, -1) for key in keys.tolist()]
    assert len(places._runs) < 12
