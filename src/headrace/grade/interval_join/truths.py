"""Whether two labels say the same, for 8 bytes a label.

Numbers are told apart by their value, whatever their type: 5 and 5.0 are one truth, and so are two NULLs, and two NaNs.
Anything else is told apart by 64 bits of a hash of it: two different labels look the same once in 10^19.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.arrays import Ints
from headrace.plain_values import values

# No number has these bits: quiet NaNs with a payload of ours.
_NULL = np.int64(0x7FF8_0000_0000_0001)
_NAN = np.int64(0x7FF8_0000_0000_0000)
# Whole numbers beyond this are not all floats.
_EXACT = 2**53


def truth_codes(truth: pa.Array) -> Ints:
    """A code for each label; equal labels have equal codes, in this run and in every other.

    >>> codes = truth_codes(pa.array([5, 6, None])), truth_codes(pa.array([5.0, 7.0, None]))
    >>> (codes[0] == codes[1]).tolist()
    [True, False, True]
    """
    if isinstance(truth, pa.ChunkedArray):
        truth = truth.combine_chunks()
    kind = truth.type
    if pa.types.is_float64(kind) and not truth.null_count:
        return _floats(truth.to_numpy())
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return _numbers(truth)
    return _hashes(truth)


def _floats(values: npt.NDArray[np.float64]) -> Ints:
    floats = values + 0.0  # -0.0 is 0.0
    codes: Ints = floats.view(np.int64)
    nan = floats != floats
    if nan.any():
        codes[nan] = _NAN
    return codes


def _numbers(truth: pa.Array) -> Ints:
    none = np.asarray(truth.is_null()) if truth.null_count else None
    filled = truth.fill_null(False if pa.types.is_boolean(truth.type) else 0) if none is not None else truth
    values = filled.to_numpy(zero_copy_only=False)
    floats = values.astype(np.float64)
    codes = _floats(floats)
    if pa.types.is_integer(truth.type):
        for i in np.flatnonzero(np.abs(floats) >= _EXACT).tolist():
            whole = int(values[i])
            if whole != int(floats[i]):
                codes[i] = _hash(whole)
    if none is not None:
        codes[none] = _NULL
    return codes


def _hashes(truth: pa.Array) -> Ints:
    """Each distinct value is hashed once, where Arrow can tell them apart."""
    try:
        encoded = truth if pa.types.is_dictionary(truth.type) else truth.dictionary_encode()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return np.array([_NULL if one is None else _hash(one) for one in values(truth)], np.int64)
    distinct = [_NULL if one is None else _hash(one) for one in values(encoded.dictionary)]
    codes = np.array([*distinct, _NULL], np.int64)
    where = encoded.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False)
    found: Ints = codes[where.astype(np.int64)]
    return found


def _hash(value: Any) -> int:
    digest = hashlib.blake2b(f"{type(value).__name__}:{value!r}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
