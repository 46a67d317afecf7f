"""A captured column of vectors in sinks, in SQL, on a page, in files and in what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import dataset

import headrace as hr
from headrace.batch import Batch
from headrace.formats import avro_schema, avro_writer
from headrace.formats.factory import format_for
from headrace.inspect.query import query_topics
from headrace.log import open_log
from tests.databases import Database
from tests.serve.client import Client, headrace
from tests.ui.conftest import dashboard_of


@pytest.fixture
def log(database: Database, tmp_path: Path) -> Path:
    """A log of three rows with vectors, which sinks have taken."""
    database.execute("CREATE EXTENSION vector")
    for name in ("docs", "copies"):
        database.execute(f"CREATE TABLE {name} (k int PRIMARY KEY, e vector(3), f halfvec)")
    database.execute("INSERT INTO docs VALUES (1, '[1,-0.1,3]', '[0.5]'), (2, NULL, NULL)")
    app = hr.App("everywhere", log=str(tmp_path / "log"))
    rows = app.postgres(database.dsn, tables=r"public\.docs")["public.docs"]
    rows.to_table(database.dsn, "copies", key="k")
    rows.to_table(database.dsn, "made", key="k")
    rows.to_parquet(tmp_path / "files")
    with app.start() as running:
        database.execute("UPDATE docs SET e = '[4,5,6]', f = '[1,2]' WHERE k = 2")
        database.execute("INSERT INTO docs VALUES (3, '[7,8,9]', NULL)")
        running.wait(60)
    return tmp_path / "log"


def test_wherever_rows_go(log: Path, database: Database, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    copies = [(1, "[1,-0.1,3]", "[0.5]"), (2, "[4,5,6]", "[1,2]"), (3, "[7,8,9]", None)]
    assert database.execute("SELECT k, e::text, f::text FROM copies ORDER BY k") == copies
    made = [(1, [1, -0.1, 3], [0.5]), (2, [4, 5, 6], [1, 2]), (3, [7, 8, 9], None)]
    found = database.execute("SELECT k, e, f FROM made ORDER BY k")
    assert [(k, pytest.approx(e), f) for k, e, f in found] == made
    files = dataset.dataset(tmp_path / "files", partitioning="hive").to_table()
    assert pa.types.is_list(files.schema.field("e").type) or pa.types.is_fixed_size_list(files.schema.field("e").type)
    assert files.column("e").to_pylist()[2:] == [[4, 5, 6], [7, 8, 9]]
    topic = "everywhere.public.docs"
    opened = open_log(str(log), writer=False)
    near = query_topics(opened, f'SELECT k, array_distance(e, [4, 5, 7]::FLOAT[3]) AS far FROM "{topic}" WHERE k > 1')
    assert near.sort_by("far").to_pylist()[0] == {"k": 2, "far": 1.0}
    opened.close()
    printed = headrace(capfd, "topics", "cat", topic, "--log", str(log), "--json")
    lines = [json.loads(line)["payload"] for line in printed.stdout.splitlines()]
    assert [(line["e"], line["f"]) for line in lines] == [
        *[([1.0, float(np.float32(-0.1)), 3.0], [0.5]), (None, None)],
        *[([4.0, 5.0, 6.0], [1.0, 2.0]), ([7.0, 8.0, 9.0], None)],
    ]
    with dashboard_of(log) as address:
        client = Client(address.removesuffix("/ui"))
        page = client.get(f"/ui/topics/{topic}")
        assert page.status == 200 and b"[4.0, 5.0, 6.0]" in page.body
        client.close()


EIGHT = pa.list_(pa.float32(), 2)
ROWS = pa.record_batch(
    [pa.array([1, 2, 3]), pa.array([[0.1, 3e-45], None, [1, -2]], EIGHT)],
    schema=pa.schema([("id", pa.int64()), pa.field("e", EIGHT, metadata={"postgres.type": "vector(2)"})]),
)


@pytest.mark.parametrize("name", ["json", "json+schema", "json+envelope", "json+envelope+schema", "csv"])
def test_as_messages(name: str) -> None:
    form = format_for(name)
    encoded = form.encode("t", Batch.of(ROWS, key=["id"]))
    texts = [value.decode().replace(" ", "") for value in encoded.values if value is not None]
    for text, numbers in zip(texts, ["[0.1,3e-45]", "", "[1.0,-2.0]"], strict=True):
        assert numbers in text, text


def test_as_messages_of_avro_they_are_arrays() -> None:
    listed = ROWS.set_column(1, "e", ROWS.column(1).cast(pa.list_(pa.float32())))
    written = []
    for rows in (ROWS, listed):
        schema = avro_schema.record(rows.schema, name="V", namespace="n")
        node = avro_schema.parse(json.dumps(schema))
        structs = pa.StructArray.from_arrays(rows.columns, fields=list(rows.schema))
        written.append(
            (schema["fields"][1]["type"], avro_writer.write(node, avro_schema.physical(structs)).to_pylist())
        )
    assert written[0][1] == written[1][1]
    assert '"array"' in json.dumps(written[0][0]) and '"float"' in json.dumps(written[0][0])
