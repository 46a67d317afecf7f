"""What a start waits for, said on standard error: a start that stands still in silence looks like a defect of ours.

A thread looks on while a source is checked and started. When what is being done has not changed for two seconds, the
server is asked, over a connection of its own, whom our connections wait for.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import psycopg

from headrace.capture.postgres.client import Server
from headrace.errors import SourceError

logger = logging.getLogger("headrace")

PATIENCE_S = 2.0
_AGAIN_S = 60.0  # what is still being waited for is said again
_CONNECT_SECONDS = "2"

_BLOCKED = """
SELECT a.pid, coalesce((SELECT CASE l.locktype WHEN 'relation' THEN 'a lock on table ' || l.relation::regclass::text
                                               WHEN 'transactionid' THEN 'the end of a transaction'
                                               ELSE 'a lock (' || l.locktype || ')' END
                        FROM pg_locks l WHERE l.pid = a.pid AND NOT l.granted LIMIT 1), 'a lock'),
       b.pid, coalesce(b.application_name, ''), coalesce(b.usename::text, ''), coalesce(b.state, b.backend_type, ''),
       coalesce(to_char(b.xact_start, 'YYYY-MM-DD HH24:MI:SS TZ'), ''), coalesce(left(b.query, 120), '')
FROM pg_stat_activity a CROSS JOIN LATERAL unnest(pg_blocking_pids(a.pid)) AS blocker
LEFT JOIN pg_stat_activity b ON b.pid = blocker
WHERE a.pid = ANY(%s) ORDER BY a.pid, b.pid LIMIT 5
"""


class Waiting:
    """Says, while its block runs, what the block waits for. It may be entered again after it was left.

    Args:
        server: who is asked; `connected` is to be told of each connection of ours.
        doing: what is being done now, for people; as long as it changes there is progress.
    """

    def __init__(self, server: Server, doing: Callable[[], str]) -> None:
        self._server, self._doing = server, doing
        self._pids: set[int] = set()
        self._left = threading.Event()
        self._thread: threading.Thread | None = None

    def connected(self, pid: int) -> None:
        """Note a connection of ours by its server process."""
        self._pids.add(pid)

    def __enter__(self) -> Waiting:
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._left,), name="headrace-waiting", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()

    def _run(self, left: threading.Event) -> None:
        said, quiet, before = "", 0.0, self._doing()
        while not left.wait(PATIENCE_S):
            doing = self._doing()
            if not doing or doing != before:
                said, quiet, before = "", 0.0, doing
                continue
            quiet += PATIENCE_S
            text = f"{doing}{self._for_whom()}"
            if not left.is_set() and (text != said or quiet % _AGAIN_S < PATIENCE_S):
                said = text
                logger.warning("still waiting after %.0f s: %s", quiet, text)

    def _for_whom(self) -> str:
        """Whom our connections wait for on the server; "" when for nobody, or when it cannot be asked."""
        if not self._pids:
            return ""
        with contextlib.suppress(psycopg.Error, SourceError):
            conninfo = self._server.conninfo(connect_timeout=_CONNECT_SECONDS)
            with contextlib.closing(psycopg.connect(conninfo, autocommit=True)) as connection:
                found = connection.execute(_BLOCKED, [list(self._pids)]).fetchall()
            return "".join(f"; {_held(*row)}" for row in found if row[2] not in self._pids)
        return ""


def _held(_pid: int, lock: str, holder: int | None, *about: Any) -> str:
    """Who holds what one of our connections waits for.

    >>> _held(1, "a lock on table t", 2, "psql", "ann", "idle", "10:00", "LOCK t")
    'it waits for a lock on table t: server process 2 (psql, user ann, idle since 10:00): LOCK t'
    """
    application, user, state, since, query = map(str, about)
    who = ", ".join(
        part
        for part in (application, f"user {user}" if user else "", f"{state} since {since}" if since else state)
        if part
    )
    name = f"server process {holder}" if holder else "a prepared transaction (pg_prepared_xacts)"
    query = " ".join(query.split())
    return f"it waits for {lock}: {name}{f' ({who})' if who else ''}{f': {query}' if query else ''}"
