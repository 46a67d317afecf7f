"""Where each key's newest row lies, by the hash of the key: an index that is made anew when it is needed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.arrays import Ints
from headrace.value_hashes import Hashes

_IN_MEMORY = 1 << 16  # entries of a run; longer ones lie in files without names
_WINDOW = 1 << 20  # entries that are merged at a time


@dataclass(frozen=True, slots=True)
class _Run:
    """Hashes, each once and in order, and a place for each."""

    hashes: Hashes
    places: Ints

    def __len__(self) -> int:
        return int(self.hashes.size)


class RowPlaces:
    """The newest place of each hash, as sorted runs of which a newer one counts before an older one.

    A run is merged with the one before it when that is not twice as long: there are few, and each entry is written
    about as often as there are. Long ones are mapped from temporary files, 16 bytes an entry.

    >>> places = RowPlaces()
    >>> places.add(np.array([7, 5, 7], np.uint64), np.array([0, 1, 2]))
    >>> places.find(np.array([5, 6, 7], np.uint64)).tolist()
    [1, -1, 2]
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def add(self, hashes: Hashes, places: Ints) -> None:
        """Note places, in their order, which lie behind all that were noted before."""
        if not hashes.size:
            return
        order = np.argsort(hashes, kind="stable")
        self._runs.append(_newest(hashes[order], places[order]))
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            newer, older = self._runs.pop(), self._runs.pop()
            self._runs.append(_merged(older, newer))

    def find(self, hashes: Hashes) -> Ints:
        """Return the newest place of each hash; -1 for one that has none."""
        found = np.full(hashes.size, -1)
        for run in reversed(self._runs):
            missing = np.flatnonzero(found < 0)
            at = np.minimum(np.searchsorted(run.hashes, hashes[missing]), len(run) - 1)
            there = run.hashes[at] == hashes[missing]
            found[missing[there]] = run.places[at[there]]
        return found


def _newest(hashes: Hashes, places: Ints) -> _Run:
    """Return a run of sorted hashes; of equal ones the last counts."""
    last = np.append(hashes[1:] != hashes[:-1], True)
    return _Run(hashes[last], places[last])


def _merged(older: _Run, newer: _Run) -> _Run:
    """Return one run of two, made in windows of hashes, so that it takes no more memory however long they are."""
    n = len(older) + len(newer)
    hashes, places = _array(n, np.uint64), _array(n, np.int64)
    windows = -(-n // _WINDOW)
    edges = np.array([window * ((1 << 64) // windows) for window in range(1, windows)], np.uint64)
    bounds = [np.concatenate([[0], np.searchsorted(run.hashes, edges), [len(run)]]) for run in (older, newer)]
    filled = 0
    for window in range(windows):
        parts = [(run, slice(at[window], at[window + 1])) for run, at in zip((older, newer), bounds, strict=True)]
        some = np.concatenate([run.hashes[rows] for run, rows in parts])
        order = np.argsort(some, kind="stable")
        part = _newest(some[order], np.concatenate([run.places[rows] for run, rows in parts])[order])
        hashes[filled : filled + len(part)], places[filled : filled + len(part)] = part.hashes, part.places
        filled += len(part)
    return _Run(hashes[:filled], places[:filled])


def _array(n: int, kind: Any) -> Any:
    """Return an array to be filled; a long one lies in a file that is gone with it."""
    if n <= _IN_MEMORY:
        return np.empty(n, kind)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, kind, "w+", shape=(n,))
