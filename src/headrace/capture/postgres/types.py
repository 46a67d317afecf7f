"""PostgreSQL column types as Arrow fields: one mapping for the snapshot and for the replication stream.

=============================================  ========================================================
PostgreSQL                                     Arrow
=============================================  ========================================================
boolean; smallint, integer, bigint; oid        bool; int16, int32, int64; int64
real, double precision                         float32, float64
numeric(p,s), p <= 38 and 0 <= s <= p          decimal128(p, s)
any other numeric                              string: PostgreSQL's exact text (``1.500``, ``NaN``)
date                                           date32
timestamp; timestamp with time zone            timestamp[us]; timestamp[us, UTC]
bytea                                          binary
text, varchar, char(n), name, "char"           string (char(n) keeps its padding)
uuid; json, jsonb                              string
vector(n), halfvec(n) (pgvector); without n     fixed-size list of n float32; list of float32
everything else                                string: its text form
=============================================  ========================================================

Vectors are texts in a key, in logs that were made before they were lists, and where Debezium's events are written.

Every field is nullable and carries the type as ``format_type()`` spells it in its metadata ``postgres.type``.
The OIDs are those of https://github.com/postgres/postgres/blob/master/src/include/catalog/pg_type.dat.
"""

from __future__ import annotations

from functools import lru_cache

import pyarrow as pa
from psycopg.postgres import register_default_types
from psycopg.types import TypesRegistry

BOOL, BYTEA, CHAR, NAME, INT8, INT2, INT4, TEXT, OID = 16, 17, 18, 19, 20, 21, 23, 25, 26
JSON, FLOAT4, FLOAT8, BPCHAR, VARCHAR, DATE = 114, 700, 701, 1042, 1043, 1082
TIMESTAMP, TIMESTAMPTZ, NUMERIC, UUID, JSONB = 1114, 1184, 1700, 2950, 3802

_ARROW: dict[int, pa.DataType] = {
    BOOL: pa.bool_(),
    BYTEA: pa.binary(),
    INT2: pa.int16(),
    INT4: pa.int32(),
    INT8: pa.int64(),
    OID: pa.int64(),
    FLOAT4: pa.float32(),
    FLOAT8: pa.float64(),
    DATE: pa.date32(),
    TIMESTAMP: pa.timestamp("us"),
    TIMESTAMPTZ: pa.timestamp("us", tz="UTC"),
}
_TEXTS = frozenset({CHAR, NAME, TEXT, BPCHAR, VARCHAR, JSON, JSONB, UUID})
_DECODABLE = frozenset(_ARROW) | _TEXTS | {NUMERIC}

# The server's own types, as `psycopg` generates them from pg_type.dat; in a registry that nobody else adds to.
_BUILTIN = TypesRegistry()
register_default_types(_BUILTIN)
# Of the server's own types these are called by their OIDs, as in the logs that there are.
_BY_NUMBER = (
    *("gtsvector", "int2vector", "oidvector", "record", "refcursor", "regcollation", "regconfig", "regdictionary"),
    *("regnamespace", "regoper", "regoperator", "regprocedure", "regrole", "txid_snapshot"),
)
_BY_OID = {known.oid: known.regtype for known in _BUILTIN if known.regtype not in _BY_NUMBER}
_ELEMENTS = {known.array_oid: known.oid for known in _BUILTIN if known.oid in _BY_OID}


Vectors = tuple[tuple[int, str], ...]
"""Types of pgvector's whose values are lists: OID and name."""


@lru_cache(maxsize=65_536)
def arrow_field(name: str, type_oid: int, typmod: int, vectors: Vectors = ()) -> pa.Field:
    """Return the Arrow field of one column, from ``pg_attribute``'s ``atttypid`` and ``atttypmod``.

    >>> arrow_field("price", 1700, 655366).type, arrow_field("price", 1700, 655366).metadata
    (Decimal128Type(decimal128(10, 2)), {b'postgres.type': b'numeric(10,2)'})
    >>> arrow_field("tags", 1009, -1).type, arrow_field("tags", 1009, -1).metadata
    (DataType(string), {b'postgres.type': b'text[]'})
    >>> arrow_field("embedding", 16390, 3, ((16390, "vector"),)).type
    FixedSizeListType(fixed_size_list<item: float>[3])
    """
    for oid, vector in vectors:
        if oid == type_oid:
            size, named = (typmod, f"{vector}({typmod})") if typmod > 0 else (-1, vector)
            return pa.field(name, pa.list_(pa.float32(), size), metadata={b"postgres.type": named.encode()})
    metadata = {b"postgres.type": type_name(type_oid, typmod).encode()}
    return pa.field(name, arrow_type(type_oid, typmod), nullable=True, metadata=metadata)


def arrow_type(type_oid: int, typmod: int) -> pa.DataType:
    """Return the Arrow type of one column.

    >>> arrow_type(1184, -1), arrow_type(1700, -1)
    (TimestampType(timestamp[us, tz=UTC]), DataType(string))
    """
    if type_oid == NUMERIC and typmod >= 4:
        precision, scale = _precision_scale(typmod)
        if 0 <= scale <= precision <= 38:
            return pa.decimal128(precision, scale)
    return _ARROW.get(type_oid, pa.string())


def binary_decodable(type_oid: int) -> bool:
    """Return whether the stream's binary form of this type is understood; if not, the stream has to be in text mode.

    >>> binary_decodable(1700), binary_decodable(1007)
    (True, False)
    """
    return type_oid in _DECODABLE


def type_name(type_oid: int, typmod: int) -> str:
    """Return the type as ``format_type()`` spells it; ``oid 16390`` for a type that an extension or a user made.

    >>> type_name(1043, 24), type_name(1231, 655366), type_name(1184, 3), type_name(16390, -1)
    ('character varying(20)', 'numeric(10,2)[]', 'timestamp(3) with time zone', 'oid 16390')
    """
    if type_oid in _ELEMENTS:
        return f"{type_name(_ELEMENTS[type_oid], typmod)}[]"
    name = _BY_OID.get(type_oid, f"oid {type_oid}")
    if typmod < 0:
        return "bpchar" if type_oid == BPCHAR else name
    if type_oid == NUMERIC:
        return "numeric({},{})".format(*_precision_scale(typmod))
    if type_oid in (BPCHAR, VARCHAR):
        return f"{name}({typmod - 4})"
    if name.startswith("time"):
        first, _, rest = name.partition(" ")
        return f"{first}({typmod}) {rest}"
    return f"{name}({typmod})" if name in ("bit", "bit varying") else name


def _precision_scale(typmod: int) -> tuple[int, int]:
    """Return precision and scale of ``numeric``; the scale is an 11-bit signed integer since PostgreSQL 15."""
    packed = typmod - 4
    return packed >> 16, ((packed & 0x7FF) ^ 1024) - 1024
