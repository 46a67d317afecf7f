"""The properties of Kafka Connect that stand in a connector's configuration, and its converters.

Names and defaults are those of `apache/kafka` 4: ``ConnectorConfig``, ``SourceConnectorConfig``,
``TopicCreationConfig``, ``JsonConverterConfig``; of `debezium/debezium` v3.6.1.Final for Debezium's converters; and of
Confluent's and Apicurio's manuals for theirs. The sentences are ours.
"""

from __future__ import annotations

from headrace.capture.debezium.properties import (
    Component,
    Kind,
    Property,
    done,
    harmless,
    not_yet,
    refused,
    written,
)

_WORKER = harmless("It concerns Kafka Connect's worker, which there is none of.")
_CLIENT = refused(
    "A client of Connect's worker, which there is none of. Say it by HEADRACE_KAFKA_… or HEADRACE_KAFKA_CONFIG."
)
_ALWAYS = harmless("A row and its position are always stored exactly once, in one transaction.")
_CREATION = not_yet(
    "Topics of a Kafka log are made with the cluster's defaults; «headrace topics create» makes others."
)

CONNECTOR = (
    Property("name", Kind.TEXT, None, done("Names the pipeline where nothing else does.")),
    Property(
        "connector.class",
        Kind.CLASS,
        None,
        done("The native capture of PostgreSQL takes its place."),
        form=(
            r"(io\.debezium\.connector\.postgresql\.)?PostgresConnector",
            "io.debezium.connector.postgresql.PostgresConnector, which alone is run natively",
        ),
        required=True,
    ),
    Property("connector.plugin.version", Kind.TEXT, None, _WORKER),
    Property("tasks.max", Kind.INTEGER, "1", harmless("One capture reads one slot, as Debezium does."), minimum=1),
    Property("tasks.max.enforce", Kind.BOOLEAN, "true", harmless("One capture reads one slot, as Debezium does.")),
    Property("key.converter", Kind.CLASS, None, done("See the converters.")),
    Property("value.converter", Kind.CLASS, None, done("See the converters.")),
    Property("header.converter", Kind.CLASS, None, harmless("Headers are text.")),
    Property("key.converter.plugin.version", Kind.TEXT, None, _WORKER),
    Property("value.converter.plugin.version", Kind.TEXT, None, _WORKER),
    Property("header.converter.<property>", Kind.TEXT, None, harmless("Headers are text.")),
    Property("transforms", Kind.LIST, None, done("Names of the transforms, in their order; see there for each.")),
    Property("predicates", Kind.LIST, None, done("Names of the predicates; see there for each.")),
    Property("config.action.reload", Kind.WORD, "restart", _WORKER, allowed=("none", "restart")),
    Property(
        "config.providers",
        Kind.LIST,
        None,
        done("${NAME:PATH:KEY} is taken from files, properties files, directories and the environment."),
    ),
    Property(
        "config.providers.<name>.class",
        Kind.CLASS,
        None,
        done("FileConfigProvider, DirectoryConfigProvider or EnvVarConfigProvider of Apache Kafka."),
    ),
    Property(
        "config.providers.<name>.param.<property>",
        Kind.TEXT,
        None,
        done("allowed.paths and allowlist.pattern say what a provider may read."),
    ),
    Property(
        "errors.tolerance",
        Kind.WORD,
        "none",
        done(
            "With none «topics cat --format debezium-json» ends with exit code 1 where a transform could not take a "
            "record, with all it leaves it out. A row that cannot be captured is a dead letter with either."
        ),
        allowed=("none", "all"),
    ),
    Property("errors.retry.timeout", Kind.MILLISECONDS, "0", _WORKER, minimum=-1),
    Property("errors.retry.delay.max.ms", Kind.MILLISECONDS, "60000", _WORKER, minimum=0),
    Property("errors.log.enable", Kind.BOOLEAN, "false", harmless("Dead letters are counted, and said.")),
    Property("errors.log.include.messages", Kind.BOOLEAN, "false", harmless("A dead letter holds its row.")),
    Property(
        "errors.deadletterqueue.<property>",
        Kind.TEXT,
        None,
        harmless("Kafka Connect has it for sinks only. Dead letters are in <topic>.dlq."),
    ),
    Property("exactly.once.support", Kind.WORD, "requested", _ALWAYS, allowed=("requested", "required")),
    Property("transaction.boundary", Kind.WORD, "poll", _ALWAYS, allowed=("poll", "interval", "connector")),
    Property("transaction.boundary.interval.ms", Kind.MILLISECONDS, None, _ALWAYS, minimum=1),
    Property("offsets.storage.topic", Kind.TEXT, None, harmless("Positions are in the log, beside the rows.")),
    Property(
        "topic.creation.enable",
        Kind.BOOLEAN,
        "true",
        harmless("Topics of a Kafka log are made where they are missing."),
    ),
    Property("topic.creation.groups", Kind.LIST, None, _CREATION),
    Property(
        "topic.creation.default.replication.factor",
        Kind.INTEGER,
        None,
        _CREATION,
        {"-1": harmless("Topics of a Kafka log are made with the cluster's defaults.")},
        minimum=-1,
    ),
    Property(
        "topic.creation.default.partitions",
        Kind.INTEGER,
        None,
        _CREATION,
        {"-1": harmless("Topics of a Kafka log are made with the cluster's defaults.")},
        minimum=-1,
    ),
    Property("topic.creation.<group>.<property>", Kind.TEXT, None, _CREATION),
    Property("producer.override.<property>", Kind.TEXT, None, _CLIENT),
    Property("consumer.override.<property>", Kind.TEXT, None, _CLIENT),
    Property("admin.override.<property>", Kind.TEXT, None, _CLIENT),
)

# -- converters -------------------------------------------------------------------------------------------------------

_CACHE = harmless("It tunes the converter's memory.")
_REGISTRY = "schema.registry.url"
_SERIALIZER = not_yet("The registry's subjects, compatibility and client are as Headrace's formats have them.")


def _registry(*, required: bool = True) -> tuple[Property, ...]:
    return (
        Property(_REGISTRY, Kind.LIST, None, done("The schema registry of a Kafka log."), required=required),
        Property("auto.register.schemas", Kind.BOOLEAN, "true", _SERIALIZER),
        Property("enhanced.avro.schema.support", Kind.BOOLEAN, "false", _SERIALIZER),
        Property("basic.auth.credentials.source", Kind.TEXT, "URL", _SERIALIZER),
        Property("basic.auth.user.info", Kind.SECRET, None, _SERIALIZER),
        Property("<property>", Kind.TEXT, None, _SERIALIZER),
    )


_JSON = (
    Property(
        "schemas.enable",
        Kind.BOOLEAN,
        "true",
        done(
            "On a Kafka log the messages are json+schema, or json where it is false; in the events of «topics cat "
            "--format debezium-json» schemas are there where it is said to be true, or by --schemas."
        ),
    ),
    Property("schemas.cache.size", Kind.INTEGER, "1000", _CACHE, minimum=0),
    Property(
        "decimal.format",
        Kind.WORD,
        "base64",
        written("with numeric a decimal is a number, with the digits of its scale."),
        allowed=("base64", "numeric"),
    ),
    Property(
        "replace.null.with.default",
        Kind.BOOLEAN,
        "true",
        written("a NULL in a column with a default is the default, unless it is false. In the log NULL is NULL."),
    ),
)
_DELEGATE = (
    Property("delegate.converter.type", Kind.CLASS, None, not_yet("The bytes of one column are no message.")),
    Property("delegate.converter.type.<property>", Kind.TEXT, None, not_yet("The bytes of one column are no message.")),
)
_APICURIO = (
    Property("apicurio.registry.url", Kind.TEXT, None, not_yet("Apicurio's own wire format is not written.")),
    Property("<property>", Kind.TEXT, None, not_yet("Apicurio's own wire format is not written.")),
)
_CLOUD_EVENTS = not_yet("Events are not written as CloudEvents.")
_PLAIN = not_yet("An event has several fields; a format of one plain value is for topics of your own (format=).")

CONVERTERS = (
    Component(
        ("org.apache.kafka.connect.json.JsonConverter",),
        done("On a Kafka log the messages are JSON; a log in a file holds the rows themselves."),
        _JSON,
    ),
    Component(
        ("io.confluent.connect.avro.AvroConverter",),
        done("On a Kafka log the messages are Avro, with their schemas in the registry."),
        _registry(),
    ),
    Component(
        ("io.confluent.connect.json.JsonSchemaConverter",),
        done("On a Kafka log the messages are JSON, with their schemas in the registry."),
        _registry(),
    ),
    Component(
        ("io.confluent.connect.protobuf.ProtobufConverter",),
        not_yet("Protobuf is read, and not written."),
        _registry(required=False),
    ),
    *(
        Component(
            (f"io.apicurio.registry.utils.converter.{name}Converter",),
            not_yet("Apicurio's own wire format is not written; its registry serves Confluent's, by AvroConverter."),
            _APICURIO,
        )
        for name in ("Avro", "ExtJson", "Protobuf")
    ),
    Component(
        ("org.apache.kafka.connect.storage.StringConverter",),
        _PLAIN,
        (Property("converter.encoding", Kind.TEXT, "UTF-8", _PLAIN),),
    ),
    Component(("org.apache.kafka.connect.storage.SimpleHeaderConverter",), harmless("Headers are text.")),
    *(
        Component((f"org.apache.kafka.connect.converters.{name}Converter",), _PLAIN)
        for name in ("ByteArray", "Boolean", "Double", "Float", "Integer", "Long", "Short")
    ),
    Component(
        ("io.debezium.converters.ByteArrayConverter",), not_yet("Bytes of one column are no message."), _DELEGATE
    ),
    Component(
        ("io.debezium.converters.BinaryDataConverter",), not_yet("Bytes of one column are no message."), _DELEGATE
    ),
    Component(
        ("io.debezium.converters.ByteBufferConverter",), refused("Debezium 3 calls it BinaryDataConverter."), _DELEGATE
    ),
    Component(
        ("io.debezium.converters.CloudEventsConverter",),
        _CLOUD_EVENTS,
        (
            Property("serializer.type", Kind.WORD, "json", _CLOUD_EVENTS, allowed=("json", "avro")),
            Property("data.serializer.type", Kind.WORD, "json", _CLOUD_EVENTS, allowed=("json", "avro")),
            Property("json.<property>", Kind.TEXT, None, _CLOUD_EVENTS),
            Property("avro.<property>", Kind.TEXT, None, _CLOUD_EVENTS),
            Property("opentelemetry.tracing.attributes.enable", Kind.BOOLEAN, "false", _CLOUD_EVENTS),
            Property("extension.attributes.enable", Kind.BOOLEAN, "true", _CLOUD_EVENTS),
            Property(
                "schema.name.adjustment.mode",
                Kind.WORD,
                "avro",
                _CLOUD_EVENTS,
                allowed=("none", "avro", "avro_unicode"),
            ),
            Property("schema.cloudevents.name", Kind.TEXT, None, _CLOUD_EVENTS),
            Property("schema.data.name.source.header.enable", Kind.BOOLEAN, "false", _CLOUD_EVENTS),
            Property(
                "metadata.source",
                Kind.LIST,
                "value,id:generate,type:generate,traceparent:header,dataSchemaName:generate",
                _CLOUD_EVENTS,
            ),
        ),
    ),
)
