"""Clients of a Kafka cluster: where it is, what it knows, reading from offsets, writing in transactions."""
