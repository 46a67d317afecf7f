"""A small body that stands for a large one: an Arrow stream can say in a few bytes what fills a machine."""

from __future__ import annotations

import resource
from typing import Any

import pyarrow as pa
import pytest

from headrace.serve.arrow import STREAM

from .client import FISH, Client, fish, serving

ROWS = pa.RecordBatch.from_pylist([{name: row[name] for name in ("Length", "Height", "Species")} for row in FISH])


def stream(batch: pa.RecordBatch, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def one(column: pa.Array) -> bytes:
    return stream(pa.record_batch([column], ["x"]))


def dictionary(words: int, rows: int, size: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int8()), pa.array(["x" * size] * words))


ENDS = pa.array([10**9], pa.int32())
CASES = {
    "as it should be": (lambda: stream(ROWS), 200),
    "categories in a dictionary": (
        lambda: stream(ROWS.set_column(2, "Species", ROWS.column("Species").dictionary_encode())),
        200,
    ),
    "compressed": (lambda: stream(pa.record_batch({"x": [0.0] * 1_000_000}), compression="zstd"), 415),
    "a compressed dictionary": (lambda: stream(pa.record_batch([dictionary(1, 1, 9999)], "x"), compression="lz4"), 415),
    "rows of nothing": (lambda: one(pa.nulls(2**31 - 1)), 413),
    "runs": (lambda: one(pa.RunEndEncodedArray.from_arrays(ENDS, pa.array([1.0]))), 422),
    "lists of nothing": (lambda: one(pa.array([[], []], pa.list_(pa.float64(), 0))), 422),
    "structs of nothing": (lambda: one(pa.array([{}, {}], pa.struct([]))), 422),
    "views of one text": (lambda: one(pa.array(["x" * 100] * 3, pa.string_view())), 422),
    "a long word many times": (lambda: one(dictionary(1, 100_000, 1_000_000)), 413),
    "too many rows": (lambda: one(pa.array([True] * 1_000_001)), 413),
    "no stream": (lambda: b"\xff\xff\xff\xff\x10\x00\x00\x00nonsense of bytes", 422),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(fish(tmp_path_factory.mktemp("served") / "fish.headrace"), FISH) as (_, client):
        yield client


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_before_it_is_large(client: Client, case: str) -> None:
    make, status = CASES[case]
    body = make()
    assert len(body) < 4_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    got = client.post("/models/weight/predict", body, {"Content-Type": STREAM})
    assert got.status == status, got.body
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    if status == 200:
        answered = pa.ipc.open_stream(got.body).read_all()
        assert set(answered.column("status").to_pylist()) == {"ok"}
