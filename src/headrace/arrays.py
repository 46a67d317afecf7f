"""Types of the NumPy arrays that rows are handled in."""

from __future__ import annotations

import mmap
import sys
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Number = TypeVar("Number", bound=np.number[Any])
# An array from here on has pages of its own.
_LARGE = 1 << 17


def lasting_zeros(count: int, kind: type[Number]) -> npt.NDArray[Number]:
    """Return zeros for what lives long and grows.

    Large ones are pages of the system's own: memory is taken as it is written to, and all of it goes back when the
    array goes. Of malloc they would leave holes between what outlives them, more of them the more they have grown.
    """
    size = count * np.dtype(kind).itemsize
    if size < _LARGE or sys.platform == "win32":
        return np.zeros(count, kind)
    # Private: what a forked process writes is its own.
    return np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), kind)


def lasting(array: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Return a copy that lives long."""
    copy = lasting_zeros(len(array), array.dtype.type)
    copy[:] = array
    return copy
