"""Rows that other processes hand over to the one that writes the log: answers that were given over HTTP.

They lie as Arrow streams in a folder beside the log. The writing process appends each under the name of who handed it
over and a running number of rows, so that what is found again after a crash is there once.

==============================================  =====================================================
file in ``<log>.handed``                        holds
==============================================  =====================================================
PRODUCER-000000000123-TOPIC.arrow               rows from number 123 on; gone when they are durable
PRODUCER-000000000123-TOPIC.refused             why they were not appended
==============================================  =====================================================
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow as pa

from headrace.batch import from_ipc, to_ipc
from headrace.engines.local.append_source import AppendSource
from headrace.errors import HeadraceError, LogError, WaitTimeout
from headrace.event_log import event
from headrace.log import file_of
from headrace.log.base import Log

logger = logging.getLogger("headrace")

FOLDER = ".handed"
LOOK_SECONDS = 0.01


class ServedRowsSender:
    """The side of a process that does not write the log. May be called from any thread."""

    def __init__(self, log: Log) -> None:
        self._folder = file_of(log, FOLDER)
        self._producer = f"serve_{secrets.token_hex(6)}"
        self._next: dict[str, int] = {}
        self._handing = threading.Lock()

    def append(self, topic: str, rows: pa.RecordBatch, timeout: float) -> None:
        """Hand rows over; returns when they are durable.

        Raises:
            WaitTimeout: they are not yet. Where nobody had begun with them, they were withdrawn.
            LogError: the process that writes refuses them, or the log is no file.
        """
        if self._folder is None:
            raise LogError("answers can be logged from another process only where the log is a file")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with self._handing:  # one file of a producer at a time: withdrawing the last one leaves no gap
            first = self._next.get(topic, 0)
            # A dot of the topic's name would look like the beginning of a file's ending.
            name = f"{self._producer}-{first:012d}-{quote(topic, safe='').replace('.', '%2E')}"
            file = self._folder / f"{name}.arrow"
            draft = self._folder / f"{name}.draft"
            draft.write_bytes(to_ipc(rows))
            draft.replace(file)
            self._wait(file, timeout)
            self._next[topic] = first + rows.num_rows

    def _wait(self, file: Path, timeout: float) -> None:
        refused, deadline = file.with_suffix(".refused"), time.monotonic() + timeout
        while file.exists():
            if time.monotonic() > deadline:
                file.unlink(missing_ok=True)
                # Whether it was being appended just now is not known here: rows that follow begin a new count.
                self._producer, self._next = f"serve_{secrets.token_hex(6)}", {}
                raise WaitTimeout(
                    f"the process that writes the log took no rows for {timeout:g} s", advice="Does it run?"
                )
            time.sleep(LOOK_SECONDS / 4)
        if refused.exists():
            reason = refused.read_text()
            refused.unlink(missing_ok=True)
            raise LogError(f"the rows were not appended: {reason}")


class ServedRowsReceiver:
    """The side of the process that writes the log: a thread that appends what was handed over.

    Args:
        folder: where it lies.
        queue: takes the rows into the pipeline.
    """

    def __init__(self, folder: Path, queue: AppendSource) -> None:
        self._folder = folder
        self._queue = queue
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-handed", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is not appended stays for the next start."""
        self._ended.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with contextlib.suppress(FileNotFoundError):
                files = sorted(file for file in self._folder.iterdir() if file.suffix == ".arrow")
                if files:
                    self._take(files)

    def _take(self, files: list[Path]) -> None:
        """Append them all, then wait for the last: they share a commit."""
        queued: list[Path] = []
        number = 0
        for file in files:
            try:
                number = max(number, self._append(file))
                queued.append(file)
            except FileNotFoundError:
                continue  # withdrawn
            except (HeadraceError, ValueError, pa.ArrowException, OSError) as error:
                logger.warning(
                    "rows that were handed over in %s are refused: %s",
                    file.name,
                    error,
                    extra=event("served_rows_refused"),
                )
                file.with_suffix(".refused").write_text(str(error))
                file.unlink(missing_ok=True)
        try:
            self._queue.wait(number, None)
        except HeadraceError:
            return  # the pipeline has ended: they stay
        for file in queued:
            file.unlink(missing_ok=True)

    def _append(self, file: Path) -> int:
        producer, first, topic = file.stem.split("-", 2)
        rows = from_ipc(file.read_bytes())
        _, number = self._queue.append(unquote(topic), rows, producer_id=producer, sequence=int(first))
        return number
