"""Partitions of keys, as Kafka's Java client decides: murmur2 of the key's bytes.

`org.apache.kafka.common.utils.Utils.murmur2`; librdkafka calls it ``partitioner=murmur2_random``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headrace.arrays import Ints

_SEED, _M, _R = np.uint32(0x9747B28C), np.uint32(0x5BD1E995), np.uint32(24)


def murmur2(keys: Sequence[bytes]) -> npt.NDArray[np.uint32]:
    """Return the hash of each key; keys of one length are hashed together.

    >>> [int(hashed) for hashed in murmur2([b"21", b"foobar", b"a-little-bit-long-string"]).astype(np.int32)]
    [-973932308, -790332482, -985981536]
    """
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    hashes = np.empty(len(keys), np.uint32)
    for length in np.unique(lengths).tolist():
        at = np.flatnonzero(lengths == length)
        block = np.frombuffer(b"".join([keys[i] for i in at.tolist()]), np.uint8).reshape(len(at), length)
        hashes[at] = _murmur2(block)
    return hashes


def _murmur2(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Hashes of keys of one length: shape (keys, length) to (keys,)."""
    n, length = block.shape
    h = np.full(n, _SEED ^ np.uint32(length), np.uint32)
    words = np.ascontiguousarray(block[:, : length & ~3]).view("<u4").reshape(n, length // 4)
    for word in words.T:
        k = word * _M
        k ^= k >> _R
        h = (h * _M) ^ (k * _M)
    rest = length & 3
    if rest:
        for i in range(rest - 1, -1, -1):
            h ^= block[:, (length & ~3) + i].astype(np.uint32) << np.uint32(8 * i)
        h *= _M
    h ^= h >> np.uint32(13)
    h *= _M
    h ^= h >> np.uint32(15)
    return h


def partitions_of(keys: Sequence[bytes | None], count: int, *, keyless: int) -> Ints:
    """Return the partition of each message among ``count``; messages without a key go to the partition ``keyless``.

    >>> partitions_of([b"21", None, b"foobar"], 3, keyless=2).tolist()
    [0, 2, 0]
    """
    found = np.full(len(keys), keyless, np.int64)
    if count == 1:
        found[:] = 0
        return found
    keyed = [i for i, key in enumerate(keys) if key is not None]
    if keyed:
        hashes = murmur2([key for key in keys if key is not None])
        found[keyed] = (hashes & np.uint32(0x7FFFFFFF)).astype(np.int64) % count
    return found
