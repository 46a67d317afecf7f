"""A checker that reads the server's log with code of its own: a second slot over SQL, and a parser of pgoutput in text.

Nothing here imports `headrace.capture`: what both would get wrong alike would not be found.
https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
"""

from __future__ import annotations

import datetime
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg

UNCHANGED = "(a large value that was not sent)"
_INTEGERS = {20, 21, 23}


@dataclass(frozen=True)
class Event:
    """One change as the server has it: commit LSN, index among the captured rows of its transaction, table by OID."""

    lsn: int
    index: int
    oid: int
    op: str
    row: dict[str, Any]


class Oracle:
    """A slot of its own, made before the capture's; `events` reads it to the end."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE PUBLICATION oracle FOR ALL TABLES")
            connection.execute("SELECT pg_create_logical_replication_slot('oracle', 'pgoutput')")

    def events(self, captured: set[int]) -> list[Event]:
        """Every committed change of these tables, in commit order."""
        query = """SELECT data FROM pg_logical_slot_get_binary_changes('oracle', NULL, NULL,
            'proto_version', '1', 'publication_names', 'oracle')"""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            messages = [bytes(data) for (data,) in connection.execute(query)]
        return list(_events(messages, captured))


def _events(messages: list[bytes], captured: set[int]) -> Iterator[Event]:
    relations: dict[int, list[tuple[str, int]]] = {}
    lsn = index = 0
    for message in messages:
        kind, body = chr(message[0]), message[1:]
        if kind == "B":
            (lsn,), index = struct.unpack_from(">Q", body), 0
        elif kind == "R":
            oid, columns = _relation(body)
            relations[oid] = columns
        elif kind in "IUD":
            (oid,) = struct.unpack_from(">I", body)
            if oid in captured:
                yield Event(lsn, index, oid, {"I": "c", "U": "u", "D": "d"}[kind], _row(body, relations[oid]))
                index += 1
        elif kind == "T":
            (count,) = struct.unpack_from(">I", body)
            for oid in struct.unpack_from(f">{count}I", body, 5):
                if oid in captured:
                    yield Event(lsn, index, oid, "t", dict.fromkeys((name for name, _ in relations[oid])))
                    index += 1


def _relation(body: bytes) -> tuple[int, list[tuple[str, int]]]:
    (oid,) = struct.unpack_from(">I", body)
    at = body.index(0, body.index(0, 4) + 1) + 2
    (count,) = struct.unpack_from(">H", body, at)
    at += 2
    columns = []
    for _ in range(count):
        end = body.index(0, at + 1)
        columns.append((body[at + 1 : end].decode(), struct.unpack_from(">I", body, end + 1)[0]))
        at = end + 9
    return oid, columns


def _row(body: bytes, columns: list[tuple[str, int]]) -> dict[str, Any]:
    """The new row, of a delete the old one. What was not sent is the old row's, where there is one."""
    found: dict[str, dict[str, Any]] = {}
    at = 4
    while at < len(body):
        which = chr(body[at])
        found[which], at = _tuple(body, at + 1, columns)
    new, old = found.get("N"), found.get("O", {})
    if new is None:
        return old or found["K"]
    return {name: old.get(name, value) if value is UNCHANGED else value for name, value in new.items()}


def _tuple(body: bytes, at: int, columns: list[tuple[str, int]]) -> tuple[dict[str, Any], int]:
    (count,) = struct.unpack_from(">H", body, at)
    assert count == len(columns)
    at += 2
    row: dict[str, Any] = {}
    for name, type_oid in columns:
        kind = chr(body[at])
        at += 1
        row[name] = None if kind == "n" else UNCHANGED
        if kind == "t":
            (length,) = struct.unpack_from(">I", body, at)
            row[name] = value(body[at + 4 : at + 4 + length].decode(), type_oid)
            at += 4 + length
    return row, at


def value(text: str, type_oid: int) -> Any:
    """A value of one of the types that the workload uses, from its text.

    >>> value("1.50", 1700), value("t", 16), value("{1,2}", 1007)
    (Decimal('1.50'), True, '{1,2}')
    """
    if type_oid in _INTEGERS:
        return int(text)
    if type_oid == 701:
        return float(text)
    if type_oid == 700:
        return struct.unpack("f", struct.pack("f", float(text)))[0]
    if type_oid == 1700:
        return Decimal(text)
    if type_oid == 16:
        return text == "t"
    if type_oid == 17:
        return bytes.fromhex(text.removeprefix("\\x"))
    if type_oid == 1184:
        return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    return text
