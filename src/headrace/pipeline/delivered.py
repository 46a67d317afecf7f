"""The words of a stream that send its rows out of the log: to tables, collections, files, receivers, the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from headrace.errors import DeclarationError
from headrace.plan.sinks import SinkPlan
from headrace.sinks.base import SinkSpec

if TYPE_CHECKING:
    from headrace.pipeline.app import App
    from headrace.plan.task import StreamPlan


class Delivered:
    """What a stream inherits. Each method declares a sink and returns the same stream.

    A sink follows the stream's topic from a position of its own, in a thread of its own: while its destination is away
    it waits, and holds back nobody else. A row that the destination refuses goes to ``<topic>.dlq``, with the reason.
    """

    _app: App
    _plan: StreamPlan

    def to_table(
        self, dsn: str, table: str, *, key: str | Sequence[str] | None = None, name: str | None = None
    ) -> Self:
        """Keep a PostgreSQL table up to date, exactly once: the position is stored in the rows' transaction.

        The table is made, and gets columns that come later, from the rows' schema; one that is there already stays as
        it is. With a key the newest row of each key is there; deletes and truncates delete. Without one every insert
        and update is added, deletes are left out. A table that the pipeline captures is refused.

        Args:
            dsn: a libpq connection string or URL.
            table: ``TABLE`` or ``SCHEMA.TABLE``.
            key: columns that identify a row; of a captured table within its replica identity. A table that is there
                already needs a unique index on them.
            name: the sink's; ``postgres:TABLE`` by default.

        >>> import headrace as hr
        >>> app = hr.App("shop", log="memory://")
        >>> app.topic("predictions").to_table("postgresql://me:secret@db/shop", "predictions", key="id")
        Stream(predictions)
        >>> print(app.plan())
        shop   log: memory://
        ├─ predictions ──▶ postgres:predictions  db:5432/shop, key id
        """
        from headrace.sinks.table import table_spec

        return self._sink(name or f"postgres:{table}", table_spec(dsn, table, key=key))

    def to_mongo(
        self,
        uri: str,
        database_collection: str | None = None,
        *,
        database: str | None = None,
        collection: str | None = None,
        key: str | Sequence[str] | None = None,
        name: str | None = None,
    ) -> Self:
        """Keep a MongoDB collection up to date (needs the extra ``mongo``).

        Rows are upserted by key (deletes delete), or, without one, by an ``_id`` made of app, topic and offset: after
        a crash the last rows may be written again, which changes nothing.

        Args:
            uri: ``mongodb://USER:PASSWORD@HOST:PORT``.
            database_collection: ``"Weight.TrainingData"``; or both apart, as ``database=`` and ``collection=``.
            key: fields that identify a document; a unique index on them is made.
            name: the sink's; ``mongo:DATABASE.COLLECTION`` by default.
        """
        from headrace.sinks.mongo import mongo_spec

        spec = mongo_spec(uri, database_collection, database=database, collection=collection, key=key)
        return self._sink(name or f"mongo:{spec.database}.{spec.collection}", spec)

    def to_parquet(
        self,
        directory: str | Path,
        *,
        partition_by: str | Sequence[str] | None = None,
        rows_per_file: int = 250_000,
        every: str | timedelta = "1 min",
        name: str | None = None,
    ) -> Self:
        """Write Parquet files, whole ones only; every event is one row in one of them, exactly once.

        The rows' columns are followed by ``__op`` (c, u, d, t or r), ``__ts`` and ``__offset``, and, where the source
        did not send some values, by ``__unchanged``, their columns' names.

        Args:
            directory: made when missing.
            partition_by: columns whose values become folders ``column=value``, as Hive, DuckDB and Spark read them.
            rows_per_file: a file is written when so many rows are there; partitions share them.
            every: or after so long; also when the pipeline is waited for, or stops.
            name: the sink's; ``parquet:DIRECTORY`` by default.
        """
        from headrace.sinks.parquet import parquet_spec

        spec = parquet_spec(
            directory, partition_by=partition_by, rows_per_file=rows_per_file, every=every, label=name or ""
        )
        return self._sink(name or f"parquet:{directory}", spec)

    def to_http(
        self,
        url: str,
        *,
        method: Literal["POST", "PUT", "PATCH"] = "POST",
        headers: Mapping[str, str] | None = None,
        secret: str | bytes | None = None,
        success_topic: str | None = None,
        error_topic: str | None = None,
        retries: int | None = None,
        backoff: str | float | timedelta = 0.1,
        timeout: str | float | timedelta = 10.0,
        name: str | None = None,
    ) -> Self:
        """Send each row as JSON in a request of its own: an alarm to a receiver.

        ``Idempotency-Key: <app>/<topic>/<offset>`` is the same at every attempt. No answer, 5xx, 408, 425 and 429 are
        tried again, with growing pauses or after ``Retry-After``. 401, 403, 407 and 3xx hold the sink back, since no
        row would be taken; another 4xx refuses its row.

        Args:
            url: ``http(s)://HOST[:PORT]/PATH``.
            headers: sent with each request.
            secret: signs each: ``Headrace-Signature: t=SECONDS,v1=HEX``, HMAC-SHA256 of ``SECONDS.BODY``.
            success_topic, error_topic: topics for the answers: idempotency key, status, attempts, response, request.
            retries: after so many a row goes to the dead letters; None: never given up.
            backoff: the first pause; doubled each time, up to 15 s.
            timeout: how long the receiver may be silent.
            name: the sink's; ``http:`` and the URL without query by default.
        """
        from headrace.sinks.http import http_spec

        spec = http_spec(
            url, method=method, headers=headers, secret=secret, success_topic=success_topic, error_topic=error_topic,
            retries=retries, backoff=backoff, timeout=timeout,
        )  # fmt: skip
        return self._sink(name or f"http:{spec.where}", spec)

    def to_console(self, *, format: Literal["table", "lines"] | None = None, name: str | None = None) -> Self:
        """Print the rows on standard output: as tables in a terminal, elsewhere one JSON object a line.

        Args:
            format: which of the two, where it shall not depend on what standard output is.
            name: the sink's; ``console:TOPIC`` by default.
        """
        from headrace.sinks.console import ConsoleSpec

        return self._sink(name or f"console:{self._plan.topic}", ConsoleSpec(format))

    def _sink(self, name: str, spec: SinkSpec) -> Self:
        self._refuse_unwritten()
        if not name.strip():
            raise DeclarationError(f"name={name!r} cannot name a sink")
        self._app._sinks.append(SinkPlan(name, self._plan, spec))
        return self

    def _refuse_unwritten(self) -> Any:
        """Raises DeclarationError: the rows are in no topic."""
        raise NotImplementedError
