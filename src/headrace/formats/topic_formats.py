"""Formats of topics, by name, for a log on Kafka; and decoding topics that others write."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import Batch, as_events, is_meta, record_batch
from headrace.errors import DeclarationError, HeadraceError, LogCorrupt
from headrace.formats.base import FIRST, RECORDED, Decoded, Format, Preceding
from headrace.wire import Encoded, WireMessages

if TYPE_CHECKING:
    from headrace.formats.json_columns import Column
    from headrace.formats.registry_format import Foretold

FOREIGN = "~"  # before the name of a format: others wrote these messages; twice: and numbered their events
COLUMNS = "columns"  # the kind of the records that say what topics are
REGISTRY_URL = "HEADRACE_SCHEMA_REGISTRY_URL"
STRUCTURED = ("json", "json+envelope", "registry", "arrow")


@dataclass(frozen=True, slots=True)
class Formats:
    """Formats in which topics are written to a cluster, and read from it where messages do not show it themselves.

    Attributes:
        default: of topics that are not named.
        topics, prefixes, keys: by topic, by a source's prefix; of keys by topic.
        registry: the schema registry's URL, which may hold a password.
    """

    default: str = "json"
    topics: Mapping[str, str] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    registry: str | None = field(default=None, repr=False)


@dataclass
class TopicCodec:
    """Formats of topics, by their names.

    Args:
        default: of topics that are not named; ``json`` is one flattened JSON object a row.
        formats: topic -> format, as `headrace.formats.factory.format_for` reads it.
        prefixes: likewise for all topics that begin with a source's prefix.
        keys: topic -> format of its keys, where it is not the values'.
        registry: where schemas are registered, for the formats that need one.

    >>> codec = TopicCodec(formats={"t": "json+schema"})
    >>> codec.format_of("t"), codec.format_of("other")
    ('json+schema', 'json')
    """

    default: str = "json"
    formats: Mapping[str, str] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    registry: str | None = None
    _made: dict[tuple[str, str | None], Format] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def format_of(self, topic: str) -> str:
        """The format in which a topic is written. What was refused keeps its types only as JSON: it stays so."""
        if topic.endswith(".dlq"):
            return "json"
        if topic in self.formats:
            return self.formats[topic]
        prefixes = [prefix for prefix in self.prefixes if topic.startswith(f"{prefix}.")]
        return self.prefixes[max(prefixes, key=len)] if prefixes else self.default

    def format(self, name: str, topic: str = "") -> Format:
        """A format by its name; made once.

        Raises:
            DeclarationError: there is none of this name, or it needs a registry and none is given.
        """
        from headrace.formats.factory import format_for

        made = (name.lstrip(FOREIGN), self.keys.get(topic))
        with self._lock:
            if made not in self._made:
                self._made[made] = format_for(made[0], key=made[1], registry=self.registry)
            return self._made[made]

    def check(self, topics: Iterable[str]) -> None:
        """Refuse topics that cannot be written as they are declared.

        Raises:
            DeclarationError: there is no format of a topic's name, or it needs a registry and none is given.
        """
        for topic in topics:
            name = self.format_of(topic)
            try:
                self.format(name, topic)
            except DeclarationError as error:
                text = f"the topic «{topic}» is to be written as {name}: {error.message}"
                raise DeclarationError(text, advice=error.advice) from error

    def foretell(self, topic: str, named: str, newest: Callable[[], WireMessages]) -> Foretold | None:
        """Return the columns of rows to come of a topic that others write; None where no registry says them.

        Args:
            named: the format that the user names; "" where messages show it.
            newest: gives the newest messages.

        Raises:
            DeclarationError: the format needs a registry, and none is given.
            FormatError: the registry refuses, or (`RegistryUnavailable`) does not answer.
        """
        from headrace.formats.factory import REGISTERED

        if named.split("+")[0] not in REGISTERED if named else self.registry is None:
            return None
        from headrace.formats.registry_format import RegistryReader

        form = self.format(named or "registry", topic)
        assert isinstance(form, RegistryReader)
        messages = newest()
        if not named and detect(messages) not in ("registry", ""):
            return None
        return form.foretell(topic, messages)

    def encode(self, topic: str, format_: str, records: pa.RecordBatch) -> Encoded:
        """Messages for rows; see `headrace.log.kafka_codec.Codec`."""
        return self.format(format_, topic).encode(topic, as_events(records))

    def decode(self, format_: str, messages: WireMessages, schema: pa.Schema) -> pa.RecordBatch:
        """Rows of messages, with exactly this schema.

        Raises:
            LogCorrupt: a message is not what was written, or is not there any more in this form.
        """
        columns = pa.schema([column for column in schema if not is_meta(column.name)])
        preceding = RECORDED if format_.startswith(FOREIGN) else FIRST
        decoded = self.format(format_, messages.topic).decode(messages, columns, preceding)
        if decoded.bad:
            at, reason = decoded.bad[0]
            raise LogCorrupt(
                f"«{messages.topic}» partition {messages.partitions[at]} offset {messages.offsets[at]} cannot be read "
                f"as {format_.lstrip(FOREIGN)}: {reason}",
                advice="It was not so when it was written or first read: was the topic's content replaced?",
            )
        return joined(decoded, messages, schema, numbered=format_.count(FOREIGN) == 1)


def codec_for(declared: Formats | None = None) -> TopicCodec:
    """The codec that a pipeline declares; the one that reads anything, where none does."""
    declared = declared or Formats()
    registry = declared.registry or os.environ.get(REGISTRY_URL)
    return TopicCodec(declared.default, declared.topics, declared.prefixes, declared.keys, registry)


def checked_format(name: str, *, key: str | None = None) -> str:
    """A format's name, as a user gives it.

    Args:
        key: the format of the keys beside it.

    Raises:
        DeclarationError: there is no such format, or it cannot have such a key.

    >>> checked_format("json+schema")
    'json+schema'
    """
    if name == "json" and key is None:
        return name
    from headrace.formats.factory import KNOWN, REGISTERED, format_for

    if name.split("+")[0] not in REGISTERED:
        format_for(name, key=key)
    elif name not in KNOWN:
        raise DeclarationError(f"there is no format «{name}»", advice=f"Known are {', '.join(KNOWN)}.")
    elif key is not None:
        from headrace.formats.registered import check_key

        check_key(name, key)
    return name


@dataclass(frozen=True, slots=True)
class Decision:
    """Format and columns of a topic of others, as its messages decided them; a record in the log (kind `COLUMNS`).

    Attributes:
        format: its name; "" before the first message that says one.
        columns: its rows' columns, where no schema says them; None before the first row.
        enveloped, deletes: see `Preceding`.
    """

    format: str = ""
    columns: Column | None = None
    enveloped: bool = False
    deletes: Mapping[int, tuple[int, bytes | None]] = field(default_factory=dict)

    def dump(self) -> bytes:
        """Return the record; what is not decided, and was not there in earlier versions, is left out."""
        found: dict[str, Any] = {
            "format": self.format,
            "columns": None if self.columns is None else self.columns.dump(),
        }
        if self.enveloped:
            found["enveloped"] = True
        if self.deletes:
            found["deletes"] = {
                partition: [offset, None if key is None else base64.b64encode(key).decode()]
                for partition, (offset, key) in self.deletes.items()
            }
        return json.dumps(found).encode()

    @classmethod
    def load(cls, record: bytes) -> Decision:
        """Return the inverse of `dump`.

        >>> Decision.load(Decision("json", deletes={0: (7, b"k")}).dump())
        Decision(format='json', columns=None, enveloped=False, deletes={0: (7, b'k')})
        """
        from headrace.formats.json_columns import Column

        found = json.loads(record)
        columns = found.get("columns")
        deletes = {
            int(partition): (offset, None if key is None else base64.b64decode(key))
            for partition, (offset, key) in found.get("deletes", {}).items()
        }
        return cls(
            found["format"], None if columns is None else Column.load(columns), found.get("enveloped", False), deletes
        )

    @property
    def preceding(self) -> Preceding:
        """The same for a decoder."""
        from headrace.formats.json_columns import ROW

        return Preceding(self.columns or ROW, self.enveloped, self.deletes)

    def after(self, preceding: Preceding) -> Decision:
        """Return what messages that were decoded have decided; the same object where they decided nothing."""
        from headrace.formats.json_columns import ROW

        columns = self.columns if preceding.columns is ROW else preceding.columns
        same = columns is self.columns and preceding.enveloped == self.enveloped and preceding.deletes == self.deletes
        return self if same else Decision(self.format, columns, preceding.enveloped, preceding.deletes)


class DecodedMessages(WireMessages):
    """Messages that somebody else has decoded already, as a `ForeignFormats` of his own.

    Attributes:
        before, after: what the topic was to him before and after (`Decision.dump`); b"" where nothing was decided.
        format, decoded: as `ForeignFormats` returned them.
    """

    __slots__ = ("after", "before", "decoded", "format")

    def __init__(self, messages: WireMessages, before: bytes, after: bytes, format: str, decoded: Decoded) -> None:
        super().__init__(
            messages.topic,
            messages.values,
            offsets=messages.offsets,
            partitions=messages.partitions,
            ts_ms=messages.ts_ms,
            keys=lambda: messages.keys,
            headers=lambda: messages.headers,
        )
        self.before, self.after, self.format, self.decoded = before, after, format, decoded


@dataclass
class ForeignFormats:
    """Decodes topics that others write: in the format that was named, or the one that their messages show.

    What a topic is, its messages decide one after another, and it stays so: the first that is a JSON object, is framed
    by a registry or is an Arrow stream decides for all that follow; what is none after that is a dead letter. Until
    then messages are texts, or bytes from the first on that is no UTF-8.

    Args:
        codec: makes the formats.
        named: topic -> format, where the user says it.
        numbered: events without a position are numbered by their offsets; else the events' own order counts.
    """

    codec: TopicCodec
    named: Mapping[str, str] = field(default_factory=dict)
    numbered: bool = True
    decisions: dict[str, Decision] = field(default_factory=dict)
    _dumped: dict[str, tuple[Decision, bytes]] = field(default_factory=dict, repr=False)

    def __call__(self, messages: WireMessages) -> tuple[str, Decoded]:
        """The last format, as `TopicCodec.decode` takes it, and the rows.

        Raises:
            RegistryUnavailable: a schema is needed that cannot be fetched now; nothing was decided.
        """
        if isinstance(messages, DecodedMessages) and messages.before == self.records().get(messages.topic, b""):
            if messages.after != messages.before:
                self.decisions[messages.topic] = Decision.load(messages.after)
            return messages.format, messages.decoded
        known = self.decisions.get(messages.topic, Decision())
        prefix = FOREIGN if self.numbered else FOREIGN * 2
        parts, bad, formats = [], [], []
        decision = known
        for name, rows in self._runs(messages, known):
            some = messages if len(rows) == len(messages) else messages.take(rows)
            now = decision if decision.format == name else replace(decision, format=name)
            decoded, decision = self._decoded(some, now)
            for batch, at in decoded.parts:
                parts.append((numbered_by_offset(batch, some, at) if self.numbered else batch, rows[at]))
                formats.append(prefix + name)
            bad += [(int(rows[i]), why) for i, why in decoded.bad]
        if decision != known:
            self.decisions[messages.topic] = decision
        several = formats if len(set(formats)) > 1 else []
        return prefix + (formats[-1].lstrip(FOREIGN) if formats else decision.format or "json"), Decoded(
            parts, bad, several
        )

    def records(self) -> dict[str, bytes]:
        """Return what was decided, for the log."""
        for topic, decision in self.decisions.items():
            known = self._dumped.get(topic)
            if known is None or known[0] is not decision:
                self._dumped[topic] = decision, decision.dump()
        return {topic: self._dumped[topic][1] for topic, value in self.decisions.items() if value != Decision()}

    def restore(self, records: Mapping[str, bytes]) -> None:
        """Go on with what the log has, and forget everything else."""
        self.decisions = {topic: Decision.load(record) for topic, record in records.items()}

    def _decoded(self, messages: WireMessages, decision: Decision) -> tuple[Decoded, Decision]:
        """Rows of messages of one format. An error that a library raises is one of some message: it is found."""
        form = self.codec.format(decision.format, messages.topic)
        try:
            decoded = form.decode(messages, preceding=decision.preceding)
            return decoded, decision.after(decoded.preceding)
        except HeadraceError:
            raise
        except Exception as error:
            if len(messages) == 1:
                return Decoded(bad=[(0, f"cannot be decoded: {type(error).__name__}: {error}")]), decision
        half = len(messages) // 2
        first, decision = self._decoded(messages.take(np.arange(half)), decision)
        second, decision = self._decoded(messages.take(np.arange(half, len(messages))), decision)
        parts = [*first.parts, *((batch, rows + half) for batch, rows in second.parts)]
        return Decoded(parts, [*first.bad, *((i + half, why) for i, why in second.bad)]), decision

    def _runs(self, messages: WireMessages, known: Decision) -> list[tuple[str, Ints]]:
        """Formats, and the messages that are in each: one run once the topic has decided."""
        named = self.named.get(messages.topic)
        everything = np.arange(len(messages))
        if named or known.format in STRUCTURED:
            name = named or known.format
            names = [name] * len(messages)
            return self._grouped(names if named else _enveloped(names, messages.values)) or [(name, everything)]
        names, name = [], known.format
        for i in range(len(messages)):
            name = _widened(name, messages, i)
            names.append(name)
            if name in STRUCTURED:
                names += [name] * (len(messages) - len(names))
                break
        return self._grouped(_enveloped(names, messages.values))

    @staticmethod
    def _grouped(names: Sequence[str]) -> list[tuple[str, Ints]]:
        found = np.array(names)
        return [(name, np.flatnonzero(found == name)) for name in dict.fromkeys(names)]


def _enveloped(names: list[str], values: Sequence[bytes | None]) -> list[str]:
    """Formats of messages, from the first one on that is an envelope as of a topic of those."""
    if "json" not in names:
        return names
    first = next((i for i, value in enumerate(values) if _is_envelope(value)), len(names))
    return [*names[:first], *("json+envelope" if name == "json" else name for name in names[first:])]


def _widened(name: str, messages: WireMessages, i: int) -> str:
    """The format of a topic that has not decided yet, with one more message."""
    value = messages.values[i]
    if value is None:
        # A tombstone of a table of JSON rows shows it by its key.
        return "json" if (messages.key(i) or b"")[:1] == b"{" else name or "string"
    shown = detect(messages.take([i])) if value else ""
    if shown in STRUCTURED or shown == "bytes":
        return shown
    return name or "string"


def _is_envelope(value: bytes | None) -> bool:
    return value is not None and all(word in value for word in (b'"before"', b'"after"', b'"source"', b'"op"'))


def joined(decoded: Decoded, messages: WireMessages, schema: pa.Schema, *, numbered: bool) -> pa.RecordBatch:
    """All parts as one batch of a schema.

    Args:
        numbered: their messages' offsets are the rows' indexes.
    """
    parts = []
    for batch, rows in decoded.parts:
        records = numbered_by_offset(batch, messages, rows).records if numbered else batch.records
        parts.append(coerced(records, schema))
    if not parts:
        return record_batch(schema.empty_table())
    return parts[0] if len(parts) == 1 else pa.concat_batches(parts)


def numbered_by_offset(batch: Batch, messages: WireMessages, rows: Ints) -> Batch:
    """Events with their messages' offsets as index: the same, in whatever batches they are decoded."""
    if not batch.num_rows:
        return batch
    at = batch.schema.names.index("__index")
    index = pa.array(messages.offsets[rows], pa.int64())
    return Batch(batch.records.set_column(at, batch.schema.field(at), index))


def coerced(records: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The same rows with a schema's columns: in its order, of its types; missing ones are null."""
    if records.schema.equals(schema, check_metadata=True):
        return records
    have = set(records.schema.names)
    arrays = []
    for child in schema:
        if child.name not in have:
            arrays.append(pa.nulls(records.num_rows, child.type))
            continue
        column = records.column(child.name)
        arrays.append(column if column.type.equals(child.type) else column.cast(child.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


_REGISTRY_HEADERS = ("apicurio.value.globalId", "apicurio.value.contentId")
_ARROW_STREAM = b"\xff\xff\xff\xff"


def detect(messages: WireMessages) -> str:
    r"""The name of the format: «registry», «arrow», «json», «string» or «bytes»; empty where no message says.

    «registry» means values that begin with the id of a schema (https://docs.confluent.io/platform/current/
    schema-registry/fundamentals/serdes-develop/index.html#wire-format); which serialisation it is the registry knows.
    All values have to agree; where they do not, the widest that holds them all is the answer.

    >>> import numpy as np
    >>> def of(*values): return detect(WireMessages("t", values, offsets=np.arange(len(values))))
    >>> of(b'{"a": 1}'), of(b"\0\0\0\0\7x"), of(b"\xff\xff\xff\xff\0"), of(b"hello"), of(b"\xfe"), of(None, b"")
    ('json', 'registry', 'arrow', 'string', 'bytes', '')
    """
    found = {_one(value) for value in messages.values if value}
    if not found:
        return ""
    if found <= {"string", "json", "bytes"} and any(
        name in _REGISTRY_HEADERS for headers in messages.headers for name, _ in headers
    ):
        return "registry"
    if len(found) == 1:
        return found.pop()
    return "string" if found == {"json", "string"} else "bytes"


def _one(value: bytes) -> str:
    if value[:1] == b"\0" and len(value) >= 5:
        return "registry"
    if value[:4] == _ARROW_STREAM:
        return "arrow"
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return "bytes"
    return "json" if text.lstrip()[:1] == "{" and text.rstrip()[-1:] == "}" else "string"
