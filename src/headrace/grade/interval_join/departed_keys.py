"""Keys of predictions that have left: a label that comes then is late, not one that waits for a prediction.

Of each key the prediction that left last is remembered. A key is forgotten when its time is over, and when as many
predictions as may be remembered have left after it; both depend on the rows alone, not on when memory is given back.

Keys lie in generations, each at least a quarter of all: they are put into the newest, which is small and stays in the
processor's cache, and a generation is given back as a whole when all of it is forgotten. There are few: about five
while as many come as go, and their number grows only with the logarithm of what is remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np

from headrace.arrays import Ints
from headrace.grade.operator_logic import START

_LEAST = 4_096


@dataclass(slots=True)
class _Generation:
    """Ordinals of keys; the first ordinal that it may hold, and the newest time of all."""

    first: int
    newest: int = START
    at: dict[Any, int] = field(default_factory=dict)


class DepartedKeys:
    """Keys, and the event times of their predictions. A prediction that leaves has an ordinal: 0, 1, 2, …

    Args:
        keep_us: how long after a prediction's time it is remembered, in event time.
        limit: how many that left are remembered.

    >>> keys = DepartedKeys(keep_us=100, limit=10)
    >>> keys.add("a", 50)
    >>> [keys.older("a", time, watermark, 1) for time, watermark in ((60, 70), (40, 70), (60, 151))]
    [True, False, False]
    """

    __slots__ = ("_base", "_generations", "_times", "_young", "count", "keep_us", "limit")

    def __init__(self, *, keep_us: int, limit: int) -> None:
        self.keep_us, self.limit = keep_us, limit
        self.count = 0  # how many have left since the beginning; the next one's ordinal
        self._young = _Generation(0)
        self._generations = [self._young]
        self._base = 0  # ordinal of the first time that is kept
        self._times = np.empty(64, np.int64)

    def __len__(self) -> int:
        return sum(len(generation.at) for generation in self._generations)

    def add(self, key: Any, time: int) -> None:
        """Remember a prediction that leaves."""
        self._room(1)
        self._times[self.count - self._base] = time
        self.count += 1
        self._rotate(self.count - 1)
        self._young.newest = max(self._young.newest, time)
        self._young.at[key] = self.count - 1

    def append(self, times: Ints) -> int:
        """Let predictions leave, in this order; they are not seen before `publish`. Returns the first's ordinal."""
        self._room(len(times))
        first = self.count
        self._times[first - self._base : first - self._base + len(times)] = times
        self.count += len(times)
        return first

    def publish(self, keys: list[Any], first: int) -> None:
        """Show predictions that were appended; ``first`` is the ordinal of the first of them."""
        if not keys:
            return
        self._rotate(first)
        times = self._times[first - self._base : first - self._base + len(keys)]
        self._young.newest = max(self._young.newest, int(times.max()))
        self._young.at.update(zip(keys, range(first, first + len(keys)), strict=True))

    def show(self, key: Any, ordinal: int) -> None:
        """Show one of them before the others."""
        self._young.at[key] = ordinal
        self._young.newest = max(self._young.newest, int(self._times[ordinal - self._base]))

    def _rotate(self, first: int) -> None:
        """Begin a generation with this ordinal, if the newest is large enough."""
        size = first - self._young.first
        if size >= _LEAST and 4 * size >= first - self._generations[0].first:
            self._young = _Generation(first)
            self._generations.append(self._young)

    def _room(self, count: int) -> None:
        used = self.count - self._base
        if used + count > len(self._times):
            grown = np.empty(max(used + count, len(self._times) * 3 // 2), np.int64)
            grown[:used] = self._times[:used]
            self._times = grown

    def older(self, key: Any, time: int, watermark: int, departed: int) -> bool:
        """Return whether a prediction of the key is remembered that is not newer than this time.

        Args:
            watermark, departed: as they are when it is asked.
        """
        for generation in reversed(self._generations):
            ordinal = generation.at.get(key)
            if ordinal is not None:
                of = int(self._times[ordinal - self._base])
                return ordinal >= departed - self.limit and of <= time and watermark <= of + self.keep_us
        return False

    def ordinals(self, keys: list[Any]) -> Ints:
        """Return the ordinal of each key's last prediction, -1 where none is known; some may be forgotten already."""
        found = np.full(len(keys), -1)
        missing = np.arange(len(keys))
        for generation in reversed(self._generations):
            asked = keys if len(missing) == len(keys) else [keys[i] for i in missing.tolist()]
            if generation.at and asked:
                found[missing] = np.fromiter(map(generation.at.get, asked, repeat(-1)), np.int64, len(asked))
                missing = missing[found[missing] < 0]
        return found

    def times(self, ordinals: Ints) -> Ints:
        """Return event times of predictions that are known."""
        found: Ints = self._times[ordinals - self._base]
        return found

    def forget(self, watermark: int) -> None:
        """Give back the memory of generations that are forgotten."""
        ends = [*(generation.first for generation in self._generations[1:]), self.count]
        oldest = self.count - self.limit
        kept = [
            generation
            for generation, end in zip(self._generations, ends, strict=True)
            if generation.at and end > oldest and generation.newest + self.keep_us >= watermark
        ]
        if len(kept) == len(self._generations):
            return
        if not kept or kept[-1] is not self._young:
            self._young = _Generation(self.count)
            kept.append(self._young)
        self._generations = kept
        gone, used = kept[0].first - self._base, self.count - self._base
        if 2 * gone > used:
            self._times = self._times[gone:used].copy()
            self._base += gone

    def entries(self) -> tuple[list[Any], Ints, Ints]:
        """Return keys, ordinals and times of what is known, in order."""
        at: dict[Any, int] = {}
        for generation in self._generations:
            at.update(generation.at)
        keys = sorted(at, key=at.__getitem__)
        ordinals = np.fromiter(map(at.__getitem__, keys), np.int64, len(keys))
        return keys, ordinals, self.times(ordinals)

    def restore(self, keys: list[Any], ordinals: Ints, times: Ints, departed: int) -> None:
        """Become what `entries` was taken of."""
        self.count = departed
        self._base = int(ordinals[0]) if len(keys) else departed
        self._times = np.zeros(max(64, departed - self._base), np.int64)
        self._times[ordinals - self._base] = times
        newest = int(times.max()) if len(keys) else START
        self._young = _Generation(self._base, newest, dict(zip(keys, ordinals.tolist(), strict=True)))
        self._generations = [self._young]
