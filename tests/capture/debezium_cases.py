"""Debezium's recorded cases: the SQL of each, and what its connector emitted while that ran."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
from tests.databases import Database

import headrace as hr
from headrace.formats.debezium_writer import EventOptions
from headrace.inspect.debezium import event_lines
from headrace.log import open_log

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "debezium_cases"
OURS = Path(__file__).parents[1] / "data" / "debezium_cases"
SHIPPED = frozenset(path.stem for path in OURS.glob("*.sql"))
# What the same Debezium emitted for scripts of ours: envelopes, and schemas.
RECORDED = OURS.parent / "debezium_recorded"
PREFIX = "dbz"
CONNECTOR = {
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "topic.prefix": PREFIX,
    "plugin.name": "pgoutput",
}
REWRITE = {
    "transforms": "unwrap",
    "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState",
    "transforms.unwrap.delete.tombstone.handling.mode": "rewrite",
    "transforms.unwrap.add.fields": "op,db,schema,table,lsn,source.ts_ms,txId,snapshot",
    "transforms.unwrap.add.headers": "op,table",
}
FORMS: dict[str, dict[str, str]] = {
    "envelope": {},
    "flat": dict(list(REWRITE.items())[:2]),
    "flat_rewrite": REWRITE,
    "schema": {"value.converter.schemas.enable": "true"},
}
_VARYING = ("ts_ms", "ts_us", "ts_ns", "lsn", "txId", "xmin", "sequence", "__lsn", "__txId", "__source_ts_ms")


@dataclass(frozen=True)
class Step:
    """One statement, on one connection."""

    sql: str
    connection: str
    fails: bool
    waits: bool = False


@dataclass(frozen=True)
class Case:
    """A case's script.

    Attributes:
        config: properties of the connector.
        setup: what runs before it starts; ``stream``: what runs while it streams.
    """

    name: str
    config: Mapping[str, str]
    setup: Sequence[Step]
    stream: Sequence[Step]

    @classmethod
    def load(cls, name: str) -> Case:
        config: dict[str, str] = {}
        parts: dict[str, list[Step]] = {"setup": [], "stream": []}
        part, connection, fails, text = "setup", "", False, ""
        for line in _file(name, "sql").read_text().split("\n"):
            directive = re.match(r"-- @(\w+) ?(.*)", line)
            if directive is None:
                if not text and not re.sub(r"--.*", "", line).strip():
                    continue
                text += line + "\n"
                if _whole(text):
                    parts[part].append(Step(text, connection, fails))
                    text, fails = "", False
            elif directive[1] == "config":
                key, _, value = directive[2].partition("=")
                config[key] = value
            elif directive[1] in parts:
                part = directive[1]
            elif directive[1] in ("sync", "sleep") and parts[part]:
                parts[part][-1] = replace(parts[part][-1], waits=True)
            elif directive[1] == "conn":
                connection = directive[2].strip()
            elif directive[1] == "expect_error":
                fails = True
        assert not text, text
        return cls(name, config, parts["setup"], parts["stream"])

    def run(self, database: Database, steps: Sequence[Step], wait: Callable[[], object] = lambda: None) -> None:
        """Run statements, each on its connection."""
        with contextlib.ExitStack() as stack:
            connections: dict[str, psycopg.Connection[Any]] = {}
            for step in steps:
                if step.connection not in connections:
                    made = stack.enter_context(psycopg.connect(database.dsn, autocommit=True))
                    connections[step.connection] = made
                try:
                    connections[step.connection].execute(step.sql.encode())
                except psycopg.Error:
                    if not step.fails:
                        raise
                if step.waits:
                    wait()

    def capture(self, database: Database, log: Path) -> None:
        """Capture the case into a log, natively."""
        self.run(database, self.setup)
        app = hr.App(PREFIX, log=str(log))
        app.debezium({**CONNECTOR, **self.config}, dsn=database.dsn)
        with app.start() as running:
            running.wait(60)
            self.run(database, self.stream, lambda: running.wait(60))
            running.wait(60)

    def lines(self, log: Path, form: str, *, chained: bool = False) -> list[str]:
        """Return what the log's rows are in one of the four forms, as the recorded files have them.

        Args:
            chained: events go through a chain of transforms, of which one does nothing.
        """
        with contextlib.closing(open_log(str(log), writer=False)) as held:
            properties = {**self.config, **FORMS[form]}
            if chained:
                first = {"transforms.nothing.type": "io.debezium.transforms.SchemaChangeEventFilter"}
                properties |= {"transforms": ",".join(["nothing", *properties.get("transforms", "").split()]), **first}
            if form == "schema":
                return list(_schemas(event_lines(held, options=EventOptions.of(properties, schemas=True))))
            return [normal(line) for line in event_lines(held, options=EventOptions.of(properties))]

    @staticmethod
    def normal(line: str) -> str:
        """Return a line with what differs from run to run as null."""
        return normal(line)

    def recorded(self, form: str) -> list[str]:
        """Return what Debezium emitted."""
        lines = _file(self.name, f"{form}.jsonl").read_text().split("\n")
        return [line if form == "schema" else normal(line) for line in lines if line]


def names() -> list[str]:
    """Return the cases that are there: a few are with the project."""
    return sorted({path.stem for folder in (SHARED, RECORDED) for path in folder.glob("*.sql")} | SHIPPED)


def recorded_forms(name: str) -> list[str]:
    """Return the forms in which a case was recorded."""
    return [form for form in FORMS if _file(name, f"{form}.jsonl").exists()]


def _file(name: str, kind: str) -> Path:
    folder = OURS if name in SHIPPED else RECORDED if (RECORDED / f"{name}.sql").exists() else SHARED
    return folder / f"{name}.{kind}"


def _whole(text: str) -> bool:
    """Return whether a text is a whole statement."""
    bare = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    if "$$" in bare:
        return False
    bare = re.sub(r"'(?:[^'\\]|''|\\.)*'", "''", bare, flags=re.DOTALL)
    return re.sub(r"--.*", "", bare).rstrip().endswith(";") and bare.count("'") % 2 == 0


def normal(line: str) -> str:
    """Return a line with what differs from run to run as null, and numbers as they were written."""

    def cleared(name: str) -> str:
        return rf'("{name}":)(?:"(?:[^"\\]|\\.)*"|-?\d+)'

    for name in _VARYING:
        line = re.sub(cleared(name), r"\1null", line)
    line = re.sub(r'("id":|"__TX":|"__transaction_id":)"\d+:\d+"', r"\1null", line)
    line = re.sub(r'"[0-9a-f-]{36}-(open|close)"', r'"UUID-\1"', line)
    line = re.sub(r'(WindowTimestamp\\": \\")[^"\\]*', r"\1null", line)
    line = re.sub(r'"data_collections":(\[.*?\])', _in_order, line)
    line = re.sub(r'"vector":(\[\[.*?\]\])', lambda m: f'"vector":{sorted(json.loads(m[1]))}', line)
    line = re.sub(r"(\[+L[A-Za-z.]+;)@[0-9a-f]+", r"\1@HASH", line)
    line = re.sub(r"io\.debezium\.[A-Za-z.$]*LogicalDecodingMessageId@[0-9a-f]+", "LOGICAL_DECODING_MESSAGE", line)
    line = re.sub(r'"db":"[a-z0-9_]+"', '"db":"dbzcases"', line)
    return re.sub(r'"__db":"[a-z0-9_]+"', '"__db":"dbzcases"', line)


def _in_order(match: re.Match[str]) -> str:
    """Return the tables of a transaction in the order of their names."""
    found = sorted(json.loads(match[1]), key=lambda table: str(table["data_collection"]))
    return f'"data_collections":{json.dumps(found, separators=(",", ":"))}'


def _schemas(lines: Iterator[str]) -> Iterator[str]:
    """Yield each distinct topic with its schemas once, as the recorded files have them."""
    seen = set()
    for line in lines:
        event = json.loads(line)
        key, value = event["key"], event["value"]
        found = {
            "topic": event["topic"],
            "key_schema": key and key["schema"],
            "value_schema": value and value["schema"],
        }
        text = json.dumps(found, ensure_ascii=False)
        if text not in seen:
            seen.add(text)
            yield text
