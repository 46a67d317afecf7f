"""What a form needs to make a row of a topic, and the predictions that come of one that was appended."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headrace.arrays import Mask
from headrace.batch import Batch, is_meta
from headrace.log.base import newest_schema
from headrace.log.kafka import KafkaLog
from headrace.ui.read.images import declared_images
from headrace.ui.read.moment import Moment
from headrace.ui.read.relations import Finder, Found, found_row

MOST_FIELDS = 300
MOST_MESSAGES = 10_000
LOOKED_AT = 100_000


@dataclass(frozen=True, slots=True)
class Field:
    """A column in a form.

    Attributes:
        kind: ``image``, ``number``, ``bool``, ``bytes``, ``json`` or ``text``.
        height, width: of an image.
    """

    name: str
    type: str
    kind: str
    key: bool
    height: int = 0
    width: int = 0


@dataclass(frozen=True, slots=True)
class Form:
    """The columns that a topic's newest rows have, and those of their key; none where it has no row."""

    schema: pa.Schema
    fields: list[Field]
    key: tuple[str, ...]


def form_of(moment: Moment, topic: str) -> Form:
    """Return the form of a topic."""
    schema = newest_schema(moment.log, topic)
    if schema is None:
        return Form(pa.schema([]), [], ())
    own = pa.schema([_known(field, moment, topic) for field in schema if not is_meta(field.name)])
    key = Batch(pa.RecordBatch.from_pylist([], schema)).key_columns
    shapes = declared_images(moment.log)
    fields = [_field(field, key, shapes.get(field.name)) for field in own]
    return Form(own, fields[:MOST_FIELDS], key)


def _known(field: pa.Field, moment: Moment, topic: str) -> pa.Field:
    """Return a column with the type that it had before, where the newest rows have no value in it."""
    if not pa.types.is_null(field.type):
        return field
    for _, schema in reversed(moment.log.schemas(topic)):
        if field.name in schema.names and not pa.types.is_null(schema.field(field.name).type):
            return schema.field(field.name)
    return field


def _field(field: pa.Field, key: tuple[str, ...], shape: tuple[int, ...] | None) -> Field:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    sides = [side for side in shape or () if side != 1]
    if is_bytes and len(sides) == 2 and math.prod(sides) <= 1 << 20:
        return Field(field.name, str(kind), "image", field.name in key, *sides)
    names = {
        "bytes": is_bytes,
        "json": pa.types.is_nested(kind),
        "bool": pa.types.is_boolean(kind),
        "number": pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind),
    }
    return Field(field.name, str(kind), next((name for name, fits in names.items() if fits), "text"), field.name in key)


def message_of(log: KafkaLog, topic: str, offset: int) -> str:
    """Return the message that a row is, as ``PARTITION:OFFSET``; "" where it is one of a great many."""
    entry = next(log.entries_of(topic, offset), None)
    if entry is None or entry.rows > MOST_MESSAGES:
        return ""
    messages = log.loader.messages(entry)
    row = offset - entry.offset
    return f"{messages[row].partition()}:{messages[row].offset()}" if len(messages) == entry.rows else ""


def row_of_message(log: KafkaLog, topic: str, message: str) -> int | None:
    """Return the row that a pipeline has made of one of the newest messages of a topic; None where there is none yet.

    Args:
        message: as `message_of` says it.
    """
    info = log.topics().get(topic)
    number, offset = map(int, message.split(":"))
    if info is None:
        return None
    for entry in log.entries_of(topic, max(info.first, info.end - LOOKED_AT)):
        if any(span.partition == number and span.first <= offset <= span.last for span in entry.ranges):
            places = [(found.partition(), found.offset()) for found in log.loader.messages(entry)]
            return entry.offset + places.index((number, offset)) if (number, offset) in places else None
    return None


def predicted_topics(moment: Moment, topic: str) -> list[str]:
    """Return the topics of the predictions that models make of a topic's rows."""
    return [output for output, source in Finder(moment).flows.inputs.items() if source == topic]


def predictions_of(moment: Moment, topic: str, offset: int) -> list[Found]:
    """Return the predictions of a row that are there, one for each topic of predictions."""
    finder = Finder(moment)
    row = found_row(moment, topic, offset)
    if row is None:
        return []
    wanted = Batch(row.records)

    def same(records: pa.RecordBatch) -> Mask:
        batch = Batch(records)
        fits = (batch.lsn == wanted.lsn[0]) & (batch.index == wanted.index[0]) & (batch.ts_us == wanted.ts_us[0])
        return np.asarray(fits, np.bool_)

    found = []
    for output, source in finder.flows.inputs.items():
        if source == topic:
            found += [next(finder.after(output, row.slice, same), None)]
    return [each for each in found if each is not None]
