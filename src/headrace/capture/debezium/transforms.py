"""Transforms and predicates of Debezium and Kafka Connect, and what each does here.

Names and defaults are those of `debezium/debezium` v3.6.1.Final (``debezium-connect-plugins``, ``debezium-scripting``,
``debezium-connector-postgres``) and `apache/kafka` 4 (``connect/transforms``). The sentences are ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

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
    Property("predicate", Kind.TEXT, None, written("only records that the predicate chooses go through it.")),
    Property("negate", Kind.BOOLEAN, "false", written("it turns the predicate round.")),
    Property(
        "plugin.version", Kind.TEXT, None, harmless("It concerns Kafka Connect's worker, which there is none of.")
    ),
)

# Name, type, default; a name that ends with * is one that has to be there.
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
        Property(
            name.rstrip("*"),
            kind,
            default,
            meaning,
            allowed=_WORDS[name.rstrip("*")] if kind is Kind.WORD else (),
            required=name.endswith("*"),
        )
        for name, kind, default in rows
    )


def _kafka(name: str, meaning: Meaning, *rows: _Row, sides: bool = True) -> Component:
    """Return a transform of Kafka Connect, with a class for keys and one for values where it has ``sides``."""
    classes = (f"{_KAFKA}.{name}$Value", f"{_KAFKA}.{name}$Key") if sides else (f"{_KAFKA}.{name}",)
    return Component(classes, meaning, _properties(meaning, rows))


def _debezium(path: str, meaning: Meaning, *rows: _Row) -> Component:
    return Component((f"{_DEBEZIUM}.{path}",), meaning, _properties(meaning, rows))


def _with(component: Component, *more: Property) -> Component:
    return replace(component, properties=(*component.properties, *more))


def _scripted(name: str, does: str, expression: str) -> Component:
    """Return a transform of Debezium whose expressions are SQL here."""
    meaning = written(does)
    rows = (
        (f"{expression}*", Kind.TEXT, None),
        ("topic.regex", Kind.REGEX, None),
        ("null.handling.mode", Kind.WORD, "keep"),
    )
    return _with(_debezium(name, meaning, *rows), _LANGUAGE)


_VALUES = not_yet("Values are in the log as PostgreSQL has them.")
_SHAPE = not_yet("A row has its table's columns.")
_LANGUAGE = Property(
    "language",
    Kind.TEXT,
    None,
    refused("Expressions are SQL here: language=sql, or leave it out."),
    {"sql": written("expressions are SQL, over before, after, source, op, topic, key, value and header.")},
)

FLATTENING = f"{_DEBEZIUM}.ExtractNewRecordState"
_FLATTEN = Component(
    (FLATTENING,),
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
        Property("route.by.field", Kind.TEXT, None, written("the topic is what the row's field says.")),
        Property("drop.fields.header.name", Kind.TEXT, None, written("fields that this header lists are left out.")),
        Property("drop.fields.from.key", Kind.BOOLEAN, "false", written("they are left out of the key, too.")),
        Property(
            "drop.fields.keep.schema.compatible",
            Kind.BOOLEAN,
            "true",
            written("only fields that may be null are left out, unless it is false."),
        ),
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
        written("headers name the fields that an update changed, and the others."),
        ("header.changed.name", Kind.TEXT, None),
        ("header.unchanged.name", Kind.TEXT, None),
    ),
    _debezium("ExtractSchemaToNewRecord", _SHAPE),
    _scripted("Filter", "records are kept for which the condition, in SQL, is true.", "condition"),
    _scripted("ContentBasedRouter", "the topic is what the expression, in SQL, says.", "topic.expression"),
    _debezium(
        "ByLogicalTableRouter",
        written("several tables' events go to one topic, with the table in their keys."),
        ("topic.regex*", Kind.REGEX, None),
        ("topic.replacement*", Kind.TEXT, None),
        ("key.enforce.uniqueness", Kind.BOOLEAN, "true"),
        ("key.field.regex", Kind.REGEX, None),
        ("key.field.name", Kind.TEXT, "__dbz__physicalTableIdentifier"),
        ("key.field.replacement", Kind.TEXT, None),
        ("schema.name.adjustment.mode", Kind.WORD, "none"),
        ("logical.table.cache.size", Kind.INTEGER, "16"),
    ),
    _debezium(
        "outbox.EventRouter",
        written("messages of an outbox table go to topics of their own. Nothing is traced."),
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
        written("the partition, by a hash of fields, stands in the record."),
        ("partition.payload.fields*", Kind.LIST, None),
        ("partition.topic.num*", Kind.INTEGER, None),
        ("partition.hash.function", Kind.WORD, "java"),
    ),
    _debezium(
        "TimezoneConverter",
        written("times are moved to another zone."),
        ("converted.timezone*", Kind.TEXT, None),
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
        written("headers are copied or moved into fields."),
        ("headers*", Kind.LIST, None),
        ("fields*", Kind.LIST, None),
        ("operation*", Kind.WORD, None),
    ),
    _debezium("VectorToJsonConverter", written("pgvector's values are JSON texts.")),
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
        written("a logical message whose content is JSON becomes an event, which the outbox's router takes."),
        _properties(written("fields that are null are there, too."), [("fields.null.include", Kind.BOOLEAN, "false")]),
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
    _kafka("Cast", written("fields have other types."), ("spec*", Kind.LIST, None), _NULLS),
    _kafka("DropHeaders", written("headers are left out."), ("headers*", Kind.LIST, None), sides=False),
    _kafka(
        "ExtractField",
        written("of the key or the value one field is left."),
        ("field*", Kind.TEXT, None),
        ("field.syntax.version", Kind.WORD, "v1"),
        _NULLS,
    ),
    _kafka("Filter", written("records that its predicate chooses are left out."), sides=False),
    _kafka("Flatten", written("fields of structs stand beside the others."), ("delimiter", Kind.TEXT, ".")),
    _kafka(
        "HeaderFrom",
        written("fields are copied or moved into headers."),
        ("fields*", Kind.LIST, None),
        ("headers*", Kind.LIST, None),
        ("operation*", Kind.WORD, None),
        _NULLS,
    ),
    _kafka("HoistField", written("the key or the value stands in a field."), ("field*", Kind.TEXT, None)),
    _with(
        _kafka(
            "InsertField",
            written("fields are added. A captured record has no partition and no timestamp of its own."),
            ("topic.field", Kind.TEXT, None),
            ("partition.field", Kind.TEXT, None),
            ("timestamp.field", Kind.TEXT, None),
            ("static.field", Kind.TEXT, None),
            ("static.value", Kind.TEXT, None),
            _NULLS,
        ),
        Property(
            "offset.field",
            Kind.TEXT,
            None,
            refused("Only what reads Kafka knows offsets; Kafka Connect fails on each record here, too. Leave it out."),
        ),
    ),
    _kafka(
        "InsertHeader",
        written("a header is added."),
        ("header*", Kind.TEXT, None),
        ("value.literal*", Kind.TEXT, None),
        sides=False,
    ),
    _kafka(
        "MaskField",
        written("fields are empty, or hold the replacement."),
        ("fields*", Kind.LIST, None),
        ("replacement", Kind.TEXT, None),
        _NULLS,
    ),
    _kafka(
        "RegexRouter",
        written("the topic has another name."),
        ("regex*", Kind.REGEX, None),
        ("replacement*", Kind.TEXT, None),
        sides=False,
    ),
    _kafka(
        "ReplaceField",
        written("fields are left out, or have other names."),
        ("include", Kind.LIST, None),
        ("exclude", Kind.LIST, None),
        ("whitelist", Kind.LIST, None),
        ("blacklist", Kind.LIST, None),
        ("renames", Kind.LIST, None),
        _NULLS,
    ),
    _kafka(
        "SetSchemaMetadata",
        written("the schema has another name, or version."),
        ("schema.name", Kind.TEXT, None),
        ("schema.version", Kind.INTEGER, None),
        _NULLS,
    ),
    _kafka(
        "TimestampConverter",
        written("times have another type."),
        ("field", Kind.TEXT, None),
        ("target.type*", Kind.WORD, None),
        ("format", Kind.TEXT, None),
        ("unix.precision", Kind.WORD, "milliseconds"),
        _NULLS,
    ),
    _kafka(
        "TimestampRouter",
        written(
            "the topic has the record's time in its name. Debezium's events have none, and are refused, as by Kafka "
            "Connect; those of the outbox's router have one."
        ),
        ("topic.format", Kind.TEXT, "${topic}-${timestamp}"),
        ("timestamp.format", Kind.TEXT, "yyyyMMdd"),
        sides=False,
    ),
    _kafka(
        "ValueToKey",
        written("the key is made of fields of the value."),
        ("fields*", Kind.LIST, None),
        _NULLS,
        sides=False,
    ),
)

TRANSFORMS = (*DEBEZIUM, *KAFKA)

_PREDICATE = written("it chooses records for the transforms that name it.")
PREDICATES = (
    Component(
        (f"{_KAFKA}.predicates.TopicNameMatches",),
        _PREDICATE,
        _properties(_PREDICATE, [("pattern*", Kind.REGEX, None)]),
    ),
    Component(
        (f"{_KAFKA}.predicates.HasHeaderKey",), _PREDICATE, _properties(_PREDICATE, [("name*", Kind.TEXT, None)])
    ),
    Component((f"{_KAFKA}.predicates.RecordIsTombstone",), _PREDICATE),
)

_RESELECT = done("Values that an update did not send are read again when it is read, by the row's key.")
_RESELECTED = done("Chooses columns, as schema.table:column.")
POST_PROCESSORS = (
    Component(
        ("io.debezium.processors.reselect.ReselectColumnsPostProcessor",),
        _RESELECT,
        (
            Property("reselect.columns.include.list", Kind.REGEXES, None, _RESELECTED),
            Property("reselect.columns.exclude.list", Kind.REGEXES, None, _RESELECTED),
            Property("reselect.unavailable.values", Kind.BOOLEAN, "true", done("Whether they are read again.")),
            Property("reselect.null.values", Kind.BOOLEAN, "true", harmless("A NULL that was sent stays.")),
            Property("reselect.use.event.key", Kind.BOOLEAN, "false", not_yet("A row is read by its table's key.")),
            Property(
                "reselect.error.handling.mode",
                Kind.WORD,
                "warn",
                done("What cannot be read is said, and stays as it was sent."),
                {"fail": not_yet("What cannot be read is said, and stays as it was sent.")},
                allowed=("warn", "fail"),
            ),
        ),
    ),
)
