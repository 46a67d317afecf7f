"""Values as they are: texts and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.batch import OPS, Batch
from headrace.errors import FormatError
from headrace.formats.base import FIRST, Decoded, Preceding
from headrace.formats.column_text import plain_text
from headrace.formats.flat_values import ParsedColumns, decode_values, encode_texts, utf8
from headrace.formats.json_keys import check_key_format
from headrace.formats.json_parse import Bad
from headrace.formats.json_text import unwrapped
from headrace.plain_values import is_bytes, is_text
from headrace.wire import Encoded, WireMessages


@dataclass(frozen=True, slots=True)
class ValueFormat:
    """One column ``value`` of one type, and ``key`` where messages have keys."""

    kind: ClassVar[pa.DataType]
    own_name: ClassVar[str]
    key: str | None = None

    def __post_init__(self) -> None:
        check_key_format(self.key)

    @property
    def name(self) -> str:
        return self.own_name

    def encode(self, topic: str, batch: Batch) -> Encoded:
        """Write the column ``value`` (or the only one beside the key) as it is, or as text."""
        return _encode_value(topic, batch, self.key or self.name, self.name)

    def decode(self, messages: WireMessages, schema: pa.Schema | None = None, preceding: Preceding = FIRST) -> Decoded:
        """Read one row for each message; a null value is the delete of its key."""
        return decode_values(messages, schema, preceding, self.key or self.name, self._parse, single=self.kind)

    def _parse(self, values: Sequence[bytes]) -> tuple[list[ParsedColumns], Bad]:
        every = np.arange(len(values))
        try:
            return [({"value": pa.array(values, pa.binary()).cast(self.kind)}, every)], []
        except pa.ArrowInvalid:
            texts, bad = utf8(values)
            where = np.array([i for i, _ in texts], np.int64)
            return [({"value": pa.array([text for _, text in texts], self.kind)}, where)], bad


class BytesFormat(ValueFormat):
    """Values as they are: a column ``value`` of bytes, and ``key`` where messages have keys.

    >>> messages = WireMessages("t", [b"\\xff"], offsets=np.arange(1))
    >>> BytesFormat().decode(messages).parts[0][0].rows.to_pylist()
    [{'value': b'\\xff'}]
    """

    __slots__ = ()
    kind = pa.binary()
    own_name = "bytes"


class StringFormat(ValueFormat):
    """Values as UTF-8 text: a column ``value``, and ``key`` where messages have keys.

    >>> messages = WireMessages("t", [b"hello", b"\\xff"], offsets=np.arange(2))
    >>> decoded = StringFormat().decode(messages)
    >>> decoded.parts[0][0].rows.to_pylist(), decoded.bad
    ([{'value': 'hello'}], [(1, 'invalid UTF-8 at byte 0')])
    """

    __slots__ = ()
    kind = pa.string()
    own_name = "string"


def _encode_value(topic: str, batch: Batch, key: str, name: str) -> Encoded:
    names = [column for column in batch.column_names if column == "value"]
    names = names or [column_name for column_name in batch.column_names if column_name not in batch.key_columns]
    if len(names) != 1:
        raise FormatError(
            f"topic «{topic}»: format «{name}» holds one column, and the rows have {', '.join(batch.column_names)}",
            advice="Name one column «value», or choose «json».",
        )
    array = unwrapped(batch.column(names[0]))
    as_it_is = is_text(array.type) or (name == "bytes" and is_bytes(array.type))
    texts = array if as_it_is else plain_text(array)
    if texts.null_count:
        missing = pc.and_(texts.is_null(), pa.array((batch.op != OPS["d"]) & (batch.op != OPS["t"])))
        if pc.any(missing).as_py():
            raise FormatError(
                f"topic «{topic}»: column «{names[0]}» is null, and format «{name}» has no null but a delete",
                advice="Filter those rows, or choose «json».",
            )
    whole = as_it_is and _say_all(batch, key, name)
    return encode_texts(topic, batch, texts, key, whole=whole)


def _say_all(batch: Batch, key: str, name: str) -> bool:
    """Return whether key and value, as they are, have all of the rows."""
    if batch.column_names == ["value"]:
        return True
    if set(batch.column_names) != {"key", "value"} or batch.key_columns != ("key",) or key != name:
        return False
    kind = unwrapped(batch.column("key")).type
    return is_text(kind) or (name == "bytes" and is_bytes(kind))
