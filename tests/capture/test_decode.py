"""The decoder against a real PostgreSQL: what the stream decodes to is what SELECT gives.

Every workload is read through two temporary slots at once, one in binary and one in text mode.
"""

from __future__ import annotations

import json
import random
import re
import select
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy.typing as npt
import psycopg
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import pq

from headrace import plain_values
from headrace.batch import Batch
from headrace.capture.base import Piece
from headrace.capture.postgres.decode import Decoder, Known, NeedsTextMode, Seen
from headrace.errors import DecodeError
from headrace.position import Lsn, parse_lsn
from headrace.testing.servers import PostgresServer

# --- reading a real stream ---

_SETTINGS = "-c datestyle=ISO -c timezone=UTC -c bytea_output=hex -c intervalstyle=postgres"


class Stream:
    """One replication connection on a temporary slot that begins now."""

    def __init__(self, server: PostgresServer, database: str, slot: str, binary: bool) -> None:
        dsn = f"host={server.directory} port={server.port} user=postgres dbname={database} replication=database"
        self.connection = pq.PGconn.connect(f"{dsn} options='{_SETTINGS}'".encode())
        assert self.connection.status == pq.ConnStatus.OK, self.connection.error_message
        self._run(f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT")
        options = f"proto_version '1', publication_names 'p', binary '{str(binary).lower()}', messages 'true'"
        self._run(f"START_REPLICATION SLOT {slot} LOGICAL 0/0 ({options})")

    def _run(self, command: str) -> None:
        result = self.connection.exec_(command.encode())
        assert result.status in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COPY_BOTH), result.error_message

    def until(self, lsn: int) -> list[bytes]:
        """All XLogData messages until the server says that it has sent everything below an LSN."""
        messages: list[bytes] = []
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            size, data = self.connection.get_copy_data(1)
            if size > 0:
                payload = bytes(data)
                if payload[:1] == b"w":
                    messages.append(payload)
                elif struct.unpack_from(">Q", payload, 1)[0] >= lsn:
                    return messages
                continue
            self.connection.put_copy_data(struct.pack(">cQQQQB", b"r", 0, 0, 0, 0, 1))
            self.connection.flush()
            select.select([self.connection.socket], [], [], 0.05)
            self.connection.consume_input()
        raise TimeoutError(f"the server did not reach {lsn}")


class Database:
    """A database of its own with a publication of all tables."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self.server, self.name = server, name
        server.execute(f"CREATE DATABASE {name}")
        self.connection = psycopg.connect(
            host=str(server.directory),
            port=server.port,
            user="postgres",
            dbname=name,
            autocommit=True,
            options="-c timezone=UTC",
        )
        self.execute("CREATE PUBLICATION p FOR ALL TABLES")

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        for sql in statements:
            cursor = self.connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []

    def captured(self, work: Callable[[], object]) -> dict[bool, list[bytes]]:
        """Messages of what ``work`` does, by binary or not."""
        modes = (True, False)
        streams = {binary: Stream(self.server, self.name, f"{self.name}_{binary}".lower(), binary) for binary in modes}
        try:
            work()
            lsn = parse_lsn(self.execute("SELECT pg_current_wal_flush_lsn()::text")[0][0])
            return {binary: stream.until(lsn) for binary, stream in streams.items()}
        finally:
            for stream in streams.values():
                stream.connection.finish()

    def sql(self, *statements: str) -> dict[bool, list[bytes]]:
        """Messages of these statements, each a transaction of its own."""
        return self.captured(lambda: self.execute(*statements))


_numbers = iter(range(1_000_000))


@pytest.fixture
def database(server: PostgresServer) -> Iterator[Database]:
    one = Database(server, f"decode{next(_numbers)}")
    yield one
    one.connection.close()


def decode(messages: Sequence[bytes], **options: Any) -> list[Piece[Lsn]]:
    return Decoder("shop", **options).feed(messages)


def batches(pieces: Sequence[Piece[Lsn]], *, rejected: bool = False) -> dict[str, list[Batch]]:
    """By topic; every array validated, positions in commit order and never twice."""
    found: dict[str, list[Batch]] = {}
    for piece in pieces:
        for topic, batch in piece.rejected if rejected else piece.batches:
            batch.records.validate(full=True)
            found.setdefault(topic, []).append(batch)
    for own in found.values():
        positions = [pair for item in own for pair in zip(item.lsn.tolist(), item.index.tolist(), strict=True)]
        assert positions == sorted(set(positions))
    return found


def plain(array: pa.Array) -> list[Any]:
    """Python values; days and microseconds since 1970 where Python's dates cannot hold them; NaN as text."""
    if pa.types.is_date(array.type):
        array = array.view(pa.int32())
    if pa.types.is_timestamp(array.type):
        array = array.view(pa.int64())
    return ["NaN" if value != value else value for value in array.to_pylist()]


def rows(pieces: Sequence[Piece[Lsn]], topic: str) -> list[tuple[Any, ...]]:
    """The rows of a topic."""
    return [row for batch in batches(pieces)[topic] for row in zip(*map(plain, batch.rows.columns), strict=True)]


def events(pieces: Sequence[Piece[Lsn]], topic: str) -> list[tuple[str, tuple[Any, ...]]]:
    """(op, row) of a topic."""
    ops = [chr(op) for batch in batches(pieces)[topic] for op in batch.op.tolist()]
    return list(zip(ops, rows(pieces, topic), strict=True))


def before(pieces: Sequence[Piece[Lsn]], topic: str) -> list[dict[str, Any] | None]:
    return [row for b in batches(pieces)[topic] for row in (b.before.to_pylist() if b.before else [None] * b.num_rows)]


def said(pieces: Sequence[Piece[Lsn]]) -> dict[str, list[str]]:
    """Everything that pieces say of rows, as texts by topic, however they are cut."""
    texts: dict[str, list[str]] = {}
    for rejected in (False, True):
        for topic, own in batches(pieces, rejected=rejected).items():
            for batch in own:
                schema = [(field.name, str(field.type), field.metadata) for field in batch.rows.schema]
                meta: list[npt.NDArray[Any]] = [batch.op, batch.lsn, batch.index, batch.ts_us]
                old = [plain(item) for item in batch.before.flatten()] if batch.before else []
                unchanged = batch.unchanged.to_pylist() if batch.unchanged else [[]] * batch.num_rows
                columns = [*map(plain, batch.rows.columns), *(field.tolist() for field in meta), unchanged]
                olds = list(zip(*old, strict=True)) if old else [None] * batch.num_rows
                has = batch.before.is_valid().to_pylist() if batch.before else olds
                for row, one, there in zip(zip(*columns, strict=True), olds, has, strict=True):
                    texts.setdefault(topic, []).append(f"{schema} {row} {one if there else None}")
    return texts


def same(first: Sequence[Piece[Lsn]], second: Sequence[Piece[Lsn]]) -> None:
    """Both say the same of the same rows."""
    assert said(first) == said(second)
    assert sum(piece.rows for piece in first) == sum(piece.rows for piece in second)
    assert end_of(first) == end_of(second)


def both(messages: dict[bool, list[bytes]]) -> list[Piece[Lsn]]:
    """The decoded binary stream, after checking that text gives the same."""
    pieces = decode(messages[True])
    same(pieces, decode(messages[False]))
    return pieces


# --- values ---

_EXTREMES: dict[str, tuple[str, list[str]]] = {
    # type: (how SELECT shows what Arrow holds, literals)
    "boolean": ("{}", ["true", "false"]),
    "int2": ("{}", ["-32768", "32767", "0"]),
    "int4": ("{}", ["-2147483648", "2147483647", "7"]),
    "int8": ("{}", ["-9223372036854775808", "9223372036854775807", "0"]),
    "oid": ("{}::int8", ["0", "4294967295"]),
    "float4": ("{}::float8", ["3.4028235e38", "-1e-45", "NaN", "Infinity", "-Infinity", "0.1", "-0"]),
    "float8": ("{}", ["1.7976931348623157e308", "5e-324", "NaN", "-Infinity", "0.1", "-0", "1e23"]),
    "numeric(10,2)": ("{}", ["0", "-0.01", "99999999.99", "-99999999.99", "12", "10000", "0.1"]),
    "numeric(18,0)": ("{}", ["999999999999999999", "-999999999999999999", "10000"]),
    "numeric(18,17)": ("{}", ["9.99999999999999999", "-0.00000000000000001", "0"]),
    "numeric(5,5)": ("{}", ["0.99999", "-0.00001", "0"]),
    "numeric(38,0)": ("{}", ["9" * 38, "-" + "9" * 38, "1", "0"]),
    "numeric(38,38)": ("{}", ["0." + "9" * 38, "-0." + "0" * 37 + "1"]),
    "numeric(38,20)": ("{}", ["9" * 18 + "." + "9" * 20, "-1.5", "100000000"]),
    "numeric(39,0)": ("{}::text", ["9" * 39, "-1"]),
    "numeric(3,-2)": ("{}::text", ["12300", "-100"]),
    "numeric(2,4)": ("{}::text", ["0.0012", "-0.0099"]),
    "numeric": (
        "{}::text",
        [
            *["0", "0.000", "-0.5", "1e100", "1e-100", "1.500", "-12345678.00009", "10000", "0.0001", "100.0001"],
            *["NaN", "Infinity", "-Infinity", "9" * 300 + "." + "1" * 200, "1e1000", "1e-1000", "0.1230"],
        ],
    ),
    "text": ("{}", ["", "a", "naïve ☃ 𝄞", "line\nbreak\ttab", "x" * 3000, "\\N", "NULL"]),
    "varchar(20)": ("{}", ["", "żółć"]),
    "char(5)": ("rpad({}::text, 5)", ["ab", "", "äöüßx"]),
    "name": ("{}", ["pg_class", ""]),
    '"char"': ("{}::text", ["a", "", "\\377"]),
    "date": (
        "{} - date '1970-01-01'",
        ["2024-02-29", "0001-01-01", "4713-11-24 BC", "5874897-12-31", "0001-12-31 BC", "10000-01-01", "9999-12-31"],
    ),
    "timestamp": (
        "(extract(epoch from {}) * 1000000)::int8",
        [
            *["2024-02-29 12:34:56.789012", "4713-11-24 00:00:00 BC", "2024-01-01", "1999-12-31 23:59:59.999999"],
            *["0044-03-15 12:00:00.5 BC", "294246-12-31 23:59:59.999999", "1970-01-01 00:00:00.1"],
        ],
    ),
    "timestamptz": (
        "(extract(epoch from {}) * 1000000)::int8",
        ["2024-02-29 12:34:56.7+05:30", "0044-03-15 00:00:00+00 BC", "20000-01-01 00:00:00.000001+00"],
    ),
    "timestamp(3)": ("(extract(epoch from {}) * 1000000)::int8", ["2024-02-29 12:34:56.7891", "2024-02-29"]),
    "bytea": ("{}", ["", "\\x00ff", "\\x" + "ab" * 3000, "\\x5c78"]),
    "uuid": ("{}::text", ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "00000000-0000-0000-0000-000000000000"]),
    "json": ("{}::text", ['{"b": 1,   "a": [1, "é"]}', "null"]),
    "jsonb": ("{}::text", ['{"b": 1, "a": [1, "é"]}', "null", '""']),
}


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@pytest.mark.parametrize("block", [1, 200])
def test_every_type_is_what_select_gives(database: Database, block: int) -> None:
    """Extremes of every type among NULLs; few rows and many, so that both ways to find cells are used."""
    columns = list(_EXTREMES)
    names = [f"c{index}" for index in range(len(columns))]
    declared = ", ".join(f"{name} {kind}" for name, kind in zip(names, columns, strict=True))
    most = max(len(values) for _, values in _EXTREMES.values())
    tuples = [
        ", ".join(_literal(values[row]) if row < len(values) else "NULL" for _, values in _EXTREMES.values())
        for row in range(most)
    ]
    database.execute(f"CREATE TABLE t(id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, {declared})")
    insert = f"INSERT INTO t({', '.join(names)}) VALUES ({'), ('.join(tuples * block)})"
    pieces = both(database.sql(*[f"INSERT INTO t({', '.join(names)}) VALUES ({tuple_})" for tuple_ in tuples], insert))
    shown = ", ".join(how.format(name) for name, (how, _) in zip(names, _EXTREMES.values(), strict=True))
    found = list(zip(*rows(pieces, "shop.public.t"), strict=True))
    selected = list(zip(*database.execute(f"SELECT id, {shown} FROM t ORDER BY id"), strict=True))
    for column, ours, theirs in zip(["id", *columns], found, selected, strict=True):
        expected = tuple("NaN" if value != value else value for value in theirs)
        assert (column, ours) == (column, expected)
    assert not any(piece.rejected for piece in pieces)


def test_other_types_need_text_mode_and_are_their_text(database: Database) -> None:
    database.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'happy')",
        "CREATE TABLE t(id int PRIMARY KEY, a int[], m mood, i interval, n inet, t time)",
        "CREATE TABLE u(id int)",
    )
    messages = database.sql(
        "INSERT INTO u VALUES (1)",
        "INSERT INTO t(id) VALUES (1)",
        "INSERT INTO t VALUES (2, '{1,NULL,3}', 'happy', '1 year 2 days', '10.0.0.1/8', '24:00')",
    )
    assert rows(decode(messages[False]), "shop.public.t")[1] == (
        (2, "{1,NULL,3}", "happy", "1 year 2 days", "10.0.0.1/8", "24:00:00")
    )
    decoder = Decoder("shop")
    with pytest.raises(NeedsTextMode, match=r"«a» has type integer\[\]"):
        decoder.feed(messages[True])
    decoder.reset()
    same(decoder.feed(messages[False]), decode(messages[False]))


def test_nulls_everywhere(database: Database) -> None:
    """Random patterns of NULL, so that no two rows look alike."""
    database.execute(
        "CREATE TABLE t(id int PRIMARY KEY, a int, b text, c float8, d numeric(12,3), e timestamptz, f uuid, g bool)"
    )
    columns = ["i", "'t'||i", "i/3.0", "i/8.0", "now() - i*'1 s'::interval", "gen_random_uuid()", "i%3=0"]
    values = ", ".join(f"CASE WHEN random() < 0.4 THEN NULL ELSE {column} END" for column in columns)
    pieces = both(database.sql(f"INSERT INTO t SELECT i, {values} FROM generate_series(1, 3000) i"))
    expected = database.execute(
        "SELECT id, a, b, c, d, (extract(epoch FROM e)*1000000)::int8, f::text, g FROM t ORDER BY id"
    )
    assert rows(pieces, "shop.public.t") == expected


def test_rows_that_arrow_cannot_hold_go_to_the_dead_letters(database: Database) -> None:
    database.execute(
        "CREATE TABLE t(id int PRIMARY KEY, n numeric(10,2), d date, ts timestamp, tz timestamptz, s text)"
    )
    pieces = both(
        database.sql(
            """INSERT INTO t VALUES (1, 1.5, '2024-01-01', '2024-01-01', '2024-01-01', 'fine'),
            (2, 'NaN', '2024-01-01', '2024-01-01 12:00:00.5', '0044-03-15 00:00:00+00 BC', 'é"'),
            (3, 'NaN', 'infinity', '-infinity', '294276-12-31 23:59:59.999999+00', NULL),
            (4, NULL, '-infinity', '294276-12-31 23:59:59.999999', NULL, 'late'), (5, 2, NULL, NULL, NULL, ''),
            (6, NULL, '-infinity', 'infinity', '-infinity', ''), (7, 1, 'infinity', '-infinity', 'infinity', '')"""
        )
    )
    kept = batches(pieces)["shop.public.t"][0]
    assert kept.column("id").to_pylist() == [1, 2, 5, 6, 7]
    infinite = [plain_values.rows(kept.rows.slice(3))[row] for row in (0, 1)]
    assert [[row[name] for name in ("d", "ts", "tz")] for row in infinite] == [
        ["-infinity", "infinity", "-infinity"],
        ["infinity", "-infinity", "infinity"],
    ]
    # Arrow's decimals have no NaN: a row says that it has one.
    nan = kept.nan("n")
    assert nan is not None and nan.tolist() == [False, True, False, False, False]
    assert kept.column("n").to_pylist()[1] is None and kept.nan("n", before=True) is None and kept.nan("s") is None
    (letters,) = batches(pieces, rejected=True)["shop.public.t.dlq"]
    assert letters.index.tolist() == [2, 3]
    found = letters.rows.to_pylist()
    assert json.loads(found[0]["row"])["ts"] == "-infinity" and "«tz»" in found[0]["reason"]
    assert json.loads(found[1]["row"])["ts"] == "294276-12-31 23:59:59.999999"
    assert pieces[0].rows == 7


# --- events ---


def test_replica_identities(database: Database) -> None:
    database.execute(
        "CREATE TABLE pk(id int PRIMARY KEY, v text)",
        "CREATE TABLE whole(id int, v text, n numeric(6,2))",
        "ALTER TABLE whole REPLICA IDENTITY FULL",
        "CREATE TABLE ix(id int PRIMARY KEY, code text NOT NULL UNIQUE)",
        "ALTER TABLE ix REPLICA IDENTITY USING INDEX ix_code_key",
    )
    pieces = both(
        database.sql(
            "INSERT INTO pk VALUES (1, 'a'), (2, 'b')",
            "UPDATE pk SET v = v || '!'",
            "UPDATE pk SET id = 3 WHERE id = 1",
            "DELETE FROM pk",
            "INSERT INTO whole VALUES (1, 'a', 1.5), (1, NULL, NULL)",
            "UPDATE whole SET v = 'z'",
            "UPDATE whole SET n = 'NaN' WHERE n IS NOT NULL",
            "UPDATE whole SET n = 2 WHERE n = 'NaN'",
            "DELETE FROM whole",
            "INSERT INTO ix VALUES (1, 'x')",
            "UPDATE ix SET code = 'y'",
            "DELETE FROM ix",
        )
    )
    topic = "shop.public.pk"
    assert events(pieces, topic) == [
        *[("c", (1, "a")), ("c", (2, "b")), ("u", (1, "a!")), ("u", (2, "b!")), ("u", (3, "a!"))],
        *[("d", (2, None)), ("d", (3, None))],
    ]
    assert before(pieces, topic) == [*[None] * 4, {"id": 1, "v": None}, None, None]
    assert batches(pieces)[topic][0].key_columns == ("id",)
    whole = events(pieces, "shop.public.whole")
    assert [op for op, _ in whole] == list("ccuuuudd")
    assert before(pieces, "shop.public.whole")[2] == {"id": 1, "v": "a", "n": pytest.approx(1.5)}
    assert before(pieces, "shop.public.whole")[3:6] == [
        {"id": 1, "v": None, "n": None},
        {"id": 1, "v": "z", "n": pytest.approx(1.5)},
        {"id": 1, "v": "z", "n": None},
    ]
    (changed,) = batches(pieces)["shop.public.whole"]
    for old, expected in ((False, [False] * 4 + [True] + [False] * 3), (True, [False] * 5 + [True] + [False] * 2)):
        nan = changed.nan("n", before=old)
        assert nan is not None and nan.tolist() == expected
    assert events(pieces, "shop.public.ix") == [("c", (1, "x")), ("u", (1, "y")), ("d", (None, "y"))]
    assert batches(pieces)["shop.public.ix"][0].key_columns == ("code",)


def test_unchanged_toast(database: Database) -> None:
    database.execute(
        "CREATE TABLE t(id int PRIMARY KEY, a text, b text, v int)",
        "ALTER TABLE t ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL",
        "CREATE TABLE f(id int PRIMARY KEY, a text, v int)",
        "ALTER TABLE f ALTER a SET STORAGE EXTERNAL",
        "ALTER TABLE f REPLICA IDENTITY FULL",
    )
    pieces = both(
        database.sql(
            "INSERT INTO t VALUES (1, repeat('a', 9000), repeat('b', 9000), 1), (2, 's', 's', 2)",
            "UPDATE t SET v = v + 1",
            "UPDATE t SET a = 'new'",
            "INSERT INTO f VALUES (1, repeat('f', 9000), 1)",
            "UPDATE f SET v = 2",
        )
    )
    unchanged = [row for piece in batches(pieces)["shop.public.t"] for row in piece.column("__unchanged").to_pylist()]
    assert unchanged == [[], [], ["a", "b"], [], ["b"], []]
    assert rows(pieces, "shop.public.t")[2:] == [
        (1, None, None, 2),
        (2, "s", "s", 3),
        (1, "new", None, 2),
        (2, "new", "s", 3),
    ]
    # With the full old row at hand the value is known.
    assert rows(pieces, "shop.public.f")[1] == (1, "f" * 9000, 2)
    assert batches(pieces)["shop.public.f"][0].unchanged is None


def test_truncate(database: Database) -> None:
    database.execute("CREATE TABLE a(id int PRIMARY KEY)", "CREATE TABLE b(id int, s text)")
    pieces = both(
        database.sql(
            "BEGIN",
            "INSERT INTO a VALUES (1)",
            "TRUNCATE a, b",
            "INSERT INTO b VALUES (2, 'x')",
            "COMMIT",
            "TRUNCATE a",
        )
    )
    assert events(pieces, "shop.public.a") == [("c", (1,)), ("t", (None,)), ("t", (None,))]
    assert events(pieces, "shop.public.b") == [("t", (None, None)), ("c", (2, "x"))]
    assert sorted(i for own in batches(pieces).values() for item in own for i in item.index.tolist()) == [0, 0, 1, 2, 3]


def test_schema_change_in_mid_stream(database: Database) -> None:
    database.execute("CREATE TABLE t(id int PRIMARY KEY, a int, b text)")
    pieces = both(
        database.sql(
            "INSERT INTO t VALUES (1, 1, 'x')",
            "BEGIN",
            "INSERT INTO t VALUES (2, 2, 'y')",
            "ALTER TABLE t ADD c float8 DEFAULT 7",
            "INSERT INTO t VALUES (3, 3, 'z', 0.5)",
            "COMMIT",
            "ALTER TABLE t DROP b",
            "INSERT INTO t VALUES (4, 4, 1)",
            "ALTER TABLE t ALTER a TYPE numeric(8,1)",
            "INSERT INTO t VALUES (5, 5.5, 1)",
            "ANALYZE t",
            "INSERT INTO t VALUES (6, 6.5, 1)",
            "ALTER TABLE t RENAME TO t2",
            "INSERT INTO t2 VALUES (7, 7.5, 1)",
        )
    )
    found = batches(pieces)["shop.public.t"]
    assert [item.column_names for item in found] == [
        ["id", "a", "b"],
        ["id", "a", "b", "c"],
        ["id", "a", "c"],
        ["id", "a", "c"],
    ]
    assert [item.num_rows for item in found] == [2, 1, 1, 2]
    assert found[3].column("a").type == pa.decimal128(8, 1)
    assert len(batches(pieces)["shop.public.t2"]) == 1


def test_interleaved_tables_share_one_index(database: Database) -> None:
    database.execute("CREATE TABLE a(id int)", "CREATE TABLE b(id int, s text)", "CREATE TABLE c(id int)")
    statements = [f"INSERT INTO {'abc'[i % 3]}(id) VALUES ({i})" for i in range(60)]
    (piece,) = both(database.sql("BEGIN", *statements, "COMMIT", "BEGIN", "COMMIT"))
    assert piece.position is not None
    ((commit_lsn, commit_ts_us),) = {
        commit for _, batch in piece.batches for commit in zip(batch.lsn.tolist(), batch.ts_us.tolist(), strict=True)
    }
    assert commit_lsn < piece.position
    assert [topic for topic, _ in piece.batches] == ["shop.public.a", "shop.public.b", "shop.public.c"]
    for offset, (_, batch) in enumerate(piece.batches):
        assert batch.index.tolist() == batch.column("id").to_pylist() == list(range(offset, 60, 3))
    now = database.execute("SELECT (extract(epoch FROM now())*1000000)::int8")[0][0]
    assert now - 60_000_000 < commit_ts_us <= now


def test_many_small_transactions(database: Database) -> None:
    database.execute("CREATE TABLE t(id int PRIMARY KEY, s text)")
    pieces = both(database.sql(*[f"INSERT INTO t VALUES ({i}, repeat('x', {i % 7}))" for i in range(1000)]))
    (piece,) = pieces
    assert piece.rows == 1000
    batch = piece.batches[0][1]
    assert not batch.index.any() and len(set(batch.lsn.tolist())) == 1000
    assert batch.rows.to_pylist() == [{"id": i, "s": "x" * (i % 7)} for i in range(1000)]


def test_copy_shares_one_lsn(database: Database) -> None:
    database.execute("CREATE TABLE t(id int, s text)")

    def work() -> None:
        with database.connection.cursor().copy("COPY t FROM STDIN") as copy:
            for i in range(2500):
                copy.write_row((i, f"row {i}" if i % 5 else None))

    (piece,) = both(database.captured(work))
    assert rows([piece], "shop.public.t") == [(i, f"row {i}" if i % 5 else None) for i in range(2500)]


def test_names_keys_and_schema(database: Database) -> None:
    database.execute(
        'CREATE SCHEMA "My Schema"', 'CREATE TABLE "My Schema"."täble.x"("Id" int, b int)', 'CREATE TABLE "a b"(id int)'
    )
    database.execute('CREATE TABLE "a_b"(id int)')
    statements = [f'INSERT INTO "{"a b" if i % 3 else "a_b"}" VALUES ({i})' for i in range(10)]
    messages = database.sql('INSERT INTO "My Schema"."täble.x" VALUES (1, 2)', "BEGIN", *statements, "COMMIT")
    oids = {
        oid: Known((schema, name), ("b",) if name == "täble.x" else None)
        for oid, schema, name in database.execute(
            "SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        )
    }
    pieces = decode(messages[True], known=oids)
    (batch,) = batches(pieces)["shop.My_Schema.t_ble.x"]
    assert batch.key_columns == ("b",) and batch.source == "shop"
    like = Batch.of(batch.rows, lsn=1, key=["b"], source="shop")
    assert batch.schema.equals(like.schema, check_metadata=True)
    # Two tables with one topic: commit order all the same.
    assert [row for (row,) in rows(pieces, "shop.public.a_b")] == list(range(10))


def test_origin_and_logical_messages(database: Database) -> None:
    database.execute("CREATE TABLE t(id int)", "SELECT pg_replication_origin_create('elsewhere')")
    pieces = both(
        database.sql(
            "SELECT pg_logical_emit_message(false, 'p', 'outside')",
            "SELECT pg_replication_origin_session_setup('elsewhere')",
            "BEGIN",
            "SELECT pg_replication_origin_xact_setup('0/1234', now())",
            "INSERT INTO t VALUES (1)",
            "SELECT pg_logical_emit_message(true, 'p', 'inside')",
            "INSERT INTO t VALUES (2)",
            "COMMIT",
            "SELECT pg_logical_emit_message(true, 'p', 'alone')",
        )
    )
    assert rows(pieces, "shop.public.t") == [(1,), (2,)]
    assert batches(pieces)["shop.public.t"][0].index.tolist() == [0, 1]
    # The logical message that stands alone has committed a transaction too.
    assert end_of(pieces) > int(batches(pieces)["shop.public.t"][0].lsn[-1]) + 100


# --- pieces ---


def end_of(pieces: Sequence[Piece[Lsn]]) -> Lsn:
    """Position that is reached with these."""
    return max((piece.position for piece in pieces if piece.position is not None), default=Lsn(0))


@pytest.fixture(scope="module")
def workload(server: PostgresServer) -> Iterator[dict[bool, list[bytes]]]:
    """A bit of everything, with transactions of 0 to 300 rows."""
    one = Database(server, f"decode{next(_numbers)}")
    one.execute(
        "CREATE TABLE a(id int PRIMARY KEY, s text, n numeric(8,2), t timestamptz)",
        'CREATE TABLE b(id int PRIMARY KEY, f float8, j jsonb, m numeric, u uuid, y bytea, d date, c "char")',
        "ALTER TABLE b REPLICA IDENTITY FULL",
        "CREATE TABLE big(id int PRIMARY KEY, s text, v int)",
        "ALTER TABLE big ALTER s SET STORAGE EXTERNAL",
    )
    statements = []
    for i in range(0, 3000, 300):
        statements += [
            "BEGIN",
            f"INSERT INTO a SELECT i, repeat('s', i%20), i/4.0, now() FROM generate_series({i}, {i + i // 10}) i",
            "INSERT INTO b SELECT i, i/3.0, NULL, i/7.0, gen_random_uuid(), '\\xab', now(), 'c'"
            f" FROM generate_series({i}, {i + 50}) i",
            "UPDATE b SET j = '{}' WHERE id % 7 = 0",
            "COMMIT",
            f"INSERT INTO a VALUES ({i + 299}, NULL, {'NULL' if i % 600 else repr('NaN')}, 'infinity')",
            f"INSERT INTO big VALUES ({i}, repeat('x', 3000), 1)",
            f"UPDATE big SET v = 2 WHERE id = {i}",
            f"DELETE FROM b WHERE id % 50 = {i // 300}",
            "SELECT pg_logical_emit_message(true, 'p', 'q')",
        ]
    statements += ["ALTER TABLE a ADD z int", "INSERT INTO a(id, z) VALUES (-1, 1)", "TRUNCATE a, big"]
    yield one.sql(*statements)
    one.connection.close()


def feed(decoder: Decoder, messages: Sequence[bytes | memoryview], most: int, seed: int) -> list[Piece[Lsn]]:
    """Feed chunks of random sizes up to ``most``."""
    pieces, at, chance = [], 0, random.Random(seed)
    while at < len(messages):
        step = chance.randint(1, most)
        pieces += decoder.feed(messages[at : at + step])
        at += step
    return pieces


def check_pieces(pieces: Sequence[Piece[Lsn]]) -> None:
    """Open and continued alternate as promised, and only whole transactions move the end."""
    is_open, end = False, Lsn(0)
    for piece in pieces:
        assert piece.continued == is_open
        lsns = sorted({int(lsn) for _, batch in (*piece.batches, *piece.rejected) for lsn in batch.lsn})
        assert len(lsns) <= 1 or not (piece.open or piece.continued)
        assert (piece.position is None) == piece.open
        if piece.position is not None:
            assert all(end <= lsn < piece.position for lsn in lsns)
            end = piece.position
        is_open = piece.open
        firsts = [(int(b.lsn[0]), int(b.index[0])) for _, b in piece.batches]
        assert firsts == sorted(firsts)


@pytest.mark.parametrize("binary", [True, False])
def test_chunks_make_no_difference(workload: dict[bool, list[bytes]], binary: bool) -> None:
    expected = both(workload)
    check_pieces(expected)
    for seed in range(6):
        messages = [memoryview(item) if seed % 2 else item for item in workload[binary]]
        pieces = feed(Decoder("shop"), messages, [1, 3, 40, 2000][seed % 4], seed)
        check_pieces(pieces)
        assert not any(piece.open for piece in pieces)
        same(pieces, expected)


def test_long_transactions_come_in_open_pieces(workload: dict[bool, list[bytes]]) -> None:
    expected = decode(workload[True])
    for seed, (most_rows, most_bytes) in enumerate([(10, 1 << 20), (1, 1 << 20), (65_536, 5000)]):
        decoder = Decoder("shop", max_open_rows=most_rows, max_open_bytes=most_bytes)
        pieces = feed(decoder, workload[True], 60, seed)
        assert any(piece.open for piece in pieces)
        check_pieces(pieces)
        same(pieces, expected)


def test_pieces_are_bounded_at_commits(workload: dict[bool, list[bytes]]) -> None:
    pieces = decode(workload[True], max_open_rows=100)
    check_pieces(pieces)
    assert not any(piece.open for piece in pieces) and len(pieces) > 10
    assert all(piece.rows <= 100 or len({int(b.lsn[-1]) for _, b in piece.batches}) == 1 for piece in pieces)
    same(pieces, decode(workload[True]))


def test_huge_transactions_are_cut_although_they_came_whole(
    workload: dict[bool, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow's offsets have 31 bits."""
    expected = decode(workload[True])
    monkeypatch.setattr("headrace.capture.postgres.decode._HARD_BYTES", 5000)
    pieces = decode(workload[True], max_open_bytes=2000)
    check_pieces(pieces)
    assert any(piece.open for piece in pieces)
    same(pieces, expected)


def test_stored_transactions_are_skipped(workload: dict[bool, list[bytes]]) -> None:
    whole = decode(workload[True], max_open_rows=100)
    for cut in range(0, len(whole), 3):
        lsn = end_of(whole[: cut + 1])
        for limit in (65_536, 20):
            decoder = Decoder("shop", skip_below=lsn, max_open_rows=limit)
            pieces = feed(decoder, workload[True], 60, cut)
            check_pieces(pieces)
            same(pieces, whole[cut + 1 :])


def test_reset_forgets_an_unfinished_transaction(workload: dict[bool, list[bytes]]) -> None:
    messages = workload[True]
    for limit in (65_536, 5):
        decoder = Decoder("shop", max_open_rows=limit)
        decoder.feed(messages[: len(messages) // 2])
        decoder.reset()
        same(decoder.feed(messages), decode(messages))


def test_nothing_is_said_of_nothing() -> None:
    decoder = Decoder("shop")
    message = b"M" + b"\0" + bytes(8) + b"p\0" + struct.pack(">I", 1) + b"x"
    for _ in range(3):
        assert decoder.feed([b"w" + bytes(24) + message]) == []
    assert decoder.feed([]) == []
    assert not decoder._tail


# --- damaged streams ---


def test_damaged_messages_are_decode_errors(workload: dict[bool, list[bytes]]) -> None:
    """Bytes cut off, changed, or messages left out: rows or a DecodeError, never anything else."""
    chance = random.Random(11)
    errors = 0
    for binary in (True, False):
        messages = workload[binary]
        interesting = [i for i, item in enumerate(messages) if item[25:26] in b"RUDTBC"] + list(range(200))
        for _ in range(1500):
            at = chance.choice(interesting)
            window = messages[:60] + messages[at : at + 3]
            damaged = bytearray(window[-2])
            how = chance.randrange(3)
            if how == 0:
                damaged = damaged[: chance.randrange(len(damaged))]
            elif how == 1:
                damaged[chance.randrange(25, min(len(damaged), 90))] = chance.choice(
                    [0, 1, 127, 255, chance.randrange(256)]
                )
            else:
                damaged = damaged + bytes(chance.randint(1, 4))
            errors += _survives([*window[:-2], bytes(damaged), window[-1]])
    assert errors > 500


def _survives(messages: list[bytes]) -> bool:
    try:
        for piece in Decoder("shop", max_open_rows=len(messages) - 2).feed(messages):
            for _, batch in piece.batches:
                batch.records.validate()
    except DecodeError as error:
        assert "message" in str(error) or isinstance(error, NeedsTextMode) or "column" in str(error)
        return True
    return False


def _rows_of(pieces: Sequence[Piece[Lsn]]) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Return every row by topic and position; what the tables of dead letters hold too."""
    return {
        (topic, int(batch.lsn[row]), int(batch.index[row])): {
            name: _raw(column)[row]
            for name, column in zip(batch.records.schema.names, batch.records.columns, strict=True)
        }
        for piece in pieces
        for topic, batch in (*piece.batches, *piece.rejected)
        for row in range(batch.num_rows)
    }


def _raw(array: pa.Array) -> list[Any]:
    """Return values, texts as their bytes: damaged ones may be no UTF-8, which the log's writer finds."""
    if pa.types.is_struct(array.type):
        return list(zip(*(_raw(part) for part in array.flatten()), strict=True))
    return plain(array.view(pa.binary()) if pa.types.is_string(array.type) else array)


_EDIT = st.tuples(
    st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), st.binary(max_size=12), st.integers(0, 12)
)


@given(edits=st.lists(_EDIT, min_size=1, max_size=3), binary=st.booleans())
def test_damaged_rows_touch_no_others(
    workload: dict[bool, list[bytes]], edits: list[tuple[float, float, bytes, int]], binary: bool
) -> None:
    """Any bytes of any rows replaced, put in or cut out: all other rows are as they were, or an error says the LSN."""
    messages = list(workload[binary][:160])
    targets = [number for number, item in enumerate(messages) if item[25:26] in (b"I", b"U", b"D")]
    assert targets
    touched = set()
    for where, inside, put, cut in edits:
        number = targets[int(where * len(targets))]
        at = 26 + int(inside * (len(messages[number]) - 26))
        messages[number] = messages[number][:at] + put + messages[number][at + cut :]
        touched.add(number)
    try:
        found = _rows_of(Decoder("shop").feed(messages))
    except NeedsTextMode:
        return
    except DecodeError as error:
        assert re.search(r"0/[0-9A-F]+", str(error))
        return
    expected = _rows_of(Decoder("shop").feed(workload[binary][:160]))
    differing = [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]
    # A row whose table was changed is missing where it was and there where it is not.
    assert len(differing) <= 2 * len(touched)
    assert len(found) == len(expected)


@given(data=st.data(), binary=st.booleans())
def test_any_bytes_are_rows_or_an_error(workload: dict[bool, list[bytes]], data: st.DataObject, binary: bool) -> None:
    """Messages of any kinds and bytes between those of a stream, fed in any chunks."""
    kinds = st.sampled_from([*b"BCRIUDTOYM", *range(256)])
    made = st.builds(lambda kind, body: message(bytes([kind]) + body), kinds, st.binary(max_size=80))
    messages = list(workload[binary][:40])
    for strange in data.draw(st.lists(made, min_size=1, max_size=4)):
        messages.insert(data.draw(st.integers(0, len(messages))), strange)
    decoder, at = Decoder("shop"), 0
    try:
        while at < len(messages):
            step = data.draw(st.integers(1, len(messages)))
            for piece in decoder.feed(messages[at : at + step]):
                for _, batch in piece.batches:
                    batch.records.validate(full=True)
            at += step
    except DecodeError as error:
        assert isinstance(error, NeedsTextMode) or re.search(r"[0-9A-F]+/[0-9A-F]+", str(error))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: [m[0], b"k" + m[1][1:]], "message 1 .* byte 0: not an XLogData"),
        (lambda m: [m[0], m[1][:20]], "message 1 .* byte 0: shorter than its header"),
        (lambda m: [m[0], m[1][:25] + b"S" + m[1][26:]], "unknown message kind 'S'"),
        (lambda m: [m[0], m[0]], "message 1 .*BEGIN inside a transaction"),
        (lambda m: m[1:], "a row outside of a transaction|COMMIT without BEGIN"),
        (lambda m: [m[0], *m[2:]], "no Relation message came for relation"),
        (lambda m: [*m[:2], m[2][:-1], *m[3:]], r"message 2 \(kind 'I'\) at 0/[0-9A-F]+, byte \d+: "),
        (lambda m: [*m[:-1], m[-1] + b"x"], "has not its 51 bytes"),
        (lambda m: [m[0], m[1][:-2], *m[2:]], "malformed Relation message"),
    ],
)
def test_errors_say_where(
    workload: dict[bool, list[bytes]], change: Callable[[list[bytes]], list[bytes]], says: str
) -> None:
    messages = workload[True]
    kinds = b"".join(item[25:26] for item in messages)
    row = kinds.index(b"I")
    begin = kinds.rindex(b"B", 0, row)
    commit = kinds.index(b"C", row)
    relation = kinds.index(b"R")
    good = [messages[begin], messages[relation], messages[row], messages[commit]]
    assert sum(piece.rows for piece in decode(good)) == 1
    with pytest.raises(DecodeError, match=says):
        decode([*change(good), messages[commit]] if says.startswith("message 1 .*BEGIN") else change(good))


def message(body: bytes, lsn: int = 0x1000) -> bytes:
    return b"w" + lsn.to_bytes(8, "big") + bytes(16) + body


def test_every_kind_of_the_protocols(workload: dict[bool, list[bytes]]) -> None:
    """Kinds of protocols 2 to 4 that bring nothing are read over wherever they stand; the others are errors by name."""
    messages = workload[True]
    rows = sum(piece.rows for piece in decode(messages))
    harmless = [
        b"A" + bytes(8),
        b"A" + bytes(24),
        b"E",
        b"r" + bytes(45) + b"gid\0",
        b"M" + bytes(9) + b"p\0" + bytes(4),
    ]
    harmless += [b"O" + bytes(8) + b"origin\0", b"Y" + bytes(4) + b"public\0enum\0"]
    beside = [part for item in messages for part in (message(harmless[len(item) % len(harmless)]), item)]
    assert sum(piece.rows for piece in decode([*map(message, harmless), *beside, *map(message, harmless)])) == rows
    # Nor do they, of no transaction, to a table that joined.
    joined = Decoder("shop", known={1: Known(("public", "t"))}, seen={1: Seen("10:10:", 0x5000)})
    assert [piece for kind in harmless for piece in joined.feed([message(kind)])] == []
    named = {b"S": "Stream Start", b"c": "Stream Commit", b"b": "Begin Prepare", b"P": "Prepare:"}
    named |= {b"K": "Commit Prepared", b"p": "Stream Prepare"}
    for kind in [bytes([byte]) for byte in range(256) if byte not in b"BCRIUDTOYMAEr"]:
        with pytest.raises(DecodeError, match=r"at 0/1000") as caught:
            decode([message(kind + bytes(30))])
        assert f"unknown message kind {chr(kind[0])!r}" in str(caught.value)
        assert named.get(kind, "") in str(caught.value)
        assert ("two_phase off" in str(caught.value)) == (kind in named)


def test_tables_of_one_layout_are_decoded_at_once_as_they_are_one_by_one(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(server, "alike")
    columns = "id int PRIMARY KEY, n numeric(6,2), d date, s text, f float8, t timestamp"
    tables = [f"a{number}" for number in range(6)] + ["b"]
    made = [f"CREATE TABLE {table} ({columns})" for table in tables[:-1]]
    made += ["CREATE TABLE b (id int PRIMARY KEY, n numeric(5,2), d date, s text, f float8, t timestamp)"]
    made += ["ALTER TABLE a1 REPLICA IDENTITY FULL", "ALTER TABLE a2 REPLICA IDENTITY FULL"]
    made += [f"ALTER TABLE {table} ALTER s SET STORAGE EXTERNAL" for table in tables]
    database.execute(*made, "SELECT pg_replication_origin_create('alike')")
    chance = random.Random(3)
    values = ["1, NULL, '0044-03-15 BC', '', 'NaN'", "2, 1.25, 'infinity', repeat('x', 9000), '-infinity'"]
    values += ["3, -999.99, '99999-12-31', 'ä', -0.0", "4, 0, NULL, NULL, NULL"]
    statements = []
    for number in range(60):
        table = tables[number % 7] if number < 14 else chance.choice(tables)
        work = [f"DELETE FROM {table}", *(f"INSERT INTO {table} VALUES ({value})" for value in values)]
        work += [f"UPDATE {table} SET f = {number} WHERE id = {chance.randint(1, 4)}"]  # leaves s as it was
        work += [f"UPDATE {table} SET id = id + 10, n = 'NaN' WHERE id > 2"] if number % 5 == 2 else []
        work += [f"TRUNCATE {table}"] if number % 11 == 3 else []
        # No instant of Arrow's: a dead letter.
        work += [f"INSERT INTO {table} (id, t) VALUES (9, '294276-12-31 23:59:59.999999')"] if number % 13 == 6 else []
        work += ["ALTER TABLE a4 ADD COLUMN IF NOT EXISTS more int"] if number == 30 else []
        if number % 4 == 1:
            work = ["SELECT pg_replication_origin_session_setup('alike')", "; ".join(["BEGIN", *work, "COMMIT"])]
            statements += [*work, "SELECT pg_replication_origin_session_reset()"]
        else:
            statements.append("; ".join(["BEGIN", *work, "COMMIT"]))
    streams = database.sql(*statements)
    database.execute("SELECT pg_replication_origin_drop('alike')")
    for messages in streams.values():
        for most in (len(messages), 40):
            found = {}
            for alone in (1024, 0):
                monkeypatch.setattr("headrace.capture.postgres.decode._ALONE", alone)
                pieces = feed(Decoder("shop", tells_changes=True), messages, most, seed=most)
                told = [batch for piece in pieces for batch in (*piece.batches, *piece.rejected)]
                found[alone] = [(topic, batch.records) for topic, batch in told]
            assert {len(records.schema.names) for _, records in found[0]} >= {11, 12, 13, 14}  # with and without extras
            assert any(topic.endswith(".dlq") for topic, _ in found[0])
            assert [topic for topic, _ in found[0]] == [topic for topic, _ in found[1024]]
            for (topic, one), (_, other) in zip(found[0], found[1024], strict=True):
                assert one.schema.equals(other.schema, check_metadata=True), topic
                assert plain_values.json_texts(one) == plain_values.json_texts(other), topic
    database.connection.close()
