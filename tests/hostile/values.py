"""Hostile values of every column type that capture knows, as SQL: one line a type, so that a new one is in everywhere.

Each type also has NULL, and an array column of the values with NULL among them.
"""

from __future__ import annotations

from headrace.capture.postgres import types

LONG = "repeat('x', 1 << 20)"
VALUES: dict[str, tuple[str, ...]] = {
    "boolean": ("true", "false"),
    "smallint": ("0", "-32768", "32767"),
    "integer": ("0", "-2147483648", "2147483647"),
    "bigint": ("0", "-9223372036854775808", "9223372036854775807", "9007199254740993"),
    "oid": ("0", "4294967295"),
    "real": ("0", "'-0'", "'NaN'", "'Infinity'", "'-Infinity'", "1e-45", "3.4028235e38"),
    "double precision": ("0", "'-0'", "'NaN'", "'Infinity'", "'-Infinity'", "5e-324", "1.7976931348623157e308"),
    "numeric": ("0", "'NaN'", "'Infinity'", "'-Infinity'", "1e1000", "-1e-1000", "1.50", "1e-16383"),
    "numeric(10,2)": ("0", "'NaN'", "99999999.99", "-0.01"),
    "numeric(38,0)": ("0", "99999999999999999999999999999999999999", "'NaN'"),
    "numeric(1000,900)": ("0", "1e-900", "'NaN'"),
    "numeric(3,-2)": ("0", "99900"),
    "date": ("'2024-02-29'", "'4714-11-24 BC'", "'5874897-12-31'", "'infinity'", "'-infinity'", "'10000-01-01'"),
    "timestamp without time zone": (
        "'2024-02-29 12:34:56.789012'", "'4714-11-24 BC'", "'294276-12-31 23:59:59.999999'", "'infinity'",
        "'-infinity'", "'10000-01-01'", "'9999-12-31 23:59:59.999999'",
    ),
    "timestamp with time zone": (
        "'2024-02-29 12:34:56.789012+14'", "'4714-11-24 00:00+00 BC'", "'294276-12-31 23:59:59.999999+00'",
        "'infinity'", "'-infinity'", "'9999-12-31 23:59:59-05'", "'0001-01-01 00:00:00+15'",
    ),
    "time without time zone": ("'00:00'", "'24:00'", "'23:59:59.999999'"),
    "time with time zone": ("'00:00+15:59'", "'24:00-15:59'"),
    "interval": ("'0'", "'-178000000 years'", "'1 mon -1 day 00:00:00.000001'", "'178000000 years'"),
    "money": ("0", "'-92233720368547758.08'", "'92233720368547758.07'"),
    "text": ("''", "'null'", "'NULL'", "'\"'", "E'\\x01\\t\\n\\r\\\\'", "'é😀\u2028'", "' '", "'NaN'", "'{}'", LONG),
    "character varying": ("''", "'é'", LONG),
    "character varying(20)": ("''", "repeat('é', 20)"),
    "character": ("''", "'é'"),
    "name": ("''", "repeat('é', 31)"),
    '"char"': ("''", "'x'", "'\\200'"),
    "bytea": ("''", "'\\x00'", "'\\xff'", "'\\xc3'", f"convert_to({LONG}, 'UTF8')"),
    "uuid": ("'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"),
    "json": ("'{}'", "'null'", "'1'", "'\"x\"'", "'[1,[2,{\"a\":null}]]'", "'1e1000'", "'{\"a\":1,\"a\":2}'"),
    "jsonb": ("'{}'", "'null'", "'1'", "'\"x\"'", "'[1,[2,{\"a\":null}]]'", "'1e1000'", "'9007199254740993'"),
    "xml": (),  # not in every server
    "bit": ("'0'", "'1'"),
    "bit varying": ("''", "'0101010101010101010101010101010101010101010101010101010101010101010101'"),
    "point": ("'(0,0)'", "'(NaN,Infinity)'"),
    "lseg": ("'[(0,0),(1,1)]'",),
    "path": ("'((0,0),(1,1))'", "'[(0,0)]'"),
    "box": ("'(1,1),(0,0)'",),
    "polygon": ("'((0,0),(1,1),(1,0))'",),
    "line": ("'{1,2,3}'",),
    "circle": ("'<(0,0),1>'",),
    "cidr": ("'10.0.0.0/8'", "'::/0'"),
    "inet": ("'10.0.0.1/8'", "'::1'"),
    "macaddr": ("'08:00:2b:01:02:03'",),
    "macaddr8": ("'08:00:2b:01:02:03:04:05'",),
    "tsvector": ("''", "'a:1 b'"),
    "tsquery": ("'a & !b'",),
    "pg_lsn": ("'0/0'", "'FFFFFFFF/FFFFFFFF'"),
    "jsonpath": ("'$.a'",),
    "int4range": ("'empty'", "'(,)'", "'[1,2)'"),
    "int8range": ("'empty'", "'[-9223372036854775808,9223372036854775807)'"),
    "numrange": ("'empty'", "'[1e1000,)'"),
    "tsrange": ("'empty'", "'[infinity,infinity]'"),
    "tstzrange": ("'empty'", "'[10000-01-01 00:00+00,)'"),
    "daterange": ("'empty'", "'[4714-11-24 BC,infinity)'"),
    "int4multirange": ("'{}'", "'{[1,2),[3,4)}'"),
    "int8multirange": ("'{}'",),
    "nummultirange": ("'{}'",),
    "tsmultirange": ("'{}'",),
    "tstzmultirange": ("'{}'",),
    "datemultirange": ("'{}'",),
    "tid": ("'(0,0)'",),
    "xid": ("'0'", "'4294967295'"),
    "cid": ("'0'",),
    "xid8": ("'18446744073709551615'",),
    "regclass": ("'pg_class'",),
    "regtype": ("'int4'",),
    "regproc": ("'now'",),
    "aclitem": (),
    # Types of a user's own.
    "mood": ("'happy'", "'ü '"),
    "positive": ("1", "2147483647"),
    "pair": ("row(1, 'x')", "row(null, null)"),
}  # fmt: skip
OWN = """
create type mood as enum ('happy', 'ü ');
create domain positive as int check (value > 0);
create type pair as (a int, b text)
"""
ODD_ARRAYS = {
    "integer[]": ("'{}'", "'{{1,2},{3,4}}'", "'[2:3]={5,6}'", "'{NULL}'", "'{2147483647,NULL,-1}'"),
    "double precision[]": ("'{}'", "'{NaN,Infinity,NULL}'", "'{{1},{2}}'", "'{1,2}'"),
    "text[]": ("'{}'", '\'{"",NULL,"NULL","{}"}\'', "'{{a,b}}'"),
    "timestamp with time zone[]": ("'{infinity,\"0044-03-15 00:00+00 BC\",NULL}'",),
}
# The wider a type's text, the fewer of its kind are made into arrays.
_NO_ARRAY = frozenset({"aclitem", "mood", "positive", "pair", "text", "character varying", "bytea", *ODD_ARRAYS})


def columns() -> dict[str, tuple[str, ...]]:
    """Each type with its values, NULL last; those of arrays too."""
    found = {name: (*values, "NULL") for name, values in VALUES.items()}
    for name, values in VALUES.items():
        if name not in _NO_ARRAY and f"{name}[]" not in ODD_ARRAYS and "(" not in name:
            items = ", ".join(f"({value})::{name}" for value in (*values, "NULL"))
            found[f"{name}[]"] = (f"ARRAY[{items}]", "'{}'", "NULL")
    return {**found, **{name: (*values, "NULL") for name, values in ODD_ARRAYS.items()}}


def missing() -> set[str]:
    """Types that capture knows by their names and that have no line above."""
    return set(types._BY_OID.values()) - set(VALUES)
