"""Transforms and predicates of Debezium and Kafka Connect, and what each does here.

Names and defaults are those of `debezium/debezium` v3.6.1.Final (``debezium-connect-plugins``, ``debezium-scripting``,
``debezium-connector-postgres``) and `apache/kafka` 4 (``connect/transforms``). The sentences are ours.
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace.capture.debezium.properties import (
    Component,
    Kind,
    Meaning,
    Property,
    done,
    harmless,
    not_yet,
    refused,
    written,
)

_KAFKA = "org.apache.kafka.connect.transforms"
_DEBEZIUM = "io.debezium.transforms"

# Those of every transform.
COMMON = (
    Property("type", Kind.CLASS, None, done("See the transforms.")),
    Property("predicate", Kind.TEXT, None, not_yet("A transform is for all rows.")),
    Property("negate", Kind.BOOLEAN, "false", harmless("It turns a predicate round, which is said for itself.")),
    Property(
        "plugin.version", Kind.TEXT, None, harmless("It concerns Kafka Connect's worker, which there is none of.")
    ),
)

_Row = tuple[str, Kind, str | None]
_NULLS: _Row = ("replace.null.with.default", Kind.BOOLEAN, "true")
_WORDS: dict[str, tuple[str, ...]] = {
    "operation": ("move", "copy"),
    "unix.precision": ("seconds", "milliseconds", "microseconds", "nanoseconds"),
    "target.type": ("string", "unix", "date", "time", "timestamp"),
    "null.handling.mode": ("drop", "keep", "evaluate"),
    "schema.name.adjustment.mode": ("none", "avro", "avro_unicode"),
    "partition.hash.function": ("java", "murmur"),
    "table.op.invalid.behavior": ("warn", "error", "fatal"),
    "table.field.additional.missing": ("error", "ignore"),
    "table.json.payload.null.behavior": ("ignore", "optional_bytes"),
    "format": ("wkb", "ewkb"),
    "field.syntax.version": ("v1", "v2"),
}


def _properties(meaning: Meaning, rows: Iterable[_Row]) -> tuple[Property, ...]:
    """Return the properties of a transform that all share its fate."""
    return tuple(
        Property(name, kind, default, meaning, allowed=_WORDS[name] if kind is Kind.WORD else ())
        for name, kind, default in rows
    )


def _kafka(name: str, meaning: Meaning, *rows: _Row, sides: bool = True) -> Component:
    """Return a transform of Kafka Connect, with a class for keys and one for values where it has ``sides``."""
    classes = (f"{_KAFKA}.{name}$Value", f"{_KAFKA}.{name}$Key") if sides else (f"{_KAFKA}.{name}",)
    return Component(classes, meaning, _properties(meaning, rows))


def _debezium(path: str, meaning: Meaning, *rows: _Row) -> Component:
    return Component((f"{_DEBEZIUM}.{path}",), meaning, _properties(meaning, rows))


_ROWS = not_yet("«stream.where» and «select» of an app filter and choose, and publications leave out rows and columns.")
_SCRIPT = not_yet('A condition in Groovy or JavaScript is not run; stream.where("…") takes SQL.')
_ROUTES = not_yet("A table has its topic, <prefix>.<schema>.<table>.")
_VALUES = not_yet("Values are in the log as PostgreSQL has them.")
_KEYS = not_yet("A row's key is its table's primary key.")
_HEADERS = not_yet("Headers are those of the log's format.")
_SHAPE = not_yet("A row has its table's columns.")
_OUTBOX = not_yet("An outbox is captured like every other table.")
_PARTITIONS = not_yet("Rows go to partitions by their key.")

_FLATTEN = Component(
    (f"{_DEBEZIUM}.ExtractNewRecordState",),
    done(
        "Rows are flat in the log; on a Kafka log the messages are json in place of json+envelope, and the events of "
        "«topics cat --format debezium-json» are flat."
    ),
    (
        Property(
            "delete.tombstone.handling.mode",
            Kind.WORD,
            "tombstone",
            written("deletes so. On a Kafka log a delete is a tombstone; the log itself keeps the deleted row."),
            allowed=("drop", "tombstone", "rewrite", "rewrite-with-tombstone", "delete-to-tombstone"),
        ),
        Property("add.fields", Kind.LIST, None, written("these stand behind the columns.")),
        Property("add.fields.prefix", Kind.TEXT, "__", written("it stands before their names.")),
        Property("add.headers", Kind.LIST, None, written("these are headers.")),
        Property("add.headers.prefix", Kind.TEXT, "__", written("it stands before their names.")),
        Property("route.by.field", Kind.TEXT, None, _ROUTES),
        Property("drop.fields.header.name", Kind.TEXT, None, _SHAPE),
        Property("drop.fields.from.key", Kind.BOOLEAN, "false", _SHAPE),
        Property("drop.fields.keep.schema.compatible", Kind.BOOLEAN, "true", harmless("It concerns drop.fields.….")),
        Property(
            "replace.null.with.default",
            Kind.BOOLEAN,
            "true",
            written("a NULL that is copied is the column's default, unless it is false. In the log NULL is NULL."),
        ),
        Property(
            "drop.tombstones",
            Kind.BOOLEAN,
            None,
            refused("Debezium 3 has it no more. Use delete.tombstone.handling.mode."),
        ),
        Property(
            "delete.handling.mode",
            Kind.TEXT,
            None,
            refused("Debezium 3 has it no more. Use delete.tombstone.handling.mode."),
        ),
    ),
)

DEBEZIUM = (
    _FLATTEN,
    _debezium(
        "ExtractChangedRecordState",
        _HEADERS,
        ("header.changed.name", Kind.TEXT, None),
        ("header.unchanged.name", Kind.TEXT, None),
    ),
    _debezium("ExtractSchemaToNewRecord", _SHAPE),
    _debezium(
        "Filter",
        _SCRIPT,
        ("language", Kind.TEXT, None),
        ("condition", Kind.TEXT, None),
        ("topic.regex", Kind.REGEX, None),
        ("null.handling.mode", Kind.WORD, "keep"),
    ),
    _debezium(
        "ContentBasedRouter",
        _SCRIPT,
        ("language", Kind.TEXT, None),
        ("topic.expression", Kind.TEXT, None),
        ("topic.regex", Kind.REGEX, None),
        ("null.handling.mode", Kind.WORD, "keep"),
    ),
    _debezium(
        "ByLogicalTableRouter",
        _ROUTES,
        ("topic.regex", Kind.REGEX, None),
        ("topic.replacement", Kind.TEXT, None),
        ("key.enforce.uniqueness", Kind.BOOLEAN, "true"),
        ("key.field.regex", Kind.REGEX, None),
        ("key.field.name", Kind.TEXT, "__dbz__physicalTableIdentifier"),
        ("key.field.replacement", Kind.TEXT, None),
        ("schema.name.adjustment.mode", Kind.WORD, "none"),
        ("logical.table.cache.size", Kind.INTEGER, "16"),
    ),
    _debezium(
        "outbox.EventRouter",
        _OUTBOX,
        ("table.op.invalid.behavior", Kind.WORD, "warn"),
        ("table.field.event.id", Kind.TEXT, "id"),
        ("table.field.event.key", Kind.TEXT, "aggregateid"),
        ("table.field.event.type", Kind.TEXT, "type"),
        ("table.field.event.timestamp", Kind.TEXT, None),
        ("table.field.event.payload", Kind.TEXT, "payload"),
        ("table.field.event.schema.version", Kind.TEXT, None),
        ("table.fields.additional.placement", Kind.LIST, None),
        ("table.field.additional.missing", Kind.WORD, "error"),
        ("table.expand.json.payload", Kind.BOOLEAN, "false"),
        ("table.json.payload.null.behavior", Kind.WORD, "ignore"),
        ("route.by.field", Kind.TEXT, "aggregatetype"),
        ("route.topic.regex", Kind.REGEX, "(?<routedByValue>.*)"),
        ("route.topic.replacement", Kind.TEXT, "outbox.event.${routedByValue}"),
        ("route.tombstone.on.empty.payload", Kind.BOOLEAN, "false"),
        ("tracing.span.context.field", Kind.TEXT, "tracingspancontext"),
        ("tracing.operation.name", Kind.TEXT, "debezium-read"),
        ("tracing.with.context.field.only", Kind.BOOLEAN, "false"),
    ),
    _debezium(
        "partitions.PartitionRouting",
        _PARTITIONS,
        ("partition.payload.fields", Kind.LIST, None),
        ("partition.topic.num", Kind.INTEGER, None),
        ("partition.hash.function", Kind.WORD, "java"),
    ),
    _debezium(
        "TimezoneConverter",
        _VALUES,
        ("converted.timezone", Kind.TEXT, None),
        ("include.list", Kind.LIST, None),
        ("exclude.list", Kind.LIST, None),
    ),
    _debezium(
        "SchemaChangeEventFilter",
        harmless("There are no events of schema changes, as with Debezium's connector of PostgreSQL."),
        ("schema.change.event.exclude.list", Kind.TEXT, None),
    ),
    _debezium(
        "HeaderToValue",
        _HEADERS,
        ("headers", Kind.LIST, None),
        ("fields", Kind.LIST, None),
        ("operation", Kind.WORD, None),
    ),
    _debezium("VectorToJsonConverter", _VALUES),
    _debezium("SwapGeometryCoordinates", _VALUES, ("srids", Kind.TEXT, None)),
    _debezium("GeometryFormatTransformer", _VALUES, ("format", Kind.WORD, "wkb")),
    _debezium(
        "EnforceRecordSize",
        _VALUES,
        ("max.bytes", Kind.INTEGER, None),
        ("compression.ratio", Kind.NUMBER, "1.0"),
        ("min.field.size", Kind.INTEGER, "25000"),
    ),
    _debezium(
        "tracing.ActivateTracingSpan",
        refused("Spans of OpenTelemetry are not made. Leave it out."),
        ("tracing.span.context.field", Kind.TEXT, "tracingspancontext"),
        ("tracing.operation.name", Kind.TEXT, "debezium-read"),
        ("tracing.with.context.field.only", Kind.BOOLEAN, "false"),
    ),
    _debezium("openlineage.OpenLineage", refused("OpenLineage events are not sent. Leave it out.")),
    Component(
        ("io.debezium.connector.postgresql.transforms.DecodeLogicalDecodingMessageContent",),
        not_yet("The content of messages stays as it is."),
        _properties(
            not_yet("The content of messages stays as it is."),
            [("fields.null.include", Kind.BOOLEAN, "false")],
        ),
    ),
    Component(
        ("io.debezium.connector.postgresql.transforms.timescaledb.TimescaleDb",),
        not_yet("Chunks of hypertables are captured as tables of their own."),
        _properties(
            not_yet("Chunks of hypertables are captured as tables of their own."),
            [
                ("schema.list", Kind.LIST, "_timescaledb_internal"),
                ("target.topic.prefix", Kind.TEXT, "timescaledb"),
                ("database.<property>", Kind.TEXT, None),
            ],
        ),
    ),
)

KAFKA = (
    _kafka("Cast", _VALUES, ("spec", Kind.LIST, None), _NULLS),
    _kafka("DropHeaders", _HEADERS, ("headers", Kind.LIST, None), sides=False),
    _kafka("ExtractField", _SHAPE, ("field", Kind.TEXT, None), ("field.syntax.version", Kind.WORD, "v1"), _NULLS),
    _kafka("Filter", _ROWS, sides=False),
    _kafka("Flatten", _SHAPE, ("delimiter", Kind.TEXT, ".")),
    _kafka(
        "HeaderFrom",
        _HEADERS,
        ("fields", Kind.LIST, None),
        ("headers", Kind.LIST, None),
        ("operation", Kind.WORD, None),
        _NULLS,
    ),
    _kafka("HoistField", _SHAPE, ("field", Kind.TEXT, None)),
    _kafka(
        "InsertField",
        _SHAPE,
        ("topic.field", Kind.TEXT, None),
        ("partition.field", Kind.TEXT, None),
        ("offset.field", Kind.TEXT, None),
        ("timestamp.field", Kind.TEXT, None),
        ("static.field", Kind.TEXT, None),
        ("static.value", Kind.TEXT, None),
        _NULLS,
    ),
    _kafka("InsertHeader", _HEADERS, ("header", Kind.TEXT, None), ("value.literal", Kind.TEXT, None), sides=False),
    _kafka("MaskField", _VALUES, ("fields", Kind.LIST, None), ("replacement", Kind.TEXT, None), _NULLS),
    _kafka("RegexRouter", _ROUTES, ("regex", Kind.REGEX, None), ("replacement", Kind.TEXT, None), sides=False),
    _kafka(
        "ReplaceField",
        _SHAPE,
        ("include", Kind.LIST, None),
        ("exclude", Kind.LIST, None),
        ("whitelist", Kind.LIST, None),
        ("blacklist", Kind.LIST, None),
        ("renames", Kind.LIST, None),
        _NULLS,
    ),
    _kafka(
        "SetSchemaMetadata",
        _SHAPE,
        ("schema.name", Kind.TEXT, None),
        ("schema.version", Kind.INTEGER, None),
        _NULLS,
    ),
    _kafka(
        "TimestampConverter",
        _VALUES,
        ("field", Kind.TEXT, None),
        ("target.type", Kind.WORD, None),
        ("format", Kind.TEXT, None),
        ("unix.precision", Kind.WORD, "milliseconds"),
        ("field.syntax.version", Kind.WORD, "v1"),
        _NULLS,
    ),
    _kafka(
        "TimestampRouter",
        _ROUTES,
        ("topic.format", Kind.TEXT, "${topic}-${timestamp}"),
        ("timestamp.format", Kind.TEXT, "yyyyMMdd"),
        sides=False,
    ),
    _kafka("ValueToKey", _KEYS, ("fields", Kind.LIST, None), _NULLS, sides=False),
)

TRANSFORMS = (*DEBEZIUM, *KAFKA)

_PREDICATE = not_yet("A transform is for all rows.")
PREDICATES = (
    Component(
        (f"{_KAFKA}.predicates.TopicNameMatches",),
        _PREDICATE,
        _properties(_PREDICATE, [("pattern", Kind.REGEX, None)]),
    ),
    Component((f"{_KAFKA}.predicates.HasHeaderKey",), _PREDICATE, _properties(_PREDICATE, [("name", Kind.TEXT, None)])),
    Component((f"{_KAFKA}.predicates.RecordIsTombstone",), _PREDICATE),
)

_RESELECT = not_yet("Values that an update did not send are not read again; REPLICA IDENTITY FULL sends them.")
POST_PROCESSORS = (
    Component(
        ("io.debezium.processors.reselect.ReselectColumnsPostProcessor",),
        _RESELECT,
        (
            *_properties(
                _RESELECT,
                [
                    ("reselect.columns.include.list", Kind.REGEXES, None),
                    ("reselect.columns.exclude.list", Kind.REGEXES, None),
                    ("reselect.unavailable.values", Kind.BOOLEAN, "true"),
                    ("reselect.null.values", Kind.BOOLEAN, "true"),
                    ("reselect.use.event.key", Kind.BOOLEAN, "false"),
                ],
            ),
            Property("reselect.error.handling.mode", Kind.WORD, "warn", _RESELECT, allowed=("warn", "fail")),
        ),
    ),
)
