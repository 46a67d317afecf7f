"""Predictions that were made ahead of the step that needs them: by whoever read the rows first, by the model it knew.

They come with the rows, and are taken only for what they were made of: a model in the same state, rows with the same
features. Anything else about them may be wrong; that costs time and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from headrace.arrays import Array, Ints
from headrace.value_hashes import Hashes, mixed

Method = Literal["predict", "predict_proba"]
# As `headrace.step.predictions.predict_rows` gives it: one prediction for each row, and why rows have none.
Predicted = tuple[Array | None, dict[int, str]]

_WORDS_AT_ONCE = 1 << 16  # they stay in the processor's cache
_STEP = np.uint64(0x9E3779B97F4A7C15)


@dataclass(slots=True)
class Foreseen:
    """Predictions of rows of one batch that were made ahead, by a model as it was known then.

    Attributes:
        identity: of that model (`headrace.step.ahead.identity_of`).
        rows: numbers of the rows within the batch, ascending: those whose features were sound.
        features: a hash of each one's features (`row_hashes`).
        found: what `headrace.step.predictions.predict_rows` gave for them, by method; the numbers of rows that failed
            are places in ``rows``.
        taken: how often a row's prediction has been taken from here: steps count it.
    """

    identity: str
    rows: Ints
    features: Hashes
    found: Mapping[Method, Predicted]
    taken: int = field(default=0, compare=False)

    def moved(self, by: int) -> Foreseen:
        """Return the same for a batch in which the rows come so many rows later."""
        return replace(self, rows=np.asarray(self.rows) + by, taken=0)


def row_hashes(X: Array) -> Hashes:
    """Return a hash of each row of features, 64 bits: of its bytes, and of their type.

    >>> found = row_hashes(np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]))
    >>> bool(found[0] == found[2]), bool(found[0] == found[1])
    (True, False)
    """
    kind = int.from_bytes(hashlib.blake2b(f"{X.dtype.str} {X.shape[1:]}".encode(), digest_size=8).digest(), "little")
    found = np.full(len(X), kind, np.uint64)
    if not X.size:
        return found
    data = np.ascontiguousarray(X).reshape(len(X), -1).view(np.uint8)
    if data.shape[1] % 8:
        data = np.pad(data, ((0, 0), (0, -data.shape[1] % 8)))
    words = data.view(np.uint64)
    salt = np.arange(1, words.shape[1] + 1, dtype=np.uint64) * _STEP
    rows = max(1, _WORDS_AT_ONCE // len(salt))
    for start in range(0, len(words), rows):
        found[start : start + rows] += mixed(words[start : start + rows] + salt).sum(axis=1, dtype=np.uint64)
    return found


def joined(found: list[tuple[Ints, Predicted]], rows: int) -> Predicted:
    """Return predictions of some rows and of others as those of all.

    Args:
        found: numbers of rows, and what `headrace.step.predictions.predict_rows` gave for them.
        rows: how many there are.
    """
    failed = {int(where[row]): why for where, (_, some) in found for row, why in some.items() if row < len(where)}
    if len(found) == 1 and len(found[0][0]) == rows:
        return found[0][1][0], failed
    good = next((values for _, (values, _) in found if values is not None), None)
    if good is None:
        return None, failed
    # Of rows that have all failed there is something, which nobody looks at.
    shape, kind = good.shape[1:], good.dtype
    values = [np.zeros((len(where), *shape), kind) if some is None else some for where, (some, _) in found]
    order = np.argsort(np.concatenate([where for where, _ in found]), kind="stable")
    return np.concatenate(values)[order], failed
