"""Batches as Arrow IPC streams."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headrace.batch import META_FIELDS, Batch, is_meta, to_ipc
from headrace.errors import FormatError
from headrace.formats.base import FIRST, Decoded, Preceding
from headrace.formats.headers import topic_source
from headrace.wire import Encoded, WireMessages


@dataclass(frozen=True, slots=True)
class ArrowFormat:
    """Whole batches as Arrow IPC streams (https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format).

    A message holds many rows, with all the columns that Headrace adds, and loses nothing. It has no key: a topic of
    this format cannot be compacted.

    Args:
        max_bytes: a batch whose stream would be longer is cut into several messages.

    >>> batch = Batch.of({"id": [7, 8]}, op="d", key=["id"], source="shop")
    >>> encoded = ArrowFormat().encode("t", batch)
    >>> messages = WireMessages("t", encoded.values, offsets=np.arange(1))
    >>> ArrowFormat().decode(messages).parts[0][0].records.equals(batch.records, check_metadata=True)
    True
    """

    max_bytes: int = 900 * 1024

    @property
    def name(self) -> str:
        return "arrow"

    def encode(self, topic: str, batch: Batch) -> Encoded:
        """One message, or as many as `max_bytes` asks for; ``rows`` has the first row of each.

        Raises:
            FormatError: one row alone is longer than `max_bytes`.
        """
        values: list[bytes | None] = []
        first: list[int] = []
        self._write(topic, batch.records, 0, values, first)
        nothing: list[bytes | None] = [None] * len(values)
        return Encoded(nothing, values, [()] * len(values), np.array(first, np.int64))

    def _write(
        self, topic: str, records: pa.RecordBatch, at: int, values: list[bytes | None], first: list[int]
    ) -> None:
        if not records.num_rows:
            return
        stream = to_ipc(records)
        if stream.size <= self.max_bytes:
            values.append(stream.to_pybytes())
            first.append(at)
            return
        n = records.num_rows
        if n == 1:
            raise FormatError(
                f"topic «{topic}»: a row of {stream.size} bytes is longer than max_bytes={self.max_bytes}",
                advice="Raise max_bytes here and max.message.bytes of the topic.",
            )
        step = max(1, min(n // 2, n * self.max_bytes // stream.size))
        for start in range(0, n, step):
            # A slice would send all of its dictionaries and buffers again.
            self._write(topic, records.slice(start, step), at + start, values, first)

    def decode(self, messages: WireMessages, schema: pa.Schema | None = None, preceding: Preceding = FIRST) -> Decoded:
        """Rows of streams, ours or others'; columns without events of ours are inserts at the message's time."""
        decoded = Decoded(preceding=preceding)
        for i, value in enumerate(messages.values):
            if value is None:
                continue
            try:
                with pa.ipc.open_stream(value) as reader:
                    batches = [batch for batch in reader if batch.num_rows]
                    for batch in batches:
                        batch.validate(full=True)
            except (pa.ArrowException, OSError, ValueError) as error:
                decoded.bad.append((i, f"not an Arrow IPC stream: {str(error).splitlines()[0]}"))
                continue
            for batch in batches:
                one, why = _arrow_batch(batch, messages, i, schema)
                if one is None:
                    decoded.bad.append((i, why))
                    break
                decoded.parts.append((one, np.full(one.num_rows, i, np.int64)))
        wrong = {i for i, _ in decoded.bad}
        return Decoded(
            [part for part in decoded.parts if int(part[1][0]) not in wrong], decoded.bad, preceding=preceding
        )


def _arrow_batch(
    records: pa.RecordBatch, messages: WireMessages, i: int, schema: pa.Schema | None
) -> tuple[Batch | None, str]:
    """A batch of a stream's rows, with the columns asked for."""
    names = records.schema.names
    if len(set(names)) < len(names):
        return None, "two columns of one name"
    ours = [
        field for field in META_FIELDS if field.name in names and records.schema.field(field.name).type == field.type
    ]
    if schema is None and len(ours) == len(META_FIELDS):
        return Batch(records), ""
    columns = []
    asked = schema if schema is not None else [column for column in records.schema if not is_meta(column.name)]
    for item in asked:
        try:
            array = (
                records.column(item.name).cast(item.type) if item.name in names else pa.nulls(len(records), item.type)
            )
        except (pa.ArrowException, ValueError) as error:
            return None, f"column «{item.name}»: {str(error).splitlines()[0]}"
        columns.append((item, array))
    rows = pa.RecordBatch.from_arrays(
        [array for _, array in columns], schema=pa.schema([named for named, _ in columns])
    )
    if len(ours) == len(META_FIELDS):
        own = Batch(records)
        return Batch.of(
            rows, op=own.op, lsn=own.lsn, index=own.index, ts_us=own.ts_us, key=own.key_columns,
            source=own.source, before=own.before, unchanged=own.unchanged,
        ), ""  # fmt: skip
    return Batch.of(rows, ts_us=int(messages.ts_ms[i]) * 1000, source=topic_source(messages.topic)), ""
