"""Learner states as bytes, and their hash: canonical, safe to load, quick.

The layout, version 1: the magic ``HRS1``, the header's length (uint32, little-endian), a JSON header, then the arrays'
bytes one after another, C-contiguous and little-endian. Keys are sorted, so equal states have equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any

import numpy as np

from headrace.errors import LogCorrupt
from headrace.learn.base import State

_MAGIC = b"HRS1"
MOST_BYTES = 4 << 30


def dump_state(state: State) -> bytes:
    """A state as bytes.

    >>> load_state(dump_state({"rows": 3, "centers": np.eye(2)}))["rows"]
    3
    """
    header: dict[str, Any] = {}
    bodies: list[bytes] = []
    for key in sorted(state):
        value = state[key]
        if isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            header[key] = [little.dtype.str, list(array.shape)]
            bodies.append(little.tobytes())
        elif isinstance(value, float) and not math.isfinite(value):
            header[key] = {"float": repr(value)}
        else:
            header[key] = {"value": value}
    text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    return b"".join([_MAGIC, struct.pack("<I", len(text)), text, *bodies])


def load_state(data: bytes) -> State:
    """The inverse of `dump_state`.

    Raises:
        LogCorrupt: not such bytes.
    """
    try:
        if data[:4] != _MAGIC or len(data) > MOST_BYTES:
            raise ValueError("not a state")
        (length,) = struct.unpack_from("<I", data, 4)
        header = json.loads(data[8 : 8 + length])
        state: State = {}
        at = 8 + length
        for key in sorted(header):
            about = header[key]
            if isinstance(about, dict):
                state[key] = float(about["float"]) if "float" in about else about["value"]
                continue
            dtype = np.dtype(about[0])
            if dtype.hasobject:
                raise ValueError("objects in a state")
            count = math.prod(about[1])
            state[key] = np.frombuffer(data, dtype, count, at).reshape(about[1]).copy()
            at += count * dtype.itemsize
        if at != len(data):
            raise ValueError("bytes left over")
        return state
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise LogCorrupt(f"a stored state cannot be read: {error}", advice="Learn again from the log.") from error


def state_hash(state: State) -> str:
    """A hash of the state's canonical bytes."""
    return hashlib.blake2b(dump_state(state), digest_size=16).hexdigest()
