"""Record batches as bytes: Arrow IPC messages without their schema, which a log stores once.

A one-row batch is then some hundred bytes instead of some thousand. The two exceptions are decided by the schema
alone, so a message needs no mark: dictionary-encoded columns need their dictionaries beside them and are stored as a
whole IPC stream; columns of views are compacted first, since Arrow does not trim their buffers when it
writes a slice.

https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from headrace.batch import from_ipc, to_ipc


class MessageFormat:
    """The messages of one schema, written and read. Holds no state besides the schema: any thread may use it.

    >>> records = pa.RecordBatch.from_pydict({"id": [1, 2, 3]})
    >>> form = MessageFormat(records.schema)
    >>> form.decode(bytes(form.encode(records.slice(1)))).to_pydict()
    {'id': [2, 3]}
    """

    __slots__ = ("_dictionaries", "_views", "schema")

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._dictionaries = any(pa.types.is_dictionary(kind) for field in schema for kind in _types_in(field.type))
        self._views = [index for index, field in enumerate(schema) if _is_view(field.type)]

    def encode(self, records: pa.RecordBatch) -> pa.Buffer:
        """Return the rows as one message; a slice takes no more room than its rows need."""
        if self._views:
            records = self._compact(records)
        if not self._dictionaries:
            return records.serialize()
        return to_ipc(records)

    def decode(self, body: bytes) -> pa.RecordBatch:
        """Return the rows of a message, over the memory of ``body``: nothing is copied.

        Raises:
            pyarrow.ArrowException: the bytes are no message of this schema.
        """
        buffer = pa.py_buffer(body)
        if not self._dictionaries:
            return pa.ipc.read_record_batch(buffer, self.schema)
        return from_ipc(buffer)

    def _compact(self, records: pa.RecordBatch) -> pa.RecordBatch:
        columns = list(records.columns)
        for index in self._views:
            kind = columns[index].type
            plain = pa.large_string() if pa.types.is_string_view(kind) else pa.large_binary()
            columns[index] = columns[index].cast(plain).cast(kind)
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def _types_in(kind: pa.DataType) -> Iterator[pa.DataType]:
    """Yield a type and every type inside it."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    yield kind
    for index in range(kind.num_fields):
        yield from _types_in(kind.field(index).type)
