"""Batches as Arrow streams: ``POST /models/{model}/predict``, rows in, rows with their answers out."""

from __future__ import annotations

import pyarrow as pa

from headrace.serve.asking import Asking, reach_wanted
from headrace.serve.exchange import Call, Problem, Reply, json_reply, wrong
from headrace.serve.models import Snapshot

STREAM = "application/vnd.apache.arrow.stream"


class Batches:
    """Handlers of whole batches, and of what there is."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def models(self, call: Call) -> Reply:
        """``GET /models``: each model, its version, position and time."""
        models = self._asking.models
        found = [{**models.current(name).made.to_dict(), "ready": models.ready(name)} for name in models.descriptions]
        return json_reply({"models": found})

    async def predict(self, call: Call) -> Reply:
        """``POST /models/{model}/predict``. Rows that have no answer say so in ``status`` and ``reason``."""
        name = call.names["model"]
        snapshot: Snapshot = self._asking.models.current(name)
        kind = (call.header(b"content-type") or "").partition(";")[0].strip().lower()
        body = await call.body()
        if kind != STREAM:
            raise Problem(415, f"send rows as {STREAM}", headers=[(b"accept-post", STREAM.encode())])
        query = dict(call.query())
        reached = await reach_wanted(self._asking, name, call, query)
        wanted = query.get("version")
        if wanted is not None:
            snapshot = await self._asking.version(name, wanted)
        else:
            snapshot = reached or snapshot
        chances = query.get("probabilities", "false") == "true"
        if chances and self._asking.models.descriptions[name].classes is None:
            raise Problem(422, [wrong("query", "probabilities", msg=f"the model «{name}» gives no probabilities")])
        rows = _rows(body)
        answer = await self._asking.answer(snapshot, rows, probabilities=chances)
        found = answer.batch
        if answer.reasons:
            reasons = pa.array([answer.reasons.get(i) for i in range(found.num_rows)], pa.string())
            found = found.append_column("reason", reasons)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, found.schema) as writer:
            writer.write_batch(found)
        headers = [(b"content-type", STREAM.encode()), *answer.made.headers]
        return Reply(sink.getvalue().to_pybytes(), 200, headers)


def _rows(body: bytes) -> pa.RecordBatch:
    try:
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            table = reader.read_all()
        table.validate(full=True)
        whole = table.combine_chunks().to_batches()
    except (pa.ArrowException, ValueError, OSError, EOFError) as error:
        raise Problem(422, [wrong("body", msg=f"not an Arrow stream: {error}")]) from None
    if len(set(table.schema.names)) != len(table.schema.names):
        raise Problem(422, [wrong("body", msg="two columns have one name")])
    return whole[0] if whole else pa.RecordBatch.from_pylist([], schema=table.schema)
