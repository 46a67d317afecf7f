"""Batches as Arrow streams: ``POST /models/{model}/predict``, rows in, rows with their predictions out."""

from __future__ import annotations

import struct

import pyarrow as pa
import pyarrow.compute as pc

from headrace.batch import record_batch, to_ipc
from headrace.serve.exchange import Problem, Request, Response, field_error, json_response
from headrace.serve.models import Snapshot
from headrace.serve.service import PredictionService, reach_wanted

STREAM = "application/vnd.apache.arrow.stream"
MOST_ROWS = 1_000_000
MOST_BYTES = 256 * 1024 * 1024
_DICTIONARY, _BATCH = 2, 3


class Batches:
    """Handlers of whole batches, and of the list of models."""

    def __init__(self, service: PredictionService) -> None:
        self._service = service

    async def models(self, request: Request) -> Response:
        """``GET /models``: each model, its version, position and time."""
        models = self._service.models
        found = [{**models.current(name).info.to_dict(), "ready": models.ready(name)} for name in models.descriptions]
        return json_response({"models": found})

    async def predict(self, request: Request) -> Response:
        """``POST /models/{model}/predict``. Rows that have no prediction say so in ``status`` and ``reason``."""
        name = request.names["model"]
        snapshot: Snapshot = self._service.models.current(name)
        kind = (request.header(b"content-type") or "").partition(";")[0].strip().lower()
        body = await request.body()
        if kind != STREAM:
            raise Problem(415, f"send rows as {STREAM}", headers=[(b"accept-post", STREAM.encode())])
        query = dict(request.query())
        reached = await reach_wanted(self._service, name, request, query)
        wanted = query.get("version")
        if wanted is not None:
            snapshot = await self._service.version(name, wanted)
        else:
            snapshot = reached or snapshot
        chances = query.get("probabilities", "false") == "true"
        if chances and self._service.models.descriptions[name].classes is None:
            raise Problem(
                422, [field_error("query", "probabilities", msg=f"the model «{name}» gives no probabilities")]
            )
        rows = _rows(body)
        answer = await self._service.predict_batch(snapshot, rows, probabilities=chances)
        found = answer.batch
        if answer.reasons:
            reasons = pa.array([answer.reasons.get(i) for i in range(found.num_rows)], pa.string())
            found = found.append_column("reason", reasons)
        headers = [(b"content-type", STREAM.encode()), *answer.info.headers]
        return Response(to_ipc(found).to_pybytes(), 200, headers)


def _rows(body: bytes) -> pa.RecordBatch:
    """The rows of a body.

    Raises:
        Problem: 422; 415 where they are compressed, 413 where they are too many.
    """
    try:
        if any(compressed(bytes(message.metadata)) for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body))):
            # 16 MB of zeros, compressed, are many gigabytes.
            raise Problem(415, "compressed batches are not taken; write the stream without compression")
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            for field in reader.schema:
                _check_type(field)
            table = reader.read_all()
        table.validate(full=True)
        if table.num_rows > MOST_ROWS:
            raise Problem(413, f"{table.num_rows:,} rows are more than {MOST_ROWS:,}; send them in several requests")
        table = pa.table([_written_out(column) for column in table.columns], table.schema.names)
        rows = record_batch(table)
    except (pa.ArrowException, ValueError, OSError, EOFError, struct.error) as error:
        raise Problem(422, [field_error("body", msg=f"not an Arrow stream: {error}")]) from None
    if len(set(table.schema.names)) != len(table.schema.names):
        raise Problem(422, [field_error("body", msg="two columns have one name")])
    return rows


# -- what a small body must not become --------------------------------------------------------------------------------


def compressed(metadata: bytes) -> bool:
    """Return whether a message of a stream holds compressed buffers, by its flatbuffer.

    https://github.com/apache/arrow/blob/main/format/Message.fbs: ``RecordBatch.compression`` is its fourth field, a
    ``DictionaryBatch`` has a record batch as its second, a ``Message`` has type and header as second and third.

    >>> rows = pa.RecordBatch.from_pydict({"x": [0.0] * 100})
    >>> sinks = [pa.BufferOutputStream() for _ in range(2)]
    >>> for sink, how in zip(sinks, (None, "zstd")):
    ...     with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression=how)) as writer:
    ...         writer.write_batch(rows)
    >>> streams = [pa.ipc.MessageReader.open_stream(sink.getvalue()) for sink in sinks]
    >>> [any(compressed(bytes(message.metadata)) for message in stream) for stream in streams]
    [False, True]
    """
    message = struct.unpack_from("<I", metadata)[0]
    at = _field(metadata, message, 1)
    kind = metadata[at] if at else 0
    if kind not in (_DICTIONARY, _BATCH):
        return False
    batch = _table(metadata, message, 2)
    if kind == _DICTIONARY and batch:
        batch = _table(metadata, batch, 1)
    return bool(batch and _field(metadata, batch, 3))


def _field(data: bytes, table: int, number: int) -> int:
    """Return the offset of a table's field; 0: it is not set."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", data, fields)[0]:
        return 0
    offset = struct.unpack_from("<H", data, fields + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _table(data: bytes, table: int, number: int) -> int:
    """Return the offset of the table that a field points to; 0: it is not set."""
    at = _field(data, table, number)
    return at + struct.unpack_from("<I", data, at)[0] if at else 0


def _check_type(field: pa.Field) -> None:
    """Refuse columns whose rows need no bytes of their own: a few of the body could stand for any number.

    Raises:
        Problem: 422.
    """
    kind = field.type
    alone = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_null(kind) or (_has_bytes(alone) and not (alone is not kind and pa.types.is_nested(alone)))):
        raise Problem(422, [field_error("body", field.name, msg=f"columns of type {kind} are not taken")])


def _has_bytes(kind: pa.DataType) -> bool:
    """Return whether each value of this type takes bytes that no other value shares."""
    if isinstance(kind, pa.BaseExtensionType):
        return _has_bytes(kind.storage_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _has_bytes(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size > 0 and _has_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_has_bytes(kind.field(i).type) for i in range(kind.num_fields))
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return bool(pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or any(text(kind) for text in texts))


def _written_out(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary's words in every row, as models want them; other columns as they are.

    Raises:
        Problem: 413: they would be too large.
    """
    if not pa.types.is_dictionary(column.type):
        return column
    if not pa.types.is_primitive(column.type.value_type):
        longest = max((pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0 for chunk in column.chunks), default=0)
        if longest * len(column) > MOST_BYTES:
            raise Problem(413, f"words of {longest:,} bytes in {len(column):,} rows are too much")
    return column.cast(column.type.value_type)
