"""How far topics have been read: the next offset of every partition, compared as a whole."""

from __future__ import annotations

from collections.abc import Mapping

Where = tuple[str, int]


class Offsets:
    """Next offsets by (topic, partition). One is ≥ another when it is in every partition.

    >>> here = Offsets({("a", 0): 5, ("a", 1): 2})
    >>> here >= Offsets({("a", 0): 5}), here >= Offsets({("a", 0): 5, ("a", 1): 3}), here >= 0
    (True, False, True)
    """

    __slots__ = ("_next",)

    def __init__(self, offsets: Mapping[Where, int]) -> None:
        self._next = dict(offsets)

    def __ge__(self, other: object) -> bool:
        if not isinstance(other, Offsets):
            return True
        return all(self._next.get(where, 0) >= offset for where, offset in other._next.items())

    def __le__(self, other: object) -> bool:
        """With 0, which is where everything begins, on the other side."""
        return other >= self if isinstance(other, Offsets) else not any(self._next.values())

    def __lt__(self, other: object) -> bool:
        return not self >= other

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Offsets) and self._next == other._next

    __hash__ = None  # type: ignore[assignment]  # as Python itself says of a class with __eq__

    def capped(self, limits: Mapping[Where, int]) -> Offsets:
        """With some partitions no further than they may be."""
        return Offsets({where: min(offset, limits.get(where, offset)) for where, offset in self._next.items()})

    def __str__(self) -> str:
        return ", ".join(f"{topic}/{number}:{offset}" for (topic, number), offset in sorted(self._next.items()))

    __repr__ = __str__
