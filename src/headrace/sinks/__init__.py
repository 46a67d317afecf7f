"""Where results go: PostgreSQL tables, MongoDB, Parquet files, HTTP, the console; `delivery` is the contract."""
