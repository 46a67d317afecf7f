"""The outbox pattern's router: rows of an outbox table as the messages that they hold.

Source: ``io.debezium.transforms.outbox`` of Debezium 3.6.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.formats.json_text import TEXT, joined
from headrace.formats.transforms.fields import part_of
from headrace.formats.transforms.java_values import replacer
from headrace.formats.transforms.json_payload import JsonPayload
from headrace.formats.transforms.records import (
    Column,
    Leaf,
    Records,
    RowsRefused,
    Struct,
    column_of,
    mapped,
    opened,
    plain_text,
)
from headrace.formats.transforms.sides import Options, Transform, all_refused, structs_of

_UNITS = {"Timestamp": 1, "MicroTimestamp": 1000, "NanoTimestamp": 1_000_000}


def event_router(options: Options) -> Transform:
    """Send the messages of an outbox table to topics of their own."""
    return _Router(options)


class _Router:
    """EventRouter; the attributes are its properties."""

    def __init__(self, options: Options) -> None:
        wrong = check_placement(options.text("table.fields.additional.placement"))
        if wrong:
            raise ValueError(wrong)
        self.id = options.text("table.field.event.id", "id")
        self.key = options.text("table.field.event.key", "aggregateid")
        self.payload = options.text("table.field.event.payload", "payload")
        self.timestamp = options.text("table.field.event.timestamp")
        self.version = options.text("table.field.event.schema.version")
        self.route = options.text("route.by.field", "aggregatetype")
        regex = options.own.get("route.topic.regex", "(?P<routedByValue>.*)")
        self.topic = replacer(regex, options.own.get("route.topic.replacement", "outbox.event.${routedByValue}"))
        self.fatal = options.text("table.op.invalid.behavior", "warn").lower() == "fatal"
        self.ignores_missing = options.text("table.field.additional.missing", "error").lower() == "ignore"
        self.tombstones = options.flag("route.tombstone.on.empty.payload", False)
        nulls = options.text("table.json.payload.null.behavior", "ignore").lower() == "optional_bytes"
        self.json = JsonPayload(self.payload, nulls=nulls) if options.flag("table.expand.json.payload", False) else None
        self._topics: dict[str, str] = {}
        self.additional = [
            (item.split(":")[0].strip(), item.split(":")[1].strip().lower(), item.split(":")[-1].strip())
            if item.count(":") == 2
            else (item.split(":")[0].strip(), item.split(":")[1].strip().lower(), item.split(":")[0].strip())
            for item in options.listed("table.fields.additional.placement")
        ]

    def __call__(self, records: Records) -> list[Records]:
        records = records.take(~records.is_tombstone)
        if not len(records) or not records.is_envelope:
            return [records]
        envelope = structs_of(records, "value", "Detect Debezium Operation")
        ops = envelope.fields["op"].json(defaults=True)
        updated = np.asarray(pc.equal(ops, '"u"'))
        if self.fatal and updated.any():
            reason = "Unexpected update message received, fail."
            raise RowsRefused(updated, reason)
        records = records.take(np.asarray(pc.invert(pc.is_in(ops, pa.array(['"d"', '"u"'], TEXT)))))
        return self._messages(records) if len(records) else []

    def _messages(self, records: Records) -> list[Records]:
        envelope = structs_of(records, "value", "Read Outbox Event")
        event = opened(part_of(envelope, "after"))
        if not isinstance(event, Struct) or event.is_null.any():
            raise all_refused(records, "Only Struct objects supported for [Read Outbox Event], found: null")
        payload = self._field(records, event, self.payload, "Unable to find payload field {} in event")
        id_ = self._field(records, event, self.id, "Unable to find event-id field {} in event")
        timestamps = self._timestamps(records, envelope, event)
        records = replace(records, timestamps=timestamps, headers=(*records.headers, ("id", id_)))
        self._name_versions(records, event)
        found = []
        for rows, column in self._payloads(records, payload):
            found += self._routed(records.take(rows), event.take(pa.array(rows)), column)
        return found

    def _versions(self, event: Struct) -> pa.Array:
        """Return the versions of the events' schemas; empty texts where there are none."""
        none = pa.repeat(pa.scalar("", TEXT), len(event))
        return event.fields[self.version].json(defaults=True).fill_null("") if self.version in event.fields else none

    def _name_versions(self, records: Records, event: Struct) -> None:
        """Keep by which topic each version of the schema is called: that of its first event."""
        if self.route in event.fields:
            topics = plain_text(event.fields[self.route].json(defaults=False)).to_pylist()
            versions = self._versions(event).to_pylist()
            for row in np.argsort(records.order).tolist():
                self._topics.setdefault(versions[row], topics[row])

    @staticmethod
    def _field(records: Records, event: Struct, name: str, message: str) -> Column:
        if name not in event.fields:
            raise all_refused(records, message.format(name))
        return event.fields[name].with_default()

    def _timestamps(self, records: Records, envelope: Struct, event: Struct) -> pa.Array:
        """Return the events' times in milliseconds."""
        ours = envelope.fields["ts_ms"].json(defaults=True).cast(pa.int64())
        if not self.timestamp:
            return ours
        column = self._field(records, event, self.timestamp, "Unable to find timestamp field {} in event")
        column = event.fields[self.timestamp]
        name = str(column.schema.get("name", "")).removeprefix("io.debezium.time.")
        if not isinstance(column, Leaf) or (name not in _UNITS and not column.is_null.all()):
            raise all_refused(records, f"Unsupported field type {column.schema['type']} for event timestamp")
        numbers = np.asarray(column.texts.fill_null("0").cast(pa.int64()))
        unit = _UNITS.get(name, 1)
        cut = np.where(numbers < 0, -(-numbers // unit), numbers // unit)  # Java divides towards zero
        return pc.if_else(pa.array(column.is_null), ours, pa.array(cut))

    def _payloads(self, records: Records, payload: Column) -> list[tuple[Ints, Column]]:
        """Return the payloads, by their schemas where they are expanded."""
        every = np.arange(len(records))
        if self.json is None or not isinstance(payload, Leaf) or payload.schema["type"] != "string":
            return [(every, payload)]
        groups = self.json.groups(plain_text(payload.texts).to_pylist())
        groups.check(records, unfit_only=True)
        found: list[tuple[Ints, Column]] = [(rows, column_of(schema, values)) for rows, schema, values in groups.parsed]
        known = np.concatenate([rows for rows, _, _ in groups.parsed]) if groups.parsed else every[:0]
        rest = np.setdiff1d(every, known)
        if rest.size:
            found.append((rest, payload.take(pa.array(rest))))
        return found

    def _routed(self, records: Records, event: Struct, payload: Column) -> list[Records]:
        key = self._field(records, event, self.key, "{} is not a valid field name") if self.key else None
        self._field(records, event, self.route, "{} is not a valid field name")
        route = event.fields[self.route]
        if route.is_null.any():
            raise RowsRefused(route.is_null, f"the record says in «{self.route}» no topic")
        routed = plain_text(route.json(defaults=False))
        headers, enveloped = list(records.headers), {}
        for name, placement, alias in self.additional:
            if name not in event.fields:
                if self.ignores_missing:
                    continue
                raise all_refused(records, f"Unable to find field {name} in event")
            column = event.fields[name] if placement == "partition" else event.fields[name].with_default()
            if placement == "header":
                headers.append((alias, column))
            elif placement == "envelope":
                enveloped[alias] = column
            else:
                records = replace(records, partitions=column.json(defaults=False).cast(pa.int32()))
        topics = mapped(routed, lambda topic: self.topic(topic) or topic)
        records = replace(records, key=key, headers=tuple(headers))
        empty = payload.is_null | _is_blank(payload)
        found = []
        if self.tombstones and empty.any():
            found.append(replace(records, value=None, topics=topics).take(empty))
            rows = np.flatnonzero(~empty)
        else:
            rows = np.arange(len(records))
        if not rows.size:
            return found
        if not any(placement == "envelope" for _, placement, _ in self.additional):
            return [*found, replace(records, value=payload, topics=topics).take(rows)]
        at = pa.array(rows)
        fields = {"payload": payload.take(at), **{alias: column.take(at) for alias, column in enveloped.items()}}
        whole = replace(records, topics=topics).take(rows)
        return [*found, *self._enveloped(whole, fields, event.take(at), routed.take(at))]

    def _enveloped(self, records: Records, fields: dict[str, Column], event: Struct, routed: pa.Array) -> list[Records]:
        """Return payloads in structs, whose schemas are named after the table and the topic."""
        names = joined([routed, "\0", self._versions(event)], len(records))
        found = []
        before, _, last = str(event.schema.get("name", "")).rpartition(".")
        for name in pc.unique(names).to_pylist():
            rows = np.flatnonzero(np.asarray(pc.equal(names, name)))
            topic, _, version = name.rpartition("\0")
            if version or self.json is None:  # what is expanded has schemas of its own, where these have no versions
                topic = self._topics[version]
            schema = {"type": "struct", "optional": False, "name": f"{before}.{topic}.{last}" if before else topic}
            if version:
                schema["version"] = int(version)
            at = pa.array(rows)
            value = Struct(schema, {alias: column.take(at) for alias, column in fields.items()}, rows.size)
            found.append(replace(records.take(rows), value=value))
        return found


def _is_blank(payload: Column) -> Mask:
    if isinstance(payload, Struct) or payload.schema["type"] != "string":
        return np.zeros(len(payload), bool)
    texts = plain_text(payload.texts.fill_null('""'))
    return np.asarray(pc.equal(pc.utf8_trim_whitespace(texts), ""))


def check_placement(text: str) -> str:
    """Return what is wrong with ``table.fields.additional.placement``; nothing where it is right.

    >>> check_placement("type:header:eventType,a:b")
    '«b» is none of header, envelope, partition'
    """
    for item in filter(None, (item.strip() for item in text.split(","))):
        parts = [part.strip() for part in item.split(":")]
        if len(parts) not in (2, 3):
            return f"«{item}» is not column:placement or column:placement:alias"
        if parts[1].lower() not in ("header", "envelope", "partition"):
            return f"«{parts[1]}» is none of header, envelope, partition"
    return ""
