"""Single message transforms of Kafka Connect and Debezium, by their names, on whole batches of records."""
