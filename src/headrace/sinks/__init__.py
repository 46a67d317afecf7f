"""Destinations of results: PostgreSQL tables, MongoDB, Parquet files, HTTP, the console; `base` is the contract."""
