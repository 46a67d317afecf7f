"""The layout of a log in its SQLite file: tables, settings, format version, migrations.

==========  ==================================================================================================
table       holds
==========  ==================================================================================================
head        one row: the writer's epoch; the last slice number when entries were last pruned
topics      a topic's name and totals; a row stays when all its entries are pruned, so that offsets go on, and when
            the topic is dropped: its times are then -1
schemas     Arrow schemas as IPC bytes, each once, found by their SHA-256
bodies      record batches as IPC messages, and pieces of records; apart, so that publishing staged rows, and counting
            another use of a piece, moves none of them
entries     the visible entries in slice order, each with a CRC-32 of its body and place
staged      entries whose source's transaction has not been seen to commit
records     named records by kind; of a large one, the hashes of its pieces
pieces      pieces of large records by their hashes, each once, and how many records use it
==========  ==================================================================================================

Since format 3 each page ends with a checksum, which SQLite's extension `cksumvfs
<https://sqlite.org/cksumvfs.html>`_ (in apsw's wheel) writes and compares. Bodies have checksums of their own, which
say which rows are damaged: their pages are read without.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import apsw

from headrace.errors import LogCorrupt, LogError, LogFull, LogLocked, LogMissing, LogVersionError
from headrace.faults import fault

APPLICATION_ID = 0x48647263  # "Hdrc", shown by file(1)
FORMAT = 3
# Older files become this in place; page checksums need a file that was made with room for them.
MIGRATED = 2
CHECKSUM_BYTES = 8
PAGE_BYTES = 8192
CACHE_KIBIBYTES = 8192
BUSY_MILLISECONDS = 10_000
WAL_FILE_BYTES = 64 << 20
DROPPED = -1
OLDEST_SQLITE = (3, 51, 3)

_PLACE = struct.Struct("<7q")

_TABLES = """
CREATE TABLE head (
    only INTEGER PRIMARY KEY CHECK (only = 1), epoch INTEGER NOT NULL, slice INTEGER NOT NULL
) STRICT;
CREATE TABLE topics (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, first_offset INTEGER NOT NULL, end_offset INTEGER NOT NULL,
    bytes INTEGER NOT NULL, entries INTEGER NOT NULL, first_ts_us INTEGER NOT NULL, last_ts_us INTEGER NOT NULL
) STRICT;
CREATE TABLE schemas (id INTEGER PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, ipc BLOB NOT NULL) STRICT;
CREATE TABLE bodies (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE entries (
    slice INTEGER NOT NULL, seq INTEGER NOT NULL, topic INTEGER NOT NULL, offset INTEGER NOT NULL,
    rows INTEGER NOT NULL, complete INTEGER NOT NULL, ts_us INTEGER NOT NULL,
    schema INTEGER NOT NULL, body INTEGER NOT NULL, crc32 INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (slice, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX entries_by_slice ON entries (topic, slice);
CREATE INDEX entries_by_offset ON entries (topic, offset);
CREATE TABLE staged (
    id INTEGER PRIMARY KEY, slice INTEGER NOT NULL, topic TEXT NOT NULL, rows INTEGER NOT NULL,
    schema INTEGER NOT NULL, body INTEGER NOT NULL, crc32 INTEGER NOT NULL, bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE records (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL,
    pieces INTEGER NOT NULL DEFAULT 0, UNIQUE (kind, name)
) STRICT;
INSERT INTO head VALUES (1, 0, 0);
"""
_PIECES = """
CREATE TABLE pieces (
    id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, uses INTEGER NOT NULL, body INTEGER NOT NULL
) STRICT;
"""

Migration = Callable[[apsw.Connection], None]

_CRC = struct.Struct(">I")


def _add_pieces(connection: apsw.Connection) -> None:
    """Format 2: large records are kept in pieces. Those that are there stay as they are until they are written anew."""
    connection.execute("ALTER TABLE records ADD COLUMN pieces INTEGER NOT NULL DEFAULT 0")
    connection.execute(_PIECES)


MIGRATIONS: Mapping[int, Migration] = {1: _add_pieces}
"""From each older format, what makes the next one of it; each runs inside the transaction that migrates the file."""


def seal(crc32: int, topic: str, *place: int) -> int:
    """Return the checksum of an entry: its body's CRC-32, continued over where it stands.

    Args:
        crc32: of the body.
        topic: its topic.
        place: slice, number in the slice, offset, rows, completeness, time, schema.
    """
    return zlib.crc32(topic.encode(), zlib.crc32(_PLACE.pack(*place), crc32))


def seal_record(kind: str, name: str, value: bytes) -> bytes:
    """Return a named record as stored: four bytes of CRC-32 over kind, name and value, then the value.

    >>> open_record("position", "m", seal_record("position", "m", b"{}"))
    b'{}'
    """
    return _CRC.pack(zlib.crc32(value, zlib.crc32(f"{kind}/{name}".encode()))) + value


def open_record(kind: str, name: str, stored: bytes) -> bytes:
    """Return the inverse of `seal_record`.

    Raises:
        LogCorrupt: the bytes are not those that were stored.
    """
    value = stored[_CRC.size :]
    if stored != seal_record(kind, name, value):
        raise LogCorrupt(f"the record {kind} «{name}» is damaged", advice="Restore the log's file from a copy.")
    return value


def connect_writer(path: Path) -> apsw.Connection:
    """Return the writing connection; makes the log where there is none and migrates an older one.

    Raises:
        LogCorrupt: the file is something else.
        LogVersionError: a newer Headrace wrote it.
    """
    if not path.exists():
        try:
            _make(path)
        except OSError as error:
            raise LogError(f"cannot make the log {path}: {error.strerror}", advice="Check the disk.") from error
    connection = _connect(path, apsw.SQLITE_OPEN_READWRITE)
    with closed_on_error(connection, path):
        version = format_version(connection, path)
        if connection.execute("PRAGMA journal_mode=WAL").get != "wal":
            raise LogError(f"the file system of {path} does not allow SQLite's WAL", advice="Use a local disk.")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={WAL_FILE_BYTES}").fetchall()
        connection.transaction_mode = "IMMEDIATE"
        if version > MIGRATED and not page_checksums():
            raise LogError(
                f"the log {path} has page checksums, which this apsw cannot write: it brings no cksumvfs",
                advice="pip install --upgrade --force-reinstall apsw, from a wheel.",
            )
        migrate(connection, version, migrations=MIGRATIONS, target=MIGRATED)
    return connection


def _make(path: Path) -> None:
    """Make a log, under another name until it is whole: an empty file at ``path`` was never one of ours."""
    # Among them a WAL whose log was removed by hand: SQLite would replay it into the new one. And how far groups had
    # read the rows of that log (`headrace.dataset.groups`).
    groups = (".groups", ".groups-wal", ".groups-shm")
    for leftover in (".new", ".new-journal", ".new-wal", ".new-shm", "-wal", "-shm", ".health", ".history", *groups):
        path.with_name(path.name + leftover).unlink(missing_ok=True)
    new = path.with_name(path.name + ".new")
    connection = _connect(new, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
    with closed_on_error(connection, path):
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        if page_checksums():
            reserved = ctypes.c_int(CHECKSUM_BYTES)
            connection.file_control("main", apsw.SQLITE_FCNTL_RESERVE_BYTES, ctypes.addressof(reserved))
        connection.execute(f"BEGIN IMMEDIATE; {_TABLES}; {_PIECES}; PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={FORMAT if page_checksums() else MIGRATED}; COMMIT")
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
    connection.close()
    fault("log.before-made")
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def connect_reader(path: Path) -> apsw.Connection:
    """Return a connection that only reads, and never moves the writer's WAL into the file.

    Raises:
        LogError: nothing is there.
        LogCorrupt, LogVersionError: as for `connect_writer`; an older format also needs a writer's opening first.
    """
    if not path.is_file():
        raise LogMissing(f"there is no log at {path}", advice="Check the path, or run the pipeline that writes it.")
    connection = _connect(path, apsw.SQLITE_OPEN_READONLY)
    with closed_on_error(connection, path):
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        version = format_version(connection, path)
        if version < MIGRATED:
            raise LogVersionError(
                f"the log {path} has the older format {version}, which can only be read once it is migrated",
                advice="Open it for writing once (run its pipeline with this Headrace).",
            )
    return connection


def _connect(path: Path, flags: int) -> apsw.Connection:
    if tuple(map(int, apsw.sqlite_lib_version().split("."))) < OLDEST_SQLITE:
        raise LogError(
            f"this apsw uses SQLite {apsw.sqlite_lib_version()}, which can damage a log that is read while written",
            advice="pip install --upgrade --force-reinstall apsw, which brings its own SQLite.",
        )
    page_checksums()  # files that are opened from now on are read and written through it
    try:
        connection = apsw.Connection(str(path), flags)
    except apsw.Error as error:
        raise translate(error, path) from error
    with closed_on_error(connection, path):
        connection.set_busy_timeout(BUSY_MILLISECONDS)
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIBIBYTES}")
        connection.execute("PRAGMA cell_size_check=ON")
    return connection


@functools.cache
def page_checksums() -> bool:
    """Return whether this process writes and compares checksums of pages; an apsw built from source may not."""
    try:
        from apsw import sqlite_extra
    except ImportError:
        return False
    try:
        with contextlib.closing(apsw.Connection(":memory:")) as connection:
            sqlite_extra.load(connection, "cksumvfs")
    except (apsw.Error, sqlite_extra.NotAvailable):
        return False
    return True


@contextlib.contextmanager
def unverified(connection: apsw.Connection) -> Iterator[None]:
    """In the block pages are read without comparing their checksums: what is read has one of its own."""
    connection.execute("PRAGMA checksum_verification=OFF").fetchall()
    try:
        yield
    finally:
        connection.execute("PRAGMA checksum_verification=ON").fetchall()


@contextlib.contextmanager
def closed_on_error(connection: apsw.Connection, path: Path) -> Iterator[None]:
    """Close the connection when the block fails, and raise SQLite's errors as the log's."""
    try:
        yield
    except apsw.Error as error:
        failure = translate(error, path, connection.system_errno)
        connection.close()
        raise failure from error
    except BaseException:
        connection.close()
        raise


def format_version(connection: apsw.Connection, path: Path) -> int:
    """Return the format of the log in an open file.

    Raises:
        LogCorrupt: the file is something else.
        LogVersionError: a newer Headrace wrote it.
    """
    application = connection.execute("PRAGMA application_id").get
    version = int(connection.execute("PRAGMA user_version").get)
    if application != APPLICATION_ID:
        empty = not connection.execute("SELECT count(*) FROM sqlite_schema").get
        raise LogCorrupt(
            f"{path} is empty" if empty else f"{path} is an SQLite database, but not a Headrace log",
            advice="Name another path for the log" + (", or remove that file to start anew." if empty else "."),
        )
    if version > FORMAT:
        raise LogVersionError(
            f"the log {path} has format {version}; this Headrace reads up to {FORMAT}",
            advice="Upgrade: pip install --upgrade headrace",
        )
    if version > MIGRATED and page_checksums() and not connection.execute("PRAGMA checksum_verification").get:
        raise LogCorrupt(
            f"{path} is damaged: its first page says nothing of checksums", advice="Restore the log from a copy."
        )
    return version


def migrate(connection: apsw.Connection, version: int, *, migrations: Mapping[int, Migration], target: int) -> None:
    """Bring a file from the format ``version`` to the format ``target``, in one transaction."""
    if version >= target:
        return
    with connection:
        for older in range(version, target):
            migrations[older](connection)
        connection.execute(f"PRAGMA user_version={target}")


def translate(error: apsw.Error, path: Path, system_errno: int = 0) -> LogError:
    """Return what SQLite's error means for the log at ``path``; raise it ``from`` the original.

    Args:
        error: what apsw raised.
        path: the log's file.
        system_errno: the connection's last, which tells a full disk from a broken one.
    """
    broken = isinstance(error, (apsw.IOError, apsw.CantOpenError))
    if isinstance(error, apsw.FullError) or (broken and system_errno in (errno.ENOSPC, errno.EDQUOT)):
        return LogFull(
            f"no space left for the log {path}; the transaction was undone",
            advice="Free space on its disk, or prune topics (keep=…); writing goes on where it stopped.",
        )
    code = error.extendedresult if isinstance(error, apsw.IOError) else 0  # type: ignore[attr-defined]  # the stubs lack it
    torn = code == apsw.SQLITE_IOERR_DATA
    if torn or isinstance(error, (apsw.NotADBError, apsw.CorruptError)):
        return LogCorrupt(
            f"{path} is damaged{': the checksum of a page is wrong' if torn else f' or not a log: {error}'}",
            advice="Restore a copy, or move the file away to start anew: the source's snapshot is then taken again.",
        )
    if isinstance(error, apsw.BusyError):
        return LogLocked(
            f"the log {path} was locked by another program for {BUSY_MILLISECONDS // 1000} s",
            advice="Close whatever has the file open for writing (an SQLite shell?).",
        )
    if isinstance(error, (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError)):
        return LogError(f"cannot open the log {path}: {error}", advice="Check the path and the rights on its folder.")
    return LogError(f"the log {path} failed: {error}", advice="Check the disk and the system's log.")
