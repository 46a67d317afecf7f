"""Images and vectors as features: bytes of pixels, arrays of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import DeclarationError

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Image:
    """See `image`."""

    column: str
    shape: tuple[int, ...]
    scale: float
    dtype: type = np.float32

    def block(self, array: pa.Array, valid: Mask, reasons: dict[int, str]) -> npt.NDArray[np.float32]:
        """Shape (n, pixels), float32."""
        size = math.prod(self.shape)
        if not _is_binary(array.type):
            _mark(
                np.flatnonzero(array.is_valid().to_numpy(False)),
                f"«{self.column}» is {array.type}, no bytes",
                valid,
                reasons,
            )
            array = pa.nulls(len(array), pa.binary())
        lengths = pc.fill_null(pc.binary_length(array), -1).to_numpy(zero_copy_only=False)
        _mark(np.flatnonzero(lengths < 0), f"the image «{self.column}» is NULL", valid, reasons)
        for row in np.flatnonzero((lengths >= 0) & (lengths != size)).tolist():
            reasons.setdefault(row, f"the image «{self.column}» has {lengths[row]} bytes, not {size}")
            valid[row] = False
        good = lengths == size
        found = np.zeros((len(array), size), np.float32)
        if good.any():
            kept = array if good.all() else array.filter(pa.array(good))
            pixels = np.frombuffer(kept.cast(pa.binary(size)).buffers()[1], np.uint8)
            start = kept.cast(pa.binary(size)).offset * size
            pixels = pixels[start : start + len(kept) * size].reshape(-1, size)
            found[good] = pixels * np.float32(self.scale)
        return found

    def describe(self) -> Any:
        return {"image": self.column, "shape": list(self.shape), "scale": self.scale}


@dataclass(frozen=True, slots=True)
class Vector:
    """See `vector`."""

    column: str
    size: int | None
    dtype: type = np.float32

    def block(self, array: pa.Array, valid: Mask, reasons: dict[int, str]) -> npt.NDArray[np.float32]:
        """Shape (n, size), float32; while no size is known, (n, 1) of zeros."""
        n = len(array)
        array = _listed(array)
        if self.size is None:
            _mark(
                np.flatnonzero(array.is_null().to_numpy(False)), f"the vector «{self.column}» is NULL", valid, reasons
            )
            return np.zeros((n, 1), np.float32)
        found = np.zeros((n, self.size), np.float32)
        if not (
            pa.types.is_list(array.type)
            or pa.types.is_large_list(array.type)
            or pa.types.is_fixed_size_list(array.type)
        ):
            _mark(
                np.flatnonzero(array.is_valid().to_numpy(False)),
                f"«{self.column}» is {array.type}, no vector",
                valid,
                reasons,
            )
            _mark(
                np.flatnonzero(array.is_null().to_numpy(False)), f"the vector «{self.column}» is NULL", valid, reasons
            )
            return found
        lengths = pc.fill_null(pc.list_value_length(array), -1).to_numpy(zero_copy_only=False)
        _mark(np.flatnonzero(lengths < 0), f"the vector «{self.column}» is NULL", valid, reasons)
        for row in np.flatnonzero((lengths >= 0) & (lengths != self.size)).tolist():
            reasons.setdefault(row, f"the vector «{self.column}» has {lengths[row]} numbers, not {self.size}")
            valid[row] = False
        good = lengths == self.size
        items = array.filter(pa.array(good)).flatten()
        numbers = pc.fill_null(items.cast(pa.float32(), safe=False), math.nan).to_numpy(zero_copy_only=False)
        found[good] = numbers.reshape(-1, self.size)
        odd = np.flatnonzero(~np.isfinite(found).all(axis=1))
        _mark(odd, f"the vector «{self.column}» holds a number that is NULL, NaN or infinite", valid, reasons)
        return found

    def sized(self, array: pa.Array, rows: npt.NDArray[np.int64]) -> int | None:
        """How many numbers the first of some rows has, of those that have any."""
        lengths = pc.drop_null(_lengths(_listed(array.take(pa.array(rows)))))
        return int(lengths[0].as_py()) if len(lengths) and lengths[0].as_py() else None

    def describe(self) -> Any:
        return {"vector": self.column, "size": self.size}


def image(column: str, *, shape: Sequence[int], scale: float = 1.0) -> Image:
    """A column of bytes, one a pixel, as features: ``X`` has a float32 column for each pixel, in the bytes' order.

    Args:
        column: a BYTEA column.
        shape: of one image; a row whose bytes are not so many is refused.
        scale: what each pixel (0 to 255) is multiplied with, ``1/255`` for example.

    >>> import headrace as hr
    >>> hr.image("pixels", shape=(28, 28), scale=1 / 255).column
    'pixels'
    """
    sizes = tuple(int(one) for one in shape)
    if not column or not sizes or any(one < 1 for one in sizes):
        raise DeclarationError(f"an image «{column}» of shape {shape}", advice="Give a column and positive sizes.")
    if not math.isfinite(scale):
        raise DeclarationError(f"the image «{column}» is scaled by {scale}", advice="Give a finite number.")
    return Image(column, sizes, float(scale))


def vector(column: str, *, size: int | None = None) -> Vector:
    """A column of arrays, or of pgvector's type, as features: ``X`` has a float32 column for each number.

    Args:
        column: an array of numbers.
        size: how many numbers a row has; another row is refused. As many as the first learned row has, if left out.

    >>> import headrace as hr
    >>> hr.vector("embedding", size=384).size
    384
    """
    if not column or (size is not None and size < 1):
        raise DeclarationError(f"a vector «{column}» of {size} numbers", advice="Give a column and a positive size.")
    return Vector(column, None if size is None else int(size))


def _listed(array: pa.Array) -> pa.Array:
    """pgvector's text, such as ``[1,2.5]``, as a list; anything else as it is."""
    if not pa.types.is_string(array.type):
        return array
    parts = pc.split_pattern(pc.utf8_trim(array, characters="[]{} "), ",")
    try:
        numbers = parts.flatten().cast(pa.float32())
    except pa.ArrowInvalid:
        return array
    offsets = np.concatenate([[0], np.cumsum(pc.fill_null(pc.list_value_length(parts), 0).to_numpy(False))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), numbers, mask=parts.is_null())


def _lengths(array: pa.Array) -> pa.Array:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return pc.list_value_length(array) if any(is_one(array.type) for is_one in kinds) else pa.nulls(len(array))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _mark(rows: npt.NDArray[np.int64], reason: str, valid: Mask, reasons: dict[int, str]) -> None:
    for row in rows.tolist():
        reasons.setdefault(row, reason)
    valid[rows] = False
