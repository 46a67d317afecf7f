"""Labelled images as Kafka's Scala examples send them: the bytes of the image, then one byte for the label.

The serde is `MnistRecordSerde` of Chris Hansen's "Online Learning with Apache Kafka" (2021): pixels row by
row, no header, no size; a square image's side is the root of the message's length less one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.batch import OPS, Batch
from headrace.errors import FormatError
from headrace.formats.base import FIRST, Decoded, Preceding
from headrace.formats.flat_values import ParsedColumns, decode_values, encode_texts
from headrace.formats.json_keys import check_key_format
from headrace.formats.json_parse import Bad
from headrace.formats.json_text import unwrapped
from headrace.plain_values import is_bytes
from headrace.wire import Encoded, WireMessages

COLUMNS = ("pixels", "label")
LARGEST_LABEL = 255


@dataclass(frozen=True, slots=True)
class ImageLabelFormat:
    """A column ``pixels`` of bytes and a column ``label`` of whole numbers from 0 to 255, in one message.

    What else a row has goes into a header, with all of the row: give rows these two columns (and a key that is one of
    them, or none) where messages should stay small.

    >>> batch = Batch.of({"pixels": [b"\\x00\\xff", b"ab"], "label": [3, 200]})
    >>> encoded = ImageLabelFormat().encode("digits", batch)
    >>> encoded.values
    [b'\\x00\\xff\\x03', b'ab\\xc8']
    >>> messages = WireMessages("digits", encoded.values, offsets=np.arange(2))
    >>> ImageLabelFormat().decode(messages).parts[0][0].rows.to_pylist()
    [{'pixels': b'\\x00\\xff', 'label': 3}, {'pixels': b'ab', 'label': 200}]
    """

    key: str | None = None

    def __post_init__(self) -> None:
        check_key_format(self.key)

    @property
    def name(self) -> str:
        return "image+label"

    def encode(self, topic: str, batch: Batch) -> Encoded:
        """A message for every row; deletes and truncates have no value.

        Raises:
            FormatError: a column is missing, is null, or a label is no byte.
        """
        missing = [name for name in COLUMNS if name not in batch.column_names]
        if missing:
            raise FormatError(
                f"topic «{topic}»: format «{self.name}» needs the columns pixels and label, and the rows have "
                f"{', '.join(batch.column_names)}",
                advice="Name them so, or choose «json».",
            )
        valued = (batch.op != OPS["d"]) & (batch.op != OPS["t"])
        pixels = _pixels(topic, unwrapped(batch.column("pixels")))
        label = _labels(topic, unwrapped(batch.column("label")), valued)
        for name, array in zip(COLUMNS, (pixels, label), strict=True):
            empty = np.flatnonzero(valued & np.asarray(array.is_null()))
            if empty.size:
                raise FormatError(
                    f"topic «{topic}»: column «{name}» is null in row {empty[0]}, and format «{self.name}» has no null",
                    advice="Filter unlabelled rows out, or choose «json».",
                )
        joined = pc.binary_join_element_wise(pixels, label, pa.scalar(b"", pa.large_binary()))
        whole = set(batch.column_names) == set(COLUMNS)
        return encode_texts(topic, batch, joined, self.key or "json", whole=whole)

    def decode(self, messages: WireMessages, schema: pa.Schema | None = None, preceding: Preceding = FIRST) -> Decoded:
        """A row for each message, ``pixels`` binary and ``label`` int16; a null value is the delete of its key."""
        return decode_values(messages, schema, preceding, self.key, lambda values: _parse(values, schema))


def _pixels(topic: str, array: pa.Array) -> pa.Array:
    if not is_bytes(array.type):
        raise FormatError(f"topic «{topic}»: column «pixels» is {array.type}, and has to be bytes")
    return array.cast(pa.binary()).cast(pa.large_binary())


def _labels(topic: str, array: pa.Array, valued: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> pa.Array:
    """The labels as texts of one byte each; null where there is none."""
    if not pa.types.is_integer(array.type):
        raise FormatError(f"topic «{topic}»: column «label» is {array.type}, and has to be a whole number")
    beyond = pc.or_(pc.less(array, 0), pc.greater(array, LARGEST_LABEL)) if len(array) else pa.array([], pa.bool_())
    wrong = np.flatnonzero(np.asarray(beyond.fill_null(False)) & valued)
    if wrong.size:
        raise FormatError(
            f"topic «{topic}»: label {array[int(wrong[0])]} in row {wrong[0]} is no byte (0 to {LARGEST_LABEL})",
            advice="Choose «json» for such labels.",
        )
    numbers = np.asarray(pc.if_else(beyond, 0, array).fill_null(0)).astype(np.uint8)
    alone = pa.FixedSizeBinaryArray.from_buffers(pa.binary(1), len(array), [None, pa.py_buffer(numbers)])
    return pc.if_else(array.is_valid(), alone.cast(pa.large_binary()), pa.scalar(None, pa.large_binary()))


def _parse(values: Sequence[bytes], schema: pa.Schema | None) -> tuple[list[ParsedColumns], Bad]:
    every = pa.array(values, pa.large_binary())
    lengths = np.asarray(pc.binary_length(every))
    bad: Bad = [(int(i), "no bytes: neither an image nor a label") for i in np.flatnonzero(lengths == 0)]
    where = np.flatnonzero(lengths > 0)
    present = every if not bad else every.take(pa.array(where))
    if not where.size:
        return [], bad
    last = np.asarray(present.buffers()[1]).view(np.int64)[present.offset + 1 : present.offset + 1 + len(present)] - 1
    label = pa.array(np.frombuffer(present.buffers()[2], np.uint8)[last].astype(np.int16))
    columns = {"pixels": pc.binary_slice(present, 0, -1).cast(pa.binary()), "label": label}
    if schema is None:
        return [(columns, where)], bad
    for name in set(columns) & set(schema.names):
        kind = schema.field(name).type
        if pa.types.is_integer(kind) if name == "label" else is_bytes(kind):
            columns[name] = _as_declared(columns[name], kind)
    return [(columns, where)], bad


def _as_declared(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Of the table's type, where all values fit it; where not, whoever takes the rows says which do not."""
    try:
        return array.cast(kind)
    except pa.ArrowInvalid:
        return array
