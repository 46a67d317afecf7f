"""Keys of predictions that have left: a label that comes then is late, not one that waits for a prediction.

Of each key the prediction that left last is remembered. A key is forgotten when its time is over, and when as many
predictions as may be remembered have left after it; both depend on the rows alone, not on when memory is given back.
"""

from __future__ import annotations

from itertools import repeat
from typing import Any

import numpy as np

from headrace.wire import Ints

_BLOCK = 65_536


class Remembered:
    """Keys, and the event times of their predictions.

    Args:
        keep_us: how long after a prediction's time it is remembered, in event time.
        limit: how many that left are remembered.

    >>> keys = Remembered(keep_us=100, limit=10)
    >>> keys.add("a", 50)
    >>> [keys.older("a", time, watermark, 1) for time, watermark in ((60, 70), (40, 70), (60, 151))]
    [True, False, False]
    """

    __slots__ = ("_head", "_keys", "_times", "at", "departed", "keep_us", "limit")

    def __init__(self, *, keep_us: int, limit: int) -> None:
        self.keep_us, self.limit = keep_us, limit
        self.at: dict[Any, int] = {}
        self.departed = 0  # how many have left since the beginning; the next one's ordinal
        self._keys: list[Any] = []
        self._times = np.empty(64, np.int64)
        self._head = 0  # entries of the lists that are forgotten

    @property
    def _base(self) -> int:
        """Ordinal of the lists' first entry."""
        return self.departed - len(self._keys)

    def add(self, key: Any, time: int) -> None:
        """A prediction has left."""
        self._room(1)
        self._times[len(self._keys)] = time
        self._keys.append(key)
        self.at[key] = self.departed
        self.departed += 1

    def append(self, keys: list[Any], times: Ints) -> int:
        """Predictions leave, in this order; they are not to be seen before `publish`. Returns the first's ordinal."""
        self._room(len(keys))
        begin = len(self._keys)
        self._times[begin : begin + len(keys)] = times
        self._keys.extend(keys)
        self.departed += len(keys)
        return self.departed - len(keys)

    def publish(self, first: int) -> None:
        """Show what was appended with ordinals from this one on."""
        keys = self._keys[first - self._base :]
        self.at.update(zip(keys, range(first, self.departed), strict=True))

    def _room(self, count: int) -> None:
        need = len(self._keys) + count
        if need > len(self._times):
            grown = np.empty(max(need, len(self._times) * 3 // 2), np.int64)
            grown[: len(self._keys)] = self._times[: len(self._keys)]
            self._times = grown

    def older(self, key: Any, time: int, watermark: int, departed: int) -> bool:
        """Whether a prediction of the key is remembered that is not newer than this time.

        Args:
            watermark, departed: as they are when it is asked.
        """
        ordinal = self.at.get(key)
        if ordinal is None or ordinal < departed - self.limit:
            return False
        of = int(self._times[ordinal - self._base])
        return of <= time and watermark <= of + self.keep_us

    def times(self, ordinals: Ints) -> Ints:
        """Event times of predictions that are remembered."""
        found: Ints = self._times[ordinals - self._base]
        return found

    def forget(self, watermark: int) -> None:
        """Give back the memory of keys that are forgotten: the oldest, up to the first whose time is not over."""
        size = len(self._keys)
        head = max(self._head, size - self.limit)
        while head < size and self._times[head] + self.keep_us < watermark:
            over = self._times[head : head + _BLOCK] + self.keep_us < watermark
            head += len(over) if over.all() else int(over.argmin())
        if head == self._head:
            return
        self._delete(self._keys[self._head : head], self._base + self._head)
        self._head = head
        if 2 * head > size:
            del self._keys[:head]
            self._times = self._times[head:size].copy()
            self._head = 0

    def _delete(self, keys: list[Any], first: int) -> None:
        """Take keys out, except those that were remembered again since."""
        at = self.at
        if len(keys) < 16:
            for i, key in enumerate(keys):
                if at.get(key) == first + i:
                    del at[key]
            return
        held = np.fromiter(map(at.pop, keys, repeat(-1)), np.int64, len(keys))
        for i in np.flatnonzero(held >= first + len(keys)).tolist():
            # Remembered again since; the key was taken out by its older entry.
            at[keys[i]] = int(held[i])

    def entries(self) -> tuple[list[Any], Ints, Ints]:
        """Keys, ordinals and times of what is remembered, in order."""
        ordinals = np.sort(np.fromiter(self.at.values(), np.int64, len(self.at)))
        keys = [self._keys[i] for i in (ordinals - self._base).tolist()]
        return keys, ordinals, self.times(ordinals)

    def restore(self, keys: list[Any], ordinals: Ints, times: Ints, departed: int) -> None:
        """Become what `entries` was taken of."""
        base = int(ordinals[0]) if len(keys) else departed
        self.departed = departed
        self._head = 0
        self._keys = [None] * (departed - base)
        self._times = np.full(departed - base, np.iinfo(np.int64).min // 4)
        at = ordinals - base
        self._times[at] = times
        for i, key in zip(at.tolist(), keys, strict=True):
            self._keys[i] = key
        self.at = dict(zip(keys, ordinals.tolist(), strict=True))
