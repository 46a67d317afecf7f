"""What a log on Kafka knows of its topics and their forms, as records of its changelog."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import pyarrow as pa

from headrace.log.base import TopicInfo

Json = bytes  # the name «bytes» is a field's here
TOPIC, FORM, HEAD = "~topic", "~form", "~head"
COPYING = "~copying"  # while `headrace.log.copy` fills a log
OURS = "~"  # what a log's own kinds of records begin with


@dataclass(frozen=True, slots=True)
class Head:
    """Where a topic begins and ends, in rows of ours; written by every transaction that adds to it.

    Attributes:
        first, end, bytes, entries, first_ts_us, last_ts_us: as in `headrace.log.base.TopicInfo`.
        first_slice, last_slice: slices of its oldest and its newest entry.
        last_offset: the newest entry's offset.
        identity: the broker's id of the topic when we first wrote or read it.
        foreign: others write it; we only wrote down in which order we read it.
    """

    first: int = 0
    end: int = 0
    bytes: int = 0
    entries: int = 0
    first_ts_us: int = 0
    last_ts_us: int = 0
    first_slice: int = 0
    last_slice: int = 0
    last_offset: int = 0
    identity: str = ""
    foreign: bool = False

    @property
    def rows(self) -> int:
        """Rows still held."""
        return self.end - self.first

    def entered(self, rows: int, size: int, slice_: int, ts_us: int) -> Head:
        """After one more entry."""
        return replace(
            self,
            end=self.end + rows,
            bytes=self.bytes + size,
            entries=self.entries + 1,
            first_ts_us=self.first_ts_us if self.entries else ts_us,
            last_ts_us=ts_us,
            first_slice=self.first_slice if self.entries else slice_,
            last_slice=slice_,
            last_offset=self.end,
        )

    def info(self, topic: str) -> TopicInfo:
        """As others see it."""
        return TopicInfo(topic, self.first, self.end, self.bytes, self.entries, self.first_ts_us, self.last_ts_us)

    def to_json(self) -> Json:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, value: Json) -> Head:
        return cls(**json.loads(value))


@dataclass(frozen=True, slots=True)
class Form:
    """What an entry's messages are: the format's name, and the rows' schema.

    >>> form = Form("json", pa.schema([("id", pa.int64())]))
    >>> Form.from_json(form.to_json()) == form
    True
    """

    format: str
    schema: pa.Schema

    @property
    def key(self) -> tuple[str, Json]:
        """Equal for equal forms, metadata included."""
        return self.format, self.schema.serialize().to_pybytes()

    def to_json(self) -> Json:
        ipc = base64.b64encode(self.schema.serialize()).decode()
        return json.dumps({"format": self.format, "schema": ipc}).encode()

    @classmethod
    def from_json(cls, value: Json) -> Form:
        known = json.loads(value)
        return cls(known["format"], pa.ipc.read_schema(pa.py_buffer(base64.b64decode(known["schema"]))))


def heads(records: Mapping[str, bytes]) -> dict[str, Head]:
    """All topics, from the records of their kind."""
    return {name: Head.from_json(value) for name, value in records.items()}
