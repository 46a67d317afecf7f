"""Arrow arrays made of NumPy's: from numbers, from spans of a buffer, from text laid end to end."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.arrays import Bytes, Ints, Mask

_EVENS = np.arange(0, 2 * 65_536, 2, dtype=np.int64)


def validity(valid: Mask | None) -> pa.Buffer | None:
    """Arrow's bitmap of valid rows; None stands for all."""
    return None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))


def of_numbers(values: npt.NDArray[Any], arrow_type: pa.DataType, valid: Mask | None) -> pa.Array:
    """An array of fixed-width values; what stands under a null is cleared.

    >>> of_numbers(np.array([1, 2], np.int32), pa.date32(), np.array([True, False])).to_pylist()
    [datetime.date(1970, 1, 2), None]
    """
    if valid is not None:
        values[~valid] = 0
    return pa.Array.from_buffers(arrow_type, len(values), [validity(valid), pa.py_buffer(values)])


def of_bools(values: Mask, valid: Mask | None) -> pa.Array:
    """An array of booleans."""
    if valid is not None:
        values = values & valid
    bits = pa.py_buffer(np.packbits(values, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), values.size, [validity(valid), bits])


def of_spans(buffer: Bytes, start: Ints, length: Ints, arrow_type: pa.DataType, valid: Mask | None) -> pa.Array:
    """Strings or bytes that stand in ``buffer`` in row order.

    The buffer is seen as 2n-1 values, wanted ones and the gaps between them, of which Arrow takes every other.

    >>> data = np.frombuffer(b"..ab..cde", np.uint8)
    >>> of_spans(data, np.array([2, 6]), np.array([2, 3]), pa.string(), None).to_pylist()
    ['ab', 'cde']
    """
    n = start.size
    if not n:
        return pa.array([], arrow_type)
    low = int(start[0])
    offsets = np.empty(2 * n, np.int32)
    offsets[0::2] = start if not low else start - low
    np.add(offsets[0::2], length, out=offsets[1::2], casting="unsafe")
    data = pa.py_buffer(buffer[low : int(start[-1]) + int(length[-1])])
    values = pa.Array.from_buffers(arrow_type, 2 * n - 1, [None, pa.py_buffer(offsets), data])
    evens = _EVENS[:n] if n <= _EVENS.size else np.arange(0, 2 * n, 2, dtype=np.int64)
    return values.take(pa.Array.from_buffers(pa.int64(), n, [validity(valid), pa.py_buffer(evens)]))


def of_text(data: Bytes, length: Ints, arrow_type: pa.DataType, valid: Mask | None) -> pa.Array:
    """Strings or bytes laid end to end; a null's length is 0."""
    offsets = np.zeros(length.size + 1, np.int32)
    np.cumsum(length, out=offsets[1:])
    buffers = [validity(valid), pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(arrow_type, length.size, buffers)
