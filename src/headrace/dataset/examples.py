"""From chunks of a topic's rows to examples: arrays, or Arrow tables; and their cutting into batches.

Rows are examples where a model that learns the stream would learn them (`headrace.step.step`): inserts and rows of a
snapshot, and the update that gives a row its label; never a row without a label, or whose features cannot be made.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from headrace.arrays import Array
from headrace.batch import Batch, inserted, present
from headrace.dataset.readers import Chunk, TopicPosition
from headrace.learn.features import Features, column_of, matrix, numbers
from headrace.learn.images import Image
from headrace.plain_values import united
from headrace.step.labels import Late
from headrace.step.row_identity import ROW, Identity
from headrace.transform.expressions import KEEPS, Operation, operate

logger = logging.getLogger("headrace")

REASONS = 5
Column: TypeAlias = Array | pa.Table
Data = tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class ExampleBlock:
    """Some examples: columns of equal length (arrays, or one Arrow table), and the position behind each row."""

    data: Data
    rows: int
    after: Callable[[int], TopicPosition]

    def part(self, start: int, stop: int) -> ExampleBlock:
        """Return some of its rows; nothing is copied."""
        if start == 0 and stop == self.rows:
            return self
        after = self.after
        return ExampleBlock(
            tuple(_part(column, start, stop) for column in self.data), stop - start, lambda row: after(start + row)
        )


def _part(column: Column, start: int, stop: int) -> Column:
    return column.slice(start, stop - start) if isinstance(column, pa.Table) else column[start:stop]


def joined(blocks: Sequence[ExampleBlock]) -> ExampleBlock:
    """Join consecutive blocks; only the last row's position is asked for."""
    if len(blocks) == 1:
        return blocks[0]
    rows = sum(block.rows for block in blocks)
    last = blocks[-1]
    return ExampleBlock(
        tuple(_joined(columns) for columns in zip(*(block.data for block in blocks), strict=True)),
        rows,
        lambda row: last.after(row - rows + last.rows),
    )


def _joined(columns: Sequence[Column]) -> Column:
    return united(columns) if isinstance(columns[0], pa.Table) else np.concatenate(columns)


def recut(blocks: Iterable[ExampleBlock], size: int) -> Iterator[ExampleBlock]:
    """Yield the same rows in blocks of a size; the last one may be smaller.

    >>> block = lambda *rows: ExampleBlock((np.array(rows),), len(rows), lambda row: {0: row})
    >>> [cut.data[0].tolist() for cut in recut([block(1, 2, 3), block(4), block(5, 6, 7)], 2)]
    [[1, 2], [3, 4], [5, 6], [7]]
    """
    kept: deque[ExampleBlock] = deque()
    rows = 0
    for block in blocks:
        start = 0
        while rows + block.rows - start >= size:
            stop = start + size - rows
            kept.append(block.part(start, stop))
            yield joined(list(kept))
            kept.clear()
            start, rows = stop, 0
        if start < block.rows:
            kept.append(block.part(start, block.rows))
            rows += block.rows - start
    if kept:
        yield joined(list(kept))


def shuffled(
    blocks: Iterable[ExampleBlock], size: int, generator: np.random.Generator, position: TopicPosition
) -> Iterator[ExampleBlock]:
    """Shuffle the rows of each buffer of so many. A buffer's position is its end, once its last row is consumed.

    Args:
        position: at which the rows begin.
    """
    for buffer in recut(blocks, size):
        order = generator.permutation(buffer.rows)
        data = tuple(
            column.take(pa.array(order)) if isinstance(column, pa.Table) else column[order] for column in buffer.data
        )
        end = buffer.after(buffer.rows - 1)
        yield ExampleBlock(data, buffer.rows, _at_the_end(buffer.rows, position, end))
        position = end


def _at_the_end(rows: int, before: TopicPosition, end: TopicPosition) -> Callable[[int], TopicPosition]:
    return lambda row: end if row == rows - 1 else before


@dataclass
class Examples:
    """Make blocks of examples from chunks, and count the rows that are none.

    Args:
        topic: its name, for messages.
        operations: of the stream, done first.
        features: what `X` is made of; None gives Arrow tables of all rows that were inserted.
        target: the column of `y`.
        tell: whether rows that are skipped are logged.

    Attributes:
        skipped: rows that should be examples and cannot be.
    """

    topic: str
    operations: Sequence[Operation]
    features: Features | None
    target: str | None
    tell: bool = True
    skipped: int = 0
    _rows: Identity = field(default_factory=Identity)
    _late: Late = field(init=False)

    def __post_init__(self) -> None:
        self._late = Late(partial=bool(self.operations))

    def blocks(self, chunks: Iterable[Chunk]) -> Iterator[ExampleBlock]:
        """Yield the examples among the rows, in their order."""
        for chunk in chunks:
            for where, reason in chunk.bad:
                self._skip(where, reason)
            if chunk.batch.num_rows:
                yield from self._of(chunk)

    def _of(self, chunk: Chunk) -> Iterator[ExampleBlock]:
        records = chunk.batch.records.append_column("__order", pa.array(np.arange(chunk.batch.num_rows)))
        if self.target is not None:
            records = records.append_column(ROW, pa.array(self._rows.follow(chunk.batch)))
        good, bad = operate(Batch(records), self.operations)
        if bad and not good and all(KEEPS in reason for _, reason in bad):
            raise ValueError(bad[0][1])
        for row, reason in bad:
            self._skip(_where(self.topic, chunk, int(row.column("__order")[0].as_py())), reason)
        for batch in good:
            batch = self._fresh(chunk, batch)
            if not batch.num_rows:
                continue
            made = self._table(batch) if self.features is None else self._arrays(chunk, batch, self.features)
            if made is not None:
                data, at = made
                yield ExampleBlock(data, len(at), _positions(chunk, at))

    def _fresh(self, chunk: Chunk, batch: Batch) -> Batch:
        """Return new rows; those whose label comes later when it does, as a model learns them."""
        fresh = inserted(batch)
        if self.target is None or self.target not in batch.schema.names:
            return batch if fresh.all() else batch.filter(fresh)
        self._labelled(chunk, batch.filter(fresh), self.target)
        columns = None if callable(self.features) else list(map(column_of, self.features or ()))
        return self._late.examples(batch, self.target, columns)

    def _table(self, batch: Batch) -> tuple[Data, Array]:
        at = np.asarray(batch.column("__order"))
        return (present(batch.stored.records),), at

    def _arrays(self, chunk: Chunk, batch: Batch, features: Features) -> tuple[Data, Array] | None:
        """Return ``(X,)`` or ``(X, y)``, and the rows of the chunk that they are."""
        target = self.target
        if target is not None:
            batch = self._labelled(chunk, batch, target)
            if not batch.num_rows:
                return None
        made = matrix(batch, features, target)
        at = np.asarray(batch.column("__order"))
        X = made.X
        if not made.valid.all():
            for row in np.flatnonzero(~made.valid).tolist():
                self._skip(_where(self.topic, chunk, int(at[row])), made.reasons[row])
            X, at, batch = X[made.valid], at[made.valid], batch.filter(made.valid)
        if not len(at):
            return None
        if not callable(features) and len(features) == 1 and isinstance(features[0], Image):
            X = X.reshape(len(X), *features[0].shape)
        return ((X,) if target is None else (X, labels(batch, target))), at

    def _labelled(self, chunk: Chunk, batch: Batch, target: str) -> Batch:
        missing = target not in batch.schema.names
        given = np.zeros(batch.num_rows, bool) if missing else np.asarray(batch.column(target).is_valid())
        if given.all():
            return batch
        reason = f"there is no column «{target}»" if missing else f"the target «{target}» is NULL"
        for row in np.asarray(batch.column("__order"))[~given].tolist():
            self._skip(_where(self.topic, chunk, row), reason)
        return batch.filter(given)

    def _skip(self, where: str, reason: str) -> None:
        self.skipped += 1
        if self.tell and self.skipped <= REASONS:
            more = " (the rest is counted only)" if self.skipped == REASONS else ""
            logger.warning("%s is no example and was skipped: %s%s", where, reason, more)


def _positions(chunk: Chunk, at: Array) -> Callable[[int], TopicPosition]:
    return lambda row: chunk.after(int(at[row]))


def _where(topic: str, chunk: Chunk, row: int) -> str:
    """Return a row's place, for people.

    >>> from headrace.dataset.readers import Chunk
    >>> _where("t", Chunk(Batch.of({"id": [5, 6]}), {0: 10}, 0, np.array([10, 11])), 1)
    '«t» offset 11'
    """
    partition = f" partition {chunk.partition}" if chunk.partition else ""
    return f"«{topic}»{partition} offset {chunk.offsets[row]}"


def labels(batch: Batch, target: str) -> Array:
    """Return the target's values: numbers as they are, NUMERIC as float64, words as objects.

    >>> from decimal import Decimal
    >>> labels(Batch.of({"y": [Decimal("1.5"), Decimal("2.0")]}), "y").tolist()
    [1.5, 2.0]
    """
    column = batch.column(target)
    if pa.types.is_decimal(column.type):
        return numbers(column, batch.schema.field(target))[0]
    return np.asarray(column.to_numpy(zero_copy_only=False))
