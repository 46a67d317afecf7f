"""Categories as features: a column of words, each word a column of zeros and ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arguments import checked
from headrace.arrays import Mask
from headrace.errors import DeclarationError
from headrace.learn.images import refuse_rows
from headrace.plain_values import cast_texts, value, values

Coding = Literal["one_hot", "treatment"]
Unseen = Literal["error", "ignore", "grow"]
CAPACITY = 32


@dataclass(frozen=True, slots=True)
class Category:
    """See `category`.

    Attributes:
        words: those that have a column, in the columns' order. Of one that grows: as far as the log has gone.
        width: columns before the coding takes one away.
    """

    column: str
    coding: Coding
    words: tuple[str, ...]
    unseen: Unseen
    width: int
    dtype: type = field(default=np.float32, repr=False)

    def block(self, array: pa.Array, valid: Mask, reasons: dict[int, str]) -> npt.NDArray[np.float32]:
        """Return features of shape (n, columns), float32, zeros and one 1 in a row."""
        n = len(array)
        null = array.is_null().to_numpy(zero_copy_only=False)
        found = np.zeros((n, self.width), np.float32)
        try:
            code = pc.index_in(as_words(array), value_set=pa.array(self.words, pa.string()))
        except pa.ArrowInvalid:
            refuse_rows(np.flatnonzero(~null), f"«{self.column}» is {array.type}, no category", valid, reasons)
            return self._coded(found)
        unseen = code.is_null().to_numpy(zero_copy_only=False) & ~null
        at = code.fill_null(0).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(~unseen & ~null)
        found[rows, at[rows]] = 1.0
        refuse_rows(np.flatnonzero(null), f"the category «{self.column}» is NULL", valid, reasons)
        if self.unseen == "error":
            for row in np.flatnonzero(unseen).tolist():
                reasons.setdefault(row, f"the category «{self.column}» is {value(array[row])!r}, which is not known")
            valid[unseen] = False
        return self._coded(found)

    def _coded(self, found: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return found if self.coding == "one_hot" else np.ascontiguousarray(found[:, 1:])

    @property
    def grows(self) -> bool:
        """Return whether the log decides what is known."""
        return self.unseen == "grow"

    def knowing(self, words: Sequence[str], *, refuse: bool) -> Category:
        """Return the same with what the log has shown so far; other words are refused, or have no column."""
        return replace(self, words=tuple(words), unseen="error" if refuse else "ignore")

    def describe(self) -> Any:
        known = None if self.grows else list(self.words)
        return {"category": self.column, "coding": self.coding, "known": known, "columns": self.width}


def is_word(kind: pa.DataType) -> bool:
    """Return whether values of a type are known by their text."""
    words = pa.types.is_null(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(words or pa.types.is_primitive(kind) or pa.types.is_decimal(kind))


def as_words(array: pa.Array) -> pa.Array:
    """Return values as the text they are known by.

    Raises:
        pyarrow.ArrowInvalid: values of this type have no text.
    """
    if pa.types.is_string(array.type):
        return array
    if not is_word(array.type):
        raise pa.ArrowInvalid(f"{array.type} is no category")
    return cast_texts(array, as_before=True)


@checked
def category(
    column: str,
    *,
    coding: Coding = "one_hot",
    known: Iterable[Any] | None = None,
    unseen: Unseen | None = None,
    capacity: int | None = None,
) -> Category:
    """Return a column of words, numbers or booleans as features of zeros and ones.

    Args:
        column: the table's.
        coding: ``"one_hot"``, a column for each word; ``"treatment"``, none for the first one, as R's
            ``contr.treatment`` has it: models with an intercept want that.
        known: the words, in the order of their columns.
        unseen: what to do with another word: ``"error"`` refuses the row, ``"ignore"`` leaves all its columns 0,
            ``"grow"`` gives it the next free column when it is learned, so that the log decides what is known. The
            default is ``"error"`` with ``known``, else ``"grow"``. A model that has not learned a word yet
            sees zeros.
        capacity: columns that are there for words to come (32), since a model's width is fixed. When all are taken, a
            row with another word is refused.

    Raises:
        DeclarationError: nothing is known and nothing can grow.

    >>> import headrace as hr
    >>> hr.category("species", known=["Bream", "Pike"], unseen="ignore").words
    ('Bream', 'Pike')
    """
    unseen = unseen or ("grow" if known is None else "error")
    if coding not in ("one_hot", "treatment") or unseen not in ("error", "ignore", "grow"):
        raise DeclarationError(
            f"category(«{column}», coding={coding!r}, unseen={unseen!r})",
            advice='coding is "one_hot" or "treatment", unseen "error", "ignore" or "grow".',
        )
    words = tuple(values(cast_texts(pa.array(list(known or ())), as_before=True)))
    if not column or len(set(words)) != len(words) or None in words:
        raise DeclarationError(f"category(«{column}», known={list(words)})", advice="Name each word once.")
    if unseen != "grow" and not words:
        raise DeclarationError(
            f"the category «{column}» knows no word", advice='Say known=[…], or unseen="grow": the log decides then.'
        )
    if capacity is not None and capacity < 1:
        raise DeclarationError(f"the category «{column}» has capacity={capacity}", advice="Give a positive number.")
    width = max(capacity or CAPACITY, len(words)) if unseen == "grow" else len(words)
    if coding == "treatment" and width < 2:
        raise DeclarationError(f"the category «{column}» has one word: no column is left", advice='Take "one_hot".')
    return Category(column, coding, words, unseen, width)


def new_words(table: Sequence[str], array: pa.Array) -> list[tuple[str, int]]:
    """Return words that a table does not have, each with the first row that has it.

    >>> new_words(["Bream"], pa.array(["Pike", "Bream", None, "Pike", "Roach"]))
    [('Pike', 0), ('Roach', 4)]
    """
    try:
        words = as_words(array)
    except pa.ArrowInvalid:
        return []
    fresh = pc.is_null(pc.index_in(words, value_set=pa.array(table, pa.string()))).to_numpy(zero_copy_only=False)
    fresh &= words.is_valid().to_numpy(zero_copy_only=False)
    first: dict[str, int] = {}
    for row in np.flatnonzero(fresh).tolist():
        first.setdefault(value(words[row]), row)
    return list(first.items())
