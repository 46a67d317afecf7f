"""Flink as an engine: a job reads the topics, and one of its operators runs the local engine on the log."""
