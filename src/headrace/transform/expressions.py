"""Column expressions: what `select`, `with_columns` and `filter` accept.

An expression is a column's name, a `pyarrow.compute.Expression`, a `Text` template, or a function of a `Batch`
that returns one value a row. Every one of them is evaluated on whole batches.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arguments import checked
from headrace.batch import Batch, is_meta
from headrace.errors import DeclarationError
from headrace.halves import reason_of, tried_by_halves
from headrace.plain_values import cast_texts, texts, values
from headrace.sql_expressions import evaluated, problem

KEEPS = "must keep the columns that begin with «__»"
Expression: TypeAlias = "str | pc.Expression | Text | Sql | Callable[[Batch], Any]"


@dataclass(frozen=True, slots=True)
class Text:
    """A sentence with columns in braces; ``{features}`` is the list of the model's feature columns.

    >>> batch = Batch.of({"a": [5.4, 3.0], "b": [1, 2], "prediction": [0, 2]})
    >>> Text("{features} is classified as {prediction}").evaluate(batch, features=("a", "b")).to_pylist()
    ['[5.4, 1] is classified as 0', '[3.0, 2] is classified as 2']
    """

    template: str

    @property
    def fields(self) -> tuple[str, ...]:
        """The names in braces, in order."""
        return tuple(field for _, field, _, _ in string.Formatter().parse(self.template) if field is not None)

    def evaluate(self, batch: Batch, *, features: Sequence[str] = ()) -> pa.Array:
        parts: list[Any] = []
        for literal, field, _, _ in string.Formatter().parse(self.template):
            parts.append(pa.scalar(literal))
            if field == "features" and field not in batch.column_names:
                listed = _join([_as_text(batch.column(name)) for name in features], ", ")
                parts.append(_join([pa.scalar("["), listed, pa.scalar("]")], ""))
            elif field is not None:
                parts.append(_as_text(batch.column(field)))
        if not any(isinstance(part, pa.Array) for part in parts):
            return pa.array([self.template] * batch.num_rows, pa.string())
        return _join(parts, "")


@dataclass(frozen=True, slots=True)
class Sql:
    """A condition in SQL over a row's columns, which DuckDB evaluates on the whole batch; it reads nothing else.

    >>> Sql("a > 1 AND b LIKE 'y%'").evaluate(Batch.of({"a": [1, 2, None], "b": ["y", "yes", "y"]})).to_pylist()
    [False, True, None]
    """

    condition: str

    def evaluate(self, batch: Batch) -> pa.Array:
        """Return the condition's value for each row.

        Raises:
            KeyError: it names a column that the batch does not have.
            ValueError: it cannot be evaluated, or is neither true nor false.
        """
        found = evaluated(self.condition, pa.Table.from_batches([batch.records]))
        if not (pa.types.is_boolean(found.type) or pa.types.is_null(found.type)):
            raise ValueError(f"{self} is {found.type}, neither true nor false")
        return found.cast(pa.bool_())

    def check(self) -> None:
        """Refuse what is no expression of SQL.

        Raises:
            DeclarationError: with DuckDB's reason.
        """
        wrong = problem(self.condition)
        if wrong:
            raise DeclarationError(
                f"where({self.condition!r}): {wrong}", advice='Write a condition, such as where("price > 10").'
            )

    def __str__(self) -> str:
        return f"where {self.condition}"


@checked
def text(template: str) -> Text:
    """Return a sentence made of a row's columns, for `select` and `with_columns`.

    Args:
        template: text with column names in braces; ``{features}`` stands for the model's features as a list.

    Raises:
        DeclarationError: the braces do not match.

    >>> text("{name} weighs {prediction} g").fields
    ('name', 'prediction')
    """
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template)]
    except ValueError as error:
        raise DeclarationError(f"text template {template!r}: {error}", advice="Write a literal brace as {{.") from error
    if "" in fields:
        raise DeclarationError(f"text template {template!r} has empty braces", advice="Name a column in them.")
    return Text(template)


def evaluate(expression: Any, batch: Batch, *, features: Sequence[str] = ()) -> pa.Array:
    """Return one value a row.

    Raises:
        KeyError: the expression names a column that the batch does not have.
    """
    if isinstance(expression, str):
        return batch.column(expression)
    if isinstance(expression, Text):
        return expression.evaluate(batch, features=features)
    if isinstance(expression, pc.Expression):
        return _project(batch, expression)
    if isinstance(expression, Sql):
        return expression.evaluate(batch)
    values = expression(batch)
    if isinstance(values, str | bytes | dict | set):
        raise TypeError(f"{describe(expression)} returned {type(values).__name__}, expected a value for each row")
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    array = values if isinstance(values, pa.Array) else pa.array(values)
    if len(array) != batch.num_rows:
        raise ValueError(f"{describe(expression)} gave {len(array)} values for {batch.num_rows} rows")
    return array


def check(expression: Any, where: str) -> None:
    """Refuse what is not an expression, at declaration."""
    if not isinstance(expression, str | Text | Sql | pc.Expression) and not callable(expression):
        raise DeclarationError(
            f"{where}: {expression!r} is not a column expression",
            advice="Give a column's name, a pyarrow.compute expression, hr.text(…), or a function of a Batch.",
        )


def describe(expression: Any) -> str:
    """Return the expression in one line, for plans and error messages."""
    if isinstance(expression, Text):
        return f'text("{expression.template}")'
    if callable(expression) and not isinstance(expression, pc.Expression):
        return f"{getattr(expression, '__qualname__', type(expression).__name__)}()"
    return str(expression)


def _project(batch: Batch, expression: pc.Expression) -> pa.Array:
    # Imported here: it brings pyarrow.dataset and, where it is installed, pandas.
    from pyarrow import acero

    source = acero.Declaration("table_source", acero.TableSourceNodeOptions(pa.Table.from_batches([batch.records])))
    project = acero.Declaration("project", acero.ProjectNodeOptions([expression], ["value"]), inputs=[source])
    column = project.to_table(use_threads=False).column(0)
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _as_text(array: pa.Array) -> pa.Array:
    if pa.types.is_floating(array.type):
        # NumPy writes the shortest digits that read back equal, and keeps the «.0» that says it is not an integer.
        values = array.fill_null(0.0).to_numpy(zero_copy_only=False)
        return pc.if_else(array.is_valid(), pa.array(values.astype(str)), pa.scalar("null"))
    if pa.types.is_nested(array.type) and not pa.types.is_dictionary(array.type):
        return pc.fill_null(pa.array(texts(array), pa.string()), "null")
    return pc.fill_null(cast_texts(array, as_before=True), "null")


def _join(parts: Sequence[Any], separator: str) -> pa.Array:
    return pc.binary_join_element_wise(*parts, separator)


@dataclass(frozen=True, slots=True)
class Filter:
    """Keep the rows for which the expression is true."""

    expression: Any

    def apply(self, batch: Batch, *, features: Sequence[str] = ()) -> Batch:
        mask = evaluate(self.expression, batch, features=features)
        return batch.filter(np.asarray(pc.fill_null(mask, False)))

    def __str__(self) -> str:
        return str(self.expression) if isinstance(self.expression, Sql) else f"filter {describe(self.expression)}"


@dataclass(frozen=True, slots=True)
class Select:
    """Keep the named columns, in that order, and compute others."""

    names: tuple[str, ...]
    computed: Mapping[str, Any]

    def apply(self, batch: Batch, *, features: Sequence[str] = ()) -> Batch:
        new = {name: evaluate(expression, batch, features=features) for name, expression in self.computed.items()}
        batch = _with_unsent_names(batch, self.computed)
        wanted = [(name, batch.column(name)) for name in self.names] + list(new.items())
        fields = [batch.schema.field(name) for name in self.names]
        fields += [pa.field(name, array.type) for name, array in new.items()]
        meta = [field for field in batch.schema if field.name.startswith("__") and field.name not in self.names]
        arrays = [array for _, array in wanted] + [batch.column(field.name) for field in meta]
        schema = pa.schema([*fields, *meta], metadata=batch.schema.metadata)
        return Batch(pa.RecordBatch.from_arrays(arrays, schema=schema))

    def __str__(self) -> str:
        return "select " + ", ".join([*self.names, *(f"{k}={describe(v)}" for k, v in self.computed.items())])


@dataclass(frozen=True, slots=True)
class WithColumns:
    """Add or replace columns."""

    computed: Mapping[str, Any]

    def apply(self, batch: Batch, *, features: Sequence[str] = ()) -> Batch:
        new = [(n, evaluate(e, batch, features=features)) for n, e in self.computed.items()]
        return _with_unsent_names(batch, self.computed).with_columns(new)

    def __str__(self) -> str:
        return "with " + ", ".join(f"{name}={describe(expression)}" for name, expression in self.computed.items())


@dataclass(frozen=True, slots=True)
class Transform:
    """A function of the user's own, Batch -> Batch. It must depend on its batch only, row by row."""

    function: Callable[[Batch], Batch]

    def apply(self, batch: Batch, *, features: Sequence[str] = ()) -> Batch:
        result = self.function(batch)
        if not isinstance(result, Batch):
            raise TypeError(f"{describe(self.function)} returned {type(result).__name__}, expected a Batch")
        _check_events(result, batch, describe(self.function))
        return result

    def __str__(self) -> str:
        return f"transform {describe(self.function)}"


def _check_events(result: Batch, batch: Batch, who: str) -> None:
    """Refuse rows that are no events any more, or in another order."""
    names = [name for name in batch.schema.names if is_meta(name) and name not in ("__before", "__unchanged")]
    missing = [name for name in names if name not in result.schema.names]
    if missing:
        raise ValueError(
            f"{who} dropped the column {missing[0]}: a transform {KEEPS}: use Batch.with_columns, .filter or .take"
        )
    if "__order" in names and not bool((np.diff(np.asarray(result.column("__order"))) >= 0).all()):
        raise ValueError(f"{who} changed the order of rows")


def _with_unsent_names(batch: Batch, computed: Mapping[str, Any]) -> Batch:
    """Return the batch with the columns that the source did not send (``__unchanged``) under their new names too."""
    renamed = {new: old for new, old in computed.items() if isinstance(old, str) and new != old}
    if batch.unchanged is None or not renamed:
        return batch
    unsent = values(batch.unchanged)
    if not any(old in (names or ()) for names in unsent for old in renamed.values()):
        return batch
    told = [
        [
            *(name for name in names or () if name not in renamed),
            *(new for new in renamed if renamed[new] in (names or ())),
        ]
        for names in unsent
    ]
    place = batch.records.schema.get_field_index("__unchanged")
    return Batch(batch.records.set_column(place, "__unchanged", pa.array(told, pa.list_(pa.string()))))


Operation = Filter | Select | WithColumns | Transform


def operate(
    batch: Batch, operations: Sequence[Operation], features: Sequence[str] = ()
) -> tuple[list[Batch], list[tuple[Batch, str]]]:
    """Apply operations; where they fail, to each half by itself, so that only the rows at fault are refused.

    Returns:
        What came of the others, and each refused row with the reason; both in the rows' order.
    """
    if not operations:
        return [batch], []
    good: list[Batch] = []

    def attempt(start: int, stop: int) -> None:
        result = batch if stop - start == batch.num_rows else batch.slice(start, stop - start)
        for operation in operations:
            result = operation.apply(result, features=features)
        good.append(result)

    # Of no rows, too, operations say what the columns are.
    bad = tried_by_halves(max(1, batch.num_rows), attempt)
    return good, [(batch.slice(row, 1), reason_of(error)) for row, error in bad.items()]
