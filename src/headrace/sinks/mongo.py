"""Results in a MongoDB collection: upserted by key, or by their offset, so that a repetition changes nothing.

The position lies in the collection ``headrace_sinks`` of the same database and moves after the rows. A standalone
server has no transactions: after a crash between the two, the same rows are written once more, with the same effect.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID

import numpy as np
import pyarrow as pa

from headrace import plain_values
from headrace.batch import OPS, told_apart
from headrace.errors import DeclarationError, MissingExtra, SinkError, SinkUnavailable
from headrace.faults import fault
from headrace.halves import by_halves
from headrace.sinks.base import (
    ROW_ERRORS,
    Reason,
    SinkBatch,
    SinkContext,
    SinkSpec,
    check_names,
    error_text,
    left_rows,
    nothing_kept,
)
from headrace.sinks.changes import Rows, fold, spans, unsent, without_key
from headrace.sinks.json_row import seconds

if TYPE_CHECKING:
    from pymongo import MongoClient
    from pymongo.collection import Collection

POSITIONS = "headrace_sinks"
SELECT_MS = 3_000
SOCKET_MS = 10_000
DUPLICATE_KEY = 11_000
LARGEST = 16 * 1024 * 1024
# Codes of the server that say what is wrong with a document: no other one is.
DOCUMENT_AT_FAULT = frozenset({2, 9, 14, 15, 22, 52, 55, 56, 57, 66, 121, 10_334, 17_280, 17_419, 17_420})


@dataclass(frozen=True, slots=True)
class MongoSpec(SinkSpec):
    """A collection, as declared.

    Raises:
        DeclarationError: the URI, a name or the key cannot be.
        MissingExtra: pymongo is not installed.

    >>> spec = MongoSpec("mongodb://me:secret@db:27017", "Weight", "TrainingData", ("Fish_Id",))
    >>> spec.where
    'db:27017/Weight.TrainingData'
    """

    uri: str = field(repr=False)
    database: str
    collection: str
    key: tuple[str, ...] = ()
    kind = "mongo"

    def __post_init__(self) -> None:
        if not self.uri.startswith(("mongodb://", "mongodb+srv://")):
            raise DeclarationError("to_mongo: the URI does not begin with mongodb:// or mongodb+srv://")
        wrong = set(' /\\."$\0') & set(self.database)
        if wrong or not self.database or "$" in self.collection or not self.collection:
            raise DeclarationError(
                f"to_mongo: «{self.database}.{self.collection}» names no collection", advice="Give DATABASE.COLLECTION."
            )
        if self.collection == POSITIONS:
            raise DeclarationError(f"to_mongo: the collection {POSITIONS} is Headrace's own", advice="Choose another.")
        for name in self.key:
            if _unwritable(name):
                raise DeclarationError(f"to_mongo: the key column «{name}» cannot be a field of MongoDB")
        self._check_uri()

    def _check_uri(self) -> None:
        pymongo = _pymongo()
        if self.uri.startswith("mongodb+srv://"):
            return  # its hosts are in the DNS, which a declaration does not ask
        from pymongo.uri_parser import parse_uri

        try:
            parse_uri(self.uri, warn=False)
        except (pymongo.errors.PyMongoError, ValueError):
            # What it says may quote the URI, password included.
            raise DeclarationError(
                "to_mongo: the URI cannot be read", advice="Give mongodb://USER:PASSWORD@HOST:PORT, %-escaped."
            ) from None

    @property
    def where(self) -> str:
        """Hosts and collection, without user and password."""
        return f"{urlsplit(self.uri).netloc.rpartition('@')[2]}/{self.database}.{self.collection}"

    @property
    def positions(self) -> str:
        """See `SinkSpec.positions`."""
        return f"{self.database}.{POSITIONS}"

    def forget(self, app: str, log_id: str) -> None:
        """See `SinkSpec.forget`."""
        pymongo = _pymongo()
        try:
            with pymongo.MongoClient(self.uri, serverSelectionTimeoutMS=SELECT_MS) as client:
                client[self.database][POSITIONS].delete_many({"app": app, "log": log_id})
        except pymongo.errors.PyMongoError as error:
            raise SinkError(f"positions of sinks in {self.where} cannot be deleted: {_first_line(error)}") from error

    def sink(self, context: SinkContext) -> MongoSink:
        """See `SinkSpec.sink`."""
        return MongoSink(self, context)


def mongo_spec(
    uri: str,
    database_collection: str | None = None,
    *,
    database: str | None = None,
    collection: str | None = None,
    key: str | Sequence[str] | None = None,
) -> MongoSpec:
    """A collection as a user declares it: ``"Weight.TrainingData"``, or both names apart."""
    if database_collection is not None:
        if database is not None or collection is not None:
            raise DeclarationError("to_mongo: the collection is named twice")
        database, _, collection = database_collection.partition(".")
    return MongoSpec(str(uri), database or "", collection or "", () if key is None else check_names(key, "key"))


class MongoSink:
    """A collection, open; see `headrace.sinks.base.Sink`."""

    rows = 10_000
    linger = 0.0

    def __init__(self, spec: MongoSpec, context: SinkContext) -> None:
        self.spec = spec
        self.context = context
        self._client: MongoClient[dict[str, Any]] | None = None
        self._cancelled = False

    @property
    def _place(self) -> str:
        return f"the collection {self.spec.database}.{self.spec.collection} ({self.spec.where.partition('/')[0]})"

    def _of(self, name: str) -> Collection[dict[str, Any]]:
        if self._client is None or self._cancelled:
            raise SinkUnavailable(f"{self._place}: the connection is closed")
        return self._client[self.spec.database][name]

    def open(self) -> int:
        """See `Sink.open`: connects, makes a unique index on the key, reads the position."""
        with self._translated():
            self._client = _pymongo().MongoClient(
                self.spec.uri,
                serverSelectionTimeoutMS=SELECT_MS,
                connectTimeoutMS=SELECT_MS,
                socketTimeoutMS=SOCKET_MS,
                tz_aware=True,
                appname="headrace sink",
            )
            if self.spec.key and self.spec.key != ("_id",):
                rows = self._of(self.spec.collection)
                rows.create_index([(name, 1) for name in self.spec.key], unique=True)
            found = self._of(POSITIONS).find_one({"_id": self._name})
        # Rows of another log: those of this one take their places, by key or by offset.
        return int(found["next"]) if found is not None and found["log"] == self.context.log_id else 0

    @property
    def _name(self) -> str:
        return f"{self.context.app}/{self.context.sink}/{self.context.topic}"

    def cancel(self) -> None:
        """See `Sink.cancel`."""
        self._cancelled = True
        if self._client is not None:
            self._client.close()

    def close(self) -> None:
        """See `Sink.close`."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def deliver(self, part: SinkBatch) -> None:
        """See `Sink.deliver`: the rows, then the position. Where rows keep values, in pieces that can be repeated."""
        for piece in _repeatable(part, self.spec.key):
            with self._translated():
                refused = self._by_key(piece) if self.spec.key else self._by_offset(piece)
                if refused:
                    self.context.refuse(piece, refused)
                fault("sink.written")
                position = {"app": self.context.app, "sink": self.context.sink, "topic": self.context.topic}
                self._of(POSITIONS).replace_one(
                    {"_id": self._name}, {**position, "log": self.context.log_id, "next": piece.end}, upsert=True
                )
                fault("sink.committed")

    def _by_offset(self, part: SinkBatch) -> list[Reason]:
        from pymongo import ReplaceOne

        rows = np.flatnonzero(~np.isin(part.batch.op, (OPS["d"], OPS["t"])))
        ids = part.ids(self.context.app)
        some = part.batch.take(rows)
        called = dict(zip(some.column_names, told_apart(some.column_names, {"_id"}), strict=True))
        found = zip(rows.tolist(), plain_values.rows(some.rows), unsent(part.batch, rows), strict=True)
        writes = []
        for row, document, names in found:
            # What the source did not send is not in the document, rather than null.
            sent = {called[name]: value for name, value in document.items() if name not in names}
            writes.append((row, {"_id": ids[row], **sent}))
        return self._write(writes, lambda document: ReplaceOne({"_id": document["_id"]}, document, upsert=True))

    def _by_key(self, part: SinkBatch) -> list[Reason]:
        key = self.spec.key
        refused = without_key(part.batch, key)
        left = left_rows(part.batch.num_rows, [row for row, _ in refused])
        # A row knows its place in the part by a column of its own, whatever becomes of the others.
        numbered = part.take(left).batch.with_columns([(_ROW, pa.array(left))])
        for change in fold(numbered, key):
            if change.clear:
                self._of(self.spec.collection).delete_many({})
            documents = []
            for rows in change.rows:
                some = [(row.pop(_ROW), row) for row in plain_values.rows(rows.records)]
                if rows.was is not None:
                    some, absent = self._moved(some, rows)
                    refused += absent
                documents += some
            gone = plain_values.rows(change.gone.select(list(key))) if change.gone.num_rows else []
            # A key that cannot be stored, and is to be deleted, was never there.
            self._write([(-1, identity) for identity in gone], _deletion)
            refused += self._write(documents, lambda document: _upsert(document, key))
        return sorted(refused)

    def _moved(
        self, documents: Sequence[tuple[int, dict[str, Any]]], rows: Rows
    ) -> tuple[list[tuple[int, dict[str, Any]]], list[Reason]]:
        """Bring documents of which some values stay under their new keys.

        Returns:
            What is to be written, and the rows of which nobody has the values that stay, with the reasons.
        """
        assert rows.was is not None
        collection, there, absent = self._of(self.spec.collection), [], []
        for (row, document), was in zip(documents, plain_values.rows(rows.was), strict=True):
            now = {name: document[name] for name in self.spec.key}
            wrong = _settle(was) or _settle(now)
            old = None if wrong else collection.find_one(was)
            # Moved already, by a run that was killed before it stored the position: the document is there.
            if old is None and (wrong or was == now or collection.find_one(now) is None):
                absent.append((row, nothing_kept(rows.kept, "the collection has no such document")))
                continue
            if old is not None and was != now:
                collection.delete_one(now)
                if "_id" in now:  # nothing changes a document's name: it is written anew
                    document = {**{name: old[name] for name in rows.kept if name in old}, **document}
                else:
                    collection.update_one(was, {"$set": now})
            there.append((row, document))
        return there, absent

    def _write(self, rows: Sequence[tuple[int, dict[str, Any]]], make: Callable[[dict[str, Any]], Any]) -> list[Reason]:
        """Send operations in one bulk, in any order; those that are refused, with the reasons."""
        writes, refused = [], []
        for row, document in rows:
            reason = _settle(document)
            if reason is None:
                writes.append((row, make(document)))
            else:
                refused.append((row, reason))

        def attempt(start: int, stop: int) -> str | None:
            some = writes[start:stop]
            reason, found = self._send([write for _, write in some])
            refused.extend((some[i][0], said) for i, said in found)
            return reason

        return refused + [(writes[i][0], reason) for i, reason in by_halves(len(writes), attempt).items()]

    def _send(self, writes: Sequence[Any]) -> tuple[str | None, list[Reason]]:
        """Send operations; returns why none of them can be written, or those that were refused."""
        import bson
        from pymongo.errors import BulkWriteError, DocumentTooLarge, OperationFailure

        try:
            self._of(self.spec.collection).bulk_write(list(writes), ordered=False)
        except BulkWriteError as error:
            if error.details.get("writeConcernErrors"):
                raise
            return None, [(detail["index"], str(detail["errmsg"])) for detail in error.details["writeErrors"]]
        except OperationFailure as error:
            if error.code not in DOCUMENT_AT_FAULT:
                raise
            return _first_line(error), []
        except (DocumentTooLarge, bson.errors.BSONError, *ROW_ERRORS) as error:
            return error_text(error), []
        return None, []

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        pymongo = _pymongo()
        errors = pymongo.errors
        try:
            yield
        except (
            errors.ConnectionFailure,
            errors.WTimeoutError,
            errors.ExecutionTimeout,
            errors.InvalidOperation,
        ) as error:
            raise SinkUnavailable(f"{self._place} cannot be reached now: {_first_line(error)}") from error
        except errors.PyMongoError as error:
            advice = "Check the user's rights; the sink tries again."
            if getattr(error, "code", None) == DUPLICATE_KEY:
                advice = "Rows of the collection share a key: remove the doubled ones, or name another key=…."
            raise SinkError(f"{self._place} cannot be written: {_first_line(error)}", advice=advice) from error


_ROW = "headrace row"


def _repeatable(part: SinkBatch, key: tuple[str, ...]) -> Iterator[SinkBatch]:
    """A part in pieces of which each can be written twice with the effect of once."""
    rows = part.batch.num_rows
    found = spans(part.batch, key) if key and not without_key(part.batch, key) else [(0, rows)]
    # A position is between two rows of the topic.
    inner = [stop for _, stop in found[:-1] if part.offsets[stop - 1] != part.offsets[stop]]
    first = part.first
    for start, stop in pairwise([0, *inner, rows]):
        end = part.end if stop == rows else int(part.offsets[stop])
        yield SinkBatch(part.topic, first, end, part.batch.slice(start, stop - start), part.offsets[start:stop])
        first = end


def _upsert(document: dict[str, Any], key: tuple[str, ...]) -> Any:
    from pymongo import ReplaceOne, UpdateOne

    found = {name: document[name] for name in key}
    rest = {name: value for name, value in document.items() if name not in found}
    return UpdateOne(found, {"$set": rest}, upsert=True) if rest else ReplaceOne(found, found, upsert=True)


def _deletion(key: dict[str, Any]) -> Any:
    from pymongo import DeleteOne

    return DeleteOne(key)


def _settle(document: dict[str, Any]) -> str | None:
    """Give a document's values types that BSON has, in place; the reason why it cannot be stored, or None."""
    import bson

    try:
        for name, value in list(document.items()):
            if name != "_id" and _unwritable(name):
                if value is not None:
                    return f"«{name}» cannot be a field of MongoDB"
                del document[name]  # a column of other rows
            elif not isinstance(value, _AS_IT_IS):
                document[name] = _plain(value)
        size = len(bson.encode(document))
    except (bson.errors.BSONError, *ROW_ERRORS) as error:
        return _first_line(error) or type(error).__name__
    return f"the document has {size:,} bytes, and MongoDB takes {LARGEST:,}" if size > LARGEST else None


_AS_IT_IS = (str, float, bool, datetime, type(None))


def _plain(value: Any) -> Any:
    """BSON has no days, no times of a day, no durations, and a decimal type of its own."""
    if isinstance(value, Decimal):
        return _decimal(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day)
    if isinstance(value, time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return seconds(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, dict):
        return {str(name): _plain(member) for name, member in value.items()}
    return [_plain(element) for element in value] if isinstance(value, list | tuple) else value


def _decimal(value: Decimal) -> Any:
    from bson import Decimal128

    try:
        return Decimal128(value)
    except ArithmeticError:
        raise ValueError(f"the number {value:f} has more than the 34 digits of a decimal of MongoDB") from None


def _unwritable(name: str) -> bool:
    """In an update a dot leads into a document, and a dollar begins an operator."""
    return not name or name.startswith("$") or "." in name or "\0" in name


def _first_line(error: BaseException) -> str:
    # What follows describes the topology, at length.
    text = str(error).partition(", full error:")[0].partition(", Timeout:")[0].strip()
    return text.splitlines()[0] if text else type(error).__name__


def _pymongo() -> Any:
    try:
        import pymongo
    except ImportError:
        raise MissingExtra("mongo", "to_mongo") from None
    return pymongo
