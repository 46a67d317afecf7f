"""Transforms of fields: which there are, what they are called, where they stand.

Sources: ``connect/transforms`` of apache/kafka 4.1, ``HeaderToValue`` of Debezium 3.6.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.formats.debezium_types import Schema
from headrace.formats.json_text import TEXT
from headrace.formats.transforms.records import Column, Leaf, Records, RowsRefused, Struct, constant, in_json, opened
from headrace.formats.transforms.sides import (
    Options,
    Transform,
    all_refused,
    on_structs,
    side_of,
    structs_of,
    with_side,
)

_TIMESTAMP = {"type": "int64", "name": "org.apache.kafka.connect.data.Timestamp", "version": 1}
_INTEGERS = ("int8", "int16", "int32", "int64")


def replace_field(options: Options) -> Transform:
    """Keep some fields, leave out others, give others new names."""
    include, exclude = set(options.listed("include")), set(options.listed("exclude"))
    # Names of Kafka before 2.7.
    include |= set(options.listed("whitelist"))
    exclude |= set(options.listed("blacklist"))
    renames = dict(item.split(":", 1) for item in options.listed("renames"))

    def change(_: Records, structs: Struct) -> Column:
        copied = structs.copied(defaults=options.defaults)
        kept = {
            renames.get(name, name): column
            for name, column in copied.fields.items()
            if name not in exclude and (not include or name in include)
        }
        return copied.with_fields(kept)

    return lambda records: on_structs(records, options.side, change, purpose="field replacement", keeps_null=True)


def mask_field(options: Options) -> Transform:
    """Put an empty value, or another one, in place of what a field says."""
    masked, replacement = set(options.listed("fields")), options.own.get("replacement")

    def change(records: Records, structs: Struct) -> Column:
        columns = structs.copied(defaults=options.defaults).fields
        return structs.with_fields(
            {name: _masked(records, c, replacement) if name in masked else c for name, c in columns.items()}
        )

    return lambda records: on_structs(records, options.side, change, purpose="mask fields", keeps_null=False)


def _masked(records: Records, column: Column, replacement: str | None) -> Column:
    if column.is_null.all():
        return column
    kind = column.schema["type"] if isinstance(column, Leaf) else "struct"
    if replacement is None:
        empty = {"boolean": "false", "float": "0.0", "double": "0.0", "string": '""', "array": "[]", "map": "{}"}
        text = "0" if kind in _INTEGERS else empty.get(kind)
        if _is_decimal(column) and column.schema.get("parameters", {}).get("scale") == "0":
            text = '"AA=="'
    else:
        text = _replacement(records, column, kind, replacement)
    if text is None:
        what = f"Cannot mask value of type {kind}"
        what = what if replacement is None else f"{what} with custom replacement"
        raise RowsRefused(~column.is_null, what, order=records.order[~column.is_null])
    return Leaf(column.schema, pc.if_else(pa.array(column.is_null), pa.scalar(None, TEXT), pa.scalar(text, TEXT)))


def _is_decimal(column: Column) -> bool:
    return column.schema.get("name") == "org.apache.kafka.connect.data.Decimal"


def _replacement(records: Records, column: Column, kind: str, replacement: str) -> str | None:
    if kind == "string":
        return str(in_json(pa.array([replacement], TEXT))[0])
    try:
        if kind in _INTEGERS:
            return str(int(replacement))
        return repr(float(replacement)) if kind in ("float", "double") else None
    except ValueError:
        there = ~column.is_null
        raise RowsRefused(there, f"Unable to convert {replacement} to number", order=records.order[there]) from None


def insert_field(options: Options) -> Transform:
    """Add what is known of a record, or a constant, as fields."""

    def named(option: str) -> tuple[str, bool]:
        text = options.text(option)
        return text.rstrip("!?"), not text.endswith("!")

    def change(records: Records, structs: Struct) -> Column:
        n, copied = len(records), structs.copied(defaults=options.defaults)
        added: dict[str, Column] = {}
        for option, schema in (
            ("topic.field", {"type": "string"}),
            ("partition.field", {"type": "int32"}),
            ("timestamp.field", _TIMESTAMP),
            ("static.field", {"type": "string"}),
        ):
            name, optional = named(option)
            if not name:
                continue
            of = {**schema, "optional": optional}
            if option == "topic.field":
                column = Leaf(of, in_json(records.topics))
            elif option == "static.field":
                column = constant(options.own.get("static.value"), of, n)
            else:
                numbers = records.partitions if option == "partition.field" else records.timestamps
                column = Leaf(of, pa.nulls(n, TEXT) if numbers is None else numbers.cast(TEXT))
            _check_there(records, name, column)
            added[name] = column
        return copied.with_fields({**copied.fields, **added})

    return lambda records: on_structs(records, options.side, change, purpose="field insertion", keeps_null=True)


def _check_there(records: Records, name: str, column: Column) -> None:
    if not column.schema["optional"] and column.is_null.any():
        raise all_refused(records, f'Invalid value: null used for required field: "{name}"')


def hoist_field(options: Options) -> Transform:
    """Put a whole key or value into a field."""
    name = options.text("field")

    def transform(records: Records) -> list[Records]:
        column = side_of(records, options.side)
        if column is None:  # a map without a schema
            held = in_json(pa.array([name], TEXT))[0].as_py()
            text = pa.repeat(pa.scalar(f"{{{held}:null}}", TEXT), len(records))
            return [with_side(records, options.side, Leaf({}, text))]
        _check_there(records, name, column.with_schema(optional=bool(column.schema.get("optional"))))
        hoisted = Struct({"type": "struct", "optional": False}, {name: column}, len(records))
        return [with_side(records, options.side, hoisted)]

    return transform


def extract_field(options: Options) -> Transform:
    """Leave of a key or a value one field."""
    path = options.text("field")
    steps = path_steps(path) if options.text("field.syntax.version", "v1").lower() == "v2" else [path]

    def transform(records: Records) -> list[Records]:
        if side_of(records, options.side) is None:
            return [records]
        found: Column = structs_of(records, options.side, "field extraction")
        for step in steps:
            held = opened(found)
            if not isinstance(held, Struct) or step not in held.fields:
                raise all_refused(records, f"Unknown field: {path}")
            found = part_of(held, step, defaults=options.defaults)
        return [with_side(records, options.side, found)]

    return transform


def path_steps(path: str) -> list[str]:
    """Return the steps of a path of ``field.syntax.version`` v2: backticks hold a name with dots.

    >>> path_steps("after.`a.b`.c")
    ['after', 'a.b', 'c']
    """
    found = re.findall(r"`((?:[^`\\]|\\.)*)`(?:\.|$)|([^.]+)(?:\.|$)", path)
    return [quoted.replace("\\`", "`") or plain for quoted, plain in found]


def part_of(structs: Struct, name: str, *, defaults: bool = False) -> Column:
    """Return a field, null where its struct is null."""
    column = structs.fields[name]
    column = column.with_default() if defaults else column
    if structs.valid is None:
        return column
    if isinstance(column, Leaf):
        return Leaf(column.schema, pc.if_else(structs.valid, column.texts, pa.scalar(None, TEXT)))
    return replace(column, valid=structs.valid if column.valid is None else pc.and_(structs.valid, column.valid))


def value_to_key(options: Options) -> Transform:
    """Make the key of fields of the value."""
    names = options.listed("fields")

    def transform(records: Records) -> list[Records]:
        null = records.is_tombstone
        if null.any():
            on_structs(records, "value", lambda _, s: s, purpose="copying fields from value to key", keeps_null=False)
        structs = structs_of(records, "value", "copying fields from value to key")
        missing = [name for name in names if name not in structs.fields]
        if missing:
            raise all_refused(records, f"Field does not exist: {missing[0]}")
        fields = {name: structs.fields[name] for name in names}
        if options.defaults:
            fields = {name: column.with_default() for name, column in fields.items()}
        return [replace(records, key=Struct({"type": "struct", "optional": False}, fields, len(records)))]

    return transform


def flatten(options: Options) -> Transform:
    """Put the fields of structs inside into the struct itself, by names with a delimiter."""
    delimiter = options.own.get("delimiter", ".")

    def add(records: Records, structs: Struct, prefix: str, optional: bool, into: dict[str, Column]) -> None:
        for name in structs.fields:
            column = opened(part_of(structs, name, defaults=True))
            full = f"{prefix}{delimiter}{name}" if prefix else name
            may_lack = optional or bool(column.schema.get("optional"))
            if isinstance(column, Struct):
                add(records, column, full, may_lack, into)
            elif column.schema["type"] == "map":
                raise all_refused(
                    records,
                    f"Flatten transformation does not support MAP for record with schemas (for field {full}).",
                )
            else:
                into[full] = column.with_schema(optional=may_lack)

    def transform(records: Records) -> list[Records]:
        column = side_of(records, options.side)
        if column is None:
            return [records]
        null = column.is_null
        kept, rest = records.split(null)
        if not len(rest):
            return [records]
        structs = structs_of(rest, options.side, "flattening")
        fields: dict[str, Column] = {}
        add(rest, structs, "", bool(structs.schema.get("optional")), fields)
        flat = Struct(structs.copied().schema, fields, len(rest))
        return [kept, with_side(rest, options.side, flat)]

    return transform


def set_schema_metadata(options: Options) -> Transform:
    """Give a schema another name, and another version."""
    name, version = options.own.get("schema.name"), options.whole("schema.version")

    def transform(records: Records) -> list[Records]:
        column = side_of(records, options.side)
        if column is None:
            return [records]
        if not column.schema:
            raise all_refused(records, "Schema required for [updating schema metadata]")
        changes: Schema = {"name": name or column.schema.get("name")}
        if version is not None:
            changes["version"] = version
        return [with_side(records, options.side, column.with_schema(**changes))]

    return transform


# -- headers ----------------------------------------------------------------------------------------------------------


def insert_header(options: Options) -> Transform:
    """Add a header with a constant."""
    name, (value, schema) = options.text("header"), literal(options.own.get("value.literal", ""))

    def transform(records: Records) -> list[Records]:
        column = constant(value, schema, len(records))
        return [replace(records, headers=(*records.headers, (name, column)))]

    return transform


def literal(text: str) -> tuple[object, Schema]:
    """Return what Kafka Connect's ``Values.parseString`` makes of a text, and its schema.

    >>> literal("17"), literal("yes")
    ((17, {'type': 'int8', 'optional': False}), ('yes', {'type': 'string', 'optional': False}))
    """

    def of(kind: str) -> Schema:
        return {"type": kind, "optional": False}

    bare = text.strip()
    if bare == "null":
        return None, {"type": "string", "optional": True}
    if bare in ("true", "false"):
        return bare == "true", of("boolean")
    if re.fullmatch(r"[+-]?\d+", bare) and -(2**63) <= int(bare) < 2**63:
        number = int(bare)
        bits = next(bits for bits in (8, 16, 32, 64) if -(2 ** (bits - 1)) <= number < 2 ** (bits - 1))
        return number, of(f"int{bits}")
    if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?", bare):
        single = np.float32(bare)
        return (float(str(single)), of("float")) if np.isfinite(single) else (float(bare), of("double"))
    return text, of("string")


def drop_headers(options: Options) -> Transform:
    """Leave out headers, by their names."""
    dropped = set(options.listed("headers"))

    def transform(records: Records) -> list[Records]:
        return [replace(records, headers=tuple(header for header in records.headers if header[0] not in dropped))]

    return transform


def header_from(options: Options) -> Transform:
    """Copy or move fields into headers."""
    pairs = list(zip(options.listed("fields"), options.listed("headers"), strict=True))
    moves = options.text("operation").lower() == "move"

    def transform(records: Records) -> list[Records]:
        headers: list[tuple[str, Column]] = []

        def change(some: Records, structs: Struct) -> Column:
            for name, header in pairs:
                if name not in structs.fields:
                    raise all_refused(some, f"Unknown field: {name}")
                column = structs.fields[name]
                headers.append((header, column.with_default() if options.defaults else column))
            if not moves:
                return structs
            copied, gone = structs.copied(defaults=options.defaults), {name for name, _ in pairs}
            return copied.with_fields({name: c for name, c in copied.fields.items() if name not in gone})

        found = on_structs(
            records, options.side, change, purpose="header " + options.text("operation"), keeps_null=False
        )
        return [replace(some, headers=(*some.headers, *headers)) for some in found]

    return transform


def header_to_value(options: Options) -> Transform:
    """Copy or move headers into fields of the value; a dot leads into a struct."""
    places = dict(zip(options.listed("headers"), options.listed("fields"), strict=True))
    moves = options.text("operation").lower() == "move"

    def transform(records: Records) -> list[Records]:
        found = [(places[name], column) for name, column in records.headers if name in places]
        if not found:
            return [records]
        tombstones, rest = records.split(records.is_tombstone)
        if not len(rest):
            return [records]
        structs = structs_of(rest, "value", "Header field insertion")
        rows = pa.array(np.flatnonzero(~records.is_tombstone))
        for path, column in found:
            structs = _with_entry(rest, structs, path.split("."), column.take(rows))
        left = rest.headers if not moves else tuple(header for header in rest.headers if header[0] not in places)
        return [tombstones, replace(rest, value=structs.copied(), headers=left)]

    return transform


def _with_entry(records: Records, structs: Struct, path: list[str], column: Column) -> Struct:
    """Return structs with a field more, at the end of a path."""
    fields: dict[str, Column] = dict(structs.fields)
    name, *rest = path
    if not rest:
        known = fields.get(name)
        fields[name] = column if known is None else column.with_schema(**known.schema)
        return structs.with_fields(fields)
    inner = opened(fields[name]) if name in fields else Struct({"type": "struct", "optional": True}, {}, len(records))
    if not isinstance(inner, Struct):
        raise all_refused(
            records,
            f"Field '{name}' is a primitive type, not a struct. Cannot add nested field '{'.'.join(path)}'.",
        )
    made = _with_entry(records, inner, rest, column)
    fields[name] = made if name not in fields else made.copied()
    return structs.with_fields(fields)
