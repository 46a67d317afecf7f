"""What the catalog says of a captured table beyond what the stream says: types by name, NOT NULL, defaults, the key.

Debezium's events hang on it: the schema of a column says whether it may be NULL and what it is by default. It is kept
as JSON in the metadata of the table's batches, under ``postgres.facts``, and read by whoever writes such events:

    {"schema": "public", "table": "items", "identity": "d", "key": ["id"], "columns": [
      {"name": "qty", "type": {"name": "int4", "typmod": -1}, "not_null": false, "default": "5"}]}

The type of a column is that under its domains, of which ``domain`` is the first, the one of an array has its
``element``, that of an enum its ``labels``, and ``kind`` is pg_type's ``typtype`` (``b`` base, ``e`` enum, ``c``
composite, ``r`` range, ``m`` multirange).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg

from headrace.capture.postgres.messages import Column, Relation

# Debezium takes the first unique index without expressions where there is no primary key, in the order of their names:
# that with the columns that the index includes.
_KEY = """
SELECT ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, place)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE k.place <= i.indnkeyatts OR NOT i.indisprimary ORDER BY k.place)
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
WHERE i.indrelid = %s AND (i.indisprimary OR (i.indisunique AND i.indexprs IS NULL))
ORDER BY i.indisprimary DESC, x.relname LIMIT 1
"""
# A column is NOT NULL, too, where its domain is.
_COLUMNS = """
SELECT a.attname, a.attnotnull OR (t.typtype = 'd' AND t.typnotnull), pg_get_expr(d.adbin, d.adrelid), a.attgenerated
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
"""
_TYPES = """
SELECT t.oid::bigint, t.typname, t.typtype, t.typbasetype::bigint, t.typtypmod,
       CASE WHEN t.typsubscript = 'array_subscript_handler'::regproc AND t.typlen = -1
            THEN t.typelem::bigint ELSE 0 END,
       ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder)
FROM pg_type t WHERE t.oid = ANY(%s)
"""
_Connection = psycopg.Connection[tuple[Any, ...]]
Types = dict[int, tuple[Any, ...]]


def table_facts(connection: _Connection, relation: Relation, known: Types | None = None) -> str:
    """Return the facts of a table as JSON, with the columns that a Relation message has.

    What the catalog says may be newer than the message: a column that it does not have any more may be NULL.

    Args:
        known: types that were read before, to which what is read is added; the labels of an enum stay as they were.
    """
    key = connection.execute(_KEY, [relation.oid]).fetchone()
    columns = {name: rest for name, *rest in connection.execute(_COLUMNS, [relation.oid])}
    types = _types(connection, {column.type_oid for column in relation.columns}, {} if known is None else known)
    return json.dumps(
        {
            "schema": relation.schema,
            "table": relation.table,
            "identity": relation.identity,
            "key": [] if key is None else key[0],
            "columns": [_column(column, columns.get(column.name), types) for column in relation.columns],
        },
        ensure_ascii=False,
    )


def _column(column: Column, known: Sequence[Any] | None, types: Types) -> dict[str, Any]:
    not_null, default, generated = known or (False, None, "")
    type_ = _type(column.type_oid, column.typmod, types)
    return {
        "name": column.name,
        "type": type_,
        "not_null": not_null,
        "default": None if generated else default,
    }


def _types(connection: _Connection, oids: Iterable[int], found: Types) -> Types:
    """Return rows of pg_type by OID: of these, of what they are domains over, and of what they are arrays of."""
    wanted = set(oids) - found.keys()
    asked: set[int] = set()
    while wanted:
        for oid, *row in connection.execute(_TYPES, [list(wanted)]):
            found[oid] = tuple(row)
        asked |= wanted
        wanted = {other for row in found.values() for other in (row[2], row[4]) if other} - found.keys() - asked
    return found


def _type(oid: int, typmod: int, types: Types) -> dict[str, Any]:
    name, kind, base, base_typmod, element, labels = types.get(oid, (f"oid {oid}", "b", 0, -1, 0, []))
    if kind == "d":
        return {**_type(base, base_typmod if typmod == -1 else typmod, types), "domain": name}
    found: dict[str, Any] = {"name": name, "typmod": typmod, "oid": oid}
    if kind != "b":
        found["kind"] = kind
    if element:
        found["element"] = _type(element, typmod, types)
    if labels:
        found["labels"] = labels
    return found
