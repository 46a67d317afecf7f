"""Images and vectors as features: bytes of pixels, arrays of numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arguments import checked
from headrace.arrays import Mask
from headrace.errors import DeclarationError
from headrace.plain_values import values


@dataclass(frozen=True, slots=True)
class Image:
    """See `image`."""

    column: str
    shape: tuple[int, ...]
    scale: float
    dtype: type = field(default=np.float32, repr=False)

    def block(self, array: pa.Array, valid: Mask, reasons: dict[int, str]) -> npt.NDArray[np.float32]:
        """Return features of shape (n, pixels), float32."""
        size = math.prod(self.shape)
        if not _is_binary(array.type):
            refuse_rows(
                np.flatnonzero(array.is_valid().to_numpy(False)),
                f"«{self.column}» is {array.type}, no bytes",
                valid,
                reasons,
            )
            array = pa.nulls(len(array), pa.binary())
        lengths = pc.fill_null(pc.binary_length(array), -1).to_numpy(zero_copy_only=False)
        refuse_rows(np.flatnonzero(lengths < 0), f"the image «{self.column}» is NULL", valid, reasons)
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
    dtype: type = field(default=np.float32, repr=False)

    def block(self, array: pa.Array, valid: Mask, reasons: dict[int, str]) -> npt.NDArray[np.float32]:
        """Return features of shape (n, size), float32; while no size is known, (n, 1) of zeros.

        Each row is taken or refused by itself: what stands beside it, or how the batch was made, changes nothing.
        """
        made = _vectors(array, self.column)
        for row, reason in made.reasons.items():
            reasons.setdefault(row, reason)
        valid[list(made.reasons)] = False
        if self.size is None:
            return np.zeros((len(array), 1), np.float32)
        found = np.zeros((len(array), self.size), np.float32)
        good = made.lengths == self.size
        for row in np.flatnonzero((made.lengths >= 0) & ~good).tolist():
            reasons.setdefault(row, f"the vector «{self.column}» has {made.lengths[row]} numbers, not {self.size}")
            valid[row] = False
        found[good] = made.numbers[np.repeat(good, np.maximum(made.lengths, 0))].reshape(-1, self.size)
        return found

    def sized(self, array: pa.Array) -> tuple[int, int] | None:
        """Return the first row that is a vector, and how many numbers it has; None where no row is one."""
        lengths = _vectors(array, self.column).lengths
        rows = np.flatnonzero(lengths >= 0)
        return (int(rows[0]), int(lengths[rows[0]])) if len(rows) else None

    def describe(self) -> Any:
        return {"vector": self.column, "size": self.size}


@dataclass(frozen=True, slots=True)
class _Vectors:
    """The vectors in a column.

    Attributes:
        numbers: those of all rows that are vectors, one after the other.
        lengths: shape (n,), numbers of each row; -1 where it is no vector: ``reasons`` says why.
    """

    numbers: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]
    reasons: dict[int, str]


def _vectors(array: pa.Array, column: str) -> _Vectors:
    """Return rows with one dimension of finite numbers, one or more; of lists, PostgreSQL's arrays, pgvector's text."""
    reasons: dict[int, str] = {}
    listed = _listed(array, column, reasons)
    lengths = pc.fill_null(pc.list_value_length(listed), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    for row in np.flatnonzero(np.asarray(listed.is_null())).tolist():
        reasons.setdefault(row, f"the vector «{column}» is NULL")
    for row in np.flatnonzero(lengths == 0).tolist():
        reasons.setdefault(row, f"the vector «{column}» has no numbers")
    with np.errstate(over="ignore"):
        numbers = np.asarray(listed.flatten().to_numpy(zero_copy_only=False), np.float32)
    rows = np.repeat(np.arange(len(listed)), np.maximum(lengths, 0))
    for row in np.unique(rows[~np.isfinite(numbers)]).tolist():
        reasons.setdefault(row, f"the vector «{column}» holds a number that is NULL, NaN or infinite")
    if reasons:
        bad = np.zeros(len(listed), np.bool_)
        bad[list(reasons)] = True
        numbers, lengths = numbers[~bad[rows]], np.where(bad, -1, lengths)
    return _Vectors(numbers, lengths, reasons)


@checked
def image(column: str, *, shape: Sequence[int], scale: float = 1.0) -> Image:
    """Return a column of bytes, one a pixel, as features: a column of ``X`` for each pixel, in the bytes' order.

    Args:
        column: a BYTEA column.
        shape: of one image; a row whose bytes are not so many is refused.
        scale: what each pixel (0 to 255) is multiplied with, ``1/255`` for example.

    >>> import headrace as hr
    >>> hr.image("pixels", shape=(28, 28), scale=1 / 255).column
    'pixels'
    """
    sizes = tuple(int(size) for size in shape)
    if not column or not sizes or any(size < 1 for size in sizes):
        raise DeclarationError(f"an image «{column}» of shape {shape}", advice="Give a column and positive sizes.")
    if not math.isfinite(scale):
        raise DeclarationError(f"the image «{column}» is scaled by {scale}", advice="Give a finite number.")
    return Image(column, sizes, float(scale))


@checked
def vector(column: str, *, size: int | None = None) -> Vector:
    """Return a column of arrays, or of pgvector's type, as features: ``X`` has a float32 column for each number.

    Args:
        column: an array of numbers.
        size: how many numbers a row has; another row is refused. If left out, as many as the first vector to be learned
            has (one dimension of finite numbers, at least one); say it where that may be an odd one.

    >>> import headrace as hr
    >>> hr.vector("embedding", size=384).size
    384
    """
    if not column or (size is not None and size < 1):
        raise DeclarationError(f"a vector «{column}» of {size} numbers", advice="Give a column and a positive size.")
    return Vector(column, None if size is None else int(size))


# One dimension of numbers as PostgreSQL, pgvector and JSON write it; NULL is a number that is missing.
_NUMBER = r"(?:[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|NaN|[+-]?Infinity|NULL|null)"
_WRITTEN = re.compile(rf"^\s*[\[{{](?:\s*{_NUMBER}\s*(?:,\s*{_NUMBER}\s*)*)?[\]}}]\s*$")


def _listed(array: pa.Array, column: str, reasons: dict[int, str]) -> pa.Array:
    """Return a column as lists of float32; rows that are none are null, with their reasons."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _parsed(array.cast(pa.string()), column, reasons)
    if not any(is_one(kind) for is_one in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        rows = np.flatnonzero(np.asarray(array.is_valid()))
        reasons.update(dict.fromkeys(rows.tolist(), f"«{column}» is {kind}, no vector"))
        return pa.nulls(len(array), pa.list_(pa.float32()))
    if pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        array = array.cast(pa.list_(kind.value_type))
    try:
        items = array.flatten().cast(pa.float32(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        # One element that is no number: the rows are looked at one by one.
        return _parsed(pa.array([_text_of(value) for value in values(array)], pa.string()), column, reasons)
    return _as_lists(array, items, array.is_null())


def _as_lists(lists: pa.Array, items: pa.Array, nulls: pa.Array) -> pa.Array:
    """Return lists as long as others, of other items."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, items, mask=nulls)


def _text_of(items: list[Any] | None) -> str | None:
    if items is None:
        return None
    return "[" + ",".join("null" if item is None else str(item) for item in items) + "]"


def _plainly(array: pa.Array) -> pa.Array | None:
    """Return text as lists where each row has two brackets and numbers between them, as nearly all have; else None."""
    inside = pc.utf8_trim(array, characters="[]{}")
    taken = pc.min_max(pc.subtract(pc.binary_length(array), pc.binary_length(inside)))
    if taken["min"].as_py() != 2 or taken["max"].as_py() != 2:
        return None
    parts = pc.split_pattern(inside, ",")
    try:
        numbers = parts.flatten().cast(pa.float32())
    except pa.ArrowInvalid:
        return None
    return _as_lists(parts, numbers, array.is_null())


def _parsed(array: pa.Array, column: str, reasons: dict[int, str]) -> pa.Array:
    """Return text as lists; a row that is written otherwise is null, with its reason."""
    plain = _plainly(array)
    if plain is not None:
        return plain
    well = pc.fill_null(pc.match_substring_regex(array, _WRITTEN.pattern), False)
    for row in np.flatnonzero(np.asarray(array.is_valid()) & ~np.asarray(well)).tolist():
        text = str(array[row])
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        reasons[row] = f"the vector «{column}» is {shown}, not one dimension of numbers"
    inside = pc.utf8_trim(pc.if_else(well, array, pa.scalar(None, pa.string())), characters="[]{} \t\r\n")
    parts = pc.split_pattern(pc.if_else(pc.equal(inside, ""), pa.scalar(None, pa.string()), inside), ",")
    items = pc.utf8_trim(parts.flatten(), characters=" \t\r\n")
    items = pc.if_else(pc.is_in(items, pa.array(["NULL", "null"])), pa.scalar(None, pa.string()), items)
    return _as_lists(parts, items.cast(pa.float32()), pc.invert(well))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def refuse_rows(rows: npt.NDArray[np.int64], reason: str, valid: Mask, reasons: dict[int, str]) -> None:
    """Let rows be invalid; the first reason of a row stays."""
    for row in rows.tolist():
        reasons.setdefault(row, reason)
    valid[rows] = False
