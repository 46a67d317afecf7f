"""Expressions of SQL over the rows of an Arrow table, evaluated by DuckDB, which sees nothing but these rows."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pyarrow as pa

_ABSENT = re.compile(r'Referenced column "((?:[^"]|"")+)" not found')


def problem(sql: str) -> str:
    """Return why a text is not one expression of SQL; nothing where it is.

    >>> problem("a > 1 AND b <> 'd'"), problem("1), (2"), problem(" ")
    ('', 'it is not one expression', 'it is empty')
    """
    if not sql.strip():
        return "it is empty"
    cursor = _database().cursor()
    row = cursor.execute("SELECT json_serialize_sql(?)", [f"SELECT (\n{sql}\n)"]).fetchone()
    found = json.loads(row[0] if row else "{}")
    if found.get("error"):
        return f"it is no SQL: {found.get('error_message')}"
    nodes = [statement["node"] for statement in found["statements"]]
    if len(nodes) != 1 or len(nodes[0].get("select_list", ())) != 1 or nodes[0]["from_table"]["type"] != "EMPTY":
        return "it is not one expression"
    return ""


def evaluated(sql: str, rows: pa.Table, source: str = "batch") -> pa.Array:
    """Return the value of an expression for each row, in their order.

    Args:
        source: what the expression sees of the table ``batch``: its name, or a query of it.

    Raises:
        KeyError: a column is not there.
        ValueError: it cannot be evaluated; with DuckDB's reason.

    >>> evaluated("a + 1", pa.table({"a": [1, None]})).to_pylist()
    [2, None]
    """
    # Only who has an expression needs it.
    import duckdb

    cursor = _database().cursor()
    cursor.register("batch", rows)
    try:
        found = cursor.sql(f"SELECT (\n{sql}\n) AS found FROM {source}").to_arrow_table()
    except duckdb.Error as error:
        absent = _ABSENT.search(str(error))
        if absent is not None and source == "batch":
            raise KeyError(absent[1].replace('""', '"')) from error
        first, *_ = str(error).strip().split("\n")
        raise ValueError(first) from error
    finally:
        cursor.close()
    return found.column("found").combine_chunks()


@cache
def _database() -> Any:
    """Return a database of nothing, which cursors share: it reads no file, and takes no extension."""
    import duckdb

    made = duckdb.connect(":memory:")
    # One thread keeps the rows in their order, too.
    for setting in ("threads = 1", "autoinstall_known_extensions = false", "enable_external_access = false"):
        made.execute(f"SET {setting}")
    made.execute("SET lock_configuration = true")
    return made
