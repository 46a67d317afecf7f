"""Answers to COPY in binary: the same rows wherever reads cut them, whatever they hold; damage is a clear error."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from headrace.capture.postgres import row_reader, types
from headrace.capture.postgres.client import Server
from headrace.capture.postgres.copy_data import HEADROOM, CopyColumn, CopyRows
from headrace.capture.postgres.messages import PAD
from headrace.capture.postgres.row_reader import AdbcReader, SocketReader, connect_reader
from headrace.errors import DecodeError, SourceRefused, SourceUnavailable

from .conftest import CapturedDatabase

COLUMNS = [CopyColumn("id", types.INT8, -1), CopyColumn("n", types.INT4, -1), CopyColumn("t", types.TEXT, -1)]
Row = tuple[int | None, int | None, str | None]


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack(">I", 4 + len(body)) + body


def cell(value: bytes | None) -> bytes:
    return struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value


def row_of(row: Row) -> bytes:
    number, small, text = row
    cells = [None if number is None else struct.pack(">q", number), None if small is None else struct.pack(">i", small)]
    cells.append(None if text is None else text.encode())
    return struct.pack(">h", 3) + b"".join(map(cell, cells))


def answer(rows: Sequence[Row], *, header_alone: bool = False) -> bytes:
    header = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    bodies = [*map(row_of, rows), b"\xff\xff"]
    bodies = [header, *bodies] if header_alone else [header + bodies[0], *bodies[1:]]
    begun = message(b"H", b"\1" + struct.pack(">hhhh", 3, 1, 1, 1))
    notice = message(b"N", b"SNOTICE\0C00000\0Mhello\0\0")
    ended = message(b"c") + message(b"C", b"COPY 3\0") + message(b"Z", b"T")
    return begun + notice + b"".join(message(b"d", body) for body in bodies) + ended


def block_of(part: bytes) -> np.ndarray:
    return np.concatenate([np.zeros(HEADROOM, np.uint8), np.frombuffer(part + PAD, np.uint8)])


def fed(parts: Sequence[bytes], columns: Sequence[CopyColumn] = COLUMNS) -> tuple[CopyRows, list[pa.RecordBatch]]:
    rows = CopyRows(columns)
    return rows, [batch for part in parts for batch in rows.feed(block_of(part), HEADROOM, HEADROOM + len(part))]


def cut(data: bytes, chance: random.Random) -> list[bytes]:
    places = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(12)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def rows_of(chance: random.Random, n: int) -> list[Row]:
    """Rows whose numbers and texts look like beginnings of rows, among runs of rows of one shape."""
    fake = int.from_bytes(b"\0d\0\0\0\x10\0\3", "big", signed=True)
    numbers = (None, 0, -1, fake, 2**63 - 1, -(2**63))
    texts = (None, "", "d", "d\0\0\0\x09\0\3", "grüße", "x" * 70_000 if chance.random() < 0.05 else "y")
    if chance.random() < 0.3:
        return [(i, i * 7, "abc") for i in range(n)]
    return [(chance.choice(numbers), chance.choice((None, 3, 0x64000000)), chance.choice(texts)) for _ in range(n)]


@pytest.mark.parametrize("seed", range(40))
def test_any_cut_gives_the_same_rows(seed: int) -> None:
    chance = random.Random(seed)
    rows = rows_of(chance, chance.choice((0, 1, 2, 9, 300)))
    found, batches = fed(cut(answer(rows, header_alone=chance.random() < 0.3), chance))
    assert found.ended
    assert found.refusal is None
    assert [tuple(row.values()) for batch in batches for row in batch.to_pylist()] == rows


def test_byte_by_byte() -> None:
    rows: list[Row] = [(1, None, "d"), (2, 3, "é"), (None, None, None)]
    found, batches = fed([bytes([byte]) for byte in answer(rows)])
    assert found.ended
    assert [tuple(row.values()) for batch in batches for row in batch.to_pylist()] == rows


def test_a_row_larger_than_many_blocks() -> None:
    data = answer([(1, 2, "z" * 3_000_000), (2, 3, "y")])
    _, batches = fed([data[at : at + 200_000] for at in range(0, len(data), 200_000)])
    assert [(row["id"], len(row["t"])) for batch in batches for row in batch.to_pylist()] == [(1, 3_000_000), (2, 1)]


def test_an_error_in_the_middle_is_kept_with_the_rows_before_it() -> None:
    data = answer([(1, 2, "a"), (2, 3, "b")])
    data = data[: data.index(message(b"d", b"\xff\xff"))]
    refused = message(b"E", b"SERROR\0C22012\0Mdivision by zero\0\0") + message(b"Z", b"E")
    found, batches = fed([data + refused])
    assert found.ended
    assert found.refusal == {"S": "ERROR", "C": "22012", "M": "division by zero"}
    assert sum(map(len, batches)) == 2


@pytest.mark.parametrize("seed", range(60))
def test_damage_is_an_error_or_another_value_and_never_a_crash(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(answer(rows_of(chance, 40)))
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    with contextlib.suppress(DecodeError):
        _, batches = fed(cut(bytes(data), chance))
        for batch in batches:
            batch.validate()


def test_what_is_no_row_is_refused() -> None:
    good = row_of((1, 2, "abc"))
    for bad, why in (
        (good[:-1], "longer than its row"),
        (good + b"x", "longer than its columns"),
        (struct.pack(">h", 2) + good[2:], "a row of 2 columns where there are 3"),
        (good[:2] + struct.pack(">i", -7) + good[6:], "negative length"),
        (good[:2] + struct.pack(">i", 7) + good[7:], "bytes where its type has 8"),
    ):
        data = answer([(1, 2, "abc")]).replace(
            message(b"d", b"\xff\xff"), message(b"d", bad) + message(b"d", b"\xff\xff")
        )
        with pytest.raises(DecodeError, match=why):
            fed([data])


QUERIES = [
    "SELECT g AS id, NULL::int AS n, repeat('d', g % 7) AS t FROM generate_series(1, 5000) g",
    "SELECT g::int2 AS a, g % 2 = 0 AS b, g / 7.0::float8 AS c, g::float4 AS d FROM generate_series(1, 3000) g",
    "SELECT CASE WHEN g % 3 = 0 THEN g END AS i, decode(repeat('64', g % 5), 'hex') AS y FROM generate_series(1, 99) g",
    "SELECT date '2024-01-01' + g AS d, timestamptz '2024-01-01' + g * interval '1h' AS z FROM generate_series(1, 9) g",
    "SELECT 1 AS one WHERE false",
    "SELECT FROM generate_series(1, 3)",
]


@pytest.mark.parametrize("query", QUERIES)
def test_both_readers_give_the_same(database: CapturedDatabase, query: str) -> None:
    server = Server(database.dsn)
    with contextlib.closing(connect_reader(server)) as socket, contextlib.closing(AdbcReader(server, 180000)) as adbc:
        assert isinstance(socket, SocketReader)
        ours, theirs = (list(reader.read(query)) for reader in (socket, adbc))
        assert sum(map(len, ours)) == sum(map(len, theirs))
        if ours and ours[0].num_columns:
            joined = pa.Table.from_batches(theirs).cast(ours[0].schema)
            assert pa.Table.from_batches(ours).equals(joined)


def test_a_reader_goes_on_after_a_query_that_fails(database: CapturedDatabase) -> None:
    with contextlib.closing(connect_reader(Server(database.dsn))) as reader:
        with pytest.raises(SourceRefused, match="division by zero"):
            list(reader.read("SELECT 1 / (500000 - g) FROM generate_series(1, 600000) g"))
        with pytest.raises(SourceRefused, match="nowhere"):
            list(reader.read("SELECT * FROM nowhere"))
        assert [batch.to_pydict() for batch in reader.read("SELECT 7 AS n")] == [{"n": [7]}]


def test_a_reader_whose_server_process_ends(database: CapturedDatabase) -> None:
    ends = "SELECT pg_terminate_backend(CASE g WHEN 9000 THEN pg_backend_pid() END) FROM generate_series(1, 9999) g"
    with contextlib.closing(connect_reader(Server(database.dsn))) as reader, pytest.raises(SourceUnavailable):
        list(reader.read(ends))


def test_a_batch_is_an_entry_of_some_size(database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_reader, "_BATCH_BYTES", 10_000)
    with contextlib.closing(connect_reader(Server(database.dsn))) as reader:
        sizes = [batch.num_rows for batch in reader.read("SELECT g FROM generate_series(1, 300000) g")]
    assert sum(sizes) == 300_000
    assert len(sizes) > 2
