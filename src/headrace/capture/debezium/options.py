"""What the capture of PostgreSQL is told by a connector's configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from headrace.capture.debezium.configuration import Configuration, is_secret
from headrace.capture.debezium.explanation import (
    check,
    converter_class,
    explain,
    find,
    predicate_classes,
    transform_classes,
)
from headrace.capture.debezium.expressions import expressions, python_expression
from headrace.capture.debezium.properties import Kind, listed
from headrace.capture.postgres.checks import Heartbeat
from headrace.capture.postgres.client import Server
from headrace.capture.postgres.doctor import APPLICATION, Examination
from headrace.capture.postgres.slot_binding import derived_name
from headrace.errors import DeclarationError

_LIBPQ = {
    "database.hostname": "host",
    "database.port": "port",
    "database.user": "user",
    "database.password": "password",
    "database.dbname": "dbname",
    "database.sslmode": "sslmode",
    "database.sslcert": "sslcert",
    "database.sslkey": "sslkey",
    "database.sslpassword": "sslpassword",
    "database.sslrootcert": "sslrootcert",
}
_FORMATS = {
    "org.apache.kafka.connect.json.JsonConverter": "json",
    "io.confluent.connect.avro.AvroConverter": "avro",
    "io.confluent.connect.json.JsonSchemaConverter": "jsonschema",
}
DEFAULT_PUBLICATION = "dbz_publication"
_FLATTEN = "io.debezium.transforms.ExtractNewRecordState"


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """A capture as a connector's configuration declares it; the words are those of `headrace.App.postgres`.

    Attributes:
        name: the connector's, or the prefix.
        makes_publication: a publication that is not there is made.
        format: in which a Kafka log's topics are written.
        registry: URL of the schema registry that the format needs.
        events: properties that say how Debezium's events are written from the log; none is a secret.
    """

    name: str
    dsn: str = field(repr=False)
    prefix: str
    tables: tuple[str, ...]
    slot: str | None
    publication: str | None
    makes_publication: bool
    snapshot: Literal["initial", "never"]
    format: str
    registry: str | None = field(default=None, repr=False)
    events: tuple[tuple[str, str], ...] = ()


def options_of(configuration: Configuration, *, dsn: str | None = None, on_kafka: bool = False) -> CaptureOptions:
    """Return what a configuration tells the capture.

    Args:
        dsn: the database, in place of the one that the configuration names.
        on_kafka: the log is on Kafka.

    Raises:
        DeclarationError: it has something that cannot be run here; with all of it.

    >>> about = {"connector.class": "PostgresConnector", "database.hostname": "db", "database.user": "ann"}
    >>> about |= {"database.dbname": "shop", "topic.prefix": "shop", "table.include.list": "public.o.*"}
    >>> options_of(Configuration(about, "here")).tables
    ('(?a:public.o.*)',)
    """
    if dsn is not None:
        configuration = _elsewhere(configuration)
    check(configuration, on_kafka=on_kafka)
    makes = configuration.get("publication.autocreate.mode").lower() != "disabled"
    return CaptureOptions(
        name=configuration.get("name") or configuration.get("topic.prefix"),
        dsn=dsn_of(configuration) if dsn is None else dsn,
        prefix=configuration.get("topic.prefix"),
        tables=tables_of(configuration),
        slot=configuration.get("slot.name") or None,
        publication=configuration.get("publication.name") or (None if makes else DEFAULT_PUBLICATION),
        makes_publication=makes,
        snapshot="never" if configuration.get("snapshot.mode").lower() == "no_data" else "initial",
        format=_format(configuration),
        registry=configuration.get("value.converter.schema.registry.url") or None,
        events=tuple(events_of(configuration)),
    )


def events_of(configuration: Configuration) -> Iterator[tuple[str, str]]:
    """Yield the properties that say how events are written, as their writer takes them."""
    for line in explain(configuration):
        name = line.name
        wanted = line.meaning.written or name in ("transforms", "predicates", "value.converter.schemas.enable")
        if wanted and name in configuration.provided and line.part.startswith(("transforms.", "predicates.")):
            raise DeclarationError(
                f"{name} comes from a config provider, and what a transform is told is kept in the log",
                advice="Write its value into the configuration.",
            )
        if not wanted or name not in configuration.properties or name in configuration.provided or is_secret(name):
            continue
        value = configuration.get(name)
        known = find(name)
        if known is not None and known.kind in (Kind.WORD, Kind.WORDS, Kind.BOOLEAN):
            value = value.lower()
        if known is not None and known.kind is Kind.REGEXES:
            value = _in_python(name, value)
        if known is None and line.kind is Kind.REGEX:  # of a transform, or a predicate
            value = python_expression(value)
        yield name, value
    for group, classes in (("transforms", transform_classes), ("predicates", predicate_classes)):
        for name, chosen in zip(listed(configuration.get(group)), classes(configuration), strict=True):
            yield f"{group}.{name}.type", chosen


def _in_python(name: str, value: str) -> str:
    """Return a list of expressions as the writer of events takes it.

    Raises:
        DeclarationError: one has a comma, which parts them there.
    """
    found = expressions(value)
    if any("," in expression for expression in found):
        raise DeclarationError(
            f"{name}: an expression with a comma cannot be used here", advice="Write a{1,2} as aa?, and so on."
        )
    return ",".join(found)


def examination_of(configuration: Configuration, dsn: str = "") -> Examination:
    """Return what the doctor is to look at; of a configuration that cannot be run here, too.

    Args:
        dsn: a connection string in place of the configuration's.

    Raises:
        DeclarationError: nobody says where the database is, or its tables cannot be told.
    """
    if not dsn and not configuration.get("database.hostname"):
        raise DeclarationError(
            f"{configuration.where} does not say where the database is", advice="Set database.hostname, or name a DSN."
        )
    prefix = configuration.get("topic.prefix") or configuration.get("name")
    derived = derived_name(configuration.get("name") or prefix, prefix)
    makes = configuration.get("publication.autocreate.mode").lower() != "disabled"
    interval = configuration.get("heartbeat.interval.ms", "0")
    return Examination(
        Server(dsn or dsn_of(configuration), APPLICATION),
        tables_of(configuration),
        configuration.get("slot.name") or derived,
        configuration.get("publication.name") or (derived if makes else DEFAULT_PUBLICATION),
        own_publication=makes,
        snapshot=configuration.get("snapshot.mode").lower() not in ("no_data", "never"),
        heartbeat=Heartbeat(configuration.get("heartbeat.action.query"), int(interval) if interval.isdigit() else 0),
    )


def _elsewhere(configuration: Configuration) -> Configuration:
    """Return a configuration whose database is another one, which is said elsewhere."""
    kept = {name: value for name, value in configuration.properties.items() if name not in _LIBPQ}
    required = dict.fromkeys(("database.hostname", "database.user", "database.dbname"), "elsewhere")
    return Configuration({**kept, **required}, configuration.where, configuration.provided)


def dsn_of(configuration: Configuration) -> str:
    """Return the connection string of the database.

    >>> dsn_of(Configuration({"database.hostname": "db", "database.password": r"it's \\ me"}, "here"))
    "host='db' password='it\\\\'s \\\\\\\\ me'"
    """
    given = {libpq: configuration.get(name) for name, libpq in _LIBPQ.items() if configuration.get(name)}
    if "sslmode" in given:
        given["sslmode"] = given["sslmode"].lower()
    if "password" in given:  # blanks belong to it
        given["password"] = configuration.properties["database.password"]
    if configuration.get("database.tcpKeepAlive").lower() == "false":
        given["keepalives"] = "0"
    return " ".join(f"{name}={_quoted(value)}" for name, value in given.items())


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def tables_of(configuration: Configuration) -> tuple[str, ...]:
    r"""Return patterns that match the whole of the ``schema.table`` of every table that is captured.

    Raises:
        DeclarationError: the lists cannot be put together.

    >>> tables_of(Configuration({"table.exclude.list": "public.tmp_.*", "schema.include.list": "public"}, "here"))
    ('(?=(?:(?a:public))\\.)(?!(?:(?a:public.tmp_.*))\\Z)(?a:.*)',)
    """
    lists = {
        name: expressions(configuration.get(f"{name}.list"))
        for name in ("schema.include", "schema.exclude", "table.include", "table.exclude")
    }
    looks = ""
    for name, begins, ends in (
        ("schema.include", "(?=", r"\."),
        ("schema.exclude", "(?!", r"\."),
        ("table.exclude", "(?!", r"\Z"),
    ):
        if lists[name]:
            looks += f"{begins}(?:{'|'.join(lists[name])}){ends})"
    patterns = tuple(looks + included for included in lists["table.include"] or ["(?a:.*)"])
    for pattern in patterns:
        _check_groups(pattern, combined=bool(looks))
    return patterns


def _check_groups(pattern: str, *, combined: bool) -> None:
    """Refuse groups that are counted otherwise when several expressions are put together."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise DeclarationError(
            f"the lists of tables and schemas cannot be put together: {error}", advice="Leave out named groups."
        ) from error
    if combined and re.search(r"(?<!\\)(?:\\\\)*\\[1-9]", pattern):
        raise DeclarationError(
            "the lists of tables and schemas cannot be put together: one has a back reference such as \\1",
            advice="Write it without.",
        )


def _format(configuration: Configuration) -> str:
    """Return the format of a Kafka log's topics."""
    made = _FORMATS[converter_class(configuration, "value.converter")]
    made += "" if _FLATTEN in transform_classes(configuration) else "+envelope"
    schemas = configuration.get("value.converter.schemas.enable", "true").lower() == "true"
    return f"{made}+schema" if made.startswith("json") and not made.startswith("jsonschema") and schemas else made
