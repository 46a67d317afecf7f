"""What the doctor finds of the databases of logs, looked at in a thread: a page shows what was found last, at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.errors import HeadraceError
from headrace.event_log import event
from headrace.findings import Finding
from headrace.inspect.doctor import database_findings
from headrace.log.base import Log

FRESH_SECONDS = 60.0
logger = logging.getLogger("headrace")


@dataclass(slots=True)
class DatabaseFindings:
    """Findings of databases by their log's name. Any thread may ask.

    Attributes:
        found: as they were last; nothing of a log before its databases were looked at. Replaced, never changed.
    """

    found: Mapping[str, list[Finding]] = field(default_factory=dict)
    _begun: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, logs: Mapping[str, Log], place: str) -> Mapping[str, list[Finding]]:
        """Return what was found last, and have it looked for again where that is a while ago. Waits for nothing.

        Args:
            place: of the logs, for commands.
        """
        now = time.monotonic()
        with self._lock:
            due = {
                name: log for name, log in logs.items() if now - self._begun.get(name, -FRESH_SECONDS) > FRESH_SECONDS
            }
            self._begun |= dict.fromkeys(due, now)
        if due:
            threading.Thread(target=self._look, args=(due, place), name="headrace-doctor", daemon=True).start()
        return self.found

    def _look(self, logs: Mapping[str, Log], place: str) -> None:
        for name, log in logs.items():
            found: list[Finding] = []
            try:
                found = database_findings(log, place)
            except HeadraceError as error:
                logger.warning("the databases of a log cannot be examined: %s", error, extra=event("doctor_failed"))
            except Exception:  # a page without findings is better than none; a log may have been closed meanwhile
                logger.debug("examining databases failed", exc_info=True)
            with self._lock:
                self.found = {**self.found, name: found}
