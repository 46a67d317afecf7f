"""What the capture of PostgreSQL is told by a connector's configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
from headrace.capture.debezium.transforms import FLATTENING
from headrace.capture.postgres.checks import Heartbeat
from headrace.capture.postgres.client import Server
from headrace.capture.postgres.doctor import APPLICATION, Examination
from headrace.capture.postgres.heartbeats import HeartbeatOptions
from headrace.capture.postgres.signal_channels import consumer_properties
from headrace.capture.postgres.slot_binding import derived_name
from headrace.capture.postgres.snapshot_options import ChannelOptions, SnapshotOptions
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
# Kept with those that say how events are written.
_OF_CAPTURE = (
    "transforms",
    "predicates",
    "value.converter.schemas.enable",
    "errors.tolerance",
    "publication.autocreate.mode",
    "publish.via.partition.root",
)
DEFAULT_PUBLICATION = "dbz_publication"


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """A capture as a connector's configuration declares it; the words are those of `headrace.App.postgres`.

    Attributes:
        name: the connector's, or the prefix.
        makes_publication: a publication that is not there is made.
        failover: standbys keep the slot, too.
        format: in which a Kafka log's topics are written.
        registry: URL of the schema registry that the format needs.
        events: properties that say how Debezium's events are written from the log; none is a secret.
        reselects: patterns of ``schema.table:column``: values that are read again where an update did not send them.
        messages: patterns of prefixes of what `pg_logical_emit_message` writes and is captured.
    """

    name: str
    dsn: str = field(repr=False)
    prefix: str
    tables: tuple[str, ...]
    slot: str | None
    publication: str | None
    makes_publication: bool
    failover: bool
    snapshot: Literal["initial", "never"]
    format: str
    registry: str | None = field(default=None, repr=False)
    events: tuple[tuple[str, str], ...] = ()
    messages: tuple[str, ...] = ()
    heartbeat: HeartbeatOptions = field(default_factory=HeartbeatOptions)
    snapshots: SnapshotOptions = field(default_factory=SnapshotOptions)
    reselects: tuple[str, ...] = ()


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
        tables=_with_signals(tables_of(configuration), configuration.get("signal.data.collection")),
        slot=configuration.get("slot.name") or None,
        publication=configuration.get("publication.name") or (None if makes else DEFAULT_PUBLICATION),
        makes_publication=makes,
        failover=configuration.get("slot.failover").lower() == "true",
        snapshot="initial" if mode_of(configuration).reads else "never",
        format=_format(configuration),
        registry=configuration.get("value.converter.schema.registry.url") or None,
        events=tuple(events_of(configuration)),
        messages=messages_of(configuration),
        heartbeat=heartbeat_of(configuration),
        snapshots=snapshots_of(configuration),
        reselects=reselects_of(configuration),
    )


def reselects_of(configuration: Configuration) -> tuple[str, ...]:
    """Return patterns of the columns (``schema.table:column``) that a post processor reads again.

    >>> about = {"post.processors": "again", "again.type": "…ReselectColumnsPostProcessor"}
    >>> reselects_of(Configuration(about, "here"))
    ('.*',)
    >>> reselects_of(Configuration(about | {"again.reselect.columns.exclude.list": "public.t:a"}, "here"))
    ('(?!(?:(?a:public.t:a))$).*',)
    """
    found: list[str] = []
    for name in listed(configuration.get("post.processors")):
        if configuration.get(f"{name}.reselect.unavailable.values", "true").lower() != "true":
            continue
        included = configuration.get(f"{name}.reselect.columns.include.list")
        excluded = expressions(configuration.get(f"{name}.reselect.columns.exclude.list"))
        if included:
            found += expressions(included)
        else:
            found.append(f"(?!(?:{'|'.join(excluded)})$).*" if excluded else ".*")
    return tuple(found)


def snapshots_of(configuration: Configuration) -> SnapshotOptions:
    """Return how rows are read that are there already.

    >>> snapshots_of(Configuration({"signal.data.collection": "public.signals"}, "here")).windows
    True
    """
    signals, mode = configuration.get("signal.data.collection"), mode_of(configuration)
    channels = [word.lower() for word in listed(configuration.get("signal.enabled.channels", "source"))]
    included = configuration.get("snapshot.include.collection.list")
    order = configuration.get("snapshot.tables.order.by.row.count", "disabled").lower()
    return SnapshotOptions(
        chunk_rows=int(configuration.get("incremental.snapshot.chunk.size", "1024")),
        signals=signals,
        obeys_table="source" in channels,
        channels=_channels(configuration, channels),
        windows=bool(signals) and configuration.get("read.only", "false").lower() != "true",
        included=tuple(expressions(included)) if included else None,
        selects=tuple(_selects(configuration)),
        streams=mode.streams,
        when_needed=mode.when_needed,
        always=mode.always,
        delay_s=int(configuration.get("snapshot.delay.ms", "0")) / 1000,
        threads=int(configuration.get("snapshot.max.threads", "1")),
        order="" if order == "disabled" else order,
    )


def _channels(configuration: Configuration, named: Sequence[str]) -> ChannelOptions:
    """Return where signals come from besides their table.

    Raises:
        DeclarationError: the topic's cluster is not named, or its consumer is configured as only Java's can be.

    >>> given = {"signal.enabled.channels": "file", "topic.prefix": "shop"}
    >>> _channels(Configuration(given, "here"), ["file"]).file
    'file-signals.txt'
    """
    prefix, begin = configuration.get("topic.prefix"), "signal.consumer."
    consumer = [(k.removeprefix(begin), v) for k, v in configuration.properties.items() if k.startswith(begin)]
    bootstrap = configuration.get("signal.kafka.bootstrap.servers") or dict(consumer).get("bootstrap.servers", "")
    options = ChannelOptions(
        file=configuration.get("signal.file", "file-signals.txt") if "file" in named else "",
        topic=configuration.get("signal.kafka.topic") or f"{prefix}-signal" if "kafka" in named else "",
        bootstrap=bootstrap,
        group=configuration.get("signal.kafka.groupId", "kafka-signal"),
        consumer=tuple(sorted(consumer)),
        poll_s=int(configuration.get("signal.poll.interval.ms", "5000")) / 1000,
    )
    if options.topic and not options.bootstrap:
        raise DeclarationError(
            "signal.enabled.channels says kafka, and signal.kafka.bootstrap.servers is not there",
            advice="Say where the cluster is that has the topic of signals.",
        )
    consumer_properties(options)
    return options


@dataclass(frozen=True, slots=True)
class SnapshotMode:
    """A connector's ``snapshot.mode``, by what it does."""

    reads: bool = True
    streams: bool = True
    when_needed: bool = False
    always: bool = False


_MODES = {
    "initial": SnapshotMode(),
    "initial_only": SnapshotMode(streams=False),
    "no_data": SnapshotMode(reads=False),
    "never": SnapshotMode(reads=False),
    "when_needed": SnapshotMode(when_needed=True),
    "always": SnapshotMode(always=True),
}
_FLAG = "snapshot.mode.configuration.based."


def mode_of(configuration: Configuration) -> SnapshotMode:
    """Return what ``snapshot.mode`` says.

    Raises:
        DeclarationError: of its flags none says that anything is captured.
    """
    mode = configuration.get("snapshot.mode", "initial").lower()
    if mode != "configuration_based":
        return _MODES[mode]
    flags = {
        name: configuration.get(f"{_FLAG}{name}", "false").lower() == "true"
        for name in ("snapshot.data", "start.stream", "snapshot.on.data.error")
    }
    if not flags["snapshot.data"] and not flags["start.stream"]:
        raise DeclarationError(
            "snapshot.mode=configuration_based captures nothing",
            advice=f"Set {_FLAG}snapshot.data=true, {_FLAG}start.stream=true, or both.",
        )
    return SnapshotMode(flags["snapshot.data"], flags["start.stream"], flags["snapshot.on.data.error"])


def _selects(configuration: Configuration) -> Iterator[tuple[str, str]]:
    """Yield tables whose rows a query of the user's gives to the snapshot.

    Raises:
        DeclarationError: a table is named, and its query is not there.
    """
    name = "snapshot.select.statement.overrides"
    for table in listed(configuration.get(name, "")):
        query = configuration.get(f"{name}.{table}", "")
        if not query:
            raise DeclarationError(f"{name} names {table}, and {name}.{table} is not there", advice="Give its SELECT.")
        yield table, query


def _with_signals(tables: tuple[str, ...], signals: str) -> tuple[str, ...]:
    """Return patterns that match the table of signals too."""
    matched = not signals or any(re.fullmatch(table, signals, re.IGNORECASE) for table in tables)
    return tables if matched else (*tables, f"(?-i:{re.escape(signals)})")


def events_of(configuration: Configuration) -> Iterator[tuple[str, str]]:
    """Yield the properties that say how events are written, as their writer takes them."""
    for line in explain(configuration):
        name = line.name
        wanted = line.meaning.written or name in _OF_CAPTURE
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
            value = _in_python(value)
        if known is None and line.kind is Kind.REGEX:  # of a transform, or a predicate
            value = python_expression(value)
        yield name, value
    for group, classes in (("transforms", transform_classes), ("predicates", predicate_classes)):
        for name, chosen in zip(listed(configuration.get(group)), classes(configuration), strict=True):
            yield f"{group}.{name}.type", chosen


def _in_python(value: str) -> str:
    """Return a list of expressions as the writer of events takes it: their own commas behind a backslash."""
    return ",".join(expression.replace(",", "\\,") for expression in expressions(value))


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
        failover=configuration.get("slot.failover").lower() == "true",
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


def messages_of(configuration: Configuration) -> tuple[str, ...]:
    r"""Return patterns that match the whole prefix of every message that is captured.

    >>> messages_of(Configuration({"message.prefix.exclude.list": "a, b.*"}, "here"))
    ('(?!(?:(?a:a)|(?a:b.*))\\Z)(?s:.*)',)
    """
    included = expressions(configuration.get("message.prefix.include.list"))
    excluded = expressions(configuration.get("message.prefix.exclude.list"))
    if included or not excluded:
        return tuple(included) or ("(?s:.*)",)
    return (rf"(?!(?:{'|'.join(excluded)})\Z)(?s:.*)",)


def heartbeat_of(configuration: Configuration, prefix: str = "") -> HeartbeatOptions:
    """Return how often a heartbeat is due, in which topic, and what the database does with each.

    Args:
        prefix: of the topics, where the configuration does not say it.

    >>> heartbeat_of(Configuration({"heartbeat.interval.ms": "500", "topic.prefix": "shop"}, "here")).topic
    '__debezium-heartbeat.shop'
    """
    interval = configuration.get("heartbeat.interval.ms", "0")
    prefix = configuration.get("topic.prefix") or prefix
    begins = configuration.get("topic.heartbeat.prefix") or configuration.get("heartbeat.topics.prefix")
    named = configuration.get("topic.heartbeat.name")
    delimiter = configuration.get("topic.delimiter") or "."
    return HeartbeatOptions(
        int(interval) if interval.isdigit() else 0,
        named or f"{begins or '__debezium-heartbeat'}{delimiter}{prefix}",
        configuration.get("heartbeat.action.query"),
    )


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
    made += "" if FLATTENING in transform_classes(configuration) else "+envelope"
    schemas = configuration.get("value.converter.schemas.enable", "true").lower() == "true"
    return f"{made}+schema" if made.startswith("json") and not made.startswith("jsonschema") and schemas else made
