"""PostgreSQL types as Arrow fields, checked against the server's own catalog."""

from __future__ import annotations

import pyarrow as pa
import pytest

from headrace.capture.postgres.types import arrow_field, binary_decodable, type_name
from headrace.testing.servers import PostgresServer

_DECLARED = {
    "boolean": pa.bool_(),
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "oid": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "numeric": pa.string(),
    "numeric(10,2)": pa.decimal128(10, 2),
    "numeric(38,38)": pa.decimal128(38, 38),
    "numeric(5)": pa.decimal128(5, 0),
    "numeric(39,2)": pa.string(),
    "numeric(1000,500)": pa.string(),
    "numeric(3,-2)": pa.string(),
    "numeric(2,4)": pa.string(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamp(0)": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", tz="UTC"),
    "timestamp(3) with time zone": pa.timestamp("us", tz="UTC"),
    "bytea": pa.binary(),
    "text": pa.string(),
    "varchar": pa.string(),
    "varchar(20)": pa.string(),
    "char(3)": pa.string(),
    "bpchar": pa.string(),
    "name": pa.string(),
    '"char"': pa.string(),
    "uuid": pa.string(),
    "json": pa.string(),
    "jsonb": pa.string(),
}
_AS_TEXT = [
    *["time", "time(3)", "timetz(0)", "interval", "money", "inet", "cidr", "macaddr", "bit(3)", "varbit", "varbit(9)"],
    *["xml", "point", "int4range", "tstzrange", "int8multirange", "tsvector", "pg_lsn", "regclass", "jsonpath"],
    *["integer[]", "text[]", "numeric(10,2)[]", "varchar(5)[]", "timestamp(3)[]", "uuid[]", '"char"[]', "bit(2)[]"],
]


@pytest.fixture(scope="module")
def attributes(server: PostgresServer) -> dict[str, tuple[int, int, str]]:
    """(type OID, typmod, format_type) of a column of each declared type."""
    declared = [*_DECLARED, *_AS_TEXT]
    columns = ", ".join(f"c{index} {kind}" for index, kind in enumerate(declared))
    server.execute(f"CREATE TABLE types_of_columns({columns})")
    found = server.execute(
        "SELECT atttypid::int8, atttypmod, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = 'types_of_columns'::regclass AND attnum > 0 ORDER BY attnum"
    )
    server.execute("DROP TABLE types_of_columns")
    return dict(zip(declared, found, strict=True))


def test_names_are_those_of_format_type(attributes: dict[str, tuple[int, int, str]]) -> None:
    for oid, typmod, name in attributes.values():
        assert arrow_field("c", oid, typmod).metadata == {b"postgres.type": name.encode()}


def test_arrow_types(attributes: dict[str, tuple[int, int, str]]) -> None:
    for kind, expected in _DECLARED.items():
        oid, typmod, _ = attributes[kind]
        field = arrow_field("a column", oid, typmod)
        assert (field.name, field.type, field.nullable) == ("a column", expected, True)
        assert binary_decodable(oid)


def test_everything_else_is_text(attributes: dict[str, tuple[int, int, str]]) -> None:
    for kind in _AS_TEXT:
        oid, typmod, _ = attributes[kind]
        assert arrow_field("c", oid, typmod).type == pa.string()
        assert not binary_decodable(oid)


def test_types_of_users_have_their_oid_for_a_name() -> None:
    assert arrow_field("mood", 16_390, -1).type == pa.string()
    assert not binary_decodable(16_390)
    assert type_name(16_390, 4) == "oid 16390"
