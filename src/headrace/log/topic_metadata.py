"""Kinds of records that a log on Kafka keeps about itself, and what it knows of each of its topics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from headrace.log.base import TopicInfo

Json = bytes  # the name «bytes» is a field's here
TOPIC, FORM, HEAD = "~topic", "~form", "~head"
COPYING = "~copying"  # while `headrace.log.copy` fills a log
STATUS = "~status"  # what the pipeline that writes a log says of itself; of no use to a copy
OURS = "~"  # what a log's own kinds of records begin with
CREATED, DROPPED = "created", "dropped"
_LATER = ("mark", "born")


@dataclass(frozen=True, slots=True)
class TopicMetadata:
    """The beginning and end of a topic, in rows of ours; written by every transaction that adds to it.

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
    def is_known(self) -> bool:
        """Return whether there is anything to remember; of a topic made on the way that got no row there is not."""
        return bool(self.end or self.mark)

    @property
    def visible(self) -> bool:
        """Return whether the log has this topic."""
        return self.is_known and self.mark != DROPPED

    @property
    def rows(self) -> int:
        """Rows still held."""
        return self.end - self.first

    def with_entry(self, rows: int, size: int, slice_: int, ts_us: int) -> TopicMetadata:
        """Return what is known after one more entry."""
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

    def dropped(self) -> TopicMetadata:
        """Return what is left of a topic that is gone: where the next one of its name begins."""
        return TopicMetadata(self.end, self.end, last_slice=self.last_slice, foreign=True, mark=DROPPED, born=self.end)

    def info(self, topic: str) -> TopicInfo:
        """Return what readers of the log see."""
        return TopicInfo(topic, self.first, self.end, self.bytes, self.entries, self.first_ts_us, self.last_ts_us)

    def to_json(self) -> Json:
        """Return the record; fields that came later are left out while empty, so that an older Headrace reads it."""
        return json.dumps({name: value for name, value in asdict(self).items() if value or name not in _LATER}).encode()

    @classmethod
    def from_json(cls, value: Json) -> TopicMetadata:
        """Read a record of `to_json`."""
        return cls(**json.loads(value))


def topic_metadata(records: Mapping[str, bytes]) -> dict[str, TopicMetadata]:
    """Read the metadata of all topics from the records of the kind `TOPIC`."""
    return {name: TopicMetadata.from_json(value) for name, value in records.items()}
