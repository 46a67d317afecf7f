"""Named records of the embedded log: small ones in their rows, large ones as pieces that several may share.

A piece is found by its hash and counts the records that use it: a tensor that two checkpoints and a version have in
common lies in the file once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import apsw

from headrace.errors import LogCorrupt
from headrace.log.layout import open_record, seal_record

INLINE_BYTES = 65_536
_HASH = 16

Run = Callable[..., apsw.Cursor]
Value = bytes | Sequence[bytes | memoryview]


def put_record(run: Run, kind: str, name: str, value: Value) -> None:
    """Store a record in the open transaction; ``run`` executes a statement."""
    pieces = () if isinstance(value, bytes) or sum(map(len, value)) <= INLINE_BYTES else value
    if pieces:
        hashes = [_stored(run, piece) for piece in pieces]
        value = b"".join(hashes)
    elif not isinstance(value, bytes):
        value = b"".join(value)
    _release(run, kind, name)  # after the new ones are counted: what both have in common stays
    run(
        """INSERT INTO records (kind, name, value, pieces) VALUES (?, ?, ?, ?)
        ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value, pieces = excluded.pieces""",
        (kind, name, seal_record(kind, name, value), len(pieces)),
    )


def delete_record(run: Run, kind: str, name: str) -> None:
    """Remove a record, and its pieces that no other uses."""
    _release(run, kind, name)
    run("DELETE FROM records WHERE kind = ? AND name = ?", (kind, name))


def read_records(connection: apsw.Connection, kind: str, prefix: str) -> dict[str, bytes]:
    """Records whose names begin with ``prefix``, sorted by name.

    Raises:
        LogCorrupt: one, or a piece of one, is damaged.
    """
    query = "SELECT name, value, pieces FROM records WHERE kind = ? AND name >= ? ORDER BY name"
    found: dict[str, bytes] = {}
    for name, value, pieces in connection.execute(query, (kind, prefix)):
        if not name.startswith(prefix):
            break
        content = open_record(kind, name, value)
        found[name] = b"".join(_piece(connection, kind, name, one) for one in _hashes(content)) if pieces else content
    return found


def _stored(run: Run, piece: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(piece, digest_size=_HASH).digest()
    known = run("UPDATE pieces SET uses = uses + 1 WHERE hash = ? RETURNING uses", (digest,)).get
    if known is None:
        run("INSERT INTO bodies (body) VALUES (?)", (bytes(piece),))
        run("INSERT INTO pieces (hash, uses, body) VALUES (?, 1, last_insert_rowid())", (digest,))
    return digest


def _release(run: Run, kind: str, name: str) -> None:
    row: Any = run("SELECT value FROM records WHERE kind = ? AND name = ? AND pieces > 0", (kind, name)).get
    if row is None:
        return
    for digest in _hashes(open_record(kind, name, row)):
        uses, body = run("UPDATE pieces SET uses = uses - 1 WHERE hash = ? RETURNING uses, body", (digest,)).get or (
            1,
            0,
        )
        if uses == 0:
            run("DELETE FROM pieces WHERE hash = ?", (digest,))
            run("DELETE FROM bodies WHERE id = ?", (body,))


def _hashes(content: bytes) -> list[bytes]:
    return [content[at : at + _HASH] for at in range(0, len(content), _HASH)]


def _piece(connection: apsw.Connection, kind: str, name: str, digest: bytes) -> bytes:
    data = connection.execute(
        "SELECT b.body FROM pieces p JOIN bodies b ON b.id = p.body WHERE p.hash = ?", (digest,)
    ).get
    if data is None or hashlib.blake2b(data, digest_size=_HASH).digest() != digest:
        raise LogCorrupt(
            f"a piece of the record {kind} «{name}» is missing or damaged",
            advice="Restore the log's file from a copy.",
        )
    return bytes(data)
