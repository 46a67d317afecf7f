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
CREATED, DROPPED = "created", "dropped"
_LATER = ("mark", "born")
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
        foreign: others write it; we only wrote down in which order we read it. So does whoever comes after us.
        mark: of a topic without entries "created", or "dropped" where only its end is remembered.
        born: its first offset ever; rows before it were of a topic of the same name that was dropped.
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
    mark: str = ""
    born: int = 0

    @property
    def known(self) -> bool:
        """Whether there is anything to remember: a topic that was made by the way and got no row is none of ours."""
        return bool(self.end or self.mark)

    @property
    def visible(self) -> bool:
        """Whether the log has this topic."""
        return self.known and self.mark != DROPPED

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
            mark="",
        )

    def dropped(self) -> Head:
        """What is left of a topic that is gone: where the next one of its name begins."""
        return Head(self.end, self.end, last_slice=self.last_slice, foreign=True, mark=DROPPED, born=self.end)

    def info(self, topic: str) -> TopicInfo:
        """As others see it."""
        return TopicInfo(topic, self.first, self.end, self.bytes, self.entries, self.first_ts_us, self.last_ts_us)

    def to_json(self) -> Json:
        # As before there were marks, where there is none: an older Headrace reads it.
        return json.dumps({name: one for name, one in asdict(self).items() if one or name not in _LATER}).encode()

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
