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
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from headrace.batch import OPS
from headrace.errors import DeclarationError, MissingExtra, SinkError, SinkUnavailable
from headrace.faults import fault
from headrace.plain_values import rows as plain_rows
from headrace.sinks.changes import fold, without_key
from headrace.sinks.delivery import Journal, Part, Reason, check_names

if TYPE_CHECKING:
    from pymongo import MongoClient
    from pymongo.collection import Collection

POSITIONS = "headrace_sinks"
SELECT_MS = 3_000
SOCKET_MS = 10_000
DUPLICATE_KEY = 11_000


@dataclass(frozen=True, slots=True)
class MongoTarget:
    """A collection, as declared.

    Raises:
        DeclarationError: the URI, a name or the key cannot be.
        MissingExtra: pymongo is not installed.

    >>> target = MongoTarget("mongodb://me:secret@db:27017", "Weight", "TrainingData", ("Fish_Id",))
    >>> target.where
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
    def columns(self) -> tuple[str, ...]:
        """See `Target.columns`."""
        return self.key

    @property
    def where(self) -> str:
        """Hosts and collection, without user and password."""
        return f"{urlsplit(self.uri).netloc.rpartition('@')[2]}/{self.database}.{self.collection}"

    @property
    def writes(self) -> tuple[str, ...]:
        """None: see `Target.writes`."""
        return ()

    def sink(self, journal: Journal) -> MongoSink:
        """See `Target.sink`."""
        return MongoSink(self, journal)


def mongo_target(
    uri: str,
    database_collection: str | None = None,
    *,
    database: str | None = None,
    collection: str | None = None,
    key: str | Sequence[str] | None = None,
) -> MongoTarget:
    """A collection as a user declares it: ``"Weight.TrainingData"``, or both names apart."""
    if database_collection is not None:
        if database is not None or collection is not None:
            raise DeclarationError("to_mongo: the collection is named twice")
        database, _, collection = database_collection.partition(".")
    return MongoTarget(str(uri), database or "", collection or "", () if key is None else check_names(key, "key"))


class MongoSink:
    """A collection, open; see `headrace.sinks.delivery.Sink`."""

    rows = 10_000
    linger = 0.0

    def __init__(self, target: MongoTarget, journal: Journal) -> None:
        self.target = target
        self.journal = journal
        self._client: MongoClient[dict[str, Any]] | None = None
        self._cancelled = False

    @property
    def _place(self) -> str:
        return f"the collection {self.target.database}.{self.target.collection} ({self.target.where.partition('/')[0]})"

    def _of(self, name: str) -> Collection[dict[str, Any]]:
        if self._client is None or self._cancelled:
            raise SinkUnavailable(f"{self._place}: the connection is closed")
        return self._client[self.target.database][name]

    def open(self) -> int:
        """See `Sink.open`: connects, makes a unique index on the key, reads the position."""
        with self._translated():
            self._client = _pymongo().MongoClient(
                self.target.uri,
                serverSelectionTimeoutMS=SELECT_MS,
                connectTimeoutMS=SELECT_MS,
                socketTimeoutMS=SOCKET_MS,
                tz_aware=True,
                appname="headrace sink",
            )
            if self.target.key and self.target.key != ("_id",):
                rows = self._of(self.target.collection)
                rows.create_index([(name, 1) for name in self.target.key], unique=True)
            found = self._of(POSITIONS).find_one({"_id": self._name})
        # Rows of another log: those of this one take their places, by key or by offset.
        return int(found["next"]) if found is not None and found["log"] == self.journal.log_id else 0

    @property
    def _name(self) -> str:
        return f"{self.journal.app}/{self.journal.sink}/{self.journal.topic}"

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

    def deliver(self, part: Part) -> None:
        """See `Sink.deliver`: the rows, then the position."""
        with self._translated():
            refused = self._by_key(part) if self.target.key else self._by_offset(part)
            if refused:
                self.journal.refuse(part, refused)
            fault("sink.written")
            position = {"app": self.journal.app, "sink": self.journal.sink, "topic": self.journal.topic}
            self._of(POSITIONS).replace_one(
                {"_id": self._name}, {**position, "log": self.journal.log_id, "next": part.end}, upsert=True
            )
            fault("sink.committed")

    def _by_offset(self, part: Part) -> list[Reason]:
        from pymongo import ReplaceOne

        rows = np.flatnonzero(~np.isin(part.batch.op, (OPS["d"], OPS["t"])))
        ids = part.ids(self.journal.app)
        documents = plain_rows(part.batch.rows.take(rows))
        writes = [
            (row, {"_id": ids[row], **document}, None) for row, document in zip(rows.tolist(), documents, strict=True)
        ]
        return self._write(writes, lambda document, _: ReplaceOne({"_id": document["_id"]}, document, upsert=True))

    def _by_key(self, part: Part) -> list[Reason]:
        key = self.target.key
        refused = without_key(part.batch, key)
        left = np.setdiff1d(np.arange(part.batch.num_rows), [row for row, _ in refused]).astype(np.int64)
        # A row knows its place in the part by a column of its own, whatever becomes of the others.
        numbered = part.take(left).batch.with_columns([(_ROW, _indices(left))])
        for change in fold(numbered, key):
            if change.clear:
                self._of(self.target.collection).delete_many({})
            gone = plain_rows(change.gone.select(list(key))) if change.gone.num_rows else []
            refused += self._write([(-1, one, None) for one in gone], lambda one, _: _deletion(one))
            for rows in change.rows:
                documents = [(one.pop(_ROW), one, key) for one in plain_rows(rows)]
                refused += self._write(documents, _upsert)
        # A key that cannot be stored, and is to be deleted, was never there.
        return sorted(one for one in refused if one[0] >= 0)

    def _write(
        self, rows: Sequence[tuple[int, dict[str, Any], Any]], make: Callable[[dict[str, Any], Any], Any]
    ) -> list[Reason]:
        """Send operations in one bulk, in any order; those that are refused, with the reasons."""
        from pymongo.errors import BulkWriteError

        writes, refused = [], []
        for row, document, key in rows:
            reason = _settle(document)
            if reason is None:
                writes.append((row, make(document, key)))
            else:
                refused.append((row, reason))
        if not writes:
            return refused
        try:
            self._of(self.target.collection).bulk_write([one for _, one in writes], ordered=False)
        except BulkWriteError as error:
            if error.details.get("writeConcernErrors"):
                raise
            refused += [(writes[one["index"]][0], str(one["errmsg"])) for one in error.details["writeErrors"]]
        return refused

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


def _indices(rows: Any) -> Any:
    import pyarrow as pa

    return pa.array(rows, pa.int64())


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

    for name, value in document.items():
        if name != "_id" and _unwritable(name):
            return f"«{name}» cannot be a field of MongoDB"
        if not isinstance(value, _AS_IT_IS):
            document[name] = _plain(value)
    try:
        bson.encode(document)
    except (bson.errors.BSONError, OverflowError, ValueError) as error:
        return _first_line(error)
    return None


_AS_IT_IS = (str, float, bool, datetime, type(None))


def _plain(value: Any) -> Any:
    """BSON has no days, no times of a day, no durations, and a decimal type of its own."""
    if isinstance(value, Decimal):
        from bson import Decimal128

        return Decimal128(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day)
    if isinstance(value, time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


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
