"""The JSON formats: flattened rows or Debezium's envelopes, with or without schemas."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pyarrow as pa

from headrace.batch import Batch
from headrace.formats import json_write
from headrace.formats.base import FIRST, Decoded, Encoded, Preceding
from headrace.formats.debezium import PLACEHOLDER
from headrace.formats.json_keys import KeyReader, check_key_format
from headrace.formats.json_read import Reader
from headrace.wire import WireMessages


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """JSON as Kafka Connect's JsonConverter and Debezium write it.

    Values have Debezium's forms (`formats.json_text` has the table). What an event was travels in headers
    (`formats.headers`), so that a batch comes back from its messages without loss.

    Reading recognises each message: one topic may hold flattened rows, envelopes, and either with a schema. Without a
    schema, neither asked for nor sent along, types are what the values look like (`formats.json_parse`). A null value
    is the delete of its key, unless it stands behind a delete; in a topic that holds envelopes (this format says so,
    or one of the messages is one) it is no event.

    Args:
        schemas: write the schema with every value and key.
        envelope: write change events with ``before``, ``after`` and ``source``; in a topic of such events a null value
            is no event.
        tombstones: write a null value behind every delete of an envelope.
        key: how keys are written, one of «json», «json+schema», «string», «bytes», «none»; None: as the values,
            without an envelope. Reading takes any of the JSON forms by itself.
        placeholder: what Debezium writes for a value that the source did not send.

    >>> batch = Batch.of({"id": [7], "name": ["x"]}, lsn=26421800, key=["id"])
    >>> encoded = JsonFormat().encode("t", batch)
    >>> encoded.keys, encoded.values
    ([b'{"id":7}'], [b'{"id":7,"name":"x"}'])
    """

    schemas: bool = False
    envelope: bool = False
    tombstones: bool = True
    key: str | None = None
    placeholder: str = PLACEHOLDER

    def __post_init__(self) -> None:
        check_key_format(self.key)

    @property
    def name(self) -> str:
        """``json``, ``json+schema``, ``json+envelope`` or ``json+envelope+schema``."""
        return "json" + ("+envelope" if self.envelope else "") + ("+schema" if self.schemas else "")

    def decode(self, messages: WireMessages, schema: pa.Schema | None = None, preceding: Preceding = FIRST) -> Decoded:
        """Return the events of the messages; ``headrace.key`` in the schema's metadata says the key columns.

        Where no schema came along, types are those that ``preceding.columns`` had, as these rows change them
        (`formats.json_columns`); without those, what the values look like.
        """
        names = None if schema is None else (schema.metadata or {}).get(b"headrace.key")
        keys = KeyReader(messages, None if names is None else json.loads(names), self.key)
        return Reader(messages, schema, self.envelope, keys, self.placeholder, preceding).decode()

    def encode(self, topic: str, batch: Batch) -> Encoded:
        """Messages for the rows."""
        key = self.key or ("json+schema" if self.schemas else "json")
        if self.envelope:
            return json_write.enveloped(topic, batch, schemas=self.schemas, key=key, tombstones=self.tombstones)
        return json_write.flattened(topic, batch, schemas=self.schemas, key=key)
