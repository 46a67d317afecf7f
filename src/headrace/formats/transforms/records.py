"""Records of Kafka Connect, column by column: topics, keys, values and headers, and the schema of each.

A value's column is a `Leaf`, the JSON of its values as Kafka's JsonConverter writes them, or a `Struct` of such. A null
is one of Kafka Connect: `Struct.get` and the converter read the schema's default for it, `getWithoutDefault` does not.
https://kafka.apache.org/documentation/#connect_transforms
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.errors import FormatError
from headrace.formats.debezium_types import Schema, java_double, java_string
from headrace.formats.json_text import TEXT, joined

_FIRST = ("type", "items", "keys", "values", "fields")
_DECIMAL = "org.apache.kafka.connect.data.Decimal"
_LAST = ("optional", "name", "version", "doc", "parameters", "default", "field")


class RowsRefused(FormatError):
    """Some records cannot be transformed; the others can.

    Attributes:
        rows: which of the records that were given.
        order: the places of those that are at fault, where they are known.
    """

    def __init__(self, rows: Mask, message: str, *, order: Ints | None = None) -> None:
        super().__init__(message)
        self.rows, self.order = rows, order

    def among(self, records: Records) -> Mask:
        """Return which of records are meant; none where that cannot be told: they are others than were given."""
        if self.order is not None:
            return np.isin(records.order, self.order)
        return self.rows if len(self.rows) == len(records) else np.zeros(len(records), bool)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A column without parts of its own.

    Attributes:
        schema: without the field's name.
        texts: JSON of each value; null where the value is null.
    """

    schema: Schema
    texts: pa.LargeStringArray

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def whole_schema(self) -> Schema:
        """Return the schema as JsonConverter writes it."""
        return ordered(self.schema)

    @property
    def is_null(self) -> Mask:
        return np.asarray(self.texts.is_null())

    def take(self, rows: pa.Array) -> Leaf:
        return Leaf(self.schema, self.texts.take(rows))

    def with_schema(self, **changes: Any) -> Leaf:
        """Return the column with another schema; None takes a part of it away."""
        return Leaf(_changed(self.schema, changes), self.texts)

    def with_default(self) -> Leaf:
        """Return the column with the schema's default for null."""
        if "default" not in self.schema or not self.texts.null_count:
            return self
        return Leaf(self.schema, self.texts.fill_null(pa.scalar(_json(self.schema["default"]), TEXT)))

    def json(self, *, defaults: bool) -> pa.Array:
        """Return the JSON of every value, null where it is null."""
        return self.with_default().texts if defaults else self.texts


@dataclass(frozen=True, slots=True)
class Struct:
    """A column of structs.

    Attributes:
        schema: without the fields, and without the field's name.
        fields: by name, in their order.
        valid: which structs are not null; None: all.
        size: how many there are.
    """

    schema: Schema
    fields: Mapping[str, Column]
    size: int
    valid: pa.BooleanArray | None = None

    def __len__(self) -> int:
        return self.size

    @property
    def whole_schema(self) -> Schema:
        """Return the schema as JsonConverter writes it."""
        fields = [{**column.whole_schema, "field": name} for name, column in self.fields.items()]
        return ordered({**self.schema, "type": "struct", "fields": fields})

    @property
    def is_null(self) -> Mask:
        return np.zeros(self.size, bool) if self.valid is None else ~np.asarray(self.valid)

    def take(self, rows: pa.Array) -> Struct:
        fields = {name: column.take(rows) for name, column in self.fields.items()}
        return replace(self, fields=fields, size=len(rows), valid=None if self.valid is None else self.valid.take(rows))

    def with_schema(self, **changes: Any) -> Struct:
        """Return the column with another schema; None takes a part of it away."""
        return replace(self, schema=_changed(self.schema, changes))

    def with_default(self) -> Struct:
        return self

    def with_fields(self, fields: Mapping[str, Column]) -> Struct:
        """Return structs of other fields, null where these are."""
        return replace(self, fields=dict(fields))

    def copied(self, *, defaults: bool = True) -> Struct:
        """Return the structs as a transform copies them: with the defaults of null fields, and a schema of its own.

        ``SchemaUtil.copySchemaBasics`` leaves out whether the struct is optional, and its default.
        """
        fields = {name: column.with_default() for name, column in self.fields.items()} if defaults else self.fields
        return replace(self, fields=dict(fields)).with_schema(optional=False, default=None)

    def json(self, *, defaults: bool) -> pa.Array:
        """Return the JSON of every value, null where it is null."""
        parts: list[pa.Array | str] = []
        for name, column in self.fields.items():
            parts += [f"{',' if parts else '{'}{java_string(name)}:", column.json(defaults=defaults)]
        texts = joined([*parts, "}" if self.fields else "{}"], self.size)
        return texts if self.valid is None else pc.if_else(self.valid, texts, pa.scalar(None, TEXT))


Column: TypeAlias = "Leaf | Struct"


def ordered(schema: Schema) -> Schema:
    """Return a schema's parts in the order in which JsonConverter writes them.

    >>> ordered({"name": "n", "optional": True, "type": "int32"})
    {'type': 'int32', 'optional': True, 'name': 'n'}
    """
    return {part: schema[part] for part in (*_FIRST, *_LAST) if part in schema}


def _changed(schema: Schema, changes: Mapping[str, Any]) -> Schema:
    return {part: value for part, value in {**schema, **changes}.items() if value is not None}


def dumped(value: Any) -> str:
    """Return JSON as it stands in an event."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def constant(value: Any, schema: Schema, n: int) -> Leaf:
    """Return a column of one value.

    >>> constant("é", {"type": "string", "optional": False}, 2).texts.to_pylist()
    ['"é"', '"é"']
    """
    text = None if value is None else java_string(value) if isinstance(value, str) else dumped(value)
    return Leaf(schema, pa.repeat(pa.scalar(text, TEXT), n))


def nulls(column: Column) -> Column:
    """Return as many nulls of a column's schema."""
    n = len(column)
    if isinstance(column, Leaf):
        return Leaf(column.schema, pa.nulls(n, TEXT))
    return replace(column, valid=pa.repeat(pa.scalar(False), n))


def mapped(texts: pa.Array, function: Callable[[str], str | None]) -> pa.Array:
    """Return what a function makes of each text that is there, asking it once for each distinct one.

    Raises:
        RowsRefused: the function raises `ValueError` for some.

    >>> mapped(pa.array(["1", None, "1"], TEXT), lambda text: text + "0").to_pylist()
    ['10', None, '10']
    """
    encoded = texts.dictionary_encode()
    found: list[str | None] = []
    wrong: dict[int, str] = {}
    for code, text in enumerate(encoded.dictionary.to_pylist()):
        try:
            found.append(function(text))
        except (ValueError, ArithmeticError) as error:
            found.append(None)
            wrong[code] = str(error)
    if wrong:
        (code, reason) = next(iter(wrong.items()))
        same = [other for other, said in wrong.items() if said == reason]
        raise RowsRefused(np.asarray(pc.is_in(encoded.indices, pa.array(same, pa.int32()))), reason)
    return pa.array(found, TEXT).take(encoded.indices)


def plain_text(texts: pa.Array) -> pa.Array:
    """Return what JSON strings say; other values as they are written."""
    begins = pc.starts_with(texts, '"')
    if not pc.any(begins).as_py():
        return texts
    inside = pc.utf8_slice_codeunits(texts, 1, -1)
    if pc.any(pc.match_substring(texts, "\\")).as_py():
        inside = mapped(texts, lambda text: json.loads(text) if text.startswith('"') else text)
    return pc.if_else(begins, inside, texts)


def in_json(texts: pa.Array) -> pa.Array:
    """Return texts as JSON strings."""
    return mapped(texts, java_string)


@dataclass(frozen=True)
class Records:
    """Records whose keys, values and headers have one schema each.

    Attributes:
        order: where each stands among all of its batch.
        topics: of each.
        key, value: None where there is neither a value nor a schema.
        headers: in their order; two may have one name.
        partitions: which a transform chose; None: none did.
        timestamps: in milliseconds; None as long as there are none, as Debezium's records have none.
    """

    order: Ints
    topics: pa.LargeStringArray
    key: Column | None
    value: Column | None
    headers: tuple[tuple[str, Column], ...] = ()
    partitions: pa.Int32Array | None = None
    timestamps: pa.Int64Array | None = None

    def __len__(self) -> int:
        return len(self.order)

    @property
    def is_tombstone(self) -> Mask:
        """Return which have no value."""
        return np.ones(len(self), bool) if self.value is None else self.value.is_null

    @property
    def is_envelope(self) -> bool:
        """Return whether values are change events, by their schema's name."""
        name = None if self.value is None else self.value.schema.get("name")
        return bool(name) and str(name).endswith(".Envelope")

    def take(self, rows: Ints | Mask) -> Records:
        """Return some of them."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        at = pa.array(rows, pa.int64())
        return Records(
            self.order[rows],
            self.topics.take(at),
            None if self.key is None else self.key.take(at),
            None if self.value is None else self.value.take(at),
            tuple((name, column.take(at)) for name, column in self.headers),
            None if self.partitions is None else self.partitions.take(at),
            None if self.timestamps is None else self.timestamps.take(at),
        )

    def split(self, mask: Mask) -> tuple[Records, Records]:
        """Return those of which something is true, and the others."""
        return self.take(mask), self.take(~mask)

    def by_topic(self, function: Callable[[str], str]) -> Records:
        """Return them in the topics that a function makes of theirs."""
        return replace(self, topics=mapped(self.topics, function))

    def lines(self, *, schemas: bool, defaults: bool = True) -> pa.LargeStringArray:
        """Return a line of JSON for each, with the line's end.

        Args:
            schemas: schemas stand beside keys and values.
            defaults: null is written as the schema's default.
        """
        parts: list[pa.Array | str] = ['{"topic":', in_json(self.topics)]
        for name, column in (("key", self.key), ("value", self.value)):
            parts.append(f',"{name}":')
            if column is None:
                parts.append("null")
            elif schemas:
                schema = dumped(column.whole_schema or None)
                parts += [f'{{"schema":{schema},"payload":', column.json(defaults=defaults), "}"]
            else:
                parts.append(column.json(defaults=defaults))
        if self.partitions is not None:
            shown = joined([',"partition":', self.partitions.cast(TEXT)], len(self))
            parts.append(pc.if_else(self.partitions.is_valid(), shown, pa.scalar("", TEXT)))
        for place, (name, column) in enumerate(self.headers):
            begins = ", " if place else ',"headers":['
            parts.append(f"{begins}[{java_string(name)}, ")
            parts += [_shown(column), "]"]
        if self.headers:
            parts.append("]")
        return joined([*parts, "}\n"], len(self))


def _shown(column: Column) -> pa.Array:
    """Return a header's values as texts, those that are none as Java prints them; null is null."""
    schema = column.whole_schema

    def shown(text: str) -> str:
        value = json.loads(text, parse_float=_Number)
        if value is None or (isinstance(value, str) and schema.get("name") != _DECIMAL):
            return text
        return java_string(struct_text(value, schema))

    return mapped(column.json(defaults=False), shown)


def struct_text(value: Any, schema: Schema | None = None) -> str:
    """Return a value as Java prints a Struct, a list, or what is in them.

    >>> struct_text({"id": 1, "ok": True, "no": None})
    'Struct{id=1,ok=true}'
    >>> decimal = {"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": "2"}}
    >>> struct_text({"n": "APo="}, {"type": "struct", "fields": [{**decimal, "field": "n"}]})
    'Struct{n=2.50}'
    """
    of = schema or {}
    if isinstance(value, dict):
        fields = {part.get("field"): part for part in of.get("fields", ())}
        pairs = [f"{name}={struct_text(item, fields.get(name))}" for name, item in value.items() if item is not None]
        return f"Struct{{{','.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(struct_text(item, of.get('items')) for item in value)}]"
    if value is None:
        return "null"
    if isinstance(value, str) and of.get("name") == _DECIMAL:
        unscaled = int.from_bytes(base64.b64decode(value), "big", signed=True)
        return str(Decimal(unscaled).scaleb(-int(of["parameters"]["scale"])))
    if isinstance(value, float):
        return value.text if isinstance(value, _Number) else java_double(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def parsed(lines: Sequence[str]) -> list[Records]:
    """Return the records of lines that were written with schemas and without defaults."""
    groups: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for order, line in enumerate(lines):
        event = json.loads(line, parse_float=_Number)
        schemas = [event[part] and event[part]["schema"] for part in ("key", "value")]
        headers = [name for name, _ in event.get("headers", ())]
        groups.setdefault(dumped([schemas, headers]), []).append((order, event))
    return [_group(members) for members in groups.values()]


class _Number(float):
    """A number that is written as it was read."""

    def __init__(self, text: str) -> None:
        self.text = text


def _group(members: Sequence[tuple[int, dict[str, Any]]]) -> Records:
    events = [event for _, event in members]
    sides: list[Column | None] = []
    for part in ("key", "value"):
        first = events[0][part]
        sides.append(first and column_of(first["schema"], [event[part]["payload"] for event in events]))
    names = [name for name, _ in events[0].get("headers", ())]
    headers = []
    for place, name in enumerate(names):
        found = [event["headers"][place][1] for event in events]
        headers.append((name, Leaf({"type": "string", "optional": True}, _texts(found))))
    topics = pa.array([event["topic"] for event in events], TEXT)
    order = np.array([order for order, _ in members], np.int64)
    return Records(order, topics, sides[0], sides[1], tuple(headers))


def column_of(schema: Schema, values: Sequence[Any]) -> Column:
    """Return a column of Python's values of JSON."""
    own = {part: value for part, value in schema.items() if part not in ("field", "fields")}
    if schema["type"] != "struct":
        return Leaf(own, _texts(values))
    valid = pa.array([value is not None for value in values])
    fields = {
        part["field"]: column_of(part, [None if value is None else value.get(part["field"]) for value in values])
        for part in schema["fields"]
    }
    return Struct(own, fields, len(values), None if pc.all(valid).as_py() else valid)


def _texts(values: Iterable[Any]) -> pa.Array:
    return pa.array([None if value is None else _json(value) for value in values], TEXT)


def _json(value: Any) -> str:
    if isinstance(value, str):
        return java_string(value)
    if isinstance(value, list):
        return f"[{','.join(_json(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{java_string(str(name))}:{_json(item)}' for name, item in value.items())}}}"
    if isinstance(value, float):
        return value.text if isinstance(value, _Number) else java_double(value)
    return dumped(value)


def opened(column: Column) -> Column:
    """Return a column of structs that was one text by its parts."""
    if isinstance(column, Struct) or column.schema["type"] != "struct":
        return column
    values = [None if text is None else json.loads(text, parse_float=_Number) for text in column.texts.to_pylist()]
    return column_of(column.schema, values)
