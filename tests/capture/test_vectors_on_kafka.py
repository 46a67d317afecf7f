"""Vectors, and values carried forward, where the log is a cluster's: what was written is read again from messages."""

from __future__ import annotations

import contextlib
import secrets

import numpy as np
import pytest
from tests.waiting import wait_until

from headrace.formats.topic_formats import Formats, codec_for
from headrace.log import open_log
from headrace.testing.servers import KafkaBroker

from .conftest import Capture, CapturedDatabase
from .test_unsent import each
from .test_vectors import columns


@pytest.mark.parametrize("form", ["json", "json+envelope+schema", "arrow"])
def test_on_a_cluster(database: CapturedDatabase, capture: Capture, broker: KafkaBroker, form: str) -> None:
    database.execute("CREATE EXTENSION vector")
    each(database, "CREATE TABLE tv (k int PRIMARY KEY, e vector(1000), a text, n int)")
    some = "(SELECT array_agg(g::real / 7)::vector FROM generate_series(1, 1000) g)"
    each(database, f"INSERT INTO tv VALUES (1, {some}, repeat(md5('1'), 1), 0), (2, NULL, NULL, 0)")
    each(database, "ALTER TABLE tv ALTER a SET STORAGE EXTERNAL, ALTER e SET STORAGE EXTERNAL")
    each(database, "UPDATE tv SET a = repeat('a', 9000) WHERE k = 1", f"UPDATE tv SET e = {some} WHERE k = 1")
    location = f"kafka://{broker.bootstrap}/v{secrets.token_hex(4)}"
    codec = codec_for(Formats(default=form))
    for number in (1, 2):
        with contextlib.closing(open_log(location, writer=True, codec=codec)) as log:
            engine = capture(log, carries=True)
            each(database, f"UPDATE tv SET n = {number}")
            engine.catch_up()
            engine.source.stop()
    topic = database.topic("tv")
    with contextlib.closing(open_log(location, writer=False, codec=codec)) as log:
        wait_until(lambda: topic in log.topics() and log.topics()[topic].end == 6)
        values, kinds = columns(log, topic)
        first = (np.arange(1, 1001, dtype=np.float32) / np.float32(7)).tolist()
        assert sorted(map(str, values)) == sorted(map(str, [first, None] * 3))
        assert [str(kind) for kind in kinds] == ["fixed_size_list<item: float>[1000]"]
        assert sorted(map(str, columns(log, topic, "a")[0])) == sorted(["a" * 9000, "None"] * 3)
