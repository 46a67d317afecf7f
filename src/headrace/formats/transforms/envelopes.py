"""Transforms of Debezium's change events: flattening, which fields an update changed, logical messages.

Source: ``debezium-connect-plugins`` and ``debezium-connector-postgres`` of Debezium 3.6.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Mask
from headrace.formats.debezium_types import java_string
from headrace.formats.json_text import TEXT, joined
from headrace.formats.transforms.fields import part_of
from headrace.formats.transforms.json_payload import JsonPayload
from headrace.formats.transforms.records import (
    Column,
    Leaf,
    Records,
    Struct,
    column_of,
    constant,
    nulls,
    opened,
    plain_text,
)
from headrace.formats.transforms.sides import Options, Transform, all_refused, structs_of

_TRANSACTION = ("id", "data_collection_order", "total_order")
_OWN = ("op", "ts_ms", "ts_us", "ts_ns")
_STRING = {"type": "string", "optional": False}
_STRINGS = {"type": "array", "items": {"type": "string", "optional": True}, "optional": True}


@dataclass(frozen=True, slots=True)
class _Reference:
    """A field of an envelope that is added to a row or to its headers.

    Attributes:
        struct: in which it is; nothing: in the envelope itself.
        name: of the field; ``new``: of what is added.
    """

    struct: str
    name: str
    new: str

    @classmethod
    def of(cls, item: str, prefix: str) -> _Reference:
        place, _, renamed = item.partition(":")
        struct, dot, name = place.rpartition(".")
        if not dot:
            struct = "transaction" if name in _TRANSACTION else "" if name in _OWN else "source"
        return cls(struct, name, prefix + (renamed or (f"{struct}_{name}" if dot else name)))

    def column(self, records: Records, envelope: Struct) -> Column | None:
        """Return the field's values; None where there is no such field."""
        parent: Column = envelope
        if self.struct:
            if self.struct not in envelope.fields:
                raise all_refused(records, f"there is no field «{self.struct}» in the event")
            parent = opened(part_of(envelope, self.struct))
        held = parent if isinstance(parent, Struct) and self.name in parent.fields else envelope
        if self.name not in held.fields:
            return None
        column = part_of(held, self.name).with_schema(optional=True, default=None)
        if held is envelope and isinstance(parent, Struct) and parent.valid is not None:
            column = part_of(replace(parent, fields={self.name: column}), self.name)
        return column


def extract_new_record_state(options: Options) -> Transform:
    """Leave of a change event its row."""
    return _Flattening(options)


class _Flattening:
    """ExtractNewRecordState."""

    def __init__(self, options: Options) -> None:
        def references(name: str) -> list[_Reference]:
            prefix = options.own.get(f"{name}.prefix", "__").strip()
            return [_Reference.of(item, prefix) for item in options.listed(name)]

        self.options = options
        self.deletes = options.text("delete.tombstone.handling.mode", "tombstone").lower()
        self.rewrites = self.deletes.startswith("rewrite")
        self.fields, self.headers = references("add.fields"), references("add.headers")
        self.route = options.text("route.by.field")

    def __call__(self, records: Records) -> list[Records]:
        tombstones, others = records.split(records.is_tombstone)
        found = []
        if len(tombstones) and self.deletes == "rewrite-with-tombstone":
            ops = [reference.new for reference in self.headers if reference.name == "op"]
            added = [(name, constant("d", _STRING, len(tombstones))) for name in ops]
            found.append(replace(tombstones, headers=(*tombstones.headers, *added)))
        if len(others) and not others.is_envelope:
            return [*found, others]
        return [*found, *(self._events(others) if len(others) else [])]

    def _events(self, records: Records) -> list[Records]:
        envelope = structs_of(records, "value", "flattening an event")
        columns = [(reference.new, reference.column(records, envelope)) for reference in self.headers]
        records = replace(records, headers=(*records.headers, *((name, c) for name, c in columns if c is not None)))
        before = _image(records, envelope, "before").is_null
        after = _image(records, envelope, "after").is_null
        rows, deletes = records.take(~after), records.take(after & ~before)
        found = [self._row(rows, "after", "false")] if len(rows) else []
        if len(deletes) and self.deletes != "drop":
            found.append(self._delete(deletes))
        return [part for some in found for part in self._dropped(some)]

    def _delete(self, records: Records) -> Records:
        if self.rewrites:
            return self._row(records, "before", "true")
        envelope = structs_of(records, "value", "flattening an event")
        value = None if self.deletes == "delete-to-tombstone" else nulls(_image(records, envelope, "after"))
        return self._routed(replace(records, value=value), _image(records, envelope, "before"))

    def _row(self, records: Records, image: str, deleted: str) -> Records:
        """Return flat rows of new or old images."""
        envelope = structs_of(records, "value", "flattening an event")
        row = _image(records, envelope, image)
        fields: dict[str, Column] = dict(row.fields)
        if self.rewrites:
            fields = dict(row.copied(defaults=self.options.defaults).fields)
            fields["__deleted"] = constant(deleted, {"type": "string", "optional": True}, len(records))
        for reference in self.fields:
            column = reference.column(records, envelope)
            if column is not None:
                fields[reference.new] = column
        flat = Struct(row.copied().schema, fields, len(records))
        return self._routed(replace(records, value=flat), row)

    def _routed(self, records: Records, row: Struct) -> Records:
        if not self.route:
            return records
        column = row.fields.get(self.route)
        if column is None or not isinstance(column, Leaf) or column.schema["type"] != "string":
            raise all_refused(records, f"{self.route} is not a valid field name of a text")
        topics = plain_text(column.texts)
        blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(topics), ""), True)
        return replace(records, topics=pc.if_else(blank, records.topics, topics))

    def _dropped(self, records: Records) -> list[Records]:
        """Return records without the fields that a header lists."""
        name = self.options.text("drop.fields.header.name")
        header = next((column for known, column in records.headers if known == name), None) if name else None
        if header is None or records.value is None:
            return [records]
        lists, found = header.json(defaults=False), []
        for text in pc.unique(lists).to_pylist():
            listed = json.loads(text) if text is not None else []
            same = pc.equal(lists, text) if text is not None else lists.is_null()
            found.append(self._without(records.take(np.asarray(same)), listed))
        return found

    def _without(self, records: Records, names: Sequence[str]) -> Records:
        compatible = self.options.flag("drop.fields.keep.schema.compatible", True)
        if self.options.flag("drop.fields.from.key", False):
            records = replace(records, key=_left(records.key, names, compatible))
        return replace(records, value=_left(records.value, names, compatible))


def _left(column: Column | None, names: Sequence[str], compatible: bool) -> Column | None:
    """Return structs without some fields; ``compatible``: only of those that may be null."""
    if not isinstance(column, Struct):
        return column
    gone = {name for name in names if name in column.fields}
    if compatible:
        gone = {name for name in gone if column.fields[name].schema.get("optional")}
    if not gone or column.is_null.all():
        return column
    copied = column.copied()
    return copied.with_fields({name: part for name, part in copied.fields.items() if name not in gone})


def _image(records: Records, envelope: Struct, name: str) -> Struct:
    image = opened(envelope.fields[name]) if name in envelope.fields else None
    if not isinstance(image, Struct):
        raise all_refused(records, f"the event has no «{name}»")
    return image


# -- changed fields ---------------------------------------------------------------------------------------------------


def extract_changed_record_state(options: Options) -> Transform:
    """Name in headers the fields that an update changed, and those that it did not."""
    changed, unchanged = options.text("header.changed.name"), options.text("header.unchanged.name")

    def transform(records: Records) -> list[Records]:
        if not records.is_envelope:
            return [records]
        tombstones, rest = records.split(records.is_tombstone)
        if not len(rest):
            return [records]
        envelope = structs_of(rest, "value", "Record value should be struct.")
        before, after = _image(rest, envelope, "before"), _image(rest, envelope, "after")
        both = ~before.is_null & ~after.is_null
        differ = {name: _differ(before.fields[name], column) for name, column in after.fields.items()}
        added = []
        for header, wanted in ((changed, True), (unchanged, False)):
            if header:
                of = {name: both & (found == wanted) for name, found in differ.items()}
                schema = {
                    "type": "array",
                    "items": {"type": "string", "optional": True},
                    "optional": True,
                    "name": header,
                }
                added.append((header, Leaf(schema, _names(of, len(rest)))))
        return [tombstones, replace(rest, headers=(*rest.headers, *added))]

    return transform


def _differ(old: Column, new: Column) -> Mask:
    left, right = (column.json(defaults=False).fill_null("") for column in (old, new))
    return np.asarray(pc.not_equal(left, right))


def _names(of: dict[str, Mask], n: int) -> pa.Array:
    """Return the names of which something is true, as a list in JSON."""
    parts = [
        pc.if_else(pa.array(mask), pa.scalar(f",{java_string(name)}", TEXT), pa.scalar("", TEXT))
        for name, mask in of.items()
    ]
    return joined(["[", pc.utf8_slice_codeunits(joined(parts, n), 1), "]"], n)


def schema_change_event_filter(_: Options) -> Transform:
    """Leave everything: PostgreSQL has no events of changed schemas."""
    return lambda records: [records]


# -- logical messages -------------------------------------------------------------------------------------------------

_MESSAGE = "io.debezium.connector.postgresql.MessageValue"


def decode_logical_decoding_message_content(options: Options) -> Transform:
    """Make of a logical message whose content is JSON an event that the outbox's router takes."""
    payload = JsonPayload(nulls=options.flag("fields.null.include", False))

    def transform(records: Records) -> list[Records]:
        if records.value is None or records.value.schema.get("name") != _MESSAGE:
            return [records]
        envelope = structs_of(records, "value", "Retrieve a record value")
        message = opened(part_of(envelope, "message"))
        if not isinstance(message, Struct):
            raise all_refused(records, "the record has no message")
        groups = payload.groups([_decoded(text) for text in message.fields["content"].json(defaults=True).to_pylist()])
        groups.check(records)
        found = []
        for rows, schema, values in groups.parsed:
            some = envelope.take(pa.array(rows))
            fields = {name: column for name, column in some.copied().fields.items() if name != "message"}
            fields["op"] = constant("c", fields["op"].schema, len(rows))
            fields["after"] = column_of(schema, values)
            value = Struct({"type": "struct", "optional": False, "name": f"{_MESSAGE}.Envelope"}, fields, len(rows))
            found.append(replace(records.take(rows), key=None, value=value))
        return found

    return transform


def _decoded(text: str | None) -> str:
    return "" if text is None else base64.b64decode(json.loads(text)).decode("utf-8", "replace")
