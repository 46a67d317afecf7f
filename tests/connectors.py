"""A connector's configuration that was published, for tests that read or run it."""

from __future__ import annotations

NAME = "iris-connector-flink"
# Of the article «Online machine learning with the data streams from the database» (Debezium, 2023), as it stands there.
ARTICLE = {
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "tasks.max": "1",
    "database.hostname": "postgres",
    "database.port": "5432",
    "database.user": "postgres",
    "database.password": "postgres",
    "database.dbname": "postgres",
    "topic.prefix": "flink",
    "table.include.list": "public.iris_.*",
    "key.converter": "org.apache.kafka.connect.json.JsonConverter",
    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
    "transforms": "unwrap",
    "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState",
}
