"""A learner's state as canonical bytes: stored with commits, hashed for model versions, sent between machines.

Equal states give equal bytes: names are sorted, arrays are in C order and little-endian, -0.0 and the bits of a
NaN are kept as they are. Nothing in the bytes is ever executed (no pickle), and a length in them is believed only
after it was compared with the bytes that are there.

::

    offset  bytes
    0       3      "HRS"
    3       1      version of the layout: 1
    4       16     digest of all that follows: BLAKE2b; also `state_hash`, where there is no seal
    20      4      length of the header, little-endian
    24      …      header: JSON, a list of [name, kind, value], sorted by name
    …       …      the arrays' bytes, one after the other, in the header's order

=====  =====================================================  =============================
kind   value                                                  comes back as
=====  =====================================================  =============================
n      null                                                   None
b      true or false                                          bool
i      hexadecimal digits, in a string                        int, of any size
f      the 8 bytes of the double, little-endian, as hex       float
s      the text, in ASCII with JSON's escapes                 str
a      [dtype such as "<f8", shape]                           NumPy array, writable
=====  =====================================================  =============================

A NumPy scalar comes back as an array without dimensions. There is no zip around it, as `numpy.savez` makes one:
a small state is written with every commit, and this takes 10 µs where the zip takes 75.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import LearnError, LogCorrupt, LogVersionError
from headrace.learn.base import State

MAGIC = b"HRS"
VERSION = 1
LIMIT = 1 << 30
"""Bytes beyond which `load_state` refuses, unless told otherwise: 1 GiB."""

SEAL = "@"

_DIGEST = 16
_DOUBLE, _LENGTH = struct.Struct("<d"), struct.Struct("<I")
_HEADER_AT = len(MAGIC) + 1 + _DIGEST
_BEGIN = MAGIC + bytes((VERSION,))
_COPIED = 1 << 16  # bytes up to which a copy is cheaper than two views
_encode = json.JSONEncoder(separators=(",", ":")).encode
_ITEM_BYTES = {"b": 1, "i": 8, "u": 8, "f": 8, "c": 16, "m": 8, "M": 8, "S": LIMIT, "U": LIMIT}  # largest, by kind


def dump_state(state: State) -> bytes:
    """Return the state as bytes, in the layout of this module.

    Raises:
        LearnError: a name is not text, or a value is neither a plain one nor an array of numbers, text or times.

    >>> dump_state({"weights": np.ones(3), "rows": 7})[:4]
    b'HRS\\x01'
    """
    return b"".join(dump_pieces(state))


def dump_pieces(state: State) -> list[bytes | memoryview]:
    """Return the bytes of `dump_state` in pieces: a head, and each array by itself, which two states may share.

    Raises:
        LearnError: as for `dump_state`.

    >>> [len(piece) for piece in dump_pieces({"weights": np.ones(3), "rows": 7})][1:]
    [24]
    """
    length, *arrays = _body(state)
    return [b"".join((_BEGIN, _digest([length, *arrays]), length)), *arrays]


def state_hash(state: State) -> str:
    """Return the digest of a state, 32 hexadecimal digits; equal exactly when `dump_state` gives equal bytes.

    Seals are left out: what begins with ``@`` says who wrote a state, not what it is.

    Raises:
        LearnError: as for `dump_state`.

    >>> state_hash({"a": 1, "b": None}) == state_hash({"b": None, "a": 1}) != state_hash({"a": 1.0, "b": None})
    True
    """
    return _digest(_body({name: value for name, value in state.items() if not str(name).startswith(SEAL)})).hex()


def load_state(data: bytes, *, limit: int = LIMIT) -> State:
    """Return the inverse of `dump_state`. The arrays are writable copies.

    Args:
        data: what `dump_state` gave.
        limit: refuse more bytes than these.

    Raises:
        LogCorrupt: the bytes are torn, changed, too many, or no state.
        LogVersionError: written by a newer Headrace.

    >>> load_state(dump_state({"weights": np.ones(3), "rows": 7}))
    {'rows': 7, 'weights': array([1., 1., 1.])}
    """
    data = bytes(data)
    if len(data) > limit:
        raise LogCorrupt(f"a stored state has {len(data):,} bytes, more than the {limit:,} allowed")
    if data[: len(MAGIC)] != MAGIC or len(data) < _HEADER_AT + _LENGTH.size:
        raise LogCorrupt(f"not a stored state: {len(data)} bytes that begin with {bytes(data[:4])!r}")
    if data[len(MAGIC)] != VERSION:
        raise LogVersionError(
            f"a stored state is in layout {data[len(MAGIC)]}, this Headrace reads {VERSION}",
            advice="Upgrade Headrace.",
        )
    if _digest([memoryview(data)[_HEADER_AT:]]) != data[len(MAGIC) + 1 : _HEADER_AT]:
        raise LogCorrupt("a stored state's digest does not match its bytes", advice="Restore an earlier checkpoint.")
    try:
        return _parse(data)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, RecursionError, struct.error) as error:
        raise LogCorrupt(f"a stored state cannot be read: {error}") from error


def _digest(body: Sequence[bytes | memoryview]) -> bytes:
    digest = hashlib.blake2b(body[0], digest_size=_DIGEST)
    for piece in body[1:]:
        digest.update(piece)
    return digest.digest()


def _body(state: Mapping[str, Any]) -> list[bytes | memoryview]:
    """Return what follows the digest, in pieces."""
    if not all(isinstance(name, str) for name in state):
        raise LearnError(f"names in a learner's state must be text: {list(state)}")
    entries, arrays = [], []
    for name in sorted(state):
        kind, value, array = _entry(name, state[name])
        entries.append((name, kind, value))
        if array is not None:
            arrays.append(array)
    header = _encode(entries).encode()
    return [_LENGTH.pack(len(header)) + header, *arrays]


def _entry(name: str, value: Any) -> tuple[str, Any, bytes | memoryview | None]:
    """Return kind and value for the header, and an array's bytes."""
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        if not _storable(array.dtype):
            raise _refused(name, f"an array of {array.dtype}")
        if array.dtype.str[0] == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        large = array.nbytes > _COPIED and array.flags.c_contiguous
        return "a", (array.dtype.str, array.shape), array.reshape(-1).view(np.uint8).data if large else array.tobytes()
    if value is None:
        return "n", None, None
    if isinstance(value, bool):
        return "b", value, None
    if isinstance(value, int):
        return "i", format(value, "x"), None
    if isinstance(value, float):
        return "f", _DOUBLE.pack(value).hex(), None
    if isinstance(value, str):
        return "s", value, None
    raise _refused(name, f"a {type(value).__name__}")


def _storable(dtype: np.dtype[Any]) -> bool:
    """Return whether an item's bytes are its whole value: no objects, no fields, no padded long doubles."""
    return 0 < dtype.itemsize <= _ITEM_BYTES.get(dtype.kind, 0)


def _refused(name: str, what: str) -> LearnError:
    return LearnError(
        f"a learner's state holds {what} under «{name}»",
        advice="Use NumPy arrays of numbers, int, float, str, bool and None.",
    )


def _parse(data: bytes) -> State:
    start = _HEADER_AT + _LENGTH.size
    end = start + _LENGTH.unpack_from(data, _HEADER_AT)[0]
    entries = json.loads(data[start:end])
    names = [_checked(name, str) for name, _, _ in _checked(entries, list)]
    if names != sorted(set(names)):
        raise ValueError("names are not sorted")
    state: State = {}
    for name, kind, value in entries:
        if kind == "a":
            state[name], end = _array(data, end, *value)
        else:
            state[name] = _SCALARS[kind](value)
    if end != len(data):
        raise ValueError(f"{len(data)} bytes, the header announces {end}")
    return state


_SCALARS: dict[str, Callable[[Any], int | float | str | bool | None]] = {
    "n": lambda value: _checked(value, type(None)),
    "b": lambda value: _checked(value, bool),
    "s": lambda value: _checked(value, str),
    "i": lambda value: int(value, 16),
    "f": lambda value: float(_DOUBLE.unpack(bytes.fromhex(value))[0]),
}


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _array(data: bytes, at: int, name: str, shape: list[int]) -> tuple[npt.NDArray[Any], int]:
    dtype = np.dtype(name)
    if not _storable(dtype) or min(shape, default=0) < 0:
        raise ValueError(f"an array of {name!r}, shape {shape}")
    count = math.prod(shape)
    end = at + count * dtype.itemsize
    if end > len(data):
        raise ValueError(f"{len(data)} bytes, an array ends at {end}")
    return np.frombuffer(data, dtype, count, at).reshape(shape).copy(), end
