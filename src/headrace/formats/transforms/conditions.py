"""Debezium's Filter and ContentBasedRouter, whose expressions are SQL here, evaluated by DuckDB on the whole batch.

An expression sees ``topic``, ``key``, ``value`` and ``header`` (structs), and the value's own fields by their names:
``before``, ``after``, ``source``, ``op`` of an event, the columns of a flat row. Numbers, texts and booleans are such,
a Decimal is a DECIMAL, times are the numbers that the event holds.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import FormatError
from headrace.formats.json_text import TEXT, joined
from headrace.formats.transforms.records import Column, Leaf, Records, Struct, dumped, mapped
from headrace.formats.transforms.sides import Options, Transform, all_refused
from headrace.sql_expressions import evaluated, problem

_TYPES = {
    "int8": "TINYINT", "int16": "SMALLINT", "int32": "INTEGER", "int64": "BIGINT", "float": "FLOAT", "double": "DOUBLE",
    "boolean": "BOOLEAN", "string": "VARCHAR", "bytes": "VARCHAR", "map": "JSON",
}  # fmt: skip
_DECIMAL = "org.apache.kafka.connect.data.Decimal"
_ROOTS = ("before", "after", "source", "value", "key", "header")
_OUTER = frozenset({"topic", "key", "value", "header"})


def filter_by_condition(options: Options) -> Transform:
    """Keep records for which a condition is true."""
    expression = _Expression.checked(options.own["condition"], options)

    def judged(records: Records) -> list[Records]:
        found = expression.of(records)
        if not pa.types.is_boolean(found.type) and not pa.types.is_null(found.type):
            raise all_refused(records, f"the condition gives a value of type {found.type}, and no boolean")
        return [records.take(np.asarray(pc.fill_null(found.cast(pa.bool_()), False)))]

    return _where_wanted(options, judged)


def content_based_router(options: Options) -> Transform:
    """Send records to the topics that an expression says; where it says none, they stay."""
    expression = _Expression.checked(options.own["topic.expression"], options)

    def routed(records: Records) -> list[Records]:
        found = expression.of(records)
        if not pa.types.is_null(found.type) and not (
            pa.types.is_string(found.type) or pa.types.is_large_string(found.type)
        ):
            raise all_refused(records, f"the expression gives a value of type {found.type}, and no text")
        return [replace(records, topics=pc.coalesce(found.cast(TEXT), records.topics))]

    return _where_wanted(options, routed)


def _where_wanted(options: Options, judged: Callable[[Records], list[Records]]) -> Transform:
    """Return a transform for the topics and the null values that the options name."""
    regex = options.own.get("topic.regex")
    pattern = re.compile(regex) if regex else None
    nulls = options.text("null.handling.mode", "keep").lower()

    def transform(records: Records) -> list[Records]:
        found = []
        if pattern is not None:
            matching = [topic for topic in pc.unique(records.topics).to_pylist() if pattern.fullmatch(topic)]
            records, others = records.split(np.asarray(pc.is_in(records.topics, pa.array(matching, TEXT))))
            found.append(others)
        if nulls != "evaluate":
            tombstones, records = records.split(records.is_tombstone)
            found += [tombstones] if nulls == "keep" else []
        return [*found, *(judged(records) if len(records) else [])]

    return transform


@dataclass
class _Expression:
    """An expression of SQL.

    Attributes:
        sql: as it was written.
    """

    sql: str

    @classmethod
    def checked(cls, sql: str, options: Options) -> _Expression:
        """Return an expression.

        Raises:
            ValueError: it is none of SQL.
        """
        language = options.text("language", "sql").lower()
        wrong = f"an expression of {language} is not run; write it in SQL" if language != "sql" else ""
        wrong = wrong or problem(sql)
        if wrong:
            raise ValueError(f"{sql}: {wrong}")
        return cls(sql)

    @cached_property
    def _words(self) -> frozenset[str]:
        """Return the names that stand in it, so that only these columns are read."""
        quoted = [name.replace('""', '"') for name in re.findall(r'"((?:[^"]|"")+)"', self.sql)]
        return frozenset([*quoted, *re.findall(r"\w+", self.sql)])

    @cached_property
    def _whole(self) -> frozenset[str]:
        """Return the structs that are used as a whole."""
        found = [
            root
            for root in _ROOTS
            if re.search(rf"\b{root}\b(?!\s*\.)(?!\s+IS\s+(NOT\s+)?NULL)", self.sql, re.IGNORECASE)
        ]
        return frozenset(found) | ({"before", "after", "source"} if "value" in found else set())

    def of(self, records: Records) -> pa.Array:
        """Return the expression's value for each record.

        Raises:
            FormatError: it has none; with DuckDB's reason.
        """
        n = len(records)
        value, key = self._read(records.value, "value", n), self._read(records.key, "key", n)
        header = self._read(Struct({}, dict(records.headers), n), "header", n)
        batch = pa.table({
            "topic": records.topics, "value": value[0], "key": key[0], "header": header[0],
        })  # fmt: skip
        names = [] if not isinstance(records.value, Struct) else list(value[1])
        source = self._source(value[1], key[1], header[1], [name for name in names if name not in _OUTER])
        try:
            return evaluated(self.sql, batch, source)
        except ValueError as error:
            raise FormatError(f"Error while evaluating expression '{self.sql}': {error}") from error

    def _source(self, value: Any, key: Any, header: Any, names: list[str]) -> str:
        def struct(name: str, structure: Any) -> str:
            text = dumped(structure).replace("'", "''")
            return f"json_transform({name}, '{text}') AS {name}" if structure else f"NULL AS {name}"

        shown = ", ".join(f"value.{_identifier(name)} AS {_identifier(name)}" for name in names)
        parsed = ", ".join(struct(name, of) for name, of in (("value", value), ("key", key), ("header", header)))
        inner = f"SELECT topic, {parsed} FROM batch"
        return f"(SELECT *{', ' + shown if shown else ''} FROM ({inner}))"

    def _read(self, column: Column | None, root: str, n: int) -> tuple[pa.Array, Any]:
        """Return a column's JSON, of the fields that the expression names, and its structure as DuckDB has it."""
        if column is None:
            return pa.nulls(n, TEXT), {}
        if isinstance(column, Leaf):
            return _shown(column), _structure(column)
        texts, structure = self._part(column, root)
        return texts, structure

    def _part(self, structs: Struct, root: str) -> tuple[pa.Array, dict[str, Any]]:
        parts: list[pa.Array | str] = []
        structure: dict[str, Any] = {}
        for name, column in self._named(structs, whole=root in self._whole).items():
            if isinstance(column, Struct):
                texts, structure[name] = self._part(column, name if root == "value" else root)
            else:
                texts, structure[name] = _shown(column), _structure(column)
            parts += [f"{',' if parts else '{'}{json.dumps(name)}:", texts]
        found = joined([*parts, "}" if parts else "{}"], len(structs))
        found = found if structs.valid is None else pc.if_else(structs.valid, found, pa.scalar(None, TEXT))
        return found, structure or {"__": "BOOLEAN"}  # a structure has to have something

    def _named(self, structs: Struct, *, whole: bool) -> dict[str, Column]:
        """Return fields that the expression may mean; of names that differ in case, those that stand there."""
        lower = {word.lower() for word in self._words}
        found = {name: c for name, c in structs.fields.items() if whole or name.lower() in lower or name in _ROOTS}
        exact = {name.lower() for name in found if name in self._words}
        return {name: c for name, c in found.items() if name in self._words or name.lower() not in exact}


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _shown(column: Leaf) -> pa.Array:
    texts = column.with_default().texts
    if column.schema.get("name") == _DECIMAL and column.schema["type"] == "bytes":
        scale = _scale(column)
        return mapped(texts, lambda text: f'"{_decimal(json.loads(text), scale)}"')
    return texts


def _scale(column: Leaf) -> int:
    return int(column.schema.get("parameters", {}).get("scale", 0))


def _decimal(encoded: str, scale: int) -> str:
    unscaled = int.from_bytes(base64.b64decode(encoded), "big", signed=True)
    digits = str(abs(unscaled)).rjust(scale + 1, "0")
    shown = f"{digits[: len(digits) - scale]}.{digits[len(digits) - scale :]}" if scale > 0 else digits + "0" * -scale
    return f"-{shown}" if unscaled < 0 else shown


def _structure(column: Leaf) -> Any:
    """Return a column's type as ``json_transform`` takes it."""
    schema = column.schema
    if schema.get("name") == _DECIMAL and schema["type"] == "bytes" and 0 <= _scale(column) <= 38:
        return f"DECIMAL(38,{_scale(column)})"
    return _of_schema(schema)


def _of_schema(schema: Any) -> Any:
    if schema["type"] == "struct":
        return {part["field"]: _of_schema(part) for part in schema["fields"]}
    return [_of_schema(schema["items"])] if schema["type"] == "array" else _TYPES[schema["type"]]
