"""Debezium's connector configuration: what each property means here, and what the capture makes of it."""
