"""Keys of predictions that have left: a label that comes then is late, not one that waits for a prediction.

Of each key the prediction that left last is remembered. A key is forgotten when its time is over, and when as many
predictions as may be remembered have left after it; both depend on the rows alone, not on when memory is given back.

Keys lie in generations, each at least a quarter of all: they are put into the newest, which is small and stays in the
processor's cache, and a generation is given back as a whole when all of it is forgotten. There are few: about five
while as many come as go, and their number grows only with the logarithm of what is remembered.

A generation that is full is packed where its keys are whole numbers of 64 bits, as numbers of rows are: 12 bytes a
key, and 8 for its time, where a dict takes 120. Keys are found there by their values, as in a dict; others stay in
dicts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.arrays import Ints, lasting, lasting_zeros
from headrace.grade.operator_logic import START

_LEAST = 4_096
_NOWHERE = -1
_FEW = 32


@dataclass(slots=True)
class _Generation:
    """Ordinals of keys; the first ordinal that it may hold, and the newest time of all."""

    first: int
    newest: int = START
    at: dict[Any, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.at)

    def get(self, key: Any) -> int:
        return self.at.get(key, _NOWHERE)

    def find(self, keys: list[Any]) -> Ints:
        return np.fromiter(map(self.at.get, keys, repeat(_NOWHERE)), np.int64, len(keys))

    def entries(self) -> tuple[list[Any], Ints]:
        return list(self.at), np.fromiter(self.at.values(), np.int64, len(self.at))


class _Packed:
    """A generation of whole numbers that nothing is put into any more.

    Args:
        keys: in order. ordinals: theirs.
    """

    __slots__ = ("_keys", "_most", "_offsets", "_smallest", "first", "newest")

    def __init__(self, first: int, newest: int, keys: Ints, ordinals: Ints) -> None:
        self.first, self.newest = first, newest
        self._keys = lasting(keys)
        self._smallest, self._most = int(keys[0]), int(keys[-1])
        offsets = ordinals - first
        self._offsets: npt.NDArray[Any] = lasting(offsets.astype(np.uint32) if offsets.max() < 2**32 else offsets)

    @classmethod
    def of(cls, full: _Generation) -> _Packed | None:
        """Return a generation packed; None where its keys are others."""
        if type(next(iter(full.at), None)) is not int or set(map(type, full.at)) != {int}:
            return None
        try:
            keys = np.fromiter(full.at, np.int64, len(full.at))
        except OverflowError:
            return None
        ordinals = np.fromiter(full.at.values(), np.int64, len(keys))
        order = np.argsort(keys, kind="stable")
        return cls(full.first, full.newest, keys[order], ordinals[order])

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._offsets.nbytes

    def get(self, key: Any) -> int:
        # What equals a whole number is found by it, as in a dict: 1.0 and True are 1.
        if not isinstance(key, int | float) or not self._smallest <= key <= self._most:
            return _NOWHERE
        asked = int(key)
        at = int(self._keys.searchsorted(asked))
        return self.first + int(self._offsets[at]) if self._keys[at] == asked == key else _NOWHERE

    def find(self, keys: list[Any]) -> Ints:
        if len(keys) <= _FEW or set(map(type, keys)) != {int}:
            return np.fromiter(map(self.get, keys), np.int64, len(keys))
        try:
            asked = np.fromiter(keys, np.int64, len(keys))
        except OverflowError:
            return np.fromiter(map(self.get, keys), np.int64, len(keys))
        found = np.full(len(keys), _NOWHERE)
        inside = np.flatnonzero((asked >= self._smallest) & (asked <= self._most))
        at = self._keys.searchsorted(asked[inside])
        hit = self._keys[at] == asked[inside]
        found[inside[hit]] = self.first + self._offsets[at[hit]].astype(np.int64)
        return found

    def entries(self) -> tuple[list[Any], Ints]:
        return self._keys.tolist(), self.first + self._offsets.astype(np.int64)


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
        self._generations: list[_Generation | _Packed] = [self._young]
        self._base = 0  # ordinal of the first time that is kept
        self._times = np.empty(64, np.int64)

    def __len__(self) -> int:
        return sum(map(len, self._generations))

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
            self._generations[-1] = _Packed.of(self._young) or self._young
            self._young = _Generation(first)
            self._generations.append(self._young)

    def _room(self, count: int) -> None:
        used = self.count - self._base
        if used + count > len(self._times):
            grown = lasting_zeros(max(used + count, len(self._times) * 3 // 2), np.int64)
            grown[:used] = self._times[:used]
            self._times = grown

    def older(self, key: Any, time: int, watermark: int, departed: int) -> bool:
        """Return whether a prediction of the key is remembered that is not newer than this time.

        Args:
            watermark, departed: as they are when it is asked.
        """
        for generation in reversed(self._generations):
            ordinal = generation.get(key)
            if ordinal != _NOWHERE:
                of = int(self._times[ordinal - self._base])
                return ordinal >= departed - self.limit and of <= time and watermark <= of + self.keep_us
        return False

    def ordinals(self, keys: list[Any]) -> Ints:
        """Return the ordinal of each key's last prediction, -1 where none is known; some may be forgotten already."""
        found = np.full(len(keys), -1)
        missing = np.arange(len(keys))
        for generation in reversed(self._generations):
            asked = keys if len(missing) == len(keys) else [keys[i] for i in missing.tolist()]
            if len(generation) and asked:
                found[missing] = generation.find(asked)
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
            if len(generation) and end > oldest and generation.newest + self.keep_us >= watermark
        ]
        if len(kept) == len(self._generations):
            return
        if not kept or kept[-1] is not self._young:
            self._young = _Generation(self.count)
            kept.append(self._young)
        self._generations = kept
        gone, used = kept[0].first - self._base, self.count - self._base
        if 2 * gone > used:
            self._times = lasting(self._times[gone:used])
            self._base += gone

    def entries(self) -> tuple[list[Any], Ints, Ints]:
        """Return keys, ordinals and times of what is known, in order."""
        keys: list[Any] = []
        ordinals: list[Ints] = []
        for generation in self._generations:
            own, at = generation.entries()
            newest = self.ordinals(own) == at
            keys.extend(
                own if newest.all() else [key for key, is_newest in zip(own, newest.tolist(), strict=True) if is_newest]
            )
            ordinals.append(at[newest])
        known = np.concatenate(ordinals)
        order = np.argsort(known, kind="stable")
        return [keys[i] for i in order.tolist()], known[order], self.times(known[order])

    def restore(self, keys: list[Any], ordinals: Ints, times: Ints, departed: int) -> None:
        """Become what `entries` was taken of."""
        self.count = departed
        self._base = int(ordinals[0]) if len(keys) else departed
        self._times = lasting_zeros(max(64, departed - self._base), np.int64)
        self._times[ordinals - self._base] = times
        newest = int(times.max()) if len(keys) else START
        self._young = _Generation(self._base, newest, dict(zip(keys, ordinals.tolist(), strict=True)))
        self._generations = [self._young]
        self._rotate(departed)
