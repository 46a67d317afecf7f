"""Transforms of topics and partitions.

Sources: ``connect/transforms`` of apache/kafka 4.1, ``ToLogicalTopicRouter`` and ``PartitionRouting`` of Debezium 3.6.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.formats.json_text import TEXT
from headrace.formats.transforms.fields import part_of
from headrace.formats.transforms.java_values import date_printer, hash_code, murmur, replacer
from headrace.formats.transforms.records import Column, Leaf, Records, RowsRefused, Struct, in_json, opened
from headrace.formats.transforms.sides import Options, Transform, all_refused

_KEY_FIELD = "__dbz__physicalTableIdentifier"
_Hash = Callable[[object, str], int]


def regex_router(options: Options) -> Transform:
    """Give records whose topic matches another topic."""
    replaced = replacer(options.own.get("regex", ""), options.own.get("replacement", ""))

    def route(topic: str) -> str:
        found = replaced(topic)
        return topic if found is None else found

    return lambda records: [records.by_topic(route)]


def timestamp_router(options: Options) -> Transform:
    """Put a record's time into its topic's name."""
    form = options.own.get("topic.format", "${topic}-${timestamp}")
    printed = date_printer(options.own.get("timestamp.format", "yyyyMMdd"))

    def transform(records: Records) -> list[Records]:
        if records.timestamps is None:
            raise all_refused(records, "Timestamp missing on record")
        days = [printed(ms) for ms in records.timestamps.to_pylist()]
        topics = [
            form.replace("${topic}", topic).replace("${timestamp}", day)
            for topic, day in zip(records.topics.to_pylist(), days, strict=True)
        ]
        return [replace(records, topics=pa.array(topics, TEXT))]

    return transform


# -- logical tables ---------------------------------------------------------------------------------------------------


def by_logical_table_router(options: Options) -> Transform:
    """Put the events of several tables into one topic, with the table in their keys."""
    replaced = replacer(options.own.get("topic.regex", ""), options.own.get("topic.replacement", ""))
    named = options.own.get("key.field.regex")
    identified = replacer(named, options.own.get("key.field.replacement", "")) if named else lambda topic: topic
    unique, field = options.flag("key.enforce.uniqueness", True), options.text("key.field.name", _KEY_FIELD)
    adjusted = name_adjuster(options.text("schema.name.adjustment.mode", "none").lower())

    def transform(records: Records) -> list[Records]:
        found = []
        for topic in pc.unique(records.topics).to_pylist():
            some = records.take(np.asarray(pc.equal(records.topics, topic)))
            new = replaced(topic)
            if not new:
                found.append(some)
                continue
            key = None if some.key is None else opened(some.key)
            if key is not None:
                if not isinstance(key, Struct):
                    raise all_refused(records, f"Only Struct objects supported for [Updating schema], found: {topic}")
                key = key.with_schema(name=adjusted(f"{new}.Key"))
                if unique:
                    table = in_json(pa.array([identified(topic) or topic], TEXT))[0]
                    column = Leaf({"type": "string", "optional": False}, pa.repeat(table, len(some)))
                    key = key.with_fields({**key.fields, field: column})
            value = _renamed(some.value, new, adjusted) if some.is_envelope else some.value
            found.append(replace(some, key=key, value=value, topics=pa.repeat(pa.scalar(new, TEXT), len(some))))
        return found

    return transform


def _renamed(value: Column | None, topic: str, adjusted: Callable[[str], str]) -> Column | None:
    """Return envelopes whose schemas are named after a topic."""
    if not isinstance(value, Struct):
        return value
    fields = {
        name: column.with_schema(name=adjusted(f"{topic}.Value")) if name in ("before", "after") else column
        for name, column in value.fields.items()
    }
    # A default of the envelope's own fields is copied where there is no value.
    fields = {
        name: column.with_default() if name not in ("before", "after") else column for name, column in fields.items()
    }
    return value.with_fields(fields).with_schema(name=adjusted(f"{topic}.Envelope"))


def name_adjuster(mode: str) -> Callable[[str], str]:
    """Return what makes names that Avro takes, as ``schema.name.adjustment.mode`` says.

    >>> name_adjuster("avro")("a-b.1c"), name_adjuster("avro_unicode")("a-b")
    ('a_b._1c', 'a_u002db')
    """
    if mode == "none":
        return lambda name: name

    def escape(character: str) -> str:
        return "_" if mode == "avro" else f"_u{ord(character):04x}"

    def adjusted(name: str) -> str:
        found = ""
        for place, character in enumerate(name):
            first = place == 0 or name[place - 1] == "."
            plain = character.isascii() and (character.isalpha() or character == "_")
            if plain or (character == "." and not first) or (not first and character.isascii() and character.isdigit()):
                found += character
            elif first and character.isascii() and character.isdigit() and mode == "avro":
                found += f"_{character}"
            else:
                found += escape(character)
        return found

    return adjusted


# -- partitions -------------------------------------------------------------------------------------------------------


def partition_routing(options: Options) -> Transform:
    """Choose the partition by the values of fields; it stands in the record, and the key stays."""
    paths = [[step.strip() for step in path.split(".")] for path in options.listed("partition.payload.fields")]
    count = options.whole("partition.topic.num") or 1
    function = murmur if options.text("partition.hash.function").lower() == "murmur" else hash_code

    def transform(records: Records) -> list[Records]:
        if records.value is None or not records.is_envelope or not isinstance(records.value, Struct):
            return [records]
        ops = records.value.fields["op"].json(defaults=True)
        chosen, rest = records.split(~np.asarray(pc.is_in(ops, pa.array(['"t"', '"m"'], TEXT))) & ~records.is_tombstone)
        return [rest, *([_partitioned(chosen, paths, count, function)] if len(chosen) else [])]

    return transform


def _partitioned(
    records: Records, paths: list[list[str]], count: int, function: Callable[[object, str], int]
) -> Records:
    total, any_there = np.zeros(len(records), np.int64), np.zeros(len(records), bool)
    for path in paths:
        for rows, column in _at(records, path):
            there = ~column.is_null
            any_there[rows[there]] = True
            total[rows] += _hashes(records, column, function)
    normal = (total & 0x7FFFFFFF).astype(np.int64)
    normal[normal == 0x7FFFFFFF] = 0
    partitions = pa.array(normal % count, mask=~any_there).cast(pa.int32())
    if records.partitions is not None:
        partitions = partitions.fill_null(records.partitions)
    return replace(records, partitions=partitions)


def _at(records: Records, path: list[str]) -> list[tuple[Ints, Column]]:
    """Return the values at a path, and of which rows; ``change`` is the old row of a delete, the new one of others."""
    assert isinstance(records.value, Struct)
    every = np.arange(len(records))
    if path[0] != "change" or len(path) == 1:
        column = _walk(records.value, path)
        return [] if column is None else [(every, column)]
    deleted = np.asarray(pc.equal(records.value.fields["op"].json(defaults=True), '"d"'))
    found = []
    for rows, image in ((every[deleted], "before"), (every[~deleted], "after")):
        some = records.value.take(pa.array(rows))
        column = _walk(some, [image, *path[1:]])
        if column is not None:
            found.append((rows, column))
    return found


def _walk(structs: Struct, path: list[str]) -> Column | None:
    found: Column = structs
    for step in path:
        held = opened(found)
        if held.is_null.any():
            raise RowsRefused(held.is_null, "Unprocessable message: a field of what is null")
        if not isinstance(held, Struct) or step not in held.fields:
            return None
        found = part_of(held, step, defaults=True)
    return found


def _hashes(records: Records, column: Column, function: _Hash) -> Ints:
    """Return the hash of each value; 0 where there is none."""
    if isinstance(column, Struct):
        raise all_refused(records, "Unprocessable message: a struct has no hash that is the same each time")
    encoded = column.texts.dictionary_encode()
    kind, decimal = column.schema["type"], column.schema.get("name") == "org.apache.kafka.connect.data.Decimal"
    scale = int(column.schema.get("parameters", {}).get("scale", 0))
    hashes = []
    for text in encoded.dictionary.to_pylist():
        value = json.loads(text)
        if decimal:
            value = Decimal(int.from_bytes(base64.b64decode(value), "big", signed=True)).scaleb(-scale)
        elif kind == "bytes":
            raise all_refused(records, "Unprocessable message: bytes have no hash that is the same each time")
        try:
            hashes.append(function(value, kind))
        except ValueError as error:
            raise all_refused(records, f"Unprocessable message: {error}") from error
    return np.asarray(pa.array(hashes, pa.int64()).take(encoded.indices).fill_null(0))
